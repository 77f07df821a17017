"""Storage: a folder of small files, each of which is there whole or not at all.

The folder is a local one, or any that fsspec can reach. On a local filesystem a file is written under
another name, synced and renamed, and then the folder is synced (1 to 2 ms together on an SSD). An object
store has no rename and needs none: a put makes the whole object visible at its end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from parcoll.errors import CheckpointError, logger
from parcoll.system import genuine_open, others_who_write

with contextlib.suppress(ImportError):
    import fcntl

LOCK = "parcoll.lock"
TEMPORARY = ".parcoll-unfinished-"
_told: set[str] = set()  # folders, of which it was said that others can write to them
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)  # of a named pipe
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # what it leads to would be emptied


class NotAFileError(Exception):
    """In the place of a file there is a folder, a pipe, a device: nothing that has an end."""


class File(NamedTuple):
    """A file of a folder, as its filesystem tells of it."""

    name: str
    nbytes: int
    written: float | None  # when, by the filesystem's wall clock


class Folder(Protocol):
    """The folder of a checkpoint, local or remote."""

    url: str

    def names(self) -> list[str]:
        """Return the names of its files; none if there is no folder."""

    def files(self) -> list[File]:
        """Return its files; none if there is no folder."""

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a file's content, or so many bytes at its start.

        FileNotFoundError if there is none, NotAFileError if it is no file.
        """

    def write(self, name: str, parts: Sequence[Any]) -> None:
        """Create or replace a file with these bytes; they are on the disk when this returns."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep others out of the folder while the context lasts, as far as that is possible."""


def folder_at(url: str) -> Folder:
    """Return the folder at a path or URL; it is not created yet."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise CheckpointError(f"checkpoint={url!r} cannot be opened: {error}") from error
    if isinstance(system, LocalFileSystem):
        return LocalFolder(url, path)
    return RemoteFolder(url, system, path)


class LocalFolder:
    """A folder on this machine, or a mounted one."""

    def __init__(self, url: str, path: str) -> None:
        self.url = url
        self._path = path

    def names(self) -> list[str]:
        """List the folder."""
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []

    def _warn_of_others(self) -> None:
        who = others_who_write(self._path, sticky_helps=False)
        if who is not None and self._path not in _told:
            _told.add(self._path)
            warnings.warn(
                f"{who} can write to the checkpoint {self.url!r}, and whoever can do so can run code as this "
                "user: keep it in a folder that is yours alone",
                RuntimeWarning,
                stacklevel=2,
            )

    def files(self) -> list[File]:
        """List it, without what is no file."""
        found = []
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = os.stat(os.path.join(self._path, name))
                if stat.S_ISREG(status.st_mode):
                    found.append(File(name, status.st_size, status.st_mtime))
        return found

    def read(self, name: str, most: int | None = None) -> bytes:
        """Read a file."""
        with genuine_open(os.path.join(self._path, name), "rb", opener=_opened_if_file) as file:
            return file.read(-1 if most is None else most)

    def write(self, name: str, parts: Sequence[Any]) -> None:
        """Write, sync, rename, and sync the folder."""
        temporary = os.path.join(self._path, f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            with genuine_open(temporary, "xb") as file:  # never through a link that others have put there
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, os.path.join(self._path, name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(os.path.join(self._path, name))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; the kernel ends the lock with this process, however that ends."""
        lock = os.path.join(self._path, LOCK)
        try:
            os.makedirs(self._path, exist_ok=True)
            if os.path.lexists(lock) and not stat.S_ISREG(os.lstat(lock).st_mode):
                raise CheckpointError(
                    f"the checkpoint {self.url!r} cannot be opened: its {LOCK} is not a file: remove it"
                )
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | _NO_LINK, 0o666)
        except OSError as error:
            instead = "; name a folder" if isinstance(error, FileExistsError | NotADirectoryError) else ""
            raise CheckpointError(
                f"the checkpoint {self.url!r} cannot be opened: {type(error).__name__}: {error}{instead}"
            ) from error
        pid = os.getpid()
        try:
            try:
                if "fcntl" in globals():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise _in_use_error(self.url, owner) from None
            except OSError as error:  # a mounted filesystem without locks
                logger.warning(
                    "checkpoint %s: its filesystem has no locks (%s); make sure that no second process uses "
                    "the folder meanwhile",
                    *(self.url, str(error)),
                )
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):  # a full disk; the words only serve another process's message
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            _descriptors.add(descriptor)
            self._warn_of_others()
            yield
        finally:
            if pid == os.getpid():
                _descriptors.discard(descriptor)
                os.close(descriptor)


def _opened_if_file(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _WITHOUT_WAITING)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise NotAFileError(path)


_descriptors: set[int] = set()  # of the lock files that this process has locked


def _close_copies() -> None:
    """In a fork: close the parent's lock files, so that its locks end with it and not with the fork."""
    while _descriptors:
        os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)


_urls_in_use: set[str] = set()  # URLs of the folders without locks that this process uses
_urls_lock = threading.RLock()


class RemoteFolder:
    """A folder that fsspec reaches. It has no lock; only other evaluations of this process are kept out."""

    def __init__(self, url: str, system: Any, path: str) -> None:
        self.url = url
        self._system = system
        self._path = path.rstrip("/")

    def names(self) -> list[str]:
        """List the folder as it is now; fsspec may have kept an earlier listing."""
        return [_last_part(path) for path in self._listed(detail=False)]

    def _listed(self, detail: bool) -> list[Any]:
        self._system.invalidate_cache(self._path)
        try:
            found: list[Any] = self._system.ls(self._path, detail=detail)
        except FileNotFoundError:
            return []
        return found

    def files(self) -> list[File]:
        """List it, with what the filesystem says of each file."""
        return [
            File(_last_part(found["name"]), int(found.get("size") or 0), _time_in(found))
            for found in self._listed(detail=True)
            if found.get("type") != "directory"
        ]

    def read(self, name: str, most: int | None = None) -> bytes:
        """Get an object."""
        path = f"{self._path}/{name}"
        try:
            content: bytes = self._system.cat_file(path, *(() if most is None else (0, most)))
        except Exception:
            if self._system.isdir(path):
                raise NotAFileError(path) from None
            raise
        return content

    def write(self, name: str, parts: Sequence[Any]) -> None:
        """Put an object."""
        self._system.pipe_file(f"{self._path}/{name}", b"".join(parts))

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._system.rm_file(f"{self._path}/{name}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep out this process's other evaluations."""
        with _urls_lock:
            if self.url in _urls_in_use:
                raise _in_use_error(self.url, "this process")
            _urls_in_use.add(self.url)
        try:
            with contextlib.suppress(Exception):  # not every store has folders; a write tells what is wrong
                self._system.makedirs(self._path, exist_ok=True)
            yield
        finally:
            _urls_in_use.discard(self.url)


def _last_part(path: Any) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")  # as filesystems say


def _time_in(found: dict[str, Any]) -> float | None:
    """Return when a file was written, as one of fsspec's filesystems says it."""
    for name in _TIMES:
        moment = found.get(name)
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return None


def _in_use_error(url: str, owner: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {url!r} is in use by {owner}: wait until its evaluation ends (closing or dropping "
        "its iterator ends one), or give this one another folder"
    )
