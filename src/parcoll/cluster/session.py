"""One evaluation on a dask cluster: tasks are sent in groups, and outcomes come back."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask
from dask._task_spec import Task, TaskRef
from distributed.scheduler import KilledWorker

from parcoll.cluster.ahead import Ahead
from parcoll.cluster.gathering import Gathering, WorkerLostMeanwhile
from parcoll.cluster.given_up import failed, name_of, refused_bag
from parcoll.cluster.interrupted import was_interrupted
from parcoll.cluster.losses import register
from parcoll.cluster.nesting import enter_task, leave_task
from parcoll.cluster.receiving import Collector
from parcoll.cluster.sending import opaque_task
from parcoll.errors import ClusterLostError, WorkerLostError
from parcoll.evaluation.engine import Job
from parcoll.text import key_words
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import SHARED_BYTES, Packed, Shared
from parcoll.worker.isolation import join_isolated, run_isolated
from parcoll.worker.outcome import Outcome, Ticket, report
from parcoll.worker.program import SharedProgram
from parcoll.worker.tasks import join_kept, run_partition

if TYPE_CHECKING:
    from parcoll.cluster.engine import DistributedEngine

EMBEDDED_BYTES = 64 * 1024  # a larger program is a key of its own, and travels once a worker
QUIET_BYTES = 8 * 2**20  # dask warns above 10 MB a submission, advice that does not apply here
LIVENESS_SECONDS = 0.25  # between two looks at whether the scheduler is there, and has given up a task
GATHER_ATTEMPTS = 3  # for a result whose worker died just when it was asked for it
MAX_LABEL = 100  # characters
MAX_LOSSES = 6  # of workers that had one job, after which it is given up: isolated, it is hardly to blame
REPORT = "report-"  # before the key of the task that it reports
# Futures whose outcome has come hold nothing large. Each release wakes the scheduler and a worker.
RELEASED = 32
# The client's thread needs the GIL several times to send, and the caller's goes on to pickle the next
# partition, which holds it for milliseconds at a time. Without a rest tasks came 20 ms late to the scheduler.
REST_SECONDS = 0.001


class Lost(enum.Enum):
    """Why a job has no outcome."""

    CANCELLED = enum.auto()  # dask gave it up without trying
    WITH_WORKER = enum.auto()


class DistributedSession:
    """One program on the cluster: its tasks, and their outcomes as they come.

    The workers of a local cluster send outcomes (`engine.reports`); of any other, a collector asks.
    """

    def __init__(
        self,
        engine: DistributedEngine,
        packed: Packed,
        modules: bytes,
        label: str,
        keep: bool,
        isolated: bool = False,
    ) -> None:
        self._engine = engine
        self._client = engine.client
        self._keep = keep
        self._isolated = isolated
        number = next(engine.numbers)
        self._token = f"{engine.token}-{number}"
        self._words = key_words(label)[:MAX_LABEL].rstrip("-")
        self._numbers = itertools.count()
        self._pid = os.getpid()
        self._closed = False
        self._results: queue.SimpleQueue[tuple[Job, Outcome | Lost] | BaseException] = queue.SimpleQueue()
        self._pending: dict[Any, Job] = {}  # by the future whose value is the job's outcome
        # Those of them whose outcome is being fetched; client's loop only.
        self._delivering: dict[Any, Job] = {}
        self._gathering = Gathering(self._client)
        self._adding = threading.Lock()  # held while tasks are sent whose futures are not here yet
        self._by_key: dict[str, Any] = {}  # futures whose outcome a worker will send
        self._reported: list[Any] = []  # futures whose outcome was sent, to be released
        self._large_results = False  # seen so far
        self._looked = time.monotonic()
        self._finished: set[Any] = set()  # futures that were done at the last look, without a report
        self._fetching: set[asyncio.Task[None]] = set()
        self._collector = None if engine.topic is not None else Collector(self._client.loop, self)
        self._ahead: Ahead | None = None
        self._shared = SharedProgram(packed, self._token, engine.search_path, modules)
        large = self._shared.nbytes > EMBEDDED_BYTES
        self._shared.cached = not large
        self._program: Any = None if large else self._shared
        self._program_future: Any = None
        self._thread = threading.get_ident()
        register(self._client, self.lose)
        self._seceded = enter_task()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Send jobs to the scheduler in one message, and large partitions straight to workers."""
        # Not where results are kept: to make one again, dask needs the elements still.
        if self._ahead is None and self._engine.sends_ahead and not self._keep:
            self._ahead = Ahead(self._client, self._token)
        if self._ahead is not None:
            with self._engine.errors():
                self._ahead.send(jobs)
        self._submit(jobs)

    def _submit(self, jobs: Sequence[Job]) -> None:
        graph: dict[Any, Any] = {}
        priority: dict[Any, float] = {}
        if self._program is None:
            self._share_program()
        reporting = self._collector is None
        outcome_keys: list[str] = []
        kept_keys: list[str] = []
        for job in jobs:
            before = set(graph)
            key = f"{self._words}-{self._token}-{next(self._numbers)}"
            graph[key] = self._task(key, job, graph)
            if self._keep and not reporting:
                kept_keys.append(key)
                key = f"{REPORT}{key}"
                graph[key] = opaque_task(key, report, TaskRef(kept_keys[-1]))
            outcome_keys.append(key)
            # Without a priority each, a group of tasks runs last first.
            priority |= dict.fromkeys(graph.keys() - before, -float(job.order))
        nbytes = sum(job.message_bytes for job in jobs)  # at most
        # Whoever reads a report looks for its future, which is here a moment later.
        with self._adding:
            if reporting:
                self._engine.waiting.update(dict.fromkeys(outcome_keys, self))
            try:
                futures = self._get(graph, [*outcome_keys, *kept_keys], priority, nbytes)
            except BaseException:
                for key in outcome_keys:
                    self._engine.waiting.pop(key, None)
                raise
            kept = (futures if reporting else futures[len(jobs) :]) if self._keep else []
            for job, handle in zip(jobs, kept, strict=False):
                job.handle = handle
            for job, key, future in zip(jobs, outcome_keys, futures, strict=False):
                self._pending[future] = job
                if reporting:
                    self._by_key[key] = future
        if self._collector is not None:
            self._collector.add(futures[: len(jobs)])
        if len(self._reported) >= RELEASED:
            self._release_reported()
        time.sleep(REST_SECONDS)

    def _release_reported(self) -> None:
        """Release futures whose outcome has come: not by dropping them, since `__del__` swallows a Ctrl-C."""
        with contextlib.suppress(IndexError):  # the client's loop may take them too
            while True:
                self._reported.pop().release()

    def reported(self, key: str, outcome: Outcome | None) -> None:
        """Take an outcome that a worker sent, or fetch one too large for that; runs in the client's loop."""
        with self._adding:
            future = self._by_key.pop(key, None)
        if outcome is None:
            self._fetch([future])
        elif (job := self._pending.pop(future, None)) is not None:
            self._results.put((job, outcome))
            if not self._keep:  # else it is the handle, too
                self._reported.append(future)

    def _fetch(self, futures: list[Any]) -> None:
        self._keep_task(asyncio.ensure_future(self.deliver(futures)))

    def _keep_task(self, task: asyncio.Task[None]) -> None:
        self._fetching.add(task)
        task.add_done_callback(self._fetched)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._results.put(error)

    def lose(self, worker: str, keys: list[str]) -> None:
        """Send tasks that a lost worker had again, isolated; runs in the client's loop."""
        self._gathering.lose()
        self._reported.clear()  # else dask would run those again that the worker had done
        wanted = set(keys)
        with self._adding:
            known = [*self._pending, *self._delivering]
            lost = [future for future in known if future.key.removeprefix(REPORT) in wanted]
            for future in lost:
                self._by_key.pop(future.key, None)
                self._engine.waiting.pop(future.key, None)
        for future in lost:
            job = self._pending.pop(future, None) or self._delivering.pop(future, None)
            if job is not None:
                job.lost_workers.append(worker)
                job.handle = None  # with the future goes dask's own attempt to run it again as it is
                self._results.put((job, Lost.WITH_WORKER))
        if lost:  # others have the futures too: a collector, or a gather that would have them run again
            self._keep_task(asyncio.ensure_future(self._client.cancel(lost, asynchronous=True)))

    def _look_for_lost(self) -> None:
        """Fetch what became of tasks that ended without a report: dask gave them up.

        A report comes before dask's word that the task is done, so one that is missing at two looks
        will not come.
        """
        now = time.monotonic()
        if now - self._looked < LIVENESS_SECONDS:
            return
        self._looked = now
        with self._adding:
            done = {future for future in self._by_key.values() if future.status != "pending"}
            ended = [future for future in done if future.status != "finished" or future in self._finished]
            self._finished = done.difference(ended)
            for future in ended:
                del self._by_key[future.key]
                self._engine.waiting.pop(future.key, None)
        if ended:
            self._client.loop.add_callback(self._fetch, ended)

    def _share_program(self) -> None:
        key = f"program-{self._token}"
        _, arguments = self._shared.__reduce__()
        task = opaque_task(key, SharedProgram, *arguments)
        (self._program_future,) = self._get({key: task}, [key], {key: 1.0}, self._shared.nbytes)
        self._program = TaskRef(key)

    def _get(self, graph: Any, keys: list[Any], priority: Any, nbytes: int) -> list[Any]:
        threshold = {"distributed.admin.large-graph-warning-threshold": "1 TiB"}
        quiet = dask.config.set(threshold) if nbytes > QUIET_BYTES else contextlib.nullcontext()
        with self._engine.errors(), quiet:
            if not self._engine.connected:
                raise self._engine.lost()
            # A callable is asked for each key on the scheduler; this one is a builtin's method, so
            # that a scheduler without parcoll can unpickle it.
            futures: list[Any] = self._client.get(graph, keys, sync=False, priority=priority.get)
        return futures

    def _task(self, key: str, job: Job, graph: dict[Any, Any]) -> Task:
        engine = self._engine
        ticket = Ticket(engine.topic, key) if engine.topic is not None else None
        isolated = job.isolated or self._isolated
        if job.kind == "join":
            parts = [None if part is None else engine.resolve(part) for part in job.parts]
            join = join_isolated if isolated else join_kept
            return opaque_task(key, join, self._program, ticket, *parts)
        space = None
        if engine.sharing is not None and not self._keep:
            lent = engine.sharing.lend(job.elements, self._large_results and not isolated)
            if lent is not None:
                space, job.segment = lent
        elements: Any = (self._ahead and self._ahead.reference(job)) or job.elements
        if job.graph is not None:
            tasks, last = job.graph
            graph.update(tasks)
            elements = TaskRef(last)
        elif job.reference is not None:
            elements = engine.resolve(job.reference)
        settings: tuple[Any, ...]
        if isolated:  # and without `space`, since it comes in pieces
            settings = (job.place, self._keep, elements, job.budget, ticket)
            return opaque_task(key, run_isolated, self._program, *settings)
        settings = (job.place, self._keep, elements, job.budget, space, ticket)
        return opaque_task(key, run_partition, self._program, *settings)

    def completed(self, block: bool) -> list[tuple[Job, Outcome]]:
        """Return what has been gathered; Ctrl-C interrupts the wait."""
        found: list[tuple[Job, Outcome]] = []
        while True:
            self._look_for_lost()
            try:
                item = self._results.get(block and not found, LIVENESS_SECONDS)
            except queue.Empty:
                if found or not block:
                    return found
                if not self._engine.connected:
                    raise self._engine.lost() from None
                continue
            if isinstance(item, BaseException):
                raise item
            job, outcome = item
            sent_ahead = self._ahead is not None and self._ahead.forget(job)
            if isinstance(outcome, Outcome):
                found.append(self._received(job, outcome))
            elif outcome is Lost.WITH_WORKER:
                try:
                    self._send_again(job, found)
                except ClusterLostError as error:
                    if not found:
                        raise
                    self._results.put(error)  # after what has come
                    return found
            elif sent_ahead:  # its elements were lost with their worker
                self._submit([job])
            elif job.graph is not None and self._engine.connected:
                raise refused_bag()
            else:
                raise self._engine.lost()

    def _send_again(self, job: Job, found: list[tuple[Job, Outcome]]) -> None:
        """Send a job again whose worker died, so that the next one does not."""
        job.isolated = True
        job.losses += 1
        if job.losses <= MAX_LOSSES:
            self._submit([job])
            return
        where = name_of(job)
        error = WorkerLostError(
            f"{self._words}: {where} lost {job.losses} worker processes, one after the other, though its "
            "functions ran beside them"
        )
        found.append((job, Outcome(failure=Failure.of(error, f"in {where}"), lost=True)))

    def _received(self, job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
        self._large_results = self._large_results or outcome.nbytes >= SHARED_BYTES
        if isinstance(outcome.results, Shared):
            outcome.results = outcome.results.fetch()
        if outcome.unshared is not None and self._engine.sharing is not None:
            self._engine.sharing.stop(outcome.unshared)
        return job, outcome

    def close(self) -> None:
        """Release all futures, which cancels the tasks that have not begun."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        if self._pending and was_interrupted():
            self._engine.interrupted = True
        if self._collector is not None:
            self._collector.stop()
        for key in list(self._by_key):
            self._engine.waiting.pop(key, None)
        self._by_key.clear()
        self._release_reported()
        if self._ahead is not None:
            self._ahead.clear()
        while self._pending:
            with contextlib.suppress(KeyError):  # taken by the collector meanwhile
                self._pending.popitem()[0].release()
        if self._program_future is not None:
            self._program_future.release()
        if self._seceded and self._thread == threading.get_ident():
            leave_task()  # closed by another thread: the task's own thread ends with its task

    async def deliver(self, futures: list[Any]) -> None:
        """Bring the outcomes of finished tasks here, all with one request where that goes well."""
        taken = [future for future in futures if future in self._pending]
        for future in taken:
            if (job := self._pending.pop(future, None)) is not None:
                self._delivering[future] = job
        finished = [future for future in taken if future.status == "finished"]
        try:
            values = await self._gathering.outcomes(finished, self._engine.direct) if finished else []
        except Exception:
            # One of them was lost with its worker, or it failed when it ran again: which one?
            finished, values = [], []
        for future, outcome in zip(finished, values, strict=True):
            self._put(future, outcome)
        for future in taken:
            if (job := self._delivering.get(future)) is not None:
                self._put(future, await self._one_outcome(future, job))

    def _put(self, future: Any, outcome: Outcome | Lost) -> None:
        """Hand an outcome over, unless its job was sent again meanwhile."""
        if (job := self._delivering.pop(future, None)) is not None:
            self._results.put((job, outcome))

    def fail(self, error: BaseException) -> None:
        """Have the consumer raise an error."""
        self._results.put(error)

    def lost(self) -> BaseException:
        """Return the error for a scheduler that is gone."""
        return self._engine.lost()

    @property
    def closed(self) -> bool:
        """Tell whether nobody waits for outcomes any more."""
        return self._closed

    async def _one_outcome(self, future: Any, job: Job) -> Outcome | Lost:
        """Return what became of a job."""
        attempts = 0
        while attempts < GATHER_ATTEMPTS and future in self._delivering and future.status != "cancelled":
            error = await future.exception()  # waits where dask runs the task again
            if error is not None:
                return Lost.WITH_WORKER if isinstance(error, KilledWorker) else failed(error, job)
            try:
                return (await self._gathering.outcomes([future], self._engine.direct))[0]
            except Exception as error:  # where it was lost with its worker, `lose` takes the job away
                attempts += not isinstance(error, WorkerLostMeanwhile)
        return Lost.CANCELLED
