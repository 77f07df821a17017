"""Session: one evaluation on a dask cluster. It sends tasks in groups, and again those that were lost."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
from collections.abc import Callable, Sequence
from typing import Any

import dask
from dask._task_spec import Task, TaskRef

from parcoll.clock import time
from parcoll.cluster.link import RELEASED, KeptOnCluster, Link, lost_again
from parcoll.cluster.nesting import enter_task, level
from parcoll.cluster.receiving import REPORT, Lost, Receiving, ReportReader
from parcoll.cluster.sending import LARGE_BYTES, Ahead, Graph, opaque_task
from parcoll.cluster.workers import Placement, was_interrupted
from parcoll.errors import ClusterLostError, WorkerLostError, logger
from parcoll.evaluation.engine import Job, Join, lost_for_good
from parcoll.local.levels import key_of
from parcoll.system import without_collections
from parcoll.text import describe, key_words, line_of, message_of
from parcoll.wire.codec import loads
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import CAPTURED_BYTES, SHARED_BYTES, Captured, Packed, Shared
from parcoll.worker.isolation import join_isolated, run_isolated
from parcoll.worker.outcome import Outcome, Ticket, report
from parcoll.worker.program import SharedProgram
from parcoll.worker.reports import answered_wrongly, is_sound
from parcoll.worker.tasks import join_kept, run_partition, with_buffers
from parcoll.world import handlers
from parcoll.world.records import replay
from parcoll.world.world import World, enter

EMBEDDED_BYTES = 64 * 1024  # a larger program is a key of its own, and travels once to each worker
QUIET_BYTES = 8 * 2**20  # above 10 MB a submission dask warns, with advice that does not apply here
MAX_WORDS = 100  # characters
# Workers lost by one job. After so many it runs beside its worker: a first one may have died of anything.
WORKERS_LOST_WITHIN = 2
MAX_WITHOUT_PROGRESS = 20  # answers one after the other by which nothing was begun
MAX_WORKERS_LOST = 6  # by one job, which is then given up; as it ran isolated, it is hardly to blame


class DistributedSession:
    """One program on the cluster: its tasks, and their outcomes as they come."""

    def __init__(
        self,
        link: Link,
        reports: ReportReader | None,
        packed: Packed,
        modules: bytes,
        script: bytes,
        words: str,
        keep: bool,
        isolated: bool = False,
        world: World | None = None,
    ) -> None:
        """Start an evaluation of the packed program; `isolated` if all partitions run beside workers.

        `world` is what this process had when it began.
        """
        self._link = link
        self._client = link.client
        self._reports = reports
        self._topic = reports.topic if reports is not None else None
        self._keep = keep
        self._isolated = isolated
        self._token = f"{link.token}-{next(link.numbers)}"
        self._words = key_words(words)[:MAX_WORDS].rstrip("-")
        self._numbers = itertools.count()
        self._pid = os.getpid()
        self._closed = False
        self._restarts = link.restarts
        self._without_progress = 0  # answers in a row by which no element was begun
        self._large_results = False  # a large result has come
        self._ahead: Ahead | None = None
        self._shared = SharedProgram(packed, self._token, world, modules, script=script)
        large = self._shared.nbytes > EMBEDDED_BYTES
        self._shared.cached = not large
        self._lent: Captured | None = None  # where a large program lies in shared memory
        # Kept results may have to be made again when the evaluation has ended, and need the program then.
        self.program_bytes = self._shared.nbytes
        if large and link.sharing is not None and not keep:
            lent = self._shared.lend(link.sharing)
            if lent is not None:
                self._lent, self.program_bytes = lent
        self._program: Any = None if large and self._lent is None else self._shared
        self._program_future: Any = None
        self._captured: list[Any] = []  # futures of large data that the program captures
        self._need_captured: set[Job] = set()  # whose tasks were sent with these
        if large and not keep and link.sharing is None and link.direct is True:
            self._send_captured(packed)
        self._level = level()
        self._receiving = Receiving(link, reports)
        self._turns = link.turns.begin()
        self._placement = Placement(self._client, self._words, starts_workers=link.sharing is not None)
        self._entered = enter_task()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Send jobs to the scheduler in one message, and large partitions straight to workers."""
        # Not if results are kept: dask still needs the elements, to make a result again. Nor if the workers
        # are on this machine, since partitions lie in shared memory then.
        link = self._link
        if self._ahead is None and link.direct is True and link.sharing is None and not self._keep:
            self._ahead = Ahead(self._client, self._token)
        if self._ahead is not None:
            with link.errors():
                self._ahead.send(jobs)
        self._submit(jobs)

    def _submit(self, jobs: Sequence[Job]) -> None:
        graph = Graph()
        priority: dict[Any, float] = {}
        if self._program is None:
            self._share_program()
        outcome_keys: list[str] = []
        kept: dict[str, Job] = {}
        for job in jobs:
            before = set(graph)
            key = key_of(self._words, self._token, self._level, next(self._numbers))
            graph[key] = self._task(key, job, graph)
            if self._keeps(job):
                kept[key] = job
                if self._topic is None:
                    graph[f"{REPORT}{key}"] = opaque_task(f"{REPORT}{key}", report, TaskRef(key))
                    key = f"{REPORT}{key}"
            outcome_keys.append(key)
            # Without a priority for each, the last task of a group runs first.
            priority |= dict.fromkeys(graph.keys() - before, -float(self._turns.of(job.order)))
        nbytes = sum(job.message_bytes for job in jobs)  # at most
        at = "" if dask.get_annotations() else next((job.at for job in jobs if isinstance(job, Join)), "")
        with handlers.postponed, self._receiving.expecting(outcome_keys, jobs) as expected:
            futures = self._get(graph, list(dict.fromkeys([*outcome_keys, *kept])), priority, nbytes, at)
            expected += futures[: len(jobs)]
            for future in futures:
                if future.key in kept:
                    kept[future.key].handle = KeptOnCluster(future, self._link)
        with handlers.postponed:
            self._link.spent.release(RELEASED)

    def _send_captured(self, packed: Packed) -> None:
        """Send large data that the program captures past the scheduler, unless it is on a worker already."""
        sizes = [memoryview(buffer).nbytes for buffer in packed.buffers]
        positions = [at for at, size in enumerate(sizes) if size >= CAPTURED_BYTES]
        if sum(sizes[at] for at in positions) < LARGE_BYTES:
            return
        with self._link.errors():
            placed = self._link.captured.place([packed.buffers[at] for at in positions])
        if placed is not None:
            self._captured, sent = placed
            self._apart = self._shared.without(positions)
            self.program_bytes = self._apart.nbytes + sent

    def _share_program(self) -> None:
        key = self._placement.program = f"program-{self._token}-{next(self._numbers)}"
        _, arguments = (self._apart if self._captured else self._shared).__reduce__()
        task = opaque_task(key, SharedProgram, *arguments)
        (self._program_future,) = self._get(Graph({key: task}), [key], {key: 1.0}, self._shared.nbytes)
        self._program = TaskRef(key)

    def _get(self, graph: Any, keys: list[Any], priority: Any, nbytes: int, at: str = "") -> list[Any]:
        threshold = {"distributed.admin.large-graph-warning-threshold": "1 TiB"}
        quiet = dask.config.set(threshold) if nbytes > QUIET_BYTES else contextlib.nullcontext()
        # dask holds a lock here that its loop wants too. So nothing may evaluate here, no callback of the
        # garbage collector either.
        with self._link.errors(), quiet, without_collections():
            if not self._link.connected:
                raise self._link.lost()
            # A callable is asked for each key on the scheduler; this one is a builtin's method, so
            # that a scheduler without parcoll can unpickle it.
            where: dict[str, Any] = {"workers": [at], "allow_other_workers": True} if at else {}
            futures: list[Any] = self._client.get(graph, keys, sync=False, priority=priority.get, **where)
        return futures

    def _task(self, key: str, job: Job, graph: dict[Any, Any]) -> Task:
        link = self._link
        ticket = Ticket(self._topic, key, job.patience)
        if self._captured:
            self._need_captured.add(job)
        isolated = job.isolated or self._isolated
        if isinstance(job, Join):
            self._check_parts(job)
            previous = None if job.previous is None else link.resolve(job.previous)
            parts = [link.resolve(part) for part in job.parts]
            join = join_isolated if isolated else join_kept
            return self._calling(key, join, ticket, job.before, job.stays, previous, *parts)
        space = None
        keep = self._keeps(job)
        if link.sharing is not None and not keep:
            lent = link.sharing.lend(job.elements, self._large_results and not isolated)
            if lent is not None:
                space, job.segment = lent
        elements: Any = (self._ahead and self._ahead.reference(job)) or job.elements
        if job.begun is not None:  # its worker handed back the rest, and was lost
            assert job.elements is not None
            elements = Packed.pack(job.elements.load()[: job.begun], job.by_value)
        if job.graph is not None:
            tasks, last = job.graph
            graph.update(tasks)
            elements = TaskRef(last)
        elif job.kept is not None:
            elements = link.resolve(job.kept)
        if isolated:  # without `space`, since the results come in slices
            return self._calling(
                key, run_isolated, job.place, keep, elements, job.budget, ticket, job.share_now
            )
        joining = job.sole.joins() if job.sole is not None else None
        settings = (job.place, keep, elements, job.budget, space, ticket, job.share_now, joining)
        return self._calling(key, run_partition, *settings)

    def _calling(self, key: str, func: Callable[..., Any], *arguments: Any) -> Task:
        """Return the task that calls `func` with the program and these arguments."""
        # Else it is best run where these are.
        queues = not any(isinstance(argument, TaskRef) for argument in arguments)
        if not self._captured:
            return opaque_task(key, func, self._program, *arguments, queues=queues)
        buffers = [TaskRef(future.key) for future in self._captured]
        captured = (len(buffers), self._program, *buffers)
        return opaque_task(key, with_buffers, func, *captured, *arguments, queues=queues)

    def _keeps(self, job: Job) -> bool:
        """Tell whether the result of a job stays where it is made."""
        return self._keep and job.sole is None

    @property
    def shared(self) -> SharedProgram | None:
        """The program, unless it is large, or its functions may have to be stopped."""
        return self._shared if self._program is self._shared and not self._isolated else None

    @property
    def has_come(self) -> bool:
        """Whether an outcome has come that nobody has taken."""
        return not self._receiving.results.empty()

    @property
    def waiting_for(self) -> str | None:
        """Which worker the tasks wait for, if there is none that may run them."""
        return self._placement.waiting_for

    def completed(self, block: bool, seconds: float = math.inf) -> list[tuple[Job, Outcome]]:
        """Return what has come; nothing if it turns out to wait for a worker. Ctrl-C interrupts the wait."""
        found: list[tuple[Job, Outcome]] = []
        known, until = self.waiting_for, time.monotonic() + seconds
        while True:
            item = self._receiving.take(block and not found, until - time.monotonic())
            if isinstance(item, list):
                replay(item)
                continue
            if item is None:
                if found or not block:
                    return found
                if not self._link.connected:
                    raise self._link.lost()
                self._placement.look(self._receiving.keys)
                if self.waiting_for != known or time.monotonic() >= until:
                    return found
                handlers.look()
                continue
            self._placement.came()
            job, outcome = item
            self._turns.came(job.order)
            if not isinstance(outcome, Lost):
                outcome = self._checked(job, outcome)
            if isinstance(outcome, Outcome) and outcome.early:
                # Alone: if its worker was lost just now, the job is sent again without what it handed back.
                return [*found, (job, outcome)]
            sent_ahead = self._ahead is not None and self._ahead.forget(job)
            needed_captured = job in self._need_captured
            self._need_captured.discard(job)
            if isinstance(outcome, Outcome) and outcome.unprogrammed:
                self._send_otherwise(job, outcome)
            elif isinstance(outcome, Outcome):
                found.append(self._received(job, outcome))
            elif outcome is Lost.WITH_WORKER:
                try:
                    self._send_again(job, found)
                except ClusterLostError as error:
                    if not found:
                        raise
                    self._receiving.fail(error)  # after what has come
                    return found
            elif needed_captured:  # which was lost with its worker: from now on it travels with the program
                if self._captured:
                    self._captured, self._program = [], None
                self._submit([job])
            elif sent_ahead:  # its elements were lost with their worker
                self._submit([job])
            elif job.graph is not None and self._link.connected:
                raise lost_for_good(
                    "the scheduler gave up a partition of the bag: results of persist() that it needs are "
                    "lost, or the scheduler cannot unpickle one of its tasks"
                )
            elif self._link.connected:
                raise self._link.restarted(self._restarts)
            else:
                raise self._link.lost()

    def _check_parts(self, job: Join) -> None:
        """Fail where what is to be joined is gone: it is of this evaluation, which can begin again."""
        for part in (job.previous, *job.parts):
            if isinstance(part, KeptOnCluster) and self._link.connected:
                if part.future.cancelled():
                    raise self._link.restarted(self._restarts)
                if part.given_up:
                    raise lost_again()

    def _send_again(self, job: Job, found: list[tuple[Job, Outcome]]) -> None:
        """Send a job again whose worker died; after the second one, in a way that the next does not."""
        job.isolated = job.isolated or len(job.lost_workers) >= WORKERS_LOST_WITHIN
        if len(job.lost_workers) <= MAX_WORKERS_LOST:
            self._submit([job])
            return
        error = WorkerLostError(
            f"{self._words}: {job.name} lost {len(job.lost_workers)} worker processes, one after the other, "
            "though its functions ran beside them"
        )
        found.append((job, Outcome(failure=Failure.of(error, f"in {job.name}"), lost=True)))

    def _send_otherwise(self, job: Job, outcome: Outcome) -> None:
        """Send a job again whose program could not be read in shared memory, and the program in a message."""
        if self._link.sharing is not None and outcome.unshared is not None:
            self._link.sharing.stop(outcome.unshared)
        if self._shared.lent is not None:
            self._shared.take_back()
            self._program = None
        self._submit([job])

    def _checked(self, job: Job, outcome: Outcome) -> Outcome:
        """Return what a worker has answered, or the outcome of one that answers with what is none."""
        size = None if isinstance(job, Join) else job.size
        sound = is_sound(outcome, size, on_this_machine=self._link.sharing is not None)
        if sound and (outcome.read or outcome.complete or outcome.failure or outcome.unshared):
            self._without_progress = 0
        elif sound and not outcome.early:
            self._without_progress += 1
        if sound and self._without_progress < MAX_WITHOUT_PROGRESS:
            return outcome
        said = "without beginning an element, again and again" if sound else f"with {describe(outcome)}"
        return answered_wrongly(job.name, said)

    def _received(self, job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
        _replay_of(outcome)
        self._large_results = self._large_results or outcome.nbytes >= SHARED_BYTES
        if isinstance(outcome.results, Shared):
            try:
                outcome.results = outcome.results.fetch()
            except Exception as error:  # of a segment that is none, or not this large
                outcome = answered_wrongly(job.name, f"with results that cannot be read: {line_of(error)}")
        if outcome.unshared is not None and self._link.sharing is not None:
            self._link.sharing.stop(outcome.unshared)
        return job, outcome

    def close(self) -> None:
        """Release all futures, which cancels the tasks that have not begun."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        with handlers.postponed:
            any_left = self._receiving.close()
        self._link.turns.end(self._turns)
        if any_left and was_interrupted():
            self._link.interrupted = True
        self._replay_left()
        if self._ahead is not None:
            self._ahead.clear()
        if self._program_future is not None:
            self._program_future.release()
        self._captured = []
        if self._lent is not None:
            self._lent.end_use()
        # Other tasks may have run in this thread meanwhile.
        if self._entered is not None and self._entered.leave() and self._shared.world is not None:
            enter(self._shared.world)

    def _replay_left(self) -> None:
        """Have the script's handlers get what was logged and nobody has taken: tasks have run it."""
        for left in (self._receiving.results, *([self._reports.late] if self._reports is not None else ())):
            with contextlib.suppress(queue.Empty):
                while True:
                    item = left.get_nowait()
                    if isinstance(item, tuple) and isinstance(item[1], Outcome):
                        _replay_of(item[1])
                    if isinstance(item, list):
                        replay(item)


def _replay_of(outcome: Outcome) -> None:
    """Have the script's handlers get what came with an outcome, if that can be read."""
    try:
        packed = loads(outcome.records) if outcome.records else ()
    except Exception as error:
        logger.warning("what a worker has logged cannot be unpickled here: %s", message_of(error))
    else:
        replay(packed)
