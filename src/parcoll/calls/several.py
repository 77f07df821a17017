"""Several: the calls that one task makes at the same time, in threads or in the loop of `coroutines`.

Only the calls themselves run elsewhere. All that is counted and told of them is told in the task's own
thread, in the order of the elements.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Protocol

from parcoll.calls import coroutines, objects
from parcoll.calls.rates import Pace, Rate
from parcoll.chain.failures import late, stands_between
from parcoll.chain.guard import Guard
from parcoll.chain.policy import pause
from parcoll.chain.steps import SKIP, Share
from parcoll.clock import time
from parcoll.system import Inbox
from parcoll.wire.script import owned_by, owner
from parcoll.world.world import CallContext

# Elements that were drawn and whose results are not given yet, for each call at a time. So a call that takes
# long holds up no others.
HELD = 4
CANCEL_SECONDS = 5.0  # for cancelled coroutines to end; one that goes on is left alone


class Callee(Protocol):
    """What makes a call: a step."""

    is_async: bool
    seconds: float | None  # for a call, if it is async
    rate: Rate | None
    share: Share
    pace: Pace | None

    @property
    def label(self) -> str:
        """The step as a user wrote it."""

    def at_once(self, parts: int) -> int:
        """Return how many calls are made at the same time."""

    def make(self, element: Any, given: list[Any]) -> None:
        """Make a call, and add what goes on to `given`."""

    async def await_one(self, element: Any, given: list[Any]) -> Any:
        """Await a call, and return its result; add the elements of what multiplies to `given`."""

    async def make_async(self, element: Any, given: list[Any]) -> None:
        """Await a call, and add what goes on to `given`."""


def one(step: Callee, element: Any) -> Any:
    """Return the result of one call of an `async def` function, when it is done."""
    return coroutines.result(_awaited(step, element))


async def _awaited(step: Callee, element: Any) -> Any:
    try:
        async with asyncio.timeout(step.seconds) as limit:
            coroutines.limit.set(limit)
            return await step.await_one(element, [])
    except TimeoutError:
        if step.seconds is not None and limit.expired():
            raise late(step.label, step.seconds, "an element") from None
        raise


class _Call:
    """An element, and what became of the calls that were made with it."""

    __slots__ = ("attempts", "element", "ended", "error", "given", "offset", "own", "timeouts")

    def __init__(self, element: Any, offset: int) -> None:
        self.element = element
        self.offset = offset
        self.given: list[Any] = []  # what goes on
        self.error: BaseException | None = None  # after that
        self.own: BaseException | None = None  # what `retry_on` raised when it was asked
        self.attempts = 0
        self.timeouts = 0
        self.ended = False  # as the task knows


class Calls:
    """The calls of one step that one task makes. Only `_make` runs elsewhere than in the task's thread."""

    def __init__(self, step: Callee, guard: Guard) -> None:
        self._step = step
        self._guard = guard
        self._pace = step.pace or (None if step.rate is None else Pace(step.rate, step.share))
        self._at_once = step.at_once(step.share.parts)
        self._open = 0  # calls that have begun and have not ended
        self._handed: _Call | None = None  # one of a rate that has not started yet: the next one waits for it
        self._ended: Inbox[_Call | None] = Inbox()  # None has the task look at `_closing`
        self._closing = threading.Event()
        guard.ends(self._abandon)

    def results(self, elements: Iterator[Any]) -> Iterator[Any]:
        """Give what goes on of each element, in their order."""
        held: deque[_Call] = deque()
        more = True
        while not self._closing.is_set():
            seconds = 0.0
            while more and self._open < self._at_once and len(held) < HELD * self._at_once:
                seconds = self._until_next()
                if seconds:
                    break
                try:
                    call = _Call(*self._guard.draw_next(elements))
                except StopIteration:
                    more, seconds = False, 0.0
                    break
                held.append(call)
                self._open += 1
                self._handed = call if self._pace is not None else None
                self._start(call)
            if held and held[0].ended:
                yield from self._settled(held.popleft())
                self._note(0.0)
            elif self._open or seconds:
                self._note(seconds or math.inf)
            elif not more:
                return

    def _until_next(self) -> float:
        """Return the seconds until the next call may start; infinity if it waits for another to start."""
        if self._pace is None:
            return 0.0
        return self._pace.left() if self._handed is None else math.inf

    def _until_start(self, call: _Call) -> float:
        """Return 0.0 if a call may start now, and it must then; else the seconds after which to ask again."""
        seconds = 0.0 if self._pace is None else self._pace.take()
        if not seconds and self._handed is call:
            self._handed = None
            self._ended.put(None)
        return seconds

    def _note(self, seconds: float) -> None:
        """Note which calls have ended; wait for one, at most so long."""
        with contextlib.suppress(Empty):
            ended = self._ended.get(seconds)
            while True:
                if ended is not None:
                    ended.ended = True
                    self._open -= 1
                ended = self._ended.get_nowait()

    def _settled(self, call: _Call) -> Iterator[Any]:
        """Give what goes on of an element that is done, and tell what became of it."""
        guard, given = self._guard, call.given
        guard.at(call.offset)
        guard.tried(call.attempts, call.timeouts)
        given.reverse()
        while given:
            yield given.pop()
            guard.at(call.offset)
        if call.error is not None:
            error, call.error = call.error, None  # which refers to the call, through its traceback
            value = guard.failed(error, call.element, call.attempts, call.own)
            if value is not SKIP:
                yield value

    def _abandon(self) -> None:
        self._closing.set()
        self._stop()
        self._ended.put(None)

    def end(self, waits: bool = True) -> None:
        """Begin no more calls, and wait until those have ended that have begun."""
        self._closing.set()
        self._stop()
        seconds = CANCEL_SECONDS if self._step.is_async else math.inf
        deadline = time.monotonic() + seconds
        while waits and self._open and time.monotonic() < deadline:
            self._note(seconds)
        self._leave()

    def _again(self, call: _Call, error: BaseException) -> float | None:
        """Return after how many seconds a call is to be made again; None if the element has failed."""
        try:
            worth_it = not call.given and self._guard.is_worth_it(error, call.attempts)
        except BaseException as own:
            call.own, worth_it = own, False
        if worth_it:
            return pause(call.attempts)
        call.error = error
        return None

    def _start(self, call: _Call) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        """Have the calls that have begun end soon."""

    def _leave(self) -> None:
        """Let go of what the calls were made with."""


class _Caller(threading.Thread):
    """A thread that makes calls. It ends with its task, unless it has objects of its own (`per_worker`).

    Then it waits for the next task, which has use for them, and ends with the last of them.
    """

    idle: ClassVar[list[_Caller]] = []  # those that wait for a task
    lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, number: int) -> None:
        super().__init__(name=f"parcoll-call-{number}", daemon=True)
        self._jobs: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._is_over = False

    @classmethod
    def begin(cls, number: int, job: Callable[[], object]) -> None:
        """Have a thread do a job: one that waits, or a new one."""
        with cls.lock:
            if cls.idle:
                cls.idle.pop()._jobs.put(job)
                return
        caller = cls(number)
        caller._jobs.put(job)
        caller.start()

    def run(self) -> None:
        """Do one job after the other."""
        self._jobs.get()()
        while self._waits():
            self._jobs.get()()

    def _waits(self) -> bool:
        with self.lock:
            if self in self.idle:  # it has ended an object meanwhile
                self.idle.remove(self)
            if not self._jobs.empty():
                return True
            if objects.of_thread(self):
                self.idle.append(self)
                return True
            self._is_over = True
            return False

    def end_object(self, end: Callable[[], object]) -> threading.Event | None:
        """Have this thread end an object, once it is free; return what tells when. None if it is over."""
        ended = threading.Event()

        def job() -> None:
            try:
                end()
            finally:
                ended.set()

        with self.lock:
            if self._is_over:
                return None
            self._jobs.put(job)
            return ended


def _forget() -> None:
    """In a fork, which has none of these threads."""
    _Caller.idle.clear()
    _Caller.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class InThreads(Calls):
    """Calls of a plain function, in threads that make those of one task at a time."""

    def __init__(self, step: Callee, guard: Guard) -> None:
        super().__init__(step, guard)
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = 0
        self._owner = owner()
        self._context = CallContext()

    def _start(self, call: _Call) -> None:
        self._waiting.put(call)
        if self._open > self._threads:
            self._threads += 1
            _Caller.begin(self._threads, self._work_for_owner)

    def _work_for_owner(self) -> None:
        with owned_by(self._owner):
            self._context.run(self._work)

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            try:
                if not self._closing.is_set():
                    self._make(call)
            except BaseException as error:
                call.error = error
            self._ended.put(call)

    def _make(self, call: _Call) -> None:
        seconds: float | None = self._until_start(call)
        while seconds is not None:
            while seconds:
                if self._closing.wait(seconds):
                    return
                seconds = self._until_start(call)
            call.attempts += 1
            try:
                self._step.make(call.element, call.given)
                return
            except BaseException as error:
                seconds = self._again(call, error)

    def _leave(self) -> None:
        for _ in range(self._threads):
            self._waiting.put(None)


class InLoop(Calls):
    """Calls of an `async def` function."""

    def __init__(self, step: Callee, guard: Guard) -> None:
        super().__init__(step, guard)
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = CallContext()

    def _start(self, call: _Call) -> None:
        coroutines.call_soon(self._begin, call, context=self._context.copy())

    def _begin(self, call: _Call) -> None:
        if self._closing.is_set():
            self._ended.put(call)
            return
        task = asyncio.get_running_loop().create_task(self._make(call))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._done, call))

    def _done(self, call: _Call, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            call.error = asyncio.CancelledError("the event loop of this process has ended")
        else:
            call.error = call.error or task.exception()
        self._ended.put(call)

    async def _make(self, call: _Call) -> None:
        seconds: float | None = self._until_start(call)
        while seconds is not None:
            while seconds:
                await asyncio.sleep(seconds)
                seconds = self._until_start(call)
            call.attempts += 1
            try:
                await self._within_time(call)
                return
            except BaseException as error:
                seconds = None if self._closing.is_set() else self._again(call, error)

    async def _within_time(self, call: _Call) -> None:
        seconds = self._step.seconds
        if seconds is None:
            await self._step.make_async(call.element, call.given)
            return
        try:
            async with asyncio.timeout(seconds) as limit:
                coroutines.limit.set(limit)
                await self._step.make_async(call.element, call.given)
        except TimeoutError:
            if not limit.expired():
                raise
            call.timeouts += 1
            raise self._guard.late(call.offset, seconds) from None

    def _stop(self) -> None:
        coroutines.call_soon(self._cancel)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


stands_between(InThreads._make.__code__.co_filename)
