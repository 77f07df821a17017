"""Nesting: an evaluation inside a dask task, which must not hold the thread that its own tasks need."""

from __future__ import annotations

import queue
import threading
from typing import Any

import distributed

from parcoll.local.levels import Running
from parcoll.local.main_thread import MainThreadPoolExecutor, current_task

_in_task = threading.local()


def enter_task() -> Any:
    """Leave the worker's thread pool while its task evaluates, so that inner tasks find a thread.

    To wait inside would be a deadlock: a worker has one thread, and the waiting task holds it. Returns what
    has a `leave` to be called when the evaluation ends; None outside of a task.
    """
    here = current_task()
    try:
        return _InThreadOfPool() if here is None else _InMainThread(*here)
    except (ValueError, AttributeError, KeyError):  # not in a task's thread
        return None


def level() -> int:
    """Return how deep an evaluation is in others, as far as workers of ours tell."""
    here = current_task()
    return 0 if here is None else here[1].level + 1


def wait_for(results: Any, seconds: float) -> Any:
    """Return the next of `results`, or None after some time; a task runs inner tasks meanwhile."""
    here = current_task()
    try:
        if here is None:
            return results.get(seconds)
        pool, running = here
        return pool.wait_for(results, running, seconds)
    except queue.Empty:
        return None


class _InThreadOfPool:
    """An evaluation in a task that runs in a thread of dask's own pool."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        depth = getattr(_in_task, "depth", 0)
        if depth == 0:
            distributed.secede()
        _in_task.depth = depth + 1

    def leave(self) -> bool:
        """Take a thread of the pool again, when the outermost evaluation of this task ends.

        False if another thread closes the evaluation: the task's own thread ends with its task.
        """
        if self._thread != threading.get_ident():
            return False
        _in_task.depth -= 1
        if _in_task.depth == 0:
            distributed.rejoin()
        return True


class _InMainThread:
    """An evaluation in a task of a local worker with one thread."""

    def __init__(self, pool: MainThreadPoolExecutor, running: Running) -> None:
        self._pool = pool
        self._running = running
        running.evaluations += 1
        if running.evaluations == 1:
            try:
                distributed.secede()
                running.seceded = True
            except KeyError:  # the function has done so itself
                pass

    def leave(self) -> bool:
        """Be in the pool again, when the outermost evaluation of this task ends, in its thread."""
        running = self._running
        running.evaluations -= 1
        if running.over or running.thread != threading.get_ident():
            return False
        if running.evaluations == 0 and running.seceded:
            running.seceded = False
            self._pool.come_back()
        return True
