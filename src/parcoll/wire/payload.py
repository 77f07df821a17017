"""Objects to bytes and back: what travels between the user's process and the workers.

Runs on both sides, so it needs the standard library and cloudpickle only.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from parcoll.wire.codec import by_reference, by_value, loads, prefers_value
from parcoll.wire.segments import Address, Segment, Span, WrittenError, write

# Buffers below this stay inside the pickle: each buffer beside it costs a frame of some
# microseconds in dask's protocol, a copy of 64 KiB costs about as much.
OUT_OF_BAND_BYTES = 64 * 1024


# From this size on, bytes that stay on this machine go through shared memory. A segment costs about ten
# calls to the kernel on either side; the scheduler would read and write, and twice en- and decrypt.
SHARED_BYTES = 32 * 1024


def pickled(value: object) -> tuple[bytes, *tuple[memoryview, ...]]:
    """Return the pickle and the object's own large buffers, not yet copied."""
    buffers: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(view)
        return False

    head = b"__main__"
    if not prefers_value():
        try:
            head = by_reference(value, keep_inside)
        except Exception:
            head = b"__main__"
    if b"__main__" in head:
        # A reference to `__main__` means nothing in a worker: its `__main__` is another.
        # (The words may also stand in a user's text: slower then, and still right.)
        buffers.clear()
        head = by_value(value, keep_inside)
    return head, *buffers


class Packed:
    """One pickled object: its bytes and its large buffers, which dask moves without copying.

    A plain list would be sent one element at a time (distributed#6368), so nothing travels as one.
    """

    __slots__ = ("buffers", "head")

    def __init__(self, head: bytes, *buffers: Any) -> None:
        self.head = head
        self.buffers = buffers

    @classmethod
    def pack(cls, value: object) -> Packed:
        """Pickle `value`, by value where its module is `__main__` or where plain pickle cannot."""
        return cls.copy_of(*pickled(value))

    @classmethod
    def copy_of(cls, head: bytes, *buffers: memoryview) -> Packed:
        """Copy the buffers now: the source, or the function that made them, may use them again."""
        return cls(head, *map(bytes, buffers))

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object, the caller's own: writing into its arrays changes nothing else."""
        return loads(self.head, [bytearray(buffer) for buffer in self.buffers], refresh_classes)

    @property
    def nbytes(self) -> int:
        """How many bytes travel."""
        return len(self.head) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def __sizeof__(self) -> int:
        return self.nbytes  # dask measures what a worker holds with this

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if protocol >= 5:
            return Packed, (self.head, *(pickle.PickleBuffer(buffer) for buffer in self.buffers))
        return Packed, (self.head, *(bytes(buffer) for buffer in self.buffers))

    def __dask_tokenize__(self) -> object:
        return id(self)  # dask hashes what it submits; keys here do not depend on that

    def __repr__(self) -> str:
        return f"<Packed: {self.nbytes} bytes>"


class Plain:
    """The same face as `Packed` for an object that stays in this process."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def pack(cls, value: Any) -> Plain:
        """Hold `value` as it is."""
        return cls(value)

    def load(self, refresh_classes: bool = False) -> Any:
        """Return the very object."""
        return self.value

    @property
    def nbytes(self) -> int:
        """Nothing travels."""
        return 0


class Several:
    """The same face for a list that was packed in pieces."""

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
    """The same face as `Packed` for an object whose bytes lie in memory that this machine shares."""

    __slots__ = ("segment", "span")

    def __init__(self, span: Span, segment: Segment | None = None) -> None:
        self.span = span
        self.segment = segment  # in the process that owns it

    def load(self, refresh_classes: bool = False) -> Any:
        """Return a new object, the caller's own; OSError where the memory is gone."""
        head, *buffers = self.span.read()
        return loads(head, buffers, refresh_classes)

    def fetch(self) -> Fetched:
        """Copy the bytes out, so that the memory can be used again."""
        return Fetched(*self.span.read())

    @property
    def nbytes(self) -> int:
        """How many bytes are copied."""
        return sum(self.span.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self.span,)


class Fetched(Packed):
    """What was copied out of shared memory: it is loaded once, and without another copy."""

    __slots__ = ()

    def load(self, refresh_classes: bool = False) -> Any:
        """Return the object."""
        return loads(self.head, self.buffers, refresh_classes)


class Space:
    """Where a task may put what it returns: behind its elements, in the segment lent to its job."""

    __slots__ = ("address", "failure", "offset")

    def __init__(self, address: Address, offset: int) -> None:
        self.address = address
        self.offset = offset
        self.failure: str | None = None  # why the segment could not be used

    def pack(self, value: object) -> Packed | Shared:
        """Pickle `value` into the segment where it is large."""
        parts = pickled(value)
        if sum(map(len, parts)) >= SHARED_BYTES:
            try:
                return Shared(write(self.address, self.offset, parts))
            except WrittenError:
                pass  # nobody waits for these
            except OSError as error:
                self.failure = str(error)
        return Packed.copy_of(*parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self.address, self.offset)


Payload = Packed | Plain | Several | Shared
