"""Reading: what makes a collection of files. The workers read them, each a part at a time."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from parcoll.files import codecs
from parcoll.files.archives import Archive, Members
from parcoll.files.columns import RowGroups, Rows, pyarrow_parquet
from parcoll.files.listing import Cut
from parcoll.files.rows import DIALECT, JsonLines, Table, without_mark
from parcoll.files.texts import Lines, Whole
from parcoll.front import arguments
from parcoll.front.collection import ParallelGen
from parcoll.front.formats import (
    CsvHow,
    CsvSettings,
    FileHow,
    Options,
    PackedHow,
    Paths,
    TextFileHow,
    TextHow,
    check_encoding,
    columns_of,
    csv_dialect,
    flag,
    made,
    number_of_bytes,
    ranges,
)
from parcoll.front.sources import Settings
from parcoll.text import describe
from parcoll.world import handlers

if TYPE_CHECKING:
    from pyarrow import RecordBatch


@overload
def read_text(
    urlpath: Paths, *, include_path: Literal[False] = False, **how: Unpack[TextHow]
) -> ParallelGen[str]: ...
@overload
def read_text(
    urlpath: Paths, *, include_path: Literal[True], **how: Unpack[TextHow]
) -> ParallelGen[tuple[str, str]]: ...
@handlers.reaching
def read_text(
    urlpath: Paths,
    *,
    blocksize: int | str | None = None,
    compression: str | None = "infer",
    encoding: str = "utf-8",
    errors: str = "strict",
    linedelimiter: str | None = None,
    files_per_partition: int | None = None,
    include_path: bool = False,
    storage_options: Options = None,
    **settings: Unpack[Settings],
) -> ParallelGen[Any]:
    """Return a lazy collection of the lines of text files, which the workers read.

    This call lists the files, and asks for their sizes. An evaluation reads them, on the workers: so they
    must be on a filesystem that these share, or at a URL. The order is that of the files, those of a pattern
    sorted by name, and of the lines in them. Lines are drawn one by one: a worker holds some tens of kB of a
    file, and the results of a partition until it sends them. Large files are cut, so that several workers
    read one.

    Args:
        urlpath: A path, a pattern (`"logs/*.txt"`), any URL that fsspec knows (`"s3://bucket/*.txt"`), or a
            list of them. What exists is that file, whatever signs are in its name.
        blocksize: Cuts files into parts of about so many bytes, at ends of lines: a number, or a text like
            "64 MiB". The lines are the same for each. None cuts files of more than 16 MiB, if they can be.
        compression: "infer" goes by the names of the files (gz, bz2, xz, zst, lz4, and what fsspec knows);
            None means none. Compressed files cannot be cut.
        encoding: The encoding of the files, as for `open`.
        errors: What to do with bytes that cannot be decoded, as for `open`.
        linedelimiter: None ends a line at `\\n`, `\\r\\n` or `\\r`, and gives each of them as `\\n`. Any
            other text ends a line where it stands, and nothing else does. "" ends lines as None does, and
            leaves their ends as they are. "", `\\r` and `\\r\\n` cannot be combined with `blocksize`. Lines
            keep their ends; the last line may have none.
        files_per_partition: Has so many files go to a worker together; not together with `blocksize`.
        include_path: True gives pairs of a line and the path of its file.
        storage_options: What fsspec's filesystem takes, as a mapping.
        settings: All that `parallel` takes. Its source here are the parts of files: `partition_size` counts
            them, and so does `stats`; it counts their bytes too, as `progress` does. One that cannot be read
            to its end has failed, and is the `element` of its `ElementError`, with `path`, `start` and `end`.
            With `on_error="skip"` the lines before the fault stay; with `retries` they are not given again.
            `timeout` is for the reading of a part, and one that is stopped gives none. A checkpoint compares
            the files by path, size, and time or ETag; with `retry_failed=True`, files that could not be read
            may have been mended since.

    A file that is changed or removed after it was listed is an error that names it. The first evaluation
    reads the files as this call has found them, each later one looks at them anew.

    Raises FileNotFoundError if no file matches, ModuleNotFoundError if a compression's package is missing,
    and ValueError, TypeError or LookupError for a wrong argument. If a worker cannot read a file, the
    evaluation raises the error, with a note that names file and line.

    >>> import codecs
    >>> from parcoll import connect, read_text
    >>> words = read_text(codecs.__file__, blocksize="16 kiB").flatmap(str.split)
    >>> with connect("inline"):
    ...     words.first(), words.filter(lambda word: word == "codecs").count() > 0
    ('\"\"\"', True)
    """
    check_encoding(encoding, errors)
    if linedelimiter is not None and not isinstance(linedelimiter, str):
        raise TypeError(f"linedelimiter must be a string or None, got {describe(linedelimiter)}")
    for other in ("blocksize", "partition_size"):
        given = blocksize if other == "blocksize" else settings.get(other)
        if given is not None and files_per_partition is not None:
            raise ValueError(f"read_text() takes {other} or files_per_partition, not both")
    if files_per_partition is not None:
        files_per_partition = arguments.whole_number(
            files_per_partition, "files_per_partition must be a whole number"
        )
        settings["partition_size"] = files_per_partition
    if blocksize is not None:
        blocksize = number_of_bytes(blocksize)
    format = Lines(
        "read_text", (), codecs.checked(compression), flag("include_path", include_path), encoding, errors,
        linedelimiter,
    )  # fmt: skip
    cut = ranges(blocksize, linedelimiter, encoding, compression) if files_per_partition is None else None
    return made(format, urlpath, storage_options, settings, "*.txt", cut, files_per_partition or 1)


@handlers.reaching
def read_jsonl(
    urlpath: Paths,
    *,
    blocksize: int | str | None = None,
    compression: str | None = "infer",
    encoding: str = "utf-8",
    errors: str = "strict",
    include_path: bool = False,
    storage_options: Options = None,
    **settings: Unpack[Settings],
) -> ParallelGen[Any]:
    """Return a lazy collection of the JSON values in the lines of files, which the workers read.

    A value is whatever its line says: rows need not be alike. Empty lines are left out, and so is a mark at
    the start of a utf-8 file. A line that is no JSON value is an error that names file and line, as where one
    value goes over several lines. `on_error="skip"` leaves out that line alone.

    Args:
        urlpath: As for `read_text`, and so are `blocksize`, `compression`, `encoding`, `errors`,
            `include_path`, `storage_options` and all other `settings`.

    >>> import tempfile, pathlib
    >>> from parcoll import connect, read_jsonl
    >>> with tempfile.TemporaryDirectory() as folder, connect("inline"):
    ...     _ = pathlib.Path(folder, "a.jsonl").write_text('{"x": 1}\\n{"x": 2, "y": null}\\n')
    ...     list(read_jsonl(f"{folder}/*.jsonl"))
    [{'x': 1}, {'x': 2, 'y': None}]
    """
    check_encoding(encoding, errors)
    if blocksize is not None:
        blocksize = number_of_bytes(blocksize)
    lines = Lines("read_jsonl", encoding=without_mark(encoding), errors=errors)
    pairs = flag("include_path", include_path)
    format = JsonLines("read_jsonl", (), codecs.checked(compression), pairs, lines)
    return made(
        format, urlpath, storage_options, settings, "*.jsonl", ranges(blocksize, None, encoding, compression)
    )


@overload
def read_csv(
    urlpath: Paths, *, include_path: Literal[False] = False, **how: Unpack[CsvHow]
) -> ParallelGen[dict[str, str]]: ...
@overload
def read_csv(
    urlpath: Paths, *, include_path: Literal[True], **how: Unpack[CsvHow]
) -> ParallelGen[tuple[dict[str, str], str]]: ...
@handlers.reaching
def read_csv(
    urlpath: Paths,
    *,
    columns: Sequence[str] | None = None,
    header: bool = True,
    newlines_in_values: bool = True,
    blocksize: int | str | None = None,
    compression: str | None = "infer",
    encoding: str = "utf-8",
    errors: str = "strict",
    include_path: bool = False,
    storage_options: Options = None,
    **settings: Unpack[CsvSettings],
) -> ParallelGen[Any]:
    """Return a lazy collection of the rows of csv files, which the workers read: dicts of texts.

    Nothing is made of the texts: map a function that does. A row with more or fewer values than there are
    columns is an error that names file and line; `on_error="skip"` leaves out that row alone. Empty lines are
    left out, and so is a mark at the start of a utf-8 file.

    Args:
        urlpath: As for `read_text`, and so are `compression`, `encoding`, `errors`, `include_path` and
            `storage_options`.
        columns: The columns to give, of those that a file has; with `header=False`, the names of all.
        header: Whether the first row of each file names its columns.
        newlines_in_values: False if no quoted value goes on over the end of a line.
        blocksize: As for `read_text`; only with `newlines_in_values=False`, since a line end within a value
            looks like any other.
        settings: What `csv.reader` takes: `dialect`, `delimiter`, `quotechar`, `escapechar`, `doublequote`,
            `skipinitialspace`, `quoting`, `strict`. And all that `parallel` takes, as for `read_text`.

    >>> import tempfile, pathlib
    >>> from parcoll import connect, read_csv
    >>> with tempfile.TemporaryDirectory() as folder, connect("inline"):
    ...     _ = pathlib.Path(folder, "a.csv").write_text('name;size\\n"x;y";1\\nz;2\\n')
    ...     list(read_csv(f"{folder}/a.csv", delimiter=";"))
    [{'name': 'x;y', 'size': '1'}, {'name': 'z', 'size': '2'}]
    """
    check_encoding(encoding, errors)
    given = {name: settings.pop(name) for name in ("dialect", *DIALECT) if name in settings}  # type: ignore[misc]
    names = columns_of(columns)
    if not flag("header", header) and not names:
        raise ValueError("header=False needs columns=, the names of all columns; got columns=None")
    if blocksize is not None:
        blocksize = number_of_bytes(blocksize)
        if newlines_in_values:
            raise ValueError(
                "blocksize= cuts at the ends of lines, which may lie in a quoted value: pass "
                "newlines_in_values=False if none does, or leave blocksize out"
            )
    cut = None if newlines_in_values else ranges(blocksize, None, encoding, compression)
    format = Table(
        "read_csv",
        (),
        codecs.checked(compression),
        flag("include_path", include_path),
        Lines("read_csv", encoding=without_mark(encoding), errors=errors, linedelimiter=""),
        names,
        header,
        flag("newlines_in_values", newlines_in_values),
        csv_dialect(given),
        csv.field_size_limit(),
    )
    return made(format, urlpath, storage_options, settings, "*.csv", cut)


@overload
def read_parquet(
    urlpath: Paths,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: None = None,
    **how: Unpack[FileHow],
) -> ParallelGen[dict[str, Any]]: ...
@overload
def read_parquet(
    urlpath: Paths, *, columns: Sequence[str] | None = None, batch_rows: int, **how: Unpack[FileHow]
) -> ParallelGen[RecordBatch]: ...
@handlers.reaching
def read_parquet(
    urlpath: Paths,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int | None = None,
    storage_options: Options = None,
    **settings: Unpack[Settings],
) -> ParallelGen[Any]:
    """Return a lazy collection of the rows of parquet files, which the workers read a row group at a time.

    This call reads what the files say of their row groups. It needs pyarrow, here and on the workers.

    Args:
        urlpath: As for `read_text`, and so is `storage_options`.
        columns: The columns to read; None for all.
        batch_rows: None gives each row as a dict. A number gives `pyarrow.RecordBatch`es of so many rows; the
            last one of a row group may have fewer.
        settings: All that `parallel` takes, as for `read_text`. The source here are the row groups.

    Raises ModuleNotFoundError without pyarrow, ValueError for a column that a file does not have.

    >>> from parcoll import read_parquet
    >>> sizes = lambda path: read_parquet(path, columns=["size"]).map(lambda row: row["size"])
    """
    pyarrow_parquet("read_parquet")
    names = columns_of(columns, at_least=0)
    if batch_rows is not None:
        batch_rows = arguments.whole_number(batch_rows, "batch_rows must be None or a whole number")
    format = Rows("read_parquet", (), None, False, names, batch_rows)

    def cut(systems: tuple[Any, ...]) -> Cut:
        return RowGroups(systems, names, settings.get("on_error", "raise") != "raise")

    return made(format, urlpath, storage_options, settings, "*.parquet", cut)


@overload
def read_files(
    urlpath: Paths, *, mode: Literal["rb"] = "rb", **how: Unpack[PackedHow]
) -> ParallelGen[tuple[str, bytes]]: ...
@overload
def read_files(
    urlpath: Paths, *, mode: Literal["r"], **how: Unpack[TextFileHow]
) -> ParallelGen[tuple[str, str]]: ...
@handlers.reaching
def read_files(
    urlpath: Paths,
    *,
    mode: str = "rb",
    compression: str | None = None,
    encoding: str = "utf-8",
    errors: str = "strict",
    storage_options: Options = None,
    **settings: Unpack[Settings],
) -> ParallelGen[Any]:
    """Return a lazy collection of whole files, which the workers read: pairs of path and content.

    Args:
        urlpath: As for `read_text`; a folder means the files in it, but for those that begin with a dot. The
            path of a pair is the absolute one, or that of the URL.
        mode: "rb" gives bytes, "r" text, with `\\n` for each line end as `open` does it.
        compression: None gives what is in the file; "infer" and the others are as for `read_text`.
        encoding: Of a text, as for `open`, and so is `errors`.
        storage_options: As for `read_text`.
        settings: All that `parallel` takes, as for `read_text`. The source here are the files.

    >>> import tempfile, pathlib
    >>> from parcoll import connect, read_files
    >>> with tempfile.TemporaryDirectory() as folder, connect("inline"):
    ...     _ = pathlib.Path(folder, "a.bin").write_bytes(b"abc")
    ...     [(pathlib.Path(path).name, content) for path, content in read_files(folder)]
    [('a.bin', b'abc')]
    """
    if mode not in ("rb", "r") or not isinstance(mode, str):
        raise ValueError(f'mode must be "rb" or "r", got {describe(mode)}')
    check_encoding(encoding, errors)
    text = encoding if mode == "r" else None
    format = Whole("read_files", (), codecs.checked(compression), False, text, errors)
    return made(format, urlpath, storage_options, settings, "*", folders=True)


@overload
def read_archive(
    urlpath: Paths, pattern: str = "*", *, include_path: Literal[False] = False, **how: Unpack[FileHow]
) -> ParallelGen[tuple[str, bytes]]: ...
@overload
def read_archive(
    urlpath: Paths, pattern: str = "*", *, include_path: Literal[True], **how: Unpack[FileHow]
) -> ParallelGen[tuple[tuple[str, bytes], str]]: ...
@handlers.reaching
def read_archive(
    urlpath: Paths,
    pattern: str = "*",
    *,
    include_path: bool = False,
    storage_options: Options = None,
    **settings: Unpack[Settings],
) -> ParallelGen[Any]:
    """Return a lazy collection of the members of zip and tar files: pairs of name and bytes.

    Workers read each member of a zip file on its own, and a tar file, packed or not, from its start to its
    end. This call reads the directories of zip files. Folders and symbolic links are left out, and hard links
    to what is no file.

    Args:
        urlpath: As for `read_text`, and so is `storage_options`.
        pattern: Which members, by their whole names: `"*.json"` means those in any folder.
        include_path: True gives pairs of such a pair and the path of the archive.
        settings: All that `parallel` takes, as for `read_text`. The source here are members of zip files,
            and whole tar files.

    >>> import tempfile, zipfile
    >>> from parcoll import connect, read_archive
    >>> with tempfile.TemporaryDirectory() as folder, connect("inline"):
    ...     with zipfile.ZipFile(f"{folder}/a.zip", "w") as archive:
    ...         archive.writestr("x/one.txt", "1")
    ...         archive.writestr("two.bin", "2")
    ...     list(read_archive(f"{folder}/a.zip", "*.txt"))
    [('x/one.txt', b'1')]
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, got {describe(pattern)}")
    format = Archive("read_archive", (), None, flag("include_path", include_path), pattern)

    def cut(systems: tuple[Any, ...]) -> Cut:
        return Members(systems, pattern, settings.get("on_error", "raise") != "raise")

    return made(format, urlpath, storage_options, settings, "*.zip", cut)
