"""Outcome: what comes back from a partition: results, counts, seconds, and errors as values.

This module also says how a worker describes what it could not do, and where it leaves outcomes that are sent
from there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from parcoll.chain.failures import FailedElement
from parcoll.errors import SerializationError, WorkerSetupError
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Payload, Shared

RECORDS_SECONDS = 0.05  # that records wait for others, where the task goes on


@dataclass
class Outcome:
    """The report of one task. It is small unless it carries `results`."""

    read: int = 0  # source elements begun; fewer than were given if the time budget ran out
    complete: bool = True  # False if a rest was left
    produced: int = 0  # elements that left the last step
    flows: list[tuple[int, int]] = field(default_factory=list)  # (in, out) of each step
    failed_step: int | None = None  # the step that ended the evaluation; len(flows) for the sink
    # (failed, replaced, retries) of each step; the element that ended the evaluation counts as failed too.
    faults: list[tuple[int, int, int]] = field(default_factory=list)
    failed_elements: bytes = b""  # packed; those that did not end the evaluation, as many as are sent
    raised: FailedElement | None = None  # the element that `failure` is of
    ended_at: int | None = None  # the index of the source element at which `failed_step` ended it
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)  # of each step, and of what took the results
    nbytes: int = 0  # of the results, packed
    results: Payload | None = None
    failure: Failure | None = None
    unshared: str | None = None  # why shared memory could not be used; None if it could
    unloaded: str = ""  # the name of the function that failed when the program was loaded
    unprogrammed: bool = False  # by the program, which lay there: nothing was begun
    deaths: int = 0  # of processes that ran elements beside their worker (`isolation`)
    timeouts: int = 0  # calls that were stopped
    records: bytes = b""  # packed; what was logged and not sent before
    lost: bool = False  # no worker could finish the task: there is no result, not even a part


@dataclass
class Kept:
    """A result that stays in a worker's memory: its report, which travels alone, and its content."""

    outcome: Outcome
    content: Payload | None  # a list of elements, or for a fold a list of the one value so far
    folded: int = 0  # elements that a fold has taken

    def fetch(self) -> Kept:
        """Return the result itself: it is here."""
        return self

    def recall(self) -> Kept:
        """Return the result itself: it is here."""
        return self

    def __sizeof__(self) -> int:
        held = self.content.nbytes if self.content is not None else 0
        return 512 + held + len(self.outcome.failed_elements)


class Handle(Protocol):
    """Stands for a kept result, wherever it is: a `Kept` for itself, or something that a cluster keeps."""

    def fetch(self) -> Kept:
        """Bring the result here, for the evaluation that made it; ClusterLostError if its cluster is lost."""

    def recall(self) -> Kept:
        """Bring the result here, for a later evaluation, which cannot have it made again."""


class Ticket(NamedTuple):
    """What a task needs to have its outcome sent: its own key, and the topic that its client reads."""

    topic: str
    key: str


# The outcomes of tasks that ended in this worker, by key and with their topic, until `worker.reports` sends
# them.
mailbox: dict[str, tuple[str, Outcome]] = {}


class Events:
    """Sends what a task logs as dask's events, on the stream on which the task's outcome follows."""

    def __init__(self, worker: Any, ticket: Ticket) -> None:
        self._worker = worker
        self._ticket = ticket

    def later(self, flush: Callable[[], None]) -> None:
        """Call `flush` in a moment, in the worker's loop; from any thread."""
        loop = self._worker.loop
        loop.add_callback(loop.call_later, RECORDS_SECONDS, flush)

    def send(self, packed: list[bytes]) -> None:
        """Send some records."""
        self._worker.log_event(self._ticket.topic, (self._ticket.key, None, packed))


def events_of(ticket: Ticket | None) -> Events | None:
    """Return what sends what a task logs; None where it goes with the outcome."""
    distributed = sys.modules.get("distributed")
    if ticket is None or distributed is None:
        return None
    try:
        return Events(distributed.get_worker(), ticket)
    except ValueError:  # not in a task
        return None


def kept_of(outcome: Outcome) -> Kept:
    """Return a result that stays, taken out of its outcome."""
    content, outcome.results = outcome.results, None
    return Kept(outcome, content)


def report(result: Kept | Outcome) -> Outcome:
    """Return what is known of a result, without the result itself if that is kept."""
    return result.outcome if isinstance(result, Kept) else result


def elements_of(handle: Handle) -> list[Any]:
    """Return the elements of a kept result: how dask's own engines read it."""
    content = handle.recall().content
    return list(content.load()) if content is not None else []


def broken(what: str, error: BaseException) -> Outcome:
    """Return the outcome of work that failed outside of the user's functions; `what` says which work."""
    if isinstance(error, WorkerSetupError):
        return Outcome(failure=Failure.of(error, what))
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        failure = SerializationError(
            f"{_this_worker()} has no package `{package}`, so {what}: install it there, or, if it is pure "
            f'Python, send it with connect(..., ship=["{package}"])'
        )
    else:
        failure = SerializationError(f"{what}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return Outcome(failure=Failure.of(failure, what))


class UnreadError(OSError):
    """A program that lies in shared memory cannot be read there. It is sent once more, in a message."""


def unloadable_chain(error: BaseException) -> Outcome:
    """Return the outcome of a partition whose program cannot be unpickled."""
    if isinstance(error, UnreadError):
        return Outcome(complete=False, unshared=str(error), unprogrammed=True)
    outcome = broken("the worker could not load the chain", error)
    if not isinstance(error, (WorkerSetupError, ModuleNotFoundError)):
        outcome.unloaded = _loader(error.__traceback__)
    return outcome


def unloadable_partition(at: str, payload: Any, error: BaseException) -> Outcome:
    """Return the outcome of a partition that cannot be unpickled."""
    if isinstance(payload, Shared) and isinstance(error, OSError):
        # The elements are not to blame: they are sent once more, in the message itself.
        return Outcome(complete=False, unshared=str(error))
    return broken(f"the worker could not load the partition at {at}", error)


def _loader(traceback: TracebackType | None) -> str:
    """Return the name of the function that pickle called and that failed: the first that is not ours."""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("parcoll", "cloudpickle", "pickle", "contextlib"):
            return traceback.tb_frame.f_code.co_qualname
        traceback = traceback.tb_next
    return "?"


def _this_worker() -> str:
    distributed = sys.modules.get("distributed")
    try:
        return f"worker {distributed.get_worker().address}" if distributed is not None else "this process"
    except ValueError:  # not in a task
        return "this process"
