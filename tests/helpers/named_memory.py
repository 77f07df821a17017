"""Named shared memory, and whose it is: `python named_memory.py PID MARK FILE` watches for the tests of PID.

`/dev/shm` tells who may use a file there, not who made it, and other programs of the machine have files there
as well: joblib, Ray, other tests. A file counts as the tests' own where one of their processes has it open.
That has to be seen while the process lives, since what was left behind is what nobody has open any more.
parcoll itself makes no names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = "/dev/shm"
VARIABLE = "PARCOLL_TESTS_MARK"
LOOK_EVERY = 0.05  # seconds
LOOKS = 10  # at a new name: the process that makes it has it open some microseconds after it can be seen


def names() -> set[str]:
    """Return what is there, without the semaphores of `multiprocessing`, which dask's nannies have."""
    with suppress(OSError):
        return {name for name in os.listdir(FOLDER) if not name.startswith("sem.mp-")}
    return set()


class NamedMemory:
    """The names that the processes of these tests made, which a watcher beside them writes down.

    It is no child of this process: tests look at those.
    """

    def __init__(self, folder: str, mark: str) -> None:
        self._seen = Path(folder, "named-memory")
        if os.path.isdir("/proc/self/fd"):
            command = [sys.executable, "-S", __file__, str(os.getpid()), mark, str(self._seen)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def own(self) -> set[str]:
        """Return those of the tests' names that are there now."""
        found = names()
        return found and found & set(self._seen.read_text().splitlines())


def watch(parent: int, mark: bytes, seen: Path, before: set[str]) -> None:
    """Write down, while a process lives, what names it has open, or its descendants, or who has the mark."""
    looks: dict[str, int] = {}
    with suppress(OSError), open(seen, "a", buffering=1) as file:
        while seen.exists() and is_running(parent):
            present = names() - before
            looks = {name: looks.get(name, 0) + 1 for name in present}
            new = {name for name, count in looks.items() if count <= LOOKS}
            for name in open_in(own_processes(parent, mark), new) if new else ():
                looks[name] = LOOKS
                file.write(f"{name}\n")
            time.sleep(LOOK_EVERY)


def is_running(process: int) -> bool:
    with suppress(OSError):
        return parent_and_state(process)[1] not in "ZX"
    return False


def parent_and_state(process: int) -> tuple[int, str]:
    state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    return int(parent), state


def own_processes(ancestor: int, mark: bytes) -> list[int]:
    """Return the processes that carry the mark, and the descendants of this one, which need not."""
    parents = {}
    marked = {ancestor}
    for process in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with suppress(OSError):
            parents[process] = parent_and_state(process)[0]
            if mark in Path(f"/proc/{process}/environ").read_bytes():
                marked.add(process)
    for process in [*parents]:
        line = [process]
        while line[-1] in parents and line[-1] not in marked:
            line.append(parents[line[-1]])
        if line[-1] in marked:
            marked.update(line)
    return sorted(marked)


def open_in(processes: list[int], wanted: set[str]) -> set[str]:
    """Return which of these names the processes have open, or mapped into their memory."""
    found = set()
    for process in processes:
        with suppress(OSError):
            text = Path(f"/proc/{process}/maps").read_text()
            for number in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    text += os.readlink(f"/proc/{process}/fd/{number}") + "\n"
            # A folder's name is part of the paths within.
            found |= {name for name in wanted if f"{FOLDER}/{name}\n" in text or f"{FOLDER}/{name}/" in text}
    return found


if __name__ == "__main__":
    already_there = names()
    Path(sys.argv[3]).touch()
    if os.fork() == 0:
        os.setsid()
        watch(int(sys.argv[1]), f"{VARIABLE}={sys.argv[2]}".encode(), Path(sys.argv[3]), already_there)
        os._exit(0)
