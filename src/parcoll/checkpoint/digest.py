"""Digests: hashes of values, equal in every process, for a source's elements and for what functions hold.

Pickles are not equal in every process. A set is pickled in the order of its hashes, which differ from
process to process; so is a dict made from a set; and equal strings are pickled once if they are one object.
So values are taken apart into what `marshal` writes the same way each time: dicts in the order of their
keys, objects as what they pickle to. A list of 1,000,000 numbers takes 25 ms, one of 100,000 small objects
0.6 s.

Equal values have equal digests. Different values have different digests, except where only a type is
compared: that of what pickle refuses (an open file, a lambda), of a value that refers to itself, and of a
value that has more than `MAX_NODES` parts.
"""

from __future__ import annotations

import copyreg
import hashlib
import marshal
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

SCALARS = frozenset({int, str, float, bytes, bool, type(None)})  # exact types
MARSHAL = 2  # the last version in which neither identity of objects nor interning of strings shows
MAX_DEPTH = 60  # of containers and objects within each other
MAX_NODES = 100_000  # containers and objects in one value
SIZE = 16  # bytes of a digest


def of_elements(elements: Sequence[Any]) -> bytes:
    """Return the digest of some elements in their order."""
    if is_plain_array(elements):
        return of_parts(marshal.dumps(_array(elements), MARSHAL))
    listed = elements if type(elements) is list else list(elements)
    if not _are_scalars(listed) and not _are_rows(listed):
        listed = list(map(_plain, listed))
    return of_parts(b"elements", marshal.dumps(listed, MARSHAL))


def of_value(value: Any) -> bytes:
    """Return the digest of one value."""
    return of_parts(b"value", marshal.dumps(_plain(value), MARSHAL))


def of_parts(*parts: Any) -> bytes:
    """Return the digest of several byte strings; it also depends on where each of them ends."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()[:SIZE]


def is_flat(value: Any) -> bool:
    """Tell whether this is a container of scalars and nothing else."""
    kind = type(value)
    if kind is dict:
        return _are_scalars(value) and _are_scalars(value.values())
    return kind in (list, tuple, set, frozenset) and _are_scalars(value)


def _are_scalars(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= SCALARS


def _are_rows(values: Sequence[Any]) -> bool:
    """Tell whether all are tuples or lists of scalars, which marshal writes as they are."""
    return set(map(type, values)) <= {tuple, list} and _are_scalars(chain.from_iterable(values))


def _plain(value: Any) -> Any:
    """Return a stand-in for a value, made of what marshal writes the same way each time."""
    if type(value) in SCALARS:
        return value
    try:
        return _Taker().apart(value, 0)
    except Exception:  # it has too many parts, or one of them cannot be taken apart
        return ("of type", _name(type(value)))


class _TooMuchError(Exception):
    """A value has too many parts, or contains itself."""


class _Taker:
    """Takes one value apart, and counts its parts."""

    def __init__(self) -> None:
        self._nodes = 0

    def apart(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in SCALARS:
            return value
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise _TooMuchError
        depth += 1
        if kind is tuple or kind is list:
            if _are_scalars(value):
                return value
            return kind([self.apart(part, depth) for part in value])
        if kind is dict:
            if set(map(type, value)) <= {str} and _are_scalars(value.values()):
                return ("dict", sorted(value.items()))
            return ("dict", self._pairs(value.items(), depth))
        if kind is set or kind is frozenset:
            return (kind.__name__, self._sorted(self.apart(part, depth) for part in value))
        if is_plain_array(value):
            return _array(value)
        if isinstance(value, type):
            return ("class", _name(value))
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        try:
            reduced = reduced_to(value)
        except Exception:  # pickle refuses it
            return ("of type", _name(type(value)))
        if isinstance(reduced, str):
            return ("named", _name(type(value)), reduced)
        make, arguments, state, items, pairs = reduced
        return (
            _name(type(value)),
            getattr(make, "__qualname__", ""),
            [self.apart(part, depth) for part in arguments],
            self.apart(state, depth),
            [self.apart(part, depth) for part in items or ()],
            self._pairs(pairs or (), depth),
        )

    def _pairs(self, pairs: Iterable[tuple[Any, Any]], depth: int) -> list[Any]:
        found = [(self.apart(key, depth), self.apart(part, depth)) for key, part in pairs]
        if all(type(key) is str for key, _ in found):
            return sorted(found, key=_key)
        return self._sorted(found)

    def _sorted(self, parts: Iterable[Any]) -> list[Any]:
        """Sort parts by what marshal writes for them: they may have no order of their own."""
        return sorted(parts, key=lambda part: marshal.dumps(part, MARSHAL))


def reduced_to(value: Any) -> str | list[Any]:
    """Return what pickle would rebuild a value from: a name; or callable, arguments, state, items, pairs."""
    special = copyreg.dispatch_table.get(type(value))
    reduced = special(value) if special is not None else value.__reduce_ex__(4)
    return reduced if isinstance(reduced, str) else (list(reduced) + [None] * 3)[:5]


def _key(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def is_plain_array(value: Any) -> bool:
    """Tell whether this is a numpy array of numbers or the like, whose bytes say all."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def _array(array: Any) -> Any:
    content = array.reshape(-1).view("u1") if array.flags.c_contiguous and array.size else array.tobytes()
    return ("array", str(array.dtype), repr(array.shape), hashlib.sha256(content).digest())
