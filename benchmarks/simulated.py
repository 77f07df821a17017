"""Worker threads that do not exist: tasks run at once, and their results come when they have slept.

Tasks sleep on a clock of their own, which goes forward at once. So hundreds of threads that would do
nothing but wake up take no time of the machine on which the scheduler is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class Clock:
    """What tasks of this process take for `time.perf_counter`."""

    def __init__(self) -> None:
        self.slept = 0.0
        self._real = time.perf_counter

    def __call__(self) -> float:
        return self._real() + self.slept


clock = Clock()


class Sleeper(Executor):
    """Runs a task at once, and tells its result when the task has slept: no thread waits for that."""

    def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task, here in the worker's event loop."""
        before = clock.slept
        result = func(*args, **kwargs)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a thread's task could not be cancelled either
        asyncio.get_running_loop().call_later(clock.slept - before, future.set_result, result)
        return future
