"""Sizing: how many elements the next partition takes."""

from __future__ import annotations

import math
import sys

from parcoll.chain.timing import SURER, Estimate
from parcoll.evaluation.engine import Calls, Sizer
from parcoll.worker.outcome import Outcome

TARGET_SECONDS = 0.5  # a task costs the processes around it about 10 ms of a core, 2 % of this
TASKS_A_SECOND = 512  # at most: 1,350 take half of a scheduler's core (docs/scaling.md)
TARGETS_LONG = 3  # times as long, where what comes of a partition grows less than its elements do
TARGET_BYTES = 8 * 2**20  # packed elements, or packed results, of one partition
WINDOW_BYTES = 128 * 2**20  # of all partitions in the window, if that leaves `LEAST_BYTES` for each
LEAST_BYTES = 2**19
MAX_ELEMENTS = 2**17
GROWTH = 64  # times the largest partition that has come back: 2,048 to 131,072 in one step
# Partitions shrink towards the end of the source, down to that part of the time aimed at: 25 ms. Two workers
# then end 12 ms apart: a job of 0.8 s takes 1.043 of its elements' time (1.058 with twice as much).
LAST_SHARE = 20
MAX_AHEAD = 2**17  # elements of a stream that are read ahead to see whether it ends
BATCH_SECONDS = 0.2  # a batch that takes no longer is not cut, even at the end of the source
BATCH_TARGETS = 8  # times the time aimed at that a partition may take to fill a batch
BUDGET_TARGETS = 2  # times the time a partition should take: then a worker hands back what it has not begun
LEAST_BUDGET = 0.25  # seconds, once the pace is known: shorter stops have many causes
FIXED_PATIENCE = 0.2  # seconds after which partitions of a fixed size that wait go to another worker
SMALLEST_TIME = 1e-8  # seconds an element; below it the clock says nothing

# Before anything is known of a function, as many elements go alone as there are idle threads, so that results
# come at once. Those behind them go in partitions of START elements, and a worker hands back the rest after
# START_SECONDS: so the next ones have their final size one round trip (15 ms) after the start. Of a stream
# that goes on, they have START_STREAM elements: more might last a slow function for minutes.
START = 2048
START_STREAM = 16
START_BATCH = 64  # elements of a larger batch: nobody takes any of them back while it runs
START_SECONDS = 0.05
START_ALONE = 8  # elements, at most: if there are more threads, tasks of one element cost too much
CALLS_LEAST = 4  # elements for each call at the same time, at least; and where nothing is known, at most:
CALLS_MOST = 8
RATED_SECONDS = 2.0  # of starts, for a partition of calls that have a rate
START_SHARE = 4  # for each thread: at the start at most that part of what is known to be left
START_BYTES = 2**20
# If the same functions ran before, and a source should take less than START_SECONDS for each thread, all of
# it goes at once: in a partition for each thread, or in one if it takes no longer than its task does. From
# EVEN_SECONDS to SHORT_SECONDS each thread gets FIRST_SHARE of its part, and then of what is left, which
# evens that out: below that the two tasks more cost as much as they save (92 ms for 96 at 140 of 1 ms).
TRIVIAL_SECONDS = 0.001
SHORT_SECONDS = 1.0
EVEN_SECONDS = 0.075
FIRST_SHARE = 0.8
START_WINDOW = 16  # partitions: if there are many threads, nearly all of them come back as rests
MOST_AT_ONCE = 64  # partitions submitted together: while a scheduler takes them in it answers nobody


def _window(threads: int) -> int:
    # Two a thread while the first result travels; as many again while one slow partition is waited for.
    return 4 * threads + 2


class Fixed:
    """The same number of elements in every partition: `partition_size=1000`."""

    exact = True
    pace = of_few = None

    def __init__(self, size: int) -> None:
        self._size = size

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return the fixed size."""
        return self._size

    def ahead(self, threads: int) -> int:
        """Return 0: the size does not depend on what is left."""
        return 0

    def window(self, threads: int, held_up: bool = False) -> int:
        """Return a constant number of partitions for each thread."""
        return _window(threads)

    def max_bytes(self, threads: int) -> int:
        """Return no bound: the size is what was asked for."""
        return sys.maxsize

    def budget(self, sole: bool = False) -> None:
        """Return no bound: a partition stays as it is."""

    def patience(self) -> float:
        """Return little: how long partitions take is not known."""
        return FIXED_PATIENCE

    def refill(self, threads: int) -> int:
        """Return 1: a place is filled as soon as it is free."""
        return 1

    def nears_end(self, remaining: int | None, threads: int) -> bool:
        """Return False: the size is fixed."""
        return False

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Learn nothing."""

    def forget(self) -> None:
        """Do nothing: the size is fixed."""


class Adaptive:
    """Sizes by time and bytes: `partition_size="auto"`.

    Partitions grow as fast as results come back. Towards the end of a source they shrink, so that workers
    finish together (guided self-scheduling, Polychronopoulos and Kuck 1987). A stream is read that far ahead.

    `limit` is how many results are wanted; if few are, the first partitions stay small too. `lasting`
    partitions are never cut short: dask runs them again when their results are lost, and then they must take
    the same elements. So they start small, from one element on, but not one of all elements if `sole`.

    `pace` is what an element took when the same functions ran last; `hands_back` tells whether a task under
    way hands back what it has not begun, if elements take longer now. `batch` is how many elements a step
    takes in one call: partitions are that large if they can be, also where they take some times as long as
    is aimed at; always where it takes little longer than few elements do.
    """

    exact = False

    def __init__(
        self,
        limit: int | None = None,
        lasting: bool = False,
        pace: float | None = None,
        batch: int = 1,
        hands_back: bool = True,
        targets: int = 1,
        sole: bool = False,
        of_few: float | None = None,
    ) -> None:
        start = START if limit is None else min(START, max(64, limit))
        self._start = 1 if lasting and pace is None else start
        self._lasting = lasting
        self._cuts = sole or not lasting  # a worker looks at its budget between elements
        self._hands_back = hands_back and self._cuts
        self._batch = batch if limit is None else min(batch, start)
        # The smallest part of a batch, and what each element of it has taken.
        self._few = None if of_few is None else (self._batch, of_few)
        self._begun = 0  # partitions that were cut before anything was known
        self._least_target = self._target = targets * TARGET_SECONDS
        self._largest = 0  # elements of the largest partition that has come back
        self._seconds = Estimate(SMALLEST_TIME, 0.01)  # that an element takes
        self._pace = pace
        self._round = 0, 0  # how many partitions are still cut of the size that the pace says, and the size
        self._expected = 0.0  # seconds that the partition should take that was cut last, as far as is known
        self._limit = limit
        self._bytes = Estimate(0.0, START_BYTES)  # that an element takes, sent or received, the larger one

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return a size that should take the time aimed at, and not more than `max_bytes`."""
        self._target = max(self._least_target, threads / TASKS_A_SECOND)
        if not self._largest:
            known = self._known_size(remaining, threads)
            self._begun += 1
            short = self._has_short_batches
            if not known and self._pays and not short:
                return self._batch
            if known or (self._begun <= min(threads, START_ALONE) and not short):
                return known or 1
            start = min(self._start, max(1, int(self._target / (self._pace or SMALLEST_TIME))))
            if remaining is None:
                size = min(start, START_STREAM)
            else:
                start = start if self._batch <= START_BATCH or short else START_BATCH
                size = self._whole(min(start, remaining // (START_SHARE * threads)), threads)
            self._expected = size * (self._pace or 0.0)
            return size
        size = min(max(self._largest * GROWTH, self._start), self._wanted(threads))
        ends = False  # with this partition, since else the last one would be next to nothing
        if remaining is not None:
            size = min(size, self._share(remaining, threads))
            ends = remaining - size < self._least // 2 and remaining <= self._wanted(threads)
        size = max(remaining or 0, 1) if ends else self._whole(size, threads)
        self._expected = size * self._seconds.value
        return size

    def _whole(self, size: int, threads: int) -> int:
        """Return a size of whole batches; one, where less was wanted, if that should not be cut."""
        if size >= self._batch:
            return size - size % self._batch
        fits = self._batch * self._bytes.value <= self.max_bytes(threads)
        return self._batch if fits and (self._has_short_batches or self._pays) else max(size, 1)

    @property
    def _has_short_batches(self) -> bool:
        """Whether a batch takes little, here or when the same functions ran last."""
        return 1 < self._batch <= BATCH_SECONDS / (self.pace or self._pace or math.inf)

    @property
    def _pays(self) -> bool:
        """Whether an element takes much less in a batch than with few others, now or when seen last."""
        each = self._seconds.value if self._largest else self._pace
        return self._few is not None and each is not None and each * SURER <= self._few[1]

    def forget(self) -> None:
        """Begin with single elements, unless some have come back."""
        self._pace, self._round, self._expected, self._begun = None, (0, 0), 0.0, 0

    def _known_size(self, remaining: int | None, threads: int) -> int:
        """Return a size for functions that ran before; 0 if that, or what is left, is not known enough."""
        left, size = self._round
        if self._pace is None or remaining is None:
            left = size = 0
        elif not left:
            left, size = threads, self._size_of_round(remaining, remaining * self._pace, threads)
        self._round = max(left - 1, 0), size
        self._expected = size * (self._pace or 0.0)
        return size

    def _size_of_round(self, remaining: int, seconds: float, threads: int) -> int:
        """Return the size of the next partitions, one for each thread; 0 if too much is left."""
        short = self._hands_back and self._limit is None
        if seconds > (SHORT_SECONDS if short else START_SECONDS) * threads or (self._begun and not short):
            return 0
        wanted = remaining if self._limit is None else min(remaining, self._limit)
        size = remaining
        if not (self._cuts and wanted * seconds <= TRIVIAL_SECONDS * remaining):
            share = 1.0 if seconds <= EVEN_SECONDS * threads else FIRST_SHARE
            size = math.ceil(share * remaining / threads)
        return self._whole(max(1, min(size, MAX_ELEMENTS if short else min(self._start, START))), threads)

    def ahead(self, threads: int) -> int:
        """Return as many as keep the next partition from being more than a worker's share of what is left."""
        if not self._largest:
            if self._pace and self._hands_back and self._limit is None:
                return min(int(SHORT_SECONDS * threads / self._pace) + 1, MAX_AHEAD)
            few = min(threads, START_WINDOW) * min(self._start, START_STREAM)
            return few if self._begun or few * (self._pace or math.inf) <= START_SECONDS * threads else 1
        if self._least >= self._wanted(threads):
            return self._wanted(threads)
        return min(-(-3 * threads * self._wanted(threads) // 2), MAX_AHEAD)

    @property
    def _least(self) -> int:
        return int(self._target / LAST_SHARE / self._seconds.value)

    def _share(self, remaining: int, threads: int) -> int:
        """Return the part of the rest that one worker may take, so that all end together."""
        return max(-(-2 * remaining // (3 * threads)), self._least)

    def nears_end(self, remaining: int | None, threads: int) -> bool:
        """Tell whether partitions have begun to shrink."""
        if remaining is None or not self._largest:
            return False
        return self._share(remaining, threads) < self._wanted(threads)

    def _wanted(self, threads: int) -> int:
        wanted = int(self._target / self._seconds.value)
        if wanted < self._batch:
            longer = BATCH_TARGETS * self._target / self._seconds.value
            wanted = self._batch if self._pays else min(int(longer), self._batch)
        wanted = min(wanted, MAX_ELEMENTS)
        nbytes = self._bytes.value
        return min(wanted, int(self.max_bytes(threads) / nbytes)) if nbytes else wanted

    def max_bytes(self, threads: int) -> int:
        """Return little at the start, and less for each partition if there are many."""
        if not self._largest:
            return START_BYTES
        return min(TARGET_BYTES, max(LEAST_BYTES, WINDOW_BYTES // self._full_window(threads)))

    def budget(self, sole: bool = False) -> float | None:
        """Return little at the start, and then more than any partition should need."""
        return None if self._lasting and not (sole and self._cuts) else self.patience()

    def patience(self) -> float:
        """Return as much, for any partition."""
        least = BUDGET_TARGETS * BATCH_SECONDS if self._has_short_batches else START_SECONDS
        if self._largest:
            return BUDGET_TARGETS * max(LEAST_BUDGET / 2, min(self._expected, self._target))
        return max(least, BUDGET_TARGETS * self._expected)

    def window(self, threads: int, held_up: bool = False) -> int:
        """Return a smaller window while nothing is known: its partitions delay the first of the next size."""
        if not self._largest:
            return min(2 * threads, START_WINDOW)
        small = self._largest * GROWTH < self._wanted(threads) or self._largest == 1 < self._batch
        growing = small and not (held_up and self._limit is None)
        return 2 * threads if growing else self._full_window(threads)

    def refill(self, threads: int) -> int:
        """Return a third of the window: messages for four partitions cost little more than for one."""
        return max(1, min(self.window(threads) // 3, MOST_AT_ONCE))

    def _full_window(self, threads: int) -> int:
        return 4 * threads + 4

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Follow slower and larger elements at once, faster and smaller ones by halves."""
        if not outcome.read:
            return
        self._largest = max(self._largest, outcome.read)
        each = max(outcome.seconds / outcome.read, SMALLEST_TIME)
        if outcome.read * SURER <= self._batch and (self._few is None or outcome.read <= self._few[0]):
            self._few = outcome.read, each
        if outcome.read * SURER > min(self._batch, self._largest):  # else the call may be what has taken it
            self._seconds.see(each, outcome.read)
        self._bytes.see(max(sent_bytes, outcome.nbytes) / outcome.read, outcome.read)

    @property
    def pace(self) -> float | None:
        """Return what sizes are made from, once a partition has come back."""
        return self._seconds.value if self._largest else None

    @property
    def of_few(self) -> float | None:
        """Return what it took in a small part of a batch."""
        return None if self._few is None else self._few[1]


class Waiting(Adaptive):
    """Sizes for tasks that make several calls at the same time.

    The first calls of a partition and the last ones leave room for others: so it takes several times as many
    elements, however long they take, and nothing is tried out with single ones. If there is a rate, it takes
    as many as are begun in some seconds, or in several times as long as a call takes.
    """

    def __init__(self, limit: int | None, lasting: bool, calls: Calls, batch: int = 1) -> None:
        super().__init__(limit, lasting, None, batch)
        self._limit = limit
        self._calls = calls
        self._interval = 0.0
        self._size = 0  # of the partition that was cut last
        self._tail = 0.0  # seconds that the last call of a partition takes, at a rate

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return enough for all calls at a time, several times; an equal part for each task at the end."""
        calls, self._interval = self._calls.at_once(threads), self._calls.interval(threads)
        known = self._largest > 0
        tasks = threads if known else max(threads - self._begun, 1)  # that have not begun with theirs
        super().next_size(remaining, threads)  # notes how many threads there are
        if not known and self._limit is not None:
            size = max(1, min(self._limit, calls))
        elif not known:
            size = CALLS_MOST * calls
        else:
            size = max(self._wanted(threads), CALLS_LEAST * calls)
        if self._interval:
            size = min(size, math.ceil(max(RATED_SECONDS, CALLS_LEAST * self._tail) / self._interval))
        if remaining is not None:
            size = min(size, max(-(-remaining // tasks), min(calls, remaining)))
        self._size = max(size, 1)
        return self._size

    def ahead(self, threads: int) -> int:
        """Return enough for a task of each thread, once calls have come back."""
        if not self._largest:
            return super().ahead(threads)
        size = max(self._wanted(threads), CALLS_LEAST * self._calls.at_once(threads))
        return min(threads * size, MAX_AHEAD)

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Learn how long a call takes, too."""
        super().observe(outcome, sent_bytes)
        self._tail = max(outcome.seconds - outcome.read * self._interval, 0.0)

    def patience(self) -> float:
        """Return more than the partition should need that was cut last."""
        pace = max(self._interval, self._seconds.value if self._largest else 0.0)
        return BUDGET_TARGETS * max(self._target, self._size * pace)

    def nears_end(self, remaining: int | None, threads: int) -> bool:
        """Return False: the last partitions are equal ones."""
        return False

    @property
    def pace(self) -> float | None:
        """Return None: it depends on how many calls there are at a time."""
        return None


def sizer_for(
    partition_size: int | str,
    limit: int | None = None,
    lasting: bool = False,
    pace: float | None = None,
    batch: int = 1,
    calls: Calls | None = None,
    hands_back: bool = True,
    long: bool = False,
    sole: bool = False,
    of_few: float | None = None,
) -> Sizer:
    """Return the sizer for a checked `partition_size`; `calls` for tasks that make several calls.

    `long` if what comes of a partition grows less than its elements do, as counts of keys.
    """
    if not isinstance(partition_size, str):
        return Fixed(partition_size)
    if calls is not None:
        return Waiting(limit, lasting, calls, batch)
    return Adaptive(limit, lasting, pace, batch, hands_back, TARGETS_LONG if long else 1, sole, of_few)
