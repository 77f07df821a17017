"""Apart: the time that a thread spends on objects which outlive its work. It is no element's time.

`calls.per_workers` makes such objects. The clock of this module stands still meanwhile, so that they count
neither as a step's time nor towards the sizes of partitions.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from parcoll.clock import time


class Made(NamedTuple):
    """An object that was made."""

    label: str
    seconds: float
    name: str  # by which it is told from others of the same label


used = False  # whether this process has anything that is made so: else the loops read Python's own clock
_made: deque[Made] = deque()  # since it was asked last


class _Thread(threading.local):
    seconds = 0.0  # spent apart


_thread = _Thread()


def clock() -> float:
    """Return the seconds of this thread, of which only differences mean anything."""
    return time.perf_counter() - _thread.seconds


def spend(seconds: float) -> None:
    """Take seconds out of this thread's time."""
    _thread.seconds += seconds


def note(made: Made) -> None:
    """Note that something was made."""
    _made.append(made)


def taken() -> list[Made]:
    """Return what was made in this process since the last call, in whichever thread."""
    found = []
    while _made:
        found.append(_made.popleft())
    return found
