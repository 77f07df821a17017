"""What all tests share: clusters to run on, and the check that nothing of a module's outlives it."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from parcoll import Connection, connect


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a temporary directory of its own, so that what is left there is its own doing."""
    folder = tempfile.mkdtemp(prefix="test-run-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["TMPDIR"] = tempfile.tempdir = folder


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
        "threads": {thread.name for thread in threading.enumerate()},
        "folders": set(glob.glob(os.path.join(tempfile.gettempdir(), "parcoll-*"))),
        "shared memory": set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set(),
    }


def new_remains(before: dict[str, set[str]], seconds: float = 5) -> dict[str, set[str]]:
    """Return what is there now and was not before, once it had time to go."""
    deadline = time.monotonic() + seconds
    while True:
        left = {kind: names - before[kind] for kind, names in remains().items()}
        left = {kind: names for kind, names in left.items() if names}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


# Threads that distributed and asyncio keep for the life of the process, one pool each.
KEPT_THREADS = ("Dask-Offload", "asyncio_", "TCP-Executor", "Profile", "IO loop", "Dask-Default-Threads")


@pytest.fixture(scope="module", autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Fail a module whose processes, threads, folders or shared segments outlive it."""
    before = remains()
    yield
    left = new_remains(before)
    threads = {name for name in left.get("threads", ()) if not name.startswith(KEPT_THREADS)}
    left = {kind: names for kind, names in left.items() if kind != "threads"}
    assert not left, f"left behind: {left}"
    assert not threads, f"threads left behind: {threads}"


@pytest.fixture(scope="module")
def cluster(leaves_no_trace: None) -> Iterator[Connection]:
    """Evaluate this module's collections on a local cluster of two real worker processes."""
    with connect(n_workers=2) as connection:
        yield connection


@pytest.fixture
def inline() -> Iterator[Connection]:
    """Evaluate in this process."""
    with connect("inline") as connection:
        yield connection
