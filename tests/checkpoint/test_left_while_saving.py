"""Ctrl-C while results are written: what had come by then is in the folder all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import noting
from scripts import append, lines

from parcoll import Connection, ParallelGen, parallel
from parcoll.checkpoint import storage


def stop(patched: pytest.MonkeyPatch, at: int, behind: bool) -> list[str]:
    """Have Ctrl-C come at a write, before that or behind it; return what has been written by then."""
    written: list[str] = []
    write = storage.LocalFolder.write

    def stopped(self: storage.LocalFolder, name: str, parts: Any) -> None:
        written.append(name)
        stops = len(written) == at
        if stops and not behind:
            raise KeyboardInterrupt
        write(self, name, parts)
        if stops:
            raise KeyboardInterrupt

    patched.setattr(storage.LocalFolder, "write", stopped)
    return written


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("at", range(1, 6))  # the first one is the file that describes the chain
def test_no_element_runs_again(
    inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, behind: bool
) -> None:
    log = tmp_path / "log"
    chain = parallel(range(40), partition_size=10, checkpoint=tmp_path / "run").map(noting(log))
    with monkeypatch.context() as patched:
        stop(patched, at, behind)
        with pytest.raises(KeyboardInterrupt):
            list(chain)
    assert list(chain) == list(range(0, 80, 2))
    assert sorted(map(int, lines(log))) == list(range(40))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_what_had_failed_is_replaced_once(
    inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, behind: bool
) -> None:
    """New results take the places of old ones in their piece, whether or not that was begun."""
    log, broken = tmp_path / "log", tmp_path / "broken"
    broken.touch()

    def risky(x: int) -> int:
        append(log, x)
        if x % 3 == 0 and broken.exists():
            raise ValueError(x)
        return x

    def chain(**settings: Any) -> ParallelGen[int]:
        whole = parallel(range(60), partition_size=10, checkpoint=tmp_path / "run", **settings)
        return whole.map(risky, on_error="skip")

    assert list(chain()) == [x for x in range(60) if x % 3]
    broken.unlink()
    log.unlink()
    with monkeypatch.context() as patched:
        stop(patched, at, behind)
        with pytest.raises(KeyboardInterrupt):
            list(chain(retry_failed=True))
    assert list(chain(retry_failed=True)) == list(range(60))
    assert sorted(map(int, lines(log))) == list(range(0, 60, 3))
    again = chain()
    assert list(again) == list(range(60))
    assert again.stats.resumed == 60
