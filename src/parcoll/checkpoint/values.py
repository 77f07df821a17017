"""Values: what a checkpoint has of a fold: the value of each partition, to be joined with the others again.

A `reduce`, and a fold whose `combine` changes `initial`, take all elements one after the other. So what is
saved for them are the elements, as for iteration, and a folder may serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

from parcoll.calls.held import Held
from parcoll.chain.sinks import Sink, saving
from parcoll.chain.steps import Step
from parcoll.wire import memmaps
from parcoll.wire.payload import Packed, Payload
from parcoll.worker.fold import Fold
from parcoll.worker.outcome import Kept, Outcome


class Folding(Step):
    """A fold, as a checkpoint compares it: behind the steps, and as they are compared."""

    kind = "fold"

    def __init__(self, fold: Fold) -> None:
        super().__init__(fold.func)
        self._fold = fold

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What `fold` was given beside its function."""
        initial = None if self._fold.initial is None else self._fold.initial.load()
        return {"combine": self._fold.combine, "initial": initial}


def saved_as(sink: Sink, steps: Any) -> tuple[Sink, ...] | tuple[Sink, Folding]:
    """Return the sink whose results are saved for this one, and a fold as it is compared."""
    return (sink, Folding(sink)) if isinstance(sink, Fold) else (saving(steps, sink.limit),)


def kept(
    deliveries: Iterator[tuple[Any, Outcome]], sink: Sink, load: Callable[[Payload, str, int], list[Any]]
) -> Generator[tuple[Any, Outcome], None, None]:
    """Give jobs and outcomes; each job gets the handle of what was saved, which goes to a worker as data."""
    with closing(deliveries):  # type: ignore[type-var]
        for job, outcome in deliveries:
            results, outcome.results = outcome.results, None
            if isinstance(results, Held):
                results = results.packed()
            if results is not None and (type(results) is not Packed or memmaps.refers(results.head)):
                # Of a piece, whose classes may be those of an earlier process, or in shared memory.
                what = f"the results of the partition at {job.place.element(0)}"
                number = 1 if isinstance(sink, Fold) else outcome.produced
                results = Packed.pack(load(results, what, number))
            job.handle = Kept(Outcome(), results)
            yield job, outcome
