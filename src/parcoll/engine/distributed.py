"""Evaluation on a dask scheduler, through a `distributed.Client`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask
import distributed
from dask._task_spec import Task, TaskRef
from distributed.scheduler import KilledWorker

from parcoll.engine.base import Job
from parcoll.engine.sharing import Sharing
from parcoll.errors import ClusterLostError, ParcollError, WorkerLostError
from parcoll.failure import Failure
from parcoll.outcome import Kept, Outcome
from parcoll.pickling import Packed, Payload, Shared, cannot_send
from parcoll.program import Program, SharedProgram
from parcoll.tasks import content, join_kept, report, run_partition
from parcoll.text import key_words

EMBEDDED_BYTES = 64 * 1024  # a larger program is a key of its own, and travels once a worker
QUIET_BYTES = 8 * 2**20  # dask warns above 10 MB a submission, advice that does not apply here
LIVENESS_SECONDS = 1.0  # between two looks at whether the client still has a scheduler
GATHER_ATTEMPTS = 3  # for a result whose worker died just when it was asked for it
MAX_LABEL = 100  # characters
# Futures whose outcome has come hold nothing large. Each release wakes the scheduler and a worker.
RELEASED = 32

_in_task = threading.local()
_sessions: weakref.WeakSet[DistributedSession] = weakref.WeakSet()


class DistributedEngine:
    """Runs programs on the cluster of one client."""

    def __init__(
        self,
        client: Any,
        *,
        direct: bool | None = None,
        search_path: Sequence[str] = (),
        why_lost: Callable[[], str | None] = lambda: None,
        sharing: Sharing | None = None,
        reporting: bool = False,
    ) -> None:
        """Use the client's cluster.

        `sharing` where its workers are on this machine; `reporting` where they have the plugin that
        sends outcomes (`engine.reports`).
        """
        if client.asynchronous:
            raise TypeError("parcoll needs a synchronous client: this one was made with asynchronous=True")
        self.client = client
        self.direct = direct
        self.search_path = tuple(search_path)
        self.sharing = sharing
        self._why_lost = why_lost
        # Digits only: dask groups keys by their leading words of letters, and two clients of one
        # scheduler must not make the same key.
        self.token = str(int.from_bytes(os.urandom(8), "big"))
        self.numbers = itertools.count()
        self.topic = f"parcoll-{self.token}" if reporting else None
        self.waiting: dict[str, DistributedSession] = {}  # for reports, by the key of the task
        if self.topic is not None:
            client.subscribe_topic(self.topic, self._on_report)

    def open(self, program: Program, label: str, keep: bool) -> DistributedSession:
        """Start an evaluation; names what cannot be pickled."""
        return DistributedSession(self, _pack_program(program), label, keep)

    def _on_report(self, event: tuple[float, tuple[str, bytes]]) -> None:
        key, outcome = event[1]
        session = self.waiting.pop(key, None)
        if session is not None:  # none for a task that ran again after its report
            session.reported(key, pickle.loads(outcome))

    def pack(self, value: Any) -> Payload:
        """Pickle the value."""
        return Packed.pack(value)

    def threads(self) -> int:
        """Ask the scheduler how many threads its workers have."""
        with self.errors():
            return sum(self.client.nthreads().values())

    def fetch(self, handle: Any) -> Payload | None:
        """Bring the content of a kept result here, and nothing else of it."""
        with self.errors():
            key = f"content-{self.token}-{next(self.numbers)}"
            task = Task(key, content, self.resolve(handle))
            (future,) = self.client.get({key: task}, [key], sync=False)
            payload: Payload | None = self.client.gather(future, direct=self.direct)
        return payload

    def persist(self, bag: Any) -> Any:
        """Compute a bag whose partitions share tasks on the cluster, once."""
        return self.client.persist(bag)

    @property
    def connected(self) -> bool:
        """Tell whether the client has a scheduler, or waits for it to come back."""
        return self.client.status in ("running", "connecting")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what dask raises when its scheduler is gone into one sentence."""
        try:
            yield
        except ParcollError:
            raise
        except (OSError, asyncio.CancelledError) as error:
            raise self.lost() from error
        except RuntimeError as error:
            if self.connected:
                raise
            raise self.lost() from error

    def lost(self) -> ClusterLostError:
        """Return the error for a scheduler that is gone."""
        reason = self._why_lost()
        if reason is None:
            address = getattr(getattr(self.client, "scheduler", None), "address", "of this client")
            reason = f"the dask scheduler {address} is gone: its connection was closed or lost"
        return ClusterLostError(reason)

    def resolve(self, reference: Any) -> Any:
        """Return a kept result as an argument for a task of this cluster."""
        if not isinstance(reference, distributed.Future):
            return reference  # kept in this process: it travels with the task
        if _same_scheduler(reference.client, self.client) and not reference.cancelled():
            return TaskRef(reference.key)
        return result_of(reference)


def result_of(reference: Any) -> Kept:
    """Bring a kept result here, from whatever cluster keeps it."""
    gone = "the results of foreach() are gone: the cluster that kept them was closed or lost"
    try:
        if reference.cancelled() or reference.client.status != "running":
            raise ClusterLostError(gone)
        kept: Kept = reference.result()
    except (OSError, RuntimeError, asyncio.CancelledError) as error:
        raise error if isinstance(error, ParcollError) else ClusterLostError(gone) from error
    return kept


def _same_scheduler(one: Any, other: Any) -> bool:
    if one is other:
        return True
    closed = one.scheduler is None or other.scheduler is None
    return not closed and one.scheduler.address == other.scheduler.address


def _pack_program(program: Program) -> Packed:
    try:
        return Packed.pack(program)
    except Exception as error:
        for step in program.steps:
            _check_function(step.func, f"the function of {step.label}")
        if program.fold is not None:
            _check_function(program.fold.func, f"the function of {program.fold.label}")
        raise cannot_send(None, "the chain", error) from error


def _check_function(func: Any, role: str) -> None:
    try:
        Packed.pack(func)
    except Exception as error:
        raise cannot_send(func, role, error) from error


class DistributedSession:
    """One program on the cluster: its tasks, and a coroutine that gathers results in groups."""

    def __init__(self, engine: DistributedEngine, packed: Packed, label: str, keep: bool) -> None:
        self._engine = engine
        self._client = engine.client
        self._keep = keep
        self._adding = threading.Lock()
        number = next(engine.numbers)
        self._token = f"{engine.token}-{number}"
        self._words = key_words(label)[:MAX_LABEL].rstrip("-")
        self._numbers = itertools.count()
        self._pid = os.getpid()
        self._closed = False
        self._gathering = False
        self._results: queue.SimpleQueue[tuple[Job, Outcome] | BaseException] = queue.SimpleQueue()
        self._pending: dict[Any, Job] = {}  # by the future whose value is the job's outcome
        self._reported: list[Any] = []  # futures whose outcome is here: released with the next message
        self._by_key: dict[str, Any] = {}  # the futures whose outcome is to be reported
        self._wake = asyncio.Event()
        self._completed = distributed.as_completed(loop=self._client.loop)
        self._collector: asyncio.Task[None] | None = None
        large = packed.nbytes > EMBEDDED_BYTES
        self._shared = SharedProgram(packed, self._token, engine.search_path, cached=not large)
        self._program: Any = None if large else self._shared
        self._program_future: Any = None
        self._thread = threading.get_ident()
        self._seceded = _enter_task()
        _sessions.add(self)
        self._client.loop.add_callback(self._start_collecting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Send jobs to the scheduler in one message."""
        graph: dict[Any, Any] = {}
        priority: dict[Any, float] = {}
        if self._program is None:
            self._share_program()
        reporting = self._engine.topic is not None
        outcome_keys: list[str] = []
        kept_keys: list[str] = []
        for job in jobs:
            before = set(graph)
            key = f"{self._words}-{self._token}-{next(self._numbers)}"
            graph[key] = self._task(key, job, graph)
            if self._keep and not reporting:
                kept_keys.append(key)
                key = f"report-{key}"
                graph[key] = Task(key, report, TaskRef(kept_keys[-1]))
            outcome_keys.append(key)
            # Without a priority each, a group of tasks runs last first.
            priority |= dict.fromkeys(graph.keys() - before, -float(job.order))
            if reporting:
                self._engine.waiting[key] = self
        nbytes = sum(job.message_bytes for job in jobs)
        # Whoever reads a report looks for its future, which is here a moment later.
        with self._adding:
            futures = self._get(graph, [*outcome_keys, *kept_keys], priority, nbytes)
            kept = (futures if reporting else futures[len(jobs) :]) if self._keep else []
            for job, handle in zip(jobs, kept, strict=False):
                job.handle = handle
            for job, key, future in zip(jobs, outcome_keys, futures, strict=False):
                self._pending[future] = job
                if reporting:
                    self._by_key[key] = future
                self._completed.add(future)
        if len(self._reported) >= RELEASED:
            self._reported.clear()
        self._client.loop.add_callback(self._wake.set)

    def reported(self, key: str, outcome: Outcome) -> None:
        """Take an outcome that a worker sent; called in the client's loop."""
        with self._adding:
            future = self._by_key.pop(key, None)
        job = self._pending.pop(future, None) if future is not None else None
        if job is not None:
            self._results.put((job, outcome))
            self._reported.append(future)

    def _share_program(self) -> None:
        key = f"program-{self._token}"
        task = Task(key, SharedProgram, self._shared.packed, self._token, self._shared.search_path, False)
        (self._program_future,) = self._get({key: task}, [key], {key: 1.0}, self._shared.packed.nbytes)
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
        ticket = (engine.topic, key) if engine.topic is not None else None
        if job.kind == "join":
            parts = [None if part is None else self._engine.resolve(part) for part in job.parts]
            return Task(key, join_kept, self._program, ticket, *parts)
        lend = engine.sharing is not None and not self._keep
        space = engine.sharing.lend(job) if engine.sharing is not None and lend else None
        elements: Any = job.elements
        if job.graph is not None:
            tasks, last = job.graph
            graph.update(tasks)
            elements = TaskRef(last)
        elif job.reference is not None:
            elements = self._engine.resolve(job.reference)
        settings = (self._keep, elements, job.budget, space, ticket)
        return Task(key, run_partition, self._program, job.place, *settings)

    def completed(self, block: bool) -> list[tuple[Job, Outcome]]:
        """Return what has been gathered; Ctrl-C interrupts the wait."""
        found: list[tuple[Job, Outcome]] = []
        while True:
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
            found.append(self._received(*item))

    def _received(self, job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
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
        with contextlib.suppress(RuntimeError):  # the client's loop has been closed
            self._client.loop.add_callback(self._stop_collecting)
        for key in list(self._by_key):
            self._engine.waiting.pop(key, None)
        self._by_key.clear()
        self._reported.clear()
        while self._pending:
            with contextlib.suppress(KeyError):  # taken by the collector meanwhile
                self._pending.popitem()[0].release()
        self._program_future = None
        if self._seceded and self._thread == threading.get_ident():
            _leave_task()  # closed by another thread: the task's own thread ends with its task

    def _start_collecting(self) -> None:
        if not self._closed:
            self._collector = asyncio.ensure_future(self._collect())

    def _stop_collecting(self) -> None:
        # A gather is never cancelled: the client shares it with those of other evaluations, which
        # would be cancelled too. It ends by itself, and the collector after it.
        if self._collector is not None and not self._gathering:
            self._collector.cancel()

    async def _collect(self) -> None:
        try:
            while not self._closed:
                self._wake.clear()
                try:
                    batch = [await self._completed.__anext__()]
                except StopAsyncIteration:  # nothing is under way: wait for the next submission
                    if self._completed.is_empty():
                        await self._wake.wait()
                    continue
                batch += self._completed.next_batch(block=False)
                self._gathering = True
                await self._deliver(batch)
                self._gathering = False
                del batch  # releases its futures before the next wait
        except Exception as error:
            self._results.put(error)
        except asyncio.CancelledError:
            if not self._closed:  # the client's loop ends: nobody else would tell the consumer
                self._results.put(self._engine.lost())
            raise

    async def _deliver(self, futures: list[Any]) -> None:
        """Bring the outcomes of finished tasks here, all with one request where that goes well."""
        taken = {future: job for future in futures if (job := self._pending.pop(future, None))}
        for future in taken:
            self._engine.waiting.pop(future.key, None)
            self._by_key.pop(future.key, None)
        finished = [future for future in taken if future.status == "finished"]
        try:
            values = await self._gather(finished) if finished else []
        except Exception:
            # One of them was lost with its worker and failed when it ran again: which one?
            finished, values = [], []
        for future, outcome in zip(finished, values, strict=True):
            self._results.put((taken.pop(future), outcome))
        for future, job in taken.items():
            self._results.put(await self._one_outcome(future, job))

    async def _gather(self, futures: list[Any]) -> list[Outcome]:
        results = await self._client.gather(futures, direct=self._engine.direct, asynchronous=True)
        return [report(result) for result in results]

    async def _one_outcome(self, future: Any, job: Job) -> tuple[Job, Outcome] | BaseException:
        for _ in range(GATHER_ATTEMPTS):
            if future.status == "cancelled":
                break
            error = await future.exception()  # waits where dask runs the task again
            if error is not None:
                return job, self._task_failed(error, job)
            with contextlib.suppress(Exception):
                return job, (await self._gather([future]))[0]
        return self._engine.lost()

    def _task_failed(self, error: BaseException, job: Job) -> Outcome:
        """Describe a task that dask itself failed: its function never raises."""
        many = "" if job.size is None else f"{job.size} element{'s' * (job.size > 1)} from "
        where = f"the partition of {many}{job.place.element(0)}"
        if job.kind == "join":
            where = f"the join of {len(job.parts) - 1} partitions"
        if isinstance(error, KilledWorker):
            lost: BaseException = WorkerLostError(
                f"{self._words}: {where} ended {error.allowed_failures + 1} worker processes, one after "
                "the other: a function of the chain crashes, exits the process or needs too much memory"
            )
        else:
            lost = error
        lost.__cause__ = error if lost is not error else error.__cause__
        return Outcome(failure=Failure.of(lost, f"in {where}"), lost=True)


def _silence_collectors() -> None:
    """In a fork: a parent's collectors will never run here, and are no news at the child's end."""
    for session in list(_sessions):
        if session._collector is not None:
            # asyncio's own switch for tasks that are known to end unfinished (its gather uses it).
            session._collector._log_destroy_pending = False  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_silence_collectors)


def _enter_task() -> bool:
    """Leave the worker's thread pool while a task of it evaluates, so that inner tasks find a thread.

    Waiting inside would be a deadlock: a worker has one thread, and the waiting task holds it.
    """
    depth = getattr(_in_task, "depth", 0)
    if depth == 0:
        try:
            distributed.secede()
        except (ValueError, AttributeError, KeyError):  # not in a task's thread
            return False
    _in_task.depth = depth + 1
    return True


def _leave_task() -> None:
    _in_task.depth -= 1
    if _in_task.depth == 0:
        distributed.rejoin()
