"""Broadcasts: objects that are dear to pickle and to load, which each worker process loads once."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from parcoll.errors import SerializationError
from parcoll.text import describe, line_of, short_repr
from parcoll.wire.codec import by_value, loads

T = TypeVar("T")

KEPT = 4  # broadcast objects that a process keeps loaded, the latest


class Broadcast(Generic[T]):
    """An object that `broadcast` has packed for the workers.

    Attributes:
        value: The object. In the script it is the very object that was given; on a worker it is a copy, which
            all functions there share.
    """

    __slots__ = ("_digest", "_packed", "value")

    value: T

    def __init__(self, value: T, packed: bytes | None, digest: str) -> None:
        self.value = value
        self._packed = packed  # None on a worker, which packs it again if it sends it on
        self._digest = digest

    if not TYPE_CHECKING:  # so that type checkers refuse them, too

        def __getattr__(self, name: str) -> Any:
            """Say where the object is."""
            instead = "" if name.startswith("_") else f": the object is its value, so write .value.{name}"
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{instead}", name=name, obj=self
            )

        def __getitem__(self, key: Any) -> Any:
            raise TypeError(f"{self!r} holds the object as its value: write .value[{short_repr(key)}]")

        def __contains__(self, item: Any) -> bool:
            raise TypeError(f"{self!r} holds the object as its value: look for {short_repr(item)} in .value")

        __iter__ = None

    @property
    def nbytes(self) -> int:
        """How many bytes it takes packed; 0 on a worker."""
        return len(self._packed or b"")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if self._packed is None:
            self._packed = _pack(self.value)
        buffer = pickle.PickleBuffer(self._packed) if protocol >= 5 else self._packed
        return _arrived, (self._digest, buffer)

    def __repr__(self) -> str:
        return f"<Broadcast of a {type(self.value).__name__}>"


def broadcast(value: T) -> Broadcast[T]:
    """Pack an object for the workers now, once for all evaluations that use it.

    What functions capture is packed at each evaluation, and loaded there by each worker. For arrays that is
    fast. For an object of many parts, such as a dictionary of a million entries, it takes seconds. Broadcast,
    it is packed here and now, and each worker process loads it once.

    Args:
        value: Any object that can be pickled.

    Returns:
        A `Broadcast`. Functions that refer to it find the object as its `value`.

    When it runs: it is packed before this returns. A worker loads it when it gets the first program that
    refers to it.

    What changes: nothing that is changed in `value` later is seen on the workers. Functions must not change
    it there either: what they change stays in one worker process, also for later evaluations.

    Memory: its pickle here, in shared memory once for all workers of a local cluster, and the loaded object
    in each worker process, which keeps the last four.

    Raises:
        SerializationError: It cannot be pickled.

    Example:
        >>> from parcoll import broadcast, parallel
        >>> names = broadcast({n: f"name {n}" for n in range(1000)})
        >>> list(parallel([3, 5]).map(lambda n: names.value[n]))
        ['name 3', 'name 5']
    """
    packed = _pack(value)
    return Broadcast(value, packed, hashlib.blake2b(packed, digest_size=16).hexdigest())


def _pack(value: object) -> bytes:
    try:
        return by_value(value, None)
    except Exception as error:
        raise SerializationError(
            f"{describe(value)} cannot be broadcast: it cannot be pickled ({line_of(error)})"
        ) from error


def too_large(what: str, elements: int, nbytes: int, most: float, how: str = "") -> SerializationError:
    """Return the error for a table of another chain that would take too much of each worker."""
    return SerializationError(
        f"join() sends its other side, {what}, whole to each worker: {elements:,} elements of it take {how}"
        f"{nbytes / 2**20:,.1f} MiB, and a quarter of what a worker may hold is {most / 2**20:,.1f} MiB: "
        "make it smaller (map() to what is needed, filter() before), join the larger collection with the "
        "smaller one, or raise memory_limit"
    )


_loaded: OrderedDict[str, Broadcast[Any]] = OrderedDict()  # by digest; used last at the end
_lock = threading.RLock()  # reentrant: what is loaded may hold another broadcast


def _arrived(digest: str, packed: Any) -> Broadcast[Any]:
    """Return the object that was broadcast; it is loaded if this process does not have it."""
    with _lock:
        if digest not in _loaded:
            _loaded[digest] = Broadcast(loads(bytes(packed), []), None, digest)
        _loaded.move_to_end(digest)
        found = _loaded[digest]
        while len(_loaded) > KEPT:
            _loaded.popitem(last=False)
    return found


def forget() -> None:
    """Let go of all that is loaded here."""
    _loaded.clear()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
