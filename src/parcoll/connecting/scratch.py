"""Scratch: where workers put what they send to each other, if that need not go through the user's process.

It is a place that all of them reach. Each evaluation has a folder there, whose name says whose it is, and
removes it at its end.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from parcoll.errors import ConnectError
from parcoll.keys.store import MARKER, Scratch, remove_folder
from parcoll.output import staging
from parcoll.text import describe, line_of, short_repr

PREFIX = ".parcoll-scratch-"
# Where a name with slashes is no folder, and making one would make a bucket.
STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"}


class Place:
    """A place for scratches, by its URL. Calling it makes the folder of an evaluation."""

    def __init__(self, given: Any) -> None:
        if not isinstance(given, (str, os.PathLike)):
            raise TypeError(f"scratch must be the URL or the path of a folder, got {describe(given)}")
        self.url = os.fspath(given)
        if not isinstance(self.url, str) or not self.url or "\0" in self.url:
            raise ValueError(f"scratch must be the URL or the path of a folder, got {short_repr(given)}")
        try:
            from fsspec.core import url_to_fs  # lazy: 30 ms

            self._system, path = url_to_fs(self.url)
            self._packed = pickle.dumps(self._system)
        except Exception as error:  # an unknown protocol, a package that is not installed
            raise self._error(error) from error
        kinds = self._system.protocol
        kinds = {kinds} if isinstance(kinds, str) else set(kinds)
        if "memory" in kinds:
            raise ValueError(
                f"scratch={self.url!r} is in the memory of one process: name a place that this process and "
                "all workers reach, such as a shared folder or a bucket"
            )
        self._has_folders = STORES.isdisjoint(kinds)
        self._path = str(path).rstrip("/")

    def check(self) -> None:
        """Write, read and remove something there, and remove what killed scripts have left there."""
        try:
            scratch = self._made()
            try:
                self._system.cat_file(f"{scratch.folder}/{MARKER}")
            finally:
                scratch.remove()
            self._remove_leftovers()
        except Exception as error:
            raise self._error(error) from error

    def __call__(self) -> Scratch:
        """Make the folder of an evaluation."""
        try:
            return self._made()
        except Exception as error:
            raise self._error(error) from error

    def _made(self) -> Scratch:
        whose = staging.owner().replace(" ", "=")
        folder = f"{self._path}/{PREFIX}{whose}+{os.urandom(8).hex()}"
        scratch = Scratch(self.url, self._packed, folder, self._system)
        try:
            if self._has_folders:
                self._system.makedirs(folder)
            self._system.pipe_file(f"{folder}/{MARKER}", b"This folder is removed at the end.\n")
        except BaseException:
            scratch.remove()
            raise
        return scratch

    def _remove_leftovers(self) -> None:
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(self._path, detail=False)
        except FileNotFoundError:  # a store has a folder only while something is in it
            return
        for path in paths:
            name = str(path).rstrip("/").rpartition("/")[2]
            whose = name.removeprefix(PREFIX).partition("+")[0].replace("=", " ")
            if name.startswith(PREFIX) and not staging.alive(whose):
                remove_folder(self._system, str(path).rstrip("/"))

    def _error(self, error: Exception) -> ConnectError:
        return ConnectError(
            f"scratch={self.url!r} cannot be written to from here: {line_of(error)}; name a place in "
            "connect() that this process and all workers can read and write"
        )
