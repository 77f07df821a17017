"""Arrow: rows as tables of pyarrow, whose types do not depend on which rows came together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from parcoll.output.encoding import MisfitError
from parcoll.output.kinds import (
    TOO_MUCH,
    alike,
    as_kind,
    first_bad,
    inferred,
    lost,
    of_each,
    remade,
    rooms,
    sizes_of,
)
from parcoll.output.tables import TableEncoder, Tables, columns_of, made_by_pyarrow, package
from parcoll.text import describe, line_of, short_repr

TOGETHER = 256  # rows that become columns at once. They are dropped before the garbage collector sees them.


def _different(schemas: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for schema in schemas:
        if not any(schema.equals(other) for other in found):
            found.append(schema)
    return found


class TablePart:
    """Rows that are a table, with the size of each: of its texts and bytes, and 8 for any other value."""

    __slots__ = ("batch", "first", "mixed", "sizes")

    def __init__(
        self, batch: Any, sizes: bytes, first: Mapping[str, int], mixed: Mapping[str, list[Any]]
    ) -> None:
        self.batch = batch
        self.sizes = sizes  # an `array("Q")`
        # Where the table may have to be cut before its types are known: the row that had each column first,
        # and the values of columns whose type may be that of other rows.
        self.first = first
        self.mixed = mixed

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.batch.num_columns:  # pyarrow pickles columns, and not how many rows there are without any
            return _without_columns, (self.sizes,)
        return TablePart, (self.batch, self.sizes, self.first, self.mixed)


def _without_columns(sizes: bytes) -> TablePart:
    """Return the table of rows that have no column."""
    batch = columnless(package("pyarrow", "a table"), len(sizes) // 8)
    return TablePart(batch, sizes, {}, {})


def columnless(pyarrow: Any, rows: int) -> Any:
    """Return a batch of so many rows, none of which has a column."""
    return pyarrow.RecordBatch.from_struct_array(made_by_pyarrow(pyarrow, [{}] * rows, pyarrow.struct([])))


class ArrowEncoder(TableEncoder):
    """Makes batches of some rows each, as they come, and one of all at the end."""

    def __init__(self, tables: Arrow) -> None:
        super().__init__(tables)
        self._arrow = tables
        self._batches: list[Any] = []
        self._rows_before = 0  # those waiting
        self._misfit: MisfitError | None = None  # the first

    def take(self, elements: Iterator[Any]) -> None:
        """Make rows of the elements."""
        rows = self._rows
        while True:
            before = len(rows)
            rows += islice(elements, TOGETHER - before)
            self.taken += len(rows) - before
            if len(rows) < TOGETHER:
                return
            self._make()

    def _make(self) -> None:
        rows = self._rows
        if rows and self._misfit is None:
            try:
                self._batches.append(self._arrow.made(rows))
            except MisfitError as error:
                error.row = rows[error.position]
                error.position += self._rows_before
                self._misfit = error
        self._rows_before += len(rows)
        rows.clear()

    def parts(self) -> list[Any]:
        """Return the table."""
        self._make()
        if self._misfit is not None:
            raise self._misfit
        return [self._arrow.whole(self._batches)] if self._batches else []


class Arrow(Tables):
    """`pyarrow.RecordBatch`es of a schema, or of the types that have room for the rows."""

    def __init__(self, what: str, schema: Any = None, cut: bool = False) -> None:
        super().__init__(what)
        self.schema = schema
        self._cut = cut and schema is None

    # On a worker.

    def encoder(self, default: Any, name: Callable[[], str]) -> TableEncoder:
        """Return what makes the table of a partition."""
        if self._cut:  # where to, is known when all rows are there
            return TableEncoder(self)
        with contextlib.suppress(ImportError):  # the first rows say so
            package("pyarrow", self.what)  # here, nobody looks at the clock
        return ArrowEncoder(self)

    def whole(self, batches: Sequence[Any]) -> TablePart:
        """Return the table that has the rows of all, in the types that have room for them."""
        pyarrow = package("pyarrow", self.what)
        batch = batches[0] if len(batches) == 1 else self._together(pyarrow, batches)
        return TablePart(batch, sizes_of(pyarrow, batch), {}, {})

    def _together(self, pyarrow: Any, batches: Sequence[Any]) -> Any:
        schemas = _different(batch.schema for batch in batches)
        rows = sum(batch.num_rows for batch in batches)
        if len(schemas) > 1:
            try:
                schema = self.unified(schemas)
                batches = [self.fitted(batch, schema, 0) for batch in batches]
            except Exception:  # which row it is, the values tell
                return self._again(batches)
        columns = zip(*(batch.columns for batch in batches), strict=True)
        try:
            made = [pyarrow.concat_arrays(arrays) for arrays in columns]
        except pyarrow.ArrowInvalid as error:
            raise MisfitError(f"{self.what}: {TOO_MUCH} ({line_of(error)})", rows - 1) from error
        return self._batch(pyarrow, rows, made, batches[0].schema)

    def _again(self, batches: Iterable[Any]) -> Any:
        """Return the batch that all rows at once become; `MisfitError` for the first that does not fit."""
        rows = [row for batch in batches for row in batch.to_pylist()]
        try:
            return self.made(rows)
        except MisfitError as error:
            error.row = {name: value for name, value in rows[error.position].items() if value is not None}
            raise

    @staticmethod
    def _batch(pyarrow: Any, rows: int, columns: list[Any], schema: Any) -> Any:
        if not columns:
            return columnless(pyarrow, rows)
        return pyarrow.RecordBatch.from_arrays(columns, schema=schema)

    def made(self, rows: Sequence[Any]) -> Any:
        """Return a batch of mappings."""
        self.mappings(rows)
        return self._made(rows, columns_of(rows))

    def _made(self, rows: Sequence[Any], values: Mapping[Any, list[Any]]) -> Any:
        pyarrow = package("pyarrow", self.what)
        if self.schema is not None:
            self._check_names(rows, values)
            none = [None] * len(rows)
            columns = [self._of_field(pyarrow, values.get(field.name, none), field) for field in self.schema]
            return pyarrow.RecordBatch.from_arrays(columns, schema=self.schema)
        for name in values:
            if not isinstance(name, str):
                position = next(i for i, row in enumerate(rows) if name in row)
                raise MisfitError(
                    f"{self.what} needs str as names of columns, got {describe(name)}", position
                )
            try:
                name.encode()
            except UnicodeError as error:
                position = next(i for i, row in enumerate(rows) if name in row)
                raise MisfitError(
                    f"{self.what}: the column {name!r} cannot be encoded ({line_of(error)})", position
                ) from None
        columns = [self._inferred(pyarrow, values[name], name) for name in values]
        schema = pyarrow.schema([(name, column.type) for name, column in zip(values, columns, strict=True)])
        return self._batch(pyarrow, len(rows), columns, schema)

    def part(self, rows: Sequence[Any]) -> TablePart:
        """Return a batch with the sizes of its rows."""
        pyarrow = package("pyarrow", self.what)
        self.mappings(rows)
        columns = columns_of(rows)
        batch = self._made(rows, columns)
        first: dict[str, int] = {}
        mixed: dict[str, list[Any]] = {}
        if self._cut:
            for position, row in enumerate(rows):
                if not row.keys() <= first.keys():
                    first |= {name: position for name in row if name not in first}
                    if len(first) == len(columns):
                        break
            for field in batch.schema:
                values = columns[field.name]
                found = set(map(type, values)) - {type(None)}
                if len(found) > 1 or not (found <= {datetime} or of_each(pyarrow, field.type)):
                    mixed[field.name] = values
        return TablePart(batch, sizes_of(pyarrow, batch), first, mixed)

    def _check_names(self, rows: Sequence[Mapping[Any, Any]], found: Mapping[Any, Any]) -> None:
        known = frozenset(self.schema.names)
        for name in found:
            if name not in known:
                position = next(i for i, row in enumerate(rows) if name in row)
                raise MisfitError(
                    f"{self.what}: a row has a column {short_repr(name)}, which is not in schema=: name it "
                    "there, or have map() leave it out",
                    position,
                )

    def _inferred(self, pyarrow: Any, values: list[Any], name: str) -> Any:
        try:
            return inferred(pyarrow, values)
        except Exception as error:
            position, why = first_bad(values, lambda some: inferred(pyarrow, some), error)
            raise MisfitError(
                f"{self.what}: {short_repr(values[position])} in column {name!r} has no type with room for "
                f"it and those before it ({line_of(why)})",
                position,
            ) from error

    def _of_field(self, pyarrow: Any, values: list[Any], field: Any) -> Any:
        name = field.name
        try:
            column = made_by_pyarrow(pyarrow, values, field.type)
        except Exception as error:
            position, why = first_bad(values, lambda some: made_by_pyarrow(pyarrow, some, field.type), error)
            raise MisfitError(
                f"{self.what}: {short_repr(values[position])} in column {name!r} is no {field.type} "
                f"({line_of(why)})",
                position,
            ) from error
        if not field.nullable and column.null_count:
            position = next(i for i, value in enumerate(column) if not value.is_valid)
            raise MisfitError(
                f"{self.what}: column {name!r} has no value, and schema= allows no null", position
            )
        bad = lost(pyarrow, values, column)
        if bad is not None:
            raise MisfitError(
                f"{self.what}: {short_repr(values[bad])} in column {name!r} is no {field.type}: it would "
                f"become {short_repr(column[bad].as_py())}",
                bad,
            )
        return column

    # In the process that evaluates.

    def begin_of(self, part: TablePart, rows: int) -> Any:
        """Return the first rows as a batch that nothing behind them has changed."""
        pyarrow = package("pyarrow", self.what)
        columns = {}
        for name, column in zip(part.batch.schema.names, part.batch.columns, strict=True):
            if part.first[name] >= rows:
                continue
            column = column.slice(0, rows)
            if name in part.mixed:
                column = inferred(pyarrow, part.mixed[name][:rows])
            elif column.null_count == rows:
                column = pyarrow.nulls(rows)
            columns[name] = column
        if not columns:
            return part.batch.slice(0, rows).select([])
        return pyarrow.RecordBatch.from_pydict(columns)

    def unified(self, schemas: Sequence[Any]) -> Any:
        """Return the schema that has room for all; TypeError if there is none."""
        pyarrow = package("pyarrow", self.what)
        kinds: dict[str, list[Any]] = {}
        for schema in schemas:
            for field in schema:
                kinds.setdefault(field.name, []).append(field.type)
        fields = []
        for name, those in kinds.items():
            try:
                fields.append((name, rooms(pyarrow, those)))
            except TypeError as error:
                raise TypeError(f"column {name!r}: {error}") from None
        return pyarrow.schema(fields)

    def agreed(self, schemas: Sequence[Any], tables: Iterable[tuple[Any, Any]]) -> Any:
        """Return the schema with room for all of these tables; ValueError names a row that does not fit."""
        try:
            return self.unified(schemas)
        except Exception:
            before, schema = 0, None
            for batch, _ in tables:
                try:
                    schema = batch.schema if schema is None else self.unified([schema, batch.schema])
                except Exception:
                    self.fitted(batch, self._roomy(schema, batch.schema), before)
                    raise
                before += batch.num_rows
            raise

    def _roomy(self, schema: Any, other: Any) -> Any:
        """Return the schema with room for the other one's columns too, but for those that no type suits."""
        pyarrow, kinds = package("pyarrow", self.what), {field.name: field.type for field in schema}
        for field in other:
            with contextlib.suppress(TypeError):
                kinds[field.name] = rooms(pyarrow, [kinds.get(field.name, field.type), field.type])
        return pyarrow.schema(list(kinds.items()))

    def check_columns(self, schema: Any) -> None:
        """Refuse rows without any column: pyarrow does not count them."""
        if not schema.names:
            raise ValueError(f"{self.what}: rows without any column have no place in a table")

    def joined(self, batches: Sequence[Any]) -> Any:
        """Return a table of all rows."""
        pyarrow = package("pyarrow", self.what)
        schema = self.schema
        if schema is None:
            if not batches:
                return pyarrow.table({})
            schema = self.agreed([batch.schema for batch in batches], [(batch, None) for batch in batches])
        if batches:
            self.check_columns(schema)
        before, fitted = 0, []
        for batch in batches:
            fitted.append(self.fitted(batch, schema, before))
            before += batch.num_rows
        return pyarrow.Table.from_batches(fitted, schema=schema)

    def fitted(self, batch: Any, schema: Any, before: int) -> Any:
        """Return a batch with this schema; ValueError if a row does not fit, of which so many were before."""
        pyarrow = package("pyarrow", self.what)
        if batch.schema.equals(schema):
            return batch
        found: list[tuple[int, str, Any]] = []  # rows that do not fit, with the name of a column
        for field, column in zip(batch.schema, batch.columns, strict=True):
            place = schema.get_field_index(field.name)
            if place >= 0 and alike(pyarrow, field.type, schema.field(place).type):
                continue
            for position, value in enumerate(column.to_pylist()):
                if value is not None and (
                    place < 0 or not self._is(pyarrow, value, schema.field(place).type)
                ):
                    found.append((position, field.name, None))
                    break
        if not found:
            columns = [self._cast(pyarrow, batch, field, found) for field in schema]
        if found:
            position, name, why = min(found, key=lambda each: each[0])
            place = schema.get_field_index(name)
            kind = schema.field(place).type if place >= 0 else None
            raise ValueError(self._misfit(batch, name, kind, before, position, why))
        if not columns:
            return batch.select([])
        return pyarrow.RecordBatch.from_arrays(columns, schema=schema)

    @staticmethod
    def _is(pyarrow: Any, value: Any, kind: Any) -> bool:
        try:
            return alike(pyarrow, inferred(pyarrow, [value]).type, kind)
        except Exception:  # no type has room for it, as it came back
            return False

    @staticmethod
    def _cast(pyarrow: Any, batch: Any, field: Any, found: list[tuple[int, str, Any]]) -> Any:
        """Return a column as one of this field, nulls if there is none; note a row that does not fit."""
        place = batch.schema.get_field_index(field.name)
        if place < 0 or batch.column(place).null_count == batch.num_rows:
            return pyarrow.nulls(batch.num_rows, field.type)
        column = batch.column(place)

        try:
            return as_kind(pyarrow, column, field.type)
        except Exception as error:
            values = column.to_pylist()
            position, why = first_bad(values, lambda some: remade(pyarrow, some, field.type), error)
            found.append((position, field.name, why))
            return None

    def _misfit(self, batch: Any, name: str, kind: Any, before: int, position: int, why: Any) -> str:
        row = batch.slice(position, 1).to_pylist()[0]
        what = (
            f"a column {name!r}, which no row of the first file has"
            if kind is None
            else f"{short_repr(row[name])} in column {name!r}, which is {kind} in the rows before it"
        )
        because = "" if why is None else f" ({line_of(why)})"
        shown = short_repr({key: value for key, value in row.items() if value is not None})
        return f"{self.what}: row {before + position:,} has {what}{because}: pass schema=; the row is {shown}"
