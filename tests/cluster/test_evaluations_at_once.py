"""Evaluations that share a cluster get on side by side: of many, none waits until the others have ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask.bag
import pytest
from bare import bare_cluster

from parcoll import ParallelGen, connect, parallel


@pytest.fixture(params=["local", "remote"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Give three workers."""
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            stack.enter_context(connect(n_workers=3))
        else:
            bare = stack.enter_context(bare_cluster(tmp_path / "bare", 3))
            stack.enter_context(connect(bare.address))
        yield


def quick(x: int) -> int:
    return x


def busy(x: int) -> int:
    time.sleep(0.01)
    return x


@pytest.mark.usefixtures("shared")
def test_short_ones_that_come_again_and_again_do_not_hold_up_a_long_one() -> None:
    """Each gets on by as many tasks as the others: so many pass while the long one comes to its 100th result.

    It is then where none of the short ones ever is. If those at their beginning went first, it would come no
    further than to the 60th while all these pass. They have other lengths, so that they never end together.
    """
    wanted, lengths = 100, range(40, 80, 4)
    most = 2 * len(lengths) * wanted
    over = threading.Event()
    passed: list[int] = []

    def short(length: int) -> None:
        while not over.is_set():
            for x in parallel(range(length), partition_size=1).map(busy):
                passed.append(x)
                if len(passed) >= most:
                    over.set()
                if over.is_set():
                    break

    others = [threading.Thread(target=short, args=(length,)) for length in lengths]
    came: list[int] = []

    def draw() -> None:
        for x in parallel(range(100_000), partition_size=1).map(busy):
            came.append(x)
            if len(came) == 1:
                for other in others:
                    other.start()
            if len(came) == wanted or over.is_set():
                break
        over.set()

    long = threading.Thread(target=draw)
    long.start()
    over.wait(100)
    over.set()
    for thread in (long, *others):
        thread.join()
    assert (came, len(passed) < most) == (list(range(wanted)), True)
    assert len(passed) > wanted  # nor does it hold them up


class OverError(Exception):
    """The test is over."""


@pytest.mark.usefixtures("shared")
def test_none_waits_for_the_others(tmp_path: Path) -> None:
    """dask takes tasks for another kind where five programs are there; these went past all that waited."""
    over = tmp_path / "over"

    def slow(x: int) -> int:
        time.sleep(0.05)
        if over.exists():
            raise OverError
        return x

    numbers = parallel(range(100_000), partition_size=1).map(slow)
    bag = parallel(dask.bag.range(5_000, npartitions=5_000)).map(slow)
    wide = parallel(range(10_000_000), partition_size=50_000).map(quick)
    came: list[list[int]] = [[], [], [], []]
    firsts: list[int] = []

    def draw(into: list[int], collection: ParallelGen[int] = numbers) -> None:
        for x in collection:
            into.append(x)

    def draw_few() -> None:
        for x in wide:
            if x % 50_000 == 0:
                firsts.append(x)
            if over.exists():
                break

    def run(call: object, *arguments: object) -> None:
        with contextlib.suppress(OverError):
            call(*arguments)  # type: ignore[operator]

    calls = [
        *[(draw, into) for into in came[1:]],
        (draw, came[0], bag),
        (draw_few,),
        (numbers.count,),
        (numbers.reduce, max),
        (numbers.fold, max, 0),
        (parallel(range(100_000), partition_size=1).foreach, slow),
        (parallel(iter(range(100_000))).map(slow).reduce, max),
    ]
    threads = [threading.Thread(target=run, args=call) for call in calls]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and any(len(found) < 10 for found in (*came, firsts)):
        time.sleep(0.05)
    short: list[int] = []
    last = threading.Thread(target=run, args=(lambda: short.extend(numbers.take(20)),))
    last.start()
    last.join(60)
    over.touch()
    for thread in [*threads, last]:
        thread.join()
    assert short == list(range(20))
    assert firsts[:10] == list(range(0, 500_000, 50_000))
    assert [found[:10] for found in came] == [list(range(10))] * len(came)
