"""Recorder: fills the `Stats` of an evaluation while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

from parcoll.chain.apart import Made
from parcoll.chain.failures import unpacked
from parcoll.clock import time
from parcoll.text import escaped
from parcoll.watch.stats import FAILURES, FailureReport, MadeStats, State, Stats, StepStats, WrittenStats
from parcoll.wire.exceptions import Failure
from parcoll.worker.outcome import Outcome

MESSAGE = 500  # characters of a message that are remembered


class Ended(Protocol):
    """What knows where the bytes of its elements end."""

    ends: Sequence[int] | None


R = TypeVar("R", bound=Ended)


class _Rows(NamedTuple):
    """Where the numbers of an evaluation stand among those of one that reads from it, or among its own."""

    of: slice  # its steps
    source: int | None = None  # what it reads is made of other evaluations: the row for that
    sink: int | None = None  # the row of what is made of its results; None where they are the results

    def within(self, row: int, sink: int) -> _Rows:
        """Return them one evaluation further up: its rows begin at `row` there, and are read into `sink`."""
        return _Rows(
            slice(self.of.start + row, self.of.stop + row),
            None if self.source is None else self.source + row,
            sink if self.sink is None else self.sink + row,
        )


class Recorder:
    """Counts into a `Stats`. It holds nothing itself, so an evaluation may have several."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def begin(self) -> None:
        """Note the start."""
        with self._stats._lock.lock:
            self._stats.state, self._stats.started = "running", time.time()
            self._stats._began = time.monotonic()

    def end(self, state: State) -> None:
        """Note the end, and how it came; only the first call counts."""
        stats = self._stats
        with stats._lock.lock:
            if stats.ended is None:
                stats.state, stats.ended = state, (stats.started or 0.0) + stats.seconds

    def lose(self, which: str = "") -> None:
        """Note that a cluster was lost: once, also if it is noticed here and by what this reads from."""
        for stats in self._all():
            with stats._lock.lock:
                stats.losses += which not in stats._lost_clusters
                stats._lost_clusters |= {which} - {""}

    def forget(self) -> None:
        """Count from nothing: the evaluation begins again, since all that it had is gone."""
        stats = self._stats
        new = Stats(
            steps=[StepStats(step.label, filters=step.filters, waits=step.waits) for step in stats.steps]
        )
        with stats._lock.lock:
            for name in _OF_PARTITIONS:
                setattr(stats, name, getattr(new, name))

    def sent(self, partitions: int, nbytes: int) -> None:
        """Count partitions that were given to the engine."""
        for stats in self._all():
            with stats._lock.lock:
                stats.partitions += partitions
                stats.bytes_sent += nbytes

    def spill(self, nbytes: int) -> None:
        """Count bytes that wait in a file, since they are more than is held in memory."""
        for stats in self._all():
            with stats._lock.lock:
                stats.bytes_spilled += nbytes

    def recover(self, lost_with: Sequence[str]) -> None:
        """Count partitions that are sent again: for each the worker that it was lost with, "" if unknown.

        A worker's death counts once, however many partitions it had.
        """
        for stats in self._all():
            with stats._lock.lock:
                stats.recovered += len(lost_with)
                lost = set(filter(None, lost_with)) - stats._lost_workers
                stats._lost_workers |= lost
                stats.deaths += len(lost)

    def opened(self, reader: R) -> R:
        """Take from a reader how many bytes its source has, and return it."""
        with self._stats._lock.lock:
            self._stats._ends = reader.ends
            self._stats.bytes_total = None if reader.ends is None else self._bytes(0, len(reader.ends))
        return reader

    def _bytes(self, first: int, elements: int) -> int:
        """Return how many bytes some elements of the source have."""
        ends = self._stats._ends
        if not ends or not elements:
            return 0
        last = min(first + elements, len(ends))
        return ends[last - 1] - (ends[first - 1] if 0 < first < last else 0) if first < last else 0

    def add(self, outcome: Outcome, first: int = 0) -> None:
        """Count one partition, from element `first` on.

        It counts here, and in the evaluations that read from this one.
        """
        nbytes = self._bytes(first, outcome.read)
        for stats, rows in self._levels():
            with stats._lock.lock:
                stats.bytes_read += nbytes
                Recorder(stats)._add(outcome, rows)

    def read(self, elements: int) -> int:
        """Count elements of a source that are read beside those of evaluations; return 0."""
        for stats, rows in self._levels():
            assert rows.source is not None
            with stats._lock.lock:
                stats.elements_in += elements
                stats.steps[rows.source].entered += elements
        return 0

    def add_beside(self, beside: Stats) -> None:
        """Count the failed elements of an evaluation beside this one, which was made for it."""
        for stats in self._all():
            with stats._lock.lock:
                stats.failed += beside.failed
                stats.retries += beside.retries
                stats.timeouts += beside.timeouts
                stats.deaths += beside.deaths
                stats.failures += beside.failures
                stats._failed_elements.add(beside._failed_elements.kept)

    def _levels(self) -> Iterator[tuple[Stats, _Rows]]:
        """Give the numbers here, and of the evaluations that read from this one, with its rows there."""
        stats = self._stats
        source = stats._first - 1 if stats._first else None
        rows = _Rows(slice(stats._first, len(stats.steps)), source)
        while True:
            yield stats, rows
            above = stats._above
            if above is None:
                return
            rows = rows.within(stats._row, above._first - 1)
            stats = above

    def _all(self) -> Iterator[Stats]:
        return (stats for stats, _ in self._levels())

    def _add(self, outcome: Outcome, rows: _Rows) -> None:
        stats, of = self._stats, rows.of
        steps = stats.steps[of]
        stats.partitions_done += 1
        self._count(outcome, rows)
        stats.worker_seconds += outcome.seconds
        stats.busy_seconds += outcome.busy_seconds
        self._add_made(outcome)
        stats.timeouts += outcome.timeouts
        stats.deaths += outcome.deaths
        stats.bytes_received += outcome.nbytes if outcome.results is not None else 0
        if outcome.read:
            stats.sizes._add(outcome.read)
        for step, seconds in zip(steps, outcome.step_seconds, strict=False):
            step.seconds += seconds
        if rows.sink is None and stats.fold is not None and len(outcome.step_seconds) > len(steps):
            stats.fold_seconds += outcome.step_seconds[-1]
        self._add_faults(outcome, of)
        self._add_failure(outcome, of)

    def add_saved(self, outcome: Outcome, first: int) -> None:
        """Count one partition whose results came from a checkpoint: it took no time here."""
        with self._stats._lock.lock:
            every = slice(0, len(self._stats.steps))
            self._stats.resumed += outcome.read
            self._stats.bytes_read += self._bytes(first, outcome.read)
            self._count(outcome, _Rows(every))
            self._add_faults(outcome, every)

    def _count(self, outcome: Outcome, rows: _Rows) -> None:
        """Count elements; between two evaluations is a row for what the second one reads."""
        stats = self._stats
        if rows.source is None:
            stats.elements_in += outcome.read
        else:
            stats.steps[rows.source].left += outcome.read
        if rows.sink is None:
            stats.elements_out += outcome.produced
        else:
            stats.steps[rows.sink].entered += outcome.produced
        for step, (entered, left) in zip(stats.steps[rows.of], outcome.flows, strict=False):
            step.entered += entered
            step.left += left

    def add_written(self, rows: int, nbytes: int, seconds: float, encoding: float = 0.0) -> None:
        """Note what was written so far, and seconds of encoding on a worker that no step's clock has seen."""
        stats = self._stats
        with stats._lock.lock:
            stats.written = WrittenStats(rows, nbytes, seconds)
            stats.fold_seconds += encoding

    def add_ended(self, outcome: Outcome) -> None:
        """Note what ended the evaluation behind the workers."""
        with self._stats._lock.lock:
            self._stats._raised = True
            self._stats.failed += 1
            if outcome.failure is not None:
                self._remember(self._stats.fold or "", outcome.failure)

    def add_join(self, outcome: Outcome) -> None:
        """Count a join, which folds partitions that were counted before."""
        stats = self._stats
        with stats._lock.lock:
            stats.fold_seconds += outcome.seconds
            stats.worker_seconds += outcome.seconds
            self._add_made(outcome)
            stats.deaths += outcome.deaths
            stats.timeouts += outcome.timeouts
            self._add_failure(outcome, slice(stats._first, len(stats.steps)))

    def _add_made(self, outcome: Outcome) -> None:
        stats = self._stats
        for label, seconds, _ in (made for made in outcome.made if type(made) is Made):
            made = stats.made.setdefault(label, MadeStats(label))
            made.count += 1
            made.seconds += seconds
            stats.worker_seconds += seconds

    def _add_faults(self, outcome: Outcome, of: slice) -> None:
        stats = self._stats
        for step, (failed, replaced, retries) in zip(stats.steps[of], outcome.faults, strict=False):
            step.failed += failed
            step.replaced += replaced
            step.retries += retries
            stats.failed += failed
            stats.retries += retries
        failed_elements = unpacked(outcome.failed_elements)
        for element in failed_elements[-FAILURES:]:
            self._remember(element.step, element.failure)
        found = failed_elements + ([outcome.raised] if outcome.raised else [])
        if of.start:  # their steps are counted from the first of all
            found = [replace(element, step_index=element.step_index + of.start) for element in found]
        stats._failed_elements.add(found)

    def _add_failure(self, outcome: Outcome, of: slice) -> None:
        if outcome.failure is None:
            return
        stats = self._stats
        stats._raised = True
        position, steps = outcome.failed_step, stats.steps[of]
        if position is not None and position < len(steps):
            self._remember(steps[position].label, outcome.failure)  # counted with the step's faults
        else:
            stats.failed += 1
            self._remember(stats.fold or "", outcome.failure)

    def _remember(self, step: str, failure: Failure) -> None:
        message, note = escaped(failure.exception.summary[:MESSAGE]), escaped(failure.note[:MESSAGE])
        self._stats.failures.append(FailureReport(time.time(), step, message[:MESSAGE], note[:MESSAGE]))


# What is counted from partitions that have come back, or were sent.
_OF_PARTITIONS = (
    *("steps", "elements_in", "elements_out", "failed", "retries", "partitions", "partitions_done", "sizes"),
    *("bytes_read", "bytes_sent", "bytes_received", "bytes_spilled", "worker_seconds", "busy_seconds"),
    *("fold_seconds", "failures", "_raised", "_failed_elements", "timeouts", "made", "resumed", "written"),
)
