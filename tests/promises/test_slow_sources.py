"""Sources that wait for their elements themselves: pages, messages. The workers are fed meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scripts import eventually

from parcoll import Connection, parallel
from parcoll.evaluation.feed import StreamFeed
from parcoll.evaluation.reader import StreamReader
from parcoll.evaluation.sizing import Adaptive
from parcoll.wire.payload import Packed
from parcoll.worker.outcome import Outcome

PAUSE = 0.1  # twice as long as a partition waits for a source to fill it


def test_a_slow_source_s_results_do_not_wait_for_more_elements(cluster: Connection) -> None:
    """Where elements come far apart, each result is there when the second element after it comes."""
    assert list(parallel(range(4)).map(abs)) == [0, 1, 2, 3]  # the workers are up
    read: list[int] = []

    def ticking() -> Iterator[int]:
        for i in range(6):
            time.sleep(0.4)
            read.append(i)
            yield i

    lags = [len(read) - 1 - x for x in parallel(ticking).map(abs)]
    assert len(lags) == 6
    assert max(lags) <= 1


@pytest.mark.parametrize("size", ["auto", 1])
@pytest.mark.parametrize(
    "ends",
    [list, lambda numbers: numbers.fold(lambda so_far, x: [*so_far, x], [], lambda one, other: one + other)],
    ids=["iterated", "folded"],
)
def test_its_elements_are_at_work_at_the_same_time(
    cluster: Connection, tmp_path: Path, size: Any, ends: Callable[[Any], list[int]]
) -> None:
    """Some of them. Which ones these are is dask's to say."""

    def source() -> Iterator[int]:
        for x in range(6):
            time.sleep(PAUSE)
            yield x

    def takes_long(x: int) -> int:
        began = time.monotonic()
        time.sleep(6 * PAUSE)
        (tmp_path / str(x)).write_text(f"{began} {time.monotonic()}")
        return x

    assert ends(parallel(source, partition_size=size).map(takes_long)) == list(range(6))
    times = sorted(tuple(map(float, path.read_text().split())) for path in tmp_path.iterdir())
    assert any(after < ended for (_, ended), (after, _) in pairwise(times))


@pytest.mark.parametrize("settings", [{}, {"concurrency": 4}])
@pytest.mark.parametrize("saves", [False, True])
def test_where_enough_is_at_work_nothing_more_is_read(
    cluster: Connection, tmp_path: Path, settings: dict[str, Any], saves: bool
) -> None:
    """The first result does not wait for an element that nobody has asked for."""
    options: dict[str, Any] = {"checkpoint": tmp_path / "saved"} if saves else {}
    read: list[int] = []

    def source() -> Iterator[int]:
        for x in range(10):
            time.sleep(PAUSE)
            read.append(x)
            yield x

    def takes_long(x: int) -> int:
        time.sleep(5 * PAUSE)
        return x

    assert parallel(source, **options).map(takes_long, **settings).first() == 0
    assert read == [0]


def begun(folder: Path, x: int, others: range) -> bool:
    """Note that a call with an element has begun; tell whether all have with these."""
    (folder / str(x)).touch()
    return all((folder / str(other)).exists() for other in others)


@pytest.mark.parametrize("kind", ["coroutines", "threads", "threads of a few"])
def test_calls_that_wait_are_in_one_task_if_all_threads_have_one(
    cluster: Connection, tmp_path: Path, kind: str
) -> None:
    """The first two calls wait for the others to come, and those are to be made at the same time."""

    def source() -> Iterator[int]:
        for x in range(10):
            time.sleep(PAUSE)
            yield x
        (tmp_path / "all").touch()

    def others(x: int) -> range:
        return range(2, 10) if x > 1 else range(0)

    async def waits(x: int) -> int:
        deadline = time.monotonic() + 30
        while not begun(tmp_path, x, others(x)) or not (tmp_path / "all").exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        return x

    def blocks(x: int) -> int:
        assert eventually(lambda: begun(tmp_path, x, others(x)) and (tmp_path / "all").exists(), 30)
        return x

    numbers = parallel(source)
    if kind == "coroutines":
        waiting = numbers.map(waits)
    else:
        waiting = numbers.map(blocks, concurrency=50 if kind == "threads" else 8 + 8)
    assert list(waiting) == list(range(10))


def some_at_once(read: list[int], at_once: int) -> Iterator[int]:
    """Give some without a pause, and then each after one."""
    for x in range(1000):
        if x >= at_once:
            time.sleep(PAUSE)
        read.append(x)
        yield x


@pytest.mark.parametrize("at_once", [0, 1, 2, 10, 40])
def test_it_is_not_waited_for_twice_before_what_is_there_is_sent(at_once: int) -> None:
    """However many it gave before, and whatever is known of the function."""
    for pace in (None, 1e-6):
        read: list[int] = []
        feed = StreamFeed(StreamReader(some_at_once(read, at_once)), Adaptive(pace=pace), Packed.pack)
        while not feed.slow:
            assert feed.next_job(2) is not None
        assert len(read) <= at_once + 1
        assert 0 < feed.pause < PAUSE


def test_results_that_take_longer_than_its_pauses_are_not_waited_for() -> None:
    feed = StreamFeed(StreamReader(some_at_once([], 0)), sizer := Adaptive(), Packed.pack)
    assert feed.next_job(2) is not None
    assert feed.pause > 0
    sizer.observe(Outcome(read=1, seconds=1.0), 0)
    assert feed.pause == 0
