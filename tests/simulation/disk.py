"""A disk that is slow, full or lost: what stands for `os` and `open` where parcoll writes.

The files are real, in a folder of the story's own. Each step that changes something is counted: at one of
them the process may die, or there may be no room. A process that has died does nothing more. If the machine
has lost its power with it, what was not synced is there in part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from virtual import Clock

from parcoll.checkpoint import storage
from parcoll.output import placing, rolling, staging

# In memory where there is such a place, since a story takes some milliseconds.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
CHANGING = (
    *("mkdir", "makedirs", "rename", "replace", "unlink", "rmdir", "link", "write", "ftruncate", "pwrite"),
    *("chmod", "fdopen"),
)


TAKE_ROOM = ("mkdir", "makedirs", "open", "write", "pwrite", "fsync", "link")


MOVES = ("rename", "replace", "link")


class DiedError(BaseException):
    """The process is dead."""


class Disk:
    """A folder, and what becomes of it."""

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="parcoll-simulation-", dir=MEMORY))
        self.steps = 0
        self.dies_at: int | None = None
        self.dies_moving: int | None = None  # at this step, counted from the first file that is renamed
        self.interrupted: int | None = None  # so many steps after the first file is renamed there is Ctrl-C
        self.full: range = range(0)  # steps at which there is no room
        self.seconds = 0.0  # that a sync takes
        self.loses_power = False
        self.dead = False
        self._moving = False
        self._synced: dict[int, int] = {}  # by inode, how many bytes of a file
        self._rng = rng
        self._clock = clock

    def __str__(self) -> str:
        power = ", and loses its power" if self.loses_power else ""
        at = self.dies_at if self.dies_moving is None else f"{self.dies_moving} after the first move"
        if self.interrupted is not None:
            return (
                f"a disk where Ctrl-C comes {self.interrupted} after the first move, takes {self.seconds} s"
            )
        return f"a disk that dies at {at}{power}, is full in {self.full}, takes {self.seconds} s"

    def step(self, what: str) -> None:
        """Note that something is about to change."""
        if self.dead:
            raise DiedError
        self.steps += 1
        if self.interrupted is not None and (self._moving or what.startswith(MOVES)):
            self._moving = True
            self.interrupted -= 1
            if not self.interrupted:
                self.interrupted = None
                raise KeyboardInterrupt
        if self.dies_moving is not None and what.startswith(MOVES):
            self.dies_at, self.dies_moving = self.steps + self.dies_moving, None
        if self.steps == self.dies_at:
            self.dead = True
            raise DiedError(what)
        if self.steps in self.full and what.startswith(TAKE_ROOM):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def synced(self, descriptor: int) -> None:
        """Note that a file is on the disk."""
        self._clock.sleep(self.seconds)
        self.lasts(os.fstat(descriptor))

    def lasts(self, status: os.stat_result) -> None:
        """Note that a file is there as it is, whatever comes."""
        self._synced[status.st_ino] = status.st_size

    def revive(self) -> None:
        """Have another process find what the dead one has left; from now on all goes well."""
        if self.dead:
            staging._close_copies()  # what the kernel does
            if self.loses_power:
                self._lose()
        self.dead, self.full, self.seconds = False, range(0), 0.0
        self.dies_at = self.dies_moving = self.interrupted = None

    def _lose(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file():
                status = path.stat()
                synced = self._synced.get(status.st_ino, 0)
                if status.st_size > synced:
                    os.truncate(path, self._rng.randint(synced, status.st_size))

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Have parcoll write through this."""
        stand_in = _Os(self)
        modules = (staging, placing, rolling, storage)
        for module in modules:
            module.os = stand_in  # type: ignore[attr-defined, assignment]
        staging.open = storage.open = self.open  # type: ignore[attr-defined]
        staging.shutil = _Shutil(self)  # type: ignore[attr-defined, assignment]
        try:
            yield
        finally:
            for module in modules:
                module.os = os  # type: ignore[attr-defined]
            del staging.open, storage.open  # type: ignore[attr-defined]
            staging.shutil = shutil  # type: ignore[attr-defined]

    def open(self, path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        """Open a file."""
        if mode[0] == "r":
            return open(path, mode, *arguments, **named)
        self.step(f"open {path}")
        return File(self, open(path, mode, *arguments, **named))


class File:
    """A file that is written."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk = disk
        self._file = file

    def write(self, content: Any) -> Any:
        """Write; a part of it, if the process dies there or there is no room."""
        try:
            self._disk.step("write")
        except (DiedError, OSError):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise
        return self._file.write(content)

    def close(self) -> None:
        """Close it; what a dead process has not written is lost."""
        if self._disk.dead:
            with contextlib.suppress(OSError, ValueError):
                getattr(self._file, "buffer", self._file).raw.close()
        self._file.close()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Os:
    """The module `os`, on this disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        if name not in CHANGING:
            return getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._disk.step(f"{name} {arguments[:2]}")
            made = getattr(os, name)(*arguments, **named)
            return File(self._disk, made) if name == "fdopen" else made

        return call

    def open(self, path: Any, flags: int, *arguments: Any) -> int:
        """Open a file, or make one."""
        if flags & os.O_CREAT:
            self._disk.step(f"open {path}")
        return os.open(path, flags, *arguments)

    def fsync(self, descriptor: int) -> None:
        """Have a file on the disk."""
        self._disk.step("fsync")
        self._disk.synced(descriptor)


class _Shutil:
    """The module `shutil`, on this disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def rmtree(self, path: str, ignore_errors: bool) -> None:
        """Remove a folder, one file after the other."""
        for inner in sorted(Path(path).rglob("*"), reverse=True):
            self._disk.step(f"remove {inner}")
            (inner.rmdir if inner.is_dir() else inner.unlink)()
        self._disk.step(f"remove {path}")
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)
