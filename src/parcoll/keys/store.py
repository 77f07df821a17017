"""Store: bytes that wait here until they are wanted; beyond some MiB in a file that has no name.

Such a file is gone when it is closed, and when its process ends, however that ends: nothing has to be
removed.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple

from parcoll.text import line_of, short_repr
from parcoll.wire.codec import PROTOCOL, ManyByReference, loads, prefers_value
from parcoll.wire.payload import Packed
from parcoll.wire.unpicklable import first_unpicklable

MEMORY_BYTES = 16 * 2**20  # that stay in memory
LENGTH = 8  # bytes of a number that says how many bytes follow
TEXTS, NUMBERS = {str}, {int}
BETWEEN = "\0"  # texts that are joined
FLAT = frozenset((str, bytes, int, float, complex, bool, type(None)))


class Spot(NamedTuple):
    """Where bytes are in a store."""

    number: int  # of the chunk in memory; -1 for the file
    start: int
    size: int


class Store:
    """Bytes that are appended, and read again in parts."""

    def __init__(
        self, what: str, folder: str | None = None, tell: Callable[[int], object] = lambda nbytes: None
    ) -> None:
        self._what = what  # for the error where the disk is full
        self._folder = folder
        self._chunks: list[bytes] = []
        self._in_memory = 0
        self._file: Any = None
        self.spilled = 0  # bytes in the file
        self._tell = tell  # is told of more of them

    def add(self, data: bytes) -> Spot:
        """Append bytes; return where they are."""
        if self._in_memory + len(data) <= MEMORY_BYTES:
            self._chunks.append(data)
            self._in_memory += len(data)
            return Spot(len(self._chunks) - 1, 0, len(data))
        return Spot(-1, self._append(data), len(data))

    def _append(self, data: bytes) -> int:
        if self._file is None:
            if self._folder is not None:
                os.makedirs(self._folder, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix="parcoll-", buffering=0)  # noqa: SIM115
        start, view = self.spilled, memoryview(data)
        try:
            while len(view):
                view = view[os.pwrite(self._file.fileno(), view, start + len(data) - len(view)) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            folder = self._folder or tempfile.gettempdir()
            raise OSError(
                error.errno,
                f"no space left in {folder} for {self._what}, which has written {start >> 20:,} MiB there: "
                "free some, or name a larger folder in TMPDIR or dask's temporary-directory",
            ) from error
        self.spilled += len(data)
        self._tell(len(data))
        return start

    def read(self, spot: Spot, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes at a spot, or those from `start` to `stop` of them."""
        stop = spot.size if stop is None else stop
        if spot.number >= 0:
            chunk = self._chunks[spot.number]
            return chunk if (start, stop) == (0, len(chunk)) else chunk[start:stop]
        parts, at, end = [], spot.start + start, spot.start + stop
        while at < end:
            parts.append(os.pread(self._file.fileno(), end - at, at))
            if not parts[-1]:
                raise OSError(errno.EIO, f"a file of {self._what} ends too early")
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Forget all of it. May be called twice."""
        self._chunks.clear()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class UnsentError(Exception):
    """A value that cannot be sent between processes: what it is, and why."""


def is_flat(values: Sequence[Any]) -> bool:
    """Tell whether all are numbers and texts, which any pickler packs alike.

    Tuples may be as well, but to look into all of them costs more than it saves.
    """
    return type(values[0]) in FLAT and FLAT.issuperset(map(type, values))


def joined(column: Sequence[Any], kinds: set[type]) -> Any:
    """Return a list of texts as one text, and one of small numbers as bytes: they are packed as one object.

    A pickler looks each text up among those that it has seen. `kinds` are the types of what is in the list,
    and maybe of more.
    """
    if kinds == TEXTS:
        text = BETWEEN.join(column)
        return text if text.count(BETWEEN) == len(column) - 1 else column
    if kinds == NUMBERS:
        try:
            return bytes(column)
        except ValueError:  # one is no small number
            return column
    return column


def _joined(column: Any) -> Any:
    if not isinstance(column, (list, tuple)) or type(column[0]) not in (str, int):
        return column
    return joined(column, set(map(type, column)))


class Framer:
    """Makes frames: columns as bytes which tell their own length, so that several may follow each other."""

    def __init__(self) -> None:
        self._many = None if prefers_value() else ManyByReference()
        self.by_value = self._many is None  # what is packed travels by value, which takes long for few

    def framed(self, value: tuple[Any, ...], flat: bool = False) -> bytes:
        """Pack columns. With `flat`, what is in them was found to be packed alike by any pickler."""
        return self.packed(tuple(map(_joined, value)), flat)

    def packed(self, columns: tuple[Any, ...], flat: bool) -> bytes:
        """Pack columns that were joined as far as they can be."""
        parts = (pickle.dumps(columns, PROTOCOL),) if flat else self._pickled(columns)
        return b"".join((struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts)), *parts))

    def _pickled(self, columns: tuple[Any, ...]) -> Sequence[bytes]:
        if self._many is not None:
            try:
                head = self._many.pickled(columns)
                if b"__main__" not in head:
                    return (head,)
            except Exception:  # by value it may be possible
                pass
            self._many, self.by_value = None, True
        try:
            packed = Packed.pack(columns)
        except Exception as error:
            raise UnsentError(unsent(columns, error)) from error
        return (packed.head, *packed.buffers)


def framed(value: tuple[Any, ...], flat: bool = False) -> bytes:
    """Make one frame."""
    return Framer().framed(value, flat)


def unsent(value: Any, error: BaseException) -> str:
    """Name the first element within that cannot be pickled."""
    for within in value if isinstance(value, tuple) else ():
        if isinstance(within, (list, tuple)) and (found := first_unpicklable(list(within))) is not None:
            position, cause = found
            if isinstance(within[position], list):
                return unsent((within[position],), cause)
            return f"{short_repr(within[position])} between processes ({line_of(cause)})"
    return f"a value between processes ({line_of(error)})"


_pauses = threading.Lock()
_paused = 0  # by how many


@contextmanager
def collector_paused() -> Iterator[None]:
    """Have the collector of cycles wait while very many objects are made, none of which it could free.

    It looks at all of them again and again: half of the time that merging took.
    """
    global _paused
    with _pauses:
        was_on = gc.isenabled() or _paused > 0
        _paused += was_on
        gc.disable()
    try:
        yield
    finally:
        with _pauses:
            _paused -= was_on
            if was_on and not _paused:
                gc.enable()


def _in_child() -> None:
    global _pauses, _paused
    _pauses = threading.Lock()
    if _paused:
        _paused = 0
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def unframed(data: bytes) -> Iterator[Any]:
    """Give the columns of such bytes."""
    at, view = 0, memoryview(data)
    while at < len(data):
        (number,) = struct.unpack_from("<Q", data, at)
        head, *sizes = struct.unpack_from(f"<{number}Q", data, at + LENGTH)
        at += LENGTH * (1 + number)
        pickled, buffers = bytes(view[at : at + head]), []
        at += head
        for size in sizes:
            buffers.append(bytearray(view[at : at + size]))
            at += size
        if gc.isenabled():
            with collector_paused():
                value = loads(pickled, buffers)
        else:
            value = loads(pickled, buffers)
        yield tuple([column.split(BETWEEN) if type(column) is str else column for column in value])
