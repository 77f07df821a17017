"""Memory maps: an array that shows a file travels as the place of its file, to processes of this machine.

These are `numpy.memmap` and its views, whatever their type, and arrays in `mmap.mmap` or in shared memory
that has a name. As in the script's own loop, what a function writes into one that is writable is in the file.
One that is copied on write (`mode="c"`) travels so as long as nothing was written into it. To other machines
go copies that say so: their mode is "c", numpy's own word for an array whose changes stay in memory.

Views of memory are here too, and classes that ctypes has made.

This module is asked of each pickle, and must not import numpy: where that is not loaded there are no arrays.
"""

from __future__ import annotations

import contextlib
import copyreg
import importlib
import mmap
import operator
import os
import pickle
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from parcoll.errors import SerializationError, logger
from parcoll.system import genuine_open
from parcoll.wire.reducers import WITHOUT_NAME, is_named

KEPT = 4  # maps that stay open here, since the next array may be of the same file
READ, WRITE, PRIVATE = "r", "r+", "c"
ACCESS = {READ: mmap.ACCESS_READ, WRITE: mmap.ACCESS_WRITE, PRIVATE: mmap.ACCESS_COPY}
DELETED = " (deleted)"  # how the kernel ends the path of a file that was removed

_SPAN = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ (\d+) *(.*)\n")
_WRITTEN = re.compile(r"(Anonymous|Swap): +[1-9]")

# Whether what this process pickles is for processes of this machine: so in a local worker. None in the
# script, where `sent` says it, and other pickles are as numpy makes them.
of_machine: bool | None = None
_context = threading.local()


@contextlib.contextmanager
def sent(here: bool) -> Iterator[None]:
    """Pickle such arrays as references, for processes of this machine, or as copies that say so."""
    before = getattr(_context, "here", None)
    _context.here = here
    try:
        yield
    finally:
        _context.here = before


def reducers() -> Mapping[type, Callable[[Any], Any]]:
    """Return the reducers of arrays for one pickle."""
    numpy: Any = sys.modules.get("numpy")
    explicit = getattr(_context, "here", None)
    here = of_machine if explicit is None else explicit
    if here is None or getattr(numpy, "memmap", None) is None:  # not there, or being imported
        return {}
    reduce = _Sent(numpy, here, told=explicit is not None).reduce
    return dict.fromkeys((numpy.ndarray, numpy.memmap, numpy.recarray), reduce)


def dump(value: object, file: Any) -> None:
    """Pickle a value with Python's own pickler."""
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    if of_arrays := reducers():
        pickler.dispatch_table = {**copyreg.dispatch_table, **of_arrays}
    pickler.dump(value)


def refers(head: bytes) -> bool:
    """Tell whether a pickle may refer to a file."""
    return __name__.encode() in head


def file_of(value: Any) -> tuple[str, str, tuple[int, ...]] | None:
    """Return of which file a `numpy.memmap` is that may be written, and its form; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if type(value) is not getattr(numpy, "memmap", None) or value.mode not in (WRITE, "w+"):
        return None
    return os.path.abspath(value.filename or ""), str(value.dtype), value.shape


class Place(NamedTuple):
    """Which part of which file a map shows, and how."""

    path: str
    name: str  # the path as the user knows it
    mode: str
    start: int
    size: int
    file: tuple[int, int]  # its device and its number there


class _Sent:
    """The maps that one pickle has met."""

    def __init__(self, numpy: Any, here: bool, told: bool) -> None:
        self._numpy = numpy
        self._here = here
        self._told = told
        self._maps: dict[int, _SentMap] = {}

    def reduce(self, array: Any) -> Any:
        """Reduce an array: to its place in a file, to a copy, or as numpy does it."""
        if array.base is not None:
            root = _root_of(array, self._numpy.ndarray)
            if root is not None:
                found = self._of_map(array, *root)
                if found is not None:
                    return found
        if type(array) is self._numpy.memmap and array.mode == PRIVATE:  # a copy, as they arrive
            return self._copy(array)
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)

    def _of_map(self, array: Any, root: Any, content: mmap.mmap) -> Any:
        mapped = self._maps.get(id(content))
        if mapped is None:
            mapped = self._maps[id(content)] = _SentMap(self._numpy, root, content)
        if self._here and mapped.place is not None:
            kind = type(array)
            settings = (kind, array.dtype, array.shape, array.strides, _address(array) - mapped.first)
            is_map = kind is self._numpy.memmap
            return _array_of, (
                mapped,
                *settings,
                array.flags.writeable,
                getattr(array, "offset", None) if is_map else None,
            )
        name = getattr(root, "filename", None)
        if self._told and not self._here and name is not None and root.mode in (WRITE, "w+"):
            _tell(os.fspath(name))
        return None if type(array) is not self._numpy.memmap else self._copy(array)

    def _copy(self, array: Any) -> Any:
        content = self._numpy.ascontiguousarray(array).reshape(-1).view("u1") if array.size else b""
        settings = (array.dtype, array.shape, array.flags.writeable, array.filename, array.offset)
        return _copied, (pickle.PickleBuffer(content), *settings)


def _root_of(array: Any, ndarray: type) -> tuple[Any, mmap.mmap] | None:
    """Return the first array of a row of views, with the map in which it lies; None if it lies in none."""
    while True:
        base = array.base
        if type(base) is memoryview:
            base = base.obj
        if isinstance(base, mmap.mmap):
            return array, base
        if not isinstance(base, ndarray):
            return None
        array = base


class _SentMap:
    """Stands for one map in a pickle."""

    def __init__(self, numpy: Any, root: Any, content: mmap.mmap) -> None:
        whole = numpy.frombuffer(content, "u1")
        self.first = _address(whole)
        self.content = content  # so that no other map gets its id
        # None where another process that opens the file would not find what this one sees.
        self.place: Place | None = None
        with contextlib.suppress(OSError, UnicodeError, ValueError):
            self.place = _place_of(root, self.first, whole.size)

    def __reduce__(self) -> Any:
        return _opened, (self.place,)


def _place_of(root: Any, first: int, size: int) -> Place | None:
    named = getattr(root, "filename", None)
    if sys.platform == "linux":
        found = _asked_of_kernel(first, size)
        if found is None:
            return None
        path, mode, start = found
    else:  # what was written into a private map cannot be told
        if named is None or root.mode == PRIVATE:
            return None
        path, mode = os.fspath(named), WRITE if root.mode == "w+" else root.mode
        start = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY
    status = os.stat(path)
    return Place(path, os.fspath(named or path), mode, start, size, (status.st_dev, status.st_ino))


def _asked_of_kernel(first: int, size: int) -> tuple[str, str, int] | None:
    """Return path, mode and offset of what is mapped at an address; None if it is no file's content."""
    with genuine_open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        span = next((found for found in map(_SPAN.match, file) if found and int(found[2], 16) > first), None)
    if span is None or int(span[1], 16) > first or not span[6].startswith("/"):
        return None
    access, path, start = span[3], span[6], int(span[4], 16) + first - int(span[1], 16)
    mode = PRIVATE if access[3] == "p" else WRITE if access[1] == "w" else READ
    if mode == PRIVATE and _is_written(first, size):
        return None
    if path.endswith(DELETED) and not os.path.exists(path):
        descriptor = None if of_machine else _descriptor_of(path, int(span[5]))
        if descriptor is None:
            return None
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
    return path, mode, start


def _is_written(first: int, size: int) -> bool:
    """Tell whether a private map has pages of its own."""
    within = False
    with genuine_open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            span = _SPAN.match(line)
            if span:
                within = int(span[1], 16) < first + size and int(span[2], 16) > first
            elif within and _WRITTEN.match(line):
                return True
    return False


def _descriptor_of(path: str, number: int) -> int | None:
    """Return a descriptor that this process has of a file without a name: the map's own, for example."""
    found: dict[tuple[int, int], int] = {}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}") == path:
                status = os.fstat(descriptor)
                found[status.st_dev, status.st_ino] = descriptor
    if len(found) > 1:  # some file systems have other numbers in maps, so they count only where they must
        found = {file: descriptor for file, descriptor in found.items() if file[1] == number}
    return next(iter(found.values())) if len(found) == 1 else None


_told: set[str] = set()


def _tell(path: str) -> None:
    if path not in _told:
        _told.add(path)
        logger.warning(
            "the memory map of %r goes to workers that may be on other machines as a copy (mode 'c'): what "
            "functions write into it does not reach the file",
            path,
        )


# Where they arrive --------------------------------------------------------------------------------


class _Map:
    """A map of this process."""

    def __init__(self, place: Place, file: Any) -> None:
        numpy = _numpy()
        self.place = place
        self.content = mmap.mmap(file.fileno(), place.size, access=ACCESS[place.mode], offset=place.start)
        self.root = numpy.ndarray.__new__(numpy.memmap, (place.size,), "u1", self.content)
        _name(self.root, self.content, place.name, place.mode, place.start)


_maps: weakref.WeakValueDictionary[Place, _Map] = weakref.WeakValueDictionary()
_kept: deque[_Map] = deque(maxlen=KEPT)


def _opened(place: Place) -> _Map:
    try:
        with genuine_open(place.path, "r+b" if place.mode == WRITE else "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != place.file:
                raise _lost(place, "is another one by now")
            if status.st_size < place.start + place.size:
                raise _lost(place, f"has been cut to {status.st_size} bytes")
            found = _maps.get(place)
            if found is None or place.mode == PRIVATE:
                found = _maps[place] = _Map(place, file)
                _kept.append(found)
            return found
    except FileNotFoundError:
        raise _lost(place, "is gone") from None
    except OSError as error:
        raise _lost(place, f"cannot be mapped here: {error}") from error


def _lost(place: Place, what: str) -> SerializationError:
    return SerializationError(
        f"the file {place.name!r}, of which an array is a memory map, {what}; such an array travels as the "
        "name of its file, which must stay until the array has arrived: numpy.array(...) makes a copy"
    )


def _array_of(
    mapped: _Map,
    kind: Any,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    at: int,
    writeable: bool,
    named_offset: int | None,
) -> Any:
    found = _numpy().ndarray.__new__(kind, shape, dtype, mapped.root, at, strides)
    if named_offset is not None:
        _name(found, mapped.content, mapped.place.name, mapped.place.mode, named_offset)
    if not writeable:
        found.flags.writeable = False
    return found


def _copied(
    content: Any, dtype: Any, shape: tuple[int, ...], writeable: bool, path: Any, offset: int | None
) -> Any:
    numpy = _numpy()
    if writeable and memoryview(content).readonly:
        content = bytearray(content)
    found = numpy.ndarray.__new__(numpy.memmap, shape, dtype, content)
    _name(found, None, path, PRIVATE, offset)
    if not writeable:
        found.flags.writeable = False
    return found


def _name(array: Any, content: mmap.mmap | None, path: Any, mode: str, offset: int | None) -> None:
    array._mmap, array.filename, array.mode, array.offset = content, path, mode, offset


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _numpy() -> Any:
    return importlib.import_module("numpy")


def _forget() -> None:
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# Classes of C -----------------------------------------------------------------------------------


def is_of_c(kind: type) -> bool:
    """Tell whether this is a structure, a union or another class of ctypes: these make fields themselves."""
    return any(made.__module__ == "_ctypes" for made in type(kind).__mro__)  # type: ignore[attr-defined]


def reduced_of_c(kind: Any) -> Any:
    """Return how ctypes has made a class of another one: an array, a pointer, a function; None of others."""
    ctypes = sys.modules.get("ctypes")
    if ctypes is None or "_ctypes" not in (type(kind).__module__, kind.__module__) or is_named(kind):
        return None
    if issubclass(kind, type):  # a metaclass, which its module does not have
        names = "Structure", "Union", "Array", "_SimpleCData", "_Pointer", "_CFuncPtr"
        bases = [getattr(ctypes, name) for name in names]
        return next(((type, (base,)) for base in bases if type(base) is kind), None)
    metaclass = type(kind).__name__
    of: Any = getattr(kind, "_type_", None)
    if metaclass == "PyCArrayType" and kind.__name__ == f"{of.__name__}_Array_{kind._length_}":
        return operator.mul, (of, kind._length_)
    if metaclass == "PyCPointerType" and isinstance(of, type) and ctypes.POINTER(of) is kind:
        return ctypes.POINTER, (of,)
    if metaclass == "PyCFuncPtrType" and hasattr(kind, "_argtypes_"):
        given = kind._restype_, *kind._argtypes_
        return (ctypes.CFUNCTYPE, given) if ctypes.CFUNCTYPE(*given) is kind else None
    plain = getattr(ctypes, kind.__name__[:-3], None)  # c_int of c_int_be
    swapped = [name for name in ("__ctype_be__", "__ctype_le__") if getattr(plain, name, None) is kind]
    return (getattr, (plain, swapped[0])) if swapped else None


# Views ---------------------------------------------------------------------------------------------
# cloudpickle sends the bytes alone: a list of those is not that of a view of numbers.


def _reduced_view(value: memoryview) -> Any:
    return view_of, (value.tobytes(), value.format, value.shape, value.readonly)


def view_of(content: bytes, format: str, shape: tuple[int, ...], readonly: bool) -> memoryview:
    """Return a view of such elements, of a copy; of bytes where no view can be made into that one."""
    made = memoryview(content if readonly else bytearray(content))
    if (format, shape) == (made.format, made.shape):
        return made
    try:
        cast: memoryview = made.cast(format, shape) if len(shape) > 1 else made.cast(format)  # type: ignore[call-overload]
        return cast
    except (TypeError, ValueError):  # a record of ctypes or numpy, say, or no elements in one of several ways
        return made


WITHOUT_NAME[memoryview] = _reduced_view
