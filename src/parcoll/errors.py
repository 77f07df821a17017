"""The exceptions that parcoll itself raises; a user's own exceptions pass through with their own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class ParcollError(Exception):
    """Base of everything parcoll raises on its own account."""


class SourceConsumedError(ParcollError, RuntimeError):
    """A one-pass source (an iterator, a generator, a file) was evaluated a second time."""


class SerializationError(ParcollError, TypeError):
    """A function, an element or a result cannot travel between processes."""


class ClusterStartError(ParcollError, RuntimeError):
    """The local cluster did not start."""


class ConnectError(ParcollError, ConnectionError):
    """No dask scheduler could be joined at the address given."""


class CheckpointError(ParcollError, RuntimeError):
    """A checkpoint cannot be gone on with (another chain, another source), or cannot be written."""


class WorkerLostError(ParcollError, RuntimeError):
    """An element ended each process that ran it, or a partition did, where the element is not known."""


class ElementTimeoutError(ParcollError, TimeoutError):
    """A step's function took longer with an element than `timeout=` allows, and was stopped."""


class ClusterLostError(ParcollError, ConnectionError):
    """The scheduler went away, or was closed, while an evaluation needed it.

    `yielded` says how many elements the evaluation had yielded before. What evaluates as a whole, as
    `reduce`, yields none.
    """

    yielded: int | None = None  # None until the evaluation that met the error has told
    for_good: bool = False  # no other cluster has, or will have, what was lost

    def tell(self, what: str, yielded: int = 0) -> None:
        """Add what was lost; once, by the evaluation that met the error first."""
        if self.yielded is None:
            self.yielded = yielded
            self.args = (f"{self}; {what}",)


def lost_for_good(reason: str) -> ClusterLostError:
    """Return the error for what no other cluster brings back."""
    error = ClusterLostError(reason)
    error.for_good = True
    return error


@dataclass(eq=False)
class ElementError(ParcollError):
    """One element that failed in one step: what `on_error` functions get, and `ParallelGen.errors` holds.

    `exception` has its own type and traceback. Where `element` comes from a worker and could not be
    pickled, or where a worker had sent 16 MiB of failed elements before, it is a text: its `repr`, cut
    at 200 characters.
    """

    step: str  # as a user wrote it: `map(parse)`
    step_index: int  # in the chain, from 0
    index: int  # of the source element; in its partition, where the source is a bag
    element: Any  # that the step got
    exception: Exception
    attempts: int = 1  # calls of the step's function
    partition: int | None = None  # of the bag, where the source is one

    def __str__(self) -> str:
        of = "" if self.partition is None else f" of partition {self.partition}"
        times = "" if self.attempts == 1 else f", {self.attempts} times"
        kind = type(self.exception).__name__
        return f"{self.step} failed at element {self.index}{of}{times}: {kind}: {self.exception}"

    def __reduce__(self) -> tuple[Any, ...]:
        place = (self.step, self.step_index, self.index)
        return type(self), (*place, self.element, self.exception, self.attempts, self.partition)


class VersionWarning(UserWarning):
    """A cluster's packages are not those of this process, which may matter."""
