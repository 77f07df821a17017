"""Writing: the calls of a collection that evaluate it into files, or into a table in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from parcoll.front.evaluating import Evaluated
from parcoll.world import handlers

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
    import pyarrow  # type: ignore[import-untyped,import-not-found,unused-ignore]

    from parcoll.output.rolling import Written

T_co = TypeVar("T_co", covariant=True)
AnyPath = str | os.PathLike[str]


@handlers.methods_reaching
class Writing(Evaluated[T_co]):
    """A collection that can be written."""

    __slots__ = ()

    def write_text(
        self,
        path: AnyPath,
        end: str = "\n",
        *,
        encoding: str = "utf-8",
        bytes_per_file: int | str | None = None,
        rows_per_file: int | None = None,
        compression: str | None = "infer",
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Written:
        r"""Evaluate, and write the elements, which are str, each followed by `end`. Returns a `Written`.

        The workers encode, and this process writes, in order: all or nothing. The files come to their names
        when all of them are whole, whatever dies meanwhile; until then there are only names that begin with
        `.parcoll-`, and what a killed run leaves of these, the next one to the same path removes.

        Args:
            path: Of one file; or of several, with a `*` in the name for their numbers: 00000, 00001 and so
                on. A folder that is missing is made. May be a URL of fsspec (see `storage_options`): then a
                file is made whole here, and put at the end; several go from the workers to an object store,
                and the object `_...manifest....json` beside them lists those that count.
            end: What ends each element.
            encoding: The encoding. Text that it cannot hold is an error, which names the element.
            bytes_per_file: Where a file ends, of several: behind the row with which it has so many bytes
                before compression. A number, or a text like "64 MiB"; "128 MiB" if not told otherwise.
            rows_per_file: Instead: exactly so many rows for each file but the last.
            compression: "infer" from the end of the name (gz, bz2, xz, zst, lz4), one of these, or None.
            overwrite: True to replace what exists, when all is written; files with higher numbers are
                removed. So a collection may be written over the file that it is read from.
            storage_options: For fsspec, where `path` is a URL.

        The bytes of the files depend on the elements alone, not on the partitions. An element that cannot be
        encoded ends the evaluation, whatever `on_error` says. Rows are in the order of the source, unless
        the collection is `unordered()`. With a checkpoint, elements are encoded by this process.

        Raises FileExistsError before anything runs if there is such a file (of several: any numbered one),
        TypeError or ValueError for what is not allowed, and what a function, the source or the disk raised.

        >>> import tempfile
        >>> from pathlib import Path
        >>> from parcoll import parallel
        >>> path = Path(tempfile.mkdtemp()) / "squares.txt"
        >>> written = parallel(range(4)).map(lambda x: str(x * x)).write_text(path)
        >>> written.rows, path.read_text()
        (4, '0\n1\n4\n9\n')
        """
        from parcoll.front import into_files  # lazy: 10 ms, of every script

        how = into_files.How(bytes_per_file, rows_per_file, compression, overwrite, storage_options)
        return into_files.write_text(self._run, path, end, encoding, how)

    def write_jsonl(
        self,
        path: AnyPath,
        *,
        default: Callable[[Any], Any] | None = None,
        bytes_per_file: int | str | None = None,
        rows_per_file: int | None = None,
        compression: str | None = "infer",
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Written:
        r"""Evaluate, and write each element as a line of JSON, as `json.dumps` makes it. Returns a `Written`.

        `default` is called on the workers with what JSON does not know, and returns what it does, as that of
        `json.dumps`, whose other defaults hold too: NaN is written as NaN. All else is as in `write_text`.

        >>> import tempfile
        >>> from pathlib import Path
        >>> from parcoll import parallel
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> parallel(range(2)).map(lambda x: {"x": x}).write_jsonl(path).rows
        2
        >>> path.read_text()
        '{"x": 0}\n{"x": 1}\n'
        """
        from parcoll.front import into_files  # lazy: 10 ms, of every script

        how = into_files.How(bytes_per_file, rows_per_file, compression, overwrite, storage_options)
        return into_files.write_jsonl(self._run, path, default, self._options.policy.timeout, how)

    def write_csv(
        self,
        path: AnyPath,
        *,
        columns: Sequence[str] | None = None,
        header: bool = True,
        bytes_per_file: int | str | None = None,
        rows_per_file: int | None = None,
        compression: str | None = "infer",
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Written:
        r"""Evaluate, and write the elements as rows of CSV, as `csv.DictWriter` does. Returns a `Written`.

        Elements are mappings, as dicts; with `columns`, they may be lists or tuples of that length, too. A
        value that a row lacks is empty, and so is None. A row with a column that is not in `columns`, or not
        in the first row if there are none, is an error. Lines end with `\r\n`; the encoding is utf-8.

        `columns` are the names of the columns, in their order; None means those of the first row. `header` is
        False for files without a row of these names. All else is as in `write_text`.

        >>> import tempfile
        >>> from pathlib import Path
        >>> from parcoll import parallel
        >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> parallel([{"a": 1, "b": "x"}, {"a": 2}]).write_csv(path).rows
        2
        >>> path.read_text()
        'a,b\n1,x\n2,\n'
        """
        from parcoll.front import into_files  # lazy: 10 ms, of every script

        how = into_files.How(bytes_per_file, rows_per_file, compression, overwrite, storage_options)
        return into_files.write_csv(self._run, path, columns, header, how)

    def write_parquet(
        self,
        path: AnyPath,
        *,
        schema: pyarrow.Schema | None = None,
        bytes_per_file: int | str | None = None,
        rows_per_file: int | None = None,
        compression: str | None = "infer",
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Written:
        """Evaluate, and write the elements, which are mappings, as rows of parquet. Returns a `Written`.

        Needs pyarrow, here and where the workers run. `schema` is a `pyarrow.Schema`; None means the types
        that have room for all rows of the first file. A value that its column cannot hold is an error that
        names column and element, and so is a column that is not in the schema. A value that a row lacks is
        null, as None is, if the schema allows it.

        `compression` is that of the columns: "infer" for "snappy", or "gzip", "brotli", "zstd", "lz4", None.
        With `bytes_per_file`, the bytes of texts and 8 for any other value count. All else is as in
        `write_text`.
        """
        from parcoll.front import into_files  # lazy: 10 ms, of every script

        how = into_files.How(bytes_per_file, rows_per_file, compression, overwrite, storage_options)
        return into_files.write_parquet(self._run, path, schema, how)

    def to_arrow(self, schema: pyarrow.Schema | None = None) -> pyarrow.Table:
        """Evaluate, and return a `pyarrow.Table` of the elements, which are mappings.

        The workers make batches of them, which are put together here. `schema` and errors are as in
        `write_parquet`; None means the types that have room for all rows.
        """
        from parcoll.front import into_files  # lazy: 10 ms, of every script

        return into_files.to_arrow(self._run, schema)

    def to_pandas(self) -> pandas.DataFrame:
        """Evaluate, and return `pandas.DataFrame(list(collection))`; the elements are mappings.

        The workers make frames of them, which are put together here.
        """
        from parcoll.front import into_files  # lazy: 10 ms, of every script

        return into_files.to_pandas(self._run)
