"""Objects: where files go that fsspec puts somewhere else, as into an object store.

Each file is written whole on this machine first, and then put: a store shows an object when all of it is
there. Elsewhere it is put under another name, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from parcoll.log import logger
from parcoll.output import staging
from parcoll.output.placing import Pattern
from parcoll.output.staging import Staging

# Stores that show an object when all of it is there, and cannot rename.
STORES = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "abfs",
    "abfss",
    "az",
    "adl",
    "oci",
    "oss",
    "memory",
    "hf",
    "http",
    "https",
}
LARGE = 256 << 20  # bytes: from here on, a file is put in parts


class RemoteTarget:
    """Files that are put where a URL says, all of them at the end."""

    def __init__(self, url: str, overwrite: bool, what: str, options: Mapping[str, Any]) -> None:
        from fsspec.core import url_to_fs  # lazy: 30 ms, and only for URLs

        self._given = Pattern(url, what)
        self._what = what
        self._overwrite = overwrite
        self._url = url
        self.several = self._given.several
        self._system, path = url_to_fs(url, **options)
        self._place = Pattern(str(path), what)
        kinds = self._system.protocol
        self._renames = STORES.isdisjoint([kinds] if isinstance(kinds, str) else kinds)
        self._made: list[tuple[str, str]] = []  # name and path of each file here
        self._staging: Staging | None = None

    @property
    def _manifest(self) -> str:
        """The name of the object that tells which others count."""
        return f"{self._place.folder}_{self._place.name.replace('*', 'manifest')}.json"

    def check(self) -> None:
        """Look at what is there, and remove what a run has left that was killed while it put files."""
        staging.leftovers(tempfile.gettempdir(), self._url)
        self._remove_leftovers()
        if self.several:
            found = self._existing()
        else:
            path = self._place.folder + self._place.name
            if self._system.isdir(path):
                raise IsADirectoryError(
                    errno.EISDIR, f"{self._what} needs a path that is no folder", self._url
                )
            found = [path] if self._system.exists(path) else []
        if found and not self._overwrite:
            there = f"; {len(found):,} files of it exist" if self.several else ""
            raise FileExistsError(
                errno.EEXIST, f"{self._what} replaces what exists only with overwrite=True{there}", found[0]
            )

    def _remove_leftovers(self) -> None:
        listed = self._listed_there() if self.several else {}
        owner = listed.get("unfinished")
        if isinstance(owner, str) and not staging.alive(owner):
            known = [name for name in listed.get("files", ()) if self._place.number_of(str(name)) is not None]
            self._remove([self._place.folder + name for name in known] + [self._manifest])
        for path in self._names():
            name = path.rpartition("/")[2]
            owner, _, of = name.removeprefix(staging.PREFIX).partition("+")
            ours = of == self._place.name or self._place.number_of(of) is not None
            if name.startswith(staging.PREFIX) and ours and not staging.alive(owner.replace("_", " ")):
                self._remove([path])

    def _listed_there(self) -> dict[str, Any]:
        try:
            found = json.loads(self._system.cat_file(self._manifest))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(self._place.folder.rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return [str(path) for path in paths]

    def _existing(self) -> list[str]:
        return [path for path in self._names() if self._place.number_of(path.rpartition("/")[2]) is not None]

    def begin(self) -> None:
        """Make a folder for the files on this machine."""
        self.abandon()
        self._made.clear()
        self._staging = Staging(tempfile.gettempdir(), self._url)
        self._staging.make()

    def open(self, number: int) -> Any:
        """Make a file on this machine."""
        assert self._staging is not None
        name = self._given.numbered(number)
        path = os.path.join(self._staging.files, f"{number}")
        self._made.append((name, path))
        return staging.new_file(path)

    def spool(self) -> Any:
        """Make one beside the files."""
        assert self._staging is not None
        return self._staging.spool()

    def commit(self) -> list[str]:
        """Put the files, and a list of them if there are several.

        What is to be replaced stays until all files have been put under other names. Else they get their
        names at once, since a store can only copy, and the list tells meanwhile that it is not finished.
        """
        before = self._existing() if self.several else []
        if self._renames:  # a store has no folders, and would make a bucket
            self._system.makedirs(self._place.folder.rstrip("/"), exist_ok=True)
        finals = [self._place.folder + name for name, _ in self._made]
        replaces = bool(before) or (self._overwrite and not self.several and self._system.exists(finals[0]))
        names = self._unfinished() if replaces or self._renames else finals
        put: list[str] = []
        try:
            if self.several and names is finals:
                self._list({"unfinished": staging.owner(), "files": [name for name, _ in self._made]})
            for path, (_, source) in zip(names, self._made, strict=True):
                put.append(path)
                self._put(source, path)
        except BaseException:
            self._remove(put + [self._manifest] * (self.several and names is finals))
            raise
        if names is not finals:
            for path, final in zip(names, finals, strict=True):
                self._system.mv(path, final)
        if self.several:
            self._list({"files": [{"name": n, "bytes": os.path.getsize(path)} for n, path in self._made]})
        self._remove([path for path in before if path not in finals])
        self.abandon()
        return [self._given.folder + name for name, _ in self._made]

    def _unfinished(self) -> list[str]:
        """Return other names for the files, which tell whose they are."""
        whose = staging.owner().replace(" ", "_")
        return [f"{self._place.folder}{staging.PREFIX}{whose}+{name}" for name, _ in self._made]

    def _list(self, files: dict[str, Any]) -> None:
        self._system.pipe_file(self._manifest, json.dumps(files, indent=1).encode())

    def _put(self, source: str, path: str) -> None:
        large = os.path.getsize(source) >= LARGE
        if large and not self._renames and getattr(self._system, "async_impl", False):
            self._system.put_file(source, path)  # in parts, which count when the last one is there
            return
        with open(source, "rb") as file:
            self._system.pipe_file(path, file.read())

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            try:
                self._system.rm_file(path)
            except FileNotFoundError:
                pass
            except Exception as error:
                logger.warning("%s: cannot be removed: %s", path, error)

    def abandon(self) -> None:
        """Remove the folder on this machine."""
        if self._staging is not None:
            self._staging.remove()
            self._staging = None
