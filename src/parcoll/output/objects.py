"""Objects: where files go that fsspec puts somewhere else, as into an object store.

Each file is made whole, on this machine or by a worker, and then put: a store shows an object when all of it
is there. What is not yet to be seen has a name that tells whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from parcoll.errors import logger
from parcoll.output import staging
from parcoll.output.parked import Made, Parking
from parcoll.output.placing import Pattern
from parcoll.output.staging import Staging
from parcoll.system import genuine_open

# Stores that any process reaches, show an object when all of it is there, and cannot rename.
REACHED = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"}
STORES = REACHED | {"memory", "hf", "http", "https"}
LARGE = 256 << 20  # bytes: from here on, a file is put in parts
AT_ONCE = 16  # requests to a store

_running: set[str] = set()  # runs of this process


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
        kinds = {kinds} if isinstance(kinds, str) else set(kinds)
        self._renames = STORES.isdisjoint(kinds)
        self.by_workers = self.several and not REACHED.isdisjoint(kinds)  # if they have a key
        self._made: list[tuple[str, str]] = []  # name and path of each file here
        self._staging: Staging | None = None
        self._run = ""
        self._parked = False  # something was put that is to be removed

    @property
    def _manifest(self) -> str:
        """The name of the object that tells which others count."""
        return f"{self._place.folder}_{self._place.name.replace('*', 'manifest')}.json"

    # What is there -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Look at what is there, and remove what a run has left that was killed, or end what it had begun."""
        staging.leftovers(tempfile.gettempdir(), self._url)
        self._see_to_leftovers()
        if not self.several and self._system.isdir(self._place.folder + self._place.name):
            raise IsADirectoryError(errno.EISDIR, f"{self._what} needs a path that is no folder", self._url)
        self._check_free()

    def _check_free(self) -> None:
        if self._overwrite:
            return
        found = self._existing()
        if found:
            there = f"; {len(found):,} files of it exist" if self.several else ""
            raise FileExistsError(
                errno.EEXIST, f"{self._what} replaces what exists only with overwrite=True{there}", found[0]
            )

    def _see_to_leftovers(self) -> None:
        listed = self._listed_there() if self.several else {}
        owner = listed.get("unfinished")
        if isinstance(owner, str) and not _alive(owner, str(listed.get("run"))):
            if "moves" in listed:
                logger.warning("%s: the files that a killed run had put are given their names", self._url)
                self._finish(listed)
            else:
                self._remove_unfinished(self._finals(listed.get("files", ())))

        def is_left(path: str) -> bool:
            owner, run, of = _parsed(path.rpartition("/")[2])
            ours = of == self._place.name or self._place.number_of(of) is not None or of == "part"
            return bool(owner) and ours and not _alive(owner, run)

        self._remove([path for path in self._names() if is_left(path)])
        self._end_uploads(is_left)

    def _finals(self, names: Iterable[Any]) -> list[str]:
        """Return the paths of those that are names of files of this target."""
        return [
            self._place.folder + str(name) for name in names if self._place.number_of(str(name)) is not None
        ]

    def _listed_there(self) -> dict[str, Any]:
        try:
            found = json.loads(self._system.cat_file(self._manifest))
        except (FileNotFoundError, ValueError):
            return {}
        return found if _is_list(found) else {}

    def _names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(self._place.folder.rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return [str(path) for path in paths]

    def _existing(self) -> list[str]:
        if not self.several:
            path = self._place.folder + self._place.name
            return [path] if self._system.exists(path) else []
        paths = {path.rpartition("/")[2]: path for path in self._names()}
        return [paths[name] for name in self._place.numbered_among(paths)]

    # Files of this machine ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Make a folder for the files on this machine."""
        self.abandon()
        self._made.clear()
        self._run = os.urandom(8).hex()
        _running.add(self._run)
        self._staging = Staging(tempfile.gettempdir(), self._url)
        self._staging.make()

    def open(self, number: int) -> Any:
        """Make a file on this machine."""
        assert self._staging is not None
        path = os.path.join(self._staging.files, f"{number}")
        self._made.append((self._given.numbered(number), path))
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
        self._check_free()  # others may have come meanwhile
        names = [name for name, _ in self._made]
        if self._renames:  # a store has no folders, and would make a bucket
            self._system.makedirs(self._place.folder.rstrip("/"), exist_ok=True)
        if self._renames or (self._overwrite and self._existing()):
            hidden = self.parking()
            sizes = [os.path.getsize(source) for _, source in self._made]
            puts = [(hidden.path(name), source) for name, source in self._made]
            _all(lambda put: self._put(put[1], put[0]), puts, together=not self._renames)
            self._move([path for path, _ in puts], names, sizes)
        else:
            self._put_at_once(names)
        self.abandon()
        return [self._given.folder + name for name in names]

    def _put_at_once(self, names: list[str]) -> None:
        puts = [(self._place.folder + name, source) for name, source in self._made]
        try:
            if self.several:
                self._list(unfinished=staging.owner(), run=self._run, files=names)
            _all(lambda put: self._put(put[1], put[0]), puts)
        except BaseException:
            self._remove_unfinished([path for path, _ in puts])
            raise
        if self.several:
            self._list(files=[{"name": n, "bytes": os.path.getsize(path)} for n, path in self._made])

    def _put(self, source: str, path: str) -> None:
        large = os.path.getsize(source) >= LARGE
        if large and not self._renames and getattr(self._system, "async_impl", False):
            self._system.put_file(source, path)  # in parts, which count when the last one is there
            return
        with genuine_open(source, "rb") as file:
            self._system.pipe_file(path, file.read())

    # Files that workers make -------------------------------------------------------------------------

    def parking(self, here: bool = False) -> Parking:
        """Return where things are put that nobody is to see; `here` for a folder of this machine."""
        if here:
            assert self._staging is not None
            return Parking(None, os.path.join(self._staging.files, ""))
        self._parked = True
        whose = staging.owner().replace(" ", "=")
        return Parking(self._system, f"{self._place.folder}{staging.PREFIX}{whose}+{self._run}+")

    def names(self, count: int) -> list[str]:
        """Return the names of so many files."""
        return [self._given.numbered(number) for number in range(count)]

    def adopt(self, made: Sequence[Made]) -> list[str]:
        """Give the files that workers have put their names, and list them."""
        self._check_free()
        names = self.names(len(made))
        self._move([file.path for file in made], names, [file.nbytes for file in made])
        self.abandon()
        return [self._given.folder + name for name in names]

    def _move(self, paths: Sequence[str], names: Sequence[str], sizes: Sequence[int]) -> None:
        """Give objects their names. Where they are several, it is written down first which."""
        stale = [path.rpartition("/")[2] for path in self._existing()] if self.several else []
        moves = {
            "unfinished": staging.owner(),
            "run": self._run,
            "moves": [[path.rpartition("/")[2], name] for path, name in zip(paths, names, strict=True)],
            "stale": sorted(set(stale) - set(names)),
            "files": [{"name": name, "bytes": size} for name, size in zip(names, sizes, strict=True)],
        }
        if not self.several:
            self._rename((paths[0], self._place.folder + names[0], sizes[0]))
            return
        parked, self._parked = self._parked, False  # if it cannot be done now, the next run does it
        try:
            self._list(**moves)
            self._finish(moves)
        except BaseException:  # Ctrl-C, say, or an answer that was lost: once begun, it is done as a whole
            if self._listed_there().get("run") == self._run:
                self._finish(moves)
            self._parked = parked
            raise
        self._parked = parked

    def _finish(self, listed: Mapping[str, Any]) -> None:
        """Do what is left to be done of what was written down. It may have been begun before."""
        sizes, moves = {file["name"]: file["bytes"] for file in listed["files"]}, []
        for hidden, name in listed["moves"]:
            if _parsed(hidden)[2] == name and (final := self._finals([name])):
                moves.append((self._place.folder + hidden, *final, sizes[name]))
        _all(self._rename, moves, together=not self._renames)
        self._remove(self._finals(listed["stale"]), seen=True)
        self._list(files=listed["files"])

    def _rename(self, move: tuple[str, str, int]) -> None:
        path, final, size = move
        try:
            if self._renames:
                self._system.mv(path, final)
            else:
                self._system.cp_file(path, final)
        except FileNotFoundError:
            self._system.invalidate_cache()
            if self._system.size(final) != size:  # else it was moved before
                raise
        if not self._renames:
            self._remove([path])

    # Both --------------------------------------------------------------------------------------------

    def _list(self, **files: Any) -> None:
        self._system.pipe_file(self._manifest, json.dumps(files, indent=1).encode())

    def _remove(self, paths: list[str], seen: bool = False) -> None:
        """Remove objects. One that can be `seen` would be read with those that count: it has to go."""

        def remove(path: str) -> None:
            try:
                self._system.rm_file(path)
            except FileNotFoundError:
                pass
            except Exception as error:
                if seen:
                    raise
                logger.warning("%s: cannot be removed: %s", path, str(error))

        _all(remove, paths, together=not self._renames)

    def _remove_unfinished(self, finals: list[str]) -> None:
        """Remove files of which not all are there, and then what tells of them."""
        self._remove(finals, seen=True)
        self._remove([self._manifest] * self.several)

    def _end_uploads(self, which: Callable[[str], bool]) -> None:
        """Drop what was begun to be put in parts by who died: nobody sees it, and it is paid for."""
        if not self.by_workers or not hasattr(self._system, "abort_mpu"):  # s3fs has it
            return
        bucket, _, folder = self._place.folder.partition("/")
        with contextlib.suppress(Exception):  # not every server tells, nor everybody
            found = self._system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=folder)
            for upload in found.get("Uploads", ()):
                if which(upload["Key"]):
                    self._system.abort_mpu(bucket, upload["Key"], upload["UploadId"])

    def abandon(self) -> None:
        """Remove the folder on this machine, and what was put that is not to be seen."""
        try:
            if self._parked:
                self._parked = False
                with contextlib.suppress(Exception):  # the store is gone: the next run removes it
                    self._remove_own()
        finally:  # also if Ctrl-C comes
            _running.discard(self._run)
            if self._staging is not None:
                self._staging.remove()
                self._staging = None

    def _remove_own(self) -> None:
        whose = staging.owner().replace(" ", "="), self._run

        def is_own(path: str) -> bool:
            return _parsed(path.rpartition("/")[2])[:2] == whose

        self._remove([path for path in self._names() if is_own(path)])
        self._end_uploads(is_own)


def _is_list(found: Any) -> bool:
    """Tell whether JSON is a list as runs write it: somebody else's object may have its name."""
    if not isinstance(found, dict) or not isinstance(found.get("files"), list):
        return False
    if "moves" not in found:
        return True
    moves, stale, files = found["moves"], found.get("stale"), found["files"]
    return (
        isinstance(moves, list)
        and isinstance(stale, list)
        and all(isinstance(move, list) and [*map(type, move)] == [str, str] for move in moves)
        and all(
            isinstance(file, dict) and isinstance(file.get("name"), str) and "bytes" in file for file in files
        )
        and {name for _, name in moves} <= {file["name"] for file in files}
    )


def _parsed(name: str) -> tuple[str, str, str]:
    """Return whose a hidden object is, of which run, and what it is of; three times "" for any other."""
    if not name.startswith(staging.PREFIX) or name.count("+") < 3:
        return "", "", ""
    owner, run, _, of = name.removeprefix(staging.PREFIX).split("+", 3)
    return owner, run, of


def _alive(owner: str, run: str) -> bool:
    owner = owner.replace("=", " ")
    return run in _running if owner == staging.owner() else staging.alive(owner)


def _all(do: Callable[[Any], None], what: Sequence[Any], together: bool = True) -> None:
    """Do something with each, with several at the same time if that is to wait for a store."""
    if together and len(what) > 1:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(do, what))
    else:
        for one in what:
            do(one)
