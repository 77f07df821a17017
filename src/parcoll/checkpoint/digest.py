"""Digests: hashes of values, equal in every process, for a source's elements and for what functions hold.

Pickles are not equal in every process. A set is pickled in the order of its hashes, which differ from
process to process; so is a dict made from a set; and equal strings are pickled once if they are one object.
So `Walk` takes values apart into stand-ins, which `marshal` writes the same way each time: dicts in the
order of their keys, objects as what they pickle to. A list of 1,000,000 numbers takes 25 ms, one of 100,000
small objects 0.6 s.

Equal values have equal digests. Different values have different digests, except where only a type is
compared: that of what pickle refuses (an open file, a lambda), of a value that refers to itself, and of a
value that has more than `MAX_NODES` parts.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import marshal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from typing import Any

SCALARS = frozenset({int, str, float, bytes, bool, type(None)})  # exact types
MARSHAL = 2  # the last version in which neither identity of objects nor interning of strings shows
MAX_DEPTH = 60  # of containers and objects within each other
MAX_NODES = 100_000  # containers and objects in one value
SIZE = 16  # bytes of a digest
# Attributes in which objects keep what they have computed of themselves: those of pandas, of attrs, of most.
CACHES = frozenset({"_attrs_cached_hash", "_cache", "_cached_hash", "_hash", "_item_cache"})


def of_elements(elements: Sequence[Any]) -> bytes:
    """Return the digest of some elements in their order."""
    if is_plain_array(elements):
        return of_stand_in(array(elements))
    listed = elements if type(elements) is list else list(elements)
    if not _are_scalars(listed) and not _are_rows(listed):
        listed = list(map(_plain, listed))
    return of_parts(b"elements", marshal.dumps(listed, MARSHAL))


def of_value(value: Any) -> bytes:
    """Return the digest of one value."""
    return of_parts(b"value", marshal.dumps(_plain(value), MARSHAL))


def of_stand_in(value: Any) -> bytes:
    """Return the digest of what a walk has put in a value's place."""
    return of_parts(marshal.dumps(value, MARSHAL))


def of_parts(*parts: Any) -> bytes:
    """Return the digest of several byte strings; it also depends on where each of them ends."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()[:SIZE]


class Walk:
    """Takes values apart, down to what `marshal` writes the same way in each process.

    Scalars stand for themselves, and so do tuples and lists of them. The stand-in of anything else is a tuple
    that begins with `...`; no tuple of the user's looks like that, since a user's `...` has a stand-in too.
    A subclass says what stands for values that are neither scalars nor containers.
    """

    max_nodes = MAX_NODES

    def __init__(self) -> None:
        self._nodes = 0

    def apart(self, value: Any, depth: int = 0) -> Any:
        """Return what stands for a value that is within `depth` others."""
        kind = type(value)
        if kind in SCALARS:
            return value
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > self.max_nodes:
            return self.too_much(value)
        depth += 1
        if kind is tuple or kind is list:
            return value if _are_scalars(value) else kind([self.apart(part, depth) for part in value])
        if kind is dict:
            pairs = value.items()
            return (..., "dict", _sorted_pairs(pairs) if is_flat(value) else self.pairs(pairs, depth))
        if kind is set or kind is frozenset:
            return (..., kind.__name__, self.members(value, depth))
        return self.other(value, depth)

    def other(self, value: Any, depth: int) -> Any:
        """Return what stands for a value that is neither a scalar nor a container."""
        raise NotImplementedError

    def too_much(self, value: Any) -> Any:
        """Return what stands for a value that is too deep within others, or has too many before it."""
        raise NotImplementedError

    def in_order(self, parts: Iterable[Any], key: Callable[[Any], Any] | None = None) -> Iterable[Any]:
        """Return parts in the order in which to take them apart: those of a set, or of a dict by `key`."""
        return parts

    def members(self, values: Iterable[Any], depth: int) -> list[Any]:
        """Return what stands for the members of a set."""
        if not _are_scalars(values):
            values = [self.apart(value, depth) for value in self.in_order(values)]
        return _sorted(values)

    def pairs(self, pairs: Iterable[tuple[Any, Any]], depth: int) -> list[Any]:
        """Return what stands for the keys of a dict and their values."""
        in_order = self.in_order(pairs, key=_first)
        return _sorted_pairs([(self.apart(key, depth), self.apart(value, depth)) for key, value in in_order])

    def reduced(self, value: Any, depth: int) -> Any:
        """Return what stands for an object, by what pickle would rebuild it from."""
        kind = type(value)
        try:
            reduced = _reduced(value)
        except Exception:  # pickle refuses it
            return of_type(kind)
        if isinstance(reduced, str):
            return (..., "named", class_name(kind), reduced)
        make, arguments, state, items, pairs = reduced
        state = lasting(kind, state)
        return (
            ...,
            class_name(kind),
            getattr(make, "__qualname__", ""),
            [self.apart(part, depth) for part in arguments],
            self.apart(state, depth),
            [self.apart(part, depth) for part in items or ()],
            self.pairs(pairs, depth) if pairs is not None else [],
        )


class _DataWalk(Walk):
    """Takes data apart: each object as what it pickles to."""

    def other(self, value: Any, depth: int) -> Any:
        if is_plain_array(value):
            return array(value)
        return (..., "class", class_name(value)) if isinstance(value, type) else self.reduced(value, depth)

    def too_much(self, value: Any) -> Any:
        raise _TooMuchError


class _TooMuchError(Exception):
    """A value has too many parts, or contains itself."""


def _plain(value: Any) -> Any:
    """Return what stands for a value."""
    if type(value) in SCALARS:
        return value
    try:
        return _DataWalk().apart(value)
    except Exception:  # it has too many parts, or one of them cannot be taken apart
        return of_type(type(value))


def of_type(kind: type) -> Any:
    """Return what stands for a value of which only the type is compared."""
    return (..., "of type", class_name(kind))


def array(value: Any) -> Any:
    """Return what stands for a plain array."""
    content = value.reshape(-1).view("u1") if value.flags.c_contiguous and value.size else value.tobytes()
    return (..., "array", str(value.dtype), repr(value.shape), hashlib.sha256(content).digest())


def is_plain_array(value: Any) -> bool:
    """Tell whether this is a numpy array of numbers or the like, whose bytes say all."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def is_flat(value: Any) -> bool:
    """Tell whether this is a container of scalars and nothing else."""
    kind = type(value)
    if kind is dict:
        return _are_scalars(value) and _are_scalars(value.values())
    return kind in (list, tuple, set, frozenset) and _are_scalars(value)


def class_name(kind: type) -> str:
    """Return a class's name with that of its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _are_scalars(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= SCALARS


def _are_rows(values: Sequence[Any]) -> bool:
    """Tell whether all are tuples or lists of scalars, which marshal writes as they are."""
    return set(map(type, values)) <= {tuple, list} and _are_scalars(chain.from_iterable(values))


def _sorted(parts: Iterable[Any]) -> list[Any]:
    """Sort parts by what marshal writes for them: they may have no order of their own."""
    return sorted(parts, key=lambda part: marshal.dumps(part, MARSHAL))


def _sorted_pairs(pairs: Collection[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return sorted(pairs, key=_first) if {type(key) for key, _ in pairs} <= {str} else _sorted(pairs)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def lasting(kind: type, state: Any) -> Any:
    """Return an object's state without what it has computed of itself, and can compute again."""
    if type(state) is tuple:
        parts = [(part, lasting(kind, part)) for part in state]
        # A dict that held nothing else is left out: an object that has computed nothing has none.
        return tuple(left for part, left in parts if left is part or left)
    if type(state) is not dict:
        return state
    computed = {name for name in state if name in CACHES or _is_computed(kind, name)}
    return {name: value for name, value in state.items() if name not in computed} if computed else state


def _is_computed(kind: type, name: object) -> bool:
    found = inspect.getattr_static(kind, name, None) if isinstance(name, str) else None
    return isinstance(found, functools.cached_property)


def _reduced(value: Any) -> str | list[Any]:
    """Return what pickle would rebuild a value from: a name; or callable, arguments, state, items, pairs."""
    special = copyreg.dispatch_table.get(type(value))
    reduced = special(value) if special is not None else value.__reduce_ex__(4)
    return reduced if isinstance(reduced, str) else (list(reduced) + [None] * 3)[:5]
