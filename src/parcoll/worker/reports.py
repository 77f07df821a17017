"""What our own workers send when a task ends: its outcome, on the stream that tells the scheduler of the end.

A client would otherwise ask the worker for each outcome: a request, a wake-up and an answer. Tasks leave
their outcome in `outcome.mailbox`; this plugin takes it from there when dask has noted that the task is
done, and dask's events carry it to the client that submitted the task.
"""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

from parcoll.wire.payload import SHARED_BYTES, Packed, Several
from parcoll.worker.outcome import Outcome, mailbox


class ReportSender(WorkerPlugin):
    """Sends the outcome of each task that holds a ticket, when the task has ended."""

    name = "parcoll-reports"

    def setup(self, worker: Any) -> None:
        """Remember the worker."""
        self._worker = worker

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Send the outcome of a task that is done; forget that of one which nobody waits for."""
        if not mailbox or finish not in ("memory", "released", "forgotten", "error"):
            return
        topic, outcome = mailbox.pop(key, ("", None))
        if outcome is None or finish != "memory":
            return
        pickled = None  # the client asks then
        if _is_small(outcome):
            with contextlib.suppress(Exception):  # dask would only log it, and the client would wait
                pickled = pickle.dumps(outcome)
        self._worker.log_event(topic, (key, pickled))


def _is_small(outcome: Outcome) -> bool:
    """Tell whether it may pass the scheduler: the client asks the worker for large results."""
    results = outcome.results.nbytes if isinstance(outcome.results, Packed | Several) else 0
    return results + len(outcome.failed_elements) <= 2 * SHARED_BYTES
