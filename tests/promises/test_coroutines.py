"""`async def` functions: known by themselves, run in one event loop of each worker process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pages import Pages, collect, fetch_async
from scripts import append, eventually, lines

from parcoll import Connection, ElementTimeoutError, parallel


async def double(x: int) -> int:
    await asyncio.sleep(x * 7919 % 5 / 1000)
    return 2 * x


async def count_to(x: int) -> AsyncIterator[int]:
    for number in range(x):
        await asyncio.sleep(0)
        yield number


async def numbers_to(x: int) -> range:
    await asyncio.sleep(0)
    return range(x)


async def is_odd(x: int, by: int = 2) -> bool:
    await asyncio.sleep(0)
    return bool(x % by)


class Service:
    """An object whose calls are coroutines, and one whose method's are."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0.001)
        return self.factor * x

    async def method(self, x: int) -> int:
        return await self(x)


class Streams:
    async def __call__(self, x: int) -> AsyncIterator[int]:
        yield x
        yield -x


def test_each_kind_of_function_is_known_by_itself(place: Connection):
    numbers = parallel(range(30))
    assert list(numbers.map(double)) == [2 * x for x in range(30)]
    assert list(numbers.map(Service(3))) == [3 * x for x in range(30)]
    assert list(numbers.map(Service(3).method)) == [3 * x for x in range(30)]
    assert list(numbers.map(functools.partial(functools.partial(is_odd), by=3))) == [
        bool(x % 3) for x in range(30)
    ]
    assert list(numbers.filter(is_odd)) == list(range(1, 30, 2))
    assert list(numbers.flatmap(count_to)) == [y for x in range(30) for y in range(x)]
    assert list(numbers.flatmap(numbers_to)) == [y for x in range(30) for y in range(x)]
    assert list(numbers.flatmap(Streams())) == [y for x in range(30) for y in (x, -x)]
    assert list(numbers.map(double).filter(is_odd).map(str)) == []
    numbers.foreach(double)
    assert numbers.reduce(int.__add__) == sum(2 * x for x in range(30))


def test_64_a_worker_thread_unless_told_otherwise(place: Connection, server: Pages):
    server.forget()
    port = server.port
    threads = place.engine.threads()

    async def get(n: int) -> int:
        return await fetch_async(port, n, 0.2)

    assert list(parallel(range(600)).map(get)) == list(range(600))
    threads = max(threads, place.engine.threads())  # a worker may have been missing
    assert 40 * threads < server.most <= 64 * threads
    server.forget()
    assert list(parallel(range(100)).map(get, concurrency=10)) == list(range(100))
    assert server.most <= 10


def test_a_process_has_one_loop_which_outlives_evaluations(place: Connection):
    async def where(x: int) -> tuple[int, bool, str]:
        await asyncio.sleep(0.001)
        loop = asyncio.get_running_loop()
        here = threading.current_thread()
        return id(loop), here is threading.main_thread(), here.name

    found = {one for _ in range(3) for one in parallel(range(50)).map(where)}
    assert len(found) <= place.engine.threads()
    assert {(main, name) for _, main, name in found} == {(False, "parcoll-coroutines")}


def test_what_is_bound_to_the_loop_serves_later_evaluations(place: Connection, tmp_path: Path):
    """As an HTTP session does: locks and queues know the loop in which they are used."""

    async def locked(x: int) -> int:
        module: Any = asyncio
        if not hasattr(module, "kept_by_a_test"):
            module.kept_by_a_test = asyncio.Lock()
            append(tmp_path / "made", "once")
        async with module.kept_by_a_test:
            await asyncio.sleep(0.001)
        return x

    try:
        for _ in range(3):
            assert list(parallel(range(20)).map(locked, concurrency=10)) == list(range(20))
    finally:
        vars(asyncio).pop("kept_by_a_test", None)
    assert len(lines(tmp_path / "made")) <= place.engine.threads()


def test_the_first_failure_in_order_ends_it_and_cancels_the_others(place: Connection, tmp_path: Path):
    folder = str(tmp_path)

    async def one(x: int) -> int:
        if x == 5:
            await asyncio.sleep(0.05)
            raise ValueError("the fifth")
        if x < 60:
            return x
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            append(f"{folder}/cancelled", str(x))
            raise
        return x

    stream = iter(parallel(range(100), partition_size=100).map(one))
    found: list[int] = []
    with pytest.raises(ValueError, match="the fifth") as raised:
        collect(stream, found)
    assert found == [0, 1, 2, 3, 4]
    assert raised.value.__notes__ == ["in step 1 of 1, map(one), at element 5: 5"]
    assert eventually(lambda: (tmp_path / "cancelled").exists())
    assert {int(x) for x in lines(tmp_path / "cancelled")} <= set(range(60, 100))


def test_failed_elements_have_their_index_and_are_tried_again(place: Connection, tmp_path: Path):
    async def flaky(x: int) -> int:
        await asyncio.sleep(x * 7919 % 5 / 1000)
        append(tmp_path / str(x), "call")
        if x % 10 == 3 and len(lines(tmp_path / str(x))) < 2:
            raise OSError(x)
        if x % 10 == 7:
            raise ValueError(x)
        return x

    found = parallel(range(60)).map(flaky, retries=2, retry_on=OSError, on_error="skip")
    started = time.monotonic()
    assert list(found) == [x for x in range(60) if x % 10 != 7]
    assert time.monotonic() - started < 30, "hang guard"
    assert [error.index for error in found.errors] == [7, 17, 27, 37, 47, 57]
    assert (found.stats.retries, found.stats.failed) == (6, 6)


def test_a_timeout_cancels_the_coroutine_and_no_process_is_started(place: Connection, tmp_path: Path):
    async def slow(x: int) -> int:
        try:
            await asyncio.sleep(30 if x % 10 == 4 else 0)
        finally:
            append(tmp_path / "ended", str(x))
        return x

    found = parallel(range(40), timeout=0.3, on_error="skip").map(slow)
    assert list(found) == [x for x in range(40) if x % 10 != 4]
    assert [(error.index, type(error.exception)) for error in found.errors] == [
        (x, ElementTimeoutError) for x in (4, 14, 24, 34)
    ]
    message = str(found.errors[0].exception)
    assert message == "map(slow) took longer than timeout=0.3 seconds, at element 4"
    assert found.stats.timeouts == 4
    assert sorted(map(int, lines(tmp_path / "ended"))) == list(range(40))


def test_a_timeout_of_its_own_is_an_error_like_any_other(place: Connection):
    async def gives_up(x: int) -> int:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(30)
        return x

    found = parallel(range(3), timeout=60, on_error="skip").map(gives_up)
    assert list(found) == []
    assert {type(error.exception) for error in found.errors} == {TimeoutError}
    assert found.stats.timeouts == 0


def test_timeouts_are_tried_again(place: Connection, tmp_path: Path):
    async def slow_once(x: int) -> int:
        append(tmp_path / str(x), "call")
        await asyncio.sleep(30 if len(lines(tmp_path / str(x))) == 1 and x == 2 else 0)
        return x

    found = parallel(range(4)).map(slow_once, timeout=0.2, retries=1)
    assert list(found) == [0, 1, 2, 3]
    assert (found.stats.timeouts, found.stats.retries, found.stats.failed) == (1, 1, 0)


def test_a_generator_that_fails_halfway_keeps_what_it_gave(place: Connection, tmp_path: Path):
    async def half(x: int) -> AsyncIterator[int]:
        try:
            yield x
            await asyncio.sleep(30 if x == 1 else 0)
            if x == 2:
                raise ValueError(x)
            yield x
        finally:
            append(tmp_path / "closed", str(x))

    found = parallel(range(4)).flatmap(half, timeout=0.3, retries=3, on_error=lambda error: -error.index)
    assert list(found) == [0, 0, 1, -1, 2, -2, 3, 3]
    assert sorted(lines(tmp_path / "closed")) == ["0", "1", "2", "3"]


def test_one_that_blocks_the_loop_holds_up_its_own_kind_alone(cluster: Connection):
    """A worker whose own loop stood still for so long would be taken for dead, or its task for lost."""

    async def blocks(x: int) -> int:
        if x == 0:
            time.sleep(1.0)
        await asyncio.sleep(0.001)
        return x

    stamps: list[float] = []

    def hear(dask_worker: Any) -> float:
        return time.monotonic()

    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(parallel(range(20)).map(blocks)))
    thread.start()
    while thread.is_alive():
        started = time.monotonic()
        cluster.engine.client.run(hear)
        stamps.append(time.monotonic() - started)
    thread.join()
    assert found == list(range(20))
    assert max(stamps) < 0.9, "the loop of a worker stood still"


def test_cancelling_itself_is_a_failure(place: Connection):
    async def leaves(x: int) -> int:
        if x == 2:
            raise asyncio.CancelledError
        return x

    with pytest.raises(asyncio.CancelledError):
        list(parallel(range(4)).map(leaves))


def test_a_coroutine_that_nobody_knew_of_is_told(place: Connection):
    with pytest.raises(
        Exception, match="is a coroutine, which nobody has run: pass the `async def` function"
    ):
        list(parallel(range(3)).map(lambda x: double(x)))


def test_a_half_consumed_iterator_leaves_nothing_running(place: Connection, server: Pages):
    server.forget()
    port = server.port

    async def get(n: int) -> int:
        return await fetch_async(port, n, 0.01 if n < 20 else 60)

    stream = iter(parallel(range(10**6), partition_size=10).map(get, concurrency=16))
    with contextlib.closing(stream):  # type: ignore[type-var]
        assert [next(stream) for _ in range(5)] == list(range(5))
    assert eventually(lambda: server.now == 0, 20)


def test_an_element_that_ends_its_process_costs_no_other(cluster: Connection):
    import os

    async def deadly(x: int) -> int:
        if x == 7:
            os._exit(3)
        await asyncio.sleep(0.01)
        return x

    found = parallel(range(20), partition_size=10).map(deadly, on_error="skip")
    assert list(found) == [x for x in range(20) if x != 7]
    assert [error.index for error in found.errors] == [7]


def test_where_nobody_would_await_it_it_is_refused():
    numbers = parallel([1])
    for refused in (
        lambda: numbers.reduce(is_odd),
        lambda: numbers.fold(is_odd, 0),
        lambda: numbers.fold(int.__add__, 0, is_odd),
        lambda: numbers.map_batches(is_odd),
        lambda: numbers.map(abs, on_error=is_odd),
        lambda: numbers.map(abs, retries=1, retry_on=is_odd),
        lambda: parallel([1], on_error=Service(1)),
    ):
        with pytest.raises(TypeError, match=r"needs a plain function, got the `async def` function"):
            refused()

    async def several(x: int) -> AsyncIterator[int]:
        yield x

    for made in (numbers.map, numbers.filter, numbers.starmap, numbers.foreach):
        with pytest.raises(
            TypeError, match=r"takes one result of a call, and several is an asyn.*: use flatmap"
        ):
            made(several)
