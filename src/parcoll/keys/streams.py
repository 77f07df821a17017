"""Streams: what is made of the elements of chains in order, one after the other, where they come together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar


class Operation:
    """What makes elements of the elements of one chain, or of several. It pickles, and holds no state."""

    name: ClassVar[str]  # the method of the collection that makes it

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Give the elements; draw from the streams as they are needed, in order."""
        raise NotImplementedError

    def length(self, *lengths: int) -> int | None:
        """Return how many elements are made of streams of these lengths; None if nobody knows."""
        return None

    @property
    def label(self) -> str:
        """The operation for tables: ``batched(3)``."""
        return f"{self.name}()"

    def describe(self, others: Sequence[str]) -> str:
        """Return it as a user wrote it; `others` are the chains behind the first."""
        return self.label


class Batches(Operation):
    """Tuples of `size` elements; the last may be shorter."""

    name = "batched"

    def __init__(self, size: int) -> None:
        self.size = size

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Cut the elements."""
        (elements,) = streams
        while batch := tuple(itertools.islice(elements, self.size)):
            yield batch

    def length(self, *lengths: int) -> int | None:
        """Divide, and count what is left over."""
        return -(-lengths[0] // self.size)

    @property
    def label(self) -> str:
        """With the size."""
        return f"batched({self.size})"
