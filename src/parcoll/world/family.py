"""Family: what `multiprocessing` knows of the process that started this one.

Processes of one family tell one process, the tracker, which shared memory and semaphores they have, so that
what is left is removed. Their key, with which they speak to each other's managers, comes with `boot`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def tracker() -> int | None:
    """Return the descriptor to which this process tells its resources; None where it has told none yet."""
    module: Any = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def track_with(tracker_fd: int | None) -> None:
    """Have a tracker hear of this process's resources.

    This is how `multiprocessing.spawn` does it; its attributes are private, and
    test_private_parts_of_multiprocessing.py fails when they change.
    """
    if tracker_fd is not None:
        from multiprocessing import resource_tracker

        os.set_inheritable(tracker_fd, False)
        known: Any = resource_tracker._resource_tracker
        known._fd, known._pid = tracker_fd, None


def adopt(segments: list[str]) -> None:
    """Tell this process's tracker of shared memory that others have made, as far as it is still there."""
    for name in segments:
        if exists(name):
            from multiprocessing import resource_tracker

            resource_tracker.register(name, "shared_memory")


def exists(segment: str) -> bool:
    """Tell whether there is shared memory of that name."""
    import _posixshmem  # type: ignore[import-not-found]

    try:
        descriptor = _posixshmem.shm_open(segment, os.O_RDONLY, mode=0)
    except OSError:
        return False
    os.close(descriptor)
    return True


def remove(segment: str) -> None:
    """Remove shared memory, if it is there."""
    import _posixshmem

    with contextlib.suppress(OSError):
        _posixshmem.shm_unlink(segment)


def remove_semaphore(name: str) -> None:
    """Remove a semaphore, if it is there."""
    import _multiprocessing  # type: ignore[import-not-found]

    with contextlib.suppress(OSError):
        _multiprocessing.sem_unlink(name)
