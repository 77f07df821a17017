"""Pieces: the files in which `parallel(..., checkpoint="folder")` keeps results, and how they are used.

**The folder** is any path or fsspec URL. It holds:

* `parcoll-chain.json`: the number of the format, the fingerprint of the chain that made the results
  (`fingerprint`), and how many elements the source had, if that was known (`descriptions`).
* `parcoll-<first>-<end>.piece`: the results of the source elements from `first` up to, not including,
  `end`. A piece is written once and whole (`storage`), and never changed.
* `parcoll-end.json`: how many elements the source had, once it has come to its end. Both end with a checksum.
* `parcoll.lock`, on a local filesystem: the lock of the process that evaluates. The kernel releases it
  however that process ends. Elsewhere there is no lock, and two processes do the work twice. No answer gets
  wrong then: each process writes whole pieces, and their names show which pieces overlap.

**A piece** is a magic number, in which the format's number stands; the SHA-256 of the magic number, the
table and the results; the length of the table and the results; the table; and the results as they came from
the workers, which are pickles with their buffers. The table has a record for each partition. The record says
which elements the partition had, their digest, and what `stats` and `errors` count for it. Whoever can write
to the folder can run code in the process that loads it, as with any pickle.

**Order of events.** Results are on the disk before the consumer gets them. All results that have come by
then go into one piece. Between two pieces `PIECE_SECONDS` pass, more in a long run, less if `PIECE_BYTES`
are waiting. So many fast partitions cost few files, and a crash loses the results that were being made or
were waiting.

**Starting again.** The source is read from its first element. Elements that a piece covers are compared
with the saved digest, and their results come from the disk; the others run. So all results come, from the
first on. A piece that is not whole (its checksum tells) is removed with a warning, wherever it stands, and
its elements run again, like those that no piece covers. A piece that cannot be read (a network, a
permission) is an error, since nobody knows whether it is whole. Another chain or another source is refused,
and so is what a parcoll of another format wrote: nothing of it is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from parcoll.chain.steps import Step
from parcoll.checkpoint import descriptions, fingerprint
from parcoll.checkpoint.descriptions import CHAIN, END, FORMAT
from parcoll.checkpoint.storage import TEMPORARY, Folder, NotAFileError
from parcoll.errors import CheckpointError
from parcoll.log import logger
from parcoll.wire import codec
from parcoll.wire.payload import Packed

MAGIC = b"parcoll piece %d\n" % FORMAT
HEADER = len(MAGIC) + 32 + 8  # bytes: the magic number, the SHA-256, the length
PIECE_SECONDS = 0.1  # between two pieces; or a hundredth of the evaluation's time so far, if that is more
LONGEST_SECONDS = 2.0  # between two pieces, at most
PIECE_BYTES = 8 * 2**20  # results that wait are written at once when there are so many bytes of them
_ANY_MAGIC = re.compile(rb"parcoll piece (\d{1,9})\n")  # with the number of the format
_NAME = re.compile(r"parcoll-(\d+)-(\d+)\.piece")
_GO_ON = "go on with that version"
_Described = TypeVar("_Described")


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
        self._known_length: int | None = None  # of the source, if it is known before its end
        self.has_chain_file = False
        self.pieces: list[Piece] = []  # in the order of the source, none overlapping
        self.source_length: int | None = None  # in elements, if a run has come to its end
        self.saved_elements = 0  # how many have their results in the folder

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
            self._compare(self._described(CHAIN, descriptions.chain_file_in))
            self.has_chain_file = True
        elif found:
            raise CheckpointError(
                f"the checkpoint {self.url!r} has results but no {CHAIN}, which says which chain made them: "
                "restore that file, or delete the folder to start from the first element"
            )
        for piece in found:
            if piece.first >= (self.pieces[-1].end if self.pieces else 0):
                self.pieces.append(piece)
                self.saved_elements += piece.end - piece.first
        if END in names:
            self.source_length = self._described(END, descriptions.elements_in)
        for name in names:
            if name.startswith(TEMPORARY):  # left by a process that was killed
                with contextlib.suppress(Exception):
                    self.folder.remove(name)

    def _compare(self, saved: descriptions.ChainFile) -> None:
        writer = descriptions.other_format(saved.format)
        if writer is not None:
            raise self.refusal(f"was written by {writer}", _GO_ON)
        running = descriptions.running_python()
        if saved.python != running:
            raise self.refusal(
                f"was written by Python {saved.python}, and this is Python {running}, whose bytecode cannot "
                "be compared",
                _GO_ON,
            )
        difference = fingerprint.difference(saved.steps, self._chain)
        if difference is not None:
            raise self.refusal(f"has the results of another chain: {difference}")
        self._known_length = saved.length

    def check_length(self, length: int | None) -> None:
        """Raise CheckpointError if the source had another length, where both lengths are known."""
        known = self._known_length if self.has_chain_file else None
        if known is not None and length is not None and known != length:
            raise self.refusal(
                f"has the results of another source: it had {known:,} elements and has {length:,}"
            )
        self._known_length = length

    def refusal(self, why: str, remedy: str = "restore what was there") -> CheckpointError:
        """Return the error for a folder whose results cannot be used."""
        # The folder's files may say anything.
        why = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in why)
        return CheckpointError(
            f"the checkpoint {self.url!r} {why}: {remedy}, or delete the folder (or name another one) to "
            "start from the first element"
        )

    def _read(self, name: str) -> bytes:
        try:
            return self.folder.read(name)
        except NotAFileError:
            piece = name not in (CHAIN, END)
            remedy = "remove it to run its elements again" if piece else "put it back as it was"
            raise self.refusal(f"is damaged: {name} is not a file", remedy) from None
        except Exception as error:  # of any class: each filesystem of fsspec's has its own
            raise self.refusal(
                f"cannot be used: {name} cannot be read ({type(error).__name__}: {error})",
                "remove the cause and start again",
            ) from error

    def _described(self, name: str, parsed: Callable[[bytes], _Described]) -> _Described:
        content = self._read(name)
        try:
            return parsed(content)
        except ValueError:
            raise self.refusal(f"is damaged: {name} is not what was written") from None

    def _try(self, what: str, action: Any) -> Any:
        try:
            return action()
        except Exception as error:  # of any class: each filesystem of fsspec's has its own
            raise CheckpointError(
                f"the checkpoint {self.url!r} cannot be {what}: {type(error).__name__}: {error}"
            ) from error

    def load(self, piece: Piece) -> list[Record] | None:
        """Return the records of a piece; if it is not whole, remove it and return None."""
        content = self._read(piece.name)
        records = _decoded(content)
        if not records or (records[0].first, records[-1].end) != piece:
            writer = _other_writer(content)
            if writer is not None:
                raise self.refusal(
                    f"has a file of {writer}, {piece.name}", "remove that file to run its elements again"
                )
            self._remove(piece)
            return None
        return records

    def _remove(self, piece: Piece) -> None:
        logger.warning(
            "checkpoint %s: %s is damaged; elements %d to %d run again",
            *(self.url, piece.name, piece.first, piece.end - 1),
        )
        try:
            self.folder.remove(piece.name)
        except Exception as error:
            raise CheckpointError(
                f"the damaged file {piece.name} in the checkpoint {self.url!r} cannot be removed "
                f"({type(error).__name__}: {error}): remove it and start again"
            ) from error
        self.pieces.remove(piece)
        self.saved_elements -= piece.end - piece.first

    def save(self, records: Sequence[Record]) -> None:
        """Put records on the disk: one piece for each row of records without a gap."""
        try:
            if not self.has_chain_file:
                chain = descriptions.chain_file(self._known_length, self._chain)
                self.folder.write(CHAIN, [chain.encoded()])
                self.has_chain_file = True
            for row in _rows(records):
                self._save_row(row)
        except Exception as error:
            raise CheckpointError(
                f"results could not be saved in the checkpoint {self.url!r} ({type(error).__name__}: "
                f"{error}): the results of {self.saved_elements:,} elements are saved and whole. Remove the "
                "cause (on a full disk, make room) and start again; they will not run again"
            ) from error

    def _save_row(self, row: list[Record]) -> None:
        try:
            self.folder.write(Piece(row[0].first, row[-1].end).name, _encoded(row))
            self.saved_elements += row[-1].end - row[0].first
        except Exception:
            if len(row) == 1:
                raise
            for record in row:  # one piece each, for as many as there is room for
                self._save_row([record])

    def finish(self, elements: int) -> None:
        """Note on the disk that the source has ended after that many elements."""
        if self.source_length is None:
            content = [descriptions.end_file(elements)]
            self._try("completed", lambda: self.folder.write(END, content))
            self.source_length = elements


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
    checksum = hashlib.sha256(MAGIC)
    for part in body:
        checksum.update(part)
    return [MAGIC, checksum.digest(), sum(map(len, body)).to_bytes(8, "little"), *body]


def _decoded(content: bytes) -> list[Record] | None:
    """Return the records of a piece; None if it is cut short or changed, or has another format."""
    body = memoryview(content)[HEADER:]
    if not content.startswith(MAGIC) or not _is_whole(content):
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


def _is_whole(content: bytes) -> bool:
    """Tell whether all is there as this parcoll wrote it, but for the magic number."""
    view = memoryview(content)
    body, checksum, length = view[HEADER:], view[len(MAGIC) : HEADER - 8], view[HEADER - 8 : HEADER]
    if len(content) < HEADER or int.from_bytes(length, "little") != len(body):
        return False
    found = hashlib.sha256(MAGIC)
    found.update(body)
    return found.digest() == checksum


def _other_writer(content: bytes) -> str | None:
    """Return words for the parcoll that wrote a piece in another format; None for a damaged one of this."""
    match = _ANY_MAGIC.match(content)
    return descriptions.other_format(int(match[1])) if match and not _is_whole(content) else None
