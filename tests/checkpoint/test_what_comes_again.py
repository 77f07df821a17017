"""A second run with a checkpoint gives what the first one saved, and runs only the rest."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from bare import bare_cluster
from checkpoints import at_rest, noting, pieces, stopped_after
from scripts import append, eventually, lines, wait_for_file

from parcoll import Connection, ParallelGen, WorkerLostError, connect, parallel
from parcoll.checkpoint.descriptions import CHAIN, END


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
        host = psutil.Process(own.engine.way.host.pid)
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


def test_an_error_of_the_source_comes_after_what_is_saved_behind_what_is_not(
    inline: Connection, tmp_path: Path
):
    """The source is read ahead up to its error, since elements before those that are saved run."""
    folder = tmp_path / "run"

    def source() -> Iterator[int]:
        yield from range(12)
        raise OSError("the disk is gone")

    def numbers(**settings: Any) -> ParallelGen[int]:
        return parallel(source, checkpoint=folder, **settings).map(abs)

    assert stopped_after(numbers(partition_size=2), 2) == [0, 1]
    (first,) = pieces(folder)
    stopped_after(numbers(partition_size=10), 12)
    first.unlink()
    again = numbers()
    results = iter(again)
    assert [next(results) for _ in range(12)] == list(range(12))
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)
    assert again.stats.resumed == 10


def test_what_a_function_does_to_its_elements_is_not_what_the_source_gave(tmp_path: Path):
    """They stay in this process here, and a partition is saved up to the element that failed."""
    mended = tmp_path / "mended"

    def first(element: list[int]) -> int:
        if element == [25] and not mended.exists():
            raise ValueError(25)
        element.append(1)
        return element[0]

    numbers = parallel(lambda: ([x] for x in range(40)), partition_size=10, checkpoint=tmp_path / "run")
    with connect("inline", copies=False):
        with pytest.raises(ValueError, match="25"):
            list(numbers.map(first))
        mended.touch()
        again = numbers.map(first)
        assert list(again) == list(range(40))
    assert again.stats.resumed == 25


def test_each_step_has_the_counts_of_a_run_that_was_never_left(inline: Connection, tmp_path: Path):
    """The element that ended the first run had gone through steps, and had been tried three times."""
    mended = tmp_path / "mended"

    def bad(x: int) -> int:
        if x == 25 and not mended.exists():
            raise ValueError(x)
        return x

    numbers = parallel(range(40), partition_size=10, checkpoint=tmp_path / "run", retries=2)
    numbers = numbers.map(abs).filter(lambda x: x != 24).map(bad).map(str)
    with pytest.raises(ValueError, match="25"):
        list(numbers)
    mended.touch()
    assert list(numbers) == [str(x) for x in range(40) if x != 24]
    stats = numbers.stats
    assert (stats.resumed, stats.retries) == (25, 0)
    assert [(step.entered, step.left) for step in stats.steps] == [(40, 40), (40, 39), (39, 39), (39, 39)]
