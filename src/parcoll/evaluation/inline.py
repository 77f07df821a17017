"""Inline: evaluation in this process, one partition at a time, as a debugger and fast tests need it."""

from __future__ import annotations

import functools
import math
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from parcoll.calls import objects
from parcoll.chain.sinks import Pack
from parcoll.evaluation.engine import Job, Join
from parcoll.watch.stats import Stats
from parcoll.wire import memmaps
from parcoll.wire.codec import by_value
from parcoll.wire.payload import ByValue, Packed, Payload, Plain
from parcoll.wire.script import owned_by
from parcoll.worker.outcome import Outcome, kept_of
from parcoll.worker.program import Program, SharedProgram, copied, in_process
from parcoll.worker.tasks import join_here, joined, run
from parcoll.world import boot


class InlineEngine:
    """Runs each task when its result is asked for.

    Functions, elements and results are copies, as on a cluster: a change that a function makes to its
    argument, or to what it has captured, is not seen here, and what cannot be sent raises an error. Without
    `copies` they are the caller's own objects.
    """

    renews = False
    scratch = None
    in_background = False
    hands_back = False
    of_machine = True
    address = "inline"
    client = None
    dashboard_link = None

    def __init__(self, copies: bool = True) -> None:
        self._copies = copies
        self._owner = f"inline-{id(self)}"  # of the objects that functions make

    def open(self, program: Program, words: str, keep: bool) -> InlineSession:
        """Start an evaluation."""
        objects.end_dropped()
        boot.look_for_lost()
        if not self._copies:
            return InlineSession(in_process(program), keep, Plain, self._owner)
        with memmaps.sent(here=True):
            return InlineSession(copied(program), keep, _packed, self._owner)

    def pack(self, value: Any, lasting: bool = False, by_value: ByValue = by_value) -> Payload:
        """Pickle the value, so that it is loaded as a copy; without `copies`, hold it as it is."""
        return _packed(value, by_value) if self._copies else Plain(value)

    def memory_limit(self) -> float:
        """Return infinity: nothing is sent."""
        return math.inf

    def threads(self) -> int:
        """Return 1."""
        return 1

    def follow(self, stats: Stats) -> None:
        """Show it to nobody."""

    def persist(self, bag: Any) -> Any:
        """Compute the whole bag here."""
        from parcoll.evaluation.bag import persist_here  # lazy: dask.bag

        return persist_here(bag)

    def close(self) -> None:
        """End the objects that functions have made, and the loop of coroutines, if any have run here."""
        objects.end_here(objects.Which(owner=self._owner))
        if (coroutines := sys.modules.get("parcoll.calls.coroutines")) is not None:
            coroutines.end()


def _packed(value: Any, by_value: ByValue = by_value) -> Packed:
    with memmaps.sent(here=True):
        return Packed.pack(value, by_value)


class InlineSession:
    """A queue of jobs, which run one by one."""

    program_bytes = 0
    waiting_for = None
    has_come = False

    def __init__(self, shared: SharedProgram, keep: bool, pack: Pack, owner: str) -> None:
        self.shared = shared
        self._owner = owner
        self._keep = keep
        self._pack = pack
        self._waiting: deque[Job] = deque()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs; nothing runs yet."""
        self._waiting.extend(jobs)

    def completed(self, block: bool, seconds: float = math.inf) -> list[tuple[Job, Outcome]]:
        """Run one job if the caller waits for it."""
        if not block or not self._waiting:
            return []
        job = self._waiting.popleft()
        if isinstance(job, Join):
            previous = None if job.previous is None else job.previous.fetch()
            parts = [part.fetch() for part in job.parts]
            with owned_by(self._owner):
                job.handle = kept = join_here(self.shared, previous, parts, job.before, self._pack)
            return [(job, kept.outcome)]
        elements = self._elements(job)
        with owned_by(self._owner):
            work = functools.partial(
                run, self.shared, job.place, elements, job.budget, self._pack, share=job.share
            )
            joining = None if job.sole is None else job.sole.joins()
            outcome = work() if joining is None else joined(work, joining, self._pack)
        if self._keep and job.sole is None:
            job.handle = kept_of(outcome)
        return [(job, outcome)]

    def _elements(self, job: Job) -> Any:
        if job.graph is not None:
            from parcoll.evaluation.bag import compute_partition  # lazy: dask.bag

            return compute_partition(*job.graph)
        return job.elements if job.kept is None else job.kept.recall()

    def close(self) -> None:
        """Drop the jobs that did not run."""
        self._waiting.clear()
