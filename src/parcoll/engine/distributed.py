"""Evaluation on a dask scheduler, through a `distributed.Client`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import distributed
from dask._task_spec import Task, TaskRef

from parcoll.engine.session import DistributedSession
from parcoll.engine.sharing import Sharing
from parcoll.errors import ClusterLostError, ParcollError
from parcoll.outcome import Kept
from parcoll.pickling import Packed, Payload, cannot_send
from parcoll.program import Program
from parcoll.tasks import content


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
