"""The parts of multiprocessing and threading that we lean on without their being public."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.resource_tracker import ResourceTracker

import pytest

from parcoll.local.tracker import Tracker
from parcoll.world import boot


@pytest.fixture(scope="module", autouse=True)
def tracker(leaves_no_trace: None) -> Iterator[None]:
    """Have a process that tracks this one's shared memory, and end it with the module."""
    resource_tracker.ensure_running()
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def test_a_resource_tracker_still_writes_to_the_descriptor_that_it_was_given() -> None:
    """As `world.boot` gives it to workers, and in the form that `local.tracker` reads."""
    assert {"_fd", "_pid"} <= vars(resource_tracker._resource_tracker).keys()
    heard = Tracker()
    known = ResourceTracker()
    known._fd, known._pid = os.dup(heard.told), None  # type: ignore[attr-defined]
    for name in ("/one", "/two", "/three"):
        known.register(name, "shared_memory")
    known.register("/lock", "semaphore")
    known.unregister("/two", "shared_memory")
    known.unregister("/lock", "semaphore")
    assert known.getfd() == known._fd  # type: ignore[attr-defined]
    assert heard.left() == ["/one", "/three"]
    os.close(known._fd)  # type: ignore[attr-defined]
    known._fd = None  # type: ignore[attr-defined]
    os.close(heard.heard)
    os.close(heard.told)


def test_shared_memory_can_be_looked_for_and_removed() -> None:
    from multiprocessing.shared_memory import SharedMemory

    segment = SharedMemory(create=True, size=10)
    name = segment.name if segment.name.startswith("/") else f"/{segment.name}"
    assert boot.exists(name)
    boot.adopt([name, "/no-such-segment-of-a-test"])
    segment.close()
    segment.unlink()
    assert not boot.exists(name)
    boot.remove(name)
    boot.remove_semaphore("/no-such-semaphore-of-a-test")


def test_handlers_can_be_called_and_threads_joined_before_the_end() -> None:
    """`ending` does what the interpreter does at its end."""
    assert callable(atexit._run_exitfuncs)
    assert callable(threading._shutdown)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["_FileIO", "IOBase"])
def test_files_have_one_base(name: str) -> None:
    import _io
    import gzip
    import io

    assert issubclass(gzip.GzipFile, _io._IOBase)
    assert issubclass(io.TextIOWrapper, _io._IOBase)
    del name
