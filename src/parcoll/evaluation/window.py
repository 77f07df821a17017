"""Window: the partitions of one evaluation that are at the workers or wait for the consumer.

Their number is bounded, so the source is read ahead by a bounded number. They are given back in order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from parcoll.calls.rates import Shares
from parcoll.chain.timing import remember
from parcoll.clock import time
from parcoll.errors import ClusterLostError, logger
from parcoll.evaluation.engine import Engine, Job, Losses, Session, Sizer
from parcoll.evaluation.feed import Feed, Rest
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Program, with_culprit
from parcoll.world import handlers

if TYPE_CHECKING:
    from parcoll.evaluation.resuming import Saver

# Jobs go to the engine in groups: one message costs about as much as packing one small partition.
GROUP_JOBS = 8
GROUP_BYTES = 2**20
GROUP_SECONDS = 0.005  # for reading and packing a group, since workers wait for it
# To send, the client's thread needs the GIL several times. The caller's thread goes on to pickle the next
# partition, and holds the GIL for milliseconds at a time. Without a rest, tasks came 20 ms late to the
# scheduler.
REST_SECONDS = 0.001
POLL_SECONDS = 0.002  # between two looks for outcomes while others wait to be saved with them


class _Slot:
    """A place in the order of results: of a job, or of elements that a worker handed back."""

    __slots__ = ("job", "outcome", "rest")

    def __init__(self, job: Job | None = None, rest: Rest | None = None) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.rest = rest


class Window:
    """The partitions of one program: read, sent, and given back in order."""

    def __init__(
        self,
        engine: Engine,
        program: Program,
        make_feed: Callable[[], Feed],
        sizer: Sizer,
        stats: Stats,
        losses: Losses,
        *,
        words: str,
        ordered: bool = True,
        keep: bool = False,
        saver: Saver | None = None,
    ) -> None:
        self._engine = engine
        self._program = program
        self._make_feed = make_feed
        self._sizer = sizer
        self._stats = stats
        self._recorder = Recorder(stats)
        self._losses = losses
        self._words = words
        self._ordered = ordered
        self._keep = keep
        self._sent = False  # jobs, to any cluster
        self._saver = saver
        self._held: list[tuple[Job, Outcome]] = []  # taken from the slots, delivered when they are saved
        self._slots: deque[_Slot] = deque()  # in order; taken from the left
        self._rests: deque[_Slot] = deque()  # the slots that wait to be cut into jobs, in order
        self._by_job: dict[Job, _Slot] = {}
        self._running = 0
        self._waiting = False  # nothing can be done until an outcome comes
        self._pause = math.inf  # seconds, after which the source is to be read on, which was slow
        self._failed = False
        self._shares = Shares(program.limit)

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        """Give each partition's job and outcome, in source order unless unordered.

        Reads, submits and waits in the thread that draws from it. A failure of an element comes as an
        outcome. What the source raised is raised here, after everything before it.
        """
        # The session first: a function that cannot be sent leaves a one-pass source unread.
        self._session = self._open()
        lost: ClusterLostError | None = None
        feed: Feed | None = None
        try:
            self._feed = feed = self._make_feed()
            if self._program.waits and self._engine.in_background:
                feed.read_on_while(self._all_wait)
            self._stats.total = self._feed.total()
            waited = self._stats.waited
            while True:
                if lost is None:
                    try:
                        self._turn(self._session)
                    except ClusterLostError as error:
                        lost = self._begin_again(error)
                        continue
                waited.source = self._feed.reading
                slot = self._take()
                if slot is not None:
                    assert slot.outcome is not None
                    assert slot.job is not None
                    self._held.append((slot.job, slot.outcome))
                comes = lost is None and self._running and self._engine.in_background
                for delivery in self._delivered(idle=slot is None and not comes):
                    started, by_then = time.perf_counter(), waited.workers
                    try:
                        yield delivery
                    finally:  # a fold waits for workers in the meantime, which is not the consumer's time
                        waited.consumer += time.perf_counter() - started - (waited.workers - by_then)
                    self._feed.taken(delivery[1].read)
                if slot is not None:
                    continue
                if lost is not None:  # what had come by then has been given
                    raise lost
                if self._held:
                    time.sleep(POLL_SECONDS)
                elif self._running:
                    self._waiting = True
                elif (self._feed.ended or self._failed) and not self._slots:
                    break
            if self._feed.error is not None:
                raise self._feed.take_error()  # type: ignore[misc]
        finally:
            self._session.close()
            if feed is not None:
                feed.close()
            if (pace := self._sizer.pace) is not None:
                remember(self._program.steps, pace, self._sizer.of_few)
            if self._held and self._saver is not None:
                self._saver.close(self._held)

    def _open(self) -> Session:
        session = self._engine.open(self._program, self._words, self._keep)
        self._recorder.sent(0, session.program_bytes)
        return session

    def _delivered(self, idle: bool) -> list[tuple[Job, Outcome]]:
        """Return what the consumer gets now: what was taken; if there is a saver, once it is saved.

        A saver may wait for more, but not if nothing comes by itself (`idle`).
        """
        if not self._held:
            return []
        if self._saver is not None:
            if not self._saver.delivers(self._held, idle):
                return []
            for job, _ in self._held:
                if job.record is not None:
                    job.record = None  # it has the results too, which the consumer lets go of one by one
                    self._losses.came(saved=True)
        held, self._held = self._held, []
        return held

    def _turn(self, session: Session) -> None:
        """Take in what has come, wait for it if there is nothing else to do, and submit more."""
        handlers.look()
        started = time.perf_counter()
        self._collect(session, block=self._waiting and self._pause > 0, seconds=self._pause)
        if self._waiting:
            self._stats.waited.workers += time.perf_counter() - started
        self._waiting, self._pause = False, math.inf
        if not (self._feed.slow and self._head_ready()):
            self._fill(session)

    def _begin_again(self, error: ClusterLostError) -> ClusterLostError | None:
        """Open a session on another cluster, and send again all jobs without an outcome; None if it worked.

        Not if results are kept: they are lost with the cluster. But it may be lost before any job is sent, as
        while this reads from other evaluations.
        """
        while True:
            if self._keep and self._sent:
                return error
            self._losses.add(error, self._recorder)
            if error._final or not self._engine.renews:
                return error
            self._session.close()
            try:
                self._session = self._open()
                self._feed.renew()
                jobs = sorted(self._by_job, key=lambda job: job.order)
                for job in jobs:  # the lost cluster may have begun calls just now
                    job.share = job.share._replace(fresh=False)
                name = self._stats.name
                logger.warning("%s: %s; %d partitions are sent again", name, str(error), len(jobs))
                self._running = len(jobs)
                self._recorder.recover([""] * len(jobs))
                for start in range(0, len(jobs), GROUP_JOBS):
                    self._send(self._session, jobs[start : start + GROUP_JOBS])
            except ClusterLostError as again:  # this one too
                error = again
            else:
                return None

    def _fill(self, session: Session) -> None:
        threads = self._count_threads()
        window = self._stats.window = self._sizer.window(threads, self._is_held_up(threads))
        # Elements that were handed back are in memory already: they need not wait for a place in the window.
        while self._rests and self._running < window and self._shares.left(threads):
            self._submit(session, self._cut_rest(threads))
        free = window - len(self._slots)
        if free < self._sizer.refill(threads) and self._running > 2 * threads:
            return
        group: list[Job] = []
        nbytes, started = 0, time.perf_counter()
        while self._may_read() and len(self._slots) < window and self._shares.left(threads):
            # The last partitions wait here until a worker needs them: dask assigns a task when it comes.
            if self._running + len(group) >= 2 * threads and self._feed.nears_end(threads):
                break
            job = self._feed.next_job(threads)
            if job is not None and job.saved is not None:
                self._slots.append(_Slot(job))
                self._slots[-1].outcome = job.saved
            elif job is not None:
                self._slots.append(self._slot(job, threads))
                group.append(job)
                nbytes += job.message_bytes
            late = time.perf_counter() - started > GROUP_SECONDS
            if len(group) >= GROUP_JOBS or nbytes > GROUP_BYTES or late or self._feed.slow:
                self._submit(session, group)
                group, nbytes, started = [], 0, time.perf_counter()
                if self._feed.slow:
                    if self._engine.in_background:  # else nothing runs while the source is read
                        self._pause = self._feed.pause
                    break
        self._submit(session, group)
        if self._may_read() and not self._shares.left(threads) and self._all_wait():
            self._feed.read_ahead(threads)

    def _is_held_up(self, threads: int) -> bool:
        """Tell whether a worker has nothing to do while the results that come next are waited for."""
        head = self._slots[0] if self._slots else None
        return head is not None and head.job is not None and head.outcome is None and self._running < threads

    def _cut_rest(self, threads: int) -> list[Job]:
        """Return a group of jobs cut from the first of the rests, and give them their places."""
        slot = self._rests[0]
        assert slot.rest is not None
        group: list[Job] = []
        most = min(max(1, self._sizer.refill(threads)), self._shares.left(threads))
        while len(slot.rest) and len(group) < most:
            job = self._feed.job_of(slot.rest, threads)
            if job is not None:
                self._slots.insert(self._slots.index(slot), self._slot(job, threads))
                group.append(job)
        if not len(slot.rest):
            self._rests.popleft()
            self._slots.remove(slot)
        return group

    def _all_wait(self) -> bool:
        """Tell whether all threads have tasks, whose calls wait: those of more elements go into one task."""
        return self._running >= self._count_threads() and not self._session.has_come

    def _may_read(self) -> bool:
        # After a failure, nothing that is read would ever be delivered.
        return not (self._feed.ended or self._failed or self._feed.full)

    def _submit(self, session: Session, group: list[Job]) -> None:
        if group:
            self._running += len(group)
            self._recorder.sent(len(group), sum(job.sent_bytes for job in group))
            self._send(session, group)
            if self._engine.in_background and self._may_read():
                time.sleep(REST_SECONDS)

    def _send(self, session: Session, group: list[Job]) -> None:
        session.submit(group)
        self._sent = True

    def _slot(self, job: Job, threads: int) -> _Slot:
        job.share = self._shares.give(threads)
        slot = self._by_job[job] = _Slot(job)
        return slot

    def _collect(self, session: Session, block: bool, seconds: float) -> None:
        completed = session.completed(block, seconds) if self._running else ()
        self._stats.waiting_for = session.waiting_for
        for job, outcome in completed:
            if outcome.early:
                self._return_rest(self._by_job[job], outcome)
                continue
            self._running -= 1
            slot = self._by_job.pop(job)
            slot.outcome = outcome
            self._shares.take_back(job.share)
            self._losses.came()
            self._recorder.add(outcome, job.place.base)
            self._feed.returned(job, outcome)
            if job.lost_workers:
                self._recorder.recover(job.lost_workers)
            if outcome.failure is None:
                self._sizer.observe(outcome, job.sent_bytes)
                if not outcome.complete and outcome.read != job.begun:
                    self._return_rest(slot, outcome)
            else:
                self._failed = True
                outcome.failure = with_culprit(self._program, outcome)
            if job.sole is not None:
                job.handle = Kept(Outcome(), outcome.results, outcome.produced)
            job.release()

    def _return_rest(self, slot: _Slot, outcome: Outcome) -> None:
        """Make a slot for the elements that a worker handed back, behind that of its job."""
        assert slot.job is not None
        rest = _Slot(rest=self._feed.rest_of(slot.job, outcome))
        self._slots.insert(self._slots.index(slot) + 1, rest)
        self._rests = deque(other for other in self._slots if other.rest is not None)

    def _head_ready(self) -> bool:
        return bool(self._slots) and self._slots[0].outcome is not None

    def _take(self) -> _Slot | None:
        """Remove and return the first slot that may be delivered; None if there is none."""
        for position, slot in enumerate(self._slots):
            if slot.outcome is not None:
                del self._slots[position]
                return slot
            if self._ordered:
                break
        return None

    def _count_threads(self) -> int:
        """Return how many tasks may run at the same time."""
        threads = self._stats.threads = max(self._engine.threads(), 1)
        return self._shares.parts(threads)
