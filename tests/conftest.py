"""What all tests share: clusters to run on, and the check that nothing of a module's outlives it."""

from __future__ import annotations

import glob
import os
import shutil
import signal
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
    # A shell has what it starts in the background ignore Ctrl-C, and that is inherited by what the tests
    # start; a handler is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Pools that distributed and asyncio fill one by one, as there is more to do at once.
POOL_THREADS = ("Dask-Offload", "asyncio_", "TCP-Executor", "Profile", "Dask-Default-Threads")
# Threads that they keep for the life of the process.
KEPT_THREADS = (*POOL_THREADS, "IO loop")


def shared_memory() -> set[str]:
    """Return what is in shared memory, without the semaphores of `multiprocessing`.

    parcoll has none; dask's nannies do, and so may other programs of this machine.
    """
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if not name.startswith("sem.mp-")}


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


def new_remains(before: dict[str, set[str]], seconds: float = 5) -> dict[str, set[str]]:
    """Return what is there now and was not before, once it had time to go."""
    deadline = time.monotonic() + seconds
    while True:
        left = {kind: names - before[kind] for kind, names in remains().items()}
        left = {kind: names for kind, names in left.items() if names}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


left_behind: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def leaves_no_trace(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a module whose processes, threads, folders or shared segments outlive it."""
    before = remains()
    yield
    left = new_remains(before)
    if left:
        left_behind.append(request.node.nodeid)
    assert not left, f"left behind: {left}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Have a run that left something behind end otherwise than with a failed test, which is tried again.

    What is left is told of a module's last test and may be any other's doing: that one, run again alone,
    would pass.
    """
    if left_behind:
        session.exitstatus = 6  # pytest's own end at 5


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
