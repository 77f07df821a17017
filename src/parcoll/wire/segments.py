"""Segments: memory that the processes of one machine share. Large partitions and results travel through it.

A segment is a file that has no name and is on no disk (Linux's memfd). Its owner, the user's process,
tells workers its process id and the file's descriptor. Workers open it through /proc, which the kernel
allows to the same user only. Since there is no name, nothing is left behind, whichever process dies, and
the size of /dev/shm does not matter. Segments and their mappings are used again: fresh memory costs 0.6 ms
a MB. A span is the part of a segment that holds one object: its pickle, then its buffers.

Data is copied in and out, so that each process has arrays of its own, to write into and to keep. A copy
costs 0.03 to 0.1 ms a MB; memory mapped copy-on-write would cost 1 ms a MB at the first write. An arena is
private memory that such copies share; it is used again when the last of them is dropped.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

with contextlib.suppress(ImportError):  # Windows has none, and never uses a segment
    import fcntl

PAGE = 4096  # bytes of a memory page, at whose start a span begins
HEADER = PAGE  # the first memory page holds the token, and whether a task has written its results
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
        return -(-(self.offset + sum(self.sizes)) // PAGE) * PAGE

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


def _forget() -> None:
    """In a fork: start with nothing and a new lock, since another thread may have held the old one."""
    global _mapping_lock
    _mapping_lock = threading.RLock()
    _mappings.clear()
    _arenas.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
