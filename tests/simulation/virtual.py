"""Virtual time: a clock that events move, and what stands for `time` and for the client's loop meanwhile.

Nothing sleeps. What would wait has the events happen that come before its end.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CoroutineType, ModuleType
from typing import Any

from parcoll.clock import time as genuine

SILENCE = 3_600.0  # virtual seconds without an event, after which what waits waits for ever
PACES = (1.0, 1.0, 0.3, 0.02)  # times as long as usual, that a task takes: its machine is busy, or not
EPOCH = 1.7e9  # of the wall clock, when the virtual one says 0


class WaitsForEverError(AssertionError):
    """Nothing will happen any more, and something waits for it."""


class Loop(asyncio.BaseEventLoop):
    """An event loop without files and timers: it runs what is ready, and nothing else happens."""

    def run_ready(self) -> None:
        """Run what is ready, until nothing is. `asyncio`'s own way asks the system for files each time."""
        ready = self._ready  # type: ignore[attr-defined]
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def __del__(self, _warn: Any = None) -> None:
        """Do nothing: it has nothing to close."""

    def _write_to_self(self) -> None:
        """Do nothing: there is no other thread to wake."""


def _nothing() -> None:
    """Do nothing."""


class Clock:
    """The events that are to happen, in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.local: float | None = None  # the time within a task, which runs in no time at all
        self.pacing: random.Random | None = None  # of tasks: one that runs again takes another time
        self._pace = 1.0  # of the task that runs
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.aio = Loop()
        self._ready = self.aio._ready  # type: ignore[attr-defined]
        self.happened = 0
        self._reads = 0  # since something happened last
        self.interrupted: int | None = None  # when the script has waited so often, there is Ctrl-C
        self.turns: Any = None  # of several threads of the script, where there are some

    def look(self) -> None:
        """Raise what Ctrl-C does, if it comes where the script waits now."""
        if self.interrupted is not None and (self.turns is None or self.turns.now is self.turns.first):
            self.interrupted -= 1
            if not self.interrupted:
                self.interrupted = None
                raise KeyboardInterrupt

    def read(self) -> float:
        """Return the time: that of the task which runs, if one does."""
        self._reads += 1
        if self._reads > 500_000:
            raise WaitsForEverError("the time is asked for again and again, and nothing happens")
        return self.now if self.local is None else self.local

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
        if when > self.now:
            self.now = when
        self.happened, self._reads = self.happened + 1, 0
        if self.happened > 200_000:
            raise WaitsForEverError("200,000 events happened, and there is no end")
        call(*arguments)
        if self._ready:
            self.in_loop(_nothing)
        return True

    def in_loop(self, call: Callable[..., object], *arguments: Any) -> None:
        """Make a call as the loop of the client does, and run the coroutines that are ready then."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.aio)
        try:
            made = call(*arguments)
            if type(made) is CoroutineType:
                self.aio.create_task(made)
            if self._ready:
                self.aio.run_ready()
        finally:
            asyncio._set_running_loop(before)

    def until(self, when: float) -> None:
        """Have all events happen up to a time."""
        if self.turns is not None:
            self.turns.sleep(when)
            return
        while self._events and self._events[0][0] <= when:
            self.step()
        self.now = max(self.now, when)

    def wait(self, there: Callable[[], bool], seconds: float = SILENCE) -> bool:
        """Have events happen until something is there, or the time is over; tell whether it is."""
        if self.turns is not None:
            self.turns.wait(there, self.now + seconds)
            return there()
        end, events = self.now + seconds, self._events
        while not there():
            if not events or events[0][0] > end:
                self.now = end
                return there()
            self.step()
        return True

    def wait_for(self, empty: Callable[[], bool], seconds: float) -> bool:
        """Do so until something is not empty any more."""
        if self.turns is not None:
            return self.wait(lambda: not empty(), seconds)
        end, events, step = self.now + seconds, self._events, self.step
        while empty():
            if not events or events[0][0] > end:
                self.now = end
                return not empty()
            step()
        return True

    def next_at(self) -> float:
        """Return when the next event is to happen; infinity if there is none."""
        return self._events[0][0] if self._events else math.inf

    def drain(self) -> None:
        """Have all events happen."""
        while self.step():
            pass

    def sleep(self, seconds: float) -> None:
        """Let time pass: in a task for it alone."""
        if self.local is not None:
            self.local += seconds
        elif seconds > 0:
            self.until(self.now + seconds)
            self.look()

    def spend(self, seconds: float) -> None:
        """Let the time pass that work takes, which a task may do faster or slower."""
        self.sleep(seconds if self.local is None else seconds * self._pace)

    def begin(self, started: float) -> float | None:
        """Be in the time of a task that begins then; return in which this was."""
        self._pace = 1.0 if self.pacing is None else self.pacing.choice(PACES)
        before, self.local = self.local, started
        return before

    @contextmanager
    def task(self, started: float) -> Iterator[None]:
        """Run a task in a time of its own."""
        before, self.local = self.local, started
        try:
            yield
        finally:
            self.local = before

    async def moment(self, seconds: float) -> None:
        """Wait in a coroutine."""
        over = self.aio.create_future()
        self.after(seconds, lambda: over.done() or over.set_result(None))
        await over

    def close(self) -> None:
        """Let go of the loop."""
        self.in_loop(lambda: None)  # what is to begin does so, and can be cancelled
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
        self._clock.at(self._last, self._clock.in_loop, call, *arguments)

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call be made in a while."""
        self._clock.after(seconds, self._clock.in_loop, call, *arguments)


class _Time:
    """The module `time`, with this clock."""

    def __init__(self, clock: Clock) -> None:
        self.perf_counter = self.monotonic = clock.read
        self.sleep = clock.sleep
        self.time = lambda: EPOCH + clock.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _readers() -> list[ModuleType]:
    """Return the modules of parcoll that have the module `time`: looked for again when others were loaded."""
    if len(sys.modules) != len(_known):
        _known[:] = sys.modules
        _found[:] = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("parcoll.") and getattr(module, "time", None) is genuine
        ]
    return _found


_known: list[str] = []
_found: list[ModuleType] = []


@contextmanager
def virtual_time(clock: Clock) -> Iterator[None]:
    """Have all modules of parcoll read this clock."""
    stand_in = _Time(clock)
    patched = list(_readers())
    for module in patched:
        module.time = stand_in  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in patched:
            module.time = genuine  # type: ignore[attr-defined]
    late = [module.__name__ for module in _readers() if module not in patched]
    assert not late, f"loaded within a story, which then has a clock that is not virtual: {late}"
