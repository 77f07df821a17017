"""Calls that wait, in virtual time: an event loop for coroutines and turns for threads, within one task.

A task of the model runs at once, in a time of its own. So its coroutines run in a loop whose timers move that
time, and what stands for a thread has made its call, in a time of its own again, when it begins.
"""

from __future__ import annotations

import asyncio
import collections
import heapq
import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dask_model import SWorker, running_now
from virtual import Clock, Loop, WaitsForEverError

from parcoll.calls import several


class Call(NamedTuple):
    """A call that a function of the story has noted."""

    step: str
    evaluation: str
    worker: SWorker | None
    began: float
    ended: float
    again: bool  # dask began its task again by itself


calls: list[Call] = []


class TaskLoop(Loop):
    """The loop of coroutines. Its time is that of the task which runs."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]

    def time(self) -> float:
        """Return the time of the task."""
        return self._clock.read()

    def go_on(self, there: Callable[[], bool], until: float = math.inf) -> None:
        """Run coroutines, and let time pass, until something is there or the time has come."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while not there():
                if self._ready:  # type: ignore[attr-defined]
                    self.run_ready()
                    continue
                while self._timers and self._timers[0]._cancelled:
                    heapq.heappop(self._timers)._scheduled = False
                when = self._timers[0].when() if self._timers else math.inf
                if min(when, until) == math.inf:
                    raise WaitsForEverError("a call is waited for, and none is under way")
                self._clock.sleep(max(min(when, until) - self._clock.read(), 0.0))
                if when > until:
                    return
                timer = heapq.heappop(self._timers)
                timer._scheduled = False
                timer._run()
        finally:
            asyncio._set_running_loop(before)


class Ended:
    """What stands for the queue of the calls that have ended: who waits for one has the loop go on."""

    def __init__(self, loop: TaskLoop) -> None:
        self._loop = loop
        self._items: collections.deque[Any] = collections.deque()

    def put(self, item: Any) -> None:
        """Add one."""
        self._items.append(item)

    def get(self, seconds: float = math.inf) -> Any:
        """Return the first one, when there is one."""
        if seconds:
            self._loop.go_on(lambda: bool(self._items), self._loop.time() + seconds)
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        """Return the first one, if there is one."""
        return self.get(0.0)


class Closing(threading.Event):
    """An event whose waiting takes virtual time."""

    clock: Clock  # of the story that is told now

    def wait(self, timeout: float | None = None) -> bool:
        """Let the time pass."""
        assert timeout is not None
        self.clock.sleep(timeout)
        return self.is_set()


class InTurns(several.InThreads):
    """Calls of a plain function, each in a time of its own that begins where the call does."""

    clock: Clock
    loop: TaskLoop

    def _start(self, call: Any) -> None:
        with self.clock.task(self.clock.read()):
            self._waiting.put(call)
            self._waiting.put(None)
            put, self._ended.put = self._ended.put, lambda _: None  # type: ignore[method-assign]
            try:
                self._work()
            finally:
                self._ended.put = put  # type: ignore[method-assign]
            ended = self.clock.read()
        if self._handed is None and self._pace is not None:
            self._ended.put(None)
        self.loop.call_at(ended, self._ended.put, call)


def forget() -> None:
    """Drop what was still to be called: the loop of a worker has ended with it, and holds nothing here."""
    InTurns.loop._ready.clear()  # type: ignore[attr-defined]
    InTurns.loop._timers.clear()


def note(step: str, began: float, ended: float) -> None:
    """Note a call of a function of the story."""
    worker, _, _, key, attempt = running_now.task
    calls.append(Call(step, key.rsplit("-", 2)[0], worker, began, ended, attempt > 1))


def changes(clock: Clock) -> Iterator[tuple[Any, str, Any]]:
    """Give what is replaced so that calls wait in virtual time: the owner, the name, and by what."""
    loop = TaskLoop(clock)
    Closing.clock = InTurns.clock = clock
    InTurns.loop = loop
    yield several.coroutines, "loop", lambda: loop
    yield several, "SimpleQueue", lambda: Ended(loop)
    yield several, "Inbox", lambda: Ended(loop)
    yield several, "InThreads", InTurns
    yield several, "threading", _THREADING
    yield several.coroutines, "result", lambda coroutine: result(loop, coroutine)


def result(loop: TaskLoop, coroutine: Any) -> Any:
    """Run a coroutine to its end."""
    made = loop.create_task(coroutine)
    loop.go_on(made.done)
    return made.result()


class _Threading:
    """The module `threading`, with another event."""

    Event = Closing

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


_THREADING = _Threading()


def _counted(step: str) -> Iterator[list[tuple[float, float]]]:
    """Give for each evaluation when its calls of a step began and ended, on workers that lived.

    What dask begins again by itself after a loss comes beside these: the evaluation does not know of it yet.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for call in calls:
        died = math.inf if call.worker is None else call.worker.died
        if call.step == step and not call.again and call.began < died:
            found.setdefault(call.evaluation, []).append((call.began, min(call.ended, died)))
    yield from found.values()


def most_at_once(step: str) -> int:
    """Return how many calls of a step ran at the same time at most, in one evaluation."""
    most = 0
    for those in _counted(step):
        changes = sorted(change for began, ended in those for change in ((began, 1), (ended, -1)))
        most = max(most, *itertools.accumulate(change for _, change in changes))
    return most


def closest(step: str, count: int) -> float:
    """Return the least seconds from one start of a call to the one so many calls later."""
    least = math.inf
    for those in _counted(step):
        starts = sorted(began for began, _ in those)
        least = min([least, *(later - one for one, later in zip(starts, starts[count:], strict=False))])
    return least
