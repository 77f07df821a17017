"""Feed: where the jobs of an evaluation come from: elements cut into partitions, or partitions that exist."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from parcoll.chain.place import Place
from parcoll.clock import time
from parcoll.errors import SerializationError
from parcoll.evaluation.engine import Job, Sizer, Sole
from parcoll.evaluation.plan import BagPartitions, KeptPartitions
from parcoll.evaluation.reader import FLUSH_SECONDS, Reader
from parcoll.mistakes import instead_of
from parcoll.text import line_of, short_repr
from parcoll.wire.anatomy import first_unpicklable
from parcoll.wire.codec import Steady
from parcoll.wire.payload import pickled
from parcoll.worker.outcome import Outcome

LARGE_BYTES = 16 * 2**20  # a larger partition is compared with what a worker may hold
UNPACKABLE = 0.5  # of that, at most: a worker needs the bytes, and what is made of them
# Of the time that a slow source took for an element: while it is read, no result is given. So the results of
# what came before may come first, if they are quick. A source that waits for nobody is so much slower.
PAUSE = 0.1
TRIP_SECONDS = 0.02  # in which a quick result is here; a quarter of the time of a source, at most


class Feed(Protocol):
    """Where jobs come from."""

    ended: bool
    error: BaseException | None  # raised once everything before it was delivered
    reading: float  # seconds that the source took

    @property
    def slow(self) -> bool:
        """Whether the source was slow: deliver what is ready before reading on."""

    @property
    def pause(self) -> float:
        """How many seconds a slow source may wait for results that are about to come."""

    @property
    def full(self) -> bool:
        """Whether nothing may be read until results were taken."""

    def taken(self, elements: int) -> None:
        """Note that the results of so many elements were taken."""

    def read_on_while(self, busy: Callable[[], bool]) -> None:
        """Have partitions filled as long as that tells that nobody could begin with them."""

    def take_error(self) -> BaseException | None:
        """Return it, and let go of it: who raises it holds the feed."""

    def total(self) -> int | None:
        """Return how many elements there are; None if nobody knows."""

    def read_ahead(self, threads: int) -> None:
        """Have a slow source give some of what is wanted next."""

    def next_job(self, threads: int) -> Job | None:
        """Read one partition; None at the end."""

    def nears_end(self, threads: int) -> bool:
        """Tell whether the next partition is one of the last, with which the workers should end together."""

    def rest_of(self, job: Job, outcome: Outcome) -> Rest:
        """Take back the elements that a worker has not begun."""

    def job_of(self, rest: Rest, threads: int) -> Job | None:
        """Cut the next partition off elements that were taken back."""

    def renew(self) -> None:
        """Have all jobs read what they need from the new cluster."""

    def returned(self, job: Job, outcome: Outcome) -> None:
        """Look at an outcome that has come, while its job still has its elements."""

    def close(self) -> None:
        """Let go of the source."""


class Rest:
    """Elements that were read and that a worker handed back."""

    def __init__(self, elements: Sequence[Any], place: Place) -> None:
        self.elements = elements
        self.place = place
        self.begun = 0  # elements of it that are in jobs
        self.isolated = False  # those jobs run beside their workers

    def __len__(self) -> int:
        return len(self.elements) - self.begun


class StreamFeed:
    """Partitions cut from a stream of elements."""

    makes: type[Job] = Job

    def __init__(
        self,
        reader: Reader,
        sizer: Sizer,
        pack: Callable[..., Any],
        memory_limit: Callable[[], float] = lambda: math.inf,
        buffersize: int | None = None,
        limit: int | None = None,
        sole: Sole | None = None,
    ) -> None:
        """`limit` results are wanted. `sole` says what becomes of a partition that has all elements."""
        self.ended = False
        self.error: BaseException | None = None
        self.reading = 0.0
        self._slow = False  # the source was, when it was read last
        self._took = 0.0  # seconds, then
        self._more = True  # so many elements are at hand that the source might as well be endless
        self._reader = reader
        self._sizer = sizer
        self._pack = pack
        self._by_value = Steady().by_value
        self._memory_limit = memory_limit
        self._limit = limit
        self._sole = sole
        self._handed_back = 0  # elements
        self._buffersize = buffersize
        self._may_read_to = math.inf if buffersize is None else reader.position + buffersize

    def close(self) -> None:
        """Have the reader let go of it, and of what it raised, which holds the frames that read it."""
        self._reader.close()
        self.take_error()

    def take_error(self) -> BaseException | None:
        """Take it from the source too."""
        error, self.error = self.error, None
        self._reader.take_error()
        return error

    def total(self) -> int | None:
        """Ask the source."""
        unread = self._reader.remaining()
        return None if unread is None else self._reader.position + unread

    @property
    def slow(self) -> bool:
        """Whether the source was slow, and nothing is left of what it gave."""
        return self._slow and not self._reader.at_hand

    @property
    def pause(self) -> float:
        """A part of what the source took; nothing if the results take longer than that.

        As long as they take, if what is wanted may be among them.
        """
        if self._limit is not None and self._reader.position >= self._limit:
            return math.inf
        pause = max(PAUSE * self._took, min(self._took / 4, TRIP_SECONDS))
        return pause if (self._sizer.pace or 0.0) <= pause else 0.0

    @property
    def full(self) -> bool:
        """Whether `buffersize` elements were read whose results were not taken."""
        return self._reader.position >= self._may_read_to

    def read_on_while(self, busy: Callable[[], bool]) -> None:
        """Tell the reader, if all results are wanted."""
        if self._limit is None:
            self._reader.read_on_while(busy)

    def taken(self, elements: int) -> None:
        """Have as many more read."""
        self._may_read_to += elements

    def read_ahead(self, threads: int) -> None:
        """Have the reader take as many as it may, if it has none."""
        if self.slow and self._limit is None:
            started = time.perf_counter()
            self._look_ahead(self._may_read_to - self._reader.position, threads)
            self.reading += time.perf_counter() - started

    def _look_ahead(self, room: float, threads: int) -> None:
        ahead = self._sizer.ahead(threads)
        known = self._reader.look_ahead(int(min(ahead, room)), self._sizer.max_bytes(threads))
        self._more = known and ahead <= room

    def next_job(self, threads: int) -> Job | None:
        """Read as many elements as the sizer says and `buffersize` allows, and pack them."""
        reader, sizer, max_bytes = self._reader, self._sizer, self._sizer.max_bytes(threads)
        started = time.perf_counter()
        room = self._may_read_to - reader.position
        draws = not (self._slow and reader.at_hand)  # else what is here goes first
        if draws and not sizer.exact:
            self._look_ahead(room, threads)
        looked = time.perf_counter() - started
        size = int(min(sizer.next_size(self._remaining(), threads), room))
        if self._buffersize is not None and not sizer.exact:
            size = min(size, max(1, self._buffersize // (2 * threads)))
        place = Place(reader.position)
        started = time.perf_counter()
        elements = reader.read(size, max_bytes, sizer.exact)
        took = looked + time.perf_counter() - started
        self.reading += took
        if draws:
            self._slow, self._took = took > FLUSH_SECONDS / 2, took
        if reader.ended:
            self.ended = True
            self.error = reader.error
        if not len(elements):
            return None
        job = self._job(elements, place)
        if job is not None and self._sole and place.first and (self.ended or self._remaining() == 0):
            job.sole, job.budget = self._sole, sizer.budget(sole=True)
        return job

    def nears_end(self, threads: int) -> bool:
        """Ask the sizer."""
        return self._sizer.nears_end(self._remaining(), threads)

    def rest_of(self, job: Job, outcome: Outcome) -> Rest:
        """Unpickle what the worker did not begin."""
        assert job.elements is not None
        rest = Rest(job.elements.load()[outcome.read : job.begun], job.place.after(outcome.read))
        job.begun = outcome.read
        rest.isolated = job.isolated  # more of its elements may end a worker
        self._handed_back += len(rest)
        self._sizer.forget()
        return rest

    def job_of(self, rest: Rest, threads: int) -> Job | None:
        """Cut a partition of the size that now seems right."""
        remaining = self._remaining()
        if remaining is None:  # what was handed back takes long, as a rule, and is to be shared
            remaining = self._handed_back + self._reader.at_hand
        size = min(self._sizer.next_size(remaining, threads), len(rest))
        part = rest.elements[rest.begun : rest.begun + size]
        place = rest.place.after(rest.begun)
        rest.begun += size
        self._handed_back -= size
        cut = self._job(part, place)
        if cut is not None:
            cut.isolated = rest.isolated
        return cut

    def returned(self, job: Job, outcome: Outcome) -> None:
        """Do nothing."""

    def _too_large(self, elements: Sequence[Any], place: Place) -> Job | None:
        """End the feed with an error: no worker could unpack this element, or this partition.

        Returns a job for the elements before it, if there are any.
        """
        limit = self._memory_limit()
        sizes = [sum(map(len, pickled(element))) for element in elements]
        position = next((at for at, size in enumerate(sizes) if size > UNPACKABLE * limit), None)
        if position is None:
            what = f"the partition of {len(elements)} elements from {place.element(0)}"
            advice = "pass a smaller partition_size"
        else:
            what, advice = place.element(position), "make it smaller"
        taken = sum(sizes) if position is None else sizes[position]
        self.ended = True
        self.error = SerializationError(
            f"{what} of the source takes {taken >> 20:,} MiB packed, and a worker, which may hold "
            f"{limit / 2**20:,.0f} MiB, needs twice as much to unpack it: {advice}, or raise memory_limit"
        )
        return self._job(elements[:position], place) if position else None

    def renew(self) -> None:
        """Do so for what takes a partition that has all elements; the others are here."""
        if self._sole is not None:
            self._sole.renew()

    def _remaining(self) -> int | None:
        """Return how many elements are left; None if that is unknown, and there are enough for all workers.

        Of a slow source only those count that are here: no worker can have more now.
        """
        unread = self._reader.remaining()
        if unread is None and not self._more:
            unread = self._reader.at_hand or None
        return None if unread is None else unread + self._handed_back

    def _job(self, elements: Any, place: Place) -> Job | None:
        try:
            packed = self._pack(elements, by_value=self._by_value)
            if packed.nbytes > LARGE_BYTES and packed.nbytes > UNPACKABLE * self._memory_limit():
                return self._too_large(elements, place)
            budget, patience = self._sizer.budget(), self._sizer.patience()
            return self.makes(
                packed,
                self._by_value,
                place=place,
                size=len(elements),
                budget=budget,
                patience=patience,
            )
        except Exception as error:
            bad = first_unpicklable(elements)
            position, cause = bad if bad is not None else (0, error)
        self.ended = True
        self.error = SerializationError(
            f"{place.element(position)} of the source cannot be sent to the workers: "
            f"{short_repr(elements[position])} ({line_of(cause)}){instead_of(elements[position])}"
        )
        self.error.__cause__ = cause
        del bad, cause  # whose traceback refers to this frame
        return self._job(elements[:position], place) if position else None


class PartitionFeed:
    """Partitions that exist already: those of a bag, or kept results."""

    slow = full = False
    pause = math.inf
    error: BaseException | None = None
    reading = 0.0

    def __init__(
        self, jobs: list[Job], origin: object, renewed: Callable[[list[Job]], object] | None = None
    ) -> None:
        """`renewed` makes anew what the jobs read on their cluster, and returns what holds it."""
        self._jobs = deque(jobs)
        self._origin = origin  # holds the futures of what the jobs read
        self._renewed = renewed
        self._all = jobs if renewed is not None else []
        self.ended = not jobs

    def read_on_while(self, busy: Callable[[], bool]) -> None:
        """Do nothing: the partitions are not read here."""

    def taken(self, elements: int) -> None:
        """Do nothing either."""

    def close(self) -> None:
        """Do nothing."""

    def take_error(self) -> None:
        """Return None: there is none."""

    def total(self) -> int | None:
        """Return None: only those who have the partitions know their lengths."""
        return None

    def read_ahead(self, threads: int) -> None:
        """Do nothing here."""

    def next_job(self, threads: int) -> Job | None:
        """Return the job of the next partition."""
        job = self._jobs.popleft()
        self.ended = not self._jobs
        return job

    def renew(self) -> None:
        """Make anew what the jobs read."""
        if self._renewed is not None:
            self._origin = self._renewed(self._all)

    def nears_end(self, threads: int) -> bool:
        """Return False: their sizes cannot be changed."""
        return False

    def rest_of(self, job: Job, outcome: Outcome) -> Rest:
        """Fail: such partitions run without a time budget."""
        raise AssertionError("a partition of a bag was cut short")

    def job_of(self, rest: Rest, threads: int) -> Job | None:
        """Fail, for the same reason."""
        raise AssertionError("a partition of a bag was cut short")

    def returned(self, job: Job, outcome: Outcome) -> None:
        """Do nothing."""


def partitions_of(origin: KeptPartitions | BagPartitions, persist: Callable[[Any], Any]) -> PartitionFeed:
    """Return the feed of partitions that exist; `persist` computes once what those of a bag share."""
    if isinstance(origin, KeptPartitions):
        jobs = [Job(kept=handle, place=Place(0, i)) for i, handle in enumerate(origin.handles)]
        return PartitionFeed(jobs, origin)
    jobs = [Job(graph=graph, place=Place(0, i)) for i, graph in enumerate(origin.graphs)]
    if not origin.share_tasks:
        return PartitionFeed(jobs, origin)

    def persisted(jobs: list[Job]) -> BagPartitions:
        from parcoll.evaluation.bag import bag_partitions  # lazy: dask.bag

        found = bag_partitions(persist(origin.bag))
        for job, graph in zip(jobs, found.graphs, strict=True):
            job.graph = graph
        return found

    return PartitionFeed(jobs, persisted(jobs), persisted)
