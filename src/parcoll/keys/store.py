"""Store: bytes that wait here until they are wanted; beyond some MiB in a file that has no name.

Such a file is gone when it is closed, and when its process ends, however that ends: nothing has to be
removed. Where there is a scratch (`connecting.scratch`), workers put bytes there, and read them from there.
"""

from __future__ import annotations

import errno
import os
import pickle
import struct
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

from parcoll.chain import apart
from parcoll.clock import time
from parcoll.errors import WorkerSetupError, logger
from parcoll.system import without_collections
from parcoll.text import line_of, short_repr
from parcoll.wire.anatomy import first_unpicklable
from parcoll.wire.codec import PROTOCOL, ManyByReference, loads, prefers_value
from parcoll.wire.payload import Packed
from parcoll.wire.reducers import names_made

MEMORY_BYTES = 16 * 2**20  # that stay in memory
LEAST_BYTES = 4096  # that are worth a file of their own in a scratch
MARKER = "in-use"  # is in the folder of an evaluation until that has ended
REMOVALS = 5  # attempts: a worker may put something while all is removed
LENGTH = 8  # bytes of a number that says how many bytes follow
TEXTS, NUMBERS = {str}, {int}
BETWEEN = "\0"  # texts that are joined
LONG = 256  # characters of a text: many that are one object would take much more room if they were joined
FRAME = b"frame"  # begins what no pickle begins with
FLAT = frozenset((str, bytes, int, float, complex, bool, type(None)))


class Lying:
    """Bytes that a worker has put into a scratch, or a part of them."""

    __slots__ = ("path", "scratch", "size", "start")

    def __init__(self, path: str, size: int, start: int = 0, scratch: Scratch | None = None) -> None:
        self.path = path
        self.size = size
        self.start = start
        self.scratch = scratch  # in which they are, for who reads them

    def __len__(self) -> int:
        return self.size

    def __reduce__(self) -> tuple[Any, ...]:
        return Lying, (self.path, self.size, self.start, self.scratch)


class Scratch:
    """A folder of one evaluation, which workers and this process reach. It travels."""

    def __init__(self, url: str, system: bytes, folder: str, kept: Any = None) -> None:
        """`url` is for messages. `system` is a filesystem of fsspec's, packed: a worker may lack its package.

        `kept` is that filesystem, where the folder was made and is to be removed.
        """
        self.url = url
        self.folder = folder
        self._system = system
        self._removal: Callable[[], object] | None = None
        if kept is not None:
            self._removal = weakref.finalize(self, remove_folder, kept, folder, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        return Scratch, (self.url, self._system, self.folder)

    def remove(self) -> None:
        """Remove it, where it was made. Else that is done when nobody holds this, or the program ends."""
        if self._removal is not None:
            self._removal()

    def put(self, data: bytes, what: str) -> bytes | Lying:
        """Put bytes, for the operation `what`, and return what stands for them: few bytes themselves."""
        if len(data) < LEAST_BYTES:
            return data
        path, started = f"{self.folder}/{os.urandom(8).hex()}", time.perf_counter()
        try:
            system = pickle.loads(self._system)
            system.pipe_file(path, data)
            try:
                system.cat_file(f"{self.folder}/{MARKER}")
            except FileNotFoundError:  # it is another folder; or all has ended, and this was put too late
                with suppress(Exception):
                    system.rm_file(path)
                raise
        except Exception as error:
            raise WorkerSetupError(
                f"a worker cannot put pieces of {what} into scratch={self.url!r} ({line_of(error)}): name a "
                "place in connect() that this process and all workers can read and write"
            ) from error
        finally:
            apart.spend(time.perf_counter() - started)
        return Lying(path, len(data))

    def get(self, parts: Sequence[Lying]) -> list[bytes]:
        """Return parts of what was put."""
        paths = [part.path for part in parts]
        starts = [part.start for part in parts]
        ends = [part.start + part.size for part in parts]
        try:
            found = pickle.loads(self._system).cat_ranges(paths, starts, ends, on_error="return")
            for part, data in zip(parts, found, strict=True):
                if isinstance(data, BaseException):
                    raise data
                if len(data) != part.size:
                    raise OSError(errno.EIO, f"{len(data):,} bytes of {part.size:,}", part.path)
        except Exception as error:
            raise WorkerSetupError(
                f"a piece that was put into scratch={self.url!r} cannot be read ({line_of(error)}): nobody "
                "may change what begins with .parcoll- there. Evaluate again"
            ) from error
        return [bytes(data) for data in found]


def remove_folder(system: Any, folder: str, pid: int | None = None) -> None:
    """Remove the folder of an evaluation: its marker first, so that what is put later is removed by who puts.

    With `pid`, in that process only.
    """
    if pid not in (None, os.getpid()):
        return
    with suppress(Exception):
        system.rm_file(f"{folder}/{MARKER}")
    for attempt in range(REMOVALS):
        try:
            system.invalidate_cache()
            system.rm(folder, recursive=True)
        except FileNotFoundError:
            return
        except Exception as error:
            if attempt == REMOVALS - 1:
                logger.warning("%s: cannot be removed: %s", folder, line_of(error))
            time.sleep(0.01 * attempt)


def fetched(datas: Sequence[bytes | Lying]) -> Sequence[bytes]:
    """Return the bytes, those in a scratch read at once."""
    lying = [data for data in datas if isinstance(data, Lying)]
    if not lying:
        return datas  # type: ignore[return-value]
    assert lying[0].scratch is not None
    found = iter(lying[0].scratch.get(lying))
    return [next(found) if isinstance(data, Lying) else data for data in datas]


class Spot(NamedTuple):
    """Where bytes are in a store."""

    number: int  # of the chunk in memory; -1 for the file
    start: int
    size: int
    path: str = ""  # in a scratch


class Store:
    """Bytes that are appended, and read again in parts."""

    def __init__(
        self,
        what: str,
        folder: str | None = None,
        tell: Callable[[int], object] = lambda nbytes: None,
        scratch: Scratch | None = None,
    ) -> None:
        self._what = what  # for the error where the disk is full
        self._folder = folder
        self._chunks: list[bytes] = []
        self._in_memory = 0
        self._file: Any = None
        self.spilled = 0  # bytes in the file
        self._tell = tell  # is told of more of them
        self._scratch = scratch  # in which workers put theirs

    def add(self, data: bytes | Lying) -> Spot:
        """Append bytes; return where they are."""
        if isinstance(data, Lying):
            self._tell(data.size)
            return Spot(0, data.start, data.size, data.path)
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

    def read(self, spot: Spot, start: int = 0, stop: int | None = None) -> Any:
        """Return the bytes at a spot, or those from `start` to `stop` of them; none of a scratch."""
        stop = spot.size if stop is None else stop
        if spot.path:
            return Lying(spot.path, stop - start, spot.start + start, self._scratch)
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


class Unopened:
    """An element as a worker has packed it: whoever unpickles it gets the element itself."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return len(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return (opened if self.data.startswith(FRAME) else pickle.loads), (self.data,)

    def __repr__(self) -> str:
        return short_repr(pickle.loads(pickle.dumps(self)))


def opened(data: bytes) -> Any:
    """Return what is in a frame, for who unpickles it."""
    ((element,),) = unframed(data[len(FRAME) :])
    return element


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
        if sum(map(len, column)) > LONG * len(column):
            return column
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

    def each(self, elements: Sequence[Any], plain: bool) -> list[bytes]:
        """Pack tuples one by one, as `Unopened` has them; `plain` ones hold nothing of users' classes."""
        if plain:
            return [pickle.dumps(element, PROTOCOL) for element in elements]
        if self._many is not None:
            try:
                found = list(map(self._many.pickled, elements))
                if not names_made(b"".join(found)):
                    return found
            except Exception:  # by value it may be possible
                pass
            self._many, self.by_value = None, True
        return [FRAME + self.packed((element,), False) for element in elements]

    def _pickled(self, columns: tuple[Any, ...]) -> Sequence[bytes]:
        if self._many is not None:
            try:
                head = self._many.pickled(columns)
                if not names_made(head):
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
        with without_collections():
            value = loads(pickled, buffers)
        yield tuple([column.split(BETWEEN) if type(column) is str else column for column in value])
