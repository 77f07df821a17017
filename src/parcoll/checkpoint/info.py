"""Info: what a checkpoint's folder has, told without its chain and without loading what functions made.

Only the start of each piece is read: its table. Nothing of the user's is unpickled. What failed is told by
the texts that came from the worker, and its pickle is read as these texts and nothing else.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from parcoll.chain.failures import FailedElement
from parcoll.chain.place import Place
from parcoll.checkpoint import descriptions
from parcoll.checkpoint.descriptions import CHAIN, END
from parcoll.checkpoint.pieces import Piece, pieces_in, without_overlap
from parcoll.checkpoint.records import Record, records_in, size_of
from parcoll.checkpoint.storage import Folder, folder_at
from parcoll.errors import CheckpointError
from parcoll.text import describe, escaped
from parcoll.wire.exceptions import EncodedException, Failure

START_BYTES = 64 * 1024  # of a piece, that are read at first: most tables are smaller
FAILURES = 10  # that are told
MOST_TEXT = 200  # characters of an element and of an exception


@dataclass(frozen=True)
class CheckpointFailure:
    """An element that had failed, in texts: what failed, in which step, with which exception."""

    index: int  # of the source element
    step: str
    element: str
    exception: str
    attempts: int

    def __str__(self) -> str:
        times = "" if self.attempts == 1 else f", {self.attempts} times"
        return f"element {self.index} ({self.element}) in {self.step}{times}: {self.exception}"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's folder has. Printed, it is a short table.

    Attributes:
        folder: Its path or URL.
        chain: The steps whose results it has.
        elements: How many elements of the source have their results there.
        results: How many results these have given; for a `fold`, how many elements it has taken.
        total: How many elements the source has, if a run has known or found that.
        complete: Whether a run has come to the source's end, and everything is there.
        failed: How often an element has failed, as `stats.failed` counts.
        failures: The first ten of these, in the order of the source.
        started: When the first results were saved; None if the folder and its filesystem do not say.
        written: When the last ones were.
        nbytes: How many bytes the files have.
        damaged: How many files are cut short or unreadable; their elements run again. Only their starts and
            their lengths were looked at.
        format: The number of the folder's format.
        python: The Python that made the results.
    """

    folder: str
    chain: str
    elements: int
    results: int
    total: int | None
    complete: bool
    failed: int
    failures: tuple[CheckpointFailure, ...]
    started: datetime | None
    written: datetime | None
    nbytes: int
    damaged: int
    format: int
    python: str

    def __str__(self) -> str:
        total = "" if self.total is None else f" of {self.total:,}"
        rows = [
            ("chain", self.chain or "no steps"),
            ("elements", f"{self.elements:,}{total}, with {self.results:,} results"),
            ("state", "complete" if self.complete else "not complete"),
            ("started", _moment(self.started)),
            ("written", _moment(self.written)),
            ("size", f"{self.nbytes:,} bytes, format {self.format}, {self.python}"),
        ]
        if self.damaged:
            rows.append(("damaged", f"{self.damaged:,} files, whose elements run again"))
        rows.append(("failed", f"{self.failed:,}" + (", the first of them:" if self.failures else "")))
        lines = [f"checkpoint {self.folder}", *(f"  {name:<9} {text}" for name, text in rows)]
        return "\n".join(map(escaped, [*lines, *(f"    {failure}" for failure in self.failures)]))


def checkpoint_info(folder: str | os.PathLike[str]) -> CheckpointInfo:
    """Return what `folder` has, which was passed as `parallel(..., checkpoint=folder)`. Changes nothing.

    It may be asked while a run writes there, and from another machine. The chain need not exist any more:
    nothing of it is imported or unpickled.

    Raises CheckpointError for a folder that is no checkpoint, and for one whose description cannot be read.

    >>> import tempfile
    >>> from parcoll import checkpoint_info, connect, parallel
    >>> folder = tempfile.mkdtemp()
    >>> with connect("inline"):
    ...     list(parallel(["1", "x"], checkpoint=folder, on_error="skip").map(int))
    [1]
    >>> info = checkpoint_info(folder)
    >>> info.chain, info.elements, info.complete, info.failures[0].element
    ('map(int)', 2, True, "'x'")
    """
    url = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else None
    if not isinstance(url, str) or not url:
        raise TypeError(f"checkpoint_info() needs a folder's path or URL, got {describe(folder)}")
    return _Looking(folder_at(url)).info()


class _Looking:
    """One look at a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        try:
            self._files = {file.name: file for file in folder.files()}
        except Exception as error:  # of any class: each filesystem of fsspec's has its own
            raise self._error(f"cannot be listed: {type(error).__name__}: {error}") from error
        self.damaged = 0

    def info(self) -> CheckpointInfo:
        """Return what there is."""
        if CHAIN not in self._files:
            raise CheckpointError(
                f"{self._folder.url!r} is no checkpoint: there is no such folder, or no {CHAIN} in it; name "
                "the folder that parallel(..., checkpoint=) was given"
            )
        chain = self._described(CHAIN, descriptions.chain_file_in)
        if (writer := descriptions.other_format(chain.format)) is not None:
            raise self._error(f"was written by {writer}: ask that version")
        ended = self._described(END, descriptions.elements_in) if END in self._files else None
        records, ends, elements = list[Record](), 0, 0
        for piece in without_overlap(pieces_in(list(self._files))):
            if (found := self._records(piece)) is not None:
                records += found
                elements += piece.end - piece.first
            ends = max(ends, piece.end)
        known = max([length for length in (chain.length, ended) if length is not None], default=-1)
        times = [file.written for file in self._files.values() if file.written is not None]
        since = chain.since or min(times, default=None)
        return CheckpointInfo(
            folder=self._folder.url,
            chain=".".join(step["label"] for step in chain.steps),
            elements=elements,
            results=sum(record.produced for record in records),
            total=known if known >= ends and known >= 0 else None,
            complete=elements == ends == ended,
            failed=sum(record.failed for record in records),
            failures=tuple(_failures(records)),
            started=None if since is None else datetime.fromtimestamp(since),
            written=datetime.fromtimestamp(max(times)) if times else None,
            nbytes=sum(file.nbytes for file in self._files.values()),
            damaged=self.damaged,
            format=chain.format,
            python=chain.python,
        )

    def _records(self, piece: Piece) -> list[Record] | None:
        """Return the records of a piece without their results; None if it is gone, or not whole."""
        try:
            nbytes = self._files[piece.name].nbytes
            start = self._folder.read(piece.name, min(START_BYTES, nbytes)) if nbytes else b""
            sizes = size_of(start)
            if sizes is not None and len(start) < sizes[0] <= nbytes:
                start = self._folder.read(piece.name, sizes[0])
        except FileNotFoundError:  # a run has replaced it meanwhile
            return None
        except Exception as error:
            raise self._unread(piece.name, error) from error
        found = None
        if sizes is not None and sizes[1] == nbytes:
            found = records_in(start[: sizes[0]])
        if not found or (found[0].first, found[-1].end) != piece:
            self.damaged += 1
            return None
        return found

    def _described(self, name: str, parsed: Any) -> Any:
        try:
            return parsed(self._folder.read(name))
        except ValueError:
            raise self._error(f"is damaged: {name} is not what was written") from None
        except Exception as error:
            raise self._unread(name, error) from error

    def _unread(self, name: str, error: Exception) -> CheckpointError:
        return self._error(f"cannot be read: {name}: {type(error).__name__}: {error}")

    def _error(self, why: str) -> CheckpointError:
        return CheckpointError(f"the checkpoint {self._folder.url!r} {escaped(why)}")


def _failures(records: Sequence[Record]) -> Iterator[CheckpointFailure]:
    """Yield the first elements that failed."""
    left = FAILURES
    for record in records:
        try:
            failed = (
                _FailureReader(io.BytesIO(record.failed_elements)).load() if record.failed_elements else []
            )
            told = [_told(one) for one in sorted(failed, key=lambda one: one.place.base)[:left]]
        except Exception:  # what stands there is none: the checksum was not compared
            continue
        yield from told
        left -= len(told)


def _told(failed: FailedElement) -> CheckpointFailure:
    index, note = failed.place.base, failed.failure.note
    # The worker has put the element's `repr` there.
    element = note.partition(f", at element {index}: ")[2]
    if failed.attempts != 1:
        element = element.removesuffix(f", {failed.attempts} times")
    exception = failed.failure.exception.summary
    texts = (failed.step, element or "?", exception)
    step, element, exception = (escaped(text[:MOST_TEXT]) for text in texts)
    return CheckpointFailure(index, step, element, exception, failed.attempts)


class _FailureReader(pickle.Unpickler):
    """Reads failed elements. Elements, exceptions and classes of the user's stay pickles within them."""

    _CLASSES = (FailedElement, Failure, EncodedException, Place)
    _known = {(kind.__module__, kind.__name__): kind for kind in _CLASSES}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} in the failed elements of a checkpoint") from None


def _moment(moment: datetime | None) -> str:
    return "unknown" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
