"""Engine: what an evaluation needs of whatever runs its tasks, and the jobs that it gives to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from parcoll.chain.place import START, Place
from parcoll.chain.steps import WHOLE, Share
from parcoll.errors import ClusterLostError
from parcoll.keys.store import Scratch
from parcoll.watch.around import Follower
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats
from parcoll.wire.codec import by_value
from parcoll.wire.payload import ByValue, Payload, Shared
from parcoll.wire.segments import Segment
from parcoll.worker.outcome import Handle, Kept, Outcome
from parcoll.worker.program import Program, SharedProgram

if TYPE_CHECKING:
    from parcoll.checkpoint.records import Record

# Clusters that one call may lose, one after the other, before any of them gets it further.
MAX_CLUSTERS_LOST = 5


class Sole(NamedTuple):
    """What becomes of a partition that has all elements of its source, where others would be kept."""

    joins: Callable[[], SharedProgram | None]  # gives what folds it in the same task, if that can be
    renew: Callable[[], None]  # has what joins others go to the cluster that is there now


@dataclass(eq=False)
class Job:
    """One task that runs the program on a partition, and what became of it so far."""

    elements: Payload | None = None  # the partition, if it travels with its task
    by_value: ByValue = by_value  # pickles what is left of it
    kept: Handle | None = None  # or the partition that an engine keeps
    graph: tuple[dict[Any, Any], Any] | None = (
        None  # or the tasks of a user's bag that compute it, and the key of the last one
    )
    place: Place = START
    size: int | None = None  # how many elements it has; None if nobody knows yet
    budget: float | None = None  # seconds; then a worker hands back the elements that it has not begun
    patience: float = 1.0  # seconds; then it hands back the tasks that wait behind this one
    begun: int | None = None  # how many elements it has, if its worker handed back those behind them
    share: Share = WHOLE  # of the calls that may run at the same time
    isolated: bool = False  # it runs beside its worker, since one of its elements may have ended others
    lost_workers: list[str] = field(default_factory=list)  # the workers that it was lost with; "" if unknown
    handle: Handle | None = None  # of the result, if it is kept; the engine sets it
    segment: Segment | None = None  # shared memory that the engine lent it
    saved: Outcome | None = None  # from a checkpoint: then there is nothing to run
    record: Record | None = None  # what a checkpoint saves of its outcome
    sole: Sole | None = None  # if it has all elements, as far as is known: what comes of it is not kept

    @property
    def order(self) -> int:
        """Jobs with a smaller number go first."""
        return self.place.order

    @property
    def share_now(self) -> Share:
        """What its task is told of its share: sent again it is not fresh, also if it has all of the calls."""
        return self.share._replace(fresh=self.share.fresh and not self.lost_workers)

    @property
    def name(self) -> str:
        """What the job was to do, for messages."""
        many = "" if self.size is None else f"{self.size} element{'s' * (self.size > 1)} from "
        return f"the partition of {many}{self.place.element(0)}"

    @property
    def sent_bytes(self) -> int:
        """How many bytes the elements of the task take."""
        return self.elements.nbytes if self.elements is not None else 0

    @property
    def message_bytes(self) -> int:
        """How many of them travel in the message that submits the task."""
        return 0 if isinstance(self.elements, Shared) else self.sent_bytes

    def release(self) -> None:
        """Drop the elements, which were kept for a rest only. The task is done and its results are here."""
        self.elements = None
        if self.segment is not None:
            self.segment.give_back()
            self.segment = None


@dataclass(eq=False)
class Join(Job):
    """One task that folds kept partitions into the value of a fold."""

    previous: Handle | None = None  # the value so far
    parts: Sequence[Handle] = ()
    number: int = 0  # of the joins of one evaluation
    before: int = 0  # without a value so far: how many values come before those of the parts
    stays: bool = False  # the value is to be used where it is made
    at: str = ""  # the worker that has the value so far, if only that has it

    @property
    def order(self) -> int:
        """Joins go in the order of their numbers."""
        return self.number

    @property
    def message_bytes(self) -> int:
        """How many bytes the values take that were brought here."""
        here = [part for part in (self.previous, *self.parts) if isinstance(part, Kept)]
        return sum(part.content.nbytes for part in here if part.content is not None)

    @property
    def name(self) -> str:
        """What the join was to do, for messages."""
        return f"the join of {len(self.parts)} partitions"


class Session(Protocol):
    """One program under evaluation."""

    @property
    def program_bytes(self) -> int:
        """How many bytes of the program had to be sent, or copied into shared memory."""

    @property
    def shared(self) -> SharedProgram | None:
        """The program, if it may go along with a task of another session; None if that would be dear."""

    @property
    def has_come(self) -> bool:
        """Whether `completed` has something to return."""

    @property
    def waiting_for(self) -> str | None:
        """Which worker its tasks wait for, if there is none that may run them."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs; those with the smaller order go first."""

    def completed(self, block: bool, seconds: float = math.inf) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended since the last call; with `block`, at least one.

        None even so, if what it waits for has changed, or soon after these seconds. Also those that go on,
        and hand back elements, with an outcome that is `early`.
        """

    def close(self) -> None:
        """Cancel what still runs and forget the rest. May be called twice, from any thread."""


class Engine(Protocol):
    """Runs programs: in this process, on the local cluster, or on any dask scheduler."""

    @property
    def renews(self) -> bool:
        """Whether a session that is opened after its cluster was lost is on another cluster."""

    @property
    def hands_back(self) -> bool:
        """Whether a task that takes long hands back, while it runs, what it has not begun."""

    @property
    def of_machine(self) -> bool:
        """Whether the workers are processes of this machine, and share its memory and its files."""

    @property
    def scratch(self) -> Callable[[], Scratch] | None:
        """What makes a folder of an evaluation, where workers put what they send to each other; or None."""

    @property
    def in_background(self) -> bool:
        """Whether tasks run while nobody waits for them."""

    @property
    def address(self) -> str:
        """The address of the scheduler; "inline" if there is none."""

    @property
    def client(self) -> Any:
        """The client of the scheduler; None if there is none."""

    @property
    def dashboard_link(self) -> str | None:
        """The address of the scheduler's dashboard; None if there is none."""

    def open(self, program: Program, words: str, keep: bool) -> Session:
        """Start an evaluation; with `keep`, results stay where they were made, as `Job.handle`."""

    def pack(self, value: Any, lasting: bool = False, by_value: ByValue = by_value) -> Payload:
        """Make `value` ready to travel to where this engine runs tasks.

        `lasting` if the task may run again after its job is done, to make a lost result anew. `by_value`
        pickles what plain pickle cannot.
        """

    def memory_limit(self) -> float:
        """Return how many bytes a worker may hold; infinity if there is no limit."""

    def threads(self) -> int:
        """Return how many tasks run at the same time."""

    def follow(self, stats: Stats) -> Follower | None:
        """Show others the evaluation while it runs; None if there is nobody to show it to."""

    def persist(self, bag: Any) -> Any:
        """Compute the tasks that partitions of a bag share, once, and return the bag of their results."""

    def close(self) -> None:
        """End what this engine has started, and nothing else. May be called twice."""


class Sizer(Protocol):
    """Decides the sizes of partitions from what the partitions before them took."""

    exact: bool  # a partition is filled to its size, however long its source takes

    def next_size(self, remaining: int | None, threads: int) -> int:
        """Return the size of the next partition; `remaining` elements are left, None if nobody knows."""

    def ahead(self, threads: int) -> int:
        """Return how many elements of a stream should be at hand before a partition is cut off."""

    def max_bytes(self, threads: int) -> int:
        """Return how many bytes the next partition may read."""

    def budget(self, sole: bool = False) -> float | None:
        """Return the seconds after which a worker hands back what it has not begun; None for no bound."""

    def patience(self) -> float:
        """Return the seconds after which a worker hands back the partitions that wait behind this one."""

    def window(self, threads: int, held_up: bool = False) -> int:
        """Return how many partitions may be at the workers, or wait for the consumer.

        `held_up` if a worker has nothing to do while the first of them goes on.
        """

    def refill(self, threads: int) -> int:
        """Return how many places in the window should be free before more are filled, all at once."""

    def nears_end(self, remaining: int | None, threads: int) -> bool:
        """Tell whether the next partition is one of the last ones, as far as is known."""

    def observe(self, outcome: Outcome, sent_bytes: int) -> None:
        """Learn from a partition that has run."""

    def forget(self) -> None:
        """Take it that elements take longer than they did in earlier evaluations: some were handed back."""

    @property
    def pace(self) -> float | None:
        """The seconds that an element of this evaluation has taken lately; None if nobody knows."""

    @property
    def of_few(self) -> float | None:
        """The seconds that it takes in a small part of a batch; None if nobody knows."""


class Calls(Protocol):
    """What is known of the calls of a program whose tasks make several at the same time."""

    def at_once(self, parts: int) -> int:
        """Return how many a task makes, if there are so many tasks."""

    def interval(self, parts: int) -> float:
        """Return the least seconds from one element of a task to the next; 0 if there is no rate."""


def lost_for_good(reason: str) -> ClusterLostError:
    """Return the error for a loss that no other cluster can make good."""
    error = ClusterLostError(reason)
    error._final = True
    return error


class Losses:
    """The clusters that one call of the user's has lost, with all evaluations that it is made of.

    After `MAX_CLUSTERS_LOST` in a row the next one ends it. An outcome is progress, but for a call that has
    begun again from its source: it had come that far before, and only what is saved stays. So a cluster that
    dies each time is given up as soon, however many evaluations are within each other, or follow each other.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._in_a_row = 0
        self._begun_again = False

    def add(self, error: ClusterLostError, recorder: Recorder) -> None:
        """Count what was lost, once for all evaluations that notice it; make it final if it is too much."""
        if error._final:
            return
        recorder.lose(error._which)
        if error._which not in self._known:
            self._known |= {error._which} - {""}
            self._in_a_row += 1
        # Also of one that was noticed before: a call that reads from one which was given up notices it now.
        error._final = self._in_a_row > MAX_CLUSTERS_LOST

    def came(self, saved: bool = False) -> None:
        """Note that an outcome has come, or is saved."""
        if saved or not self._begun_again:
            self._in_a_row = 0

    def begin_again(self) -> None:
        """Note that the call begins again, since what it had was on the cluster."""
        self._begun_again = True
