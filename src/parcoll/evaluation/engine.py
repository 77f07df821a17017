"""Engine: what an evaluation needs of whatever runs its tasks, and the jobs that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from parcoll.chain.place import START, Place
from parcoll.watch.around import Follower
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Payload, Shared
from parcoll.wire.segments import Segment
from parcoll.worker.outcome import Handle, Outcome
from parcoll.worker.program import Program


@dataclass(eq=False)
class Job:
    """One task that runs the program on a partition, and what became of it so far."""

    elements: Payload | None = None  # the partition, where it travels with its task
    kept: Handle | None = None  # or where an engine keeps it
    graph: tuple[dict[Any, Any], Any] | None = (
        None  # or where a user's bag computes it: tasks, and the last key
    )
    place: Place = START
    size: int | None = None  # elements, where known
    budget: float | None = None  # seconds after which a worker hands back what it has not begun
    isolated: bool = False  # an element of it may have ended its workers
    losses: list[str] = field(default_factory=list)  # the workers that it was lost with; "" for one unknown
    handle: Handle | None = None  # set by the engine where the result is kept
    segment: Segment | None = None  # shared memory that the engine lent it
    saved: Outcome | None = None  # where a checkpoint has it: then there is nothing to run

    @property
    def order(self) -> int:
        """Jobs with a smaller number go first."""
        return self.place.order

    @property
    def name(self) -> str:
        """What it was to do."""
        many = "" if self.size is None else f"{self.size} element{'s' * (self.size > 1)} from "
        return f"the partition of {many}{self.place.element(0)}"

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
        self.elements = None
        if self.segment is not None:
            self.segment.give_back()
            self.segment = None


@dataclass(eq=False)
class Join(Job):
    """One task that folds kept partitions into a fold's value."""

    previous: Handle | None = None  # the value so far
    parts: Sequence[Handle] = ()
    number: int = 0  # of the joins of one evaluation

    @property
    def order(self) -> int:
        """The one before goes first."""
        return self.number

    @property
    def name(self) -> str:
        """What it was to do."""
        return f"the join of {len(self.parts)} partitions"


class Session(Protocol):
    """One program under evaluation."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs; those with the smaller order go first."""

    def completed(self, block: bool) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended since the last call; with `block` at least one."""

    def close(self) -> None:
        """Cancel what still runs and forget the rest. May be called twice, from any thread."""


class Engine(Protocol):
    """Runs programs: in this process, on the local cluster, or on any dask scheduler."""

    @property
    def renews(self) -> bool:
        """Whether, where its cluster was lost, the next session is on another one."""

    @property
    def in_background(self) -> bool:
        """Whether tasks run while nobody waits for them."""

    @property
    def address(self) -> str:
        """The scheduler's address; "inline" where there is none."""

    @property
    def client(self) -> Any:
        """The client of the scheduler; None where there is none."""

    @property
    def dashboard_link(self) -> str | None:
        """The address of the scheduler's dashboard; None where there is none."""

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

    def follow(self, stats: Stats) -> Follower | None:
        """Tell others of an evaluation, where there is somebody to tell."""

    def persist(self, bag: Any) -> Any:
        """Compute a bag's shared tasks once, and return the bag of their results."""

    def close(self) -> None:
        """End what this engine has started, and nothing else. May be called twice."""
