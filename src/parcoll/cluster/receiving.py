"""Receiving: the outcomes of one evaluation's tasks, as they come from a cluster.

The workers of a local cluster send them (`worker.reports`). Of any other cluster, a collector asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import os
import queue
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import distributed
from distributed.scheduler import KilledWorker

from parcoll.clock import time
from parcoll.cluster import losses, nesting
from parcoll.cluster.link import Gathering, Link, WorkerLostMeanwhileError
from parcoll.errors import SerializationError
from parcoll.evaluation.engine import Job
from parcoll.system import Inbox
from parcoll.text import line_of
from parcoll.wire.exceptions import Failure
from parcoll.worker.outcome import Outcome
from parcoll.worker.reports import answered_wrongly, understood

LIVENESS_SECONDS = 0.25  # between two looks at whether the scheduler is there, and has given up a task
GATHER_ATTEMPTS = 3  # for a result whose worker died just when the result was asked for
REPORT = "report-"  # before the key of the task that reports another one's outcome


class Lost(enum.Enum):
    """Why a job has no outcome."""

    CANCELLED = enum.auto()  # dask gave it up without trying
    WITH_WORKER = enum.auto()


Result = tuple[Job, Outcome | Lost] | list[bytes]  # what became of a job, or what tasks have logged


class ReportReader:
    """The outcomes that workers send to one client, each for the evaluation that waits for it."""

    def __init__(self, link: Link) -> None:
        self.topic = f"parcoll-{link.token}"
        self.waiting: dict[str, Receiving] = {}  # by the key of the task
        self.late: queue.SimpleQueue[Any] = queue.SimpleQueue()  # what was logged when nobody waited
        link.client.subscribe_topic(self.topic, self._on_report)

    def _on_report(self, event: Any) -> None:
        key, outcome, records = understood(event)
        if records is not None:
            waiting = self.waiting.get(key) or next(iter(self.waiting.values()), None)
            (waiting.results if waiting is not None else self.late).put(records)
            return
        early = outcome is not None and outcome.early
        receiving = self.waiting.get(key) if early else self.waiting.pop(key, None)
        if receiving is None:
            return  # a second report: the task ran again after the first
        receiving.reported(key, outcome)


class Receiving:
    """The jobs of one evaluation that are under way, and the outcomes that nobody has taken yet."""

    def __init__(self, link: Link, reports: ReportReader | None) -> None:
        self._link = link
        self._client = link.client
        self._reports = reports
        self.closed = False
        # None wakes whoever waits.
        self.results: Inbox[Result | BaseException | None] = Inbox()
        self.pending: dict[Any, Job] = {}  # those whose outcome has not come, by its future
        # The jobs whose outcome is being fetched; in the client's loop only.
        self._delivering: dict[Any, Job] = {}
        self._gathering = Gathering(self._client)
        self._by_key: dict[str, Any] = {}  # futures whose outcome a worker will send
        # What came while tasks were sent whose futures were not here yet. There is no lock: the client's loop
        # would wait for a thread that may itself evaluate in the meantime, in a callback of the garbage
        # collector, and wait for the loop.
        self._too_soon: dict[int, tuple[str, Outcome | None]] = {}
        self._numbers = itertools.count()
        # The workers of tasks that were lost while they were sent, by key; in the client's loop only. dask
        # runs these again at once, and what comes of that may be here before `lose` is called once more.
        self._lost_too_soon: dict[str, str] = {}
        self._sending = False
        self._looked = time.monotonic()
        self._finished: set[Any] = set()  # futures that were done at the last look, without a report
        self._fetching: set[asyncio.Task[None]] = set()
        self._collector = _Collector(self._client.loop, self) if reports is None else None
        losses.register(self._client, self.lose)

    @contextlib.contextmanager
    def expecting(self, keys: Sequence[str], jobs: Sequence[Job]) -> Any:
        """Wait for the outcomes of tasks that the block submits. Gives the list to put their futures into.

        A report may come before the futures are here, and is looked at when the block ends.
        """
        futures: list[Any] = []
        if self._reports is not None:
            self._reports.waiting.update(dict.fromkeys(keys, self))
        self._sending = True
        try:
            yield futures
            for job, key, future in zip(jobs, keys, futures, strict=True):
                self.pending[future] = job
                if self._reports is not None:
                    self._by_key[key] = future
        except BaseException:
            self._forget(keys)
            raise
        finally:
            self._sending = False
        self._take_what_came()
        if self._collector is not None:
            self._collector.add(futures)

    def _take_what_came(self) -> None:
        loop = self._client.loop
        for number in _snapshot(self._too_soon):
            if (report := self._too_soon.pop(number, None)) is not None:
                loop.add_callback(self.reported, *report)
        if self._lost_too_soon:
            loop.add_callback(self._lose_what_was_lost_too_soon)

    def _forget(self, keys: Sequence[str]) -> None:
        for key in keys if self._reports is not None else ():
            self._reports.waiting.pop(key, None)  # type: ignore[union-attr]

    def reported(self, key: str, outcome: Outcome | None) -> None:
        """Take an outcome that a worker sent, or fetch one too large for that. In the client's loop."""
        if key in self._lost_too_soon and key in self._by_key:
            self._lose_what_was_lost_too_soon()
            return
        goes_on = outcome is not None and outcome.early
        future = self._by_key.get(key) if goes_on else self._by_key.pop(key, None)
        if future is None:  # not here yet; or it came just now, and then one of two threads takes the outcome
            number = next(self._numbers)
            self._too_soon[number] = key, outcome
            if self._sending or self._too_soon.pop(number, None) is None:
                return
            future = self._by_key.get(key) if goes_on else self._by_key.pop(key, None)
            if future is None:
                return  # nobody waits for it any more
        if outcome is None:
            self._fetch([future])
        elif goes_on:
            if (job := self.pending.get(future)) is not None:
                self.results.put((job, outcome))
        elif (job := self.pending.pop(future, None)) is not None:
            self.results.put((job, outcome))
            if job.handle is None:  # a kept result's future is its handle too
                self._link.spent.add(future, last=not self.pending)

    def _fetch(self, futures: list[Any]) -> None:
        self._keep_task(asyncio.ensure_future(self.deliver(futures)))

    def _keep_task(self, task: asyncio.Task[None]) -> None:
        self._fetching.add(task)
        task.add_done_callback(self._fetched)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.results.put(error)

    def lose(self, worker: str, keys: list[str]) -> None:
        """Give up tasks that a lost worker had, so that they are sent again. In the client's loop."""
        self._gathering.lose()
        self._link.spent.clear()  # else dask would run tasks again that the worker had done
        wanted = set(keys)
        if self._sending:  # perhaps some of these; but what they have reported as a whole counts
            came = self._too_soon.copy().values()
            whole = {key for key, outcome in came if outcome is not None and not outcome.early}
            self._lost_too_soon |= dict.fromkeys(wanted - whole, worker)
        known = [*_snapshot(self.pending), *self._delivering]
        lost = [future for future in known if future.key.removeprefix(REPORT) in wanted]
        for future in lost:
            self._by_key.pop(future.key, None)
        self._forget([future.key for future in lost])
        for future in lost:
            job = self.pending.pop(future, None) or self._delivering.pop(future, None)
            if job is not None:
                job.lost_workers.append(worker)
                job.handle = None  # without its future, dask does not run the task again as it is
                self.results.put((job, Lost.WITH_WORKER))
        if lost:  # a collector has the futures too, or a gather, which would have them run again
            self._keep_task(asyncio.ensure_future(self._client.cancel(lost, asynchronous=True)))

    def _lose_what_was_lost_too_soon(self) -> None:
        """Give up tasks of which a worker was lost before they were known here. In the client's loop."""
        lost, self._lost_too_soon = self._lost_too_soon, {}
        for worker in dict.fromkeys(lost.values()):
            self.lose(worker, [key for key in lost if lost[key] == worker])

    def take(self, block: bool, seconds: float = LIVENESS_SECONDS) -> Result | None:
        """Return what has come next; None if nothing has, with `block` after these seconds, or a moment."""
        self._look_for_lost()
        item: Result | BaseException | None = None
        if block:
            item = nesting.wait_for(self.results, max(0.0, min(seconds, LIVENESS_SECONDS)))
        else:
            with contextlib.suppress(queue.Empty):
                while item is None:
                    item = self.results.get_nowait()
        if isinstance(item, BaseException):
            raise item
        return item

    def keys(self) -> list[str]:
        """Return the keys of tasks whose outcome has not come."""
        return [future.key for future in list(self.pending)]

    def fail(self, error: BaseException) -> None:
        """Have the consumer raise an error, after what has come."""
        self.results.put(error)

    def _look_for_lost(self) -> None:
        """Fetch what became of tasks that ended without a report: dask gave them up.

        A report comes before dask's message that the task is done. So one that is missing at two looks will
        not come.
        """
        now = time.monotonic()
        if now - self._looked < LIVENESS_SECONDS:
            return
        self._looked = now
        known = (self._by_key.get(key) for key in _snapshot(self._by_key))
        done = [future for future in known if future is not None and future.status != "pending"]
        ended = [future for future in done if future.status != "finished" or future in self._finished]
        self._finished = set(done).difference(ended)
        ended = [future for future in ended if self._by_key.pop(future.key, None) is not None]
        self._forget([future.key for future in ended])
        if ended:
            self._client.loop.add_callback(self._fetch, ended)

    def close(self) -> bool:
        """Release all futures, which cancels tasks that have not begun; tell whether any were under way."""
        self.closed = True
        losses.unregister(self._client, self.lose)
        any_left = bool(self.pending)
        if self._collector is not None:
            self._collector.stop()
        self._forget(list(self._by_key))
        self._by_key.clear()
        self._link.spent.end()
        while self.pending:
            with contextlib.suppress(KeyError):  # the collector may take one meanwhile
                self.pending.popitem()[0].release()
        return any_left

    async def deliver(self, futures: list[Any]) -> None:
        """Bring the outcomes of finished tasks here, all with one request if that goes well."""
        taken = [future for future in futures if future in self.pending]
        for future in taken:
            if (job := self.pending.pop(future, None)) is not None:
                self._delivering[future] = job
        finished = [future for future in taken if future.status == "finished"]
        try:
            values = await self._gathering.outcomes(finished, self._link.direct) if finished else []
        except Exception:
            # One of them was lost with its worker, or failed when it ran again. Ask one by one.
            finished, values = [], []
        for future, outcome in zip(finished, values, strict=True):
            self._put(future, outcome)
        for future in taken:
            if (job := self._delivering.get(future)) is not None:
                self._put(future, await self._one_outcome(future, job))

    def _put(self, future: Any, outcome: Outcome | Lost) -> None:
        """Hand an outcome over, unless its job was sent again meanwhile."""
        if (job := self._delivering.pop(future, None)) is not None:
            if outcome is Lost.WITH_WORKER:
                job.lost_workers.append("")
            self.results.put((job, outcome))

    async def _one_outcome(self, future: Any, job: Job) -> Outcome | Lost:
        """Return what became of a job."""
        attempts, refusal = 0, None
        while attempts < GATHER_ATTEMPTS and future in self._delivering and future.status != "cancelled":
            error = await future.exception()  # waits if dask runs the task again
            if error is not None:
                return Lost.WITH_WORKER if isinstance(error, KilledWorker) else _failed(error, job)
            try:
                return (await self._gathering.outcomes([future], self._link.direct))[0]
            except Exception as refused:  # if it was lost with its worker, `lose` takes the job away
                attempts += not isinstance(refused, WorkerLostMeanwhileError)
                refusal = line_of(refused)
        if refusal is not None and future.status == "finished":
            return answered_wrongly(job.name, f"with what cannot be fetched: {refusal}")
        return Lost.CANCELLED


def _snapshot(of: dict[Any, Any]) -> list[Any]:
    """Return the keys, while another thread may add some."""
    while True:
        with contextlib.suppress(RuntimeError):  # of iterating over what has changed
            return list(of)


def _failed(error: BaseException, job: Job) -> Outcome:
    """Describe a task that dask itself has failed."""
    lost: BaseException
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "parcoll":
        lost = SerializationError(
            "a worker of the cluster has no parcoll and was not given it, as when it runs another Python "
            f"than this process ({sys.version_info[0]}.{sys.version_info[1]}): start it with that one"
        )
    else:
        lost = error
    lost.__cause__ = error if lost is not error else error.__cause__
    return Outcome(failure=Failure.of(lost, f"in {job.name}"), lost=True)


class _Collector:
    """Asks for outcomes if workers send none: a coroutine in the client's loop.

    Results that are ready at the same time come in one request.
    """

    def __init__(self, loop: Any, receiving: Receiving) -> None:
        self._loop = loop
        self._receiving = receiving
        self._gathering = False
        self._wake = asyncio.Event()
        self._completed = distributed.as_completed(loop=loop)
        self._task: asyncio.Task[None] | None = None
        _collectors.add(self)
        loop.add_callback(self._start)

    def add(self, futures: list[Any]) -> None:
        """Wait for these too."""
        for future in futures:
            self._completed.add(future)
        self._loop.add_callback(self._wake.set)

    def stop(self) -> None:
        """End soon. May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the client's loop has been closed
            self._loop.add_callback(self._stop)

    def _start(self) -> None:
        if not self._receiving.closed:
            self._task = asyncio.ensure_future(self._collect())

    def _stop(self) -> None:
        # A gather is never cancelled: the client shares it with those of other evaluations, which
        # would be cancelled too. It ends by itself, and the collector after it.
        if self._task is not None and not self._gathering:
            self._task.cancel()

    async def _collect(self) -> None:
        receiving = self._receiving
        try:
            while not receiving.closed:
                self._wake.clear()
                try:
                    batch = [await self._completed.__anext__()]
                except StopAsyncIteration:  # nothing is under way: wait for the next submission
                    if self._completed.is_empty():
                        await self._wake.wait()
                    continue
                batch += self._completed.next_batch(block=False)
                self._gathering = True
                await receiving.deliver(batch)
                self._gathering = False
                del batch  # releases its futures before the next wait
        except Exception as error:
            receiving.fail(error)
        except asyncio.CancelledError:
            # At its own end it is not raised again: the task would keep it, with frames and what they hold.
            if not receiving.closed:  # the client's loop ends, and nobody else tells the consumer
                receiving.fail(receiving._link.lost())
                raise


_collectors: weakref.WeakSet[_Collector] = weakref.WeakSet()


def _silence() -> None:
    """In a fork: keep the parent's collectors, which will never run here, from being reported at its end."""
    for collector in list(_collectors):
        if collector._task is not None:
            # asyncio's own switch for tasks that are known to end unfinished (its gather uses it).
            collector._task._log_destroy_pending = False  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_silence)
