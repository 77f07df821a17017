"""Parquet: tables on their way into files, in row groups that are the same whatever came together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from parcoll.clock import time
from parcoll.output.arrow import Arrow, TablePart
from parcoll.output.rolling import Cutter, Files, Limits, Rolling, ends_of
from parcoll.output.tables import package
from parcoll.text import line_of

GROUP_ROWS = 131_072  # of a row group
GROUP_BYTES = 64 << 20  # of its values
IN_MEMORY = 64 << 20  # bytes of tables that wait for their schema


class ParquetFiles(Rolling):
    """Files of row groups. Without a schema, the rows of the first file wait until it ends, and have it."""

    def __init__(
        self, files: Files, limits: Limits, tables: Arrow, compression: str | None, schema: Any = None
    ) -> None:
        super().__init__(files, limits)
        self._tables = tables
        self._compression = compression or "none"
        self._schema = tables.schema if schema is None else schema
        self._waiting = Waiting(files)
        self._writer: Any = None
        self._cutter = Cutter(limits)
        self._group: list[Any] = []
        self._group_rows = 0
        self._group_bytes = 0
        self._filled = 0  # rows of the file that is under way

    @property
    def schema(self) -> Any:
        """The schema of the files; None while it is not known."""
        return self._schema

    def take(self, part: TablePart) -> None:
        """Write a table."""
        started = time.perf_counter()
        ends = ends_of(part.sizes)
        for cut in self._cutter.cuts(ends):
            self.add(part, ends, cut.row, cut.stop)
            if cut.last:
                self._finish()
        self.seconds += time.perf_counter() - started

    def add(self, part: TablePart, ends: list[int], row: int, stop: int) -> None:
        """Add rows of a table, which ends there, to the file that is under way."""
        whole = self._schema is not None or stop == len(ends) or row > 0
        batch = part.batch.slice(row, stop - row) if whole else self._tables.begin_of(part, stop)
        before = ends[row - 1] if row else 0
        self._filled += batch.num_rows
        if row or stop < len(ends):
            ends = [end - before for end in ends[row:stop]]
        if self._schema is None:
            self._waiting.add(batch, ends)
        else:
            self._write(batch, ends)

    def _write(self, batch: Any, ends: list[int]) -> None:
        if self._writer is None:
            self._begin()
        self._tables.check_columns(self._schema)
        batch = self._tables.fitted(batch, self._schema, self.rows)
        row, start = 0, 0
        while row < len(ends):
            stop = min(row + GROUP_ROWS - self._group_rows, len(ends))
            stop = min(stop, bisect_left(ends, start + GROUP_BYTES - self._group_bytes, row) + 1)
            self._group.append(batch.slice(row, stop - row))
            self._group_rows += stop - row
            self._group_bytes += ends[stop - 1] - start
            row, start = stop, ends[stop - 1]
            if self._group_rows >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
                self._end_group()
        self.rows += len(ends)

    def _end_group(self) -> None:
        if self._group:
            pyarrow = package("pyarrow", self._tables.what)
            table = pyarrow.Table.from_batches(self._group, schema=self._schema).combine_chunks()
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._group, self._group_rows, self._group_bytes = [], 0, 0

    def _begin(self) -> None:
        parquet = package("pyarrow.parquet", self._tables.what)
        file = self._open()
        try:
            self._writer = parquet.ParquetWriter(file, self._schema, compression=self._compression)
        except Exception:
            check_types(self._tables.what, self._schema)
            raise

    def _settle(self) -> None:
        """Take the schema of what waits, and write it."""
        pyarrow = package("pyarrow", self._tables.what)
        schemas = self._waiting.schemas
        self._schema = self._tables.agreed(schemas, self._waiting) if schemas else pyarrow.schema([])
        for batch, ends in self._waiting:
            self._write(batch, ends)
        self._waiting.close()

    def _finish(self) -> None:
        if self._schema is None:
            self._settle()
        if self._writer is None:
            self._begin()
        self._end_group()
        writer, self._writer = self._writer, None
        writer.close()
        self._close()
        self._filled = 0

    def end(self) -> None:
        """End the last file, which may be the first and empty."""
        started = time.perf_counter()
        if self._filled or not self.number:
            self._finish()
        self.seconds += time.perf_counter() - started

    def abandon(self) -> None:
        """Close what is open."""
        self._waiting.close()
        super().abandon()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.is_open = False  # else it would write its end when it is collected, into a closed file


def check_types(what: str, schema: Any) -> None:
    """Refuse a column of a type that pyarrow has, and parquet has not."""
    pyarrow = package("pyarrow", what)
    parquet = package("pyarrow.parquet", what)
    for field in schema:
        try:
            parquet.ParquetWriter(pyarrow.BufferOutputStream(), pyarrow.schema([field])).close()
        except pyarrow.ArrowNotImplementedError as error:
            raise ValueError(
                f"{what}: column {field.name!r} is {field.type}, for which parquet has no type "
                f"({line_of(error)}): leave it out, or make other values of it"
            ) from error


class Waiting:
    """Tables in order, of which those beyond some MiB are on the disk."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._tables: list[Any] = []  # or where they begin on the disk
        self._ends: list[list[int]] = []
        self._nbytes = 0
        self._file: Any = None
        self.schemas: list[Any] = []  # all that differ

    def add(self, batch: Any, ends: list[int]) -> None:
        """Keep a table."""
        if not any(batch.schema.equals(schema) for schema in self.schemas):
            self.schemas.append(batch.schema)
        self._ends.append(ends)
        self._nbytes += batch.nbytes
        if self._nbytes <= IN_MEMORY:
            self._tables.append(batch)
            return
        ipc = package("pyarrow.ipc", "write_parquet()")
        if self._file is None:
            self._file = self._files.spool()
        self._tables.append(self._file.tell())
        with ipc.new_stream(self._file, batch.schema) as stream:
            stream.write_batch(batch)

    def __iter__(self) -> Iterator[tuple[Any, list[int]]]:
        for table, ends in zip(self._tables, self._ends, strict=True):
            if isinstance(table, int):
                ipc = package("pyarrow.ipc", "write_parquet()")
                self._file.seek(table)
                table = ipc.open_stream(self._file).read_next_batch()
            yield table, ends

    def close(self) -> None:
        """Let go of all."""
        self._tables, self._ends, self.schemas = [], [], []
        file, self._file = self._file, None
        if file is not None:
            file.close()
