"""What comes back from a partition: results, counts, seconds, and errors as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from parcoll.chain.failures import FailedElement
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Payload


@dataclass
class Outcome:
    """The report of one task; small unless it carries `results`."""

    read: int = 0  # source elements begun; fewer than given where the time budget ran out
    complete: bool = True  # false where a rest was left
    produced: int = 0  # elements that left the last step
    flows: list[tuple[int, int]] = field(default_factory=list)  # (in, out) of each step
    failed_step: int | None = None  # the step that ended the evaluation; len(flows) for the fold
    # (failed, replaced, retries) of each step; the element that ended the evaluation has failed too.
    faults: list[tuple[int, int, int]] = field(default_factory=list)
    failed_elements: bytes = b""  # packed; of those that the evaluation goes on without, the first
    raised: FailedElement | None = None  # the element whose failure `failure` is
    ended_at: int | None = None  # the index of the source element at which `failed_step` ended it
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)  # of each step, and of what took the results
    nbytes: int = 0  # of the results, packed
    results: Payload | None = None
    failure: Failure | None = None
    unshared: str | None = None  # why shared memory could not be used, where it could not
    deaths: int = 0  # of processes that ran elements beside their worker (`isolation`)
    timeouts: int = 0  # calls that were stopped
    lost: bool = False  # no worker could finish the task, so that there is no result, not even a part


@dataclass
class Kept:
    """A result that stays in a worker's memory: its report, which travels alone, and its content."""

    outcome: Outcome
    content: Payload | None  # a list of elements, or for a fold a list of the one value so far
    folded: int = 0  # elements that a fold has taken

    def __sizeof__(self) -> int:
        held = self.content.nbytes if self.content is not None else 0
        return 512 + held + len(self.outcome.failed_elements)
