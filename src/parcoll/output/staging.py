"""Staging: a folder in which files lie until all of them are whole, and what becomes of one that was left.

It stands beside what will be there in the end, so that a rename is all that is left to do. Whoever writes
holds a lock in it, which the kernel ends with the process: a folder without one was left by a run that died.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from typing import Any

from parcoll.errors import logger
from parcoll.system import genuine_open

with contextlib.suppress(ImportError):
    import fcntl

PREFIX = ".parcoll-writing-"
LOCK = "lock"
COMMIT = "commit"  # what is still to be renamed, once nothing else is to be done
FILES = "files"

_held: set[int] = set()  # descriptors of locks


class Staging:
    """A folder of one run that writes to one target."""

    def __init__(self, beside: str, target: str) -> None:
        """Name it, for the target of this name and in the folder `beside`. `make` makes it."""
        self._prefix = os.path.join(beside, _prefix(target))
        self._pid = os.getpid()
        self._kept = False
        self._lock: int | None = None
        self.path = ""

    def make(self) -> None:
        """Make the folder. If this is interrupted, `remove` removes what is there of it."""
        while self._lock is None:
            self.path = self._prefix + os.urandom(8).hex()
            os.mkdir(self.path, 0o700)
            # Another run may take it for one that was left, until it has a lock.
            with contextlib.suppress(FileNotFoundError):
                self._lock = _claimed(self.path, os.O_CREAT)
        os.write(self._lock, owner().encode())
        os.mkdir(self.files)

    @property
    def files(self) -> str:
        """The folder in which files are made."""
        return os.path.join(self.path, FILES)

    def remove(self) -> None:
        """Remove it, with all that is in it."""
        if self._pid != os.getpid():  # a fork drops its copy of somebody else's
            return
        if not self._kept:
            _remove(self.path)
        lock, self._lock = self._lock, None
        if lock is not None:
            _held.discard(lock)
            os.close(lock)

    def commit(self, moves: list[tuple[str, str]], stale: list[str]) -> None:
        """Rename files to where they belong, and remove others; the next run ends what was begun here."""
        names = {"moves": [list(move) for move in moves], "stale": stale}
        unfinished = os.path.join(self.path, COMMIT + "-unfinished")
        with genuine_open(unfinished, "x", encoding="ascii") as file:
            json.dump(names, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, os.path.join(self.path, COMMIT))
        sync(self.path)
        try:
            _finish(self.path)
        except BaseException:  # Ctrl-C, say: once begun, it is done as a whole
            self._kept = True  # if it cannot be now, the next run does it
            _finish(self.path)
            self._kept = False
            raise

    def spool(self) -> Any:
        """Return a file for what is read again. It has no name, and ends with the process."""
        path = os.path.join(self.path, "spool")
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b")
        os.unlink(path)
        return file


def leftovers(beside: str, target: str) -> None:
    """Remove what runs to this target have left that died, or end what they had begun to commit."""
    prefix = _prefix(target)
    try:
        names = [name for name in os.listdir(beside) if name.startswith(prefix)]
    except OSError:
        return
    for name in names:
        path = os.path.join(beside, name)
        if not _is_own(path):
            continue
        try:
            lock = _claimed(path)
        except FileNotFoundError:  # killed before it had a lock; or in the making, and then it is made anew
            with contextlib.suppress(OSError):
                os.rmdir(path)
            continue
        except OSError as error:
            logger.warning("%s: left by another run, and cannot be looked into: %s", path, str(error))
            continue
        if lock is None:
            continue
        try:
            if os.path.exists(os.path.join(path, COMMIT)):
                logger.warning("%s: the files that a killed run had written whole are put in place", path)
                with alone(os.path.dirname(target)):
                    _finish(path)
            _remove(path)
        finally:
            _held.discard(lock)
            os.close(lock)


def _is_own(path: str) -> bool:
    """Tell whether this user has made a folder. Where others may write, what it says is not to be done."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (os.name == "nt" or found.st_uid == os.geteuid())


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Wait until no other run puts files in place in this folder, and keep others from it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    _held.add(descriptor)
    try:
        if "fcntl" in globals():
            with contextlib.suppress(OSError):  # a filesystem without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _prefix(target: str) -> str:
    return f"{PREFIX}{hashlib.sha256(os.fsencode(target)).hexdigest()[:12]}-"


def _remove(path: str) -> None:
    """Remove a folder, its lock last: what has none is empty."""
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in sorted(names, key=lambda name: name == LOCK):
        inner = os.path.join(path, name)
        if name == FILES:
            shutil.rmtree(inner, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(inner)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _finish(path: str) -> None:
    """Do what is left to be done of a commit. It may have been begun before."""
    with genuine_open(os.path.join(path, COMMIT), encoding="ascii") as file:
        names = json.load(file)
    folders = set()
    for source, final in names["moves"]:
        folders.add(os.path.dirname(final))
        with contextlib.suppress(FileNotFoundError):  # it was moved before
            os.replace(os.path.join(path, FILES, source), final)
    for stale in names["stale"]:
        folders.add(os.path.dirname(stale))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(stale)
    for folder in folders:
        sync(folder)


def _claimed(path: str, flags: int = 0) -> int | None:
    """Lock a folder, and return the lock; None if somebody else has it."""
    descriptor = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    _held.add(descriptor)
    with contextlib.suppress(FileNotFoundError):
        if _locked(descriptor) and os.path.samestat(os.fstat(descriptor), os.stat(os.path.join(path, LOCK))):
            return descriptor
    _held.discard(descriptor)
    os.close(descriptor)
    return None


def _locked(descriptor: int) -> bool:
    if "fcntl" in globals():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a filesystem without locks: the owner may be known
            return not alive(os.pread(descriptor, 200, 0).decode(errors="replace"))
    return True


def owner() -> str:
    """Return words for this process, by which another one can tell whether it is alive."""
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def alive(whose: str) -> bool:
    """Tell whether the process that these words are of may be alive; nobody's is not."""
    if not whose:
        return False
    host, _, process = whose.partition(" ")
    if host != socket.gethostname():
        return True
    number, _, started = process.partition(" ")
    return number.isdigit() and _started(int(number)) == started


def _started(pid: int) -> str:
    """Return when a process began, as its system counts."""
    try:
        with genuine_open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def sync(folder: str) -> None:
    """Have the names in a folder on the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # files may be put there, and nobody may look
        return
    try:
        os.fsync(descriptor)
    except OSError:  # not every filesystem can, for folders
        pass
    finally:
        os.close(descriptor)


def _close_copies() -> None:
    """In a fork: close the parent's locks, so that they end with the parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)


def new_file(path: str) -> Any:
    """Open a new file for bytes, with the permissions of any new file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    return os.fdopen(os.open(path, flags, 0o666), "wb", 1 << 18)
