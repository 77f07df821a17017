"""Plan: where the elements of a chain come from, and the steps that they go through. Without dask.

A collection is a row of nodes. `evaluation.bag` makes the dask bag that a node stands for, and reads a bag
back as a `Plan`, which is what an evaluation runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parcoll.chain.loop import Chain
from parcoll.chain.steps import Step
from parcoll.evaluation.reader import BatchReader, Reader
from parcoll.evaluation.source import Source
from parcoll.watch.stats import Stats
from parcoll.worker.outcome import Handle


class Node:
    """One place in a chain: a source, or a step after another node. Its source and its step never change."""

    __slots__ = ("bag", "before", "lock", "source", "stats", "step")

    def __init__(self, source: Any = None, before: Node | None = None, step: Step | None = None) -> None:
        self.source = source  # a Source, or a dask bag
        self.before = before
        self.step = step
        self.bag: Any = None  # made once: `bag.bag_of` sets it when it is first asked for
        self.stats: Stats | None = None  # of the last evaluation that went through this node
        self.lock = threading.RLock()  # a signal's handler may evaluate the same chain

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a row, without bag and lock: a function may use a collection."""
        row = list(self.back())
        return node_of, (row[-1].source, [node.step for node in reversed(row[:-1])])

    def back(self) -> Iterator[Node]:
        """Give this node and those before it, down to the source."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.before

    def describe(self) -> str:
        """Return the chain as a user wrote it."""
        row = list(self.back())
        source = row[-1].source
        calls = [f".{node.step.label}" for node in reversed(row) if node.step is not None]
        start = source.describe() if isinstance(source, Source) else f"parallel({source!r})"
        return start + "".join(calls)


def node_of(source: Any, steps: list[Step]) -> Node:
    """Return the last node of a row."""
    node = Node(source=source)
    for step in steps:
        node = Node(before=node, step=step)
    return node


class Batched(Source):
    """Tuples of `size` elements of a chain, over its partitions; the last may be shorter.

    Behind steps, the elements come back through the user's process: an evaluation of the chain is the source
    of another one. Directly behind a source there is only that source.
    """

    def __init__(self, node: Node, size: int, options: Any) -> None:
        super().__init__(tuple, "")
        self.node = node
        self.size = size
        self.options = options  # for the evaluation of the chain

    @property
    def is_alone(self) -> bool:
        """Whether there are no steps to be evaluated."""
        return self.node.step is None and isinstance(self.node.source, Source) and not self._source_evaluates

    @property
    def _source_evaluates(self) -> bool:
        return isinstance(self.node.source, Batched) and not self.node.source.is_alone

    @property
    def one_pass(self) -> bool:
        """Whether the source of the chain can be read once."""
        *_, first = self.node.back()
        return isinstance(first.source, Source) and first.source.one_pass

    def labels(self) -> list[tuple[str, bool]]:
        """Return the title of each step that is evaluated before, and whether it is a filter; and its own."""
        if self.is_alone:
            return []
        *row, first = self.node.back()
        before = first.source.labels() if isinstance(first.source, Batched) else []
        own = [(step.title, step.filters) for node in reversed(row) if (step := node.step) is not None]
        return [*before, *own, (f"batched({self.size})", False)]

    def open(self) -> Reader:
        """Start reading, where there are no steps."""
        return BatchReader(self.size, self._alone())

    def _alone(self) -> Reader:
        source: Source = self.node.source
        return source.open()

    def __call__(self) -> list[Any]:
        """Return all batches: how dask's own engines read the bag."""
        *row, first = self.node.back()
        steps = [node.step for node in reversed(row) if node.step is not None]
        source = first.source
        elements = source() if isinstance(source, Source) else source.compute(scheduler="synchronous")
        return BatchReader(self.size, iter(Chain(steps).run_all(elements))).read_all()

    def describe(self) -> str:
        """Return it as a user wrote it."""
        return f"{self.node.describe()}.batched({self.size})"

    def __repr__(self) -> str:
        return self.describe()

    def __reduce__(self) -> tuple[Any, ...]:
        return Batched, (self.node, self.size, self.options)


@dataclass(frozen=True)
class KeptPartitions:
    """Results of a `foreach`, which the engine that made them keeps."""

    handles: list[Handle]


@dataclass(frozen=True)
class BagPartitions:
    """Partitions of a user's own bag: for each, the tasks that make it and the key of the last one."""

    bag: Any
    graphs: list[tuple[dict[Any, Any], Any]]

    @property
    def share_tasks(self) -> bool:
        """Whether two partitions need the same task, as after a shuffle."""
        return sum(len(graph) for graph, _ in self.graphs) > len(
            set().union(*(graph for graph, _ in self.graphs))
        )


@dataclass(frozen=True)
class Plan:
    """A bag read back: where the elements come from, and the steps in order."""

    origin: Source | KeptPartitions | BagPartitions
    steps: tuple[Step, ...]
