"""Report sender: sends outcomes from our own workers as soon as their tasks end; and what of them is sound.

Otherwise a client would ask the worker for each outcome: a request, a wake-up and an answer. Tasks leave
their outcome in `outcome.mailbox`. This plugin takes it from there when dask has noted that the task is done,
and sends it as one of dask's events, on the stream that also tells the scheduler of the end.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import weakref
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

from parcoll.calls import objects
from parcoll.chain.failures import FailedElement
from parcoll.errors import WorkerSetupError
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import SHARED_BYTES, Packed, Payload, Several, Shared
from parcoll.worker.bootstrap import ask_again
from parcoll.worker.outcome import Outcome, Watch, mailbox


class ReportSender(WorkerPlugin):
    """Sends the outcome of each task that has a ticket, when the task has ended."""

    name = "parcoll-reports"

    def setup(self, worker: Any) -> None:
        """Remember the worker."""
        self._worker = worker
        self._watch = Watch(worker)
        objects.worker_here = weakref.ref(worker)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Send the outcome of a task that is done; drop that of a task which nobody waits for."""
        ask_again(self._worker, key, start, finish)
        self._watch.transition(key, start, finish)
        if not mailbox or finish not in ("memory", "released", "forgotten", "error"):
            return
        topic, outcome = mailbox.pop(key, ("", None))
        if outcome is None or finish != "memory":
            return
        pickled = None  # then the client asks for it
        if _is_small(outcome):
            with contextlib.suppress(Exception):  # dask would only log it, and the client would wait
                pickled = pickle.dumps(outcome)
        self._worker.log_event(topic, (key, pickled))


def _is_small(outcome: Outcome) -> bool:
    """Tell whether an outcome may pass through the scheduler; the client asks the worker for a large one."""
    results = outcome.results.nbytes if isinstance(outcome.results, Packed | Several) else 0
    return results + len(outcome.failed_elements) + len(outcome.failed_parts) <= 2 * SHARED_BYTES


def understood(event: Any) -> tuple[str, Outcome | None, list[bytes] | None]:
    """Return what an event of these says: the key of a task, and its outcome, or what it has logged.

    The key is "" if no worker of ours has sent the event: anybody in the cluster may send some. Without an
    outcome, it is to be fetched: it is too large, or cannot be unpickled here.
    """
    try:
        key, pickled, *records = event[1]
        logged = [bytes(record) for record in records[0]] if records else None
    except (TypeError, ValueError, LookupError):
        return "", None, None
    if not isinstance(key, str):
        return "", None, None
    outcome = None
    if isinstance(pickled, bytes):
        with contextlib.suppress(Exception, SystemExit):  # dask would only log it, or its loop would end
            outcome = pickle.loads(pickled)
    return key, outcome if isinstance(outcome, Outcome) else None, logged


_TALLIES = (list, tuple)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("read", "produced", "nbytes", "deaths", "timeouts"), (int,)),
    **dict.fromkeys(("complete", "unprogrammed", "early", "lost", "ended_apart"), (bool,)),
    **dict.fromkeys(("failed_step", "ended_at"), (int, type(None))),
    **dict.fromkeys(("failed_elements", "failed_parts", "records"), (bytes,)),
    **dict.fromkeys(("flows", "faults", "step_seconds", "made"), _TALLIES),
    "seconds": (int, float),
    "unshared": (str, type(None)),
    **dict.fromkeys(("unloaded", "held_at"), (str,)),
    "raised": (FailedElement, type(None)),
    "failure": (Failure, type(None)),
    "results": (*Payload.__args__, type(None)),
    "joined": (Outcome, type(None)),
}
_NUMBERS = {int, float}
MOST = 2**63  # of any number


def is_sound(answer: Any, size: int | None, on_this_machine: bool) -> bool:
    """Tell whether what a worker has answered is an outcome, of a partition of so many elements.

    A broken worker may answer with anything, or one that has another parcoll.
    """
    if type(answer) is not Outcome:
        return False
    held = vars(answer)
    if not all(isinstance(held.get(name, held), kinds) for name, kinds in _KINDS.items()):
        return False
    rows = [*answer.flows, *answer.faults]
    if not set(map(type, rows)) <= set(_TALLIES):
        return False
    if {*map(len, answer.flows)} - {2} or {*map(len, answer.faults)} - {3}:
        return False
    numbers = [answer.read, answer.produced, answer.nbytes, answer.deaths, answer.timeouts, answer.seconds]
    numbers += [answer.failed_step or 0, answer.ended_at or 0, *answer.step_seconds]
    numbers += itertools.chain.from_iterable(rows)
    if not set(map(type, numbers)) <= _NUMBERS or min(numbers) < 0 or not max(numbers) < MOST:
        return False
    if not sum(answer.step_seconds, answer.seconds) < MOST:  # one of them is none: "nan"
        return False
    if size is not None and answer.read > size:
        return False
    if answer.joined is not None and not is_sound(answer.joined, size, on_this_machine):
        return False
    return on_this_machine or not isinstance(answer.results, Shared)


def answered_wrongly(name: str, said: str) -> Outcome:
    """Return the outcome of a job of that name whose worker has answered with what is no outcome."""
    error = WorkerSetupError(
        f"a worker has answered for {name} {said}: it may be broken, or have another version of parcoll"
    )
    return Outcome(failure=Failure.of(error, f"in {name}"), lost=True)
