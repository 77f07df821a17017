"""One iterator for several threads: each result goes to one of them, and any of them may close it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, parallel
from parcoll.calls.looping import ResultIterator
from parcoll.world import handlers


class Box:
    """A result that is no atom: it is let go of when it is taken."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("kind", [int, Box])
@pytest.mark.parametrize("last", [1, 2])
def test_what_is_left_of_a_part_is_not_dropped_where_another_thread_waits_for_the_next(
    kind: Callable[[int], Any], last: int
) -> None:
    """Both wait for the first part. The one that gets it takes a result, and then the other one comes."""
    asked, may_come = threading.Event(), threading.Event()

    def parts() -> Iterator[list[Any]]:
        asked.set()
        assert may_come.wait(30)
        for part in range(last):
            yield [kind(10 * part + at) for at in range(3)]

    results = ResultIterator.of(parts())  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(next, results)
        assert asked.wait(30)
        second = pool.submit(next, results)
        time.sleep(0.05)  # it waits, or comes later: it gets the same
        may_come.set()
        drawn = [first.result(30), second.result(30), *results]
    right = [10 * part + at for part in range(last) for at in range(3)]
    assert sorted(getattr(x, "number", x) for x in drawn) == right


def test_threads_that_take_their_time_share_all_results(cluster: Connection) -> None:
    results = iter(parallel(range(200), partition_size=5).map(abs))

    def draw(_: int) -> list[int]:
        found = []
        for x in results:
            found.append(x)
            time.sleep(0.001)
        return found

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(draw, range(3)))
    assert sorted(itertools.chain(*found)) == list(range(200))
    assert all(drawn == sorted(drawn) for drawn in found)


def test_another_thread_s_wait_for_workers_ends_when_the_iterator_is_closed(
    cluster: Connection, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    def wait_for_gate(x: int) -> int:
        while x and not gate.exists():
            time.sleep(0.01)
        return x

    collection = parallel(range(4), partition_size=1).map(wait_for_gate)
    results = iter(collection)
    assert next(results) == 0
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(list, results)
        time.sleep(0.1)  # it waits; where it comes later, it finds a closed iterator
        results.close()  # type: ignore[attr-defined]
        assert list(results) == []
        assert others.result(30) == []
    gate.touch()
    assert collection.stats.state == "stopped"
    assert not handlers.left
    assert list(collection) == [0, 1, 2, 3]


def test_a_source_that_waits_holds_up_nobody_who_closes_the_iterator(inline: Connection) -> None:
    reading, goes_on = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        reading.set()
        assert goes_on.wait(30)
        yield 1

    collection = parallel(source, partition_size=1).map(abs)
    results = iter(collection)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(list, results)
        assert reading.wait(30)
        results.close()  # type: ignore[attr-defined] # returns, though the source does not
        assert list(results) == []
        goes_on.set()
        assert others.result(30) == []
    assert collection.stats.state == "stopped"
    assert not handlers.left


def test_a_source_that_is_read_within_another_is_left_with_it(inline: Connection) -> None:
    """The thread is told once, and no end of what it reads meanwhile takes that back."""
    reading, goes_on = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        reading.set()
        assert goes_on.wait(30)
        while True:
            yield from parallel([1, 2]).map(abs)

    results = iter(parallel(source).map(abs))
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(list, results)
        assert reading.wait(30)
        results.close()  # type: ignore[attr-defined]
        goes_on.set()
        assert others.result(30) == []
    assert not handlers.left
