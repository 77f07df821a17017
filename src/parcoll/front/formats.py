"""Formats: what may a function that reads files be asked for, and how does its format become a collection?"""

from __future__ import annotations

import codecs as encodings
import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from parcoll.evaluation.plan import Node
from parcoll.evaluation.source import FilesSource
from parcoll.files import codecs
from parcoll.files.descriptors import Descriptor, Format, Read
from parcoll.files.listing import Cut, Lister, Listing, Ranges
from parcoll.files.rows import dialect
from parcoll.files.texts import can_be_cut, overlaps
from parcoll.front import arguments
from parcoll.front.collection import ParallelGen
from parcoll.front.sources import Settings, parallel
from parcoll.mistakes import no_setting_of_files
from parcoll.text import describe, short_repr

Path = str | os.PathLike[str]
Paths = Path | Sequence[Path]
Options = Mapping[str, Any] | None
Cutter = Callable[[tuple[Any, ...]], Cut]  # from the filesystems

LARGE = 16 * 2**20  # bytes: larger files are cut into parts of this size, if nothing was said

# Which of them are line ends depends on what comes next, or on both of their characters.
_NOT_FOR_BLOCKS = ("", "\r", "\r\n")


class FileHow(Settings, total=False):
    """How files are reached, and all that `parallel` takes."""

    storage_options: Options


class PackedHow(FileHow, total=False):
    """How files that may be packed are read."""

    compression: str | None


class TextFileHow(PackedHow, total=False):
    """How whole texts are read."""

    encoding: str
    errors: str


class LineHow(TextFileHow, total=False):
    """How lines are read."""

    blocksize: int | str | None


class TextHow(LineHow, total=False):
    """How the lines of texts are read."""

    linedelimiter: str | None
    files_per_partition: int | None


class CsvDialect(TypedDict, total=False):
    """How a csv file is written, as the `csv` module has it."""

    dialect: Any
    delimiter: str
    doublequote: bool
    escapechar: str | None
    lineterminator: str
    quotechar: str | None
    quoting: int
    skipinitialspace: bool
    strict: bool


class CsvSettings(Settings, CsvDialect, total=False):
    """That, and all that `parallel` takes."""


class CsvHow(LineHow, CsvDialect, total=False):
    """How csv files are read."""

    columns: Sequence[str] | None
    header: bool
    newlines_in_values: bool


_HOW: dict[str, Any] = {
    "read_csv": CsvHow,
    "read_text": TextHow,
    "read_jsonl": LineHow,
    "read_files": TextFileHow,
}


def made(
    format: Format,
    urlpath: Any,
    storage_options: Any,
    settings: Any,
    suffix: str,
    cut: Cutter | None = None,
    together: int = 1,
    folders: bool = False,
) -> ParallelGen[Any]:
    """List the files, and return the collection of what the format makes of them."""
    for name in settings:
        if name not in Settings.__annotations__:
            instead = no_setting_of_files(name, _HOW.get(format.name, FileHow).__annotations__)
            raise TypeError(f"{format.name}() got an unexpected keyword argument {name!r}{instead}")
    asked = cut is not None and not (isinstance(given := cut(()), Ranges) and not given.asked)
    lister = Lister(format.name, _checked_options(storage_options), suffix, folders, sized=asked)
    files = lister.files(urlpath)
    systems = tuple(lister.systems)
    parts = cut(systems) if cut is not None else None
    _check_compression(files, format.compression, asked and isinstance(parts, Ranges), urlpath, format.name)
    call = f"{format.name}({short_repr(urlpath)})"
    source = parallel(FilesSource(Listing(files, systems, parts), call, together), **settings)
    policy = source._options.policy
    step = Read(replace(format, systems=systems, goes_on=policy.on_error != "raise"), policy)
    options = replace(source._options, of_readers=("auto", None))  # whose elements are lines or rows
    return ParallelGen(Node(before=source._node, step=step), options)


def ranges(
    blocksize: int | None, delimiter: str | None, encoding: str, compression: str | None
) -> Cutter | None:
    """Return what cuts files into ranges of so many bytes; None if they cannot be cut, and need not."""
    if blocksize is not None:
        check_cut(delimiter, encoding)
        return lambda systems: Ranges(blocksize)
    try:
        check_cut(delimiter, encoding)
    except ValueError:
        return None
    return lambda systems: Ranges(LARGE, False, compression)


def flag(name: str, given: Any) -> bool:
    """Return an argument that is True or False."""
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be True or False, got {describe(given)}")
    return given


def columns_of(given: Any, at_least: int = 1) -> tuple[str, ...] | None:
    """Return a `columns`: None, or names."""
    wanted = "columns must be a list of names, each one once"
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{wanted}, got {describe(given)}")
    if not all(isinstance(name, str) for name in given):
        raise TypeError(f"{wanted}, got {short_repr(given)}")
    if len(set(given)) < len(given) or len(given) < at_least:
        raise ValueError(f"{wanted}, got {short_repr(given)}")
    return tuple(given)


def csv_dialect(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a csv dialect."""
    try:
        return dialect(given)
    except (csv.Error, TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"the csv module cannot read with {short_repr(dict(given))}: {error}") from None


def check_encoding(encoding: Any, errors: Any) -> None:
    """Fail if Python knows no such encoding of texts, or no such way to treat errors."""
    _check_known("encoding", encoding, encodings.lookup)
    if not encodings.lookup(encoding)._is_text_encoding:
        raise LookupError(f"encoding={short_repr(encoding)} is not one of texts")
    _check_known("errors", errors, encodings.lookup_error)


def _check_known(name: str, given: Any, lookup: Callable[[str], object]) -> None:
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a string, got {describe(given)}")
    try:
        lookup(given)
    except (LookupError, ValueError):
        raise LookupError(f"{name}={short_repr(given)} is not one that Python knows") from None


def _check_compression(
    files: Sequence[Descriptor], compression: str | None, cut: bool, urlpath: Any, method: str
) -> None:
    codecs.check_installed((file.path for file in files), compression)
    if cut and any(codecs.of(file.path, compression) is not None for file in files):
        raise ValueError(
            f"{method}() cannot cut compressed files, so leave blocksize out: {short_repr(urlpath)}"
        )


def _checked_options(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"storage_options must be a mapping with strings as keys, got {describe(given)}")
    return dict(given)


def number_of_bytes(given: Any) -> int:
    """Return a `blocksize`, which may be a text."""
    return arguments.number_of_bytes(given, 'blocksize must be a number of bytes, or a text like "64 MiB"')


def check_cut(delimiter: str | None, encoding: str) -> None:
    """Fail if files cannot be cut at ends of lines: they are cut before they are decoded."""
    if delimiter in _NOT_FOR_BLOCKS:
        raise ValueError(f"with blocksize, linedelimiter cannot be {short_repr(delimiter)}: use None")
    end = "\n" if delimiter is None else delimiter
    if overlaps(end):
        raise ValueError(
            f"with blocksize, linedelimiter must not overlap itself, as {short_repr(delimiter)} does: leave "
            "blocksize out"
        )
    if not can_be_cut(encoding, end):
        raise ValueError(
            f"with blocksize, encoding cannot be {encoding!r}: files are cut at the bytes {end.encode()!r}, "
            "which need not end a line there; leave blocksize out"
        )
