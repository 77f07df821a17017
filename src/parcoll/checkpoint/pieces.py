"""Pieces: the files in which `parallel(..., checkpoint="folder")` keeps results, and how they are used.

**The folder** is any path or fsspec URL. It holds:

* `parcoll-chain.json`: the fingerprint of the chain that made the results (`fingerprint`), and how many
  elements the source had, if that was known.
* `parcoll-<first>-<end>.piece`: the results of the source elements from `first` up to, not including,
  `end`. A piece is written once and whole (`storage`), and never changed.
* `parcoll-end.json`: how many elements the source had, once it has come to its end.
* `parcoll.lock`, on a local filesystem: the lock of the process that evaluates. The kernel releases it
  however that process ends. Elsewhere there is no lock, and two processes do the work twice. No answer gets
  wrong then: each process writes whole pieces, and their names show which pieces overlap.

**A piece** is a magic number, the SHA-256 and the length of what follows, then a table, then the results as
they came from the workers: pickles with their buffers. The table has a record for each partition. The
record says which elements the partition had, their digest, and what `stats` and `errors` count for it.
Whoever can write to the folder can run code in the process that loads it, as with any pickle.

**Order of events.** Results are on the disk before the consumer gets them. All results that have come by
then go into one piece. Between two pieces `PIECE_SECONDS` pass, more in a long run, less if `PIECE_BYTES`
are waiting. So many fast partitions cost few files, and a crash loses the results that were being made or
were waiting.

**Starting again.** The source is read from its first element. Elements that a piece covers are compared
with the saved digest, and their results come from the disk; the others run. So all results come, from the
first on. A piece that is not whole (its checksum tells) is removed with a warning, wherever it stands, and
its elements run again, like those that no piece covers. A piece that cannot be read (a network, a
permission) is an error, since nobody knows whether it is whole. Another chain or another source is refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parcoll.chain.steps import Step
from parcoll.checkpoint import fingerprint
from parcoll.checkpoint.storage import Folder
from parcoll.errors import CheckpointError
from parcoll.log import logger
from parcoll.wire import codec
from parcoll.wire.payload import Packed

FORMAT = 1
CHAIN = "parcoll-chain.json"
END = "parcoll-end.json"
MAGIC = b"parcoll piece 1\n"
HEADER = len(MAGIC) + 32 + 8  # bytes: the magic number, the SHA-256, the length
PIECE_SECONDS = 0.1  # between two pieces; or a hundredth of the evaluation's time so far, if that is more
LONGEST_SECONDS = 2.0  # between two pieces, at most
PIECE_BYTES = 8 * 2**20  # results that wait are written at once when there are so many bytes of them
_NAME = re.compile(r"parcoll-(\d+)-(\d+)\.piece")


class Piece(NamedTuple):
    """The part of the source that a piece covers, as its name says: elements `first` to `end` - 1."""

    first: int
    end: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"parcoll-{self.first:012}-{self.end:012}.piece"


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
    parts: list[Any] = field(default_factory=list)  # the results: their pickle, and its buffers

    @property
    def end(self) -> int:
        """The first element behind those that it covers."""
        return self.first + self.count

    @property
    def nbytes(self) -> int:
        """How many bytes it takes on the disk, about."""
        return sum(len(part) for part in self.parts)


class SavedResults(Packed):
    """Results that an earlier process saved; objects of its `__main__` get this process's classes."""

    __slots__ = ()

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object that is the caller's own."""
        return codec.loads_saved(self.head, [bytearray(buffer) for buffer in self.buffers])


class Checkpoint:
    """The folder of a checkpoint, as used by one evaluation that has locked it."""

    def __init__(self, folder: Folder, steps: Sequence[Step]) -> None:
        self.folder = folder
        self._chain = fingerprint.of_steps(steps)
        self._length: int | None = None
        self._begun = False  # the folder has the fingerprint of its chain
        self.pieces: list[Piece] = []  # in the order of the source, none overlapping
        self.end: int | None = None  # elements of the source, if a run has come to its end
        self.saved = 0  # elements whose results are in the folder

    @property
    def url(self) -> str:
        """The folder, as the user wrote it."""
        return self.folder.url

    def open(self) -> None:
        """Find what the folder holds; CheckpointError if another chain made it."""
        names = self._try("listed", self.folder.names)
        found = sorted(
            (Piece(*map(int, match.groups())) for name in names if (match := _NAME.fullmatch(name))),
            key=lambda piece: (piece.first, -piece.end),
        )
        if CHAIN in names:
            self._compare(self._json(CHAIN))
            self._begun = True
        elif found:
            raise CheckpointError(
                f"the checkpoint {self.url!r} has results but no {CHAIN}, so that nobody knows what they are "
                "results of: restore that file, or delete the folder to start from the first element"
            )
        for piece in found:
            if piece.first >= (self.pieces[-1].end if self.pieces else 0):
                self.pieces.append(piece)
                self.saved += piece.end - piece.first
        if END in names:
            self.end = self._json(END).get("elements")

    def _compare(self, saved: dict[str, Any]) -> None:
        if saved.get("format") != FORMAT:
            raise self.refusal(f"was written by another version of parcoll (format {saved.get('format')!r})")
        if saved.get("python") != _python():
            raise self.refusal(
                f"was written by Python {saved.get('python')}, and this is Python {_python()}, whose "
                "bytecode cannot be compared"
            )
        difference = fingerprint.difference(saved["steps"], self._chain)
        if difference is not None:
            raise self.refusal(f"has the results of another chain: {difference}")
        self._length = saved.get("length")

    def check_length(self, length: int | None) -> None:
        """Raise CheckpointError if the source had another length, where both lengths are known."""
        if self._begun and None not in (self._length, length) and self._length != length:
            raise self.refusal(
                f"has the results of another source: it had {self._length:,} elements and has {length:,}"
            )
        self._length = length

    def refusal(self, why: str) -> CheckpointError:
        """Return the error for a folder whose results cannot be used."""
        return CheckpointError(
            f"the checkpoint {self.url!r} {why}: restore what was there, or delete the folder (or name "
            "another one) to start from the first element"
        )

    def _json(self, name: str) -> dict[str, Any]:
        content = self._try("read", lambda: self.folder.read(name))
        try:
            found: dict[str, Any] = dict(json.loads(content))
        except (ValueError, TypeError):
            raise self.refusal(f"is damaged: {name} is not what was written") from None
        return found

    def _try(self, what: str, action: Any) -> Any:
        try:
            return action()
        except Exception as error:  # of any class: each filesystem of fsspec's has its own
            raise CheckpointError(
                f"the checkpoint {self.url!r} cannot be {what}: {type(error).__name__}: {error}"
            ) from error

    def load(self, piece: Piece) -> list[Record] | None:
        """Return the records of a piece; if it is not whole, remove it and return None."""
        content = self._try("read", lambda: self.folder.read(piece.name))
        records = _decoded(content)
        if records is None or not records or (records[0].first, records[-1].end) != piece:
            logger.warning(
                "checkpoint %s: %s is damaged; elements %d to %d run again",
                *(self.url, piece.name, piece.first, piece.end - 1),
            )
            self._try("cleared of a damaged file", lambda: self.folder.remove(piece.name))
            self.pieces.remove(piece)
            self.saved -= piece.end - piece.first
            return None
        return records

    def save(self, records: Sequence[Record]) -> None:
        """Put records on the disk: one piece for each row of records without a gap."""
        try:
            if not self._begun:
                self._write_json(
                    CHAIN,
                    {"format": FORMAT, "python": _python(), "length": self._length, "steps": self._chain},
                )
                self._begun = True
            for row in _rows(records):
                self._save_row(row)
        except Exception as error:
            raise CheckpointError(
                f"results could not be saved in the checkpoint {self.url!r}: {type(error).__name__}: "
                f"{error}; the results of {self.saved:,} elements are there and whole: make room, or do what "
                "else the error asks for, and start again to go on from them"
            ) from error

    def _save_row(self, row: list[Record]) -> None:
        try:
            self.folder.write(Piece(row[0].first, row[-1].end).name, _encoded(row))
            self.saved += row[-1].end - row[0].first
        except Exception:
            if len(row) == 1:
                raise
            for record in row:  # one piece each, for as many as there is room for
                self._save_row([record])

    def finish(self, elements: int) -> None:
        """Note on the disk that the source has ended after that many elements."""
        if self.end is None:
            self._try("completed", lambda: self._write_json(END, {"elements": elements}))
            self.end = elements

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self.folder.write(name, [json.dumps(content, indent=1).encode()])


def _python() -> str:
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def _rows(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield rows of records in the order of the source, none of which has a gap."""
    row: list[Record] = []
    for record in sorted(records, key=lambda record: record.first):
        if row and row[-1].end != record.first:
            yield row
            row = []
        row.append(record)
    if row:
        yield row


def _encoded(records: Sequence[Record]) -> list[Any]:
    """Return the bytes of a piece in parts, so that large results are not copied."""
    table = [
        (
            *(record.first, record.count, record.digest, record.produced, record.flows, record.faults),
            *(record.failed_elements, [len(part) for part in record.parts]),
        )
        for record in records
    ]
    head = pickle.dumps(table)
    body = [len(head).to_bytes(8, "little"), head, *(part for record in records for part in record.parts)]
    checksum = hashlib.sha256()
    for part in body:
        checksum.update(part)
    return [MAGIC, checksum.digest(), sum(map(len, body)).to_bytes(8, "little"), *body]


def _decoded(content: bytes) -> list[Record] | None:
    """Return the records of a piece; None if it is cut short or changed."""
    view = memoryview(content)
    body = view[HEADER:]
    checksum, length = view[len(MAGIC) : HEADER - 8], view[HEADER - 8 : HEADER]
    if len(content) < HEADER or view[: len(MAGIC)] != MAGIC or int.from_bytes(length, "little") != len(body):
        return None
    if hashlib.sha256(body).digest() != checksum:
        return None
    position = 8 + int.from_bytes(body[:8], "little")
    records = []
    for *fields, sizes in pickle.loads(body[8:position]):
        parts: list[Any] = []
        for size in sizes:
            parts.append(body[position : position + size])
            position += size
        records.append(Record(*[*fields, parts]))
    return records
