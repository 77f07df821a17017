"""Rows: what do the lines of a file say, where each holds a JSON value or they are a table of texts?"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from parcoll.chain.failures import Broken, stands_between
from parcoll.files.descriptors import Descriptor, Format, tell
from parcoll.files.texts import Lines, place
from parcoll.text import short_repr

_ENDS = ("\n", "\r")
_TEXTS = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE)  # any value is a text then, and none is refused
DIALECT = (
    *("delimiter", "doublequote", "escapechar", "lineterminator", "quotechar", "quoting"),
    *("skipinitialspace", "strict"),
)


def without_mark(encoding: str) -> str:
    """Return the encoding that leaves out the mark at the start of a file, where that is utf-8."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


@dataclass(frozen=True)
class JsonLines(Format):
    """The JSON value of each line."""

    lines: Lines = field(default_factory=lambda: Lines("read_jsonl"))

    def elements(self, descriptor: Descriptor) -> Iterator[Any]:
        """Give the values."""
        decode = json.JSONDecoder().decode
        for number, line in enumerate(_lines(self, descriptor), 1):
            try:
                value = decode(line)
            except (ValueError, RecursionError) as error:
                if not line.strip():
                    continue
                broken = ValueError(
                    f"{place(descriptor, number)} is no JSON value ({error}): {short_repr(line)}. Each line "
                    "has to hold one; a file that is one value goes with read_files(...).map(...)"
                )
                broken.__cause__ = error
                if not self.goes_on:
                    raise broken from error
                value = Broken(broken)
            yield value


def _lines(format: JsonLines | Table, descriptor: Descriptor) -> Iterator[str]:
    return replace(format.lines, systems=format.systems, compression=format.compression).elements(descriptor)


def dialect(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a csv dialect, from what `csv.reader` takes. What is wrong raises its errors."""
    found = csv.reader([], **given).dialect
    return {name: getattr(found, name) for name in DIALECT}


class _Unread:
    """A row that the dialect does not allow, where others may follow."""

    def __init__(self, error: Exception, lines: list[str]) -> None:
        self.error = error
        self._lines = lines

    def told(self, where: str) -> ValueError:
        """Return what says so."""
        broken = ValueError(
            f"{where} is no row of the csv dialect ({self.error}): {short_repr(''.join(self._lines))}"
        )
        broken.__cause__ = self.error
        return broken


class _Rows:
    """The rows that a `csv.reader` makes of lines, and behind one that it refuses those that follow."""

    def __init__(self, lines: Iterator[str], dialect: Mapping[str, Any]) -> None:
        self.line_num = 0
        self._lines = lines
        self._taken: list[str] = []  # of the row
        self._ended = False  # by an error of its lines: there are none behind it
        self._dialect = dialect
        self._reader = csv.reader(self._drawn(), **dialect)

    def _drawn(self) -> Iterator[str]:
        try:
            for line in self._lines:
                self.line_num += 1
                self._taken.append(line)
                yield line
        except Exception:
            self._ended = True
            raise

    def __iter__(self) -> _Rows:
        return self

    def __next__(self) -> list[Any] | _Unread:
        self._taken.clear()
        try:
            return next(self._reader)
        except (csv.Error, ValueError) as error:
            if self._ended or "field limit" in str(error):
                raise
            self._pass()
            return _Unread(error, list(self._taken))

    def _pass(self) -> None:
        """Take what lines the row has behind the one that it was refused for: quotes tell where it ends."""
        lines = itertools.chain(list(self._taken), self._drawn())
        next(csv.reader(lines, **{**self._dialect, "strict": False, "quoting": csv.QUOTE_MINIMAL}), None)


@dataclass(frozen=True)
class Table(Format):
    """The rows of a csv file, as dicts of texts."""

    lines: Lines = field(default_factory=lambda: Lines("read_csv", linedelimiter=""))
    columns: tuple[str, ...] | None = None
    header: bool = True
    newlines: bool = True  # a quoted value may have some
    dialect: Mapping[str, Any] = field(default_factory=dict)
    field_limit: int = 131072  # characters of a value

    def elements(self, descriptor: Descriptor) -> Iterator[dict[str, Any] | Broken]:
        """Give the rows."""
        if self.field_limit > csv.field_size_limit():
            csv.field_size_limit(self.field_limit)
        rows = self._rows(descriptor)
        before, newlines = 0, self.newlines  # lines before the row
        try:
            names = self._names(rows, descriptor)
            picked = self._picked(names, descriptor) if self.header and self.columns is not None else None
            before = rows.line_num
            for row in rows:
                if type(row) is _Unread:
                    broken = row.told(place(descriptor, before + 1))
                    if not self.goes_on:
                        raise broken
                    yield Broken(broken)
                    before = rows.line_num
                    continue
                if not newlines and (rows.line_num != before + 1 or (row and str(row[-1])[-1:] in _ENDS)):
                    raise _goes_over(descriptor, before + 1)
                if len(row) == len(names):
                    if picked is not None:
                        row = [row[position] for position in picked]
                    yield dict(zip(self.columns if picked is not None else names, row, strict=True))  # type: ignore[arg-type]
                elif row:
                    broken = ValueError(
                        f"{place(descriptor, before + 1)} has {len(row):,} value{'s' * (len(row) != 1)}, and "
                        f"there are {len(names):,} columns: {short_repr(row)}"
                    )
                    if not self.goes_on:
                        raise broken
                    yield Broken(broken)
                before = rows.line_num
        except csv.Error as error:
            tell(error, place(descriptor, before + 1))
            if "field limit" in str(error):
                error.add_note(
                    "call csv.field_size_limit(characters) before read_csv() to allow longer values"
                )
            raise

    def _rows(self, descriptor: Descriptor) -> Any:
        lines = _lines(self, descriptor)
        plain = self.dialect.get("quoting", csv.QUOTE_MINIMAL) in _TEXTS and not self.dialect.get("strict")
        return csv.reader(lines, **self.dialect) if plain else _Rows(lines, self.dialect)

    def _names(self, rows: Any, descriptor: Descriptor) -> list[str]:
        """Return the columns, from the row that has them."""
        if not self.header:
            return list(self.columns or ())
        if descriptor.start:
            rows = self._rows(descriptor._replace(start=0, end=1))
        is_cut = bool(descriptor.start) or descriptor.end is not None
        names: Any = []
        before = 0
        for names in rows:
            if names or is_cut:
                break
            before = rows.line_num
        if type(names) is _Unread:
            raise names.told(place(descriptor._replace(start=0), before + 1))
        over = rows.line_num != before + 1 or (names and str(names[-1])[-1:] in _ENDS)
        if names and not self.newlines and over:
            raise _goes_over(descriptor._replace(start=0), before + 1)
        if is_cut and not names:
            raise ValueError(
                f"{descriptor.path!r} begins with an empty line, where its columns have to be named if it is "
                "cut: leave blocksize out"
            )
        if len(set(names)) < len(names):
            (twice, *_) = [name for name in names if names.count(name) > 1]
            raise ValueError(
                f"{descriptor.path!r} has more than one column {twice!r}: name the columns with "
                "header=False, columns=[...]"
            )
        return list(names)

    def _picked(self, names: list[str], descriptor: Descriptor) -> list[int]:
        """Return where the columns stand that were asked for."""
        assert self.columns is not None
        for column in self.columns:
            if column not in names and names:
                raise ValueError(
                    f"{descriptor.path!r} has no column {column!r}, only {short_repr(names)}; if it has no "
                    "row of names, pass header=False"
                )
        return [names.index(column) for column in self.columns if column in names]


def _goes_over(descriptor: Descriptor, line: int) -> ValueError:
    """Return what refuses a row that goes on over the end of its line: in a file that is cut, it is two."""
    return ValueError(
        f"{place(descriptor, line)}: a quoted value goes on over the end of the line, "
        "where newlines_in_values=False says that none does"
    )


stands_between(Table.elements.__code__.co_filename)
