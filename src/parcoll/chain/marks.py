"""Marks: the element that a process is at, written into memory that outlives the process.

A process that dies, or has to be stopped, cannot say what it was doing. So before each call of a user's
function, its place is written into memory that another process maps too, which costs 0.5 µs.
"""

from __future__ import annotations

import contextlib
import copy
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import Any, NamedTuple

from parcoll.chain.apart import clock
from parcoll.chain.failures import stands_between
from parcoll.chain.steps import Step
from parcoll.chain.tally import Tally
from parcoll.clock import time
from parcoll.text import function_name

monotonic = time.monotonic  # called for each element that has a timeout
LOADING, RUNNING, PACKING = range(3)  # phases of a piece of work
SETTING_UP = 3  # what no work of the user's does
MAKING = 4  # an object that outlives the work: nor is that a call's doing
MOST_TEXT = 200  # bytes of the name of such an object
NOWHERE = -1  # no function has been called yet
SEVERAL = -1  # the number of a call with several elements, of which the last one is named


class Call(NamedTuple):
    """One call of a step's function. It is equal when the same elements go through the chain again."""

    base: int  # the index of the source element
    step: int
    number: int  # of this step's calls for the source element, of which a flatmap before it makes many


class Mark(NamedTuple):
    """What a process was at when it died."""

    phase: int
    call: Call
    attempt: int  # with this call, from 1
    drawn: int  # if it packs results: the index of the source element behind the last one drawn
    making: str = ""  # the name of an object that it makes

    @property
    def is_apart(self) -> bool:
        """Whether it was at what no call is to be blamed for."""
        return self.phase in (SETTING_UP, MAKING)


class Precedent(NamedTuple):
    """What to do at a call that has ended processes: fail with `error`, or try again if it is None."""

    attempts: int
    error: Exception | None


Precedents = Mapping[Call, Precedent]


class Marks:
    """The memory that a process writes into and its parent reads."""

    def __init__(self, descriptor: int) -> None:
        page = memoryview(mmap.mmap(descriptor, mmap.PAGESIZE))
        self.numbers = page[:64].cast("q")  # phase, base, step, number, attempt, drawn, size
        self.times = page[64:72].cast("d")  # when the call has to be over, by the monotonic clock
        self._text = page[72 : 72 + MOST_TEXT]
        self._thread = threading.get_ident()  # that makes the calls

    @staticmethod
    def new_memory() -> int:
        """Return the descriptor of new memory, which is on no disk if the system has such memory."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("parcoll-marks")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.truncate(descriptor, mmap.PAGESIZE)
        return descriptor

    def begin(self, phase: int) -> None:
        """Note the phase; no function has been called in it yet."""
        self.numbers[0], self.numbers[1], self.numbers[5] = phase, NOWHERE, 0
        self.times[0] = math.inf

    def setting_up(self) -> contextlib.AbstractContextManager[None]:
        """Have no call be stopped for the time that the block takes, or blamed where it ends the process."""
        return self._apart(SETTING_UP)

    def making(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Do the same while an object is made, whose name tells what the process was at."""
        text = what.encode(errors="replace")[:MOST_TEXT]
        self._text[:] = text.ljust(MOST_TEXT, b"\0")
        return self._apart(MAKING)

    @contextlib.contextmanager
    def _apart(self, at: int) -> Iterator[None]:
        if threading.get_ident() != self._thread:
            yield
            return
        started = monotonic()
        phase, self.numbers[0] = self.numbers[0], at
        deadline, self.times[0] = self.times[0], math.inf
        try:
            yield
        finally:
            self.numbers[0], self.times[0] = phase, deadline + monotonic() - started

    @property
    def size(self) -> int:
        """How many bytes of memory the process had when it was set up."""
        return self.numbers[6]

    @property
    def deadline(self) -> float:
        """When the call under way has to be over, by the monotonic clock."""
        return self.times[0]

    def read(self) -> Mark:
        """Return what the process is at."""
        phase, base, step, number, attempt, drawn = self.numbers[:6]
        making = bytes(self._text).rstrip(b"\0").decode(errors="replace") if phase == MAKING else ""
        return Mark(phase, Call(base, step, number), attempt, drawn, making)


class Lanes:
    """The threads of a process that make calls, each with marks of its own."""

    def __init__(self, marks: Marks) -> None:
        self._main = marks
        self._own = threading.local()

    def enter(self, marks: Marks) -> None:
        """Have this thread be one of them."""
        self._own.marks = marks

    @property
    def here(self) -> Marks:
        """Those of this thread; of threads that functions have started, the main thread's."""
        return getattr(self._own, "marks", self._main)

    @property
    def within(self) -> bool:
        """Whether this thread is one of them."""
        return hasattr(self._own, "marks") or threading.current_thread() is threading.main_thread()


class Marked:
    """A step's function that notes each call before it is made, or fails if there is a precedent for it."""

    def __init__(
        self,
        step: Step,
        position: int,
        marks: Marks,
        precedents: Precedents,
        tally: Tally,
    ) -> None:
        self.__name__ = function_name(step.func)
        self.attempts = 1  # with the call made last
        self._tally = tally
        self._func = self.function_of(step)
        self._step = position
        timeout = step.policy.timeout
        self._timeout = math.inf if timeout is None else timeout
        self._numbers, self._times = marks.numbers, marks.times
        self._precedents = precedents
        self._base, self._number = NOWHERE, 0

    def function_of(self, step: Step) -> Callable[..., Any]:
        """Return the function that is called."""
        return step.call

    def __call__(self, element: Any) -> Any:
        """Call the function for the first time with an element."""
        # The usual case, written out: calls of `_arrive` and `_note` would be most of what a timeout costs.
        tally, numbers = self._tally, self._numbers
        base = tally.after - length_hint(tally.iterator) - 1
        if base == self._base or self._precedents or self.attempts != 1:
            self._arrive(base)
            self._note(self._timeout)
        else:
            self._base, self._number = base, 0
            numbers[1], numbers[2], numbers[3], numbers[4] = base, self._step, 0, 1
            self._times[0] = monotonic() + self._timeout
        try:
            return self._func(element)
        finally:
            self._times[0] = math.inf

    def again(self, element: Any) -> Any:
        """Call the function once more with the same element."""
        self.attempts += 1
        self._note(self._timeout)
        try:
            return self._func(element)
        finally:
            self._times[0] = math.inf

    def _arrive(self, base: int) -> None:
        self._number = self._number + 1 if base == self._base else 0
        self._base = base
        self.attempts = 1
        precedent = self._precedents.get(Call(base, self._step, self._number)) if self._precedents else None
        if precedent is None:
            return
        if precedent.error is not None:
            self.attempts = precedent.attempts
            self._note(math.inf)  # to describe the element may end the process too
            self._tally.tried_before(self._step, precedent.attempts - 1)
            raise precedent.error
        self.attempts = precedent.attempts + 1
        self._tally.tried_before(self._step, precedent.attempts)

    def _note(self, seconds: float) -> None:
        numbers = self._numbers
        numbers[1], numbers[2], numbers[3], numbers[4] = self._base, self._step, self._number, self.attempts
        self._times[0] = monotonic() + seconds


class MarkedTogether(Marked):
    """The function for several elements: it is called with them unless that has ended a process."""

    def function_of(self, step: Step) -> Callable[..., Any]:
        """Return the function for several."""
        assert step.together is not None
        return step.together

    def __call__(self, elements: list[Any]) -> Any:
        """Call the function, if it may be called with these elements together."""
        tally, numbers = self._tally, self._numbers
        base = tally.after - length_hint(tally.iterator) - 1
        if Call(base, self._step, SEVERAL) in self._precedents:
            raise TogetherError
        self._base, self._number = base, SEVERAL
        self._note(self._timeout)
        numbers[5] = base + 1
        try:
            return self._func(elements)
        finally:
            self._times[0] = math.inf


class TogetherError(Exception):
    """These elements cannot be taken together: that has ended a process."""


class MarkedDraw(Marked):
    """The same for the function of a flatmap: each draw of what it returned is part of the call."""

    def __call__(self, element: Any) -> Iterator[Any]:
        """Call the function, and note each draw."""
        tally = self._tally
        self._arrive(tally.after - length_hint(tally.iterator) - 1)
        return _Draw(self, element)

    def again(self, element: Any) -> Iterator[Any]:
        """Call the function once more with the same element."""
        self.attempts += 1
        return _Draw(self, element)


class _Draw:
    """An iterator that is timed while it is drawn from, but not while the steps after it work."""

    def __init__(self, marked: MarkedDraw, element: Any) -> None:
        self._marked = marked
        self._place = marked._base, marked._number, marked.attempts
        self._left = marked._timeout
        self._drawn = self._timed(lambda: iter(marked._func(element)))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._timed(self._drawn.__next__)

    def _timed(self, call: Callable[[], Any]) -> Any:
        marked = self._marked
        marked._base, marked._number, marked.attempts = self._place
        started = clock()
        marked._note(max(self._left, 0.0))
        try:
            return call()
        finally:
            marked._times[0] = math.inf
            self._left -= clock() - started


class Counting:
    """The function of a sink: notes how often it was called, and when a call has to be over."""

    def __init__(self, func: Any, step: int, marks: Marks, timeout: float | None) -> None:
        self.__name__ = function_name(func)
        self._func = func
        self._step = step
        self._numbers, self._times = marks.numbers, marks.times
        self._timeout = math.inf if timeout is None else timeout
        self._calls = -1
        self._numbers[1], self._numbers[3], self._numbers[4] = 0, 0, 1

    def __call__(self, *values: Any) -> Any:
        """Call the function."""
        self._calls += 1
        self._numbers[0], self._numbers[2], self._numbers[3] = RUNNING, self._step, self._calls
        self._times[0] = monotonic() + self._timeout
        try:
            return self._func(*values)
        finally:
            self._times[0] = math.inf


def marked(
    steps: Sequence[Step], marks: Marks, precedents: Precedents, tally: Tally, alone: bool = True
) -> list[Step]:
    """Return the steps with functions that note their calls; `tally` is that of the chain made of them.

    Steps that make several calls at the same time then make them one by one. Unless elements run `alone`,
    these steps stay as they are, and note nothing.
    """
    made = []
    for position, step in enumerate(steps):
        if step.waits and not alone:
            made.append(step)
            continue
        kind = MarkedDraw if step.multiplies else Marked
        noting = copy.copy(step)
        noting.func = kind(step, position, marks, precedents, tally)
        if step.together is not None:
            noting.together = MarkedTogether(step, position, marks, precedents, tally)
        made.append(noting)
    return made


stands_between(Marked.again.__code__.co_filename)
