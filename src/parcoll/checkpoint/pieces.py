"""What `parallel(..., checkpoint="folder")` keeps on disk: the format, and how it is read and written.

**The folder.** Any path or fsspec URL. In it:

* `parcoll-chain.json`: what the results were made by (`fingerprint`), and how many elements the source
  had where that is known.
* `parcoll-<first>-<end>.piece`: the results of the source elements from `first` up to, not including,
  `end`. A piece is written once and whole (`storage`), and never changed.
* `parcoll-end.json`, once the source has come to its end: how many elements it had.
* `parcoll.lock`, on a local filesystem: held by the process that evaluates. The kernel lets go of it
  however that process ends. Elsewhere there is no lock; two processes then do the work twice, and since
  each writes whole pieces, and pieces that overlap are told by their names, no answer gets wrong.

**A piece** is a magic number, the SHA-256 of what follows and its length, then a table of the partitions
whose results it holds, then these as they came from the workers: pickles with their buffers. The table
has for each partition which elements it covers, their digest, and what `stats` and `errors` count. Whoever
can write to the folder can run code in the process that loads it, as with any pickle.

**Order of events.** Results are on the disk before the consumer gets them. What has come by then goes into
one piece: `PIECE_SECONDS` pass between two pieces, more in a long run, fewer where `PIECE_BYTES` are
waiting. So many fast partitions cost few files, and a crash loses what ran at the time and what waited.

**Starting again.** The source is read from its first element. Where a piece has the results, the elements
are compared with the digest and their results are given from the disk; the others run. So all results come,
from the first on. A piece that is not whole (its checksum tells) is removed with a warning, wherever it
stands, and its elements run again, like those that no piece has. A piece that cannot be read (a network, a
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
HEADER = len(MAGIC) + 32 + 8
PIECE_SECONDS = 0.1  # between two pieces, or a hundredth of the time that the evaluation has taken
LONGEST_SECONDS = 2.0
PIECE_BYTES = 8 * 2**20
_NAME = re.compile(r"parcoll-(\d+)-(\d+)\.piece")


class Piece(NamedTuple):
    """Where a piece stands in the source, as its name says."""

    first: int
    end: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"parcoll-{self.first:012}-{self.end:012}.piece"


@dataclass
class Record:
    """The results of one partition, and what is counted of it."""

    first: int
    count: int
    digest: bytes
    produced: int = 0
    flows: list[tuple[int, int]] = field(default_factory=list)
    faults: list[tuple[int, int, int]] = field(default_factory=list)
    failed_elements: bytes = b""
    parts: list[Any] = field(default_factory=list)  # the pickle, and its buffers

    @property
    def end(self) -> int:
        """The first element that it does not cover."""
        return self.first + self.count

    @property
    def nbytes(self) -> int:
        """How many bytes it takes on the disk, about."""
        return sum(len(part) for part in self.parts)


class SavedResults(Packed):
    """Results that an earlier process saved: its classes of `__main__` are those of this one."""

    __slots__ = ()

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object, the caller's own."""
        return codec.loads_saved(self.head, [bytearray(buffer) for buffer in self.buffers])


class Checkpoint:
    """The folder of one evaluation, which holds its lock."""

    def __init__(self, folder: Folder, steps: Sequence[Step]) -> None:
        self.folder = folder
        self._chain = fingerprint.of_steps(steps)
        self._length: int | None = None
        self._begun = False  # the folder says what its pieces are made by
        self.pieces: list[Piece] = []  # in the order of the source, none overlapping
        self.end: int | None = None  # elements of the source, where a run has come to its end
        self.saved = 0  # elements whose results are in the folder

    @property
    def url(self) -> str:
        """The folder, as the user wrote it."""
        return self.folder.url

    def open(self) -> None:
        """See what there is, and refuse what another chain has left."""
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
        """Refuse what a source of another length has left, where both are known."""
        if self._begun and None not in (self._length, length) and self._length != length:
            raise self.refusal(
                f"has the results of another source: it had {self._length:,} elements and has {length:,}"
            )
        self._length = length

    def refusal(self, why: str) -> CheckpointError:
        """Return the error for a folder that cannot be gone on with."""
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
        except Exception as error:  # any that a filesystem of fsspec's may have
            raise CheckpointError(
                f"the checkpoint {self.url!r} cannot be {what}: {type(error).__name__}: {error}"
            ) from error

    def load(self, piece: Piece) -> list[Record] | None:
        """Return what a piece holds; None where it is not whole, and then it is removed."""
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
        """Put records on the disk, a piece for each row of them without a gap."""
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
            for record in row:  # as many as there is room for
                self._save_row([record])

    def finish(self, elements: int) -> None:
        """Note that the source has ended, after that many elements."""
        if self.end is None:
            self._try("completed", lambda: self._write_json(END, {"elements": elements}))
            self.end = elements

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self.folder.write(name, [json.dumps(content, indent=1).encode()])


def _python() -> str:
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def _rows(records: Sequence[Record]) -> Iterator[list[Record]]:
    row: list[Record] = []
    for record in sorted(records, key=lambda record: record.first):
        if row and row[-1].end != record.first:
            yield row
            row = []
        row.append(record)
    if row:
        yield row


def _encoded(records: Sequence[Record]) -> list[Any]:
    """Return the bytes of a piece, in parts: large results are not copied."""
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
    """Return the records of a piece; None where it is cut short or changed."""
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
