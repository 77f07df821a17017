"""Records: what a piece holds of each partition, and the bytes that a piece is.

A piece is a magic number, in which the format's number stands; the SHA-256 of the magic number, the table
and the results; the length of the table and the results; the table; and the results as they came from the
workers, which are pickles with their buffers. The table has a row for each record. It is a pickle of numbers,
texts and bytes, and is read as nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from parcoll.checkpoint import descriptions
from parcoll.checkpoint.descriptions import FORMAT, READ
from parcoll.checkpoint.saved import loads_saved
from parcoll.wire.payload import Packed
from parcoll.worker.outcome import Outcome

_ANY_MAGIC = re.compile(rb"parcoll piece (\d{1,9})\n")  # with the number of the format
MAGIC = b"parcoll piece %d\n" % FORMAT
HEADER = len(MAGIC) + 32 + 8  # bytes: the magic number, the SHA-256, the length
START_BYTES = HEADER + 8  # and the length of the table


@dataclass
class Record:
    """The results of one partition, and what is counted for it, as in an `Outcome`."""

    first: int
    count: int
    digest: bytes
    produced: int = 0
    flows: list[tuple[int, int]] = field(default_factory=list)
    faults: list[tuple[int, int, int]] = field(default_factory=list)
    failed_elements: bytes = b""
    failed_parts: bytes = b""  # since format 4
    parts: list[Any] = field(default_factory=list)  # the results: their pickle, and its buffers
    runs_again: bool = False  # its elements do, and another record is to take its place; not saved

    @property
    def end(self) -> int:
        """The first element behind those that it covers."""
        return self.first + self.count

    @property
    def nbytes(self) -> int:
        """How many bytes it takes on the disk, about."""
        return sum(len(part) for part in self.parts)

    @property
    def failed(self) -> int:
        """How often an element of it has failed."""
        return sum(failed for failed, _, _ in self.faults)

    @property
    def results(self) -> SavedResults | None:
        """What it has of results."""
        return SavedResults(bytes(self.parts[0]), *self.parts[1:]) if self.parts else None

    def outcome(self) -> Outcome:
        """Return what its partition came back with."""
        return Outcome(
            read=self.count,
            produced=self.produced,
            flows=self.flows,
            faults=self.faults,
            failed_elements=self.failed_elements,
            failed_parts=self.failed_parts,
            nbytes=self.nbytes,
            results=self.results,
        )


class SavedResults(Packed):
    """Results that an earlier process saved; objects of its `__main__` get this process's classes."""

    __slots__ = ()

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object that is the caller's own."""
        return loads_saved(self.head, [bytearray(buffer) for buffer in self.buffers])


def rows(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield rows of records in the order of the source, none of which has a gap."""
    row: list[Record] = []
    for record in sorted(records, key=lambda record: record.first):
        if row and row[-1].end != record.first:
            yield row
            row = []
        row.append(record)
    if row:
        yield row


def encoded(records: Sequence[Record]) -> list[Any]:
    """Return the bytes of a piece in parts, so that large results are not copied."""
    table = [
        (
            *(record.first, record.count, record.digest, record.produced, record.flows, record.faults),
            *(record.failed_elements, record.failed_parts, [len(part) for part in record.parts]),
        )
        for record in records
    ]
    head = pickle.dumps(table)
    body = [len(head).to_bytes(8, "little"), head, *(part for record in records for part in record.parts)]
    checksum = hashlib.sha256(MAGIC)
    for part in body:
        checksum.update(part)
    return [MAGIC, checksum.digest(), sum(map(len, body)).to_bytes(8, "little"), *body]


def decoded(content: bytes) -> list[Record] | None:
    """Return the records of a piece; None if it is cut short or changed, or has a format not read here."""
    body = memoryview(content)[HEADER:]
    if not any(content.startswith(_magic(number)) and _is_whole(content, number) for number in READ):
        return None
    position = 8 + int.from_bytes(body[:8], "little")
    records = []
    for record, sizes in _table(body[8:position]):
        for size in sizes:
            record.parts.append(body[position : position + size])
            position += size
        records.append(record)
    return records


def size_of(start: bytes) -> tuple[int, int] | None:
    """Return the bytes up to the end of a piece's table, and of the whole piece; None for no piece.

    `start` has its first bytes.
    """
    if len(start) < START_BYTES or not any(start.startswith(_magic(number)) for number in READ):
        return None
    length, table = (int.from_bytes(start[at : at + 8], "little") for at in (HEADER - 8, HEADER))
    return START_BYTES + table, HEADER + length


def records_in(start: bytes) -> list[Record] | None:
    """Return the records of a piece without their results, from its bytes up to the end of its table.

    Nothing compares a checksum; None where the table cannot be read.
    """
    try:
        return [record for record, _ in _table(memoryview(start)[START_BYTES:])]
    except Exception:  # what stands there is no table: pickle raises anything
        return None


class _TableReader(pickle.Unpickler):
    """Reads numbers, texts, bytes and rows of these. It imports nothing and makes no object of a class."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} in a table of a checkpoint")


def _table(head: Any) -> Iterator[tuple[Record, list[int]]]:
    """Yield the records of a table, and for each the sizes of its parts."""
    for first, count, digest, produced, flows, faults, failed, *more, sizes in plain(head):
        record = Record(first, count, digest, produced, flows, faults, failed)
        if more:  # not in format 3
            (record.failed_parts,) = more
        yield record, sizes


def plain(pickled: Any) -> Any:
    """Return what a pickle has of numbers, texts, bytes and rows of these; UnpicklingError for a class."""
    return _TableReader(io.BytesIO(pickled)).load()


def other_writer(content: bytes) -> str | None:
    """Return words for the parcoll that wrote a piece in another format; None for a damaged one of this."""
    match = _ANY_MAGIC.match(content)
    if match is None or any(_is_whole(content, number) for number in READ):
        return None
    return descriptions.other_format(int(match[1]))


def _magic(number: int) -> bytes:
    return b"parcoll piece %d\n" % number


def _is_whole(content: bytes, number: int) -> bool:
    """Tell whether all is there as a parcoll of that format wrote it, but for the magic number."""
    view = memoryview(content)
    body, checksum, length = view[HEADER:], view[len(MAGIC) : HEADER - 8], view[HEADER - 8 : HEADER]
    if len(content) < HEADER or int.from_bytes(length, "little") != len(body):
        return False
    found = hashlib.sha256(_magic(number))
    found.update(body)
    return found.digest() == checksum
