"""Bag: the dask bag that a chain stands for. It is extended by each call, and read back as a plan.

This uses `Task` of dask and its `func`, `args` and `dependencies`, which dask does not document as public,
though its own collections are made of them; `tests/dask_facts` fails when they change.
"""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path
from typing import Any

import dask
from dask._task_spec import Task
from dask.bag import Bag

from parcoll.chain.loop import Chain
from parcoll.chain.steps import Step
from parcoll.errors import SerializationError
from parcoll.evaluation.plan import BagPartitions, KeptPartitions, Node, Plan
from parcoll.evaluation.source import Source
from parcoll.text import key_words
from parcoll.wire import modules
from parcoll.wire.anatomy import cannot_send
from parcoll.wire.codec import by_value
from parcoll.wire.own_modules import package_sources, sources_for
from parcoll.worker.outcome import Handle, elements_of

_numbers = itertools.count()


def bag_of(node: Node) -> Bag:
    """Return the bag that a node stands for: one layer for each step."""
    row = list(itertools.takewhile(lambda node: node.bag is None, node.back()))
    for one in reversed(row):
        with one.lock:
            if one.bag is not None:
                continue
            if one.before is not None and one.step is not None:
                one.bag = extend(one.before.bag, one.step)
            elif isinstance(one.source, Source):
                one.bag = bag_of_source(one.source)
            else:
                one.bag = one.source
    bag: Bag = node.bag
    return bag


def bag_of_source(source: Source) -> Bag:
    """Return a bag whose one partition stands for all elements that the source will give.

    `Bag.from_sequence` is never used: it calls `list()`, and runs elements that look like tasks.
    """
    name = f"source-{next(_numbers)}"
    layer: dict[Any, Any] = {(name, 0): Task((name, 0), Reading(source))}
    return Bag(layer, name, 1)


def bag_to_show(node: Node) -> Bag:
    """Return the bag that users get: that of files has a partition for each part that is read."""
    *steps, first = node.back()
    parts = first.source.parts() if isinstance(first.source, Source) else None
    if parts is None:
        return bag_of(node)
    name = f"files-{next(_numbers)}"
    layer: dict[Any, Any] = {(name, i): Task((name, i), Listed(part)) for i, part in enumerate(parts)}
    bag = Bag(layer, name, len(parts))
    for one in reversed(steps):
        assert one.step is not None
        bag = extend(bag, one.step)
    return bag


def bag_of_kept(handles: list[Handle]) -> Bag:
    """Return a bag of results that earlier tasks keep, on a cluster or in this process."""
    name = f"kept-{next(_numbers)}"
    layer: dict[Any, Any] = {(name, i): Task((name, i), Recalling(kept)) for i, kept in enumerate(handles)}
    return Bag(layer, name, len(handles))


class Called:
    """What a task of the bag calls. It travels so that dask's processes can load it without parcoll."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def __call__(self, *partition: Any) -> list[Any]:
        """Make the partition."""
        raise NotImplementedError

    def __dask_tokenize__(self) -> tuple[str, int]:
        # dask would hash the function and everything it captured, and merge equal steps.
        return ("parcoll-step", next(_numbers))

    def __repr__(self) -> str:
        return repr(self.given)

    def __reduce__(self) -> Any:
        try:
            content, others = by_value((type(self), (self.given,))), modules.packed(sources_for(self.given))
        except Exception as error:  # of which dask would tell no more than that there was one
            content, others = by_value((Refused, (str(self.refusal(error)),))), b""
        settings = content, _own_sources(), others, sys.version_info[:2], repr(self)
        return modules.Carried(modules.own_text(), *settings).__reduce__()

    def refusal(self, error: Exception) -> Exception:
        """Return the error of what cannot be sent."""
        return error


@functools.cache
def _own_sources() -> bytes:
    """Return the packed sources of parcoll, of which this process may have the text alone."""
    shipped = {
        name: text for name, text in modules.finder().sources.items() if name.partition(".")[0] == "parcoll"
    }
    return modules.packed(shipped or package_sources("parcoll", map(Path, sys.modules["parcoll"].__path__)))


class Refused(Called):
    """Stands for what cannot be sent, and says so where it is called."""

    given: str

    def __call__(self, *partition: Any) -> list[Any]:
        """Say so."""
        raise SerializationError(self.given)


class Reading(Called):
    """All elements of a source."""

    given: Source

    def __call__(self, *partition: Any) -> list[Any]:
        """Read them."""
        return self.given()


class Listed(Called):
    """Some elements of a source, which are there."""

    given: list[Any]

    def __call__(self, *partition: Any) -> list[Any]:
        """Return them."""
        return self.given


class Recalling(Called):
    """The elements of a result that an earlier task keeps."""

    given: Handle

    def __call__(self, *partition: Any) -> list[Any]:
        """Bring them here."""
        return elements_of(self.given)


class Layer(Called):
    """One step alone. So dask's own engines can run the bag too."""

    given: Step

    def __call__(self, *partition: Any) -> list[Any]:
        """Apply the step to a partition."""
        return Chain([self.given]).run_all(*partition)

    def refusal(self, error: Exception) -> Exception:
        """Name the function."""
        return cannot_send(self.given.func, f"the function of {self.given.label}", error)

    def __repr__(self) -> str:
        return self.given.label


def extend(bag: Bag, step: Step) -> Bag:
    """Return the bag with one more layer."""
    longer: Bag = bag.map_partitions(Layer(step), token=key_words(step.words))
    return longer


def plan_of(bag: Bag) -> Plan:
    """Walk the bag's graph down from its last layer, to the first layer that is no step of ours."""
    graph = bag.dask.to_dict()
    steps: list[Step] = []
    name, node = bag.name, graph.get((bag.name, 0))
    while isinstance(node, Task) and isinstance(node.func, Layer):
        steps.append(node.func.given)
        ((name, _),) = node.dependencies
        node = graph[(name, 0)]
    steps.reverse()
    return Plan(_origin(bag, graph, name, node), tuple(steps))


def _origin(bag: Bag, graph: dict[Any, Any], name: str, node: Any) -> Any:
    if isinstance(node, Task):
        if isinstance(node.func, Reading):
            return node.func.given
        if isinstance(node.func, Recalling):
            return KeptPartitions([graph[(name, i)].func.given for i in range(bag.npartitions)])
    # Our layers on top of the user's bag are cut off: a scheduler may have no parcoll to read them.
    keys = [(name, i) for i in range(bag.npartitions)]
    return bag_partitions(Bag(bag.dask.cull(keys), name, bag.npartitions))


def bag_partitions(bag: Bag) -> BagPartitions:
    """Optimize a user's bag as dask would, and take it apart into its partitions."""
    keys = [(bag.name, i) for i in range(bag.npartitions)]
    graph = dict(bag.__dask_optimize__(bag.__dask_graph__(), keys))
    return BagPartitions(bag, [(_needed(graph, key), key) for key in keys])


def _needed(graph: dict[Any, Any], key: Any) -> dict[Any, Any]:
    needed: dict[Any, Any] = {}
    todo = [key]
    while todo:
        current = todo.pop()
        if current in needed or current not in graph:  # absent: a future's key, on the cluster
            continue
        needed[current] = node = graph[current]
        todo.extend(node.dependencies)
    return needed


def compute_partition(graph: dict[Any, Any], key: Any) -> Any:
    """Compute one partition of a user's bag in this process."""
    return dask.get(graph, key)


def persist_here(bag: Bag) -> Bag:
    """Compute a user's bag in this process, once."""
    computed: Bag = dask.persist(bag, scheduler="synchronous")[0]
    return computed
