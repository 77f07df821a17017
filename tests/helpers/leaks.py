"""What a test may leave behind: processes, threads, folders, shared memory."""

from __future__ import annotations

import glob
import os
import tempfile
import threading
import time

import psutil
from named_memory import NamedMemory

# Pools that distributed and asyncio fill one by one, as there is more to do at once.
POOL_THREADS = ("Dask-Offload", "asyncio_", "TCP-Executor", "Profile", "Dask-Default-Threads")
# Threads that they keep for the life of the process.
KEPT_THREADS = (*POOL_THREADS, "IO loop", "fsspecIO")


named_memory: NamedMemory | None = None  # set in a run of pytest, by conftest.py


def shared_memory() -> set[str]:
    """Return the named shared memory that the tests' processes made."""
    return named_memory.own() if named_memory is not None else set()


def remains() -> dict[str, set[str]]:
    """Return what a test may leave behind: processes, threads, folders, shared memory."""
    processes = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                processes.add(f"{process.pid} {' '.join(process.cmdline())[:100]}")
        except psutil.Error:
            continue
    return {
        "processes": processes,
        "threads": {t.name for t in threading.enumerate() if not t.name.startswith(KEPT_THREADS)},
        "folders": set(glob.glob(os.path.join(tempfile.gettempdir(), "parcoll-*"))),
        "shared memory": shared_memory(),
    }


def new_remains(before: dict[str, set[str]], seconds: float = 30) -> dict[str, set[str]]:
    """Return what is there now and was not before, once it had time to go."""
    deadline = time.monotonic() + seconds
    while True:
        left = {kind: names - before[kind] for kind, names in remains().items()}
        left = {kind: names for kind, names in left.items() if names}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)
