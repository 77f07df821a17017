"""One evaluation with a checkpoint: what is saved comes first; what is missing runs, and is saved.

While all that comes is on the disk, no engine is asked for: a run that was complete starts no cluster. From
the first element on that has no result, the usual window runs (`run`), over a feed that passes by what is
saved: where elements in the middle have results (those behind a piece that was damaged, or of a run that was
`unordered`), they come as partitions that have their outcome already.

An element that ends the evaluation is not saved, what came before it is. Where the chain has a flatmap,
results of the failing element cannot be told from those before it, so that its partition is neither
given nor saved, and runs again.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from parcoll.chain.place import Place
from parcoll.chain.steps import Step
from parcoll.checkpoint import again, digest
from parcoll.checkpoint.again import Part, Reopened, has_grown_batch, joined, taken_apart, without_last
from parcoll.checkpoint.pieces import LONGEST_SECONDS, PIECE_BYTES, PIECE_SECONDS, Checkpoint, Piece
from parcoll.checkpoint.records import Record
from parcoll.checkpoint.storage import folder_at
from parcoll.clock import time
from parcoll.errors import SerializationError, logger
from parcoll.evaluation.engine import Job
from parcoll.evaluation.feed import Rest, StreamFeed
from parcoll.evaluation.plan import Derived
from parcoll.evaluation.reader import Reader
from parcoll.keys.streams import Batches
from parcoll.text import line_of
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats
from parcoll.wire import memmaps
from parcoll.wire.payload import Packed, Payload, Plain
from parcoll.worker.outcome import Outcome

Delivery = tuple[Job, Outcome]


def outcomes(
    options: Any,
    source: Any,
    steps: Sequence[Step],
    stats: Stats,
    evaluate: Callable[[Any, Any], Iterator[Delivery]],
) -> Iterator[Delivery]:
    """Give the outcome of each partition in order: the saved ones, then what `evaluate` makes of the missing.

    `options` are those of the run. `evaluate` gets the reader that is left and what saves its outcomes. With
    `retry_failed`, elements that had failed are missing.
    """
    checkpoint = Checkpoint(folder_at(options.checkpoint), steps)
    with checkpoint.folder.locked():
        checkpoint.open()  # before the source: a refusal leaves a one-pass source unread
        opened = Recorder(stats).opened(source.open())
        reader = SavedReader(opened, checkpoint, stats, options.retry_failed, source)
        checkpoint.check_length(reader.total())
        stats.total = reader.total()
        yield from reader.replay()
        if not (checkpoint.saved_elements and reader.at_end()):
            missing = evaluate(reader, Saver(checkpoint))
            with closing(missing):  # type: ignore[type-var]
                yield from missing
        if reader.error is not None:
            raise reader.take_error()  # type: ignore[misc]
        checkpoint.check_end(reader.position)
        checkpoint.finish(reader.position)


class SavedReader(Reader):
    """A source that is read up to where the next saved results begin; those it has compared and loaded."""

    def __init__(
        self, reader: Reader, checkpoint: Checkpoint, stats: Stats, retry_failed: bool, source: Any
    ) -> None:
        self.ended = False
        self._batches = isinstance(source, Derived) and isinstance(source.operation, Batches)
        self._retry_failed = retry_failed
        self._reader = reader
        self.read_on_while = reader.read_on_while  # type: ignore[method-assign]
        self._checkpoint = checkpoint
        self._stats = stats
        self._ahead: list[Any] = []  # read to see whether there is more
        self._loaded: deque[Record] = deque()  # of the piece that begins where the source stands
        self._parts: deque[Part] = deque()  # of what was loaded and compared last
        self._piece: tuple[Piece, list[Record]] | None = None  # the one that was loaded, and all its records
        self._reopened: Reopened | None = None  # that piece, if elements of it run again
        self._alike = False  # a saved record had the elements that the source has now

    @property
    def position(self) -> int:  # type: ignore[override]
        """How many elements were given."""
        return self._reader.position - len(self._ahead)

    @property
    def error(self) -> Exception | None:  # type: ignore[override]
        """What the source raised."""
        return self._reader.error if self._reader.ended and not self._ahead else None

    def take_error(self) -> Exception | None:
        """Take it from the source."""
        return self._reader.take_error()

    def total(self) -> int | None:
        """Return how many elements the source has, where it knows."""
        left = self._reader.remaining()
        return None if left is None else self._reader.position + left

    def remaining(self) -> int | None:
        """Return how many elements are left to run, where the source knows."""
        total, position = self.total(), self.position
        if total is None:
            return None
        saved = sum(piece.end - piece.first for piece in self._checkpoint.pieces if piece.first >= position)
        return max(total - position - saved, 0)

    @property
    def at_hand(self) -> int:  # type: ignore[override]
        """How many elements were read ahead, up to those that have saved results."""
        following = self._next_piece()
        known = len(self._ahead) + self._reader.at_hand
        return known if following is None else max(min(known, following.first - self.position), 0)

    def look_ahead(self, size: int, max_bytes: int = sys.maxsize) -> bool:
        """Have the source read ahead."""
        return self._reader.look_ahead(size - len(self._ahead), max_bytes)

    def read(self, size: int, max_bytes: int = sys.maxsize, exact: bool = False) -> Sequence[Any]:
        """Return elements that have no saved results, up to those that do."""
        following = self._next_piece()
        if following is not None:
            size = min(size, following.first - self.position)
        if not self._ahead:
            elements = self._reader.read(size, max_bytes, exact)
        elif size == 1 or self._reader.ended:
            elements, self._ahead = self._ahead, []
        else:
            first, self._ahead = self._ahead, []
            elements = [*first, *self._reader.read(size - 1, max_bytes, exact)]
        self.ended = self._reader.ended
        return elements

    def at_end(self) -> bool:
        """Tell whether nothing is left to run; reads an element to see where the source does not know."""
        if self._parts:
            return False
        left = self._reader.remaining()
        if left is not None:
            self.ended = left == 0
        elif not self._ahead:
            self._ahead = list(self.read(1))
            self.ended = not self._ahead
        return self.ended

    def _next_piece(self) -> Piece | None:
        position = self.position
        while self._checkpoint.pieces and self._checkpoint.pieces[0].end <= position:
            self._checkpoint.pieces.pop(0)
        return self._checkpoint.pieces[0] if self._checkpoint.pieces else None

    def replay(self) -> Iterator[Delivery]:
        """Give what is saved from here on, up to the first element that is not."""
        while (job := self.saved_job()) is not None:
            assert job.saved is not None
            yield job, job.saved

    def saved_job(self) -> Job | None:
        """Return the partition that comes next, with its saved outcome, if it has one and keeps it."""
        if not self._parts:
            self._load()
        if not self._parts or self._parts[0].elements is not None:
            return None
        record = self._parts.popleft().record
        outcome = record.outcome()
        Recorder(self._stats).add_saved(outcome, record.first)
        return Job(place=Place(record.first), size=record.count, saved=outcome)

    def failed(self) -> tuple[Sequence[Any], Place] | None:
        """Return the elements that come next, with their place, if they had failed and run again."""
        found: list[Sequence[Any]] = []
        place = Place(self._parts[0].record.first) if self._parts else Place()
        while self._parts and (elements := self._parts[0].elements) is not None:
            found.append(elements)
            self._parts.popleft()
        return (joined(found), place) if found else None

    def _load(self) -> None:
        """Load what is saved of the next elements, and compare it, if there is something."""
        while not self._loaded:
            piece = self._next_piece()
            if piece is None or piece.first != self.position:
                return
            records = self._checkpoint.load(piece)
            if records is not None:
                self._loaded.extend(records)
                self._piece, self._reopened = (piece, records), None
        record = self._loaded.popleft()
        elements = self._compare(record)
        if not (record.runs_again or (self._retry_failed and record.failed)):
            self._parts.append(Part(record))
            return
        parts = taken_apart(record, elements)
        if self._reopened is None:
            assert self._piece is not None
            self._reopened = self._checkpoint.reopen(*self._piece, self._loaded)
        self._reopened.replace(record, parts)
        self._parts.extend(parts)

    def _compare(self, record: Record) -> Sequence[Any]:
        """Read and return the elements whose results are saved, and refuse others."""
        elements: list[Any] = []
        whole: Sequence[Any] = elements
        while len(elements) < record.count and not self._reader.ended:
            whole = self._reader.read(record.count - len(elements), sys.maxsize, True)
            if len(whole) == record.count:
                break
            elements += whole
            whole = elements
        if self._reader.error is not None and len(whole) < record.count:
            raise self._reader.take_error()  # type: ignore[misc]
        if len(whole) < record.count:
            raise self._checkpoint.shorter(record.end, self._reader.position)
        if digest.of_elements(whole) == record.digest:
            self._alike = True
            return whole
        # So look those of shorter batches too, all of them. What a run has saved out of order is behind it.
        known = self._alike or record.count > 1 or not self._checkpoint.has_more(record)
        record.runs_again = self._batches and known and has_grown_batch(record, whole)
        if not record.runs_again and not (self._retry_failed and again.has_mended_files(record, whole)):
            which = (
                f"element {record.first} is another one"
                if record.count == 1
                else f"elements {record.first} to {record.end - 1} are not all the same"
            )
            raise self._checkpoint.refusal(f"has the results of another source: {which}")
        return whole


@dataclass(eq=False)
class SavableJob(Job):
    """A job whose outcome is to be saved."""

    digest: bytes = b""  # of its elements
    copy: Payload | None = None  # of elements that stay in this process, and may be changed there

    def release(self) -> None:
        """Drop the elements."""
        super().release()
        self.copy = None


class ResumingFeed(StreamFeed):
    """Partitions of what has no results yet, and between them those that do."""

    makes = SavableJob

    def __init__(self, reader: SavedReader, steps: Sequence[Step], *settings: Any) -> None:
        super().__init__(reader, *settings)
        self._saved = reader
        self._flat = any(step.multiplies or step.holds for step in steps)
        self._again: Rest | None = None  # elements that had failed

    def total(self) -> int | None:
        """Ask the source."""
        return self._saved.total()

    def next_job(self, threads: int) -> Job | None:
        """Return the partition that comes next, with its outcome where that is saved."""
        if not self._again:
            started = time.perf_counter()
            job = self._saved.saved_job()
            if job is not None:
                self.reading += time.perf_counter() - started
                return job
            if (found := self._saved.failed()) is not None:
                self._again = Rest(*found)
                self._handed_back += len(self._again)
        return self.job_of(self._again, threads) if self._again else super().next_job(threads)

    def _job(self, elements: Any, place: Place) -> Job | None:
        job = super()._job(elements, place)
        if isinstance(job, SavableJob) and job.size is not None:
            job.digest = digest.of_elements(elements if len(elements) == job.size else elements[: job.size])
            if isinstance(job.elements, Plain):  # of which a function of the chain may change the elements
                job.copy = _copy(elements)
        return job

    def returned(self, job: Job, outcome: Outcome) -> None:
        """Note what is to be saved of an outcome, while the job still has its elements."""
        assert isinstance(job, SavableJob)
        job.record = self._record(job, outcome)

    def _record(self, job: SavableJob, outcome: Outcome) -> Record | None:
        settled = self._settled(outcome)
        if settled is None or not settled.read:
            return None
        found = job.digest
        if settled.read != job.size:
            elements = (job.copy or job.elements).load()  # type: ignore[union-attr]
            found = digest.of_elements(elements[: settled.read])
        return Record(
            job.place.base,
            settled.read,
            found or b"",
            settled.produced,
            settled.flows,
            settled.faults,
            settled.failed_elements,
            settled.failed_parts,
        )

    def _settled(self, outcome: Outcome) -> Outcome | None:
        """Return what is to be saved: without the element that ended the evaluation, None for nothing."""
        if outcome.failure is None:
            cut = self._flat and self._limit is not None and outcome.produced >= self._limit
            return None if cut else outcome  # the last element of a partition cut short may give more
        position = outcome.failed_step
        if self._flat or outcome.lost or position is None or position >= len(outcome.flows):
            return None
        return without_last(outcome, position)


def _copy(elements: Any) -> Packed | None:
    try:
        return Packed.pack(elements)
    except Exception:  # it need not travel here
        return None


class Saver:
    """Puts the outcomes that are to be delivered on the disk, several at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._started = time.monotonic()
        self._last = self._started - LONGEST_SECONDS
        self._pid, self._failed = os.getpid(), False

    def delivers(self, held: Sequence[Delivery], idle: bool) -> bool:
        """Tell whether these may be delivered, and then they are on the disk; `idle`: nothing else comes."""
        now = time.monotonic()
        pause = min(max(PIECE_SECONDS, (now - self._started) / 100), LONGEST_SECONDS)
        if not (idle or held[-1][1].failure or now - self._last >= pause or _nbytes(held) >= PIECE_BYTES):
            return False
        try:
            self._save(held)
        except Exception:  # and not Ctrl-C, behind which they are saved once more
            self._failed = True
            raise
        self._last = time.monotonic()
        return True

    def close(self, held: Sequence[Delivery]) -> None:
        """Save what was not delivered yet, as when Ctrl-C ends the evaluation."""
        if self._failed or os.getpid() != self._pid:  # a fork drops its copy of somebody else's evaluation
            return
        try:
            self._save(held)
        except Exception as error:  # another one is on its way
            logger.warning("%s", str(error))

    def _save(self, held: Sequence[Delivery]) -> None:
        records = []
        for job, outcome in held:
            if job.record is not None:
                job.record.parts = _parts(job, outcome)
                records.append(job.record)
            elif outcome.failure is not None:
                outcome.results = None  # what is not saved is not given, or it would be given twice
        if records:
            self._checkpoint.save(records)


def _nbytes(held: Sequence[Delivery]) -> int:
    return sum(outcome.nbytes for job, outcome in held if job.saved is None)


def _parts(job: Job, outcome: Outcome) -> list[Any]:
    results: Any = outcome.results
    if results is None:
        return []
    # Values in this process, or packed in pieces, or in files that others may write into.
    if not isinstance(results, Packed) or memmaps.refers(results.head):
        try:
            results = Packed.pack(results.load())
        except Exception as error:
            raise SerializationError(
                f"the results of the partition at {job.place.element(0)} cannot be saved in a checkpoint: "
                f"{line_of(error)}"
            ) from error
    return [results.head, *(memoryview(buffer).cast("B") for buffer in results.buffers)]
