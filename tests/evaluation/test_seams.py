"""The seams: a step and a sink that the library does not have, made here, on real workers.

`Batched` holds elements from one draw to the next, as `map_batches` does; `Hashes` takes
elements into a set. Both are classes of this file alone, as those of an issue to come would be.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from parcoll import CheckpointError, Connection, ParallelGen, connect, parallel
from parcoll.chain.policy import PLAIN, Policy
from parcoll.chain.sinks import Pack, Sink
from parcoll.chain.steps import SKIP, Step
from parcoll.evaluation.engine import Job
from parcoll.evaluation.feed import PartitionFeed
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import Run
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Payload

CHECKED = 1 << 20


class Batched(Step):
    """Tuples of `size` elements that follow each other in a partition; the last may be shorter."""

    kind = "batched"
    holds = True

    def __init__(self, size: int, func: Callable[[Any], Any] | None = None, policy: Policy = PLAIN) -> None:
        super().__init__(func, policy)
        self.size = size

    def stream(self, elements: Iterator[Any], call: Callable[[Any], Any]) -> Iterator[Any]:
        held: list[Any] = []
        for element in elements:
            if (made := call(element)) is not SKIP:
                held.append(made)
            if len(held) == self.size:
                yield tuple(held)
                held = []
        if held:
            yield tuple(held)


class Hashes(Sink):
    """The set of the elements' hashes."""

    label = "hashes"

    def start(self) -> None:
        self.found: set[int] = set()

    def take(self, elements: Iterator[Any]) -> None:
        for element in elements:
            self.taken += 1
            self.found.add(hash(element))

    def finish(self, pack: Pack) -> Payload:
        return pack(self.found)


def extended(collection: ParallelGen[Any], step: Step) -> ParallelGen[Any]:
    """Do as a method of the collection does."""
    return ParallelGen(Node(before=collection._node, step=step), collection._options)


def hashes(collection: ParallelGen[Any], connection: Connection) -> tuple[set[int], Stats]:
    """Evaluate into the sink, as an evaluating method would."""
    stats = Stats()
    run = Run(collection._node, collection._options, lambda: connection.engine, stats)
    found: set[int] = set()
    sink = Hashes()
    with run.watched(sink.label):
        for _, outcome in run.outcomes(sink):
            if outcome.failure is not None:
                raise outcome.failure.rebuild()
            if outcome.results is not None:
                found |= outcome.results.load()
    return found, stats


@pytest.fixture(params=["inline", "cluster", "timeout"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest) -> Connection:
    connection: Connection = request.getfixturevalue("inline" if kind == "inline" else "cluster")
    return connection


def settings(kind: str) -> dict[str, Any]:
    """A timeout has all partitions run in pieces, beside the workers."""
    return {"timeout": 60} if kind == "timeout" else {}


@pytest.mark.usefixtures("place")
def test_a_step_that_holds_elements_loses_none(kind: str):
    numbers = parallel(range(1000), partition_size=250, **settings(kind)).map(lambda x: x + 1)
    batches = extended(numbers.filter(lambda x: x % 3), Batched(7))
    found = list(batches.map(list))
    assert list(itertools.chain.from_iterable(found)) == [x + 1 for x in range(1000) if (x + 1) % 3]
    if kind != "timeout":  # where a batch ends with its piece
        of_partition = [len([x for x in range(at + 1, at + 251) if x % 3]) for at in range(0, 1000, 250)]
        assert [len(batch) for batch in found] == [
            size for total in of_partition for size in [7] * (total // 7) + ([total % 7] if total % 7 else [])
        ]


@pytest.mark.usefixtures("place")
def test_its_numbers_add_up(kind: str):
    batches = extended(parallel(range(100), partition_size=20, **settings(kind)), Batched(8))
    assert sum(map(len, batches)) == 100
    (step,) = batches.stats.steps
    assert step.label == "batched(None)"
    assert (step.entered, step.left) == (100, batches.stats.elements_out)
    assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed


@pytest.mark.usefixtures("place")
def test_a_step_that_holds_has_its_policy_too(kind: str):
    numbers = parallel(["1", "x", "3", "4", "y", "6"], partition_size=3, **settings(kind))
    batches = extended(numbers, Batched(2, int, Policy("skip", timeout=settings(kind).get("timeout"))))
    assert list(itertools.chain.from_iterable(batches)) == [1, 3, 4, 6]
    assert [(error.index, error.element, error.step) for error in batches.errors] == [
        (1, "x", "batched(int)"),
        (4, "y", "batched(int)"),
    ]
    with pytest.raises(ValueError, match="'x'") as raised:
        list(extended(numbers, Batched(2, int)))
    assert "in step 1 of 1, batched(int), at element 1: 'x'" in raised.value.__notes__[0]


@pytest.mark.usefixtures("place")
def test_what_is_held_is_not_given_where_a_step_before_fails(kind: str):
    """As in a loop: the batch is not full, and the next element raises."""
    numbers = parallel([1, 2, 3, 0, 5], partition_size=5, **settings(kind))
    stream = iter(extended(numbers.map(lambda x: 6 // x), Batched(2)))
    assert next(stream) == (6, 3)
    if kind != "timeout":  # where what came before the element is a piece of its own
        with pytest.raises(ZeroDivisionError):
            next(stream)


def test_a_slow_partition_is_handed_back_between_two_elements(cluster: Connection):
    def slow(x: int) -> int:
        time.sleep(0.005)
        return x

    batches = extended(parallel(range(300)).map(slow), Batched(10))
    assert list(itertools.chain.from_iterable(batches)) == list(range(300))
    assert batches.stats.partitions_done > 2, "a worker had all of them, beside an idle one"


@pytest.mark.usefixtures("cluster")
def test_an_element_that_ends_its_process_costs_no_other(tmp_path: Any):
    def deadly(x: int) -> int:
        if x == 33:
            os._exit(3)
        return x

    batches = extended(parallel(range(60), partition_size=20, on_error="skip").map(deadly), Batched(4))
    assert list(itertools.chain.from_iterable(batches)) == [x for x in range(60) if x != 33]


def test_a_checkpoint_compares_its_arguments(inline: Connection, tmp_path: Any):
    def batches(size: int) -> ParallelGen[Any]:
        return extended(parallel(range(10), checkpoint=tmp_path, partition_size=10), Batched(size))

    assert list(batches(3)) == list(batches(3)) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]
    with pytest.raises(CheckpointError, match=r"the argument 'size' of step 1, batched\(None\), has changed"):
        list(batches(4))
    with pytest.raises(CheckpointError, match="saves elements, and hashes keeps none"):
        hashes(batches(3), inline)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_sink_takes_the_elements_of_each_partition(kind: str, place: Connection, ordered: bool):
    words = parallel(range(1000), partition_size=100, **settings(kind)).map(lambda x: x * CHECKED)
    collection = words if ordered else words.unordered()
    found, stats = hashes(collection.filter(lambda x: x % 3 == 0), place)
    assert found == {hash(x * CHECKED) for x in range(1000) if x % 3 == 0}
    assert (stats.elements_in, stats.elements_out, stats.fold) == (1000, 334, "hashes")


def test_what_a_sink_raises_names_it_and_the_element(kind: str, place: Connection):
    collection = parallel([1, [], 3], partition_size=3, **settings(kind))
    with pytest.raises(TypeError, match="unhashable") as raised:
        hashes(collection, place)
    assert "in hashes, at element 1" in "".join(raised.value.__notes__)


def test_a_sink_survives_the_death_of_a_worker(cluster: Connection):
    def deadly(x: int) -> int:
        if x == 5:
            os._exit(3)
        return x

    found, stats = hashes(parallel(range(40), partition_size=10, on_error="skip").map(deadly), cluster)
    assert found == set(range(40)) - {5}
    assert stats.failed == 1
    assert stats.deaths >= 3


def test_both_on_a_bare_cluster(tmp_path: Any):
    """Whose workers have neither parcoll nor this file."""
    from bare import bare_cluster

    with bare_cluster(tmp_path / "bare", 2) as bare, connect(bare.address) as connection:
        collection = extended(parallel(range(100), partition_size=10), Batched(5))
        found, _ = hashes(collection, connection)
        assert found == {hash(tuple(range(at, at + 5))) for at in range(0, 100, 5)}


def test_partitions_that_share_no_tasks_have_nothing_to_make_anew() -> None:
    """On another cluster they are sent as they are."""
    feed = PartitionFeed([Job()], None)
    feed.renew()
    assert feed.next_job(1) is not None
    assert feed.ended
