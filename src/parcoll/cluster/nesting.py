"""Nesting: an evaluation inside a dask task, which must not hold the thread that its own tasks need."""

from __future__ import annotations

import threading

import distributed

_in_task = threading.local()


def enter_task() -> bool:
    """Leave the worker's thread pool while its task evaluates, so that inner tasks find a thread.

    To wait inside would be a deadlock: a worker has one thread, and the waiting task holds it.
    """
    depth = getattr(_in_task, "depth", 0)
    if depth == 0:
        try:
            distributed.secede()
        except (ValueError, AttributeError, KeyError):  # not in a task's thread
            return False
    _in_task.depth = depth + 1
    return True


def leave_task() -> None:
    """Take a thread of the pool again, when the outermost evaluation of this task ends."""
    _in_task.depth -= 1
    if _in_task.depth == 0:
        distributed.rejoin()
