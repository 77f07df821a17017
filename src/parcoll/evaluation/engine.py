"""What an evaluation needs of an engine: the seam between the window and whatever runs the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from parcoll.chain.place import START, Place
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Payload, Shared
from parcoll.wire.segments import Segment
from parcoll.worker.outcome import Outcome
from parcoll.worker.program import Program


@dataclass(eq=False)
class Job:
    """One task: run the program on a partition, or join kept partitions into a fold's value."""

    kind: Literal["run", "join"] = "run"
    elements: Payload | None = None  # a partition that travels with its task
    reference: Any = None  # or one that an engine keeps
    graph: tuple[dict[Any, Any], Any] | None = None  # or one that a user's bag computes
    parts: Sequence[Any] = ()  # for "join": the value so far (or None), then kept partitions
    place: Place = START
    size: int | None = None  # elements, where known
    budget: float | None = None  # seconds after which a worker hands back what it has not begun
    isolated: bool = False  # an element of it may have ended a worker
    losses: int = 0  # of workers that had it
    lost_workers: list[str] = field(default_factory=list)  # their addresses, as far as they are known
    order: int = 0  # jobs with a smaller number go first
    handle: Any = None  # set by the engine where the result is kept
    segment: Segment | None = None  # shared memory that the engine lent it
    saved: Outcome | None = None  # where a checkpoint has it: then there is nothing to run
    digest: bytes | None = None  # of the elements, for a checkpoint
    copy: Payload | None = None  # of elements that stay in this process, and may be changed there
    record: Any = None  # what a checkpoint saves of the outcome

    @property
    def sent_bytes(self) -> int:
        """How many bytes the task's elements take."""
        return self.elements.nbytes if self.elements is not None else 0

    @property
    def message_bytes(self) -> int:
        """How many of them travel in the message that submits the task."""
        return 0 if isinstance(self.elements, Shared) else self.sent_bytes

    def release(self) -> None:
        """Drop the elements, which were kept for a rest only; the task is done and its results are here."""
        self.elements = self.copy = None
        if self.segment is not None:
            self.segment.give_back()
            self.segment = None


class Session(Protocol):
    """One program under evaluation."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs; those with the smaller order go first."""

    def completed(self, block: bool) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended since the last call; with `block` at least one."""

    def close(self) -> None:
        """Cancel what still runs and forget the rest. May be called twice, from any thread."""


class Follower(Protocol):
    """Whoever tells others of an evaluation while it runs."""

    def end(self) -> None:
        """Tell the final numbers."""


class Engine(Protocol):
    """Runs programs: in this process, on the local cluster, or on any dask scheduler."""

    renews: bool  # where its cluster was lost, the next session is on another one
    in_background: bool  # tasks run while nobody waits for them

    def open(self, program: Program, label: str, keep: bool) -> Session:
        """Start an evaluation; with `keep` results stay where they were made, as `Job.handle`."""

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Make `value` ready to travel to where this engine runs tasks.

        `lasting` where the task may run again after its job is done, to make its result anew.
        """

    def memory_limit(self) -> float:
        """Return how many bytes a worker may hold: infinity where there is no limit."""

    def threads(self) -> int:
        """Return how many tasks run at the same time."""

    def fetch(self, handle: Any) -> Payload | None:
        """Return the content of a kept result."""

    def follow(self, stats: Stats) -> Follower | None:
        """Tell others of an evaluation, where there is somebody to tell."""

    def persist(self, bag: Any) -> Any:
        """Compute a bag's shared tasks once, and return the bag of their results."""
