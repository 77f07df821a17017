"""How many elements the next partition takes."""

from __future__ import annotations

from typing import Protocol

from parcoll.outcome import Outcome

TARGET_SECONDS = 0.2  # a task costs the scheduler and the client 2 to 4 ms: 1 to 2 % of this
TARGET_BYTES = 4 * 2**20  # packed elements, or packed results, of one partition
MAX_ELEMENTS = 2**17
GROWTH = 64  # 1, 64, 4096, 131072: three round trips of 15 ms to the largest
LAST_SECONDS = 0.03  # partitions shrink towards the end of a sized source, down to this
BUDGET_SECONDS = 4 * TARGET_SECONDS  # after this a worker hands back what it has not begun
SMALLEST_TIME = 1e-8  # seconds an element; below it the clock says nothing


class Sizer(Protocol):
    """Decides partition sizes from what the partitions before took."""

    exact: bool  # a partition is filled to its size, however long its source takes
    budget: float | None  # seconds after which a worker hands back what it has not begun

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return the size of the next partition; `remaining` elements are left where that is known."""

    def window(self, threads: int) -> int:
        """Return how many partitions may be under way or waiting for the consumer."""

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Learn from a partition that has run."""


def _window(threads: int) -> int:
    # Two a thread keep the workers busy while the first result travels; as many again let them go
    # on while one slow partition holds back those behind it.
    return 4 * threads + 2


class Fixed:
    """The same number of elements in every partition: `partition_size=1000`."""

    exact = True
    budget: float | None = None

    def __init__(self, size: int) -> None:
        self._size = size

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return the fixed size."""
        return self._size

    def window(self, threads: int) -> int:
        """Return a constant number of partitions a thread."""
        return _window(threads)

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Learn nothing."""


class Adaptive:
    """Sizes by time and bytes: `partition_size="auto"`.

    The first partitions have one element, so that a slow function's first result comes at once. They
    grow as fast as results come back; towards the end of a sized source they shrink, so that the
    workers finish together (guided self-scheduling, Polychronopoulos and Kuck 1987).
    """

    exact = False
    budget: float | None = BUDGET_SECONDS

    def __init__(self) -> None:
        self._largest = 0  # elements of the largest partition that has come back
        self._seconds = SMALLEST_TIME  # an element takes
        self._bytes = 0.0  # an element takes, sent or received, whichever is more

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return a size that should take `TARGET_SECONDS` and not more than `TARGET_BYTES`."""
        if not self._largest:
            return 1
        size = min(self._largest * GROWTH, self._wanted())
        if remaining is not None:
            last = max(-(-remaining // (2 * threads)), int(LAST_SECONDS / self._seconds))
            size = min(size, last)
        return max(size, 1)

    def _wanted(self) -> int:
        wanted = min(int(TARGET_SECONDS / self._seconds), MAX_ELEMENTS)
        return min(wanted, int(TARGET_BYTES / self._bytes)) if self._bytes else wanted

    def window(self, threads: int) -> int:
        """Return a smaller window while partitions grow: those ahead delay the first of the next size."""
        growing = self._largest * GROWTH < self._wanted()
        return 2 * threads if growing else _window(threads)

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Follow slower and larger elements at once, faster and smaller ones by halves."""
        if not outcome.read:
            return
        self._largest = max(self._largest, outcome.read)
        self._seconds = _follow(self._seconds, max(outcome.seconds / outcome.read, SMALLEST_TIME))
        self._bytes = _follow(self._bytes, max(sent_bytes, outcome.nbytes) / outcome.read)


def _follow(estimate: float, seen: float) -> float:
    return seen if seen >= estimate else (estimate + seen) / 2


def sizer_for(partition_size: int | str) -> Sizer:
    """Return the sizer for a checked `partition_size` argument."""
    return Adaptive() if isinstance(partition_size, str) else Fixed(partition_size)
