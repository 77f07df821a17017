"""Deaths: what is reported of a call that ended the process beside a worker, or had to be stopped there."""

from __future__ import annotations

from collections import Counter

from parcoll.chain.marks import Call
from parcoll.errors import ElementTimeoutError, WorkerLostError
from parcoll.wire.exceptions import Failure
from parcoll.worker.outcome import Outcome
from parcoll.worker.sinks import Sink
from parcoll.worker.subworker import Died

DEATHS = 2  # at one call, before it fails: the first may have another cause, as a signal from outside


def ended_by(label: str, at: str, death: Died) -> Outcome:
    """Return the outcome of work whose process was ended by a call."""
    return lost(f"{label} ends the process that runs it, at {at}: it {death.how}", label)


def sink_ended(sink: Sink, label: str, at: str, death: Died) -> Outcome:
    """Return the outcome of a partition whose sink ended its process with a call, or had to be stopped."""
    if not death.timed_out:
        return ended_by(label, at, death)
    seconds = sink.timeout or 0.0
    failure = Failure.of(late(label, sink.timeout, at), f"in {label}")
    return Outcome(failure=failure, seconds=seconds, step_seconds=[seconds], timeouts=1)


def late(label: str, timeout: float | None, at: str) -> ElementTimeoutError:
    """Return the error for a call that was stopped."""
    return ElementTimeoutError(f"{label} took longer than timeout={timeout:g} seconds, at {at}")


def lost(message: str, where: str) -> Outcome:
    """Return the outcome of work that no process can do."""
    return Outcome(failure=Failure.of(WorkerLostError(message), f"in {where}"))


class SinkDeaths:
    """The deaths of processes at the calls of one partition's sink."""

    def __init__(self) -> None:
        self.found: Counter[Call] = Counter()

    def may_be_chance(self, death: Died) -> bool:
        """Count a death; tell whether the sink may be tried again."""
        if death.timed_out:
            return False
        self.found[death.mark.call] += 1
        return self.found[death.mark.call] < DEATHS and self.found.total() < 2 * DEATHS
