"""A model of dask's client: futures, what is asked of the scheduler, and what comes from it."""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError  # which dask raises, and which is no `asyncio.CancelledError`
from types import SimpleNamespace
from typing import Any

from dask_model import ALLOWED_FAILURES, Scheduler
from distributed.scheduler import KilledWorker
from virtual import ClientLoop


class Comm:
    """The client's stream to its scheduler."""

    def __init__(self) -> None:
        self.is_closed = False

    def closed(self) -> bool:
        """Tell whether the scheduler is gone."""
        return self.is_closed


def killed(key: str) -> KilledWorker:
    """Return what dask raises for a task whose workers were lost too often."""
    return KilledWorker(key, SimpleNamespace(address="the last worker"), ALLOWED_FAILURES)  # type: ignore[arg-type]


class Future:
    """What stands for a result."""

    def __init__(self, client: Client, key: str, number: int) -> None:
        self.client = client
        self.key = key
        self.status = "pending"
        self.released = False
        self._number = number

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self.status == "cancelled"

    def release(self) -> None:
        """Want it no more."""
        if not self.released:
            self.released = True
            self.client.futures.pop(self.key, None)
            self.client.send_release([self.key])

    def __del__(self) -> None:
        self.release()

    def result(self) -> Any:
        """Bring the result here, or raise why there is none."""
        return self.client.gather(self)

    async def exception(self) -> BaseException | None:
        """Wait for the task; return why it failed."""
        while self.status in ("pending", "lost"):
            await self.client.changed()
        return killed(self.key) if self.status == "error" else None


class Client:
    """A client of the scheduler."""

    status = "running"
    id = "client"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.clock = scheduler.clock
        self.loop = ClientLoop(self.clock, lambda: scheduler.delay() / 10)
        self.scheduler_comm = Comm()
        self.scheduler = self  # whose methods are asked for through the client
        self.address = "sim://scheduler"
        self.futures: weakref.WeakValueDictionary[str, Future] = weakref.WeakValueDictionary()
        self._out = scheduler.stream()
        self._topics: dict[str, list[Callable[[Any], None]]] = {}
        self._changes: list[Any] = []
        self._numbers = 0
        scheduler.client = self

    # As distributed.Client has them.

    def subscribe_topic(self, topic: str, handler: Callable[[Any], None]) -> None:
        """Have a handler be called for each event of a topic."""
        self._topics.setdefault(topic, []).append(handler)

    async def register_scheduler_plugin(self, **plugin: Any) -> None:
        """Do nothing: the model tells of losses by itself."""

    def nthreads(self) -> dict[str, int]:
        """Return how many threads each worker has."""
        return dict.fromkeys(self._scheduler.workers, self._scheduler.threads)

    async def ncores(self) -> dict[str, int]:
        """Return the same, in a moment."""
        await self.clock.moment(self._scheduler.delay())
        return self.nthreads()

    async def get_task_status(self, keys: list[str]) -> dict[str, str]:
        """Return the states of tasks."""
        await self.clock.moment(self._scheduler.delay())
        found = self._scheduler.tasks
        return {key: found[key].state if key in found else "" for key in keys}

    def get(self, graph: Any, keys: list[str], sync: bool, priority: Any, **where: Any) -> list[Future]:
        """Send tasks."""
        if self.clock.turns is not None:
            self.clock.turns.pause()
        found = []
        for key in keys:
            self._numbers += 1
            self.futures[key] = future = Future(self, key, self._numbers)
            found.append(future)
        priorities = {key: priority(key) or 0.0 for key in graph}
        self._out.send(self.clock.now, self._scheduler.update_graph, dict(graph), keys, priorities)
        if self._scheduler.rng.random() < 0.3:  # meanwhile the loop of the client goes on
            self.clock.sleep(self._scheduler.delay())
        return found

    async def _cancel(self, futures: list[Future]) -> None:
        for future in futures:
            future.status = "cancelled"
            future.release()
        self._change()

    def cancel(self, futures: list[Future], asynchronous: bool) -> Any:
        """Cancel tasks."""
        assert asynchronous
        return self._cancel(futures)

    def gather(self, futures: Any, direct: Any = None, asynchronous: bool = False) -> Any:
        """Bring results here."""
        if asynchronous:
            return self._gather(futures)
        task = self.clock.aio.create_task(self._gather([futures]))
        self.clock.in_loop(lambda: None)
        if not self.clock.wait(task.done):
            raise AssertionError("a result that is asked for never comes")
        return task.result()[0]

    async def _gather(self, futures: list[Future]) -> list[Any]:
        values = []
        for future in futures:
            while True:
                if await future.exception() is not None:
                    raise killed(future.key)
                if future.status == "cancelled":
                    raise CancelledError(future.key)
                await self.clock.moment(self._scheduler.delay())
                holders = [w for w in self._scheduler.workers.values() if w.answers and future.key in w.data]
                if holders:
                    values.append(pickle.loads(pickle.dumps(holders[0].data[future.key])))
                    break
                await self.clock.moment(0.5)  # its worker does not answer: dask asks again
        return values

    # What comes from the scheduler.

    def on_event(self, topic: str, message: Any) -> None:
        """Hear an event."""
        for handler in self._topics.get(topic, ()):
            self.loop.add_callback(handler, (self.clock.now, message))

    def on_status(self, key: str, status: str) -> None:
        """Hear what became of a task."""
        future = self.futures.get(key)
        if future is not None and future.status != "cancelled":
            future.status = status
            self._change()

    async def changed(self) -> None:
        """Wait until some future has changed."""
        change = self.clock.aio.create_future()
        self._changes.append(change)
        await change

    def _change(self) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            if not change.done():
                change.set_result(None)

    def send_release(self, keys: list[str]) -> None:
        """Tell that results are wanted no more."""
        if not self.scheduler_comm.is_closed:
            self._out.send(self.clock.now, self._scheduler.client_releases, keys)

    def end(self) -> None:
        """End with the cluster, as that of a local cluster does."""
        self._scheduler.die()

    def lose(self) -> None:
        """Notice that the scheduler is gone."""
        self.scheduler_comm.is_closed = True
        for future in list(self.futures.values()):
            future.status = "cancelled"
        self._change()


class Completed:
    """What stands for `distributed.as_completed`: futures, each as it ends."""

    def __init__(self, loop: ClientLoop) -> None:
        self._loop = loop
        self._left = 0
        self._ended: deque[Future] = deque()
        self._waiting: list[asyncio.Future[None]] = []

    def add(self, future: Future) -> None:
        """Wait for one more."""
        self._left += 1
        self._loop.add_callback(self._track, future)

    async def _track(self, future: Future) -> None:
        while future.status in ("pending", "lost"):
            await future.client.changed()
        self._ended.append(future)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def is_empty(self) -> bool:
        """Tell whether none is left."""
        return not self._left

    async def __anext__(self) -> Future:
        while not self._ended:
            if not self._left:
                raise StopAsyncIteration
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self._left -= 1
        return self._ended.popleft()

    def next_batch(self, block: bool) -> list[Future]:
        """Return those that have ended too."""
        assert not block
        found = list(self._ended)
        self._ended.clear()
        self._left -= len(found)
        return found
