"""Again: which elements of what was saved run once more, and what is saved in the place of their results.

With `retry_failed=True` a record is taken apart: elements that had failed run again, and the results of the
others stay. For that, each record says which of its results its failed elements have given. Where it does not
(it has the value of a fold, or was written in format 3), all its elements run again. So do those of the last
record of a source of batches, if its last batch has grown since.

The piece of such a record is written anew under its name, with the new results in their places, as they
come. So it has the old results or the new ones, whenever the process is killed.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from parcoll.chain.failures import FailedPart, moved_parts, pack_parts, unpacked
from parcoll.chain.failures import packed as pack_failed
from parcoll.checkpoint import digest
from parcoll.checkpoint.records import Record, plain, rows
from parcoll.errors import SerializationError
from parcoll.files.descriptors import Descriptor
from parcoll.text import line_of
from parcoll.wire.exceptions import decoded_part
from parcoll.wire.payload import Packed
from parcoll.worker.outcome import Outcome


class Part(NamedTuple):
    """A part of what a record covers: its results are given, or its elements run again."""

    record: Record
    elements: Sequence[Any] | None = None


def taken_apart(record: Record, elements: Sequence[Any]) -> list[Part]:
    """Return the parts of a record in order; `elements` are those that it covers."""
    failed = None if record.runs_again else _failed_parts(record)
    if failed is None:
        record.runs_again = True
        return [Part(record, elements)]
    try:
        packed = record.results
        return _Apart(record, elements, [] if packed is None else packed.load()).parts(failed)
    except Exception as error:
        raise SerializationError(
            f"the saved results of elements {record.first} to {record.end - 1}, some of which had failed, "
            f"cannot be loaded here to be saved anew: {line_of(error)}"
        ) from error


def joined(elements: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Return elements that follow each other; those of an array as an array, whose digest is another."""
    if len(elements) == 1:
        return elements[0]
    if digest.is_plain_array(elements[0]):
        whole: Sequence[Any] = sys.modules["numpy"].concatenate(elements)
        return whole
    return [element for part in elements for element in part]


def has_grown_batch(record: Record, elements: Sequence[Any]) -> bool:
    """Tell whether a record had these elements, but for the last: a batch that was shorter by then."""
    *others, last = elements
    return any(
        digest.of_elements([*others, last[:length]]) == record.digest
        for length in range(len(last) - 1, 0, -1)
    )


def has_mended_files(record: Record, elements: Sequence[Any]) -> bool:
    """Tell whether a record had these elements, but for files that could not be read, and have changed."""
    before = list(elements)
    for failed in unpacked(record.failed_elements):
        if failed.step_index == 0 and record.first <= failed.place.base < record.end:
            at = failed.place.base - record.first
            old, new = decoded_part(failed.element), elements[at]
            if isinstance(old, Descriptor) and isinstance(new, Descriptor) and old.path == new.path:
                before[at] = old
    return digest.of_elements(before) == record.digest


def _failed_parts(record: Record) -> list[FailedPart] | None:
    """Return the parts that failed elements have given, if they account for all failures."""
    try:
        found = [FailedPart(*part) for part in plain(record.failed_parts)] if record.failed_parts else []
        failed = sum(count for part in found for count, _, _ in part.faults)
        at, given = record.first, 0
        for part in found:
            placed = at <= part.at < record.end and given <= part.start <= part.end <= record.produced
            if not placed or len(part.flows) != len(record.flows) or len(part.faults) != len(record.faults):
                return None
            at, given = part.at + 1, part.end
    except (pickle.UnpicklingError, TypeError, ValueError):
        return None
    return found if failed == record.failed else None


class _Apart:
    """One record that is taken apart."""

    def __init__(self, record: Record, elements: Sequence[Any], results: list[Any]) -> None:
        self._record = record
        self._elements = elements
        self._results = results
        self._failed_elements = unpacked(record.failed_elements)

    def parts(self, failed: Sequence[FailedPart]) -> list[Part]:
        """Return the parts: each failed element is one, and so are the elements between two of them."""
        record = self._record
        found: list[Part] = []
        at, given = record.first, 0
        for part in failed:
            if at < part.at:
                found.append(Part(self._cut(at, part.at, given, part.start)))
            found.append(self._failing(part))
            at, given = part.at + 1, part.end
        if at < record.end:
            found.append(Part(self._cut(at, record.end, given, record.produced)))
        # What is counted for the elements that have not failed is known for all of them together.
        kept = next((part.record for part in found if part.elements is None), None)
        if kept is not None:
            kept.flows = _less(record.flows, [part.flows for part in failed])
            kept.faults = _less(record.faults, [part.faults for part in failed])
        return found

    def _failing(self, part: FailedPart) -> Part:
        record = self._cut(part.at, part.at + 1, part.start, part.end)
        record.flows, record.faults = part.flows, part.faults
        kept = [element for element in self._failed_elements if element.place.base == part.at]
        record.failed_elements = pack_failed(kept)
        moved = part._replace(start=0, end=part.end - part.start)
        record.failed_parts = pack_parts([moved])
        record.runs_again = True
        return Part(record, self._of(part.at, part.at + 1))

    def _cut(self, first: int, end: int, start: int, stop: int) -> Record:
        """Return a record of some elements, and of the results from `start` up to `stop`."""
        packed = Packed.pack(self._results[start:stop])
        return Record(
            first,
            end - first,
            digest.of_elements(self._of(first, end)),
            produced=stop - start,
            parts=[packed.head, *(memoryview(buffer).cast("B") for buffer in packed.buffers)],
        )

    def _of(self, first: int, end: int) -> Sequence[Any]:
        return self._elements[first - self._record.first : end - self._record.first]


def _less(counted: Sequence[Any], others: Sequence[Sequence[Any]]) -> list[Any]:
    """Return rows of counts less those of others."""
    return [
        tuple(number - sum(numbers) for number, *numbers in zip(row, *of_others, strict=True))
        for row, *of_others in zip(counted, *others, strict=True)
    ]


class Reopened:
    """A piece some of whose elements run again, and the files that it is in by now."""

    def __init__(self, records: Sequence[Record], name: str, unread: Iterable[Record]) -> None:
        """`unread` are those that the reader has not come to, as it goes on, and others behind the piece."""
        self.records = list(records)
        self._unread = unread
        self.names = {name}
        self._first, self._end = records[0].first, records[-1].end

    @property
    def waits(self) -> bool:
        """Whether elements of it are still to run, or may be where the reader has not come to."""
        return any(record.runs_again for record in self.records) or any(map(self.covers, self._unread))

    @property
    def elements(self) -> int:
        """How many elements have results in it."""
        return sum(record.count for record in self.records)

    def covers(self, record: Record) -> bool:
        """Tell whether it has, or had, results of these elements."""
        return self._first <= record.first < self._end

    def replace(self, record: Record, parts: Sequence[Part]) -> None:
        """Have the parts of a record stand in its place."""
        at = next(i for i, found in enumerate(self.records) if found is record)
        self.records[at : at + 1] = [part.record for part in parts]

    def put(self, new: Sequence[Record]) -> None:
        """Have these take the places of the records whose elements they have."""
        ends = {record.first: record.end for record in new}
        taken = {index for first, end in ends.items() for index in range(first, end)}
        numbers = {id(record) for record in new}  # they may be here already, where Ctrl-C came behind that
        kept = [
            old
            for old in self.records
            if id(old) not in numbers and (not old.runs_again or taken.isdisjoint(range(old.first, old.end)))
        ]
        self.records = sorted([*kept, *new], key=lambda record: record.first)

    def rows(self) -> list[list[Record]]:
        """Return what is to be written: a file for each row of records without a gap."""
        return list(rows(self.records))


def without_last(outcome: Outcome, position: int) -> Outcome:
    """Take the last element out of the counts, which failed in the step at `position`."""
    flows = [(entered - 1, left - 1) for entered, left in outcome.flows[:position]]
    entered, left = outcome.flows[position]
    counted = not outcome.ended_apart
    flows += [(entered - counted, left), *outcome.flows[position + 1 :]]
    faults = [list(counts) for counts in outcome.faults]
    raised = outcome.raised
    faults[position][0] -= counted
    faults[position][2] -= raised.attempts - 1 if raised is not None else 0
    failed = unpacked(outcome.failed_elements)
    for element in failed:
        if element.place.base == outcome.ended_at:
            faults[element.step_index][2] -= element.attempts - 1
            if element.step_index != position:  # it had failed in an earlier step, and was replaced there
                faults[element.step_index][0] -= 1
                faults[element.step_index][1] -= 1
    kept = [element for element in failed if element.place.base != outcome.ended_at]
    parts = [part for part in moved_parts(outcome.failed_parts, 0) if part.at != outcome.ended_at]
    return Outcome(
        read=outcome.read - 1,
        produced=outcome.produced,
        flows=flows,
        faults=[(one, two, three) for one, two, three in faults],
        failed_elements=pack_failed(kept),
        failed_parts=pack_parts(parts),
    )
