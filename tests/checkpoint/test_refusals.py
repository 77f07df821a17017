"""What of a checkpoint is not taken: damage, another chain, another source; and evaluations side by side."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import noting, pieces, stopped_after
from scripts import lines

from parcoll import CheckpointError, Connection, ParallelGen, parallel
from parcoll.checkpoint import storage
from parcoll.checkpoint.descriptions import CHAIN, chain_file_in


# Damage
def test_a_piece_cut_short_at_any_length_runs_again(inline: Connection, tmp_path: Path):
    folder = tmp_path / "run"
    numbers = parallel(range(12), partition_size=4, checkpoint=folder).map(lambda x: x + 100)
    expected = list(numbers)
    last = pieces(folder)[-1]
    whole = last.read_bytes()
    for length in range(len(whole)):
        last.write_bytes(whole[:length])
        assert list(numbers) == expected
        assert numbers.stats.resumed == 8
        assert last.read_bytes() == whole


def test_a_byte_changed_anywhere_is_noticed(
    inline: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """In a piece in the middle: its elements run again, those before and behind it come from the disk."""
    folder, log = tmp_path / "run", tmp_path / "log"
    numbers = parallel(range(12), partition_size=4, checkpoint=folder).map(noting(log))
    expected = list(numbers)
    middle = pieces(folder)[1]
    whole = middle.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        middle.write_bytes(damaged)
        log.unlink()
        with caplog.at_level(logging.WARNING, "parcoll"):
            assert list(numbers) == expected
        assert lines(log) == ["4", "5", "6", "7"]
        assert "damaged; elements 4 to 7 run again" in caplog.text
        caplog.clear()


def test_a_damaged_piece_that_cannot_be_removed(
    inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuses(self: storage.LocalFolder, name: str) -> None:
        raise PermissionError(13, "Permission denied")

    numbers = parallel(range(12), partition_size=4, checkpoint=tmp_path).map(abs)
    list(numbers)
    damaged = pieces(tmp_path)[1]
    damaged.write_bytes(b"")
    monkeypatch.setattr(storage.LocalFolder, "remove", refuses)
    with pytest.raises(CheckpointError) as raised:
        list(numbers)
    assert str(raised.value) == (
        f"the damaged file {damaged.name} in the checkpoint {str(tmp_path)!r} cannot be removed "
        "(PermissionError: [Errno 13] Permission denied): remove it and start again"
    )


def test_a_missing_piece_runs_again(cluster: Connection, tmp_path: Path):
    folder = tmp_path / "run"
    numbers = parallel(range(1000), partition_size=1, checkpoint=folder).map(lambda x: x + 1)
    expected = list(numbers)
    for path in pieces(folder)[::2]:
        path.unlink()
    assert list(numbers) == expected
    assert 0 < numbers.stats.resumed < 1000
    assert list(numbers) == expected
    assert numbers.stats.resumed == 1000


def test_what_an_earlier_run_did_not_finish_is_not_taken_for_a_piece(inline: Connection, tmp_path: Path):
    folder = tmp_path / "run"
    numbers = parallel(range(12), partition_size=4, checkpoint=folder).map(lambda x: x + 1)
    assert numbers.take(2) == [1, 2]
    (folder / ".parcoll-unfinished-1-1").write_bytes(b"parcoll piece 1\nhalf")
    assert list(numbers) == list(range(1, 13))
    assert not list(folder.glob(".parcoll-unfinished*"))


def test_results_without_their_description_are_refused(inline: Connection, tmp_path: Path):
    folder = tmp_path / "run"
    numbers = parallel(range(5), checkpoint=folder).map(abs)
    list(numbers)
    content = (folder / CHAIN).read_text()
    (folder / CHAIN).write_text(content[:40])
    with pytest.raises(CheckpointError, match="is damaged"):
        list(numbers)
    (folder / CHAIN).write_bytes(chain_file_in(content.encode())._replace(python="cpython 2.7").encoded())
    with pytest.raises(
        CheckpointError, match=r"Python cpython 2\.7.*: go on with that version, or delete the f"
    ):
        list(numbers)
    (folder / CHAIN).unlink()
    with pytest.raises(CheckpointError, match=r"has results but no parcoll-chain\.json, which says"):
        list(numbers)


# Another chain, another source
def times(factor: int) -> Callable[[int], int]:
    return lambda x: x * factor


CHAINS: list[tuple[Callable[[ParallelGen[int]], ParallelGen[Any]], str]] = [
    (lambda c: c.map(lambda x: x + 2), r"the code of step 1, map\(lambda\), has changed"),
    (lambda c: c.map(times(3)), "the captured variable 'factor' of step 1"),
    (lambda c: c.map(lambda x: x + 1), r"had 2 steps and has 1: map\(str\) is not there any more"),
    (
        lambda c: c.map(lambda x: x + 1).map(str).map(len),
        r"the chain had 2 steps and has 3: map\(len\) was not there",
    ),
    (lambda c: c.filter(None).map(lambda x: x + 1), r"step 1 was map\(lambda\) and is filter\(None\)"),
    (
        lambda c: c.map(lambda x: x + 1).map(repr),
        r"the function of step 2, map\(repr\) \(it was map\(str\)\)",
    ),
]


@pytest.mark.parametrize(("other", "message"), CHAINS)
def test_another_chain_is_refused(
    inline: Connection, tmp_path: Path, other: Callable[[ParallelGen[int]], ParallelGen[Any]], message: str
):
    base = parallel(range(5), checkpoint=tmp_path / "run")
    first = base.map(times(2) if "captured" in message else (lambda x: x + 1)).map(str)
    assert first.first()
    before = {path: path.read_bytes() for path in pieces(tmp_path / "run")}
    with pytest.raises(CheckpointError, match=message) as raised:
        list(other(base))
    assert str(tmp_path / "run") in str(raised.value)
    assert "delete the folder" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in pieces(tmp_path / "run")} == before
    assert list(first) == list(
        map(str, map(times(2) if "captured" in message else (lambda x: x + 1), range(5)))
    )


def test_another_source_is_refused_and_the_place_named(inline: Connection, tmp_path: Path):
    def run(source: Any) -> list[int]:
        return list(parallel(source, partition_size=10, checkpoint=tmp_path / "run").map(lambda x: -x))

    elements = list(range(40))
    assert run(elements) == [-x for x in elements]
    changed = [*elements[:25], 99, *elements[26:]]
    with pytest.raises(CheckpointError, match="elements 20 to 29 are not all the same"):
        run(changed)
    with pytest.raises(CheckpointError, match="it had 40 elements and has 39, and a source may only grow"):
        run(elements[:39])
    with pytest.raises(CheckpointError, match="ends after 33"):
        run(iter(elements[:33]))
    assert run(iter(elements)) == [-x for x in elements]


def test_a_refused_chain_leaves_a_one_pass_source_unread(inline: Connection, tmp_path: Path):
    assert parallel(iter("abc"), checkpoint=tmp_path / "run").map(str.upper).first() == "A"
    letters = parallel(iter("abc"), checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError):
        letters.map(str.lower).first()
    assert list(letters.map(str.upper)) == ["A", "B", "C"]


def test_a_source_that_has_not_ended_may_be_longer(inline: Connection, tmp_path: Path):
    """Of a stream nobody knows the length before its end."""
    stopped_after(parallel(iter(range(20)), partition_size=4, checkpoint=tmp_path / "run").map(abs), 5)
    assert list(parallel(iter(range(30)), partition_size=4, checkpoint=tmp_path / "run").map(abs)) == [
        *range(30)
    ]


def test_policies_and_sizes_may_change(inline: Connection, tmp_path: Path):
    def run(**settings: Any) -> list[int]:
        return list(parallel(["1", "2", "3"], checkpoint=tmp_path / "run", **settings).map(int))

    assert run() == run(on_error="skip", retries=3) == run(partition_size=1, name="other") == [1, 2, 3]


# What it is not for
def test_what_does_not_resume_says_so(inline: Connection, tmp_path: Path):
    import dask.bag

    numbers = parallel(range(5), checkpoint=tmp_path / "run").map(abs)
    with pytest.raises(TypeError, match=r"persist\(\) keeps its results on the workers"):
        numbers.persist()
    with pytest.raises(TypeError, match="a loop over its results"):
        numbers.foreach(print)
    with pytest.raises(TypeError, match="is a dask bag"):
        parallel(dask.bag.from_sequence([1, 2]), checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "error"), [(1, TypeError), (b"x", TypeError), ("", ValueError), (True, TypeError)]
)
def test_a_wrong_checkpoint(given: Any, error: type[Exception]):
    with pytest.raises(error, match="checkpoint must be a folder's path or URL"):
        parallel([1], checkpoint=given)


def test_a_url_that_nobody_knows(inline: Connection):
    with pytest.raises(CheckpointError, match="cannot be opened"):
        list(parallel([1], checkpoint="nosuch://bucket/x"))


FORKED = """
import os, signal, sys, time
from parcoll import connect, parallel

def numbers():
    return parallel(range(100), checkpoint=sys.argv[1], partition_size=10).map(abs)

with connect("inline"):
    stream = iter(numbers())
    next(stream)
    child = os.fork()
    if not child:
        time.sleep(1000)
    print(child, flush=True)
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    list(stream)
    print(numbers().count(), flush=True)
"""


@pytest.mark.parametrize("end", ["ends", "dies"])
def test_a_lock_ends_with_its_evaluation_in_a_process_that_has_forked(
    inline: Connection, tmp_path: Path, end: str
):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path), end]
    with open(tmp_path.with_suffix(".out"), "w+") as out:
        script = subprocess.Popen(command, stdout=out)
        try:
            code = script.wait(60)
            out.seek(0)
            child, *count = map(int, out.read().split())
            try:
                assert (code, count) == ((0, [100]) if end == "ends" else (-signal.SIGKILL, []))
                assert parallel(range(100), checkpoint=tmp_path).map(abs).count() == 100
            finally:
                os.kill(child, signal.SIGKILL)
        finally:
            script.kill()


def test_a_filesystem_without_locks_is_told(
    inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuses(file: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", refuses)
    with caplog.at_level(logging.WARNING, "parcoll"):
        assert list(parallel(range(5), checkpoint=tmp_path).map(abs)) == [0, 1, 2, 3, 4]
    assert caplog.messages == [
        f"checkpoint {tmp_path}: its filesystem has no locks ([Errno 37] No locks available); make sure that "
        "no second process uses the folder meanwhile"
    ]


@pytest.mark.parametrize("url", ["{}/run", "memory://{}/run"])
def test_two_evaluations_at_the_same_time(inline: Connection, tmp_path: Path, url: str):
    numbers = parallel(range(50), checkpoint=url.format(tmp_path)).map(abs)
    stream = iter(numbers)
    assert next(stream) == 0
    with pytest.raises(CheckpointError, match="is in use by"):
        list(numbers)
    assert list(stream) == list(range(1, 50))
    assert list(numbers) == list(range(50))


def test_two_that_write_without_a_lock_do_no_harm(cluster: Connection, tmp_path: Path):
    """As on an object store: pieces that overlap are told by their names."""
    url = f"memory://{uuid.uuid4()}"
    one = iter(parallel(range(60), partition_size=5, checkpoint=url).map(abs))
    assert next(one) == 0
    storage._urls_in_use.clear()  # what another process would not see
    assert stopped_after(parallel(range(60), partition_size=7, checkpoint=url).map(abs), 40) == [*range(40)]
    assert list(one) == list(range(1, 60))
    storage._urls_in_use.clear()
    numbers = parallel(range(60), partition_size=11, checkpoint=url).map(abs)
    assert list(numbers) == list(range(60))
