"""The places of a chain: what a collection is made of, and the bag that each of them stands for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

from parcoll.source import Source
from parcoll.steps import Step


class Node:
    """One place in a chain: a source, or a step after another node. Never changes; its bag is made once."""

    __slots__ = ("_bag", "_lock", "before", "source", "step")

    def __init__(self, source: Any = None, before: Node | None = None, step: Step | None = None) -> None:
        self.source = source  # a Source, or a dask bag
        self.before = before
        self.step = step
        self._bag: Any = None
        self._lock = threading.Lock()

    def bag(self) -> Any:
        """Return the bag up to here. Imports dask.bag, which is why it waits until it is asked for."""
        from parcoll import graph

        row = list(itertools.takewhile(lambda node: node._bag is None, self.back()))
        for node in reversed(row):
            with node._lock:
                if node._bag is not None:
                    continue
                if node.before is not None and node.step is not None:
                    node._bag = graph.extend(node.before._bag, node.step)
                elif isinstance(node.source, Source):
                    node._bag = graph.bag_of_source(node.source)
                else:
                    node._bag = node.source
        return self._bag

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a row, without bag and lock: a function may use a collection."""
        row = list(self.back())
        return chain_of, (row[-1].source, [node.step for node in reversed(row[:-1])])

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


def chain_of(source: Any, steps: list[Step]) -> Node:
    """Return the last node of a row."""
    node = Node(source=source)
    for step in steps:
        node = Node(before=node, step=step)
    return node
