"""Which elements of a partition have their steps timed, and what that says of the whole partition.

A step of `x + 1` takes 0.03 µs and a look at the clock 0.05 µs. So cheap elements are timed a few at a
time, and their shares stand for the others; of dear ones each is timed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from parcoll.chain.loop import Chain

DEAR_SECONDS = 1e-5  # an element and step: of this the clock takes 1 %
SAMPLE = 64  # cheap elements timed together
SAMPLE_EVERY = 65536  # elements: a sample, which takes 25 µs, is 0.6 % of what a worker does for so many
LOOK_EVERY = 16384  # elements: dear ones may follow cheap ones
# A sample that took so many times what the elements after it take was interrupted, for milliseconds as a
# rule: it would put the whole partition on the account of the step that was under way.
INTERRUPTED = 3
INTERRUPTED_SECONDS = 1e-4  # less than this is no interruption
SAMPLE_PARTITIONS = 64  # where flatmap makes many of one, a partition may be no more than one element


@dataclass
class Pace:
    """What is known of a program in this worker process from the partitions before."""

    seconds: float | None = None  # that the last chunk took, for an element and step
    shares: list[float] = field(default_factory=list)  # of each step, when last timed
    partitions: int = 0


class _Sample(NamedTuple):
    pace: float
    seconds: float
    spent: list[float]  # of them in each step


class Timing:
    """Decides chunk by chunk for one partition, and adds up the seconds."""

    def __init__(self, chain: Chain, pace: Pace) -> None:
        self._chain = chain
        self._pace = pace
        self._position = 0
        self._multiplied = 1  # elements that flatmaps made of one, at most
        # Timing a first element that becomes a million would double the time of its partition.
        nests = any(step.multiplies for step in chain.steps)
        self._due = 1 if nests and pace.partitions % SAMPLE_PARTITIONS else 0  # where a sample begins
        self._timed = False
        self._sample: list[float] | None = None  # the chain's seconds before this chunk, a sample
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
        self._started = time.perf_counter()
        return size, self._timed

    def end(self, drawn: int) -> None:
        """Take in the chunk that has run."""
        seconds = time.perf_counter() - self._started
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
        """Take the sample before out of the account if it was interrupted, as this chunk's pace shows."""
        doubtful, self._doubtful = self._doubtful, None
        if doubtful is not None and doubtful.pace > INTERRUPTED * pace:
            self._timed_seconds -= doubtful.seconds
            self._untimed_seconds += doubtful.seconds
            for position, spent in enumerate(doubtful.spent):
                self._chain.seconds[position] -= spent

    def seconds(self) -> list[float]:
        """Return what each step took, and last what took the results that left them."""
        measured = self._chain.seconds
        if self._timed_seconds:
            self._pace.shares = [seconds / self._timed_seconds for seconds in measured]
        shares = self._pace.shares or [0.0] * len(measured)
        return [m + self._untimed_seconds * s for m, s in zip(measured, shares, strict=True)]
