"""Kinds: types of pyarrow. Which has room for which values, and what would be lost in one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain
from operator import is_
from typing import Any

from parcoll.text import short_repr

NONE = type(None)


def inferred(pyarrow: Any, values: Sequence[Any]) -> Any:
    """Return a column of these values, of the type that has room for all; an exception if there is none."""
    found = dict.fromkeys(map(type, values))
    kinds = [kind for kind in found if kind is not NONE]
    if len(kinds) > 1:
        # pyarrow takes dates with times for dates, if a date comes first. The types of each kind of value
        # are those that tables of other rows have.
        alone = [pyarrow.array([value for value in values if type(value) is kind]).type for kind in kinds]
        kind = _room(pyarrow, alone)
        column = _one(pyarrow, _of_kind(pyarrow, values, kind))
    else:
        column = _one(pyarrow, pyarrow.array(values))
    bad = lost(pyarrow, values, column, set(kinds))
    if bad is not None:
        raise TypeError(f"{short_repr(values[bad])} would become {short_repr(column[bad].as_py())}")
    if _has_times(pyarrow, column.type) and len({time.tzinfo is None for time in _times(values)}) > 1:
        # pyarrow takes them for UTC, but in tables of other rows the two are of different types.
        raise TypeError("there are times with a zone, and without one")
    return column


def _of_kind(pyarrow: Any, values: Sequence[Any], kind: Any) -> Any:
    try:
        return pyarrow.array(values, type=kind)
    except Exception:
        plain = [value.item() if type(value).__module__ == "numpy" else value for value in values]
        if all(map(is_, plain, values)):
            raise
        return pyarrow.array(plain, type=kind)


def _has_times(pyarrow: Any, kind: Any) -> bool:
    if nests(pyarrow, kind):
        return any(_has_times(pyarrow, kind.field(i).type) for i in range(kind.num_fields))
    return bool(pyarrow.types.is_timestamp(kind))


def _times(values: Iterable[Any]) -> Iterator[datetime]:
    for value in values:
        if isinstance(value, datetime):
            yield value
        elif isinstance(value, Mapping):
            yield from _times(value.values())
        elif isinstance(value, list | tuple):
            yield from _times(value)


def in_zone(pyarrow: Any, kind: Any, first: Any) -> Any:
    """Return the type, where both have times with a zone in that of the other: what counts is the moment."""
    if pyarrow.types.is_timestamp(kind) and pyarrow.types.is_timestamp(first):
        return pyarrow.timestamp(kind.unit, first.tz) if kind.tz and first.tz else kind
    if pyarrow.types.is_struct(kind) and pyarrow.types.is_struct(first):
        known = {field.name: field.type for field in first}
        return pyarrow.struct(
            [
                field.with_type(in_zone(pyarrow, field.type, known.get(field.name, field.type)))
                for field in kind
            ]
        )
    if pyarrow.types.is_list(kind) and pyarrow.types.is_list(first):
        inner = kind.value_field
        return pyarrow.list_(inner.with_type(in_zone(pyarrow, inner.type, first.value_type)))
    return kind


def _one(pyarrow: Any, column: Any) -> Any:
    if isinstance(column, pyarrow.ChunkedArray):
        raise ValueError("there are more than 2 GiB of it in one partition: give parallel() a partition_size")
    return column


def _room(pyarrow: Any, kinds: Sequence[Any]) -> Any:
    schemas = [pyarrow.schema([("", kind)]) for kind in kinds]
    found = pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    for kind in kinds:
        if not widens(pyarrow, kind, found):
            raise TypeError(f"there are values that are {kind} and {found}")
    return found


def widens(pyarrow: Any, kind: Any, wide: Any) -> bool:
    """Tell whether a value of the one type is one of the other, as far as types tell."""
    kinds = pyarrow.types
    if kind.equals(wide) or kinds.is_null(kind):
        return True
    if kinds.is_integer(kind):
        return bool(kinds.is_integer(wide) or kinds.is_floating(wide) or kinds.is_decimal(wide))
    return _same_family(pyarrow, kind, wide, widens)


def alike(pyarrow: Any, kind: Any, other: Any) -> bool:
    """Tell whether values of the one type may be values of the other: a cast tells which are."""
    kinds = pyarrow.types
    if kinds.is_integer(other) and (kinds.is_floating(kind) or kinds.is_decimal(kind)):
        return True
    return widens(pyarrow, kind, other) or _same_family(pyarrow, kind, other, alike)


def _same_family(pyarrow: Any, kind: Any, other: Any, nested: Callable[[Any, Any, Any], bool]) -> bool:
    kinds = pyarrow.types
    if kinds.is_struct(kind) and kinds.is_struct(other):
        fields = {field.name: field.type for field in other}
        return all(field.name in fields and nested(pyarrow, field.type, fields[field.name]) for field in kind)
    if _is_list(pyarrow, kind) and _is_list(pyarrow, other):
        return nested(pyarrow, kind.value_type, other.value_type)
    if kinds.is_timestamp(kind) and kinds.is_timestamp(other):
        return bool((kind.tz is None) == (other.tz is None))
    families = (
        *(kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_duration, kinds.is_time),
        lambda kind: kinds.is_string(kind) or kinds.is_large_string(kind),
        lambda kind: kinds.is_binary(kind) or kinds.is_large_binary(kind),
    )
    return any(is_one(kind) and is_one(other) for is_one in families)


def _is_list(pyarrow: Any, kind: Any) -> bool:
    return bool(pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind))


def nests(pyarrow: Any, kind: Any) -> bool:
    """Tell whether values of a type hold others."""
    return bool(pyarrow.types.is_nested(kind))


def lost(pyarrow: Any, values: Sequence[Any], column: Any, found: set[type] | None = None) -> int | None:
    """Return the first value that is another one in the column; None if all are what they were.

    `found` are the types of the values, but for None, if they are known.
    """
    if _surely(pyarrow, values, column.type, found):
        return None
    back = column.to_pylist()
    return next((i for i, value in enumerate(values) if not _kept(value, back[i])), None)


def _surely(pyarrow: Any, values: Sequence[Any], kind: Any, found: set[type] | None = None) -> bool:
    """Tell from the types of values that nothing of them is lost. It takes a tenth of comparing them."""
    kinds = pyarrow.types
    if found is None:
        found = set(map(type, values)) - {NONE}
    if kinds.is_floating(kind) or kinds.is_null(kind) or not found:
        return True  # as near as the type comes; pyarrow refuses what is no number
    if _is_list(pyarrow, kind):
        if not found <= {list, tuple}:
            return False
        inner: Any = chain.from_iterable(filter(None, values))
        if not nests(pyarrow, kind.value_type):  # no list is made of them: only their types count
            return _surely(pyarrow, (), kind.value_type, set(map(type, inner)) - {NONE})
        return _surely(pyarrow, [*inner], kind.value_type)
    if kinds.is_struct(kind):
        if found != {dict}:
            return False
        rows = [value for value in values if value is not None]
        names = {field.name for field in kind}
        return all(row.keys() <= names for row in rows) and all(
            _surely(pyarrow, [row.get(field.name) for row in rows], field.type) for field in kind
        )
    exact = (
        *(
            (kinds.is_integer, int),
            (kinds.is_string, str),
            (kinds.is_binary, bytes),
            (kinds.is_boolean, bool),
        ),
        *((kinds.is_date, date), (kinds.is_decimal, Decimal)),
    )
    return any(is_one(kind) and found == {type} for is_one, type in exact)


def _kept(value: Any, back: Any) -> bool:
    if value is back or value is None:
        return value is back
    if isinstance(value, Mapping):
        if isinstance(back, list):  # of pairs: a map
            return len(back) == len(value) and all(_kept(value.get(name), inner) for name, inner in back)
        return isinstance(back, Mapping) and all(
            name in back and _kept(inner, back[name]) for name, inner in value.items()
        )
    if isinstance(value, list | tuple) and isinstance(back, list | tuple):
        return len(value) == len(back) and all(map(_kept, value, back))
    if isinstance(value, float) and isinstance(back, float):
        return True
    if isinstance(value, str) != isinstance(back, str) or isinstance(value, bytes) != isinstance(back, bytes):
        return False
    if isinstance(value, datetime):
        if not isinstance(back, datetime):
            return False
        if (value.tzinfo is None) != (back.tzinfo is None):  # pyarrow takes what has no zone for UTC
            value, back = (each if each.tzinfo else each.replace(tzinfo=UTC) for each in (value, back))
    try:
        return bool(value == back)
    except Exception:  # of a kind of its own, an array say
        return True


def first_bad(values: Sequence[Any], made: Callable[[list[Any]], Any], error: Any) -> tuple[int, Any]:
    """Return the first of the values with which those up to it cannot be `made` into a column, and why."""
    good, bad = 0, len(values)  # so many can, so many cannot
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            made(list(values[:middle]))
        except Exception as found:
            bad, error = middle, found
        else:
            good = middle
    return max(bad - 1, 0), error


def sizes_of(pyarrow: Any, batch: Any) -> bytes:
    """Return the size of each row, as an `array("Q")`. It does not depend on the rows beside it."""
    compute = importlib.import_module("pyarrow.compute")
    total = _zeros(pyarrow, batch.num_rows)
    for column in batch.columns:
        total = compute.add(total, _sizes(pyarrow, compute, column))
    if not batch.num_rows:
        return b""
    return memoryview(total.buffers()[1]).cast("B")[8 * total.offset :][: 8 * len(total)].tobytes()


def _zeros(pyarrow: Any, count: int) -> Any:
    return pyarrow.Array.from_buffers(pyarrow.int64(), count, [None, pyarrow.py_buffer(bytes(8 * count))])


def _sizes(pyarrow: Any, compute: Any, column: Any) -> Any:
    """Return the size of each value of a column: of its texts and bytes, and 8 for any other."""
    kinds, kind, int64 = pyarrow.types, column.type, pyarrow.int64()
    if kinds.is_null(kind):
        return _zeros(pyarrow, len(column))
    if any(is_one(kind) for is_one in (kinds.is_string, kinds.is_binary, kinds.is_large_string)):
        return compute.fill_null(compute.binary_length(column), 0).cast(int64)
    if kinds.is_struct(kind):
        total = _zeros(pyarrow, len(column))
        for inner in column.flatten():
            total = compute.add(total, _sizes(pyarrow, compute, inner))
        return total
    if _is_list(pyarrow, kind):
        inner = _sizes(pyarrow, compute, column.values)
        ends = pyarrow.concat_arrays([_zeros(pyarrow, 1), compute.cumulative_sum(inner).cast(int64)])
        at = ends.take(column.offsets)
        found = compute.subtract(at.slice(1), at.slice(0, len(at) - 1))
        return compute.if_else(column.is_valid(), found, 0)
    return compute.multiply(column.is_valid().cast(int64), 8)
