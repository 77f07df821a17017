"""Memory that the processes of one machine share: large partitions and results travel through it.

A segment is a file that has no name and is on no disk (Linux's memfd). Its owner, the user's process,
tells workers its process id and descriptor; they open it through /proc, which the kernel allows to
the same user only. Since no name exists, nothing is left behind whoever dies, and the size of /dev/shm
does not matter. Segments and their mappings are used again: a fresh page costs 0.6 ms a MB.

Data is copied in and out, so that everybody's arrays are their own, to write into and to keep. A
copy costs 0.03 to 0.1 ms a MB; pages mapped copy-on-write would cost 1 ms at the first write.
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

with contextlib.suppress(ImportError):  # not on Windows, where nobody gets as far as to need it
    import fcntl

PAGE = 4096
HEADER = PAGE  # the first page has the token, and whether a task has put its results behind it
TOKEN_BYTES = 16
NOT_WRITTEN, WRITTEN = b"\0", b"\1"
GONE = "the shared memory of this partition is used for another one by now"
GRAIN = 2**20  # segments grow by that many bytes
IDLE_BYTES = 192 * 2**20  # that an engine keeps for the next evaluation, and each process mapped

# Buffers from this size share one mapping, an arena, that is used again. One that is kept keeps the
# others' memory too, so small ones stay alone. No huge pages: on bare metal they are cheaper to get,
# but in a virtual machine that gives free memory back to its host they took 2.5 ms a MB, not 0.9.
ARENA_BUFFER = 512 * 1024
ARENA_LEAST = 2**21
ALIGNMENT = 64  # of buffers within an arena: what numpy, numba and vector instructions ask for at most
IDLE_ARENAS = 64 * 2**20  # that each process keeps for what comes next


class WrittenError(OSError):
    """A segment has the results of its task already."""


class Address(NamedTuple):
    """Where any process of this machine and user finds a segment."""

    pid: int
    descriptor: int
    token: bytes  # tells the use of the segment that was meant from an earlier or a later one

    def map(self, size: int) -> memoryview:
        """Return at least `size` bytes of it; OSError where it is gone or used anew."""
        key = self.pid, self.descriptor
        with _mapping_lock:
            mapping = _mappings.pop(key, None)
            if mapping is None or len(mapping) < size or mapping[:TOKEN_BYTES] != self.token:
                mapping = self._open(size)
            _mappings[key] = mapping
            while len(_mappings) > 1 and sum(map(len, list(_mappings.values()))) > IDLE_BYTES:
                _mappings.popitem(last=False)  # unmapped when nobody copies from it any more
        return memoryview(mapping)

    def _open(self, size: int) -> mmap.mmap:
        descriptor = os.open(f"/proc/{self.pid}/fd/{self.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, TOKEN_BYTES, 0) != self.token:
                raise OSError(GONE)
            length = os.fstat(descriptor).st_size
            if length < size:
                length = -(-size // GRAIN) * GRAIN
                os.pwrite(descriptor, b"\0", length - 1)  # it grows, and never shrinks
            return mmap.mmap(descriptor, length)
        finally:
            os.close(descriptor)


# The segments that this process has mapped, the one used last at the end.
_mappings: OrderedDict[tuple[int, int], mmap.mmap] = OrderedDict()
_mapping_lock = threading.Lock()


class Span(NamedTuple):
    """Bytes in a segment: the sizes of what was written one after the other from `offset` on."""

    address: Address
    offset: int
    sizes: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first offset behind it at which something else may be written."""
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
    """Copy `parts` into another process's segment; OSError where it is gone, or cannot grow.

    A task may run twice, when a worker dies, and the second end long after the first. Only the first
    to end writes, since its outcome may be on its way to the owner: the next gets WrittenError. The
    lock keeps the owner from using the segment for something else meanwhile.
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
    """Return private memory that is used again when the last buffer in it is dropped."""
    for arena in list(_arenas):
        if size <= len(arena) <= 2 * size:
            with contextlib.suppress(ValueError):  # another thread was faster
                _arenas.remove(arena)
                break
    else:
        arena = mmap.mmap(-1, -(-size // GRAIN) * GRAIN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # All buffers are views of this object, so that it dies when the last of them does.
    exporter = (ctypes.c_char * len(arena)).from_buffer(arena)
    weakref.finalize(exporter, _keep_arena, arena).atexit = False
    return memoryview(exporter).cast("B")


def _keep_arena(arena: mmap.mmap) -> None:
    # Takes no lock: the collector may call it anywhere.
    if sum(map(len, list(_arenas))) + len(arena) <= IDLE_ARENAS:
        _arenas.append(arena)


# Private memory that nothing refers to any more; not of a fork, whose copies of it are its own.
_arenas: list[mmap.mmap] = []


class Segment:
    """A segment as its owner has it: lent to one partition at a time.

    One that is dropped is closed. A worker that still reads or writes it holds it as long as it does.
    """

    def __init__(self, pool: Segments) -> None:
        self._pool = pool
        self._descriptor = os.memfd_create("parcoll", os.MFD_CLOEXEC)
        weakref.finalize(self, _close, os.getpid(), self._descriptor)
        self.renew()

    def renew(self) -> None:
        """Make all addresses given so far invalid; OSError while somebody writes to one of them."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.address = Address(os.getpid(), self._descriptor, os.urandom(TOKEN_BYTES))
        os.pwrite(self._descriptor, self.address.token + NOT_WRITTEN, 0)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return os.fstat(self._descriptor).st_blocks * 512

    def write(self, parts: Sequence[Any]) -> Span:
        """Copy `parts` in, behind the header."""
        return _write(self.address, HEADER, parts)

    def give_back(self) -> None:
        """Let another partition use it: nobody reads or writes it any more."""
        self._pool.take_back(self)


def _close(pid: int, descriptor: int) -> None:
    # Takes no lock: the collector may call it anywhere.
    os.close(descriptor)
    _mappings.pop((pid, descriptor), None)


class Segments:
    """The segments of one engine. Any thread may use it."""

    def __init__(self) -> None:
        self._idle: list[Segment] = []
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()

    def take(self) -> Segment:
        """Return a segment that nobody uses; OSError where this system gives none."""
        if self._pid != os.getpid():
            raise OSError("it belongs to the process that this one was forked from")
        while True:
            with self._lock:
                segment = self._idle.pop() if self._idle else None
            if segment is None:
                return Segment(self)
            with contextlib.suppress(BlockingIOError):
                segment.renew()
                return segment

    def take_back(self, segment: Segment) -> None:
        """Keep a segment for the next partition, unless that would be too much memory."""
        with self._lock:
            room = IDLE_BYTES - sum(idle.nbytes for idle in self._idle)
            if segment.nbytes <= room and not self._closed:
                self._idle.append(segment)

    def close(self) -> None:
        """Free the segments that nobody uses, and those that come back from now on."""
        with self._lock:
            self._closed = True
            self._idle.clear()


def _forget() -> None:
    """In a fork: start anew, since another thread may have held the lock."""
    global _mapping_lock
    _mapping_lock = threading.Lock()
    _mappings.clear()
    _arenas.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
