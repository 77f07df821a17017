"""Placing: where files go that are written, what lies there, and how new ones take its place."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from typing import Any, Protocol

from parcoll.output import staging
from parcoll.output.staging import Staging

PARENTS = 8  # folders around each other in which leftovers are looked for
DIGITS = 5  # of the number in the name of a file, at least
URL = re.compile(r"^([A-Za-z][\w.+-]*::)*[A-Za-z][\w.+-]*://")


class Target(Protocol):
    """Where one evaluation writes."""

    several: bool

    def check(self) -> None:
        """Raise what keeps files from being written there, before anything is evaluated."""

    def begin(self) -> None:
        """Make ready for files. May be called again: then what was written is dropped."""

    def open(self, number: int) -> Any:
        """Return a new file, for bytes."""

    def spool(self) -> Any:
        """Return a file without a name, for bytes that are read again."""

    def commit(self) -> list[str]:
        """Have all files in their places, and return their names."""

    def abandon(self) -> None:
        """Drop what was written, if it was not committed."""


class Pattern:
    """A path in which `*` stands for numbers."""

    def __init__(self, path: str, what: str) -> None:
        folder, slash, name = path.rpartition("/")
        if "*" in folder:
            raise ValueError(f"{what}: `*` stands for the number of a file, not of a folder, got {path!r}")
        if name.count("*") > 1:
            raise ValueError(f"{what}: `*` stands for the number of a file, once, got {path!r}")
        if not name or name in (".", ".."):
            raise ValueError(f"{what}: the path of a file is needed, got that of a folder: {path!r}")
        self.folder = folder + slash
        self.name = name
        self.several = "*" in name
        self._before, _, self._behind = name.partition("*")

    def numbered(self, number: int) -> str:
        """Return the name of a file in its folder."""
        return f"{self._before}{number:0{DIGITS}d}{self._behind}" if self.several else self.name

    def number_of(self, name: str) -> int | None:
        """Return the number of a file of this name; None if it is no such file."""
        if not self.several or not name.startswith(self._before) or not name.endswith(self._behind):
            return None
        digits = name[len(self._before) : len(name) - len(self._behind)]
        if not (digits.isascii() and digits.isdigit()) or f"{int(digits):0{DIGITS}d}" != digits:
            return None
        return int(digits)

    def numbered_among(self, names: Iterable[str]) -> list[str]:
        """Return those that may be files of this target. One of 20200101 is of somebody who means a date."""
        found = {name: number for name in names if (number := self.number_of(name)) is not None}
        most = max(len(found), 10**DIGITS)
        return sorted(name for name, number in found.items() if number < most)


class LocalTarget:
    """Files on this machine, or on a mounted filesystem."""

    def __init__(self, path: str, overwrite: bool, what: str) -> None:
        self._given = Pattern(path, what)
        self._what = what
        self._overwrite = overwrite
        self._made: list[str] = []  # names of files, as they were opened
        self._staging: Staging | None = None
        self.several = self._given.several
        path = os.path.expanduser(path) if path.startswith("~") else path
        self._asked = os.path.abspath(path)
        folder, name = os.path.split(self._asked)
        folder = os.path.realpath(folder)
        if not self.several and os.path.islink(os.path.join(folder, name)):  # as `open` follows it
            folder, name = os.path.split(os.path.realpath(os.path.join(folder, name)))
        self._folder, self._path = folder, os.path.join(folder, name)
        there = folder
        missing: list[str] = []  # folders, the innermost last
        while not os.path.lexists(there):
            there, last = os.path.split(there)
            missing.insert(0, last)
        self._there, self._missing = there, missing

    def check(self) -> None:
        """Look at what is there."""
        if not os.path.isdir(self._there):
            raise NotADirectoryError(
                errno.ENOTDIR, f"{self._what} cannot write in what is no folder", self._there
            )
        if not os.access(self._there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{self._what} may not write in the folder", self._there)
        # A run to folders that were missing may have made them, and died beside the first of them.
        beside = self._there
        for _ in range(PARENTS):
            if os.access(beside, os.W_OK):
                staging.leftovers(beside, self._path)
            beside = os.path.dirname(beside)
        if self._missing:
            return
        self._check_place()
        if not self._overwrite:
            self._check_free()

    def _check_place(self) -> None:
        several = self._existing() if self._overwrite else []  # which else are not to be there at all
        for path in several if self.several else [self._asked]:
            try:
                mode = os.stat(path).st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, f"{self._what} needs a path that is no folder", path)
            if not stat.S_ISREG(mode):
                raise ValueError(
                    f"{self._what} replaces a file as a whole, and {path!r} is a device or a pipe"
                )
            if self._overwrite and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, f"{self._what} may not replace", path)

    def _check_free(self) -> None:
        found = self._existing()
        if found:
            there = f"; {len(found):,} files of it exist" if self.several else ""
            raise FileExistsError(
                errno.EEXIST, f"{self._what} replaces what exists only with overwrite=True{there}", found[0]
            )

    def _existing(self) -> list[str]:
        """Return the files that are there of those that the target may mean."""
        if not self.several:
            return [self._path] if os.path.lexists(self._path) else []
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [os.path.join(self._folder, name) for name in self._given.numbered_among(names)]

    def begin(self) -> None:
        """Make the folder in which files are written."""
        self.abandon()
        self._made.clear()
        self._staging = Staging(self._there, self._path)
        self._staging.make()
        os.makedirs(os.path.join(self._staging.files, *self._missing), exist_ok=True)
        self.open(0).close()  # it may not be possible
        os.unlink(os.path.join(self._staging.files, *self._missing, self._made.pop()))

    def open(self, number: int) -> Any:
        """Make a file."""
        assert self._staging is not None
        name = self._given.numbered(number) if self.several else os.path.basename(self._path)
        file = staging.new_file(os.path.join(self._staging.files, *self._missing, name))
        self._made.append(name)
        return file

    def spool(self) -> Any:
        """Make one beside the files."""
        assert self._staging is not None
        return self._staging.spool()

    def commit(self) -> list[str]:
        """Rename: one file, a folder that was not there, or one file after the other."""
        assert self._staging is not None
        if not self._moved_as_one():
            self._move()
        self.abandon()
        return [self._given.folder + (name if self.several else self._given.name) for name in self._made]

    def _moved_as_one(self) -> bool:
        """Try to do all with one rename, or one link, which either happens or does not."""
        assert self._staging is not None
        if self._missing:
            first = self._missing[0]
            try:
                os.rename(os.path.join(self._staging.files, first), os.path.join(self._there, first))
            except OSError:  # somebody has made it meanwhile
                os.makedirs(self._folder, exist_ok=True)
                return False
            staging.sync(self._there)
            return True
        if self.several:
            return False
        source = os.path.join(self._staging.files, *self._missing, self._made[0])
        if not self._overwrite:
            with contextlib.suppress(PermissionError, NotImplementedError):
                try:
                    os.link(source, self._path)
                except FileExistsError:
                    self._check_free()
                    raise
                except OSError as error:
                    if error.errno not in (
                        errno.EPERM,
                        errno.ENOTSUP,
                        errno.EMLINK,
                        errno.ENOSYS,
                        errno.EINVAL,
                    ):
                        raise
                else:
                    staging.sync(self._folder)
                    return True
            self._check_free()
        _keep_mode(self._path, source)
        os.replace(source, self._path)
        staging.sync(self._folder)
        return True

    def _move(self) -> None:
        assert self._staging is not None
        with staging.alone(self._folder):  # of two runs, the files of one
            if not self._overwrite:
                self._check_free()
            self._check_place()
            files = os.path.join(self._staging.files, *self._missing)
            moves = [
                (os.path.join(*self._missing, name), os.path.join(self._folder, name)) for name in self._made
            ]
            for name, (_, final) in zip(self._made, moves, strict=True):
                _keep_mode(final, os.path.join(files, name))
            stale = sorted(set(self._existing()) - {final for _, final in moves})
            self._staging.commit(moves, stale)

    def abandon(self) -> None:
        """Remove the folder in which files were written."""
        if self._staging is not None:
            self._staging.remove()
            self._staging = None


def _keep_mode(old: str, new: str) -> None:
    with contextlib.suppress(OSError):
        os.chmod(new, stat.S_IMODE(os.stat(old).st_mode))
