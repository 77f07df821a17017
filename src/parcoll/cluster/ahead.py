"""Large partitions go straight to a worker, ahead of their tasks, where a client can reach the workers.

What is inside a task passes the scheduler, which unpickles it, keeps it and pickles it again: 85 MB/s,
and 300 this way. But dask keeps one copy and cannot make another: when its worker dies the task is
cancelled, and the session sends the partition again, inside its task.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from dask._task_spec import TaskRef

from parcoll.evaluation.engine import Job
from parcoll.wire.payload import Packed

LARGE_BYTES = 2**20  # three requests, some 5 ms, have to pay
WAIT_SECONDS = 2.0  # for a worker to be there at all


class Ahead:
    """The partitions of one evaluation that lie on workers, until their tasks have ended."""

    def __init__(self, client: Any, token: str) -> None:
        self._client = client
        self._token = token
        self._numbers = itertools.count()
        self._futures: dict[Job, Any] = {}
        self._works = True

    def send(self, jobs: Sequence[Job]) -> None:
        """Send the large ones of these jobs' partitions, spread over the workers."""
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
        """Return what stands for a job's partition in its task, where it was sent ahead."""
        future = self._futures.get(job)
        return None if future is None else TaskRef(future.key)

    def forget(self, job: Job) -> bool:
        """Let go of a job's partition; tells whether it was sent ahead."""
        return self._futures.pop(job, None) is not None

    def clear(self) -> None:
        """Let go of all."""
        self._futures.clear()
