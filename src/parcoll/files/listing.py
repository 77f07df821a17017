"""Listing: which files do paths, patterns and URLs mean, and into which parts are they cut?

It runs in the user's process, when the collection is made, and again for each evaluation after the first.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import itertools
import os
import stat
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from parcoll.errors import logger
from parcoll.files import codecs
from parcoll.files.descriptors import LOCAL, Descriptor, described, described_here
from parcoll.text import describe, line_of, short_repr

MANY = 50  # files of one folder, which is listed again rather than asked for each
AT_ONCE = 32  # requests to a filesystem elsewhere, at the same time
_PREFIXES = ("file://", "local://")
_MAGIC = "*?["
_OF_PROCESS = ("/dev/std", "/dev/fd/", "/proc/self/")

Cut = Callable[[Descriptor], list[Descriptor]]


@dataclass(frozen=True)
class Ranges:
    """Cuts files into ranges of so many bytes."""

    size: int
    asked: bool = True  # else only large files are cut, and of those the ones that can be
    compression: str | None = "infer"

    def __call__(self, file: Descriptor) -> list[Descriptor]:
        """Return the ranges of a file."""
        if file.size is None:
            return [file]
        if not self.asked and (file.size <= self.size or codecs.of(file.path, self.compression) is not None):
            return [file]
        starts = range(0, file.size, self.size)
        return [file._replace(start=at, end=min(at + self.size, file.size)) for at in starts]


@dataclass
class Listing:
    """The files that were named, and their parts."""

    files: list[Descriptor]
    systems: tuple[Any, ...] = ()
    cut: Cut | None = None
    _parts: list[list[Descriptor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self._parts:
            self._parts = self._cut(self.files)

    def descriptors(self) -> list[Descriptor]:
        """Return what is read as one piece each, in order."""
        return [part for parts in self._parts for part in parts]

    def ends(self) -> list[int] | None:
        """Return where the bytes of each of them end, among those of all; None if sizes are not known."""
        sizes = []
        for file, parts in zip(self.files, self._parts, strict=True):
            for number, part in enumerate(parts):
                nbytes = part.nbytes
                if nbytes is None and file.size is not None:  # row groups
                    nbytes = file.size * (number + 1) // len(parts) - file.size * number // len(parts)
                if nbytes is None:
                    return None
                sizes.append(nbytes)
        return list(itertools.accumulate(sizes))

    def again(self) -> Listing:
        """Return the same files as they are now."""
        listed = _listed_again(self.files, self.systems)
        now = _all(lambda file: _now(file, self.systems, listed), self.files)
        changed = [new for old, new in zip(self.files, now, strict=True) if new != old]
        cut = iter(self._cut(changed))
        parts = [
            next(cut) if new != old else part
            for old, new, part in zip(self.files, now, self._parts, strict=True)
        ]
        return Listing(now, self.systems, self.cut, parts)

    def _cut(self, files: list[Descriptor]) -> list[list[Descriptor]]:
        cut = self.cut
        return [[file] for file in files] if cut is None else _all(cut, files)

    def __repr__(self) -> str:
        files, parts = len(self.files), sum(map(len, self._parts))
        text = f"{files:,} file{'s' * (files != 1)}"
        return f"<{text}>" if files == parts else f"<{text} in {parts:,} part{'s' * (parts != 1)}>"


def _all(do: Callable[[Descriptor], Any], files: Sequence[Descriptor]) -> list[Any]:
    """Do something with each file, with several at once where that is to wait for another machine."""
    if sum(file.system != LOCAL for file in files) < 2:
        return list(map(do, files))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(do, files))


def _listed_again(files: list[Descriptor], systems: tuple[Any, ...]) -> dict[tuple[int, str], Any]:
    """Return what filesystems elsewhere say of their files, where many are in one folder: one request."""
    folders = Counter((file.system, os.path.dirname(file.path)) for file in files if file.system != LOCAL)
    found = {}
    for (number, folder), many in folders.items():
        systems[number].invalidate_cache(folder)
        if many < MANY:
            continue
        with contextlib.suppress(OSError, NotImplementedError):  # it has files, and no folders
            infos = systems[number].ls(folder, detail=True)
            found.update({(number, info["name"]): info for info in infos if info.get("size") is not None})
    return found


def _now(file: Descriptor, systems: tuple[Any, ...], listed: dict[tuple[int, str], Any]) -> Descriptor:
    if file.system != LOCAL:
        info = listed.get((file.system, file.path)) or systems[file.system].info(file.path)
        return described(file.path, info, file.system)
    try:
        return described_here(file.path, os.stat(file.path))
    except OSError:
        return Descriptor(file.path)  # the worker that reads it says so


class Lister:
    """Finds the files that paths mean, for the function `method` that users call."""

    def __init__(
        self,
        method: str,
        options: dict[str, Any],
        suffix: str = "*",
        folders: bool = False,
        sized: bool = False,
    ) -> None:
        """`suffix` is what the names of its files match, as a rule; `sized` files must be found here."""
        self._method = method
        self._options = options
        self._suffix = suffix
        self._folders = folders
        self._sized = sized
        self.systems: list[Any] = []

    def files(self, given: Any) -> list[Descriptor]:
        """Return the descriptors of all files, whole."""
        paths = given if isinstance(given, (list, tuple)) else [given]
        for path in paths:
            if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
                raise TypeError(
                    f"{self._method}() needs a path, a URL or a list of them, got {describe(path)}"
                    f"{_opened(path)}"
                )
        if not paths:
            raise ValueError(f"{self._method}() needs at least one path, got an empty list")
        texts = [os.fspath(path) for path in paths]
        for text in texts:
            if not text or "\0" in text:
                raise ValueError(f"{self._method}() needs a path or a URL, got {text!r}")
        found = [self._here(text) for text in texts]
        remote = [text for text, here in zip(texts, found, strict=True) if here is None]
        there = iter(_elsewhere(self._there, remote))
        return [file for here in found for file in (next(there) if here is None else here)]

    # On this machine ------------------------------------------------------------------------------

    def _here(self, text: str) -> list[Descriptor] | None:
        """Return the files of this machine that a text means; None if it is a URL."""
        path = text
        if not os.path.lexists(path):
            prefix = next((prefix for prefix in _PREFIXES if path.startswith(prefix)), "")
            if not prefix and "://" in path:
                return None
            if not prefix and "::" in path and path.partition("::")[0] in _protocols():
                return None
            path = path.removeprefix(prefix)
            if prefix and not os.path.lexists(path):
                path = self._unquoted(path)
            if not os.path.lexists(path):
                path = os.path.expanduser(path)
        path = os.path.abspath(path)
        if path.startswith(_OF_PROCESS):
            path = self._behind(text, path)
        try:
            found = os.stat(path)
        except OSError as error:
            return self._matching(text, path, error)
        if stat.S_ISDIR(found.st_mode):
            return self._folder(text, path)
        return [described_here(path, found)]

    @staticmethod
    def _unquoted(path: str) -> str:
        """Return the path of a URL that means nothing as it is: signs may be quoted, as by `as_uri`."""
        there = os.path.abspath(path)
        if "%" not in path or (any(sign in there for sign in _MAGIC) and _matches(there)[0]):
            return path
        return os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(path)))

    def _behind(self, text: str, path: str) -> str:
        """Return the file behind a name that is another one in each process, such as /dev/stdin."""
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(
                f"{self._method}() has the workers read files, and {short_repr(text)} is a stream of this "
                f"process alone: write parallel(open({short_repr(text)})) for its lines"
            )
        return os.path.realpath(path)

    def _matching(self, text: str, path: str, error: OSError) -> list[Descriptor]:
        if not any(sign in path for sign in _MAGIC):
            if self._sized and isinstance(error, PermissionError):
                raise error
            if self._sized:
                raise FileNotFoundError(f"{self._method}() finds no file {short_repr(text)}")
            return [Descriptor(path)]  # the workers may have it
        return self._found(text, path, self._not_found(text))

    def _found(self, text: str, pattern: str, nothing: FileNotFoundError) -> list[Descriptor]:
        """Return the files that a pattern means here."""
        paths, closed = _matches(pattern)
        files = _files_of(paths)
        if closed and not files:
            raise closed[0]
        if not files:
            raise nothing
        for error in closed:
            logger.warning(
                "%s(%s) leaves out what is in %s: %s",
                *(self._method, short_repr(text), short_repr(error.filename), error.strerror),
            )
        return files

    def _folder(self, text: str, path: str) -> list[Descriptor]:
        name = os.path.join(text, self._suffix)
        if not self._folders:
            raise IsADirectoryError(
                f"{short_repr(text)} is a folder: write {short_repr(name)} for the files in it, or "
                f"{short_repr(os.path.join(text, '**', self._suffix))} for those in its folders too"
            )
        nothing = FileNotFoundError(f"{self._method}() finds no file in the folder {short_repr(text)}")
        return self._found(text, os.path.join(path, "*"), nothing)

    def _not_found(self, text: str) -> FileNotFoundError:
        return FileNotFoundError(f"{self._method}() finds no file that matches {short_repr(text)}")

    # Elsewhere ------------------------------------------------------------------------------------

    def _there(self, text: str) -> list[Descriptor]:
        import fsspec

        system, path = fsspec.core.url_to_fs(text, **self._options)
        if not any(system is other for other in self.systems):
            self.systems.append(system)
        number = next(at for at, other in enumerate(self.systems) if other is system)
        signs = "*[" if text.startswith(("http://", "https://")) else _MAGIC  # where "?" begins a query
        if any(sign in path for sign in signs) and not system.exists(path):
            return self._glob(text, system, path, number)
        try:
            info = system.info(path)
        except FileNotFoundError as error:  # or, over HTTP, no server
            why = "" if error.__cause__ is None else f" ({line_of(error.__cause__)})"
            raise FileNotFoundError(f"{self._method}() finds no file {short_repr(text)}{why}") from error
        if info.get("type") == "directory":
            if self._folders:
                return self._glob(text, system, path.rstrip("/") + "/*", number)
            raise IsADirectoryError(
                f"{short_repr(text)} is a folder: write {short_repr(text.rstrip('/') + '/' + self._suffix)}"
            )
        return [described(path, info, number)]

    def _glob(self, text: str, system: Any, path: str, number: int) -> list[Descriptor]:
        found = system.glob(path, detail=True)
        files = [
            described(name, info, number)
            for name, info in sorted(found.items())
            if info["type"] != "directory"
        ]
        if not files:
            raise self._not_found(text)
        return files


def _opened(given: object) -> str:
    if isinstance(given, io.IOBase):
        return ": pass its name, or write parallel(file) for the lines of an open file"
    return ""


def _elsewhere(find: Callable[[str], list[Descriptor]], texts: list[str]) -> Iterable[list[Descriptor]]:
    if len(texts) < 2:
        return map(find, texts)
    first = find(texts[0])  # which makes the filesystem, as a rule
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [first, *threads.map(find, texts[1:])]


def _protocols() -> set[str]:
    from fsspec.registry import known_implementations, registry

    return {*known_implementations, *registry}


def _matches(path: str) -> tuple[list[str], list[OSError]]:
    """Return the paths that a pattern means, as `glob` finds them, and why folders could not be looked into.

    Folders that are there mean themselves. `**` means no folder again within itself, where links lead back
    to it: `glob` would give the files in it some forty times.
    """
    folder, parts = os.sep, path.split(os.sep)[1:]
    while len(parts) > 1 and os.path.isdir(os.path.join(folder, parts[0])):
        folder = os.path.join(folder, parts.pop(0))
    closed: list[OSError] = []
    return sorted(set(_below([folder], parts, closed))), closed


def _below(folders: Iterable[str], parts: Sequence[str], closed: list[OSError]) -> Iterable[str]:
    """Return what the parts of a pattern mean in these folders."""
    part, *rest = parts
    if part == "**" and rest:
        return _below((inner for folder in folders for inner in _trees(folder, closed)), rest, closed)
    if part == "**":
        trees = (inner for folder in folders for inner in _trees(folder, closed))
        return (path for tree in trees for path in (tree, *_below([tree], ["*"], closed)))
    if any(sign in part for sign in _MAGIC):
        found = (
            os.path.join(folder, entry.name)
            for folder in folders
            for entry in _listed(folder, closed)
            if fnmatch.fnmatchcase(entry.name, part) and (part[0] == "." or entry.name[0] != ".")
        )
    else:
        found = (path for folder in folders if os.path.lexists(path := os.path.join(folder, part)))
    return _below(filter(os.path.isdir, found), rest, closed) if rest else found


def _trees(top: str, closed: list[OSError]) -> Iterator[str]:
    """Give a folder and those in it, at any depth, but for hidden ones."""
    real = os.path.realpath(top)
    left = [(top, real, frozenset([real]))]  # with what it really is, and what those around it are
    while left:
        folder, really, around = left.pop()
        yield folder
        for entry in _listed(folder, closed):
            if entry.name[0] != "." and entry.is_dir():
                path = os.path.join(folder, entry.name)
                real = os.path.realpath(path) if entry.is_symlink() else os.path.join(really, entry.name)
                if real not in around:
                    left.append((path, real, around | {real}))


def _listed(folder: str, closed: list[OSError]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if isinstance(error, PermissionError):
            closed.append(error)
        return []


def _files_of(paths: Iterable[str]) -> list[Descriptor]:
    files = []
    for path in paths:
        found = os.stat(path) if os.path.exists(path) else os.lstat(path)
        if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):  # a pipe would be waited for
            files.append(described_here(path, found))
    return files
