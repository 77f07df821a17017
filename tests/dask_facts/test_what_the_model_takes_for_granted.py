"""What the model of dask in `tests/simulation` takes for granted: a test for each line that it begins with.

A scheduler and its workers run in this very process, each on its own sockets, so that what they do can be
looked at while it happens.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import dask
import distributed
import pytest
from distributed.scheduler import KilledWorker, TaskState

OWN: dict[str, Any] = {"nthreads": 1, "host": "127.0.0.1", "dashboard": False}
SECONDS = 30.0  # until a wait is given up
OFF = {  # nobody is to look at dashboards here, and no worker is to be given tasks ahead by measure
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
}


@contextlib.asynccontextmanager
async def cluster(workers: int) -> AsyncIterator[tuple[Any, list[Any], Any]]:
    """Give a scheduler, its workers with one thread each, and a client."""
    with dask.config.set(OFF):
        async with contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            scheduler = await enter(
                distributed.Scheduler(host="127.0.0.1", port=0, dashboard=False, validate=False)
            )
            made = [
                await enter(distributed.Worker(scheduler.address, **OWN, name=f"worker-{number}"))
                for number in range(workers)
            ]
            client = await enter(distributed.Client(scheduler.address, asynchronous=True))
            yield scheduler, made, client


async def eventually(condition: Callable[[], object]) -> bool:
    """Wait until a condition holds; tell whether it does."""
    until = asyncio.get_running_loop().time() + SECONDS
    while not condition() and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.005)
    return bool(condition())


class Held:
    """A task that goes on until it is let go. All workers are here, so what it notes is seen."""

    gate = threading.Event()
    noted: ClassVar[list[str]] = []


def held() -> int:
    """Note who runs this; wait."""
    Held.noted.append(distributed.get_worker().name)
    Held.gate.wait(SECONDS)
    Held.noted.append("ended")
    return Held.noted.count("ended")


@pytest.fixture
def noted() -> Iterator[list[str]]:
    """Have nothing noted, and in the end let go of what is held."""
    Held.gate.clear()
    Held.noted.clear()
    yield Held.noted
    Held.gate.set()


class Told(distributed.WorkerPlugin):
    """Tells of each task that ends, as parcoll's plugin does."""

    name = "told"

    def setup(self, worker: Any) -> None:
        """Note whose it is."""
        self.worker = worker

    def transition(self, key: str, start: str, finish: str, **more: Any) -> None:
        """Tell of a task when its result is there."""
        if finish == "memory" and start == "executing":
            self.worker.log_event("told", key)


class Seen(distributed.SchedulerPlugin):
    """Notes what the scheduler knows when a task changes."""

    name = "seen"

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.untold: list[str] = []  # tasks that were done before their worker had told of them
        self.too_early: list[str] = []  # tasks that were given out before what they depend on was there
        self.given: dict[str, list[int]] = {}  # the numbers of the attempts
        self.holders: list[int] = []  # how many workers had a task at the same time
        self.removed: list[str] = []

    def transition(self, key: str, start: str, finish: str, *arguments: Any, **more: Any) -> None:
        """Look."""
        task = self.scheduler.tasks.get(key)
        if finish == "memory" and key not in [told for _, told in self.scheduler.get_events("told")]:
            self.untold.append(key)
        if finish == "processing":
            self.given.setdefault(key, []).append(task.run_id)
            self.holders.append(sum(task in worker.processing for worker in self.scheduler.workers.values()))
            if any(needed.state != "memory" for needed in task.dependencies):
                self.too_early.append(key)

    def remove_worker(self, scheduler: Any, worker: str, **more: Any) -> None:
        """Note whose loss is told."""
        self.removed.append(worker)


def test_messages_come_in_order_and_a_task_is_told_of_before_it_is_done() -> None:
    """Lines 1 to 3."""

    async def run() -> None:
        async with cluster(2) as (scheduler, _, client):
            await client.register_plugin(Told())
            seen = Seen(scheduler)
            scheduler.add_plugin(seen)
            heard: list[str] = []
            client.subscribe_topic("told", lambda event: heard.append(event[1]))
            first = [client.submit(abs, -x, key=f"first-{x}") for x in range(20)]
            then = [client.submit(sum, first[x : x + 2], key=f"then-{x}") for x in range(19)]
            assert sum(await client.gather(then)) == sum(2 * x + 1 for x in range(19))
            assert await eventually(lambda: len(heard) == 39)
            assert heard == [key for _, key in scheduler.get_events("told")], "another order"
            assert seen.untold == []
            assert seen.too_early == []
            assert set(seen.holders) == {1}

    asyncio.run(run())


def test_a_worker_that_is_cut_off_goes_on_and_its_task_runs_elsewhere(noted: list[str]) -> None:
    """Line 4, and: a task may run twice; its attempts have numbers; a worker that was given up ends."""

    async def run() -> None:
        async with cluster(2) as (scheduler, workers, client):
            seen = Seen(scheduler)
            scheduler.add_plugin(seen)
            at = {"workers": ["worker-0"], "allow_other_workers": True}
            kept = client.submit(abs, -7, key="kept", **at)
            assert await kept == 7
            task = client.submit(held, key="held", **at)
            assert await eventually(lambda: noted == ["worker-0"])
            scheduler.stream_comms[workers[0].address].comm.abort()  # as where a connection breaks
            assert await eventually(lambda: noted == ["worker-0", "worker-1"]), "the first one goes on, too"
            assert seen.removed == [workers[0].address]
            first, second = seen.given["held"]
            assert first != second
            assert await eventually(lambda: workers[0].status.name in ("closing", "closed"))
            Held.gate.set()
            assert await task in (1, 2)
            assert await kept == 7, "what was there only, and is wanted, is made again"
            assert len(seen.given["kept"]) == 2

    asyncio.run(run())


def test_a_task_whose_workers_were_lost_four_times_has_failed(noted: list[str]) -> None:
    """Line 4 too: `ALLOWED_FAILURES`."""

    async def run() -> None:
        async with cluster(4) as (scheduler, _, client):
            task = client.submit(held, key="held")
            for _ in range(4):
                assert await eventually(lambda: any(w.processing for w in scheduler.workers.values()))
                (at,) = [address for address, worker in scheduler.workers.items() if worker.processing]
                scheduler.stream_comms[at].comm.abort()
                assert await eventually(lambda at=at: at not in scheduler.workers)
            with pytest.raises(KilledWorker):
                await task
            Held.gate.set()

    asyncio.run(run())


def test_what_nobody_wants_is_forgotten_and_what_has_begun_goes_on(noted: list[str]) -> None:
    """Line 5; and tasks may be moved before they begin; and a client that is lost wants nothing any more."""

    async def run() -> None:
        async with cluster(1) as (scheduler, _, client):
            task = client.submit(held, key="held")
            assert await eventually(lambda: noted == ["worker-0"])
            waiting = [client.submit(abs, -x, key=f"waiting-{x}") for x in range(4)]
            assert await eventually(lambda: len(scheduler.tasks) == 5)
            async with distributed.Worker(scheduler.address, **OWN, name="worker-1"):
                assert await client.gather(waiting) == [0, 1, 2, 3], "they went to another worker"
                task.release()
                waiting.clear()
                assert await eventually(lambda: not scheduler.tasks)
                assert noted == ["worker-0"]
                Held.gate.set()
                assert await eventually(lambda: noted == ["worker-0", "ended"])
            async with distributed.Client(scheduler.address, asynchronous=True) as other:
                wanted = other.submit(abs, -1, key="wanted")
                assert await wanted == 1
                scheduler.client_comms[other.id].comm.abort()
                assert await eventually(lambda: not scheduler.tasks)

    asyncio.run(run())


def test_the_attempts_of_a_task_have_numbers() -> None:
    """By which the scheduler tells apart what two workers say of it."""
    assert hasattr(TaskState, "run_id")


def test_a_cancelled_future_has_no_exception_and_to_gather_it_raises_one(noted: list[str]) -> None:
    """It is no `asyncio.CancelledError`, which would end the coroutine that asks."""

    async def tell() -> None:
        async with cluster(1) as (_, _, client):
            future = client.submit(held)
            assert await eventually(lambda: noted)
            await client.cancel([future])
            assert future.cancelled()
            assert await future.exception() is None
            with pytest.raises(concurrent.futures.CancelledError) as raised:
                await client.gather([future])
            assert not isinstance(raised.value, asyncio.CancelledError)
            Held.gate.set()

    asyncio.run(tell())
