"""Tracker: the host hears of the shared memory and the semaphores that functions make with `multiprocessing`.

Each worker would otherwise have a process that tracks them, and that removes, when the worker ends, what the
worker has opened: also the user's own shared memory. Here what is left goes to the tracker of the user's
process when the cluster ends: it is treated as if the functions had run there.
"""

from __future__ import annotations

import contextlib
import os

from parcoll.world.boot import remove, remove_semaphore


class Tracker:
    """What the processes of a cluster have told; `told` is where they write, `heard` where it is read."""

    def __init__(self) -> None:
        self.heard, self.told = os.pipe()
        os.set_blocking(self.heard, False)
        self._kept: dict[str, set[str]] = {"shared_memory": set(), "semaphore": set()}
        self._unread = b""

    def read(self) -> None:
        """Take in what was written."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.heard, 65536):
                *lines, self._unread = (self._unread + data).split(b"\n")
                for line in lines:
                    self._hear(line.decode("ascii", "replace"))

    def _hear(self, line: str) -> None:
        command, _, rest = line.partition(":")
        name, _, kind = rest.rpartition(":")
        names = self._kept.get(kind)
        if names is None:
            return  # a question whether this end of the pipe is read
        if command == "REGISTER":
            names.add(name)
        elif command == "UNREGISTER":
            names.discard(name)

    def left(self) -> list[str]:
        """Return the names of the shared memory that is left; remove semaphores, which nobody has now."""
        self.read()
        for name in self._kept["semaphore"]:
            remove_semaphore(name)
        return sorted(self._kept["shared_memory"])

    def remove_left(self) -> None:
        """Remove the shared memory that is left: there is no user's process any more."""
        for name in self._kept["shared_memory"]:
            remove(name)
