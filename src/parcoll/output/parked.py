"""Parked: where encoded rows lie between the workers that encode them and those that make files of them.

Files that go into an object store do not pass through the user's process. Workers put what they have encoded
under names that nobody else has; that process hears of sizes alone, and says which rows are a file; workers
make the files, and put them under such names too. What two attempts have put are two objects, of which one
counts.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from parcoll.chain import apart
from parcoll.chain.failures import stands_between
from parcoll.chain.steps import Map
from parcoll.clock import time
from parcoll.output.arrow import Arrow, TablePart
from parcoll.output.compressing import opener
from parcoll.output.encoding import Part, RowFormat
from parcoll.output.parquet import ParquetFiles
from parcoll.output.rolling import Cutter, Files, Limits, Rolling, RowFiles, ends_of
from parcoll.system import genuine_open

AT_ONCE = 32 << 20  # bytes that are put in one call; more are put in blocks


class Parking:
    """Where things are put under names of their own: a folder of this machine, or of a store."""

    def __init__(self, system: Any, prefix: str) -> None:
        """`system` is a filesystem of fsspec's, None for this machine's. `prefix` begins each path."""
        self.system = system
        self.prefix = prefix

    def path(self, name: str) -> str:
        """Return a path that nobody else has."""
        return f"{self.prefix}{os.urandom(8).hex()}+{name}"

    def put(self, content: Any) -> str:
        """Put bytes, and return their path."""
        path, started = self.path("part"), time.perf_counter()
        if self.system is not None:
            self.system.pipe_file(path, content)
        else:
            with genuine_open(path, "xb") as file:
                file.write(content)
        # It is no element's time: the first call imports boto, say, and partitions would get one each.
        apart.spend(time.perf_counter() - started)
        return path

    def get(self, parked: Parked) -> bytes:
        """Return bytes that were put; OSError if they are others."""
        if self.system is not None:
            found = bytes(self.system.cat_file(parked.path))
        else:
            with genuine_open(parked.path, "rb") as file:
                found = file.read()
        if _digest(found) != parked.digest:
            raise OSError(f"{parked.path!r} has been changed by somebody while files were made of it")
        return found

    def put_file(self, file: Any, name: str) -> str:
        """Put what is in a file, and return its path."""
        path = self.path(name)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= AT_ONCE:
            self.system.pipe_file(path, file.read())
        else:
            with self.system.open(path, "wb") as there:
                shutil.copyfileobj(file, there, AT_ONCE)
        return path

    def parked(self, part: Any) -> Parked:
        """Put encoded rows, and return what stands for them."""
        if isinstance(part, TablePart):
            content = pickle.dumps(part, 5)
            return Parked(self.put(content), _digest(content), part.batch.num_rows, part.sizes)
        path = self.put(part.data)
        return Parked(path, _digest(part.data), part.rows, part.sizes, part.names, part.where)


def _digest(content: Any) -> bytes:
    return hashlib.sha256(content).digest()


class Parked(NamedTuple):
    """Rows that were put, and what the user's process has to know of them."""

    path: str
    digest: bytes
    rows: int
    sizes: bytes
    names: tuple[Any, ...] = ()
    where: tuple[tuple[int, str], ...] = ()


class Piece(NamedTuple):
    """Rows of a part that are in one file."""

    parked: Parked  # without sizes
    row: int
    stop: int
    start: int  # of their bytes
    end: int


class Planned(NamedTuple):
    """A file that is to be made."""

    name: str
    before: int  # rows in the files before it
    pieces: list[Piece]

    def __repr__(self) -> str:
        return f"the file {self.name!r}"


class Made(NamedTuple):
    """A file that was made, and put under a name of its own."""

    path: str
    rows: int
    nbytes: int
    seconds: float
    schema: Any  # of a table


class Making(Protocol):
    """How rows become files of one format."""

    def check(self) -> None:
        """Raise what keeps this process from making them."""

    def rolling(self, files: Files, limits: Limits) -> Rolling:
        """Return what makes one file after the other."""

    def one(self, files: Files, planned: Planned, parking: Parking) -> tuple[Rolling, Any]:
        """Make one file of what is parked; return what has made it, and its schema."""

    alike: bool  # the first file tells nothing of the others

    def begin(self) -> None:
        """Forget what was learned."""

    def head(self) -> int:
        """Return how many bytes each file begins with that are no rows."""

    def learn(self, parked: Parked) -> None:
        """Take in what the first rows tell of all; ValueError for rows that have no place among them."""

    def settled(self, first: Made | None) -> Making:
        """Return it for other files: for all, or those behind the first."""


class MakesRows:
    """Files of rows that are bytes."""

    alike = True

    def __init__(self, format: RowFormat, name: str, compression: Any) -> None:
        self._format = format
        self._name = name
        self._compression = compression

    def check(self) -> None:
        """Look for the package that compresses."""
        opener(self._name, self._compression)

    def rolling(self, files: Files, limits: Limits) -> RowFiles:
        """Return what makes one file after the other."""
        return RowFiles(files, limits, self._format, opener(self._name, self._compression))

    def one(self, files: Files, planned: Planned, parking: Parking) -> tuple[Rolling, Any]:
        """Make one file."""
        made = self.rolling(files, Limits())
        made.rows = planned.before
        for parked, row, stop, start, end in planned.pieces:
            data = memoryview(parking.get(parked))[start:end]
            made.take(Part(data, stop - row, b"", parked.names, parked.where))
        made.end()
        return made, None

    def begin(self) -> None:
        """Forget the columns of the first row."""
        self._format.begun()

    def head(self) -> int:
        """Return the size of the head."""
        return len(self._format.head())

    def learn(self, parked: Parked) -> None:
        """Have the format check the names of columns."""
        self._format.check(parked)

    def settled(self, first: Made | None) -> MakesRows:
        """Return it with the columns that were learned."""
        return MakesRows(self._format.settled(), self._name, self._compression)


class MakesTables:
    """Files of parquet."""

    def __init__(self, tables: Arrow, compression: str | None, schema: Any = None) -> None:
        self._tables = tables
        self._compression = compression
        self._schema = schema if schema is not None else tables.schema
        self.alike = self._schema is not None

    def check(self) -> None:
        """Do nothing: without pyarrow, there would be no tables."""

    def rolling(self, files: Files, limits: Limits) -> ParquetFiles:
        """Return what makes one file after the other."""
        return ParquetFiles(files, limits, self._tables, self._compression, self._schema)

    def one(self, files: Files, planned: Planned, parking: Parking) -> tuple[Rolling, Any]:
        """Make one file."""
        made = self.rolling(files, Limits())
        made.rows = planned.before
        for parked, row, stop, _, _ in planned.pieces:
            part = pickle.loads(parking.get(parked))
            made.add(part, ends_of(part.sizes), row, stop)
        made.end()
        return made, made.schema

    def begin(self) -> None:
        """Do nothing."""

    def head(self) -> int:
        """Return 0: only values count."""
        return 0

    def learn(self, parked: Parked) -> None:
        """Do nothing: the first file tells."""

    def settled(self, first: Made | None) -> MakesTables:
        """Return it with the schema of the first file."""
        return self if first is None else MakesTables(self._tables, self._compression, first.schema)


class Plan:
    """Says which parked rows are which file. Takes what the workers have put, in order."""

    def __init__(self, making: Making, limits: Limits) -> None:
        making.begin()
        self._making = making
        self._cutter = Cutter(limits, making.head)
        self._files: list[list[Piece]] = []
        self._open = False

    def take(self, parked: Parked) -> None:
        """Add rows to the file that is under way, and to those behind it."""
        self._making.learn(parked)
        known = parked._replace(sizes=b"")
        for row, stop, start, end, last in self._cutter.cuts(ends_of(parked.sizes)):
            if not self._open:
                self._files.append([])
            self._files[-1].append(Piece(known, row, stop, start, end))
            self._open = not last

    def files(self, names: Sequence[str]) -> Iterator[Planned]:
        """Return the files, which have these names; one that is empty if there are no rows."""
        before = 0
        for name, pieces in zip(names, self._files or [[]], strict=True):
            yield Planned(name, before, pieces)
            before += sum(piece.stop - piece.row for piece in pieces)

    @property
    def count(self) -> int:
        """How many files there are."""
        return max(len(self._files), 1)


class MakingFiles(Map):
    """Makes files of what is parked, and puts them where nobody else puts any."""

    kind = "put"
    by_user = False

    def __init__(self, making: Making, parts: Parking, files: Parking, what: str) -> None:
        super().__init__(Maker(making, parts, files))
        self._what = what

    @property
    def label(self) -> str:
        """The method that users call."""
        return self._what

    title = label


class Maker:
    """The function of that."""

    __name__ = "put"

    def __init__(self, making: Making, parts: Parking, files: Parking) -> None:
        self._making = making
        self._parts = parts
        self._files = files

    def __call__(self, planned: Planned) -> Made:
        """Make one file."""
        started = time.perf_counter()
        with _file_here() as (files, file):
            rolling, schema = self._making.one(files, planned, self._parts)
            path = self._files.put_file(file, planned.name)
        rows = rolling.rows - planned.before
        return Made(path, rows, rolling.nbytes, time.perf_counter() - started, schema)


class Trying(Map):
    """Finds out whether a worker can make files, and put them: it may have no key for the store."""

    kind = "try"
    by_user = False

    def __init__(self, making: Making, parking: Parking) -> None:
        super().__init__(Trier(making, parking))


class Trier:
    """The function of that."""

    __name__ = "try"

    def __init__(self, making: Making, parking: Parking) -> None:
        self._making = making
        self._parking = parking

    def __call__(self, number: int) -> None:
        """Put something, and remove it."""
        self._making.check()
        content = b"parcoll"
        parked = Parked(self._parking.put(content), _digest(content), 0, b"")
        self._parking.get(parked)
        self._parking.system.rm_file(parked.path)


@contextmanager
def _file_here() -> Iterator[tuple[Files, Any]]:
    """Give a file without a name, and who opens it."""
    with tempfile.TemporaryFile() as file:
        yield _Here(file), file


class _Here:
    """Opens one file. It has no name, and ends with the process."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def open(self, number: int) -> Any:
        """Open the file once more, for who closes it."""
        return os.fdopen(os.dup(self._file.fileno()), "wb", 1 << 18)

    def spool(self) -> Any:
        """Return a file for what is read again."""
        return tempfile.TemporaryFile()


stands_between(Maker.__call__.__code__.co_filename)
