"""Tables: rows as columns, made on the workers and put together here; those of pandas."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from parcoll.chain import apart
from parcoll.output.encoding import MisfitError
from parcoll.text import describe


def package(name: str, what: str) -> Any:
    """Import a package that `what` needs, or say that it is not there."""
    if name in sys.modules and sys.modules[name] is not None:
        return sys.modules[name]
    started = time.perf_counter()
    try:
        found = importlib.import_module(name)
        if name == "pyarrow":
            importlib.import_module("pyarrow.compute")
            found.array([1])  # the first one looks for pandas, which takes seconds, too
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
                raise MisfitError(f"{self.what} needs mappings, as dicts, got {describe(row)}", position)


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


class Frames(Tables):
    """`pandas.DataFrame`s."""

    def made(self, rows: Sequence[Any]) -> Any:
        """Return a frame of mappings."""
        self.mappings(rows)
        return package("pandas", self.what).DataFrame(list(rows))

    def joined(self, frames: Sequence[Any]) -> Any:
        """Return one frame: the one that pandas makes of all rows at once."""
        pandas = package("pandas", self.what)
        if not frames:
            return pandas.DataFrame([])
        names = list(dict.fromkeys(name for frame in frames for name in frame.columns))
        columns = {name: self._column(pandas, frames, name) for name in names}
        rows = sum(len(frame) for frame in frames)
        return pandas.DataFrame(columns, index=pandas.RangeIndex(rows), columns=names)

    @staticmethod
    def _column(pandas: Any, frames: Sequence[Any], name: Any) -> Any:
        parts = [frame[name] if name in frame.columns else None for frame in frames]
        kinds = {part.dtype if part is not None else None for part in parts}
        if len(kinds) == 1:
            return pandas.concat(parts, ignore_index=True)
        # A column that is whole in one partition and lacks values in another has two types; which one it has
        # in all, pandas finds out from the values.
        values: list[Any] = []
        for frame, part in zip(frames, parts, strict=True):
            values += [{}] * len(frame) if part is None else ({name: value} for value in part.tolist())
        return pandas.DataFrame(values, columns=[name])[name]
