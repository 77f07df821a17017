"""Timing: which elements of a partition have their steps timed, and what that says of the whole partition.

A step of `x + 1` takes 0.03 µs, and a look at the clock 0.05 µs. So of cheap elements only samples are timed,
some elements at a time, and their shares stand for the others. Dear elements are all timed.

Also what an element takes, as far as partitions have told, and how long it took when the same functions ran
last in this process. A first evaluation has to find
out. The next one of the same functions sends a short source at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.chain.apart import clock
from parcoll.chain.loop import Chain
from parcoll.chain.steps import Step

DEAR_SECONDS = 1e-5  # for each element and step; the clock takes 1 % of it
SAMPLE = 64  # cheap elements timed together
SAMPLE_EVERY = 65536  # elements; a sample takes 25 µs, 0.6 % of a worker's time for so many
LOOK_EVERY = 16384  # elements of an untimed chunk, at most: dear elements may follow cheap ones
# If a sample took so many times as long as the elements after it, the system had interrupted it, as a rule
# for milliseconds. Its shares would put the time of the whole partition on the step that was under way.
INTERRUPTED = 3
INTERRUPTED_SECONDS = 1e-4  # less than this is no interruption
SAMPLE_PARTITIONS = 64  # if a flatmap makes many elements of one, a partition may be a single element


@dataclass
class Pace:
    """What a worker process knows of a program from the partitions that it has run."""

    seconds: float | None = None  # of the last chunk, for each element and step
    shares: list[float] = field(default_factory=list)  # of each step, when last timed
    partitions: int = 0


class _Sample(NamedTuple):
    pace: float
    seconds: float
    spent: list[float]  # of them in each step


class Timing:
    """Decides for each chunk of one partition whether it is timed, and adds up the seconds."""

    def __init__(self, chain: Chain, pace: Pace) -> None:
        self._chain = chain
        self._pace = pace
        self._position = 0
        self._multiplied = 1  # the most elements that the flatmaps made of one
        # Timing a first element that becomes a million would double the time of its partition.
        nests = any(step.multiplies for step in chain.steps)
        self._due = 1 if nests and pace.partitions % SAMPLE_PARTITIONS else 0  # the start of the next sample
        self._timed = False
        self._sample: list[float] | None = None  # the chain's seconds before this chunk, if it is a sample
        self._doubtful: _Sample | None = None  # the chunk before, if it may have been interrupted
        self._timed_seconds = self._untimed_seconds = self._started = 0.0
        pace.partitions += 1

    def begin(self, size: int) -> tuple[int, bool]:
        """Return how many elements the next chunk takes, at most `size`, and whether they are timed."""
        pace = self._pace.seconds
        self._timed = self._position >= self._due or (pace or 0.0) >= DEAR_SECONDS
        self._sample = None
        if pace is None:
            size = 1
        elif pace < DEAR_SECONDS:
            sample = max(1, SAMPLE // self._multiplied)
            size = min(size, sample if self._timed else LOOK_EVERY)
            if self._timed:
                self._sample = self._chain.seconds[:]
                if self._position + size >= self._due + sample:
                    self._due = self._position + SAMPLE_EVERY
        self._started = clock()
        return size, self._timed

    def end(self, drawn: int) -> None:
        """Take in a chunk that has run; `drawn` is how many elements it took."""
        seconds = clock() - self._started
        self._position += drawn
        if self._timed:
            self._timed_seconds += seconds
        else:
            self._untimed_seconds += seconds
        if drawn:
            passed = max(self._chain.tally.passed.values(), default=0)
            self._multiplied = max(1, passed // self._position)
            pace = seconds / (drawn * self._multiplied * (len(self._chain.steps) + 1))
            self._check(pace)
            if self._sample is not None and seconds > INTERRUPTED_SECONDS:
                spent = [after - b for after, b in zip(self._chain.seconds, self._sample, strict=True)]
                self._doubtful = _Sample(pace, seconds, spent)
            self._pace.seconds = pace

    def _check(self, pace: float) -> None:
        """Take the sample before this chunk out of the account if this pace shows that it was interrupted."""
        doubtful, self._doubtful = self._doubtful, None
        if doubtful is not None and doubtful.pace > INTERRUPTED * pace:
            self._timed_seconds -= doubtful.seconds
            self._untimed_seconds += doubtful.seconds
            for position, spent in enumerate(doubtful.spent):
                self._chain.seconds[position] -= spent

    def seconds(self) -> list[float]:
        """Return the seconds of each step, and last those of the consumer of the results."""
        measured = self._chain.seconds
        if self._timed_seconds:
            self._pace.shares = [seconds / self._timed_seconds for seconds in measured]
        shares = self._pace.shares or [0.0] * len(measured)
        return [m + self._untimed_seconds * s for m, s in zip(measured, shares, strict=True)]


SURER = 4  # a partition of so many times the elements is believed at once


class Estimate:
    """What one element takes: the most seen lately, if it was worth measuring."""

    def __init__(self, value: float, negligible: float) -> None:
        self.value = value
        self._negligible = negligible  # for a partition: less is mostly the cost of any partition
        self._elements = 0  # of the partition that the value is from, or of a larger one since
        self._few = self._of_few = 0.0  # elements of partitions much smaller than that, and what they took

    def see(self, value: float, elements: int) -> None:
        """Take in the mean over a partition; the mean of one element says little of a million."""
        much_larger = elements >= SURER * self._elements
        much_smaller = elements * SURER <= self._elements
        if much_larger or (value >= self.value and (not much_smaller or value * elements > self._negligible)):
            # Also if it is of few elements: those that follow are no more, and may be quick again.
            self.value, self._elements = value, elements
        elif not much_smaller:
            self.value, self._elements = (self.value + value) / 2, max(self._elements, elements)
        else:
            self._few, self._of_few = self._few + elements, self._of_few + elements * value
            if self._few * SURER <= self._elements:
                return
            self.see(self._of_few / self._few, int(self._few))  # many small partitions are as good as one
        self._few = self._of_few = 0.0


ATOMS = frozenset((int, float, bool, str, type(None)))
MOST_HELD, MOST_TEXT = 8, 100  # values that a function may hold, and characters of one
MOST = 256  # rows of functions that are remembered, the last ones

# Of an element, by the functions that it went through; and in a small part of a batch, where that was seen.
_seconds: dict[tuple[Hashable, ...], tuple[float, float | None]] = {}


def remembered(steps: Sequence[Step]) -> float | None:
    """Return the seconds that an element took; None if these functions did not run, or nobody can tell."""
    return _known(steps)[0]


def remembered_of_few(steps: Sequence[Step]) -> float | None:
    """Return the seconds that an element took in a small part of a batch; None if nobody can tell."""
    return _known(steps)[1]


def _known(steps: Sequence[Step]) -> tuple[float | None, float | None]:
    functions = name_of(steps)
    return (None, None) if functions is None else _seconds.get(functions, (None, None))


def remember(steps: Sequence[Step], seconds: float, of_few: float | None = None) -> None:
    """Note the seconds that an element took."""
    functions = name_of(steps)
    if functions is None:
        return
    _seconds.pop(functions, None)
    _seconds[functions] = seconds, of_few
    while len(_seconds) > MOST:
        _seconds.pop(next(iter(_seconds)), None)


def name_of(steps: Sequence[Step]) -> tuple[Hashable, ...] | None:
    """Return what stands for these steps in any process; None for functions that hold data of their own."""
    names = tuple((step.kind, _name(step.func), *_sizes(step)) for step in steps)
    return None if any(name is None for _, name, *_ in names) else names


def _sizes(step: Step) -> tuple[Hashable, ...]:
    """Return what a step was given beside its function that may make it fast or slow."""
    return tuple(value for value in step.arguments.values() if type(value) in ATOMS)


def _name(func: Callable[..., Any] | None) -> Hashable | None:
    """Return what stands for a function, without holding it; None for one that holds data of its own.

    Data may make it fast or slow; a few numbers and short texts are told apart by their values. A lambda is
    another object each time that its line runs, and has the same code.
    """
    if func is None:
        return "itself"
    if isinstance(func, FunctionType):
        cells = () if func.__closure__ is None else tuple(map(_content, func.__closure__))
        held = (*cells, *(func.__defaults__ or ()), *(func.__kwdefaults__ or {}).values())
        return _with(func.__code__, held)
    if type(func) is functools.partial:
        name = _name(func.func)
        return (
            None
            if name is None
            else _with((name, tuple(func.keywords)), (*func.args, *func.keywords.values()))
        )
    of_module = isinstance(func, BuiltinFunctionType) and isinstance(func.__self__, ModuleType)
    return (func.__module__, func.__qualname__) if of_module or isinstance(func, type) else None


def _with(name: Hashable, held: tuple[Any, ...]) -> Hashable | None:
    if len(held) > MOST_HELD or not all(type(value) in ATOMS for value in held):
        return None
    if any(isinstance(value, str) and len(value) > MOST_TEXT for value in held):
        return None
    return (name, *held) if held else name


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty so far
        return cell
