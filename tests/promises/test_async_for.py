"""`async for`: the event loop goes on while workers work."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scripts import Scripts, append, eventually

from parcoll import Connection, parallel


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """Note in a task of the same loop how late it is, each time."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.005)
            late.append(time.monotonic() - started - 0.005)

    task = asyncio.create_task(beat())
    try:
        yield late
    finally:
        task.cancel()


def no_thread_is_left() -> bool:
    return not any(thread.name.startswith("parcoll-async") for thread in threading.enumerate())


def test_it_gives_what_for_gives(place: Connection):
    async def collected() -> list[Any]:
        return [x async for x in parallel(range(5000)).map(lambda x: [x]).filter(lambda x: x[0] % 3)]

    assert asyncio.run(collected()) == [[x] for x in range(5000) if x % 3]
    assert eventually(no_thread_is_left)


def test_the_loop_goes_on_while_workers_work(cluster: Connection):
    def slow(x: int) -> int:
        time.sleep(0.2)
        return x

    async def run() -> tuple[list[int], int]:
        async with heartbeat() as late:
            return [x async for x in parallel(range(4)).map(slow)], len(late)

    found, beats = asyncio.run(run())
    assert found == [0, 1, 2, 3]
    assert beats > 10


def test_the_loop_has_its_turns_in_a_long_part(inline: Connection):
    async def run() -> int:
        async with heartbeat() as late:
            async for _ in parallel(range(200_000), partition_size=200_000):
                pass
            quick = len(late)
            async for _ in parallel(range(300), partition_size=300):
                time.sleep(0.001)  # what the body does with each holds up the loop, but not for all of them
            return min(quick, len(late) - quick - 5)

    assert asyncio.run(run()) > 0


def test_two_at_once_in_one_loop(place: Connection):
    async def one(factor: int) -> list[int]:
        return [x async for x in parallel(range(200), partition_size=20).map(lambda x: x * factor)]

    async def both() -> list[list[int]]:
        return await asyncio.gather(one(2), one(3))

    assert asyncio.run(both()) == [[x * 2 for x in range(200)], [x * 3 for x in range(200)]]


def test_nothing_runs_before_the_first_is_asked_for(inline: Connection, tmp_path: Path):
    def source() -> Iterator[int]:
        append(tmp_path / "read", "once")
        yield 1

    async def run() -> list[int]:
        stream = aiter(parallel(source))
        await asyncio.sleep(0.01)
        assert not (tmp_path / "read").exists()
        return [x async for x in stream]

    assert asyncio.run(run()) == [1]


def test_what_a_function_raises_comes_after_the_results_before_it(place: Connection):
    async def run() -> list[float]:
        found: list[float] = []
        with pytest.raises(ZeroDivisionError) as raised:  # noqa: PT012
            async for x in parallel([1, 2, 0, 4], partition_size=4).map(lambda x: 1 / x):
                found.append(x)
        assert "at element 2" in raised.value.__notes__[0]
        return found

    assert asyncio.run(run()) == [1.0, 0.5]
    assert eventually(no_thread_is_left)


@pytest.mark.parametrize("way", ["break", "aclose", "aclosing"])
def test_left_early_it_ends_the_evaluation(place: Connection, way: str):
    endless = parallel(lambda: itertools.count()).map(lambda x: x + 1)

    async def run() -> None:
        if way == "break":
            async for x in endless:
                if x == 5:
                    break
        elif way == "aclose":
            stream = aiter(endless)
            assert [await anext(stream) for _ in range(5)] == [1, 2, 3, 4, 5]
            await stream.aclose()
            assert endless.stats.state == "stopped"
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        else:
            async with aclosing(aiter(endless)) as stream:
                assert await anext(stream) == 1
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert endless.stats.state == "stopped"
    assert eventually(no_thread_is_left)


def test_a_cancelled_task_does_not_wait_for_its_workers(cluster: Connection):
    slow = parallel(range(2)).map(lambda x: time.sleep(5))

    async def draw() -> list[Any]:
        return [x async for x in slow]

    async def run() -> float:
        task = asyncio.create_task(draw())
        await asyncio.sleep(0.5)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert asyncio.run(run()) < 4, "as long as the calls take, less what they had"
    assert slow.stats.state == "stopped"
    assert eventually(no_thread_is_left)


def test_coroutines_may_be_functions_and_consumers_at_once(place: Connection):
    async def double(x: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * x

    async def run() -> list[int]:
        return [x async for x in parallel(range(100)).map(double)]

    assert asyncio.run(run()) == [2 * x for x in range(100)]


def test_ctrl_c_ends_each_kind_and_leaves_the_cluster_usable(scripts: Scripts):
    process = scripts.start_file(
        """
        import asyncio
        import time
        from parcoll import parallel

        def wait(x):
            time.sleep(60)

        async def wait_async(x):
            await asyncio.sleep(60)

        def threads():
            list(parallel(range(100)).map(wait, concurrency=20))

        def coroutines():
            list(parallel(range(100)).map(wait_async))

        async def loop():
            async for _ in parallel(range(100)).map(wait_async):
                pass

        print(parallel(range(10)).map(abs).count(), flush=True)
        for evaluate in (coroutines, lambda: asyncio.run(loop()), threads):
            try:
                print("begins", flush=True)
                evaluate()
            except KeyboardInterrupt:
                print(list(parallel(range(5)).map(abs, concurrency=2)), flush=True)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "10\n"
    for _ in range(3):
        assert process.stdout.readline() == "begins\n"
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "[0, 1, 2, 3, 4]\n"
    assert process.wait(20) == 0
