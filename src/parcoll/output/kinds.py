"""Kinds: types of pyarrow. Which has room for which values, and what would be lost in one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import reduce
from itertools import chain
from typing import Any

from parcoll.output.tables import NONE, lists_of, made_by_pyarrow, plain_column
from parcoll.text import describe, short_repr

TOO_MUCH = "there are more than 2 GiB of it in one partition: give parallel() a partition_size"
_UNITS = frozenset(["datetime64", "timedelta64"])


def inferred(pyarrow: Any, values: Sequence[Any]) -> Any:
    """Return a column of these values, of the type that has room for all; an exception if there is none.

    It is the `room` for the types that each would have alone: so tables of other rows come to the same.
    """
    found = set(map(type, values))
    if (plain := plain_column(pyarrow, found, values)) is not None:
        return plain
    found.discard(NONE)
    groups = _groups(values, found)
    if len(groups) < 2:
        if list in groups:
            inner = inferred(pyarrow, list(chain.from_iterable(filter(None, values))))
            return lists_of(pyarrow, inner, values)
        return _structs(pyarrow, values) if dict in groups else _alone(pyarrow, values, found)
    columns = [inferred(pyarrow, [values[i] for i in positions]) for positions in groups.values()]
    kind = rooms(pyarrow, [column.type for column in columns])
    places: list[int | None] = [None] * len(values)
    for place, position in enumerate(chain.from_iterable(groups.values())):
        places[position] = place
    every = pyarrow.concat_arrays([as_kind(pyarrow, column, kind) for column in columns])
    return _one(pyarrow, every.take(plain_column(pyarrow, set(map(type, places)), places)))


def _groups(values: Sequence[Any], found: set[type]) -> dict[Any, list[int]]:
    """Return which values are made into a column together, by what they have in common."""
    groups: dict[Any, list[int]] = {}
    if len(found) == 1 and not any(map(_has_unit, found)):
        return {_group(*found): []}
    for position, value in enumerate(values):
        if value is not None:
            kind = type(value)
            groups.setdefault(str(value.dtype) if _has_unit(kind) else _group(kind), []).append(position)
    return groups


def _group(kind: type) -> type:
    if issubclass(kind, tuple):
        return list
    return next((family for family in (dict, list) if issubclass(kind, family)), kind)


def _has_unit(kind: type) -> bool:
    return kind.__module__ == "numpy" and kind.__name__ in _UNITS


def _alone(pyarrow: Any, values: Sequence[Any], found: set[type]) -> Any:
    column = _one(pyarrow, made_by_pyarrow(pyarrow, values))
    bad = lost(pyarrow, values, column, found)
    if bad is not None and (finer := _finer(pyarrow, column.type)) is not None:
        column = _one(pyarrow, made_by_pyarrow(pyarrow, values, finer))
        bad = lost(pyarrow, values, column, found)
    if bad is not None:
        raise TypeError(f"{short_repr(values[bad])} would become {short_repr(column[bad].as_py())}")
    if _has_times(pyarrow, column.type) and len({time.tzinfo is None for time in _times(values)}) > 1:
        # pyarrow takes them for UTC, but in tables of other rows the two are of different types.
        raise TypeError("there are times with a zone, and without one")
    return column


def _finer(pyarrow: Any, kind: Any) -> Any:
    """Return the type of times with nanoseconds, which pandas' have, and pyarrow takes for microseconds."""
    if pyarrow.types.is_timestamp(kind):
        return pyarrow.timestamp("ns", kind.tz)
    return pyarrow.duration("ns") if pyarrow.types.is_duration(kind) else None


def _structs(pyarrow: Any, values: Sequence[Any]) -> Any:
    names = list(dict.fromkeys(chain.from_iterable(filter(None, values))))
    if not names:
        return made_by_pyarrow(pyarrow, values, pyarrow.struct([]))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the names of fields are str, got {describe(name)}")
    columns = [
        inferred(pyarrow, [None if value is None else value.get(name) for value in values]) for name in names
    ]
    missing = [value is None for value in values]
    mask = plain_column(pyarrow, {bool}, missing) if any(missing) else None
    return pyarrow.StructArray.from_arrays(columns, names=names, mask=mask)


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


def rooms(pyarrow: Any, kinds: Iterable[Any]) -> Any:
    """Return the type with room for the values of all; TypeError if there is none."""
    return reduce(lambda first, other: _room(pyarrow, first, other), kinds)


def _room(pyarrow: Any, first: Any, other: Any) -> Any:
    kinds = pyarrow.types
    if first.equals(other) or kinds.is_null(other):
        return first
    if kinds.is_null(first):
        return other
    if kinds.is_struct(first) and kinds.is_struct(other):
        fields = {field.name: field.type for field in first}
        for field in other:
            fields[field.name] = _room(pyarrow, fields.get(field.name, pyarrow.null()), field.type)
        return pyarrow.struct(list(fields.items()))
    if _is_list(pyarrow, first) and _is_list(pyarrow, other):
        large = kinds.is_large_list(first) or kinds.is_large_list(other)
        inner = _room(pyarrow, first.value_type, other.value_type)
        return pyarrow.large_list(inner) if large else pyarrow.list_(inner)
    if kinds.is_timestamp(first) and kinds.is_timestamp(other) and first.tz and other.tz:
        other = pyarrow.timestamp(other.unit, first.tz)  # what counts is the moment
    if kinds.is_decimal(first) or kinds.is_decimal(other):  # else one for both would have no room for 200
        first, other = (_decimal(pyarrow, kind) for kind in (first, other))
    schemas = [pyarrow.schema([("", kind)]) for kind in (first, other)]
    try:
        found = pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except Exception:
        found = None
    if found is None or not (widens(pyarrow, first, found) and widens(pyarrow, other, found)):
        raise TypeError(f"there are values that are {first} and {other}")
    return found


def _decimal(pyarrow: Any, kind: Any) -> Any:
    """Return the type of decimals with room for any of these whole numbers; other types as they are."""
    if not pyarrow.types.is_integer(kind):
        return kind
    digits = len(
        str(2**kind.bit_width - 1 if pyarrow.types.is_unsigned_integer(kind) else 2 ** (kind.bit_width - 1))
    )
    return pyarrow.decimal128(digits, 0)


def as_kind(pyarrow: Any, column: Any, kind: Any) -> Any:
    """Return a column with this type; an exception if a value has no place in it, or would be another one."""
    if column.type.equals(kind):
        return column
    try:
        return column.cast(kind)
    except Exception:
        return remade(pyarrow, column.to_pylist(), kind)


def remade(pyarrow: Any, values: Sequence[Any], kind: Any) -> Any:
    """Return a column of this type that is made of the values: pyarrow has no casts for some."""
    made = made_by_pyarrow(pyarrow, values, kind)
    bad = lost(pyarrow, values, made)
    if bad is not None:
        raise ValueError(f"it would become {short_repr(made[bad].as_py())}")
    return made


def _one(pyarrow: Any, column: Any) -> Any:
    if isinstance(column, pyarrow.ChunkedArray):
        raise ValueError(TOO_MUCH)
    return column


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


def of_each(pyarrow: Any, kind: Any) -> bool:
    """Tell whether a column that was inferred has the type that any of its values alone would have.

    A column of decimals has the digits of the longest, and one of numpy's times the finest of their units.
    """
    kinds = pyarrow.types
    exact = (kinds.is_int64, kinds.is_float64, kinds.is_string, kinds.is_binary, kinds.is_boolean)
    return any(is_one(kind) for is_one in (*exact, kinds.is_null, kinds.is_date, kinds.is_time))


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


def _number(pyarrow: Any, number: int) -> Any:
    """Return a scalar. `pyarrow.scalar` imports pandas."""
    return plain_column(pyarrow, {int}, [number])[0]


def _zeros(pyarrow: Any, count: int) -> Any:
    return pyarrow.Array.from_buffers(pyarrow.int64(), count, [None, pyarrow.py_buffer(bytes(8 * count))])


def _sizes(pyarrow: Any, compute: Any, column: Any) -> Any:
    """Return the size of each value of a column: of its texts and bytes, and 8 for any other."""
    kinds, kind, int64 = pyarrow.types, column.type, pyarrow.int64()
    if kinds.is_null(kind):
        return _zeros(pyarrow, len(column))
    if any(is_one(kind) for is_one in (kinds.is_string, kinds.is_binary, kinds.is_large_string)):
        return compute.fill_null(compute.binary_length(column).cast(int64), _number(pyarrow, 0))
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
        return compute.if_else(column.is_valid(), found, _number(pyarrow, 0))
    return compute.multiply(column.is_valid().cast(int64), _number(pyarrow, 8))
