"""Sizers that have seen partitions come back."""

from __future__ import annotations

from typing import Any

from parcoll.evaluation.sizing import Adaptive
from parcoll.worker.outcome import Outcome


def ran(sizer: Any, elements: int, seconds_each: float, bytes_each: float = 0, sent: int = 0) -> None:
    """Have the sizer see a partition that took so long, and whose results were so large."""
    outcome = Outcome(read=elements, seconds=elements * seconds_each, nbytes=int(elements * bytes_each))
    sizer.observe(outcome, sent)


def begun(limit: int | None = None) -> Adaptive:
    """Return a sizer whose first partitions are under way, one element for each of two threads."""
    sizer = Adaptive(limit)
    assert [sizer.next_size(None, 2) for _ in range(2)] == [1, 1]
    return sizer


def after(elements: int, seconds_each: float, bytes_each: float = 0) -> Adaptive:
    """Return a sizer that has seen its first partition, and one more."""
    sizer = begun()
    ran(sizer, 1, seconds_each, bytes_each)
    ran(sizer, elements, seconds_each, bytes_each)
    return sizer
