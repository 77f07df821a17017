"""Outcome: what comes back from a partition: results, counts, seconds, and errors as values.

This module also says how a worker describes what it could not do, where it leaves outcomes that are sent
from there, and when it hands back what it has not begun.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

from parcoll.calls.held import Held, Lacking, UsedError
from parcoll.chain.apart import Made
from parcoll.chain.failures import FailedElement
from parcoll.chain.tally import Tally
from parcoll.clock import time
from parcoll.errors import SerializationError, WorkerLostError, WorkerSetupError
from parcoll.system import without_collections
from parcoll.text import describe, line_of, message_of
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Payload, Shared
from parcoll.worker.this_worker import named

SLACK = 0.03  # seconds: by itself, a task that is late hands elements back between two of them
LOOK_AGAIN = 0.1  # seconds between two looks at a task that is late
USING = ("executing", "long-running")  # dask's states of a task that a thread runs
OUR_KEY = re.compile(r"-\d+-\d+-\d+-\d+$")  # as `local.levels` makes them
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
    failed_parts: bytes = b""  # packed; what came of each source element that failed (`sinks.Traced`)
    raised: FailedElement | None = None  # the element that `failure` is of
    ended_at: int | None = None  # the index of the source element at which `failed_step` ended it
    ended_apart: bool = False  # by no fault of that element, which is not counted as one of the step's
    seconds: float = 0.0  # without those of `made`
    busy_seconds: float = 0.0  # of these and of partitions before, not waiting
    made: list[Made] = field(default_factory=list)  # objects that outlive the task
    step_seconds: list[float] = field(default_factory=list)  # of each step, and of what took the results
    nbytes: int = 0  # of the results, packed
    results: Payload | None = None
    joined: Outcome | None = None  # of their fold, which took place in the same task: `results` is its value
    failure: Failure | None = None
    unshared: str | None = None  # why shared memory could not be used; None if it could
    unloaded: str = ""  # the name of the function that failed when the program was loaded
    unprogrammed: bool = False  # by the program, which lay there: nothing was begun
    held_at: str = ""  # the worker that has the value of a fold as an object, and has not packed it
    early: bool = False  # the task goes on; it only tells that elements from `read` on are handed back
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

    def packed(self) -> Kept:
        """Return it without the object of a value; UsedError if that was used and not packed before."""
        content = self.content.packed() if isinstance(self.content, Held | Lacking) else self.content
        return Kept(self.outcome, content, self.folded)

    def recall(self) -> Kept:
        """Return the result itself: it is here."""
        return self

    def __sizeof__(self) -> int:
        content = self.content
        held = content.nbytes if content is not None else 0
        held += content.object_bytes if isinstance(content, Held) else 0
        return 512 + held + len(self.outcome.failed_elements)


class Handle(Protocol):
    """Stands for a kept result, wherever it is: a `Kept` for itself, or something that a cluster keeps."""

    def fetch(self) -> Kept:
        """Bring the result here, for the evaluation that made it; ClusterLostError if its cluster is lost."""

    def recall(self) -> Kept:
        """Bring the result here, for a later evaluation, which cannot have it made again."""


class Ticket(NamedTuple):
    """What a task needs to have its outcome sent: its own key, and the topic that its client reads."""

    topic: str | None  # None if the client asks for the outcome
    key: str
    # Seconds after which what waits behind the task is handed back: the elements that it has not begun, if
    # they may be, and the tasks that its worker has not begun.
    patience: float = 1.0


# The outcomes of tasks that ended here, by key and with their topic, until `worker.reports` sends them.
mailbox: dict[str, tuple[str, Outcome]] = {}


@dataclass
class UnderWay:
    """A task that a thread of this worker runs."""

    ticket: Ticket
    started: float = field(default_factory=time.monotonic)
    running: Tally | None = None  # of its elements, if it may be given up
    tally: Tally | None = None  # of its elements, if those that are not begun may be handed back
    base: int = 0  # the index in the source of the first of them
    end: int = 0  # and behind the last
    seen: int = -1  # where it stood when it was looked at last


under_way: dict[str, UnderWay] = {}  # by key
given_up: set[str] = set()  # the keys of tasks that nobody waits for, while a thread has them


class Watch:
    """Hands back what waits behind a task that takes long, so that no idle worker waits beside it.

    That is what the task has not begun of its elements, if it is still at the same element as when it was
    looked at last; and tasks that this worker has not begun, if all its threads are late. The scheduler
    gives these to another worker. In the worker's loop only.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def transition(self, key: Any, start: str, finish: str) -> None:
        """Begin to watch a task that begins; have one that nobody waits for begin nothing more."""
        if finish == "executing" and _is_ours(key):
            self._worker.loop.call_later(SLACK, self._look, key)
        elif finish == "released" and start in ("executing", "long-running") and _is_ours(key):
            given_up.add(key)
            if (task := under_way.get(key)) is not None and task.running is not None:
                task.running.abandon()

    def _look(self, key: str) -> None:
        known = self._worker.state.tasks.get(key)
        if known is None or known.state != "executing":
            return
        task = under_way.get(key)
        late = -LOOK_AGAIN if task is None else _late(task)
        if task is not None and late >= 0:
            self._hand_back_elements(task)
            self._hand_back_tasks()
        self._worker.loop.call_later(max(-late, LOOK_AGAIN), self._look, key)

    def _hand_back_elements(self, task: UnderWay) -> None:
        tally, ticket = task.tally, task.ticket
        if tally is None or ticket.topic is None:
            return
        position = tally.position
        if position != task.seen:  # it may be done soon, or hand back what is left by itself
            task.seen = position
        elif (begun := tally.hand_back(task.end)) is not None:
            outcome = Outcome(read=begun - task.base, complete=False, early=True)
            self._worker.log_event(ticket.topic, (ticket.key, pickle.dumps(outcome)))

    def _hand_back_tasks(self) -> None:
        state = self._worker.state
        tasks = [under_way.get(running.key) for running in state.executing]
        if any(task is None or _late(task) < 0 for task in tasks):
            return  # its thread will soon be free
        from distributed.worker_state_machine import FreeKeysEvent, RescheduleMsg  # lazy: distributed

        waiting = [ts.key for ts in state.ready if _is_ours(ts.key)]
        stimulus = f"parcoll-handed-back-{time.time()}"
        # Forgotten here first, so that it cannot begin here while the scheduler gives it to another worker.
        if waiting:
            self._worker.handle_stimulus(FreeKeysEvent(keys=waiting, stimulus_id=stimulus))
        for key in waiting:
            self._worker.batched_send(RescheduleMsg(key=key, stimulus_id=stimulus).to_dict())


class Home(NamedTuple):
    """Where a result is kept: the worker, and the key under which it has it."""

    worker: Any
    key: str

    @classmethod
    def of(cls, ticket: Ticket | None) -> Home | None:
        """Return where the result of this task will be; None if this is no dask worker."""
        distributed = sys.modules.get("distributed")
        if ticket is None or distributed is None:
            return None
        try:
            return cls(distributed.get_worker(), ticket.key)
        except ValueError:  # not in a task
            return None

    @property
    def address(self) -> str:
        """The worker's address, as its scheduler knows it."""
        return self.worker.contact_address or self.worker.address  # type: ignore[no-any-return]

    def drop(self, in_use: bool = False) -> None:
        """Forget the result there, as if it were lost: dask makes it again if it is wanted.

        Not while a task uses it, unless `in_use`. From any thread.
        """
        self.worker.loop.add_callback(self._drop, in_use)

    def _drop(self, in_use: bool) -> None:
        from distributed.worker_state_machine import FreeKeysEvent  # lazy: distributed

        known = self.worker.state.tasks.get(self.key)
        if known is None or known.state != "memory":
            return
        if not in_use and any(task.state in USING for task in known.dependents):
            return  # dask writes it to the disk, perhaps, since it does not know that this takes no memory
        event = FreeKeysEvent(keys=[self.key], stimulus_id=f"parcoll-used-{time.time()}")
        self.worker.handle_stimulus(event)


def run_again_after(used: UsedError, ticket: Ticket | None) -> NoReturn:
    """Have dask make again a value that was used, and then run this task, which wants it, once more."""
    home = Home.of(ticket)
    if ticket is None or home is None:
        raise used
    under_way.pop(ticket.key, None)
    home._replace(key=used.key).drop(in_use=True)
    if used.home is not None and used.home.address != home.address:  # another worker of this process
        used.home.drop(in_use=True)
    from distributed import Reschedule  # lazy: distributed

    raise Reschedule


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and OUR_KEY.search(key) is not None


def _late(task: UnderWay) -> float:
    """Return for how many seconds a task has been late; negative if it is not."""
    return time.monotonic() - task.started - task.ticket.patience - SLACK


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
    if ticket is None or ticket.topic is None or distributed is None:
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
            f"{named()} has no package `{package}`, so {what}: install it there, or, if it is pure "
            f'Python, send it with connect(..., ship=["{package}"])'
        )
    else:
        failure = SerializationError(f"{what}: {line_of(error)}")
    failure.__cause__ = error
    return Outcome(failure=Failure.of(failure, what))


def lost(message: str, where: str) -> Outcome:
    """Return the outcome of work that no process can do."""
    return Outcome(failure=Failure.of(WorkerLostError(message), f"in {where}"))


class UnreadError(OSError):
    """A program that lies in shared memory cannot be read there. It is sent once more, in a message."""


def unloadable_chain(error: BaseException) -> Outcome:
    """Return the outcome of a partition whose program cannot be unpickled."""
    if isinstance(error, UnreadError):
        return Outcome(complete=False, unshared=message_of(error), unprogrammed=True)
    outcome = broken("the worker could not load the chain", error)
    if not isinstance(error, (WorkerSetupError, ModuleNotFoundError)):
        outcome.unloaded = _loader(error.__traceback__)
    return outcome


def unloadable_partition(at: str, payload: Any, error: BaseException) -> Outcome:
    """Return the outcome of a partition that cannot be unpickled."""
    if isinstance(payload, Shared) and isinstance(error, OSError):
        # The elements are not to blame: they are sent once more, in the message itself.
        return Outcome(complete=False, unshared=message_of(error))
    return broken(f"the worker could not load the partition at {at}", error)


def _loader(traceback: TracebackType | None) -> str:
    """Return the name of the function that pickle called and that failed: the first that is not ours."""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("parcoll", "cloudpickle", "pickle", "contextlib"):
            return traceback.tb_frame.f_code.co_qualname
        traceback = traceback.tb_next
    return "?"


def loaded(payload: Payload, what: str, count: int) -> list[Any]:
    """Unpickle so many values that came back from a worker; `what` names them for the error if that fails."""
    try:
        with without_collections():
            found = payload.load()
    except (Exception, SystemExit) as error:  # a user's `__setstate__` may call sys.exit()
        raise SerializationError(
            f"{what} came back from the worker but cannot be unpickled here: {line_of(error)}"
        ) from error
    if type(found) is not list or len(found) != count:
        raise WorkerSetupError(f"{what} are not {count:,}, as the worker says, but {describe(found)}")
    return found
