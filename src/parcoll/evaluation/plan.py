"""Plan: where the elements of a chain come from, and the steps that they go through. Without dask.

A collection is a row of nodes. `evaluation.bag` makes the dask bag that a node stands for, and reads a bag
back as a `Plan`, which is what an evaluation runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parcoll.chain.steps import Step
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
        return f"parallel({source!r}){''.join(calls)}"


def node_of(source: Any, steps: list[Step]) -> Node:
    """Return the last node of a row."""
    node = Node(source=source)
    for step in steps:
        node = Node(before=node, step=step)
    return node


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
