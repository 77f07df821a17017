"""Pieces: the files in which `parallel(..., checkpoint="folder")` keeps results, and how they are used.

**The folder** is any path or fsspec URL. It holds:

* `parcoll-chain.json`: the number of the format, the fingerprint of the chain that made the results
  (`fingerprint`), and how many elements the source had, if that was known (`descriptions`).
* `parcoll-<first>-<end>.piece`: the results of the source elements from `first` up to, not including,
  `end`. A piece is written whole (`storage`), and once, unless elements of it run again (`again`).
* `parcoll-end.json`: how many elements the source had, once it has come to its end. Both end with a checksum.
* `parcoll.lock`, on a local filesystem: the lock of the process that evaluates. The kernel releases it
  however that process ends. Elsewhere there is no lock, and two processes do the work twice. No answer gets
  wrong then: each process writes whole pieces, and their names show which pieces overlap.

**A piece** (`records`) has a record for each partition. The record says which elements the partition had,
their digest, and what `stats` and `errors` count for it. Whoever can write to the folder can run code in the
process that loads it, as with any pickle.

**Order of events.** Results are on the disk before the consumer gets them. All results that have come by
then go into one piece. Between two pieces `PIECE_SECONDS` pass, more in a long run, less if `PIECE_BYTES`
are waiting. So many fast partitions cost few files, and a crash loses the results that were being made or
were waiting.

**Starting again.** The source is read from its first element. Elements that a piece covers are compared
with the saved digest, and their results come from the disk; the others run. So all results come, from the
first on. A piece that is not whole (its checksum tells) is removed with a warning, wherever it stands, and
its elements run again, like those that no piece covers. A piece that cannot be read (a network, a
permission) is an error, since nobody knows whether it is whole. Another chain or another source is refused,
and so is what a parcoll of another format wrote: nothing of it is removed. A source that has grown at its end
is the same one: its new elements run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from parcoll.chain.steps import Step
from parcoll.checkpoint import descriptions, fingerprint
from parcoll.checkpoint.again import Reopened
from parcoll.checkpoint.descriptions import CHAIN, END
from parcoll.checkpoint.records import Record, decoded, encoded, other_writer, rows
from parcoll.checkpoint.storage import TEMPORARY, Folder, NotAFileError
from parcoll.clock import time
from parcoll.errors import CheckpointError, logger

PIECE_SECONDS = 0.1  # between two pieces; or a hundredth of the evaluation's time so far, if that is more
LONGEST_SECONDS = 2.0  # between two pieces, at most
PIECE_BYTES = 8 * 2**20  # results that wait are written at once when there are so many bytes of them
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


def pieces_in(names: Sequence[str]) -> list[Piece]:
    """Return the pieces among a folder's files; of those that begin together, the longest first."""
    found = (Piece(*map(int, match.groups())) for name in names if (match := _NAME.fullmatch(name)))
    return sorted(found, key=lambda piece: (piece.first, -piece.end))


def without_overlap(pieces: Sequence[Piece]) -> list[Piece]:
    """Return those pieces that count: of two that overlap, the first."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.first >= (found[-1].end if found else 0):
            found.append(piece)
    return found


class Checkpoint:
    """The folder of a checkpoint, as used by one evaluation that has locked it."""

    def __init__(self, folder: Folder, steps: Sequence[Step]) -> None:
        self.folder = folder
        self._chain = fingerprint.of_steps(steps)
        self._known_length: int | None = None  # of the source, if it is known before its end
        self._since: float | None = None  # when its first results were saved
        self._described = False  # the file that describes the chain is there, and right
        self._reopened: list[Reopened] = []
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
        found = pieces_in(names)
        if CHAIN in names:
            self._compare(self._description(CHAIN, descriptions.chain_file_in))
            self._described = True
        elif found:
            raise CheckpointError(
                f"the checkpoint {self.url!r} has results but no {CHAIN}, which says which chain made them: "
                "restore that file, or delete the folder to start from the first element"
            )
        self.pieces = without_overlap(found)
        self.saved_elements = sum(piece.end - piece.first for piece in self.pieces)
        if END in names:
            self.source_length = self._description(END, descriptions.elements_in)
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
        self._known_length, self._since = saved.length, saved.since

    def check_length(self, length: int | None) -> None:
        """Raise CheckpointError if the source was longer, where both lengths are known."""
        known = self._known_length if self._described else None
        if known is not None and length is not None and known > length:
            raise self.refusal(
                f"has the results of another source: it had {known:,} elements and has {length:,}, and a "
                "source may only grow"
            )
        if known is not None and length is not None and known < length:
            self._described = False
        self._known_length = length

    def check_end(self, elements: int) -> None:
        """Raise CheckpointError if the source was longer than it is at its end."""
        known = max([self.source_length or 0, *(piece.end for piece in self.pieces[-1:])])
        if elements < known:
            raise self.shorter(known, elements)

    def has_more(self, record: Record) -> bool:
        """Tell whether there are results of elements behind those of a record."""
        return bool(self.pieces) and self.pieces[-1].end > record.end

    def shorter(self, known: int, elements: int) -> CheckpointError:
        """Return the error for a source that has shrunk."""
        return self.refusal(
            f"has the results of another source: it had {known:,} elements or more, and ends after "
            f"{elements:,}: a source may only grow"
        )

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

    def _description(self, name: str, parsed: Callable[[bytes], _Described]) -> _Described:
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
        records = decoded(content)
        if not records or (records[0].first, records[-1].end) != piece:
            writer = other_writer(content)
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

    def reopen(self, piece: Piece, records: Sequence[Record], unread: Iterable[Record]) -> Reopened:
        """Have results of this piece be replaced by those that are saved from now on; `unread` may be too."""
        reopened = Reopened(records, piece.name, unread)
        self._reopened.append(reopened)
        return reopened

    def save(self, records: Sequence[Record]) -> None:
        """Put records on the disk: one piece for each row of records without a gap."""
        try:
            self._describe()
            for reopened in self._reopened:
                self._save_again(reopened, [record for record in records if reopened.covers(record)])
            new = [r for r in records if not any(reopened.covers(r) for reopened in self._reopened)]
            self._reopened = [reopened for reopened in self._reopened if reopened.waits]
            for row in rows(new):
                self._save_row(row)
        except Exception as error:
            raise CheckpointError(
                f"results could not be saved in the checkpoint {self.url!r} ({type(error).__name__}: "
                f"{error}): the results of {self.saved_elements:,} elements are saved and whole. Remove the "
                "cause (on a full disk, make room) and start again; they will not run again"
            ) from error

    def _describe(self) -> None:
        """Say which chain makes the results, unless that is said already."""
        if self._described:
            return
        # A folder of format 3 does not say when its results came.
        since = self._since or (None if self.saved_elements else time.time())
        chain = descriptions.chain_file(self._known_length, self._chain, since)
        self.folder.write(CHAIN, [chain.encoded()])
        self._since, self._described = since, True

    def _save_again(self, reopened: Reopened, records: Sequence[Record]) -> None:
        """Put these in the places of others, and remove the files that are left over then."""
        if not records:
            return
        before = reopened.elements
        reopened.put(records)
        written = {Piece(row[0].first, row[-1].end).name: row for row in reopened.rows()}
        for name, row in written.items():
            self.folder.write(name, encoded(row))
        # Until they are removed, the old ones are those that count: they begin before, or are longer.
        for name in reopened.names - written.keys():
            self.folder.remove(name)
        reopened.names = set(written)
        self.saved_elements += reopened.elements - before

    def _save_row(self, row: list[Record]) -> None:
        try:
            self.folder.write(Piece(row[0].first, row[-1].end).name, encoded(row))
            self.saved_elements += row[-1].end - row[0].first
        except Exception:
            if len(row) == 1:
                raise
            for record in row:  # one piece each, for as many as there is room for
                self._save_row([record])

    def finish(self, elements: int) -> None:
        """Note on the disk that the source has ended after that many elements."""
        if self.source_length != elements:
            content = [descriptions.end_file(elements)]
            self._try("completed", self._describe)
            self._try("completed", lambda: self.folder.write(END, content))
            self.source_length = elements
