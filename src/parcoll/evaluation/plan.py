"""Plan: where the elements of a chain come from, and the steps that they go through. Without dask.

A collection is a row of nodes. `evaluation.bag` makes the dask bag that a node stands for, and reads a bag
back as a `Plan`, which is what an evaluation runs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from parcoll.chain.loop import Chain
from parcoll.chain.policy import PLAIN, Policy
from parcoll.chain.steps import Step
from parcoll.evaluation.reader import DerivedReader, Reader
from parcoll.evaluation.source import Source
from parcoll.keys.gathering import Gathering
from parcoll.keys.streams import Operation
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
        steps = [node.step for node in reversed(row) if node.step is not None]
        calls = [f".{step.label}" for step in steps if step.by_user]
        start = source.describe() if isinstance(source, Source) else f"parallel({source!r})"
        return start + "".join(calls)


def node_of(source: Any, steps: list[Step]) -> Node:
    """Return the last node of a row."""
    node = Node(source=source)
    for step in steps:
        node = Node(before=node, step=step)
    return node


@dataclass(frozen=True)
class Options:
    """The settings that a chain was made with."""

    partition_size: int | str = "auto"
    client: Any = None
    name: str | None = None
    buffersize: int | None = None
    ordered: bool = True
    progress: bool | str | None = None
    policy: Policy = PLAIN  # of steps that were told nothing else
    checkpoint: str | None = None
    retry_failed: bool = False
    # Partition size and buffersize of chains that read this one, where its own elements are tasks.
    of_readers: tuple[int | str, int | None] | None = None

    @property
    def behind(self) -> Options:
        """The settings of a chain that reads this one."""
        if self.of_readers is None:
            return self
        size, buffersize = self.of_readers
        return replace(self, partition_size=size, buffersize=buffersize, of_readers=None)


@dataclass(frozen=True)
class Read:
    """A chain that another one reads, with the settings for its evaluation."""

    node: Node
    options: Any
    sink: Gathering | None = (
        None  # what takes its elements on the workers, and sends one piece of a partition
    )

    @property
    def is_alone(self) -> bool:
        """Whether there is a source only, and nothing to be evaluated."""
        source = self.node.source
        return isinstance(source, Source) and not (isinstance(source, Derived) and not source.is_alone)

    @property
    def refers(self) -> bool:
        """Whether the workers may send positions of elements: these are in memory, and all reach the sink."""
        node = self.node.before
        source, step = node and node.source, self.node.step
        return type(source) is Source and source.listed and step is not None and step.policy == PLAIN

    @property
    def one_pass(self) -> bool:
        """Whether its source can be read once."""
        *_, first = self.node.back()
        return isinstance(first.source, Source) and first.source.one_pass

    def labels(self) -> list[tuple[str, bool, bool]]:
        """Return the title of each step that is evaluated; whether it filters, and makes calls that wait."""
        *row, first = self.node.back()
        before = first.source.labels() if isinstance(first.source, Derived) else []
        steps = [node.step for node in reversed(row) if node.step]
        return [*before, *((step.title, step.filters, step.waits) for step in steps)]

    def calls(self) -> list[str]:
        """Return the calls of a user that are evaluated, without the phases that stand behind some."""
        *row, first = self.node.back()
        before = first.source.calls() if isinstance(first.source, Derived) else []
        steps = [node.step for node in reversed(row) if node.step]
        return [*before, *(step.label for step in steps if not step.is_phase)]

    def __str__(self) -> str:
        named = self.node if self.node.step is None else self.node.before  # without a step for the reader
        return "" if named is None else named.describe()

    def all_elements(self) -> list[Any]:
        """Return all its elements, made here."""
        *row, first = self.node.back()
        steps = [node.step for node in reversed(row) if node.step is not None]
        source = first.source
        elements = source() if isinstance(source, Source) else source.compute(scheduler="synchronous")
        made = Chain(steps).run_all(elements)
        return made if self.sink is None else self.sink.made_of(made)


class Derived(Source):
    """What an operation makes of the elements of one chain, or of several.

    Behind steps, the elements come back through the user's process: evaluations of the chains are the source
    of another one (`evaluation.run`). Directly behind sources there are only these sources.
    """

    def __init__(self, reads: tuple[Read, ...], operation: Operation) -> None:
        super().__init__(tuple, "")
        self.reads = reads
        self.operation = operation

    @property
    def is_alone(self) -> bool:
        """Whether there are no steps to be evaluated."""
        return all(read.is_alone for read in self.reads)

    @property
    def one_pass(self) -> bool:
        """Whether one of the chains can be read once only."""
        return any(read.one_pass for read in self.reads)

    @property
    def goes_on(self) -> bool:
        """Whether it is made of pieces that go from worker to worker."""
        return any(read.sink is not None and read.sink.gatherer.goes_on for read in self.reads)

    def steps_before(self) -> list[Any]:
        """Return the steps and sinks of all chains."""
        nodes = [node for read in self.reads for node in read.node.back()]
        before = [node.source.steps_before() for node in nodes if isinstance(node.source, Derived)]
        own = [*(node.step for node in nodes), *(read.sink for read in self.reads)]
        return [part for part in (*own, *itertools.chain(*before)) if part is not None]

    def labels(self) -> list[tuple[str, bool, bool]]:
        """Return the rows of `stats` before those of the chain behind: of each chain's steps, and its own."""
        if self.is_alone:
            return []
        return [
            *(row for read in self.reads for row in read.labels()),
            (self.operation.label, self.operation.filters, False),
        ]

    def calls(self) -> list[str]:
        """Return the calls of these chains, and its own."""
        if self.is_alone:
            return []
        own = [self.operation.label] if self.operation.describe(()) else []
        return [*(call for read in self.reads for call in read.calls()), *own]

    def open(self) -> Reader:
        """Start reading, where there are no steps."""
        readers, operation = [read.node.source.open() for read in self.reads], self.operation
        if operation.skips:
            operation = operation.skipped(readers[0].skip(operation.skips))
        return DerivedReader(operation, [reader.stream() for reader in readers], _lengths(readers))

    def __call__(self) -> list[Any]:
        """Return all that is made: how dask's own engines read the bag."""
        return list(self.operation.made(*(iter(read.all_elements()) for read in self.reads)))

    def describe(self) -> str:
        """Return it as a user wrote it."""
        first, *others = (read.node.describe() for read in self.reads)
        return ".".join(filter(None, (first, self.operation.describe(others))))

    def __repr__(self) -> str:
        return self.describe()

    def __reduce__(self) -> tuple[Any, ...]:
        return Derived, (self.reads, self.operation)


def _lengths(readers: list[Reader]) -> list[int] | None:
    """Return how many elements are left in each; None if one does not know."""
    lengths = [length for reader in readers if (length := reader.remaining()) is not None]
    return lengths if len(lengths) == len(readers) else None


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
