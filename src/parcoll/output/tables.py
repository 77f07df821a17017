"""Tables: rows as columns, made on the workers and put together here; those of pandas."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any, NamedTuple

from parcoll.chain import apart
from parcoll.clock import time
from parcoll.mistakes import no_mapping
from parcoll.output.encoding import MisfitError
from parcoll.text import describe

NONE = type(None)
# For types of values: the types of columns that have room for any, what fills gaps, and codes of `array`.
# Whole numbers may need other columns.
_PLAIN: dict[type, tuple[str, Any, str]] = {
    bool: ("bool_", False, ""),
    int: ("int64", 0, "q"),
    float: ("float64", 0.0, "d"),
    str: ("string", "", ""),
    bytes: ("binary", b"", ""),
}


def package(name: str, what: str) -> Any:
    """Import a package that `what` needs, or say that it is not there."""
    if name in sys.modules and sys.modules[name] is not None:
        return sys.modules[name]
    started = time.perf_counter()
    try:
        found = importlib.import_module(name)
        if name == "pyarrow":
            importlib.import_module("pyarrow.compute")
        return found
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{what} needs {name}, which cannot be imported ({error}): install it here and where the workers "
            "run",
            name=name,
        ) from error
    finally:
        apart.spend(time.perf_counter() - started)  # it is no element's time: partitions would get one each


class TableEncoder:
    """Keeps the elements of a partition, and makes a table of them at its end."""

    def __init__(self, tables: Tables) -> None:
        self.taken = 0
        self.element: Any = None
        self._tables = tables
        self._rows: list[Any] = []

    def take(self, elements: Iterator[Any]) -> None:
        """Keep the elements."""
        self._rows += elements
        self.taken = len(self._rows)

    def parts(self) -> list[Any]:
        """Return the table."""
        if not self._rows:
            return []
        try:
            return [self._tables.part(self._rows)]
        except MisfitError as error:
            error.row = self._rows[error.position]
            raise


class Tables:
    """Makes a table of the rows of a partition, on a worker, and says how such tables become one."""

    def __init__(self, what: str) -> None:
        self.what = what  # the method, as a user knows it

    def encoder(self, default: Any, name: Callable[[], str]) -> TableEncoder:
        """Return what makes the table of a partition."""
        return TableEncoder(self)

    def made(self, rows: Sequence[Any]) -> Any:
        """Return the table of some rows; `MisfitError` for one that is no row of it."""
        raise NotImplementedError

    def part(self, rows: Sequence[Any]) -> Any:
        """Return what goes back of some rows."""
        return self.made(rows)

    def mappings(self, rows: Sequence[Any]) -> None:
        """Refuse what is no mapping."""
        if set(map(type, rows)) <= {dict}:
            return
        for position, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise MisfitError(
                    f"{self.what} needs mappings, as dicts, got {describe(row)}{no_mapping(row)}", position
                )


def columns_of(rows: Sequence[Mapping[Any, Any]]) -> dict[Any, list[Any]]:
    """Return the values by the names of their columns, in the order in which these come up."""
    if set(map(type, rows)) == {dict}:  # with the same names each: in a third of the time
        names = list(rows[0])
        if sum(map(len, rows)) == len(names) * len(rows):
            with contextlib.suppress(KeyError):
                return {name: list(map(itemgetter(name), rows)) for name in names}
    found: dict[Any, None] = {}
    for row in rows:
        if not row.keys() <= found.keys():
            found |= dict.fromkeys(row)
    return {name: [row.get(name) for row in rows] for name in found}


def plain_column(pyarrow: Any, found: set[type], values: Sequence[Any]) -> Any:
    """Return the column of values of one of a few types, or of lists of them; None if others may suit them.

    `found` are their types. The column is the one that `pyarrow.array` returns. But that imports pandas: in
    0.2 s, and with many objects that each full garbage collection then looks at.
    """
    if found <= {NONE}:
        return pyarrow.nulls(len(values))
    try:
        if found <= {list, NONE}:
            inner = list(chain.from_iterable(filter(None, values)))
            column = plain_column(pyarrow, set(map(type, inner)), inner)
            return None if column is None else lists_of(pyarrow, column, values)
        (kind,) = found - {NONE}
        if kind not in _PLAIN:
            return None
        name, filler, _ = _PLAIN[kind]
        bits = None
        if NONE in found:
            bits = _bits(pyarrow, [value is not None for value in values])
            values = [filler if value is None else value for value in values]
        buffers = [bits, *_content(pyarrow, kind, values)]
    except (ValueError, OverflowError):  # several types; or too large, or text that no utf-8 has
        return None
    return pyarrow.Array.from_buffers(getattr(pyarrow, name)(), len(values), buffers)


def _content(pyarrow: Any, kind: type, values: Sequence[Any]) -> list[Any]:
    """Return the buffers of a column, but for the one that says where values are missing."""
    code = _PLAIN[kind][2]
    if code:
        return [pyarrow.py_buffer(array(code, values))]
    if kind is bool:
        return [_bits(pyarrow, values)]
    if kind is bytes:
        content = b"".join(values)
    else:
        text = "".join(values)
        content = text.encode()
        if len(content) > len(text):
            values = [value.encode() for value in values]
    return [_ends(pyarrow, map(len, values)), pyarrow.py_buffer(content)]


def _ends(pyarrow: Any, sizes: Iterable[int]) -> Any:
    return pyarrow.py_buffer(array("i", accumulate(sizes, initial=0)))


def _bits(pyarrow: Any, values: Sequence[bool]) -> Any:
    flags = pyarrow.Array.from_buffers(pyarrow.uint8(), len(values), [None, pyarrow.py_buffer(bytes(values))])
    return flags.cast(pyarrow.bool_()).buffers()[1]


def lists_of(pyarrow: Any, inner: Any, values: Sequence[Any]) -> Any:
    """Return the column of lists whose elements are in another one."""
    bits = None
    if any(value is None for value in values):
        bits = _bits(pyarrow, [value is not None for value in values])
    ends = _ends(pyarrow, (0 if value is None else len(value) for value in values))
    kind = pyarrow.list_(inner.type)
    return pyarrow.Array.from_buffers(kind, len(values), [bits, ends], children=[inner])


def made_by_pyarrow(pyarrow: Any, values: Sequence[Any], kind: Any = None) -> Any:
    """Return a column of values, which tell its type if it is not given."""
    if "pandas" not in sys.modules:
        started = time.perf_counter()
        pyarrow.array([1])  # which looks for pandas
        apart.spend(time.perf_counter() - started)  # as in `package`
    return pyarrow.array(values, type=kind)


class FramePart(NamedTuple):
    """A frame, and what its columns were made of, where they do not tell: by the number of the column.

    pandas makes floats of whole numbers among which some are missing, and Timestamps of times. In a column
    whose other rows have texts, say, they would have stayed what they were.
    """

    frame: Any
    given: Mapping[int, Any]  # the type that each value had, or the values

    def values(self, number: int) -> list[Any]:
        """Return what a column was made of."""
        given = self.given.get(number)
        if isinstance(given, list):
            return given
        values: list[Any] = self.frame.iloc[:, number].tolist()
        if given is datetime:
            return [value.to_pydatetime() for value in values]
        return values if given is None else [given(value) for value in values]


class Frames(Tables):
    """`pandas.DataFrame`s."""

    def made(self, rows: Sequence[Any]) -> Any:
        """Return a frame of mappings."""
        self.mappings(rows)
        return package("pandas", self.what).DataFrame(list(rows))

    def part(self, rows: Sequence[Any]) -> FramePart:
        """Return a frame with what its columns were made of."""
        frame = self.made(rows)
        given: dict[int, Any] = {}
        for number, name in enumerate(dict.fromkeys(chain.from_iterable(rows))):
            column = frame.iloc[:, number]
            if column.dtype == object:  # of the values themselves
                continue
            values = [row.get(name, math.nan) for row in rows]
            kind, *others = set(map(type, values))
            number_of_numpy = kind.__module__ == "numpy" and column.dtype.kind in "biufc"
            if not others and (kind is datetime or number_of_numpy):  # these are made again
                given[number] = kind
            elif others or kind is not type(column.tolist()[0]):
                given[number] = values
        return FramePart(frame, given)

    def joined(self, parts: Sequence[FramePart]) -> Any:
        """Return one frame: the one that pandas makes of all rows at once."""
        pandas = package("pandas", self.what)
        frames = [part.frame for part in parts]
        if not frames:
            return pandas.DataFrame([])
        those = [list(map(_name, frame.columns)) for frame in frames]
        names = list(dict.fromkeys(chain.from_iterable(those)))
        columns = {number: self._column(pandas, parts, those, name) for number, name in enumerate(names)}
        rows = sum(len(frame) for frame in frames)
        found = pandas.DataFrame(columns, index=pandas.RangeIndex(rows))
        found.columns = pandas.DataFrame([dict.fromkeys(names)]).columns
        return found

    @staticmethod
    def _column(pandas: Any, parts: Sequence[FramePart], those: Sequence[list[Any]], name: Any) -> Any:
        places = [names.index(name) if name in names else None for names in those]
        columns = [
            None if place is None else part.frame.iloc[:, place]
            for part, place in zip(parts, places, strict=True)
        ]
        kinds = {None if column is None else column.dtype for column in columns}
        if len(kinds) == 1:
            return pandas.concat(columns, ignore_index=True)
        # A column that is whole in one partition and lacks values in another has two types; which one it has
        # in all, pandas finds out from the values.
        values: list[Any] = []
        for part, place in zip(parts, places, strict=True):
            if place is None:
                values += [{}] * len(part.frame)
            else:
                values += ({"": value} for value in part.values(place))
        return pandas.DataFrame(values, columns=[""])[""]


def _name(name: Any) -> Any:
    """Return the name of a column. For None, pandas may have one that is equal to none, itself neither."""
    return None if isinstance(name, float) and name != name else name
