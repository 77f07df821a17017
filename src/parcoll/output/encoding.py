"""Encoding: elements as the bytes that stand for them in a file, row by row.

A worker makes a `Part` of the rows of a partition. Where its rows end is told beside it, so that files can be
cut at the same rows whatever the partitions were.
"""

from __future__ import annotations

import json
import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from parcoll.mistakes import no_mapping
from parcoll.text import describe, short_repr

SAMPLE = {"a": [1, 2.5, None, True, "\u00e9", {}], "b": float("inf")}  # each kind of value that JSON has
Row = Callable[[Any], bytes]
Where = tuple[tuple[int, str], ...]


class Part:
    """Rows that are encoded, one after the other."""

    __slots__ = ("data", "names", "rows", "sizes", "where")

    def __init__(
        self, data: Any, rows: int, sizes: bytes, names: tuple[Any, ...] = (), where: Where = ()
    ) -> None:
        self.data = data
        self.rows = rows
        self.sizes = sizes  # of the rows, as an `array("Q")`; b"" if nobody will ask
        self.names = names  # of the columns, where the rows tell them
        self.where = where  # for each name: which row had it first, as its number and in words

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        data = pickle.PickleBuffer(self.data) if protocol >= 5 else bytes(self.data)
        return Part, (data, self.rows, self.sizes, self.names, self.where)


class Encoded(NamedTuple):
    """What a worker has made of the elements of a partition: `Part`s, or tables."""

    parts: list[Any]
    seconds: float = 0.0  # that it took behind the last element


class MisfitError(ValueError):
    """A row does not fit into its table; `position` is its number among those of its partition."""

    def __init__(self, message: str, position: int, row: Any = None) -> None:
        super().__init__(message, position)
        self.message = message
        self.position = position
        self.row = row


class Encoder(Protocol):
    """Encodes the elements of one partition."""

    taken: int
    element: Any  # the last one

    def take(self, elements: Iterator[Any]) -> None:
        """Draw the elements, and count them. May be called several times."""

    def parts(self) -> list[Any]:
        """Return what has become of them; `MisfitError` for one of which nothing can."""


class Format(Protocol):
    """What elements are made into. It travels with the program."""

    def encoder(self, default: Any, name: Callable[[], str]) -> Encoder:
        """Return what encodes a partition.

        `default` is a function of the user's, if there is one. `name` gives words for the element that is
        under way.
        """


class RowEncoder:
    """Encodes element by element, with the function `row`."""

    def __init__(self, row: Row, sized: bool) -> None:
        self.taken = 0
        self.element: Any = None
        self._row = row
        self._sized = sized
        self._lines: list[bytes] = []

    def take(self, elements: Iterator[Any]) -> None:
        """Encode the elements."""
        add, row, taken, element = self._lines.append, self._row, self.taken, None
        try:
            for element in elements:
                add(row(element))
                taken += 1
        finally:
            self.taken, self.element = taken, element

    def parts(self) -> list[Part]:
        """Return the rows that were added."""
        lines = self._lines
        return [part_of(lines, self._sized)] if lines else []


def part_of(lines: Sequence[bytes], sized: bool, names: tuple[Any, ...] = (), where: Where = ()) -> Part:
    """Put rows together."""
    sizes = array("Q", map(len, lines)).tobytes() if sized else b""
    return Part(b"".join(lines), len(lines), sizes, names, where)


class RowFormat:
    """A format whose files are rows, one after the other, behind a head."""

    sized = False  # the sizes of rows are told

    def encoder(self, default: Any, name: Callable[[], str]) -> Encoder:
        """Return what encodes a partition."""
        raise NotImplementedError

    def begun(self) -> None:
        """Forget what was learned of the rows: they come once more from the first."""

    def head(self) -> bytes:
        """Return what each file begins with."""
        return b""

    def check(self, part: Any) -> None:
        """Learn from the first rows what all have; ValueError for rows that have no place among them."""

    def fitted(self, part: Part) -> Part:
        """Return the part as it goes into the files."""
        return part

    def settled(self) -> RowFormat:
        """Return it for files that begin with any of the rows."""
        return self


class Text(RowFormat):
    """Texts, each with its end."""

    def __init__(self, end: str, encoding: str) -> None:
        self._end = end
        self._encoding = encoding
        self._mark = "".encode(encoding)  # of the byte order, which a file begins with

    def head(self) -> bytes:
        """Return the mark of the byte order, where the encoding has one."""
        return self._mark

    def encoder(self, default: Any, name: Callable[[], str]) -> Encoder:
        """Encode text by text."""
        end, encoding, behind = self._end, self._encoding, len(self._mark)

        def row(element: Any) -> bytes:
            if not isinstance(element, str):
                raise TypeError(f"write_text() writes str, got {describe(element)}: use map(str) before it")
            return (element + end).encode(encoding)

        return RowEncoder((lambda element: row(element)[behind:]) if behind else row, self.sized)


class Jsonl(RowFormat):
    """A line of JSON for each element, as `json.dumps` makes it."""

    def encoder(self, default: Any, name: Callable[[], str]) -> Encoder:
        """Encode value by value."""
        encode = _encodes(default)
        return RowEncoder(lambda element: (encode(element) + "\n").encode("ascii"), self.sized)


def _encodes(default: Any) -> Callable[[Any], str]:
    """Return what encodes as `json.dumps` does, in two thirds of its time.

    `JSONEncoder.encode` makes an encoder in C for each value. One may serve for all, as long as none fails:
    what has failed would be taken for a circle. It is private, so it has to show that it does the same.
    """
    if default is None and json.JSONEncoder.default.__module__ == "json.encoder":  # not the program's own
        default = _refuse
    slow = json.JSONEncoder(default=default)
    try:
        quick = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            *({}, slow.default, json.encoder.encode_basestring_ascii, None),
            *(slow.key_separator, slow.item_separator, False, False, True),
        )
        if "".join(quick(SAMPLE, 0)) == slow.encode(SAMPLE):
            return lambda value: "".join(quick(value, 0))
    except Exception:  # of another Python
        pass
    return slow.encode


def _refuse(value: Any) -> Any:
    raise TypeError(
        f"{describe(value)} is not JSON serializable: pass default=, a function that makes of it what is, "
        "as in write_jsonl(path, default=str)"
    )


class _Encoding:
    """A file whose `write` returns the bytes of a text. What it returns, `csv.writer` returns too."""

    __slots__ = ()

    def write(self, text: str) -> bytes:
        return text.encode("utf-8")


def _writes() -> Callable[[Iterable[Any]], bytes]:
    import csv  # lazy: 1 ms, of every script

    return csv.writer(_Encoding()).writerow


class Csv(RowFormat):
    """Rows of CSV, as `csv.DictWriter` writes them. Without `columns`, the first row has them."""

    def __init__(self, columns: tuple[Any, ...] | None, header: bool) -> None:
        self._header = header
        self._given = columns
        self.columns = columns

    def encoder(self, default: Any, name: Callable[[], str]) -> Encoder:
        """Encode row by row."""
        return _CsvEncoder(self._given, self.sized, name)

    def begun(self) -> None:
        """Forget the columns of the first row."""
        self.columns = self._given

    def head(self) -> bytes:
        """Return the row of the columns' names."""
        return _writes()(self.columns) if self._header and self.columns is not None else b""

    def check(self, part: Any) -> None:
        """Learn the columns of the first row of all; refuse others."""
        if self.columns is None:
            named = zip(part.names, part.where, strict=True)
            self.columns = tuple(name for name, (row, _) in named if row == 0)
        if part.names == self.columns:
            return
        for name, (_, where) in zip(part.names, part.where, strict=True):
            if name not in self.columns:
                raise ValueError(unknown_column(name, self.columns, f"at {where}"))

    def fitted(self, part: Part) -> Part:
        """Return the part with these columns."""
        self.check(part)
        assert self.columns is not None
        return part if part.names == self.columns else _laid_out(part, self.columns)

    def settled(self) -> Csv:
        """Return it with the columns of the first row."""
        return Csv(self.columns, self._header)


def unknown_column(name: Any, columns: Sequence[Any], at: str = "") -> str:
    """Say that a row has a column that the file has not."""
    at = f", {at}," if at else ""
    return (
        f"write_csv(): the row{at} has a column {short_repr(name)}, and the file has only "
        f"{', '.join(map(short_repr, columns)) or 'none'}, those of its first row: pass columns="
    )


class _CsvEncoder(RowEncoder):
    """Encodes mappings, and sequences if the columns were given. Begins a part where a column comes up."""

    def __init__(self, given: tuple[Any, ...] | None, sized: bool, name: Callable[[], str]) -> None:
        super().__init__(self._cells_of, sized)
        self._given = given
        self._name = name
        self._names: tuple[Any, ...] = given or ()
        self._keys = frozenset(self._names)
        self._where: Where = ()
        self._parts: list[Part] = []
        self._rows = 0  # in these
        self._begun = given is not None
        self._writes = _writes()

    def _cells_of(self, element: Any) -> bytes:
        if not isinstance(element, Mapping):
            return self._writes(self._cells(element))
        if not (self._begun and element.keys() <= self._keys):
            self._learn(element)
        return self._writes(map(element.get, self._names))

    def _cells(self, element: Any) -> Sequence[Any]:
        if not isinstance(element, list | tuple):
            raise TypeError(
                "write_csv() writes mappings, or lists and tuples with columns=, got "
                f"{describe(element)}{no_mapping(element)}"
            )
        if self._given is None:
            raise TypeError(
                f"write_csv() needs columns= for rows that are lists or tuples, got {describe(element)}"
            )
        if len(element) != len(self._given):
            raise ValueError(
                f"write_csv(): a row has {len(element):,} value{'s' * (len(element) != 1)} for "
                f"{len(self._given):,} columns"
            )
        return element

    def _learn(self, element: Mapping[Any, Any]) -> None:
        """Take in the names of a row that has others, which begins a part with all that are known then."""
        if self._given is not None:
            name = next(name for name in element if name not in self._keys)
            raise ValueError(
                f"write_csv(): a row has a column {short_repr(name)}, which is not in columns="
                f"{short_repr(list(self._given))}: name it there, or have map() leave it out"
            )
        self.parts()
        new = [name for name in element if name not in self._keys]
        self._writes(new)  # what cannot be encoded is this row's fault
        self._names += tuple(new)
        self._where += ((self._rows, f"{self._name()}: {short_repr(element)}"),) * len(new)
        self._keys = frozenset(self._names)
        self._begun = True

    def parts(self) -> list[Part]:
        """Return the rows, in a part for each set of names."""
        if self._lines:
            self._parts.append(part_of(self._lines, self._sized, self._names, self._where))
            self._rows += len(self._lines)
            self._lines.clear()
        return self._parts


def _laid_out(part: Part, columns: Sequence[Any]) -> Part:
    """Return rows again, with these columns: as text, they are what they were."""
    import csv  # lazy: as above

    places = [part.names.index(name) if name in part.names else None for name in columns]
    writes = _writes()
    text = bytes(part.data).decode("utf-8")
    limit = csv.field_size_limit(2**31 - 1)
    try:
        rows = list(csv.reader(_lines(text)))
    finally:
        csv.field_size_limit(limit)
    lines = [
        writes("" if place is None or place >= len(row) else row[place] for place in places) for row in rows
    ]
    return part_of(lines, bool(part.sizes), tuple(columns))


def _lines(text: str) -> Iterable[str]:
    """Give the lines of a text with their ends: those of `splitlines` are more."""
    from io import StringIO

    return StringIO(text, newline="")
