"""`checkpoint_info` and `python -m parcoll checkpoint`: what a folder has, told without loading it."""

from __future__ import annotations

import itertools
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from checkpoints import pieces, stopped_after

from parcoll import (
    CheckpointError,
    CheckpointFailure,
    CheckpointInfo,
    Connection,
    ParallelGen,
    checkpoint_info,
    parallel,
)
from parcoll.checkpoint.descriptions import CHAIN, END
from parcoll.checkpoint.storage import File, _time_in


class Sly:
    """It tells when it is unpickled."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __reduce__(self) -> Any:
        return sly, (self.x,)

    def __repr__(self) -> str:
        return f"<sly {self.x}>"


def sly(x: int) -> Sly:
    os.environ["LOADED"] = "yes"
    return Sly(x)


class SlyError(Exception):
    def __reduce__(self) -> Any:
        return SlyError.made, self.args

    @staticmethod
    def made(*args: Any) -> Any:
        os.environ["LOADED"] = "yes"
        return SlyError(*args)


def picky(value: Sly) -> Sly:
    if value.x % 10 == 7:
        raise SlyError(f"no {value.x}\nat all", value)
    return value


@pytest.fixture(params=["{}/run", "memory://{}/run", "file://{}/run"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


def chain(folder: Any, length: int = 40, **settings: Any) -> ParallelGen[Any]:
    source = [Sly(x) for x in range(length)]
    found = parallel(source, partition_size=6, checkpoint=folder, on_error="skip", **settings)
    return found.map(picky).filter(lambda value: value.x % 4)


def test_what_it_says(inline: Connection, folder: str, monkeypatch: pytest.MonkeyPatch):
    before = datetime.now() - timedelta(seconds=2)
    stopped_after(chain(folder), 8)
    monkeypatch.setenv("LOADED", "")
    info = checkpoint_info(folder)
    assert not os.environ["LOADED"]
    assert info.folder == folder
    assert info.chain == "map(picky).filter(lambda)"
    assert (info.elements, info.total, info.complete) == (12, 40, False)
    assert (info.results, info.failed) == (8, 1)
    assert info.failures == (
        CheckpointFailure(7, "map(picky)", "<sly 7>", r"test_info.SlyError: ('no 7\nat all', <sly 7>)", 1),
    )
    assert info.started is not None
    assert info.written is not None
    assert before <= info.started <= info.written + timedelta(seconds=1)
    assert info.nbytes > 500
    assert (info.damaged, info.format, info.python[:9]) == (0, 4, "cpython 3")
    list(chain(folder))
    info = checkpoint_info(folder)
    assert (info.elements, info.total, info.complete) == (40, 40, True)
    assert (info.results, info.failed) == (26, 4)
    assert [failure.index for failure in info.failures] == [7, 17, 27, 37]
    stopped_after(chain(folder, 60), 30)
    info = checkpoint_info(folder)
    assert (info.total, info.complete) == (60, False)
    assert 40 < info.elements < 60


def test_after_a_retry_nothing_has_failed(inline: Connection, tmp_path: Path):
    marker = tmp_path / "repaired"

    def risky(x: int) -> int:
        if x in (3, 4) and not marker.exists():
            raise ValueError(x)
        return x

    def run(**more: Any) -> CheckpointInfo:
        found = parallel(iter(range(9)), on_error="skip", retries=1, checkpoint=tmp_path / "run", **more)
        assert found.map(risky).count() == (9 if marker.exists() and more else 7)
        return checkpoint_info(tmp_path / "run")

    info = run()
    assert (info.failed, info.results, info.total, info.complete) == (2, 7, 9, True)
    assert [(failure.element, failure.attempts) for failure in info.failures] == [("3", 2), ("4", 2)]
    assert "element 3 (3) in map(risky), 2 times: ValueError: 3" in str(info)
    marker.touch()
    assert run().failed == 2
    info = run(retry_failed=True)
    assert (info.failed, info.failures, info.results, info.complete) == (0, (), 9, True)


def test_of_a_fold_and_of_an_endless_source(inline: Connection, tmp_path: Path):
    total = parallel(range(20), checkpoint=tmp_path / "fold").map(abs)
    assert total.fold(lambda a, b: a + b, 0, lambda a, b: a + b) == 190
    info = checkpoint_info(tmp_path / "fold")
    assert (info.chain, info.elements, info.results) == ("map(abs).fold(lambda)", 20, 20)
    parallel(itertools.count(), checkpoint=tmp_path / "endless").take(5)
    info = checkpoint_info(tmp_path / "endless")
    assert (info.chain, info.total, info.complete) == ("", None, False)
    assert "no steps" in str(info)
    assert list(parallel([], checkpoint=tmp_path / "empty")) == []
    info = checkpoint_info(tmp_path / "empty")
    assert (info.elements, info.total, info.complete, info.results) == (0, 0, True, 0)


def test_only_the_first_ten_failures_and_long_texts_cut(inline: Connection, tmp_path: Path):
    found = parallel(range(100), checkpoint=tmp_path, on_error="skip", partition_size=9)
    assert found.map(lambda x: 1 / 0 if x % 2 else int("x" * 1000)).count() == 0
    info = checkpoint_info(tmp_path)
    assert info.failed == 100
    assert [failure.index for failure in info.failures] == list(range(10))
    assert max(map(len, str(info).splitlines())) < 500


def test_while_a_run_writes_there(inline: Connection, tmp_path: Path):
    stream = iter(parallel(range(50), partition_size=5, checkpoint=tmp_path).map(abs))
    for x in stream:
        assert checkpoint_info(tmp_path).elements > x
    assert checkpoint_info(tmp_path).complete


def test_damage_is_counted_and_nothing_is_changed(
    inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    list(chain(tmp_path / "run"))
    first, *_, last = pieces(tmp_path / "run")
    whole = last.read_bytes()
    luck = random.Random(3)
    for _ in range(150):
        damaged = bytearray(whole)
        for position in luck.sample(range(min(len(whole), 400)), luck.choice([1, 2, 5])):
            damaged[position] ^= 1 << luck.randrange(8)
        last.write_bytes(damaged)
        monkeypatch.setenv("LOADED", "")
        assert str(checkpoint_info(tmp_path / "run")).replace("\n", "").isprintable()
        assert last.read_bytes() == damaged
        assert not os.environ["LOADED"]
    for content in (b"", whole[:30], whole[:-1], whole + b"x", first.read_bytes()):
        last.write_bytes(content)
        info = checkpoint_info(tmp_path / "run")
        assert (info.damaged, info.complete) == (1, False)
        assert "1 files, whose elements run again" in str(info)
    last.unlink()
    assert not checkpoint_info(tmp_path / "run").complete


def test_folders_that_are_none(inline: Connection, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("none")
    shutil.copytree(Path(__file__).parent, tmp_path / "other")
    for name in ("nothing", "empty", "file", "other"):
        with pytest.raises(CheckpointError, match=f"{name}' (is no checkpoint|cannot be listed)") as raised:
            checkpoint_info(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint_info(f"memory://{uuid.uuid4()}")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        checkpoint_info("nosuch://bucket/x")
    for given in (1, b"x", None, ""):
        with pytest.raises(TypeError, match=r"checkpoint_info\(\) needs a folder's path or URL, got"):
            checkpoint_info(given)  # type: ignore[arg-type]
    list(chain(tmp_path / "run"))
    for name in (CHAIN, END):
        content = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).write_bytes(content[:-9])
        with pytest.raises(CheckpointError, match=f"is damaged: {name} is not what was written"):
            checkpoint_info(tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(content)
    (tmp_path / "run" / CHAIN).write_bytes(b'{"format": 77}')
    with pytest.raises(CheckpointError, match=r"was written by a newer parcoll \(format 77"):
        checkpoint_info(tmp_path / "run")


@pytest.mark.parametrize(
    "told",
    [
        {"mtime": 1.5e9},
        {"LastModified": datetime.fromtimestamp(1.5e9)},
        {"updated": "2017-07-14T02:40:00+00:00"},
    ],
)
def test_times_of_filesystems(told: dict[str, Any]):
    assert _time_in({"name": "x", **told}) == 1.5e9
    assert _time_in({"name": "x", "updated": "yesterday"}) is None
    assert File("x", 1, None).written is None


def test_the_command_line(inline: Connection, tmp_path: Path):
    list(chain(tmp_path / "run"))

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "parcoll", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    told = run("checkpoint", tmp_path / "run")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.strip() == str(checkpoint_info(tmp_path / "run"))
    assert re.search(r"elements +40 of 40, with 26 results", told.stdout)
    assert "element 7 (<sly 7>) in map(picky): test_info.SlyError: " in told.stdout
    wrong = run("checkpoint", tmp_path / "nothing")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert re.fullmatch(r"'.*nothing' is no checkpoint: [^\n]*\n", wrong.stderr)
    helped = run()
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: python -m parcoll" in helped.stdout
    assert "checkpoint" in helped.stdout
    assert run("checkpoint").returncode == 2
    assert run("nosuch").returncode == 2


def test_the_command_line_where_it_cannot_print_all(inline: Connection, tmp_path: Path):
    """Texts of the user's have signs that a terminal lacks, and `head` reads no further."""
    list(parallel(["é", "日本"], checkpoint=tmp_path / "run", on_error="skip").map(int))

    def run(shell: str, encoding: str = "utf-8", folder: Any = tmp_path / "run") -> tuple[int, str, str]:
        command = f'{shlex.quote(sys.executable)} -m parcoll checkpoint "$FOLDER" {shell}'
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env={**os.environ, "FOLDER": str(folder), "PYTHONIOENCODING": encoding},
            capture_output=True,
            encoding=encoding,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    for encoding, known in (("ascii", r"'\xe9'"), ("latin-1", "'é'")):
        code, told, wrong = run("", encoding)
        assert (code, wrong) == (0, "")
        assert f"element 0 ({known})" in told
        assert r"element 1 ('\u65e5\u672c')" in told
    assert run("| true") in [(1, "", ""), (0, "", "")]
    assert run("", folder="") == (2, "", "checkpoint_info() needs a folder's path or URL, got '' (a str)\n")
    if os.path.exists("/dev/full"):
        code, _, wrong = run("> /dev/full")
        assert code == 1
        assert re.fullmatch(r"the standard output cannot be written: [^\n]*\n", wrong)
