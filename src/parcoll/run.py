"""One evaluation: reads ahead by a bounded window, keeps order, stops early, reports errors in place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from parcoll.engine.base import Engine, Job, Session
from parcoll.errors import SerializationError
from parcoll.outcome import Outcome
from parcoll.pickling import first_unpicklable
from parcoll.place import Place
from parcoll.program import Program
from parcoll.sizing import Sizer
from parcoll.source import FLUSH_SECONDS, Reader
from parcoll.stats import Stats
from parcoll.text import short_repr

# Jobs go to the engine in groups: one message costs about as much as packing one small partition.
GROUP_JOBS = 8
GROUP_BYTES = 2**20
GROUP_SECONDS = 0.005  # reading and packing may take long, and workers wait
THREADS_FOR = 1.0  # seconds that a count of the engine's threads is good for


class Feed(Protocol):
    """Where jobs come from."""

    ended: bool
    slow: bool  # the source made us wait: deliver what is ready before reading on
    error: BaseException | None  # raised once everything before it was delivered

    def next_job(self, threads: int) -> Job | None:
        """Read one partition; None at the end."""

    def rest_of(self, job: Job, outcome: Outcome) -> Rest:
        """Take back the elements that a worker has not begun."""

    def job_of(self, rest: Rest, threads: int) -> Job | None:
        """Cut the next partition off elements that were taken back."""


class Rest:
    """Elements that were read, and that a worker handed back."""

    def __init__(self, elements: Sequence[Any], place: Place) -> None:
        self.elements = elements
        self.place = place
        self.begun = 0  # elements of it that are in jobs

    def __len__(self) -> int:
        return len(self.elements) - self.begun


class StreamFeed:
    """Partitions cut from a stream of elements."""

    def __init__(self, reader: Reader, sizer: Sizer, pack: Callable[[Any], Any]) -> None:
        self.ended = False
        self.slow = False
        self.error: BaseException | None = None
        self._reader = reader
        self._sizer = sizer
        self._pack = pack
        self._handed_back = 0  # elements

    def next_job(self, threads: int) -> Job | None:
        """Read as many elements as the sizer says, and pack them."""
        size = self._sizer.next_size(self._remaining(), threads)
        place = Place(self._reader.position)
        started = time.perf_counter()
        elements = self._reader.read(size, self._sizer.max_bytes(threads), self._sizer.exact)
        self.slow = time.perf_counter() - started > FLUSH_SECONDS / 2
        if self._reader.ended:
            self.ended = True
            self.error = self._reader.error
        return self._job(elements, place) if len(elements) else None

    def rest_of(self, job: Job, outcome: Outcome) -> Rest:
        """Unpickle what the worker did not begin."""
        assert job.elements is not None
        rest = Rest(job.elements.load()[outcome.read :], job.place.after(outcome.read))
        self._handed_back += len(rest)
        return rest

    def job_of(self, rest: Rest, threads: int) -> Job | None:
        """Cut a partition of the size that now seems right."""
        size = min(self._sizer.next_size(self._remaining(), threads), len(rest))
        part = rest.elements[rest.begun : rest.begun + size]
        place = rest.place.after(rest.begun)
        rest.begun += size
        self._handed_back -= size
        return self._job(part, place)

    def _remaining(self) -> int | None:
        unread = self._reader.remaining()
        return None if unread is None else unread + self._handed_back

    def _job(self, elements: Any, place: Place) -> Job | None:
        try:
            packed = self._pack(elements)
            budget = self._sizer.budget()
            return Job(elements=packed, place=place, order=place.order, size=len(elements), budget=budget)
        except Exception as error:
            bad = first_unpicklable(elements)
            position, cause = bad if bad is not None else (0, error)
        self.ended = True
        self.error = SerializationError(
            f"{place.element(position)} of the source cannot be sent to the workers: "
            f"{short_repr(elements[position])} ({type(cause).__name__}: {cause})"
        )
        self.error.__cause__ = cause
        return self._job(elements[:position], place) if position else None


class PartitionFeed:
    """Partitions that exist already: a bag's, or kept results."""

    slow = False
    error: BaseException | None = None

    def __init__(self, jobs: list[Job], origin: object) -> None:
        self._jobs = deque(jobs)
        self._origin = origin  # holds the futures of what the jobs read
        self.ended = not jobs

    def next_job(self, threads: int) -> Job | None:
        """Return the next partition's job."""
        job = self._jobs.popleft()
        self.ended = not self._jobs
        return job

    def rest_of(self, job: Job, outcome: Outcome) -> Rest:
        """Fail: such partitions run without a time budget."""
        raise AssertionError("a partition of a bag was cut short")

    def job_of(self, rest: Rest, threads: int) -> Job | None:
        """Fail, for the same reason."""
        raise AssertionError("a partition of a bag was cut short")


class _Slot:
    """A job's place in the order of results, or that of the elements which a worker handed back."""

    __slots__ = ("job", "outcome", "rest")

    def __init__(self, job: Job | None = None, rest: Rest | None = None) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.rest = rest


class Evaluation:
    """The window over one program's partitions."""

    def __init__(
        self,
        engine: Engine,
        program: Program,
        make_feed: Callable[[], Feed],
        sizer: Sizer,
        stats: Stats,
        *,
        label: str,
        ordered: bool = True,
        keep: bool = False,
    ) -> None:
        self._engine = engine
        self._program = program
        self._make_feed = make_feed
        self._sizer = sizer
        self._stats = stats
        self._label = label
        self._ordered = ordered
        self._keep = keep
        self._slots: deque[_Slot] = deque()  # in order; taken from the left
        self._rests: deque[_Slot] = deque()  # those of them that wait to be cut into jobs, in order
        self._by_job: dict[Job, _Slot] = {}
        self._running = 0
        self._failed = False
        self._threads = 1
        self._threads_at = -THREADS_FOR

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        """Give each partition's job and outcome, in source order unless unordered.

        Reads, submits and waits in the thread that draws from it. A failure of an element comes as
        an outcome; what the source raised is raised here, after everything before it.
        """
        # The session first: a function that cannot be sent leaves a one-pass source unread.
        session = self._engine.open(self._program, self._label, self._keep)
        try:
            self._feed = self._make_feed()
            while True:
                self._collect(session, block=False)
                if not (self._feed.slow and self._head_ready()):
                    self._fill(session)
                slot = self._take()
                if slot is not None:
                    assert slot.outcome is not None
                    assert slot.job is not None
                    yield slot.job, slot.outcome
                elif self._running:
                    self._collect(session, block=True)
                elif (self._feed.ended or self._failed) and not self._slots:
                    break
            if self._feed.error is not None:
                raise self._feed.error
        finally:
            session.close()

    def _fill(self, session: Session) -> None:
        threads = self._count_threads()
        window = self._sizer.window(threads)
        # What was handed back is in memory already, so it need not wait for a place in the window.
        while self._rests and self._running < window:
            self._submit(session, self._cut_rest(threads))
        free = window - len(self._slots)
        if free < self._sizer.refill(threads) and self._running > 2 * threads:
            return
        group: list[Job] = []
        nbytes, started = 0, time.perf_counter()
        while self._may_read() and len(self._slots) < window:
            job = self._feed.next_job(threads)
            if job is not None:
                self._slots.append(self._slot(job))
                group.append(job)
                nbytes += job.message_bytes
            late = time.perf_counter() - started > GROUP_SECONDS
            if len(group) >= GROUP_JOBS or nbytes > GROUP_BYTES or late or self._feed.slow:
                self._submit(session, group)
                group, nbytes, started = [], 0, time.perf_counter()
                if self._feed.slow:
                    break
        self._submit(session, group)

    def _cut_rest(self, threads: int) -> list[Job]:
        """Return a group of jobs cut from the first of the rests, and give them their places."""
        slot = self._rests[0]
        assert slot.rest is not None
        group: list[Job] = []
        most = max(1, self._sizer.refill(threads))
        while len(slot.rest) and len(group) < most:
            job = self._feed.job_of(slot.rest, threads)
            if job is not None:
                self._slots.insert(self._slots.index(slot), self._slot(job))
                group.append(job)
        if not len(slot.rest):
            self._rests.popleft()
            self._slots.remove(slot)
        return group

    def _may_read(self) -> bool:
        # After a failure nothing that is read now would ever be delivered.
        return not self._feed.ended and not self._failed

    def _submit(self, session: Session, group: list[Job]) -> None:
        if group:
            self._running += len(group)
            self._stats.partitions += len(group)
            session.submit(group)

    def _slot(self, job: Job) -> _Slot:
        slot = self._by_job[job] = _Slot(job)
        return slot

    def _collect(self, session: Session, block: bool) -> None:
        for job, outcome in session.completed(block) if self._running else ():
            self._running -= 1
            slot = self._by_job.pop(job)
            slot.outcome = outcome
            self._stats.add(outcome)
            if outcome.failure is None:
                self._sizer.observe(outcome, job.sent_bytes)
                if not outcome.complete:
                    rest = _Slot(rest=self._feed.rest_of(job, outcome))
                    self._slots.insert(self._slots.index(slot) + 1, rest)
                    self._rests = deque(other for other in self._slots if other.rest is not None)
            else:
                self._failed = True
            job.release()

    def _head_ready(self) -> bool:
        return bool(self._slots) and self._slots[0].outcome is not None

    def _take(self) -> _Slot | None:
        """Remove and return the first slot that may be delivered."""
        for position, slot in enumerate(self._slots):
            if slot.outcome is not None:
                del self._slots[position]
                return slot
            if self._ordered:
                break
        return None

    def _count_threads(self) -> int:
        now = time.monotonic()
        if now - self._threads_at >= THREADS_FOR:
            self._threads, self._threads_at = max(self._engine.threads(), 1), now
        return self._threads
