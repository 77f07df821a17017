"""Evaluation on a dask scheduler, through a `distributed.Client`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import distributed
from dask._task_spec import TaskRef

from parcoll.cluster import losses
from parcoll.cluster.session import DistributedSession
from parcoll.errors import ClusterLostError, ParcollError, lost_for_good
from parcoll.watch.publish import Publisher
from parcoll.watch.stats import Stats
from parcoll.wire import modules
from parcoll.wire.own_modules import shipped_sources, sources_for
from parcoll.wire.payload import Packed, Payload
from parcoll.wire.sharing import Sharing
from parcoll.wire.unpicklable import cannot_send
from parcoll.worker.outcome import Kept
from parcoll.worker.program import Program


class DistributedEngine:
    """Runs programs on the cluster of one client."""

    renews = False
    in_background = True

    def __init__(
        self,
        client: Any,
        *,
        direct: bool | None = None,
        search_path: Sequence[str] = (),
        ship: Sequence[Any] | None = None,
        why_lost: Callable[[], str | None] = lambda: None,
        sharing: Sharing | None = None,
        reporting: bool = False,
    ) -> None:
        """Use the client's cluster.

        `ship` says which modules to send and which not, beside those that are needed; None sends on what
        was sent here, as to workers that import from `search_path`. `sharing` where its workers are on
        this machine; `reporting` where they have the plugin that sends outcomes (`engine.reports`).
        """
        self.client = client
        self.direct = direct  # None where it is not known yet: then data goes through the scheduler
        self.reach: Callable[[], bool | None] | None = None  # finds it out, once there are workers
        self.search_path = tuple(search_path)
        self.ship = ship
        self.sharing = sharing
        self.interrupted = False  # by Ctrl-C: workers may be at what nobody waits for
        self._why_lost = why_lost
        # A client that comes back to a scheduler has another stream to it: nothing of ours is there.
        self._stream = client.scheduler_comm
        self.address = getattr(client.scheduler, "address", "of this client")
        # Digits only: dask groups keys by their leading words of letters, and two clients of one
        # scheduler must not make the same key.
        self.token = str(int.from_bytes(os.urandom(8), "big"))
        self.numbers = itertools.count()
        self.topic = f"parcoll-{self.token}" if reporting else None
        self.waiting: dict[str, DistributedSession] = {}  # for reports, by the key of the task
        if self.topic is not None:
            client.subscribe_topic(self.topic, self._on_report)
        losses.listen(client, install=ship is not None or reporting)

    @property
    def sends_ahead(self) -> bool:
        """Tell whether large partitions go straight to the workers."""
        return self.direct is True and self.sharing is None

    def open(self, program: Program, label: str, keep: bool) -> DistributedSession:
        """Start an evaluation; names what cannot be pickled."""
        if not self.connected:
            raise self.lost()
        packed = _pack_program(program)
        return DistributedSession(self, packed, self._modules(program), label, keep, program.stops)

    def _modules(self, program: Program) -> bytes:
        """Return the sources to send along; within a task of a cluster, those that came with the task."""
        sources = shipped_sources() if self.ship is None else sources_for(program, self.ship)
        return modules.packed(sources)

    def _on_report(self, event: tuple[float, tuple[str, bytes | None]]) -> None:
        key, pickled = event[1]
        session = self.waiting.pop(key, None)
        if session is None:
            return  # the task ran again after its report
        outcome = None
        if pickled is not None:
            with contextlib.suppress(Exception):  # dask would only log it; the session asks instead
                outcome = pickle.loads(pickled)
        session.reported(key, outcome)

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Pickle the value."""
        return Packed.pack(value)

    def memory_limit(self) -> float:
        """Return what the largest worker may hold, in bytes."""
        try:
            with self.errors():
                workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        except ClusterLostError:  # which is told where the partition is sent
            return math.inf
        return max((worker["memory_limit"] or math.inf for worker in workers), default=math.inf)

    def threads(self) -> int:
        """Ask the scheduler how many threads its workers have."""
        with self.errors():
            threads: int = sum(self.client.nthreads().values())
            if threads and self.direct is None and self.reach is not None:
                self.direct = self.reach()
        return threads

    def fetch(self, handle: Any) -> Payload | None:
        """Bring the content of a kept result here."""
        if not isinstance(handle, Kept):
            with self.errors():
                handle = self.client.gather(handle, direct=self.direct)
        payload: Payload | None = handle.content
        return payload

    def follow(self, stats: Stats) -> Publisher:
        """Publish the evaluation on the dashboard's page."""
        return Publisher(self.client, stats, has_page=self.topic is not None)

    def persist(self, bag: Any) -> Any:
        """Compute a bag whose partitions share tasks on the cluster, once."""
        with self.errors():
            return self.client.persist(bag)

    @property
    def connected(self) -> bool:
        """Tell whether the client still has the scheduler that it had."""
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

    def lost(self) -> ClusterLostError:
        """Return the error for a scheduler that is gone."""
        reason = self._why_lost()
        if reason is None:
            silent = getattr(self.client, "silent_seconds", None)  # a client of the user's has none
            how = "its connection was closed or lost" if silent is None else f"no answer in {silent:.0f} s"
            reason = f"the dask scheduler {self.address} is gone: {how}"
        return ClusterLostError(reason)

    def resolve(self, reference: Any) -> Any:
        """Return a kept result as an argument for a task of this cluster."""
        if not isinstance(reference, distributed.Future):
            return reference  # kept in this process: it travels with the task
        if not self.connected:
            raise self.lost()
        if _same_scheduler(reference.client, self.client) and not reference.cancelled():
            return TaskRef(reference.key)
        return result_of(reference)


def result_of(reference: Any) -> Kept:
    """Bring a kept result here, from whatever cluster keeps it."""
    gone = "the results of foreach() are gone: the cluster that kept them was closed or lost"
    try:
        if reference.cancelled() or reference.client.status != "running":
            raise lost_for_good(gone)
        kept: Kept = reference.result()
    except (OSError, RuntimeError, asyncio.CancelledError) as error:
        raise error if isinstance(error, ParcollError) else lost_for_good(gone) from error
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
            _check_function(step.policy.on_error, f"the on_error of {step.label}")
            _check_function(step.policy.retry_on, f"the retry_on of {step.label}")
        for func in program.sink.functions.values():
            _check_function(func, f"the function of {program.sink.label}")
        raise cannot_send(None, "the chain", error) from error


def _check_function(func: Any, role: str) -> None:
    try:
        Packed.pack(func)
    except Exception as error:
        raise cannot_send(func, role, error) from error
