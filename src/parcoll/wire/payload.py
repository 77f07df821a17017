"""Payload: an object in the form in which it travels between the user's process and the workers.

There are five forms, which load in the same way: `Packed` is bytes, `Several` is bytes in several parts,
`Shared` is bytes in shared memory, `Captured` a program there, and `Plain` is the object itself, which stays
in its process. This module runs on both sides, so it needs the standard library and cloudpickle only.
`Sharing` is the shared memory of one engine: what is packed into it, and lent to jobs for their results.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from parcoll.errors import logger
from parcoll.wire.codec import KeepInside, by_reference, by_value, loads, prefers_value
from parcoll.wire.reducers import is_made, names_made
from parcoll.wire.segments import (
    HEADER,
    Address,
    Captures,
    Segment,
    Segments,
    Span,
    WrittenError,
    part_of,
    write,
)

# Buffers below this size stay inside the pickle. A buffer beside the pickle costs a frame of some
# microseconds in dask's protocol, and copying 64 KiB costs about as much.
OUT_OF_BAND_BYTES = 64 * 1024

ByValue = Callable[[object, KeepInside], bytes]

# From this size on, bytes that stay on this machine go through shared memory. A segment costs about ten
# calls to the kernel on either side. Through sockets, the scheduler would read and write the bytes, and
# they would be encrypted and decrypted twice.
SHARED_BYTES = 32 * 1024

# Buffers of a program from this size on lie in memory that all workers see. Each begins a page, and to map
# a segment costs some calls to the kernel.
CAPTURED_BYTES = 256 * 1024


def pickled(value: object, by_value: ByValue = by_value) -> tuple[bytes, *tuple[memoryview, ...]]:
    """Return the pickle of `value` and its large buffers, which are not copied yet."""
    buffers: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(view)
        return False

    head = b"__main__"
    if not prefers_value() and not _is_of_main(value):
        try:
            head = by_reference(value, keep_inside)
        except Exception:
            head = b"__main__"
    if names_made(head):
        # A reference to `__main__` means nothing in a worker, which has another `__main__`.
        buffers.clear()
        head = by_value(value, keep_inside)
    return head, *buffers


def _is_of_main(value: object) -> bool:
    """Tell whether this is a list of objects of the script's, which would be pickled by reference in vain."""
    return type(value) is list and bool(value) and is_made(type(value[0]).__module__)


class Packed:
    """One pickled object: its bytes and its large buffers, which dask moves without copying.

    dask sends a plain list one element at a time (distributed#6368), so elements travel packed instead.
    """

    __slots__ = ("buffers", "head")

    def __init__(self, head: bytes, *buffers: Any) -> None:
        self.head = head
        self.buffers = buffers

    @classmethod
    def pack(cls, value: object, by_value: ByValue = by_value) -> Packed:
        """Pickle `value`: by value if it is of `__main__`, or if plain pickle refuses it."""
        return cls.copy_of(*pickled(value, by_value))

    @classmethod
    def copy_of(cls, head: bytes, *buffers: memoryview) -> Packed:
        """Return a payload with copies of the buffers: whoever made them may write into them again."""
        return cls(head, *map(bytes, buffers))

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object that is the caller's own: writing into its arrays changes nothing else."""
        return loads(self.head, [bytearray(buffer) for buffer in self.buffers], refresh_classes)

    @property
    def nbytes(self) -> int:
        """How many bytes travel."""
        return len(self.head) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def __sizeof__(self) -> int:
        return self.nbytes  # by this dask measures what a worker holds

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if protocol >= 5:
            return Packed, (self.head, *(pickle.PickleBuffer(buffer) for buffer in self.buffers))
        return Packed, (self.head, *(bytes(buffer) for buffer in self.buffers))

    def __dask_tokenize__(self) -> object:
        return id(self)  # dask hashes what it submits; our keys do not depend on the hash

    def __repr__(self) -> str:
        return f"<Packed: {self.nbytes} bytes>"


class Plain:
    """An object that stays in this process, with the interface of `Packed`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def pack(cls, value: Any) -> Plain:
        """Hold `value` as it is."""
        return cls(value)

    def load(self, refresh_classes: bool = False) -> Any:
        """Return the object itself."""
        return self.value

    @property
    def nbytes(self) -> int:
        """0, since nothing travels."""
        return 0


class Several:
    """A list that was packed in several parts, with the interface of `Packed`."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Packed]) -> None:
        self.parts = parts

    def load(self, refresh_classes: bool = False) -> list[Any]:
        """Return the list."""
        return [element for part in self.parts for element in part.load(refresh_classes)]

    @property
    def nbytes(self) -> int:
        """How many bytes travel."""
        return sum(part.nbytes for part in self.parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Several, (self.parts,)


class Shared:
    """An object whose bytes lie in shared memory, with the interface of `Packed`.

    `Span` says where they are: in which segment, and where in it (`segments`).
    """

    __slots__ = ("segment", "span")

    def __init__(self, span: Span, segment: Segment | None = None) -> None:
        self.span = span
        self.segment = segment  # in the process that owns it; None elsewhere

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object that is the caller's own; OSError if the segment is gone."""
        head, *buffers = self.span.read()
        return loads(head, buffers, refresh_classes)

    def fetch(self) -> Fetched:
        """Copy the bytes out, so that the segment can be used again."""
        return Fetched(*self.span.read())

    @property
    def nbytes(self) -> int:
        """How many bytes are copied."""
        return sum(self.span.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self.span,)


class Captured:
    """A program whose large buffers lie in shared memory that outlives its evaluation.

    All workers see the same memory; a page is copied where a function writes to it. The rest is in `own`,
    which is this evaluation's alone.
    """

    __slots__ = ("own", "segments", "spans")

    def __init__(self, own: Shared, spans: Sequence[Span | None], segments: Sequence[Segment] = ()) -> None:
        self.own = own
        self.spans = spans  # of each buffer; None if it is in `own`
        self.segments = segments  # in the process that owns them, as long as the evaluation goes on

    def load(self) -> Any:
        """Return a new object that is the caller's own; OSError if one of the segments is gone."""
        head, *buffers = self.own.span.read()
        ends: dict[Address, int] = {}
        for span in filter(None, self.spans):
            ends[span.address] = max(span.end, ends.get(span.address, 0))
        views = {address: address.map_privately(end) for address, end in ends.items()}
        small = iter(buffers)
        return loads(head, [next(small) if span is None else part_of(views, span) for span in self.spans])

    def end_use(self) -> None:
        """Give back what is of this evaluation alone, and have those who know of it see that at once."""
        if self.own.segment is not None:
            self.own.segment.end_use()

    def is_valid(self) -> bool:
        """Tell whether its evaluation goes on."""
        return self.own.span.address.is_valid()

    def __reduce__(self) -> tuple[Any, ...]:
        return Captured, (self.own, self.spans)


class Fetched(Packed):
    """Bytes that were copied out of shared memory: they are loaded once, without another copy."""

    __slots__ = ()

    def load(self, refresh_classes: bool = False) -> Any:
        """Return the object."""
        return loads(self.head, self.buffers, refresh_classes)


class Space:
    """Shared memory for a task's results: the segment lent to its job, behind the task's elements."""

    __slots__ = ("address", "failure", "offset")

    def __init__(self, address: Address, offset: int) -> None:
        self.address = address
        self.offset = offset
        self.failure: str | None = None  # why the segment could not be used

    def pack(self, value: object) -> Packed | Shared:
        """Pickle `value`, into the segment if it is large."""
        parts = pickled(value)
        if sum(map(len, parts)) >= SHARED_BYTES:
            try:
                return Shared(write(self.address, self.offset, parts))
            except WrittenError:
                pass  # another run of this task was first: nobody waits for these results
            except OSError as error:
                self.failure = str(error)
        return Packed.copy_of(*parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self.address, self.offset)


Payload = Packed | Plain | Several | Shared


class Sharing:
    """Segments for the jobs of an engine whose workers are on this machine.

    Where that does not work, everything travels in messages instead, after one warning.
    """

    def __init__(self, warns: bool = True) -> None:
        self._warns = warns  # not on a worker, where the script's filters may make an error of it
        self._segments = Segments()
        self._captures = Captures(self._segments)
        self._works: bool | None = None  # not tried yet

    def pack(self, value: object, by_value: ByValue = by_value) -> Payload:
        """Pickle `value`; into a segment where it is large."""
        parts = pickled(value, by_value)
        if sum(map(len, parts)) >= SHARED_BYTES and self._try():
            try:
                segment = self._segments.take()
                return Shared(segment.write(parts), segment)
            except OSError as error:
                self.stop(str(error))
        return Packed.copy_of(*parts)

    def capture(self, value: object) -> tuple[Captured, int] | None:
        """Put a program into shared memory; return it, and how many bytes that took. None if it cannot be."""
        if not self._try():
            return None
        head, *buffers = pickled(value)
        large = [buffer for buffer in buffers if len(buffer) >= CAPTURED_BYTES]
        small = [buffer for buffer in buffers if len(buffer) < CAPTURED_BYTES]
        try:
            segment = self._segments.take()
            placed, segments, copied = self._captures.place(large)
            own = Shared(segment.write([head, *small]), segment)
        except OSError as error:
            self.stop(str(error))
            return None
        spans = iter(placed)
        where = [next(spans) if len(buffer) >= CAPTURED_BYTES else None for buffer in buffers]
        return Captured(own, where, segments), copied + own.nbytes

    def lend(self, elements: Payload | None, large_results: bool) -> tuple[Space, Segment | None] | None:
        """Return where a task may put its results, with the segment that is to be given back afterwards.

        That is behind its elements, where they lie in a segment, and otherwise in a segment of its own: only
        where large results are to be expected, since each takes a descriptor. None where there is no room.
        """
        if not self._try():
            return None
        if isinstance(elements, Shared):
            return Space(elements.span.address, elements.span.end), elements.segment
        if not large_results:
            return None
        try:
            segment = self._segments.take()
        except OSError as error:
            self.stop(str(error))
            return None
        return Space(segment.address, HEADER), segment

    def stop(self, reason: str) -> None:
        """Use messages from now on."""
        if self._works is not False:
            self._works = False
            logger.warning("no shared memory: %s; data goes through sockets", reason)
            if self._warns:
                slower = (
                    f"parcoll cannot use shared memory ({reason}): data goes through sockets, which is slower"
                )
                warnings.warn(slower, RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Free the segments that no job has."""
        self._captures.clear()
        self._segments.close()

    def _try(self) -> bool:
        """Tell whether a segment can be opened by its address, as a worker will do."""
        if self._works is None:
            self._works = hasattr(os, "memfd_create")  # not on macOS, which is nothing to warn of
            if not self._works:
                return False
            try:
                segment = self._segments.take()
                segment.address.map(HEADER)
                segment.give_back()
            except OSError as error:
                self.stop(str(error))
        return self._works


_beside: list[Sharing] = []  # that of this process with those beside it, while there are some


def sharing_beside() -> Sharing:
    """Return the segments that a worker shares with the processes beside it."""
    if not _beside:
        _beside.append(Sharing(warns=False))
    return _beside[0]


def free_beside() -> None:
    """Keep nothing for processes beside this one: none is left."""
    while _beside:
        _beside.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_beside.clear)
