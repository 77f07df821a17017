"""Columns: how are the row groups of a parquet file read, as dicts or as record batches?"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parcoll.chain.failures import makes_apart, stands_between
from parcoll.files.descriptors import LOCAL, Descriptor, Format, opened, tell
from parcoll.text import short_repr

ROWS = 4096  # that are made into dicts at once


def pyarrow_parquet(method: str) -> Any:
    """Return `pyarrow.parquet`; ModuleNotFoundError with what to install."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{method}() needs the package pyarrow, here and on the workers ({error}): pip install pyarrow",
            name="pyarrow",
        ) from error


@dataclass(frozen=True)
class RowGroups:
    """Cuts parquet files into their row groups, and looks for the columns that are asked for."""

    systems: tuple[Any, ...]
    columns: tuple[str, ...] | None
    goes_on: bool = False  # where a file cannot be read: its worker says why

    def __call__(self, file: Descriptor) -> list[Descriptor]:
        """Return a descriptor for each row group."""
        parquet = pyarrow_parquet("read_parquet")
        try:
            with opened(file, self.systems) as source, parquet.ParquetFile(source) as opened_file:
                schema, names = opened_file.schema, opened_file.schema_arrow.names
                leaves = [schema.column(i).path for i in range(len(schema))]
                number = opened_file.metadata.num_row_groups
        except Exception as error:
            if self.goes_on:
                return [file]
            tell(error, repr(file.path))
            raise
        self._check(names, leaves, file.path)
        return [file._replace(part=f"row group {index}") for index in range(number)]

    def _check(self, names: list[str], leaves: list[str], path: str) -> None:
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{path!r} has more than one column {min(twice)!r}")
        nested = set(leaves) - set(names)
        for column in self.columns or ():
            if column not in names and not any(f"{leaf}.".startswith(f"{column}.") for leaf in nested):
                raise ValueError(f"{path!r} has no column {column!r}, only {short_repr(names)}")


@dataclass(frozen=True)
class Rows(Format):
    """The rows of a row group: dicts, or record batches of so many rows."""

    columns: tuple[str, ...] | None = None
    batch_rows: int | None = None

    def elements(self, descriptor: Descriptor) -> Iterator[Any]:
        """Give rows or batches."""
        try:
            parts = [descriptor]
            if descriptor.part is None:  # it could not be cut
                parts = RowGroups(self.systems, self.columns)(descriptor)
            for batch in itertools.chain.from_iterable(map(self._batches, parts)):
                if self.batch_rows is None:
                    yield from batch.to_pylist()
                elif batch.num_rows:
                    yield batch
        except Exception as error:
            tell(error, repr(descriptor))
            raise

    def _batches(self, descriptor: Descriptor) -> Iterator[Any]:
        parquet = pyarrow_parquet(self.name)
        columns = None if self.columns is None else list(self.columns)
        size = self.batch_rows or ROWS
        group = int(str(descriptor.part).rpartition(" ")[2])
        far = descriptor.system != LOCAL  # where one large request takes less time than several
        with opened(descriptor, self.systems) as file, parquet.ParquetFile(file, pre_buffer=far) as source:
            yield from source.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)


makes_apart(pyarrow_parquet.__code__)
stands_between(Rows.elements.__code__.co_filename)
