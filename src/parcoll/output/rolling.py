"""Rolling: rows on their way into one file after the other, cut at the same rows whatever came together."""

from __future__ import annotations

import contextlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from parcoll.clock import time
from parcoll.output.compressing import Opener
from parcoll.output.encoding import Part, RowFormat
from parcoll.text import counted, short_repr


class Written(NamedTuple):
    """What was written.

    Attributes:
        files: The paths of the files, in the order of their rows.
        rows: How many elements they have together.
        bytes: How many bytes they have together, as they lie there.
    """

    files: list[str]
    rows: int
    bytes: int

    def _repr_html_(self) -> str:
        from html import escape  # lazy: for notebooks only

        shown = [f"<code>{escape(short_repr(file))}</code>" for file in self.files[:20]]
        if len(self.files) > len(shown):
            shown.append(f"and {len(self.files) - len(shown):,} more")
        files = "".join(f"<tr><td>{line}</td></tr>" for line in shown)
        numbers = ((len(self.files), "file"), (self.rows, "row"), (self.bytes, "byte"))
        told = ", ".join(counted(number, what) for number, what in numbers)
        return f"<div>{told}</div><table>{files}</table>"


class Limits(NamedTuple):
    """Where a file ends: behind so many rows, or behind the row with which it has so many bytes."""

    rows: int | None = None
    bytes: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self != (None, None)


class Cut(NamedTuple):
    """Rows of a part that are in one file."""

    row: int
    stop: int  # behind the last one
    start: int  # of their bytes
    end: int
    last: bool  # the file ends there


class Cutter:
    """Says at which rows files end, to whoever tells it of all rows in order."""

    def __init__(self, limits: Limits, head: Callable[[], int] = lambda: 0) -> None:
        """`head` returns how many bytes a file has before its first row."""
        self._limits = limits
        self._head = head
        self._left: int | None = None  # rows or bytes that the file still takes; None before its first row

    def cuts(self, ends: Sequence[int]) -> Iterator[Cut]:
        """Cut a part whose rows end there."""
        rows, nbytes = self._limits
        row, start = 0, 0
        while row < len(ends):
            if self._left is None:
                self._left = rows if rows is not None else (nbytes or 0) - self._head()
            if rows is not None:
                stop = min(row + self._left, len(ends))
                self._left -= stop - row
            elif nbytes is not None:
                stop = min(bisect_left(ends, start + self._left, row) + 1, len(ends))
                self._left -= ends[stop - 1] - start
            else:
                stop = len(ends)
            last = self._limits.any and self._left <= 0
            if last:
                self._left = None
            yield Cut(row, stop, start, ends[stop - 1], last)
            row, start = stop, ends[stop - 1]


class Files(Protocol):
    """Where files are made, and put in their places when all of them are there."""

    def open(self, number: int) -> Any:
        """Return a new file to write into."""

    def spool(self) -> Any:
        """Return a file for what is read again."""


class Rolling:
    """Takes what workers have made, in order, and puts it into files."""

    rows = 0
    nbytes = 0
    seconds = 0.0  # that it took to write

    def __init__(self, files: Files, limits: Limits) -> None:
        self.limits = limits
        self._files = files
        self._file: Any = None
        self.number = 0  # of files that were begun

    def take(self, part: Any) -> None:
        """Write a part."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what is left; an empty file if there was nothing."""
        raise NotImplementedError

    def _open(self) -> Any:
        self._file = self._files.open(self.number)
        self.number += 1
        return self._file

    def _close(self) -> None:
        """Have the file on the disk."""
        file, self._file = self._file, None
        try:
            file.flush()
            os.fsync(file.fileno())
            self.nbytes += os.fstat(file.fileno()).st_size
        finally:
            file.close()

    def abandon(self) -> None:
        """Close the file that is open, whatever it has."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what it holds may have no room on the disk
                file.raw.close()


def ends_of(sizes: bytes) -> list[int]:
    """Return where each row ends, if they have these sizes and come one after the other."""
    numbers = array("Q")
    numbers.frombytes(sizes)
    return list(accumulate(numbers))


class RowFiles(Rolling):
    """Files of rows that are bytes."""

    def __init__(self, files: Files, limits: Limits, format: RowFormat, compress: Opener | None) -> None:
        super().__init__(files, limits)
        format.begun()
        self._format = format
        self._compress = compress
        self._out: Any = None
        self._cutter = Cutter(limits, lambda: len(format.head()))

    def take(self, part: Part) -> None:
        """Write rows."""
        started = time.perf_counter()
        part = self._format.fitted(part)
        if self.limits.any:
            self._cut(part)
        else:
            self._write(part.data)
        self.rows += part.rows
        self.seconds += time.perf_counter() - started

    def _cut(self, part: Part) -> None:
        data = memoryview(part.data)
        for cut in self._cutter.cuts(ends_of(part.sizes)):
            self._write(data[cut.start : cut.end])
            if cut.last:
                self._finish()

    def _write(self, data: Any) -> None:
        if self._out is None:
            self._begin()
        self._out.write(data)

    def _begin(self) -> None:
        file = self._open()
        self._out = file if self._compress is None else self._compress(file)
        self._out.write(self._format.head())

    def _finish(self) -> None:
        out, self._out = self._out, None
        if self._compress is not None:
            out.close()
        self._close()

    def end(self) -> None:
        """End the last file, which may be the first and empty."""
        started = time.perf_counter()
        if self._out is None and not self.number:
            self._begin()
        if self._out is not None:
            self._finish()
        self.seconds += time.perf_counter() - started
