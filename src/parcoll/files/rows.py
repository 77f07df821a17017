"""Rows: what do the lines of a file say, where each holds a JSON value or they are a table of texts?"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from parcoll.chain.failures import Broken, stands_between
from parcoll.files.descriptors import Descriptor, Format, tell
from parcoll.files.texts import Lines, place
from parcoll.text import short_repr

_ENDS = ("\n", "\r")
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
        rows = csv.reader(_lines(self, descriptor), **self.dialect)
        before = 0  # lines before the row
        try:
            names = self._names(rows, descriptor)
            picked = self._picked(names, descriptor) if self.header and self.columns is not None else None
            before = rows.line_num
            for row in rows:
                if not self.newlines and (rows.line_num != before + 1 or (row and row[-1][-1:] in _ENDS)):
                    raise ValueError(
                        f"{place(descriptor, before + 1)}: a quoted value goes on over the end of the line, "
                        "where newlines_in_values=False says that none does"
                    )
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

    def _names(self, rows: Any, descriptor: Descriptor) -> list[str]:
        """Return the columns, from the row that has them."""
        if not self.header:
            return list(self.columns or ())
        if descriptor.start:
            rows = csv.reader(_lines(self, descriptor._replace(start=0, end=1)), **self.dialect)
        is_cut = bool(descriptor.start) or descriptor.end is not None
        names: list[str] = next(rows if is_cut else filter(None, rows), [])
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
        return names

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


stands_between(Table.elements.__code__.co_filename)
