"""Checkpoints: what is on the disk, what is refused, what comes again. Killed scripts: test_resuming.py."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import importlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from bare import bare_cluster
from scripts import append, eventually, lines, wait_for_file

from parcoll import CheckpointError, Connection, ParallelGen, WorkerLostError, connect, parallel
from parcoll.checkpoint import digest, storage
from parcoll.checkpoint.fingerprint import of_function
from parcoll.checkpoint.pieces import CHAIN, END


def noting(log: Path) -> Callable[[int], int]:
    """Return a function that doubles, and writes a line for each call."""

    def double(x: int) -> int:
        append(log, x)
        return 2 * x

    return double


def pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.piece"))


def stopped_after(collection: ParallelGen[Any], results: int) -> list[Any]:
    """Take some results, and end the evaluation there."""
    stream = iter(collection)
    found = list(itertools.islice(stream, results))
    stream.close()  # type: ignore[attr-defined]
    return found


def at_rest(connection: Connection) -> bool:
    """Tell whether the workers are through with what they had begun for an iterator that was left."""
    client = connection.engine.client
    if client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        return False
    return not any(client.run(lambda dask_worker: len(dask_worker.state.all_running_tasks)).values())


# What comes again


def test_a_second_run_gives_all_results_and_runs_none(inline: Connection, tmp_path: Path):
    log, folder = tmp_path / "log", tmp_path / "run"
    numbers = parallel(range(100), checkpoint=folder).map(noting(log)).filter(lambda x: x % 3)
    expected = [2 * x for x in range(100) if 2 * x % 3]
    assert list(numbers) == expected
    assert list(numbers) == expected
    assert numbers.stats.resumed == numbers.stats.elements_in == 100
    assert len(lines(log)) == 100


def test_results_are_on_the_disk_before_they_are_yielded(cluster: Connection, tmp_path: Path):
    """After each result, the pieces cover its element."""
    folder = tmp_path / "run"
    for number, result in enumerate(parallel(range(3000), checkpoint=str(folder)).map(lambda x: -x)):
        assert result == -number
        assert number < max(int(path.stem.rsplit("-", 1)[1]) for path in pieces(folder))


@pytest.mark.parametrize("kind", ["cluster", "inline"])
def test_what_was_yielded_does_not_run_again(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    request.getfixturevalue(kind)
    log = tmp_path / "log"
    numbers = parallel(range(500), partition_size=7, checkpoint=tmp_path / "run").map(noting(log))
    seen: list[int] = []
    for results in (1, 30, 100, 200, 499):
        seen += stopped_after(numbers, results)
        assert seen[-results:] == list(range(0, 2 * results, 2))
        yielded = range(results)
        before = Counter(lines(log))
        stopped_after(numbers, results)
        again = Counter(lines(log)) - before
        assert not {str(x) for x in yielded} & set(again)
    assert list(numbers) == list(range(0, 1000, 2))


def test_a_shorter_and_a_longer_take(cluster: Connection, tmp_path: Path):
    log = tmp_path / "log"
    numbers = parallel(lambda: itertools.count(), checkpoint=tmp_path / "run").map(noting(log))
    assert numbers.take(10) == list(range(0, 20, 2))
    assert eventually(lambda: at_rest(cluster))
    before = Counter(lines(log))
    assert numbers.first() == 0
    assert numbers.take(4) == [0, 2, 4, 6]
    assert Counter(lines(log)) == before
    assert numbers.take(100) == list(range(0, 200, 2))
    assert all(Counter(lines(log))[str(x)] == 1 for x in range(10))


def test_take_in_an_endless_flatmap(cluster: Connection, tmp_path: Path):
    numbers = parallel(range(3), checkpoint=tmp_path / "run").flatmap(itertools.count)
    assert numbers.take(5) == [0, 1, 2, 3, 4]
    assert numbers.take(7) == [0, 1, 2, 3, 4, 5, 6]


def test_count_saves_and_resumes(cluster: Connection, tmp_path: Path):
    log = tmp_path / "log"
    numbers = parallel(range(200), checkpoint=tmp_path / "run").map(noting(log)).filter(lambda x: x > 99)
    assert numbers.count() == 150
    assert numbers.count() == 150
    assert list(numbers) == list(range(100, 400, 2))
    assert len(lines(log)) == 200


def test_a_complete_run_needs_no_cluster(cluster: Connection, tmp_path: Path):
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the engine was asked for {name}")

    def squares(source: Any) -> ParallelGen[int]:
        return parallel(source, checkpoint=tmp_path / "run").map(lambda x: x * x)

    assert list(squares(iter(range(50)))) == [x * x for x in range(50)]
    with connect("inline") as connection:
        own, connection.engine = connection.engine, Refusing()  # type: ignore[assignment]
        assert list(squares(iter(range(50)))) == [x * x for x in range(50)]
        connection.engine = own


def test_unordered_and_ordered_share_a_folder(cluster: Connection, tmp_path: Path):
    """Pieces of an unordered run may leave gaps, which an ordered one fills."""
    log, gate = tmp_path / "log", tmp_path / "gate"

    def slow_at_first(x: int) -> int:
        if x == 0:
            wait_for_file(gate)
        append(log, x)
        return x

    numbers = parallel(range(400), partition_size=5, checkpoint=tmp_path / "run").map(slow_at_first)
    first = stopped_after(numbers.unordered(), 100)
    assert 0 not in first  # else there is no gap
    gate.touch()
    assert list(numbers) == list(range(400))
    calls = Counter(lines(log))
    assert all(calls[str(x)] == 1 for x in first)
    assert sorted(numbers.unordered()) == list(range(400))


def test_errors_and_stats_are_those_of_one_run(cluster: Connection, tmp_path: Path):
    def risky(x: int) -> float:
        return 1 / (x % 10)

    def chain(folder: Path | None) -> ParallelGen[float]:
        return (
            parallel(range(100), partition_size=9, on_error="skip", checkpoint=folder)
            .filter(lambda x: x % 4)
            .map(risky)
            .flatmap(lambda x: [x, x])
        )

    plain, saved = chain(None), chain(tmp_path / "run")
    expected = list(plain)
    stopped_after(saved, 20)
    for _ in range(2):
        assert list(saved) == expected
        assert [(e.index, e.element, str(e)) for e in saved.errors] == [
            (e.index, e.element, str(e)) for e in plain.errors
        ]
        for one, other in zip(saved.stats.steps, plain.stats.steps, strict=True):
            assert (one.entered, one.left, one.failed, one.replaced) == (
                *(other.entered, other.left, other.failed),
                other.replaced,
            )
        assert saved.stats.failed == plain.stats.failed
        assert saved.stats.elements_out == plain.stats.elements_out


@pytest.mark.parametrize("kind", ["cluster", "inline"])
def test_an_error_stops_and_the_next_run_starts_at_its_element(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    request.getfixturevalue(kind)
    log, marker = tmp_path / "log", tmp_path / "repaired"

    def fails_once(x: int) -> int:
        append(log, x)
        if x == 57 and not marker.exists():
            raise ValueError("not yet")
        return x

    numbers = parallel(range(80), partition_size=10, checkpoint=tmp_path / "run").map(fails_once)
    seen = []
    with pytest.raises(ValueError, match="not yet"):
        seen.extend(numbers)
    assert numbers.stats.failed == 1
    marker.touch()
    before = Counter(lines(log))
    assert list(numbers) == list(range(80))
    again = Counter(lines(log)) - before
    assert not {str(x) for x in range(57)} & set(again)
    assert again["57"] == 1
    assert numbers.stats.failed == 0
    assert numbers.errors == []
    assert numbers.stats.steps[0].entered == numbers.stats.steps[0].left == 80


def test_an_error_behind_a_flatmap_neither_loses_nor_doubles(cluster: Connection, tmp_path: Path):
    marker = tmp_path / "repaired"

    def spread(x: int) -> Iterator[int]:
        yield 10 * x
        if x == 23 and not marker.exists():
            raise ValueError("not yet")
        yield 10 * x + 1

    numbers = parallel(range(40), partition_size=8, checkpoint=tmp_path / "run").flatmap(spread)
    seen: list[int] = []
    with pytest.raises(ValueError, match="not yet"):
        seen.extend(numbers)
    assert seen == [y for x in range(16) for y in (10 * x, 10 * x + 1)]  # no result that is not saved
    marker.touch()
    assert list(numbers) == [y for x in range(40) for y in (10 * x, 10 * x + 1)]


def test_an_error_of_the_source_comes_after_what_was_read(cluster: Connection, tmp_path: Path):
    log = tmp_path / "log"

    def broken(at: int) -> Iterator[int]:
        for x in range(100):
            if x == at:
                raise OSError("the line is down")
            yield x

    def numbers(at: int) -> ParallelGen[int]:
        return parallel(functools.partial(broken, at), checkpoint=tmp_path / "run").map(noting(log))

    with pytest.raises(OSError, match="the line is down"):
        list(numbers(60))
    assert len(lines(log)) == 60
    with pytest.raises(OSError, match="the line is down"):
        list(numbers(30))  # while saved elements are compared
    assert list(numbers(1000)) == list(range(0, 200, 2))
    assert len(lines(log)) == 100


def test_data_of_many_kinds(cluster: Connection, tmp_path: Path):
    values: list[Any] = [None, "", b"x", (1, [2]), {"a": {1, 2}}, np.arange(200_000.0), {3, 4}, ...]

    def chain() -> ParallelGen[Any]:
        return parallel(values, partition_size=3, checkpoint=tmp_path / "run").map(lambda x: [x, x])

    first, second = list(chain()), list(chain())
    assert repr(first) == repr(second)
    assert (second[5][0] == values[5]).all()
    second[5][0][0] = 9.0  # writable, and the consumer's own
    assert first[5][0][0] == 0.0


def test_an_empty_source(cluster: Connection, tmp_path: Path):
    for _ in range(2):
        assert list(parallel(iter(()), checkpoint=tmp_path / "run").map(abs)) == []
    assert (tmp_path / "run" / END).exists()


@pytest.mark.parametrize("url", ["file://{}/run", "memory://{}/run", "{}/run"])
def test_any_url_of_fsspec(cluster: Connection, tmp_path: Path, url: str):
    log, folder = tmp_path / "log", url.format(tmp_path)
    numbers = parallel(range(60), partition_size=4, checkpoint=folder).map(noting(log))
    assert stopped_after(numbers, 20) == list(range(0, 40, 2))
    assert list(numbers) == list(range(0, 120, 2))
    assert list(numbers) == list(range(0, 120, 2))
    assert all(Counter(lines(log))[str(x)] == 1 for x in range(20))
    system, path = fsspec.core.url_to_fs(folder)
    assert system.exists(f"{path}/{CHAIN}")


@pytest.mark.parametrize(
    "source",
    [
        "some text",
        {"a": 1, "b": 2, "c": 3},
        np.arange(12.0).reshape(6, 2),
        {3, 1, 2},
        (x for x in "abc"),
        range(10**30, 10**30 + 5),
        [np.zeros((0, 3)), np.array(["2026-01-01"], dtype="datetime64[D]"), np.zeros((2, 3), order="F")],
    ],
    ids=lambda source: type(source).__name__,
)
def test_any_source(cluster: Connection, tmp_path: Path, source: Any):
    elements = list(source.items()) if isinstance(source, dict) else list(source)
    source = iter(elements) if isinstance(source, Iterator) else source
    numbers = parallel(source, partition_size=2, checkpoint=tmp_path / "run").map(repr)
    assert numbers.first() == repr(elements[0])
    if isinstance(source, Iterator):
        numbers = parallel(iter(elements), partition_size=2, checkpoint=tmp_path / "run").map(repr)
    assert list(numbers) == list(map(repr, elements))
    assert numbers.stats.resumed in (1, 2)


def test_on_a_remote_cluster(tmp_path: Path):
    log = tmp_path / "log"
    with bare_cluster(tmp_path, 2) as remote, connect(remote.address) as connection:
        numbers = parallel([bytes([x]) * 50_000 for x in range(200)], checkpoint=tmp_path / "run").map(len)
        numbers = numbers.map(noting(log))
        seen = stopped_after(numbers, 90)
        assert eventually(lambda: at_rest(connection))
        before = Counter(lines(log))
        assert list(numbers) == [100_000] * 200
    assert len(seen) == 90
    assert sum((Counter(lines(log)) - before).values()) <= 110
    with connect("inline"):
        assert list(numbers) == [100_000] * 200
        assert numbers.stats.resumed == 200


def test_a_worker_and_a_cluster_that_die(tmp_path: Path):
    def slowly(x: int) -> int:
        time.sleep(0.003)
        return x

    def kill(process: psutil.Process) -> None:
        process.kill()

    with connect(n_workers=2) as own:
        numbers = parallel(range(900), partition_size=5, checkpoint=tmp_path / "run").map(slowly)
        stream = iter(numbers)
        seen = list(itertools.islice(stream, 200))
        host = psutil.Process(own.engine._host.pid)
        kill(max(host.children(), key=lambda process: process.create_time()))
        seen += itertools.islice(stream, 200)
        kill(host)
        seen += itertools.islice(stream, 200)
        stream.close()  # type: ignore[attr-defined]
        assert seen == list(range(600))
        assert list(numbers) == list(range(900))
        assert numbers.stats.resumed >= 600


def test_an_element_that_ends_its_process(cluster: Connection, tmp_path: Path):
    marker, log = tmp_path / "repaired", tmp_path / "log"

    def deadly(x: int) -> int:
        append(log, x)
        if x == 33 and not marker.exists():
            os._exit(1)
        return x

    numbers = parallel(range(60), partition_size=6, checkpoint=tmp_path / "run").map(deadly)
    seen: list[int] = []
    with pytest.raises(WorkerLostError):
        seen.extend(numbers)
    marker.touch()
    before = Counter(lines(log))
    assert list(numbers) == list(range(60))
    assert not {str(x) for x in seen} & set(Counter(lines(log)) - before)
    assert numbers.stats.failed == 0


def account_of(chain: ParallelGen[Any]) -> tuple[Any, ...]:
    """Run a chain; return its results, its counts, and its errors in words."""
    results = list(chain)
    steps = [dataclasses.replace(step, seconds=0) for step in chain.stats.steps]
    return results, steps, [str(error) for error in chain.errors]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_failed_before_the_element_that_ended_it(cluster: Connection, tmp_path: Path, steps: int):
    """Counts of the run that resumes are those of a run that had no trouble."""
    marker = tmp_path / "repaired"

    def stops(x: int) -> int:
        if x == 44 and not marker.exists():
            raise KeyError("stop")
        return x

    def picky(x: int) -> int:
        if x % 11 == 0:
            raise ValueError(x)
        return x

    def chain(folder: Path | None) -> ParallelGen[int]:
        found = parallel(range(90), partition_size=20, checkpoint=folder)
        for number in range(steps):
            found = found.map(stops) if number == 1 else found.map(picky, on_error=lambda e: e.element)
        return found.map(stops).filter(lambda x: x % 2 == 0)

    saved = chain(tmp_path / "run")
    with pytest.raises(KeyError):
        list(saved)
    marker.touch()
    assert account_of(saved) == account_of(chain(None))


@pytest.mark.parametrize("ending", ["on_error", "exit"])
@pytest.mark.parametrize("timeout", [None, 60])
def test_what_ended_it_is_counted_once(
    cluster: Connection, tmp_path: Path, ending: str, timeout: float | None
):
    """Also where it was no exception of the function itself, and had failed in an earlier step."""
    marker = tmp_path / "repaired"

    def picky(x: int) -> int:
        if x % 11 == 0:
            raise ValueError(x)
        return x

    def told(error: Any) -> int:
        if error.index == 44 and ending == "on_error" and not marker.exists():
            raise KeyError("not repaired")
        return -1 - error.index  # no multiple of 11

    def exits(x: int) -> int:
        if x == -45 and ending == "exit" and not marker.exists():
            sys.exit(1)
        return x

    def chain(folder: Path | None) -> ParallelGen[int]:
        found = parallel(range(90), partition_size=20, checkpoint=folder, timeout=timeout)
        return found.map(picky, on_error=told).map(exits).map(picky, retries=1)

    saved = chain(tmp_path / "run")
    with pytest.raises((KeyError, SystemExit)):
        list(saved)
    marker.touch()
    assert account_of(saved) == account_of(chain(None))


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
    (folder / CHAIN).write_text(json.dumps(json.loads(content) | {"format": 99}))
    with pytest.raises(CheckpointError, match="another version of parcoll"):
        list(numbers)
    (folder / CHAIN).write_text(json.dumps(json.loads(content) | {"python": "cpython 2.7"}))
    with pytest.raises(CheckpointError, match=r"Python cpython 2\.7"):
        list(numbers)
    (folder / CHAIN).unlink()
    with pytest.raises(CheckpointError, match="nobody knows what they are"):
        list(numbers)


# Another chain, another source


def times(factor: int) -> Callable[[int], int]:
    return lambda x: x * factor


CHAINS: list[tuple[Callable[[ParallelGen[int]], ParallelGen[Any]], str]] = [
    (lambda c: c.map(lambda x: x + 2), r"the code of step 1, map\(lambda\), has changed"),
    (lambda c: c.map(times(3)), "the captured variable 'factor' of step 1"),
    (lambda c: c.map(lambda x: x + 1), r"the chain had 2 steps and has 1"),
    (lambda c: c.map(lambda x: x + 1).map(str).map(len), r"the chain had 2 steps and has 3"),
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
    with pytest.raises(CheckpointError, match="elements 20 to 29 are not the same"):
        run(changed)
    with pytest.raises(CheckpointError, match="it had 40 elements and has 41"):
        run([*elements, 40])
    with pytest.raises(CheckpointError, match="it ended after 40 elements, and now goes on"):
        run(iter([*elements, 40]))
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


# What is compared


def compiled(text: str, name: str = "func", **names: Any) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__"} | names
    exec(compile(text, "<a script>", "exec"), namespace)
    return namespace[name]


SAME = [
    ("def func(x): return x + 1", "\n\n\ndef func(x): return x + 1"),
    ("def func(x): return x + 1", "# comment\ndef func(x):\n    # why\n    return x + 1"),
    ("def func(x):\n 'One.'\n return x", "def func(x):\n 'Another.'\n return x"),
    ("def func(x):\n y = x\n return y", "def func(x):\n z = x\n return z"),
    ("def g(x): return x\ndef func(x): return g(x)", "def func(x): return g(x)\ndef g(x): return x"),
    ("K = 1\nL = 2\ndef func(x): return x + K", "K = 1\nL = 3\ndef func(x): return x + K"),
    ("import math\ndef func(x): return math.sin(x)", "import math, os\ndef func(x): return math.sin(x)"),
]
OTHER = [
    ("def func(x): return x + 1", "def func(x): return x + 2"),
    ("def func(x): return x + 1", "def func(x): return x - 1"),
    ("def func(x): return x == 1", "def func(x): return x == 1.0"),
    ("def func(x): return x == 1", "def func(x): return x == True"),
    ("def func(x, k=1): return k", "def func(x, k=2): return k"),
    ("def func(x, *, k=1): return k", "def func(x, *, k=2): return k"),
    ("K = 1\ndef func(x): return x + K", "K = 2\ndef func(x): return x + K"),
    ("K = {1, 2}\ndef func(x): return x in K", "K = {1, 3}\ndef func(x): return x in K"),
    ("def g(x): return x\ndef func(x): return g(x)", "def g(x): return -x\ndef func(x): return g(x)"),
    ("def func(x): return [y + 1 for y in x]", "def func(x): return [y + 2 for y in x]"),
    ("def func(x): return math.sin(x)", "def func(x): return math.cos(x)"),
    ("class func:\n def __call__(s, x): return 1", "class func:\n def __call__(s, x): return 2"),
    ("class A:\n k = 1\ndef func(x): return A.k", "class A:\n k = 2\ndef func(x): return A.k"),
    ("def func(x):\n 'a'\n return 'a'", "def func(x):\n 'b'\n return 'b'"),
    (
        "def f(x): return x\nimport functools\nfunc = functools.lru_cache(f)",
        "def f(x): return -x\nimport functools\nfunc = functools.lru_cache(f)",
    ),
    (
        "import numpy\ndef f(x): return x\nfunc = numpy.vectorize(f)",
        "import numpy\ndef f(x): return -x\nfunc = numpy.vectorize(f)",
    ),
    (
        "from collections import defaultdict\nK = defaultdict(lambda: 1)\ndef func(x): return K[x]",
        "from collections import defaultdict\nK = defaultdict(lambda: 2)\ndef func(x): return K[x]",
    ),
    ("K = [(1, [2])]\ndef func(x): return K", "K = [(1, [3])]\ndef func(x): return K"),
    ("import re\nfunc = re.compile('a').match", "import re\nfunc = re.compile('b').match"),
    (
        "import functools\nfunc = functools.partial(pow, 2)",
        "import functools\nfunc = functools.partial(pow, 3)",
    ),
]
# An object of a class of the user's own that holds 1, as one of what it derives from; and it holds 2.
HOLDING = [
    "from typing import NamedTuple\nclass K(NamedTuple): n: int\nk = K(1)",
    "from collections import namedtuple\nk = namedtuple('K', 'n')(1)",
    "class K(dict): pass\nk = K(a=1)",
    "class K(list): pass\nk = K([1])",
    "class K(int): pass\nk = K(1)",
    "class K(str): pass\nk = K('1')",
    "class K(frozenset): pass\nk = K([1])",
    "class K(Exception): pass\nk = K(1)",
    "class K(dict): __getattr__ = dict.get\nk = K(a=1)",
    "import abc\nclass K(abc.ABC, list): pass\nk = K([1])",
    "import collections\nclass K(collections.deque): pass\nk = K([1])",
    "import fractions\nclass K(fractions.Fraction): pass\nk = K(1)",
    "class K:\n __slots__ = ('__x',)\n def __init__(s, x): s.__x = x\nk = K(1)",
    "import enum\nclass K(enum.Enum): A = 1\nk = K.A",
    "import enum\nclass K(enum.Enum): A = 1\nk = K",
    "class M(type):\n def __call__(cls): return 1\nclass K(metaclass=M): pass\nk = K",
    "def f(): pass\nclass K:\n def __init__(s, n):\n  s.n = n\n  s.__wrapped__ = f\nk = K(1)",
]


@pytest.mark.parametrize("text", HOLDING)
def test_what_an_object_holds_is_a_change(text: str):
    one = f"{text}\ndef func(x): return k"
    other = one.replace("(1)", "(2)").replace("=1)", "=2)").replace("'1'", "'2'").replace("A = 1", "A = 2")
    other = other.replace("return 1", "return 2").replace("([1])", "([2])")
    assert one != other
    assert of_function(compiled(one)) == of_function(compiled(one))
    assert of_function(compiled(one)) != of_function(compiled(other))


def test_flags_that_were_combined_meanwhile_are_no_change():
    text = "import enum\nclass K(enum.Flag):\n A = 1\n B = 2\n C = 4\ndef func(x): return K"
    one, other = compiled(text), compiled(text)
    kind = other.__globals__["K"]
    assert kind.A | kind.B in (kind.A | kind.B | kind.C)
    assert of_function(one) == of_function(other)


SETS = """
import dataclasses, datetime, enum, sys
from parcoll.checkpoint.fingerprint import of_function

class Kind(enum.Enum):
    A, B, C, D = "abcd"

@dataclasses.dataclass(frozen=True)
class Point:
    x: str

days = {datetime.date(2026, 1, day) for day in range(1, 9)}
kinds = frozenset(Kind)
points = {Point(x): {x} for x in "abcdef"}

def func(x):
    return days, kinds, points

print(sorted(of_function(func).items()))
"""


def test_sets_of_objects_are_the_same_in_every_process():
    found = set()
    for seed in range(4):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", SETS]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


MODULES = {
    "attribute": ("import inner.deep", "inner.deep.scale(x)"),
    "within": ("", "__import__ and scale(x)", "from inner.deep import scale"),
    "within, as a module": ("", "deep.scale(x)", "from inner import deep"),
    "within, by way of another": ("", "other.scale(x)", "import inner.other as other"),
}


@pytest.mark.parametrize("which", MODULES)
def test_modules_below_modules_and_those_imported_within_count(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is written there, not how it is laid out; and nothing of modules that it has no part in."""
    package = tmp_path / "inner"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    head, value, *within = MODULES[which]
    text = f"{head}\ndef func(x):\n    {within[0] if within else ''}\n    return {value}"

    def digests(deep: str, apart: str = "") -> Any:
        (package / "__init__.py").write_text("")
        (package / "deep.py").write_text(deep)
        (package / "other.py").write_text("from .deep import scale\n")
        (package / "apart.py").write_text(apart)
        for name in [name for name in sys.modules if name.partition(".")[0] == "inner"]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return of_function(compiled(text))

    one = digests("def scale(x): return x * 10\n")
    assert digests("# why\n\ndef scale(x):\n    return x * 10\n", "y = 1\n") == one
    assert digests("def scale(x): return x * 200\n") != one


@pytest.mark.parametrize(("one", "other"), SAME)
def test_where_a_function_stands_is_no_change(one: str, other: str):
    assert of_function(compiled(one)) == of_function(compiled(other))


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_a_function_does_is_a_change(one: str, other: str):
    assert of_function(compiled(one)) == of_function(compiled(one))
    assert of_function(compiled(one)) != of_function(compiled(other))


@pytest.mark.parametrize("names", ["all", "next"])
def test_functions_that_refer_to_each_other(names: str):
    """A thousand in a row, or a hundred of which each names all: a change in the last is seen."""
    count = 1000 if names == "next" else 100

    def chain(last: int) -> Any:
        lines = []
        for i in range(count):
            others = [f"f{(i + 1) % count}"] if names == "next" else [f"f{j}" for j in range(count)]
            constant = last if i == count - 1 else i
            lines.append(f"def f{i}(x): return [{', '.join(others)}, x + {constant}]")
        return of_function(compiled("\n".join(lines), "f0"))

    assert chain(7) == chain(7)
    assert chain(7) != chain(8)


class Colour(enum.Enum):
    RED = 1


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


ELEMENTS: list[Callable[[], Any]] = [
    lambda: 1,
    lambda: True,
    lambda: 1.0,
    lambda: "a",
    lambda: b"a",
    lambda: None,
    lambda: (1, 2),
    lambda: [1, 2],
    lambda: {"a": 1},
    lambda: {"a": 2},
    lambda: {"a", "b"},
    lambda: frozenset({"a", "b"}),
    lambda: {"x": [{"p", "q"}]},
    lambda: {"x": [{"p", "r"}]},
    lambda: Colour.RED,
    lambda: Holder(1),
    lambda: Holder(2),
    lambda: Holder({"a", "b", "c"}),
    lambda: Holder({"a", "b", "d"}),
    lambda: Counter("aab"),
    lambda: datetime.date(2026, 1, 1),
    lambda: Path("a"),
    lambda: np.arange(3),
    lambda: np.arange(3.0),
    lambda: np.arange(4)[::2],
    lambda: np.array(["a", "b"], dtype=object),
    lambda: np.float32(1),
    lambda: ("x" * 300, "y" * 300),
]


def test_equal_elements_have_equal_digests_and_others_other_ones():
    found = [digest.of_elements([make()]) for make in ELEMENTS]
    assert found == [digest.of_elements([make()]) for make in ELEMENTS]
    assert len(set(found)) == len(found)


def test_it_does_not_matter_which_equal_parts_are_one_object():
    part = "".join(["some", "text"])
    other = "".join(["some", "text"])
    assert part is not other
    assert digest.of_elements([(part, part)]) == digest.of_elements([(part, other)])
    assert digest.of_elements([part, part]) == digest.of_elements([part, other])


@pytest.mark.parametrize("make", [lambda: lambda x: x, lambda: threading.Lock(), lambda: iter([1]).__next__])
def test_what_cannot_be_compared_counts_with_its_type(make: Callable[[], Any]):
    assert digest.of_elements([make()]) == digest.of_elements([make()])
    assert digest.of_elements([(1, make())]) != digest.of_elements([(2, make())])
    itself: list[Any] = []
    itself.append(itself)
    assert digest.of_elements([itself]) == digest.of_elements([itself])


# What it is not for


def test_what_does_not_resume_says_so(inline: Connection, tmp_path: Path):
    import dask.bag

    numbers = parallel(range(5), checkpoint=tmp_path / "run").map(abs)
    with pytest.raises(TypeError, match=r"functools\.reduce\(func, collection\)"):
        numbers.reduce(lambda a, b: a + b)
    with pytest.raises(TypeError, match=r"fold\(\) keeps what it makes"):
        numbers.fold(lambda a, b: a + b, 0)
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
    storage._held.clear()  # what another process would not see
    assert stopped_after(parallel(range(60), partition_size=7, checkpoint=url).map(abs), 40) == [*range(40)]
    assert list(one) == list(range(1, 60))
    storage._held.clear()
    numbers = parallel(range(60), partition_size=11, checkpoint=url).map(abs)
    assert list(numbers) == list(range(60))
