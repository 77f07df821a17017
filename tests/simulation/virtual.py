"""Virtual time: a clock that events move, and what stands for `time` and for the client's loop meanwhile.

Nothing sleeps. What would wait has the events happen that come before its end.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SILENCE = 3_600.0  # virtual seconds without an event, after which what waits waits for ever
EPOCH = 1.7e9  # of the wall clock, when the virtual one says 0


class WaitsForEverError(AssertionError):
    """Nothing will happen any more, and something waits for it."""


class Clock:
    """The events that are to happen, in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._local: float | None = None  # the time within a task, which runs in no time at all
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.aio = asyncio.SelectorEventLoop()
        self.happened = 0
        self._reads = 0  # since something happened last

    def read(self) -> float:
        """Return the time: that of the task which runs, if one does."""
        self._reads += 1
        if self._reads > 500_000:
            raise WaitsForEverError("the time is asked for again and again, and nothing happens")
        return self.now if self._local is None else self._local

    def at(self, when: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have something happen at a time, and not before now."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), call, arguments))

    def after(self, seconds: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have something happen in a while."""
        self.at(self.now + seconds, call, *arguments)

    def step(self) -> bool:
        """Have the next event happen; False if there is none."""
        if not self._events:
            return False
        when, _, call, arguments = heapq.heappop(self._events)
        self.now = max(self.now, when)
        self.happened, self._reads = self.happened + 1, 0
        if self.happened > 200_000:
            raise WaitsForEverError("200,000 events happened, and there is no end")
        self.in_loop(call, *arguments)
        return True

    def in_loop(self, call: Callable[..., object], *arguments: Any) -> None:
        """Make a call as the loop of the client does, and run the coroutines that are ready then."""
        asyncio._set_running_loop(self.aio)
        try:
            made = call(*arguments)
        finally:
            asyncio._set_running_loop(None)
        if inspect.iscoroutine(made):
            self.aio.create_task(made)
        # The loop's own way to run what is ready, and nothing else: `run_forever` takes ten times as long.
        while self.aio._ready:  # type: ignore[attr-defined]
            asyncio._set_running_loop(self.aio)
            try:
                self.aio._run_once()  # type: ignore[attr-defined]
            finally:
                asyncio._set_running_loop(None)

    def until(self, when: float) -> None:
        """Have all events happen up to a time."""
        while self._events and self._events[0][0] <= when:
            self.step()
        self.now = max(self.now, when)

    def wait(self, there: Callable[[], bool], seconds: float = SILENCE) -> bool:
        """Have events happen until something is there, or the time is over; tell whether it is."""
        end = self.now + seconds
        while not there():
            if not self._events or self._events[0][0] > end:
                self.now = end
                return there()
            self.step()
        return True

    def drain(self) -> None:
        """Have all events happen."""
        while self.step():
            pass

    def sleep(self, seconds: float) -> None:
        """Let time pass: in a task for it alone."""
        if self._local is not None:
            self._local += seconds
        elif seconds > 0:
            self.until(self.now + seconds)

    @contextmanager
    def task(self, started: float) -> Iterator[None]:
        """Run a task in a time of its own."""
        before, self._local = self._local, started
        try:
            yield
        finally:
            self._local = before

    async def moment(self, seconds: float) -> None:
        """Wait in a coroutine."""
        over = self.aio.create_future()
        self.after(seconds, lambda: over.done() or over.set_result(None))
        await over

    def close(self) -> None:
        """Let go of the loop."""
        for task in asyncio.all_tasks(self.aio):
            task.cancel()
        self.in_loop(lambda: None)
        self.aio.close()


class ClientLoop:
    """What stands for the loop of a client, which is another thread's: calls are made soon, one by one."""

    def __init__(self, clock: Clock, delay: Callable[[], float]) -> None:
        self.asyncio_loop = clock.aio
        self._clock = clock
        self._delay = delay
        self._last = 0.0

    def add_callback(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call be made, behind those that were asked for before."""
        self._last = max(self._last, self._clock.now + self._delay())
        self._clock.at(self._last, call, *arguments)

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call be made in a while."""
        self._clock.after(seconds, call, *arguments)


class _Time:
    """The module `time`, with this clock."""

    def __init__(self, clock: Clock) -> None:
        self.perf_counter = self.monotonic = clock.read
        self.sleep = clock.sleep
        self.time = lambda: EPOCH + clock.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def virtual_time(clock: Clock) -> Iterator[None]:
    """Have all modules of parcoll read this clock."""
    stand_in = _Time(clock)
    patched = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("parcoll.") and getattr(module, "time", None) is time
    ]
    for module in patched:
        module.time = stand_in  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in patched:
            module.time = time  # type: ignore[attr-defined]
