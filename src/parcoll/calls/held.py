"""Held: the value of a fold as the object that it is, from one task of a worker process to the next.

A function may write into the object, so it is used once. Whoever wants the value after that gets what was
packed before; if nothing was, the value is as good as lost, and dask makes it again.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed, Payload

LARGE_BYTES = 64 * 1024  # packed; a smaller value is unpacked in less time than a task takes
# Objects take some ten times the memory of their packed forms, so those of packed values are few.
BESIDE_BYTES = 128 * 2**20


class Home(Protocol):
    """Where a worker keeps a value."""

    @property
    def key(self) -> str:
        """The key of the value."""

    @property
    def address(self) -> str:
        """The address of the worker."""

    def drop(self, in_use: bool = False) -> None:
        """Forget the value there, as if it were lost; while a task uses it, only if `in_use`."""


class UsedError(Exception):
    """A value is wanted whose object was used, and which was never packed."""

    def __init__(self, key: str, home: Home | None = None) -> None:
        super().__init__(f"the value of {key} was used, and has to be made again")
        self.key = key
        self.home = home  # None where only the word of it has come


class UnsentError(Exception):
    """A value was to travel, and cannot be packed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Held(Packed):
    """A list of one value, of which the process that made it has the object too.

    It is packed already, or by `pack` if it travels all the same.
    """

    __slots__ = ("__weakref__", "_home", "_lock", "_pack", "_size", "_value")

    def __init__(
        self,
        value: list[Any],
        packed: Packed | None = None,
        *,
        pack: Callable[[Any], Payload | Failure] | None = None,
        home: Home | None = None,
    ) -> None:
        super().__init__(b"")
        self._value: list[Any] | None = value  # None when it was used
        self._pack = pack
        self._home = home
        self._lock = threading.Lock()  # dask may have it packed while a task begins that uses it
        self._size = _size_of(value[0])
        if packed is not None:
            self.head, self.buffers = packed.head, packed.buffers

    def load(self, refresh_classes: bool = False) -> Any:
        """Return the object itself; later a copy of what it was before its use, or UsedError."""
        with self._lock:
            value, self._value = self._value, None
        return value if value is not None else self.packed().load(refresh_classes)

    def packed(self) -> Packed:
        """Return the packed form alone; UsedError if there is none, UnsentError if there cannot be one."""
        with self._lock:
            if not self.head and self._value is not None and self._pack is not None:
                packed = self._pack(self._value)
                if not isinstance(packed, Packed):
                    raise UnsentError(packed)  # type: ignore[arg-type]
                self.head, self.buffers = packed.head, packed.buffers
        if not self.head:
            raise UsedError(self._home.key if self._home is not None else "?", self._home)
        return Packed(self.head, *self.buffers)

    @property
    def object_bytes(self) -> int:
        """How many bytes the object takes, about; 0 after its use."""
        return self._size if self._value is not None else 0

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        try:
            return self.packed().__reduce_ex__(protocol)
        except UnsentError as error:
            return Lacking, (None, error.failure)
        except UsedError as error:
            if error.home is not None:
                error.home.drop()
            return Lacking, (error.key,)


class Lacking(Packed):
    """What travels of a value that was used, or that cannot be packed, with the interface of `Packed`."""

    __slots__ = ("failure", "key")

    def __init__(self, key: str | None, failure: Failure | None = None) -> None:
        super().__init__(b"")
        self.key = key
        self.failure = failure

    def load(self, refresh_classes: bool = False) -> Any:
        """Raise UnsentError or UsedError."""
        if self.failure is not None:
            raise UnsentError(self.failure)
        raise UsedError(self.key or "?")

    packed = load

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Lacking, (self.key, self.failure)


_beside: weakref.WeakSet[Held] = weakref.WeakSet()  # packed values whose objects this process has too
_beside_lock = threading.Lock()


def beside(value: list[Any], packed: Payload) -> Payload:
    """Return the packed value, with its object beside it where that saves time and there is room.

    Buffers are copied faster than that would pay.
    """
    if type(packed) is not Packed or packed.buffers or packed.nbytes < LARGE_BYTES or not is_own(value):
        return packed
    held = Held(value, packed)
    with _beside_lock:
        if sum(other.object_bytes for other in (*_beside, held)) > BESIDE_BYTES:
            return packed
        _beside.add(held)
    return held


def _size_of(value: Any) -> int:
    """Return what dask would find, which every worker has loaded; 0 elsewhere."""
    measure = sys.modules.get("dask.sizeof")
    try:
        return 0 if measure is None else int(measure.sizeof(value))
    except Exception:  # a measure of the user's own may fail
        return 0


def is_own(value: list[Any]) -> bool:
    """Tell whether the list alone refers to the value in it.

    A function may return an object that it captures, or an element. Whoever writes into it then would change
    what others see.
    """
    return _references(value) <= _ALONE


def _references(value: list[Any]) -> int:
    return sys.getrefcount(value[0])


_ALONE = _references([object()])
