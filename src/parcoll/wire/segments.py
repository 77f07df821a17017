"""Segments: memory that the processes of one machine share. Large partitions and results travel through it.

A segment is a file that has no name and is on no disk (Linux's memfd). Its owner, the user's process,
tells workers its process id and the file's descriptor. Workers open it through /proc, which the kernel
allows to the same user only. Since there is no name, nothing is left behind, whichever process dies, and
the size of /dev/shm does not matter. Segments and their mappings are used again: fresh memory costs 0.6 ms
a MB. A span is the part of a segment that holds one object: its pickle, then its buffers.

Data is copied in and out, so that each process has arrays of its own, to write into and to keep. A copy
costs 0.03 to 0.1 ms a MB; memory mapped copy-on-write would cost 1 ms a MB at the first write. An arena is
private memory that such copies share; it is used again when the last of them is dropped.

What functions have captured is the exception: all workers need all of it, and most of them only read it. It
is mapped copy-on-write, and kept for the next evaluation.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

with contextlib.suppress(ImportError):  # Windows has none, and never uses a segment
    import fcntl

MEMORY_PAGE = 4096  # bytes of a memory page, at whose start a span begins
HEADER = MEMORY_PAGE  # the first memory page holds the token, and whether a task has written its results
TOKEN_BYTES = 16
NOT_WRITTEN, WRITTEN = b"\0", b"\1"
GONE = "the segment of this partition has been given to another one"
GRAIN = 2**20  # segments grow by that many bytes
IDLE_BYTES = 192 * 2**20  # that an engine keeps for its next evaluation; a process keeps as much mapped

# Buffers of one object from this size on share an arena. A buffer that the user keeps also keeps the memory
# of the others, so small buffers get memory of their own. No huge pages: on bare metal they are cheaper to
# get, but in a virtual machine that gives free memory back to its host they took 2.5 ms a MB, not 0.9.
ARENA_BUFFER = 512 * 1024
ARENA_LEAST = 2**21  # buffers that take less than this together get memory of their own as well
ALIGNMENT = 64  # of buffers within an arena: the most that numpy, numba and vector instructions ask for
IDLE_ARENAS = 64 * 2**20  # bytes of unused arenas that each process keeps


class WrittenError(OSError):
    """Another run of the task has already written its results into the segment."""


class Address(NamedTuple):
    """Where other processes of this machine and user find a segment."""

    pid: int
    descriptor: int
    token: bytes  # drawn anew for each use of the segment, so that the address of another use is refused

    def map(self, size: int) -> memoryview:
        """Map at least `size` bytes of the segment; OSError if it is gone or has another use by now."""
        key = self.pid, self.descriptor
        with _mapping_lock:
            mapping = _mappings.pop(key, None)
            if mapping is None or len(mapping) < size or mapping[:TOKEN_BYTES] != self.token:
                mapping = self._open(size)
            _mappings[key] = mapping
            while len(_mappings) > 1 and sum(map(len, list(_mappings.values()))) > IDLE_BYTES:
                _mappings.popitem(last=False)  # it is unmapped when nobody copies from it any more
        return memoryview(mapping)

    def map_privately(self, size: int) -> memoryview:
        """Map `size` bytes of the segment for this process alone: nobody else sees what it writes there.

        Memory is taken for the pages that it writes to, and for no others.
        """
        descriptor = os.open(f"/proc/{self.pid}/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, TOKEN_BYTES, 0) != self.token:
                raise OSError(GONE)
            return memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=_READ_WRITE))
        finally:
            os.close(descriptor)

    def is_valid(self) -> bool:
        """Tell whether the segment is there, for this use."""
        try:
            self.map(HEADER)
        except OSError:
            return False
        return True

    def _open(self, size: int) -> mmap.mmap:
        descriptor = os.open(f"/proc/{self.pid}/fd/{self.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, TOKEN_BYTES, 0) != self.token:
                raise OSError(GONE)
            length = os.fstat(descriptor).st_size
            if length < size:
                length = -(-size // GRAIN) * GRAIN
                os.pwrite(descriptor, b"\0", length - 1)  # the file grows, and never shrinks
            return mmap.mmap(descriptor, length)
        finally:
            os.close(descriptor)


_READ_WRITE = getattr(mmap, "PROT_READ", 0) | getattr(mmap, "PROT_WRITE", 0)  # Windows has neither
# The segments that this process has mapped; the one that was used last stands at the end.
_mappings: OrderedDict[tuple[int, int], mmap.mmap] = OrderedDict()
_mapping_lock = threading.RLock()


class Span(NamedTuple):
    """One object's bytes in a segment: the sizes of its parts, which follow each other from `offset` on."""

    address: Address
    offset: int
    sizes: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first offset behind the span at which another one may begin."""
        return -(-(self.offset + sum(self.sizes)) // MEMORY_PAGE) * MEMORY_PAGE

    def read(self) -> list[Any]:
        """Copy the parts out: the first as bytes, the others as writable buffers."""
        view = self.address.map(self.end)
        position = self.offset + self.sizes[0]
        parts: list[Any] = [bytes(view[self.offset : position]), *_allocate(self.sizes[1:])]
        for part in parts[1:]:
            part[:] = view[position : position + len(part)]
            position += len(part)
        if view[:TOKEN_BYTES] != self.address.token:
            raise OSError(GONE)
        return parts


def write(address: Address, offset: int, parts: Sequence[Any]) -> Span:
    """Copy `parts` into another process's segment; OSError if it is gone or cannot grow.

    A task may run twice, when a worker dies, and its second run may end long after the first. Only the run
    that ends first may write, since its outcome may be on its way to the owner; the other gets WrittenError.
    Meanwhile a lock keeps the owner from using the segment for something else.
    """
    descriptor = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.pread(descriptor, TOKEN_BYTES, 0) != address.token:
            raise OSError(GONE)
        if os.pread(descriptor, 1, TOKEN_BYTES) == WRITTEN:
            raise WrittenError("another run of this task has put its results here")
        span = _write(address, offset, parts)
        os.pwrite(descriptor, WRITTEN, TOKEN_BYTES)
        return span
    finally:
        os.close(descriptor)


def _write(address: Address, offset: int, parts: Sequence[Any]) -> Span:
    span = Span(address, offset, tuple(map(len, parts)))
    view = address.map(span.end)
    for part in parts:
        view[offset : offset + len(part)] = part
        offset += len(part)
    return span


def _allocate(sizes: Sequence[int]) -> list[Any]:
    """Return a private, writable buffer of each size."""
    large = sum(_aligned(size) for size in sizes if size >= ARENA_BUFFER)
    if large < ARENA_LEAST:
        return [bytearray(size) for size in sizes]
    view = _arena(large)
    buffers: list[Any] = []
    for size in sizes:
        if size >= ARENA_BUFFER:
            buffers.append(view[:size])
            view = view[_aligned(size) :]
        else:
            buffers.append(bytearray(size))
    return buffers


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _arena(size: int) -> memoryview:
    """Return an arena of at least `size` bytes; it is used again when the last buffer in it is dropped."""
    for arena in list(_arenas):
        if size <= len(arena) <= 2 * size:
            with contextlib.suppress(ValueError):  # another thread has taken it
                _arenas.remove(arena)
                break
    else:
        arena = mmap.mmap(-1, -(-size // GRAIN) * GRAIN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # All buffers are views of this object, so that it dies when the last of the buffers does.
    exporter = (ctypes.c_char * len(arena)).from_buffer(arena)
    weakref.finalize(exporter, _keep_arena, arena).atexit = False
    return memoryview(exporter).cast("B")


def _keep_arena(arena: mmap.mmap) -> None:
    # Takes no lock, since the garbage collector may call it at any point.
    if sum(map(len, list(_arenas))) + len(arena) <= IDLE_ARENAS:
        _arenas.append(arena)


# Arenas in which no buffer lies any more. A fork begins with none.
_arenas: list[mmap.mmap] = []


class Segment:
    """A segment in the hands of its owner, who lends it to one partition at a time.

    A segment that is dropped is closed. A worker that still reads or writes it keeps its memory alive.
    """

    def __init__(self, pool: Segments) -> None:
        self._pool = pool
        self._descriptor = os.memfd_create("parcoll", os.MFD_CLOEXEC)
        self._closing = weakref.finalize(self, _close, os.getpid(), self._descriptor)
        self.renew()

    def renew(self) -> None:
        """Make all addresses given so far invalid; OSError while a worker writes to the segment."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.address = Address(os.getpid(), self._descriptor, os.urandom(TOKEN_BYTES))
        os.pwrite(self._descriptor, self.address.token + NOT_WRITTEN, 0)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is the segment's still.

        The garbage collector closes a segment before it ends the evaluation that has it, where it finds both
        at once. The number of the descriptor may be another file's by then.
        """
        return self._closing.alive

    @property
    def nbytes(self) -> int:
        """How much memory the segment takes."""
        return os.fstat(self._descriptor).st_blocks * 512

    def write(self, parts: Sequence[Any]) -> Span:
        """Copy `parts` into the segment, behind the header."""
        return _write(self.address, HEADER, parts)

    def write_apart(self, parts: Sequence[Any]) -> list[Span]:
        """Copy `parts` into the segment; each begins a memory page, and is an object of its own."""
        spans: list[Span] = []
        offset = HEADER
        for part in parts:
            spans.append(Span(self.address, offset, (len(part),)))
            offset = spans[-1].end
        view = self.address.map(offset)
        for span, part in zip(spans, parts, strict=True):
            view[span.offset : span.offset + len(part)] = part
        return spans

    def end_use(self) -> None:
        """Give the segment back, and have those who know of it see that at once."""
        if self.is_open:
            with contextlib.suppress(BlockingIOError):  # a worker writes to it
                self.renew()
        self.give_back()

    def give_back(self) -> None:
        """Let another partition use the segment; nobody may read or write it any more."""
        self._pool.take_back(self)


def _close(pid: int, descriptor: int) -> None:
    # Takes no lock, since the garbage collector may call it at any point.
    os.close(descriptor)
    _mappings.pop((pid, descriptor), None)


class Segments:
    """The pool of one engine's segments. Any thread may use it."""

    def __init__(self) -> None:
        self._idle: list[Segment] = []
        self._lock = threading.RLock()
        self._closed = False
        self._pid = os.getpid()

    def take(self) -> Segment:
        """Return a segment that nobody uses; OSError if the system provides none."""
        if self._pid != os.getpid():
            raise OSError("shared memory belongs to the process that this one was forked from")
        while True:
            with self._lock:
                segment = self._idle.pop() if self._idle else None
            if segment is None:
                return Segment(self)
            with contextlib.suppress(BlockingIOError):
                segment.renew()
                return segment

    def take_back(self, segment: Segment) -> None:
        """Keep a segment for another partition, unless that would be too much memory, or it is closed."""
        if not segment.is_open:
            return
        with self._lock:
            room = IDLE_BYTES - sum(idle.nbytes for idle in self._idle)
            if segment.nbytes <= room and not self._closed:
                self._idle.append(segment)

    def close(self) -> None:
        """Free the segments that nobody uses; those that come back later are freed too."""
        with self._lock:
            self._closed = True
            self._idle.clear()


def part_of(views: Mapping[Address, memoryview], span: Span) -> memoryview:
    """Return a span's bytes from the mappings of segments."""
    return views[span.address][span.offset : span.offset + span.sizes[0]]


class Captures:
    """Large buffers that programs have captured, each once, kept for the next evaluation.

    One that is there already, byte for byte, is not copied again: to compare 300 MiB takes 0.1 s. Kept is
    what the last program had, and what was there before as long as there is room.
    """

    def __init__(self, segments: Segments) -> None:
        self._pool = segments
        self._held: list[tuple[Segment, list[Span]]] = []
        self._lock = threading.RLock()  # a signal's handler may evaluate while this thread compares

    def place(self, buffers: Sequence[memoryview]) -> tuple[list[Span], list[Segment], int]:
        """Return where the buffers lie, the segments, and how many bytes were copied there just now."""
        with self._lock:
            mapped: dict[Address, memoryview] = {}
            found = [self._find(buffer, mapped) for buffer in buffers]
            new = [buffer for buffer, span in zip(buffers, found, strict=True) if span is None]
            if new:
                segment = Segment(self._pool)
                spans = segment.write_apart(new)
                self._held.append((segment, spans))
                missing = iter(spans)
                found = [span or next(missing) for span in found]
            used = {span.address for span in found if span is not None}
            segments = [segment for segment, _ in self._held if segment.address in used]
            room = IDLE_BYTES
            for held in self._held[::-1]:
                room -= held[0].nbytes
                if held[0].address not in used and room < 0 and held in self._held:
                    self._held.remove(held)
            return [span for span in found if span is not None], segments, sum(map(len, new))

    def _find(self, buffer: memoryview, mapped: dict[Address, memoryview]) -> Span | None:
        for segment, spans in self._held:
            for span in spans:
                if span.sizes[0] == len(buffer):
                    if span.address not in mapped:
                        mapped[span.address] = segment.address.map_privately(spans[-1].end)
                    if _equal(part_of(mapped, span), buffer):
                        return span
        return None

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._held.clear()


def _equal(one: memoryview, other: memoryview) -> bool:
    """Compare eight bytes at a time: one by one takes ten times as long."""
    whole = len(one) & ~7
    return one[whole:] == other[whole:] and one[:whole].cast("Q") == other[:whole].cast("Q")


def _forget() -> None:
    """In a fork: start with nothing and a new lock, since another thread may have held the old one."""
    global _mapping_lock
    _mapping_lock = threading.RLock()
    _mappings.clear()
    _arenas.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
