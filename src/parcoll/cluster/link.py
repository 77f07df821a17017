"""Link: one client's connection to its scheduler: whether it is there, what its loss means, what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import distributed
from dask._task_spec import TaskRef
from distributed.scheduler import KilledWorker

from parcoll.cluster.sending import SentBuffers, Turns
from parcoll.errors import ClusterLostError, ConnectError, ParcollError, WorkerSetupError
from parcoll.evaluation.engine import lost_for_good
from parcoll.text import describe, line_of
from parcoll.wire.payload import Sharing
from parcoll.worker.outcome import Handle, Kept, Outcome, report

T = TypeVar("T")

# Futures whose outcome has come hold nothing large, and each release wakes this client's loop, the scheduler
# and a worker: 1 ms of an evaluation that takes 6. So they are released so many at a time, or so many seconds
# after an evaluation has ended.
RELEASED = 32
SPENT_SECONDS = 0.05
# dask makes a result again four times, elements that end their process among them; `session` sends such
# elements elsewhere, but only while it waits for that partition.
GIVEN_UP = "the worker that kept them was lost, and so were those on which dask made them again"


class Link:
    """What the engine of a cluster and its sessions have in common.

    `direct` tells whether data may go past the scheduler. None means that nobody knows yet: then data goes
    through the scheduler, and `reach` finds out once there are workers. Workers of a cluster on this machine
    have `sharing`.
    """

    def __init__(
        self,
        client: Any,
        *,
        direct: bool | None = None,
        sharing: Sharing | None = None,
        why_lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.client = client
        self.direct = direct
        self.reach: Callable[[], bool | None] | None = None
        self.sharing = sharing
        self.captured = SentBuffers(client)
        self.spent = Spent(client)
        self.turns = Turns()
        self.interrupted = False  # by Ctrl-C: workers may be busy with what nobody waits for
        self.address: str = getattr(client.scheduler, "address", "of this client")
        # Digits only: dask groups keys by their leading words of letters, and two clients of one
        # scheduler must not make the same key.
        self.token = str(int.from_bytes(os.urandom(8), "big"))
        self.numbers = itertools.count()
        self.restarts = 0  # as far as evaluations have noticed
        self._why_lost = why_lost
        # A client that comes back to a scheduler has another stream; nothing of ours is on that scheduler.
        self._stream = client.scheduler_comm

    @property
    def connected(self) -> bool:
        """Whether the client still has the scheduler that it had."""
        stream = self.client.scheduler_comm
        there = stream is not None and stream is self._stream and not stream.closed()
        return there and self.client.status == "running" and self._why_lost() is None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what dask raises when its scheduler is gone into one sentence."""
        try:
            yield
        except ParcollError:
            raise
        except (OSError, asyncio.CancelledError) as error:
            raise self.lost() from error
        except Exception as error:
            if self.connected:
                raise
            raise self.lost() from error

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Do the same, and tell of a scheduler whose answers in the block are of no use."""
        with self.errors():
            try:
                yield
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                if not self.connected:  # a signal's handler, say, has closed it meanwhile
                    raise self.lost() from error
                raise ConnectError(
                    f"the dask scheduler at {self.address} does not answer as dask's own does "
                    f"({line_of(error)}): it may be broken, or of another version"
                ) from error

    def lost(self) -> ClusterLostError:
        """Return the error for a scheduler that is gone."""
        reason = self._why_lost()
        if reason is None:
            silent = getattr(self.client, "silent_seconds", None)  # a client of the user's has none
            how = "its connection was closed or lost" if silent is None else f"no answer in {silent:.0f} s"
            reason = f"the dask scheduler {self.address} is gone: {how}"
        error = ClusterLostError(reason)
        if not self.connected:  # else the next call may go well
            error._which = self.token
        return error

    def restarted(self, known: int) -> ClusterLostError:
        """Return the error for a cluster that was restarted, which had been `known` times before."""
        self.restarts = max(self.restarts, known + 1)
        error = ClusterLostError(
            f"the dask cluster at {self.address} was restarted, as client.restart() does: what it had of "
            "this evaluation is gone"
        )
        error._which = f"{self.token}-{known}"
        return error

    def resolve(self, handle: Handle) -> Any:
        """Return a kept result as an argument for a task of this cluster."""
        if isinstance(handle, KeptOnCluster):
            if not self.connected:
                raise self.lost()
            if handle.is_on(self.client) and not handle.given_up:
                return TaskRef(handle.future.key)
        return handle.recall()  # it travels with the task


class Spent:
    """Futures whose outcome has come, which are released some at a time, also those of another evaluation.

    They are not just dropped, since their `__del__` swallows a Ctrl-C.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._futures: list[Any] = []
        self._timed = False  # the client's loop will release them

    def add(self, future: Any, last: bool) -> None:
        """Take one; if it may be the `last` of its evaluation, all go soon. In the client's loop."""
        self._futures.append(future)
        if last:
            self._release_soon()

    def end(self) -> None:
        """Have all of them go soon: an evaluation ends whose last outcome did not come in a report."""
        if self._futures and not self._timed:
            with contextlib.suppress(RuntimeError):  # the client's loop has been closed
                self._client.loop.add_callback(self._release_soon)

    def _release_soon(self) -> None:
        if not self._timed:
            self._timed = True
            self._client.loop.call_later(SPENT_SECONDS, self._release_now)

    def _release_now(self) -> None:
        self._timed = False
        self.release()

    def release(self, least: int = 0) -> None:
        """Release all of them, if there are at least so many."""
        if len(self._futures) >= least:
            with contextlib.suppress(IndexError):  # the client's loop may take them too
                while True:
                    self._futures.pop().release()

    def clear(self) -> None:
        """Drop all of them."""
        self._futures.clear()


def lost_again() -> ClusterLostError:
    """Return the error for a part of an evaluation that can be had only if the evaluation begins again."""
    error = ClusterLostError(f"results that this evaluation still needs are gone: {GIVEN_UP}")
    error._still_there = True
    return error


class KeptOnCluster:
    """A result that a cluster keeps as long as this object lives."""

    __slots__ = ("_link", "future")

    def __init__(self, future: Any, link: Link | None) -> None:
        self.future = future
        self._link = link

    def is_on(self, client: Any) -> bool:
        """Tell whether the client's scheduler has the result."""
        return _same_scheduler(self.future.client, client) and not self.future.cancelled()

    @property
    def given_up(self) -> bool:
        """Whether it was lost with its worker, and so were the workers on which dask has made it again."""
        return bool(self.future.status == "error")

    def fetch(self) -> Kept:
        """Bring the result here. If it is gone, or its scheduler, the evaluation may begin again."""
        if self._link is None:
            return self.recall()
        with self._link.errors():
            try:
                return _checked(self._link.client.gather(self.future, direct=self._link.direct))
            except KilledWorker as error:
                raise lost_again() from error

    def recall(self) -> Kept:
        """Bring the result here, from whatever cluster keeps it. If that is gone, so is the result."""
        gone = "the results of persist() or foreach() are gone: the cluster that kept them was closed or lost"
        try:
            if self.future.client is None:
                return self._ask_for()
            if self.future.cancelled() or self.future.client.status != "running":
                raise lost_for_good(gone)
            return _checked(self.future.result())
        except KilledWorker as error:
            raise lost_for_good(f"the results of persist() or foreach() are gone: {GIVEN_UP}") from error
        except (OSError, RuntimeError, asyncio.CancelledError) as error:
            raise error if isinstance(error, ParcollError) else lost_for_good(gone) from error

    def _ask_for(self) -> Kept:
        """Ask the scheduler for the result, in a task to which this came with a dask bag.

        dask does not tell the scheduler of a future that came so, and would wait for it for ever.
        """
        try:
            client: Any = distributed.get_client()
        except ValueError:  # there is no cluster around this function
            raise lost_for_good(
                "results that persist() or foreach() keep on a cluster cannot be had in a function that runs "
                "in the script's own process: pass it list(collection)"
            ) from None
        found = client.sync(client.scheduler.gather, keys=[self.future.key])
        if found["status"] != "OK":
            raise RuntimeError(f"{self.future.key} is on no worker")
        return _checked(found["data"][self.future.key])

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptOnCluster, (self.future, None)


def _checked(found: Any) -> Kept:
    if isinstance(found, Kept):
        return found
    raise WorkerSetupError(
        f"a worker keeps {describe(found)} in the place of a result: it may be broken, or have another "
        "version of parcoll"
    )


def _same_scheduler(one: Any, other: Any) -> bool:
    if one is other:
        return True
    closed = one.scheduler is None or other.scheduler is None
    return not closed and bool(one.scheduler.address == other.scheduler.address)


class WorkerLostMeanwhileError(Exception):
    """A worker was lost while outcomes were asked for."""


class Gathering:
    """Asks dask for the outcomes of tasks that are done; does not wait for one that is lost with its worker.

    In the client's loop only.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loss = asyncio.Event()  # of any worker; a new event after each loss

    def lose(self) -> None:
        """End what is being asked: a worker was lost."""
        self._loss.set()
        self._loss = asyncio.Event()

    async def outcomes(self, futures: list[Any], direct: bool | None) -> list[Outcome]:
        """Return the outcomes of some futures, or raise `WorkerLostMeanwhileError`.

        If the lost worker is one of those that are asked, dask goes on calling it for 30 s, and holds back
        the outcomes of the others.
        """
        asked = self._client.gather(futures, direct=direct, asynchronous=True)
        gathering, losing = asyncio.ensure_future(asked), asyncio.ensure_future(self._loss.wait())
        # How it ends may be of interest to nobody: the client is closed, or a worker was lost.
        gathering.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.wait({gathering, losing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            losing.cancel()
        if not gathering.done():
            # Not cancelled: the client shares it with other evaluations.
            raise WorkerLostMeanwhileError
        return [report(result) for result in gathering.result()]
