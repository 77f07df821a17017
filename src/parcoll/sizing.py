"""How many elements the next partition takes."""

from __future__ import annotations

from typing import Protocol

from parcoll.outcome import Outcome

TARGET_SECONDS = 0.2  # a task costs the scheduler and the client 2 to 4 ms: 1 to 2 % of this
TARGET_BYTES = 4 * 2**20  # packed elements, or packed results, of one partition
MAX_ELEMENTS = 2**17
GROWTH = 16  # 1, 16, 256, 4096, 65536: five round trips to the largest
BUDGET_SECONDS = 4 * TARGET_SECONDS  # after this a worker hands back what it has not begun
SMALLEST_TIME = 1e-8  # seconds an element; below it the clock says nothing


class Sizer(Protocol):
    """Decides partition sizes from what the partitions before took."""

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

    budget: float | None = BUDGET_SECONDS

    def __init__(self) -> None:
        self._largest = 0  # elements of the largest partition that has come back
        self._seconds = SMALLEST_TIME  # an element takes
        self._bytes = 0.0  # an element takes, sent or received, whichever is more

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return a size that should take `TARGET_SECONDS` and not more than `TARGET_BYTES`."""
        if not self._largest:
            return 1
        size = min(self._largest * GROWTH, int(TARGET_SECONDS / self._seconds), MAX_ELEMENTS)
        if self._bytes:
            size = min(size, int(TARGET_BYTES / self._bytes))
        if remaining is not None:
            size = min(size, -(-remaining // (2 * threads)))
        return max(size, 1)

    def window(self, threads: int) -> int:
        """Return a smaller window until the first partition has come back."""
        return _window(threads) if self._largest else 2 * threads

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
