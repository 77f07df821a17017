"""Sending: tasks that pass through the scheduler as bytes, and large partitions that go past it.

The scheduler unpickles what a client submits, and pickles it again for a worker. Of our tasks it sees only
names of the standard library, and bytes. So it needs neither parcoll nor a user's modules, and nothing costs
more because it is large or strange.
"""

from __future__ import annotations

import itertools
import operator
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from dask._task_spec import Task, TaskRef

from parcoll.evaluation.engine import Job
from parcoll.wire.codec import by_reference
from parcoll.wire.payload import Packed
from parcoll.worker.tasks import Awaited, Body

LARGE_BYTES = 2**20  # it takes three requests, some 5 ms, which have to pay
WAIT_SECONDS = 2.0  # until there is a worker at all


def opaque_task(key: str, func: Callable[..., Any], *arguments: Any) -> Task:
    """Return the task `func(*arguments)`; other tasks make the arguments that are a `TaskRef`."""
    awaited = [argument for argument in arguments if isinstance(argument, TaskRef)]
    positions = iter(range(len(awaited)))
    placed = tuple(Awaited(next(positions)) if isinstance(a, TaskRef) else a for a in arguments)
    call = Task(None, pickle.loads, Opaque(by_reference(Body(func, placed))))
    return Task(key, operator.call, call, *awaited)


class Opaque:
    """Bytes that dask does not hash: it would take 20 ms for each MB, to name a task that has a name."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (self.content,)

    def __dask_tokenize__(self) -> object:
        return id(self)


class Ahead:
    """The large partitions of one evaluation, which lie on workers until their tasks have ended.

    What is inside a task passes through the scheduler, which unpickles it, keeps it and pickles it again: at
    85 MB/s, and at 300 MB/s this way. But dask keeps one copy and cannot make another. If its worker dies,
    the task is cancelled, and the session sends the partition again, inside its task.
    """

    def __init__(self, client: Any, token: str) -> None:
        self._client = client
        self._token = token
        self._numbers = itertools.count()
        self._futures: dict[Job, Any] = {}
        self._works = True

    def send(self, jobs: Sequence[Job]) -> None:
        """Send the large partitions of these jobs, spread over the workers."""
        large = [job for job in jobs if isinstance(job.elements, Packed) and job.sent_bytes >= LARGE_BYTES]
        if not large or not self._works:
            return
        data = {f"partition-{self._token}-{next(self._numbers)}": job.elements for job in large}
        try:
            futures = self._client.scatter(data, direct=True, hash=False, timeout=WAIT_SECONDS)
        except (OSError, TimeoutError):  # no worker is there, or one left just now
            self._works = False
            return
        self._futures |= zip(large, futures.values(), strict=True)

    def reference(self, job: Job) -> TaskRef | None:
        """Return what stands for a job's partition in its task; None if it was not sent ahead."""
        future = self._futures.get(job)
        return None if future is None else TaskRef(future.key)

    def forget(self, job: Job) -> bool:
        """Let go of a job's partition. Returns whether it was sent ahead."""
        return self._futures.pop(job, None) is not None

    def clear(self) -> None:
        """Let go of all partitions."""
        self._futures.clear()
