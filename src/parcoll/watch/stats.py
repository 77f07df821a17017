"""What became of the elements of one evaluation, and where its time went: the one source of numbers."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from parcoll.chain.failures import FailedElements, unpacked
from parcoll.watch import table
from parcoll.wire.exceptions import Failure
from parcoll.worker.outcome import Outcome

State = Literal["new", "running", "ended", "failed", "stopped"]

RECENT = 1000  # partitions whose sizes are kept for the median
FAILURES = 20  # messages that are kept, the latest
MESSAGE = 500  # characters of one


@dataclass
class StepStats:
    """One step: elements that came in, went out, and failed here, and the workers' seconds in it.

    Each is accounted for: `entered + added + replaced == left + filtered + failed`.
    """

    label: str
    entered: int = 0
    left: int = 0
    failed: int = 0  # those that `on_error` passed over, those it replaced, and the one that was raised
    replaced: int = 0  # that left as the value of an `on_error` function
    retries: int = 0  # calls for elements that had failed before
    seconds: float = 0.0
    filters: bool = field(default=False, repr=False)  # the step leaves elements out, and makes no others

    @property
    def filtered(self) -> int:
        """Elements that a filter left out."""
        return self._surplus if self.filters else 0

    @property
    def added(self) -> int:
        """Elements that the step made beyond one for each; below 0 where it made fewer."""
        return 0 if self.filters else -self._surplus

    @property
    def _surplus(self) -> int:
        return self.entered + self.replaced - self.left - self.failed

    @property
    def mean(self) -> float:
        """Seconds for an element that came in."""
        return self.seconds / self.entered if self.entered else 0.0


@dataclass
class PartitionSizes:
    """How many elements the partitions had that have come back."""

    smallest: int = 0
    largest: int = 0
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT), repr=False)

    @property
    def median(self) -> int:
        """Of the last 1,000 partitions."""
        sizes = sorted(self.recent)  # not by `statistics`, whose import takes 3 ms of every script
        return sizes[(len(sizes) - 1) // 2] if sizes else 0

    def add(self, size: int) -> None:
        """Count one partition."""
        self.smallest = min(self.smallest, size) if self.recent else size
        self.largest = max(self.largest, size)
        self.recent.append(size)


@dataclass
class Waits:
    """Seconds that the evaluating thread waited, for whom."""

    source: float = 0.0
    workers: float = 0.0
    consumer: float = 0.0


@dataclass
class FailureReport:
    """One failure: when, in which step, the exception in a line, and the note that says where."""

    time: float
    step: str
    message: str
    note: str


class _Lock:
    """A lock that a copy, or a pickle, has anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Lock, ()


@dataclass
class Stats:
    """Counts of the partitions that have come back, whether the consumer took their results or not.

    `failed` counts the elements that failed in a step, and what else ended the evaluation (the function
    of a `reduce`, a result that cannot travel). `str` gives a table. May be read from any thread while it
    runs.
    """

    steps: list[StepStats] = field(default_factory=list)
    name: str = ""
    state: State = "new"
    elements_in: int = 0  # source elements that the workers began
    elements_out: int = 0  # results made
    failed: int = 0
    retries: int = 0
    timeouts: int = 0  # calls that were stopped
    deaths: int = 0  # of workers, and of processes beside them, that had partitions of this evaluation
    resumed: int = 0  # source elements whose results a checkpoint had
    recovered: int = 0  # partitions that were sent again, since their worker or their cluster was lost
    total: int | None = None  # elements of the source, where it knows
    partitions: int = 0  # sent to the engine
    partitions_done: int = 0
    losses: int = 0  # times that the cluster went away; it was replaced, or came back, where this has ended
    window: int = 0  # partitions that may be under way or wait for the consumer
    sizes: PartitionSizes = field(default_factory=PartitionSizes)
    bytes_sent: int = 0  # of elements, packed
    bytes_received: int = 0  # of results, packed
    threads: int = 0  # that the engine's workers have
    worker_seconds: float = 0.0
    fold: str | None = None  # what takes the results on the workers: `reduce(add)`
    fold_seconds: float = 0.0
    waited: Waits = field(default_factory=Waits)
    started: float | None = None  # seconds since the epoch
    ended: float | None = None
    failures: deque[FailureReport] = field(default_factory=lambda: deque(maxlen=FAILURES))
    raised: bool = False  # a failure ended the evaluation
    token: str = field(default_factory=lambda: os.urandom(16).hex(), repr=False, compare=False)
    failed_elements: FailedElements = field(default_factory=FailedElements, repr=False, compare=False)
    _lost_workers: set[str] = field(default_factory=set, repr=False, compare=False)  # by address
    _lock: _Lock = field(default_factory=_Lock, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """From the start to the end, or to now."""
        if self.started is None:
            return 0.0
        return max((self.ended or time.time()) - self.started, 0.0)

    @property
    def utilisation(self) -> float:
        """The part of the time that the workers' threads spent on partitions that have come back."""
        available = self.seconds * self.threads
        return min(self.worker_seconds / available, 1.0) if available else 0.0

    @property
    def verdict(self) -> str:
        """In a sentence, what the time went into."""
        return table.verdict(self.snapshot())

    def begin(self) -> None:
        """Note the start."""
        with self._lock.lock:
            self.state, self.started = "running", time.time()

    def end(self, state: State) -> None:
        """Note the end, and how it came; the first time counts."""
        with self._lock.lock:
            if self.ended is None:
                self.state, self.ended = state, time.time()

    def lose(self) -> None:
        """Note that the cluster was lost."""
        with self._lock.lock:
            self.losses += 1

    def forget(self) -> None:
        """Count from nothing: the evaluation begins again, since what it had so far is gone."""
        new = Stats(steps=[StepStats(step.label, filters=step.filters) for step in self.steps])
        with self._lock.lock:
            for name in _OF_PARTITIONS:
                setattr(self, name, getattr(new, name))

    def sent(self, partitions: int, nbytes: int) -> None:
        """Count partitions that the engine got."""
        with self._lock.lock:
            self.partitions += partitions
            self.bytes_sent += nbytes

    def recover(self, partitions: int, workers: Iterable[str] = ()) -> None:
        """Count partitions that are sent again, and the workers that were lost with them, once each."""
        with self._lock.lock:
            self.recovered += partitions
            lost = set(workers) - self._lost_workers
            self._lost_workers |= lost
            self.deaths += len(lost)

    def add(self, outcome: Outcome) -> None:
        """Count one partition."""
        with self._lock.lock:
            self.partitions_done += 1
            self._count(outcome)
            self.worker_seconds += outcome.seconds
            self.timeouts += outcome.timeouts
            self.deaths += outcome.deaths
            self.bytes_received += outcome.nbytes if outcome.results is not None else 0
            if outcome.read:
                self.sizes.add(outcome.read)
            for step, seconds in zip(self.steps, outcome.step_seconds, strict=False):
                step.seconds += seconds
            if self.fold is not None and len(outcome.step_seconds) > len(self.steps):
                self.fold_seconds += outcome.step_seconds[-1]
            self._add_faults(outcome)
            self._add_failure(outcome)

    def add_saved(self, outcome: Outcome) -> None:
        """Count one partition whose results a checkpoint had: it took no time here."""
        with self._lock.lock:
            self.resumed += outcome.read
            self._count(outcome)
            self._add_faults(outcome)

    def _count(self, outcome: Outcome) -> None:
        self.elements_in += outcome.read
        self.elements_out += outcome.produced
        for step, (entered, left) in zip(self.steps, outcome.flows, strict=False):
            step.entered += entered
            step.left += left

    def add_join(self, outcome: Outcome) -> None:
        """Count the folding of partitions that were counted before."""
        with self._lock.lock:
            self.fold_seconds += outcome.seconds
            self.worker_seconds += outcome.seconds
            self.deaths += outcome.deaths
            self.timeouts += outcome.timeouts
            self._add_failure(outcome)

    def _add_faults(self, outcome: Outcome) -> None:
        for step, (failed, replaced, retries) in zip(self.steps, outcome.faults, strict=False):
            step.failed += failed
            step.replaced += replaced
            step.retries += retries
            self.failed += failed
            self.retries += retries
        failed_elements = unpacked(outcome.failed_elements)
        for element in failed_elements[-FAILURES:]:
            self._tell(element.step, element.failure)
        self.failed_elements.add(failed_elements + ([outcome.raised] if outcome.raised else []))

    def _add_failure(self, outcome: Outcome) -> None:
        if outcome.failure is None:
            return
        self.raised = True
        position = outcome.failed_step
        if position is not None and position < len(self.steps):
            self._tell(self.steps[position].label, outcome.failure)  # counted with the faults of the step
        else:
            self.failed += 1
            self._tell(self.fold or "", outcome.failure)

    def _tell(self, step: str, failure: Failure) -> None:
        message = failure.exception.summary[:MESSAGE]
        self.failures.append(FailureReport(time.time(), step, message, failure.note[:MESSAGE]))

    def snapshot(self) -> dict[str, Any]:
        """Return the numbers at one moment, as dicts, lists, strings and numbers."""
        with self._lock.lock:
            return {
                "name": self.name,
                "state": self.state,
                "started": self.started,
                "ended": self.ended,
                "seconds": self.seconds,
                "total": self.total,
                "elements_in": self.elements_in,
                "elements_out": self.elements_out,
                "failed": self.failed,
                "retries": self.retries,
                "timeouts": self.timeouts,
                "deaths": self.deaths,
                "recovered": self.recovered,
                "resumed": self.resumed,
                "steps": [vars(step) | {"mean": step.mean} for step in self.steps],
                "fold": self.fold,
                "fold_seconds": self.fold_seconds,
                "partitions": self.partitions,
                "partitions_done": self.partitions_done,
                "losses": self.losses,
                "window": self.window,
                "sizes": {
                    "smallest": self.sizes.smallest,
                    "median": self.sizes.median,
                    "largest": self.sizes.largest,
                },
                "bytes_sent": self.bytes_sent,
                "bytes_received": self.bytes_received,
                "threads": self.threads,
                "worker_seconds": self.worker_seconds,
                "utilisation": self.utilisation,
                "waited": dict(vars(self.waited)),
                "failures": [dict(vars(failure)) for failure in self.failures],
            }

    def __str__(self) -> str:
        return table.text(self.snapshot())


# What is counted from partitions that have come back, or were sent.
_OF_PARTITIONS = (
    *("steps", "elements_in", "elements_out", "failed", "retries", "partitions", "partitions_done", "sizes"),
    *("bytes_sent", "bytes_received", "worker_seconds", "fold_seconds", "failures", "raised"),
    *("failed_elements", "timeouts"),
)
