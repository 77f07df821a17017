"""Stats: what became of the elements of one evaluation, and where its time went.

Users read it, the progress bar and the pipeline page show it, and `watch.recorder` fills it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from parcoll.chain.failures import FailedElements
from parcoll.clock import time
from parcoll.watch import table

State = Literal["new", "running", "ended", "failed", "stopped"]

RECENT = 1000  # partitions whose sizes are kept for the median
FAILURES = 20  # the latest that are remembered


@dataclass
class StepStats:
    """What happened to the elements that came to one step.

    Every element is accounted for: `entered + added + replaced == left + filtered + failed`.

    Attributes:
        label: The step as it was written, for example `map(parse)`; a short lambda with its source text.
        entered: Elements that came to the step.
        left: Elements that went on to the next step, or became results.
        failed: Elements for which the function raised, also at the last retry, was stopped by `timeout`, or
            ended its process. It counts those that `on_error` left out or replaced, and the one whose
            exception was raised.
        replaced: Failed elements for which the value of an `on_error` function went on.
        retries: Calls beyond the first for the same element.
        seconds: Time that the workers spent in the step, over all of them. For cheap steps it is
            extrapolated from a sample of the elements.
        filters: True if the step is a filter.
        waits: True if it makes several calls at the same time.
    """

    label: str
    entered: int = 0
    left: int = 0
    failed: int = 0
    replaced: int = 0
    retries: int = 0
    seconds: float = 0.0
    filters: bool = field(default=False, repr=False)
    waits: bool = field(default=False, repr=False)

    @property
    def filtered(self) -> int:
        """Elements that a filter left out; 0 for another step."""
        return self._surplus if self.filters else 0

    @property
    def added(self) -> int:
        """Elements that a flatmap made beyond one for each; below 0 if it made fewer."""
        return 0 if self.filters else -self._surplus

    @property
    def _surplus(self) -> int:
        return self.entered + self.replaced - self.left - self.failed

    @property
    def mean(self) -> float:
        """Seconds for each element that came to the step."""
        return self.seconds / self.entered if self.entered else 0.0


@dataclass
class MadeStats:
    """What was made once in each worker process, or thread, by the factory of one `per_worker`.

    Attributes:
        label: The factory as it was written, for example `per_worker(model)`.
        count: Objects that it made.
        seconds: Time that this took, over all workers. It is not part of the steps' time.
    """

    label: str
    count: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds for each object."""
        return self.seconds / self.count if self.count else 0.0


@dataclass
class WrittenStats:
    """What was written to files so far: by this process, or by the workers where they put several objects.

    Attributes:
        rows: Elements that were written.
        bytes: Bytes of the files that are whole.
        seconds: Time that it took, over all of them, without that of encoding, which is `fold_seconds`.
    """

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class PartitionSizes:
    """How many source elements the partitions had that have come back.

    Attributes:
        smallest: Elements of the smallest partition; 0 if none has come back.
        largest: Elements of the largest one.
        median: Elements of the middle one of the last 1,000 partitions.
    """

    smallest: int = 0
    largest: int = 0
    _recent: deque[int] = field(init=False, default_factory=lambda: deque(maxlen=RECENT), repr=False)

    @property
    def median(self) -> int:
        """Elements of the middle one of the last 1,000 partitions."""
        sizes = sorted(self._recent)  # not by `statistics`, whose import takes 3 ms of every script
        return sizes[(len(sizes) - 1) // 2] if sizes else 0

    def _add(self, size: int) -> None:
        self.smallest = min(self.smallest, size) if self._recent else size
        self.largest = max(self.largest, size)
        self._recent.append(size)


@dataclass
class Waits:
    """What the evaluating thread waited for, in seconds.

    Attributes:
        source: Seconds in the source, which the thread reads itself.
        workers: Seconds in which nothing could be done until a worker had a result.
        consumer: Seconds between giving out results and being asked for more.
    """

    source: float = 0.0
    workers: float = 0.0
    consumer: float = 0.0


@dataclass
class FailureReport:
    """A failed element, or what else ended an evaluation, in a few words.

    Attributes:
        time: When it was counted, in seconds since the epoch.
        step: The step as it was written, or the `reduce` or `fold`; "" if it was none of these.
        message: The exception in a line, its type first; cut at 500 characters.
        note: Where it happened: the step, and the element with its index; cut at 500 characters.
    """

    time: float
    step: str
    message: str
    note: str


class _Lock:
    """A lock that a copy, or a pickle, has anew."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal's handler may look while this thread counts

    def __reduce__(self) -> tuple[Any, ...]:
        return _Lock, ()


@dataclass(repr=False)
class Stats:
    """The numbers of one evaluation, `ParallelGen.stats`. Printed, they are a table.

    Partitions are counted when they come back, whether or not their results have been consumed. The numbers
    may be read at any time, from any thread. Each evaluation has a `Stats` of its own.

    Attributes:
        steps: A `StepStats` for each step, in the order of the chain.
        made: A `MadeStats` for each `per_worker` whose factory ran, by its label.
        name: The `name=` of the collection, or the labels of its steps.
        state: "new" before the first evaluation, "running", and then how it ended: "ended" if it came to its
            end, "failed" if an exception ended it, "stopped" if it was left before its end.
        elements_in: Source elements that the workers began.
        elements_out: Results that they made.
        failed: Elements that failed in a step. What else ends an evaluation counts as one more: the function
            of a `reduce` or `fold` that raises, or a result that cannot be sent.
        retries: Calls beyond the first for the same element, over all steps.
        timeouts: Calls that `timeout` stopped.
        deaths: Worker processes, and processes beside them, that died while they had elements of this
            evaluation.
        resumed: Source elements whose results came from the checkpoint.
        recovered: Partitions that were sent again because their worker or their cluster was lost.
        total: Elements of the source; None if the source does not know.
        bytes_read: Bytes of files that the workers have read, of what `read_text` and its like make.
        bytes_total: Bytes that these files have; None if it is no files, or their sizes are not known.
        partitions: Partitions that were sent to the workers.
        partitions_done: Partitions that have come back.
        losses: How often the cluster was lost. If it could, the evaluation went on with another
            one, or waited until it was back.
        waiting_for: Which worker the evaluation waits for, if none that is there may run its partitions, as
            after `dask.annotate(resources=...)`; else None. It takes some seconds to be known.
        window: The greatest number of partitions that may be at the workers, or wait for the consumer, at
            the moment.
        sizes: `PartitionSizes`: source elements for each partition.
        bytes_sent: Bytes of pickled source elements, and of what the functions have captured, through shared
            memory or sockets. Captured data that lies in shared memory from the last evaluation is not sent.
        bytes_received: Bytes of pickled results that came back.
        bytes_spilled: Bytes that `group_by`, `sorted` and their like put into a file, or into a `scratch`.
        threads: Threads of the workers, each of which runs a partition.
        worker_seconds: Time that these threads spent on partitions, and on what is in `made`, added up.
        busy_seconds: Time of that in which they worked, or had to leave a processor to others; the rest, they
            waited for something else. Of a call that a `timeout` has stopped all time counts as work.
        fold: What takes the results on the workers, for example `reduce(add)`, or `write_jsonl`, which
            encodes them there; None if they come back.
        fold_seconds: Time that it took there.
        written: `WrittenStats` of a method that writes files; None for any other.
        waited: `Waits`: seconds that the evaluating thread waited for the source, the workers, the consumer.
        started: When the evaluation started, in seconds since the epoch; None before.
        ended: When it ended; None before.
        failures: The last 20 as `FailureReport`, the newest at the end. `ParallelGen.errors` has the failed
            elements themselves.
        seconds: Seconds from the start to the end, or until now.
        utilisation: The part of their time that the workers' threads spent on partitions, 0 to 1.
        verdict: Where the time went, in a sentence.
    """

    steps: list[StepStats] = field(default_factory=list)
    made: dict[str, MadeStats] = field(default_factory=dict)
    name: str = ""
    state: State = "new"
    elements_in: int = 0
    elements_out: int = 0
    failed: int = 0
    retries: int = 0
    timeouts: int = 0
    deaths: int = 0
    resumed: int = 0
    recovered: int = 0
    total: int | None = None
    bytes_read: int = 0
    bytes_total: int | None = None
    partitions: int = 0
    partitions_done: int = 0
    losses: int = 0
    waiting_for: str | None = None
    window: int = 0
    sizes: PartitionSizes = field(default_factory=PartitionSizes)
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_spilled: int = 0
    threads: int = 0
    worker_seconds: float = 0.0
    busy_seconds: float = 0.0
    fold: str | None = None
    fold_seconds: float = 0.0
    written: WrittenStats | None = None
    waited: Waits = field(default_factory=Waits)
    started: float | None = None
    ended: float | None = None
    failures: deque[FailureReport] = field(default_factory=lambda: deque(maxlen=FAILURES))
    # Behind `batched` and its like, an evaluation reads from those below it, which count here too
    # (`Recorder`). Its own steps begin at `_first`, and the row before that is for what it reads.
    _first: int = field(init=False, default=0, repr=False, compare=False)
    _above: Stats | None = field(init=False, default=None, repr=False, compare=False)
    _row: int = field(init=False, default=0, repr=False, compare=False)  # above, of its first step
    _reads: int = field(init=False, default=0, repr=False, compare=False)  # chains that it reads
    _below: list[Stats] = field(init=False, default_factory=list, repr=False, compare=False)
    _ends: Sequence[int] | None = field(init=False, default=None, repr=False, compare=False)  # of its bytes
    _began: float | None = field(init=False, default=None, repr=False, compare=False)  # by no wall clock
    _raised: bool = field(init=False, default=False, repr=False)  # a failure ended the evaluation
    _token: str = field(init=False, default_factory=lambda: os.urandom(16).hex(), repr=False, compare=False)
    _failed_elements: FailedElements = field(
        init=False, default_factory=FailedElements, repr=False, compare=False
    )
    _lost_clusters: set[str] = field(init=False, default_factory=set, repr=False, compare=False)
    _lost_workers: set[str] = field(init=False, default_factory=set, repr=False, compare=False)  # by address
    _lock: _Lock = field(init=False, default_factory=_Lock, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the end, or until now."""
        if self.started is None:
            return 0.0
        if self.ended is None and self._began is not None:
            return time.monotonic() - self._began
        return max((self.ended or time.time()) - self.started, 0.0)

    @property
    def utilisation(self) -> float:
        """The part of their time, 0 to 1, that the workers' threads spent on partitions that came back."""
        available = self.seconds * self.threads
        return min(self.worker_seconds / available, 1.0) if available else 0.0

    @property
    def verdict(self) -> str:
        """A sentence on where the time went: to the source, the consumer, a step, or none of them."""
        return table.verdict(self.snapshot())

    def snapshot(self) -> dict[str, Any]:
        """Return all numbers as they were at one moment, as dicts, lists, strings and numbers."""
        with self._lock.lock:
            return {
                "name": self.name,
                "state": self.state,
                "started": self.started,
                "ended": self.ended,
                "seconds": self.seconds,
                "total": self.total,
                "bytes_read": self.bytes_read,
                "bytes_total": self.bytes_total,
                "elements_in": self.elements_in,
                "elements_out": self.elements_out,
                "failed": self.failed,
                "retries": self.retries,
                "timeouts": self.timeouts,
                "deaths": self.deaths,
                "recovered": self.recovered,
                "resumed": self.resumed,
                "steps": [vars(step) | {"mean": step.mean} for step in self.steps],
                "made": [vars(made) | {"mean": made.mean} for made in self.made.values()],
                "fold": self.fold,
                "fold_seconds": self.fold_seconds,
                "written": None if self.written is None else dict(vars(self.written)),
                "partitions": self.partitions,
                "partitions_done": self.partitions_done,
                "losses": self.losses,
                "waiting_for": self.waiting_for,
                "window": self.window,
                "sizes": {
                    "smallest": self.sizes.smallest,
                    "median": self.sizes.median,
                    "largest": self.sizes.largest,
                },
                "bytes_sent": self.bytes_sent,
                "bytes_received": self.bytes_received,
                "bytes_spilled": self.bytes_spilled,
                "threads": self.threads,
                "worker_seconds": self.worker_seconds,
                "busy_seconds": self.busy_seconds,
                "utilisation": self.utilisation,
                "waited": self._waited(),
                "failures": [dict(vars(failure)) for failure in self.failures],
            }

    def _waited(self) -> dict[str, float]:
        """Return the waits; what the evaluations that this one reads from waited for was no source."""
        waited = dict(vars(self.waited))
        for stats in self._below:
            below = stats._waited()
            waited["source"] = max(waited["source"] - below["workers"], 0.0)
            waited["workers"] += below["workers"]
        return waited

    def _add_up(self) -> None:
        """Take the totals of what this evaluation reads for its own, where all of them are known."""
        for name in ("total", "bytes_total"):
            totals = [total for stats in self._below if (total := getattr(stats, name)) is not None]
            setattr(self, name, sum(totals) if len(totals) == self._reads else None)

    def __str__(self) -> str:
        return table.text(self.snapshot())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table.html(self.snapshot())
