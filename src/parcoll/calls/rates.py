"""Rates: when a call may start, and which part of an evaluation's limits each of its tasks has."""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import NamedTuple

from parcoll.chain.steps import WHOLE, Share
from parcoll.clock import time


class Rate(NamedTuple):
    """No more than `calls` starts in any `seconds`."""

    calls: int
    seconds: float

    def interval(self, parts: int) -> float:
        """Return the seconds between two starts of a task that has one of so many parts."""
        return self.seconds / max(self.calls // parts, 1)


class Shares:
    """The parts of one evaluation's limits that its tasks have: together never more than the whole.

    What a task has is given before it is sent, and is free again when its outcome has come. So it does not
    matter which worker runs the task, nor how many workers there are by then.
    """

    def __init__(self, limit: int | None) -> None:
        """`limit` is into how many parts the whole may be cut; None if there is nothing to share out."""
        self._limit = limit
        self._given = Fraction(0)
        self._fresh = True  # no part has been given back

    def parts(self, threads: int) -> int:
        """Return into how many parts the whole is cut for so many threads."""
        return threads if self._limit is None else min(threads, self._limit)

    def left(self, parts: int) -> float:
        """Return how many parts of this size are free; infinity if nothing is shared out."""
        return math.inf if self._limit is None else (1 - self._given) * parts // 1

    def give(self, parts: int) -> Share:
        """Return a part that is free."""
        if self._limit is None:
            return WHOLE
        self._given += Fraction(1, parts)
        return Share(parts, self._fresh)

    def take_back(self, share: Share) -> None:
        """Have a part free again."""
        if self._limit is not None:
            self._given -= Fraction(1, share.parts)
            self._fresh = False


class Pace:
    """Spaces the starts of one task's calls evenly, on this machine's clock. Any thread may ask it."""

    def __init__(self, rate: Rate, share: Share) -> None:
        """Let the first call start at once if the share is `fresh`, else when the one before is over."""
        self._seconds = rate.interval(share.parts)
        self._lock = threading.Lock()
        self._next = time.monotonic() + (0.0 if share.fresh else self._seconds)

    def left(self) -> float:
        """Return the seconds until a call may start; 0 if it may now."""
        return max(self._next - time.monotonic(), 0.0)

    def take(self) -> float:
        """Return 0 if a call may start now, and then it has; else the seconds after which to ask again."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return self._next - now
            self._next = now + self._seconds
            return 0.0
