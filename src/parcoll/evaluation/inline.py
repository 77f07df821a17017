"""Evaluation in this very process, one partition at a time: for a debugger, doctests and fast tests."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from parcoll.evaluation.engine import Job
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Payload, Plain
from parcoll.worker.outcome import Kept, Outcome, kept_of
from parcoll.worker.program import Program, SharedProgram, in_process
from parcoll.worker.tasks import join_here, run


class InlineEngine:
    """Runs each task when its result is asked for."""

    renews = False
    in_background = False

    def open(self, program: Program, label: str, keep: bool) -> InlineSession:
        """Start an evaluation."""
        return InlineSession(in_process(program), keep)

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Hold the value: nothing travels."""
        return Plain(value)

    def memory_limit(self) -> float:
        """Return infinity: nothing is copied."""
        return math.inf

    def threads(self) -> int:
        """Return 1."""
        return 1

    def fetch(self, handle: Any) -> Payload | None:
        """Return the content of a kept result, wherever it is kept."""
        kept = _kept(handle)
        return kept.content

    def follow(self, stats: Stats) -> None:
        """Tell nobody."""

    def persist(self, bag: Any) -> Any:
        """Compute the whole bag here."""
        from parcoll.evaluation.bag import persist_here

        return persist_here(bag)


class InlineSession:
    """A queue of jobs, run one by one."""

    def __init__(self, shared: SharedProgram, keep: bool) -> None:
        self._shared = shared
        self._keep = keep
        self._waiting: deque[Job] = deque()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs; nothing runs yet."""
        self._waiting.extend(jobs)

    def completed(self, block: bool) -> list[tuple[Job, Outcome]]:
        """Run one job if the caller waits for it."""
        if not block or not self._waiting:
            return []
        job = self._waiting.popleft()
        if job.kind == "join":
            previous, *parts = [None if part is None else _kept(part) for part in job.parts]
            result: Kept | Outcome = join_here(self._shared, previous, [p for p in parts if p], Plain)
        else:
            result = run(self._shared, job.place, self._elements(job), job.budget, Plain)
            if self._keep:
                result = kept_of(result)
        if isinstance(result, Kept):
            job.handle = result
            return [(job, result.outcome)]
        return [(job, result)]

    def _elements(self, job: Job) -> Any:
        if job.elements is not None:
            return job.elements
        if job.graph is not None:
            from parcoll.evaluation.bag import compute_partition

            return compute_partition(*job.graph)
        return _kept(job.reference)

    def close(self) -> None:
        """Drop the jobs that did not run."""
        self._waiting.clear()


def _kept(reference: Any) -> Kept:
    """Return a kept result; one that a cluster keeps is brought here."""
    if isinstance(reference, Kept):
        return reference
    from parcoll.cluster.engine import result_of

    return result_of(reference)
