"""What is not needed any more is not held: intermediates of a chain, results that were taken, exceptions."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from parcoll import Connection, ParallelGen, connect, parallel


class Box:
    """Something that can be watched. `alone` if nothing of the one made before it was left."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone


def making() -> Callable[[Any], Box]:
    """Return a function that makes boxes, and looks whether the last one is still there."""
    last: list[Any] = []

    def make(x: Any) -> Box:
        alone = not last or last.pop()() is None
        box = Box(alone)
        last.append(weakref.ref(box))
        return box

    return make


CHAINS: dict[str, Callable[[ParallelGen[int]], ParallelGen[bool]]] = {
    "map": lambda numbers: numbers.map(making()).map(lambda box: box.alone),
    "three maps": lambda numbers: numbers.map(making()).map(lambda b: [b]).map(lambda boxes: boxes[0].alone),
    "filter": lambda numbers: numbers.map(making()).filter(lambda box: True).map(lambda box: box.alone),
    "guarded": lambda numbers: numbers.map(making(), retries=1).map(lambda box: box.alone, on_error="skip"),
    "dropped": lambda numbers: numbers.map(making()).filter(lambda b: not b.alone).map(lambda box: box.alone),
    "flatmap": lambda numbers: numbers.flatmap(lambda x: map(making(), range(3))).map(lambda box: box.alone),
    "before a flatmap": lambda n: n.map(making()).flatmap(lambda box: iter([box.alone])).map(bool),
    "slow": lambda numbers: numbers.map(lambda x: time.sleep(0.001)).map(making()).map(lambda box: box.alone),
    "a timeout": lambda numbers: numbers.map(making(), timeout=60).map(lambda box: box.alone),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_drops_an_element_before_it_makes_the_next(cluster: Connection, name: str) -> None:
    assert all(CHAINS[name](parallel(range(10), partition_size=10)))
    assert all(CHAINS[name](parallel(range(10))))


@pytest.mark.parametrize("size", ["auto", 1, 5])
@pytest.mark.parametrize("target", ["inline", "cluster"])
def test_the_iterator_does_not_hold_results_that_were_taken(
    cluster: Connection, target: str, size: Any, without_collections: None
) -> None:
    client = None if target == "inline" else cluster.engine.client
    with connect("inline"):
        for chain in (
            parallel(range(10), partition_size=size, client=client).map(lambda x: Box(True)),
            parallel([Box(True) for _ in range(10)], partition_size=size, client=client),
        ):
            given = iter(chain)
            for box in given:
                taken = weakref.ref(box)
                del box
                assert taken() is None
            assert list(given) == []


def test_results_of_many_kinds_come_in_order(inline: Connection) -> None:
    """However they are let go of."""
    for results in (list(range(300)), [[x] for x in range(300)], [x if x % 3 else {x} for x in range(300)]):
        assert list(parallel(results)) == results
        given = iter(parallel(results, partition_size=100))
        assert [next(given) for _ in range(150)] == results[:150]
        given.close()  # type: ignore[attr-defined]
        assert list(given) == []


def failing(x: int) -> int:
    raise ValueError(x)


def failing_of_another(x: int) -> int:
    try:
        return failing(x)
    except ValueError as error:
        raise KeyError(x) from error


def group(x: int) -> int:
    raise ExceptionGroup("two", [ValueError(x), OSError(x)])


def stop(x: int) -> int:
    raise StopIteration


def failing_source() -> Iterator[int]:
    yield 1
    raise OSError("the disk is gone")


EVALUATIONS: dict[str, Callable[[Any], Any]] = {
    "list": lambda of: list(of([1, 2, 3]).map(failing)),
    "take": lambda of: of([1, 2, 3]).map(failing).take(2),
    "reduce": lambda of: of([1, 2, 3]).map(failing).reduce(max),
    "fold": lambda of: of([1, 2, 3]).map(failing).fold(max, 0),
    "count": lambda of: of([1, 2, 3]).map(failing).count(),
    "foreach": lambda of: of([1, 2, 3]).foreach(failing),
    "a cause": lambda of: list(of([1]).map(failing_of_another)),
    "a group": lambda of: list(of([1]).map(group)),
    "StopIteration": lambda of: list(of([1]).map(stop)),
    "the source": lambda of: list(of(failing_source).map(abs)),
    "the source of a reduce": lambda of: of(failing_source).map(abs).reduce(max),
    "what cannot be sent": lambda of: list(of([threading.Lock()]).map(id)),
    "what cannot be sent back": lambda of: list(of([1]).map(lambda x: threading.Lock())),
    "on_error": lambda of: list(of([1], on_error=failing).map(failing)),
}


@pytest.fixture
def without_collections() -> Iterator[None]:
    """Have nothing freed but what is in no cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.parametrize("target", ["inline", "cluster"])
def test_an_exception_is_in_no_cycle(
    cluster: Connection, target: str, name: str, without_collections: None
) -> None:
    """So the variables of those that it has passed through live no longer than it does."""

    def of(source: Any, **settings: Any) -> Any:
        return parallel(source, client=None if target == "inline" else cluster.engine.client, **settings)

    def catching() -> weakref.ref[Box]:
        mine = Box(True)
        try:
            EVALUATIONS[name](of)
        except Exception:
            return weakref.ref(mine)
        raise AssertionError("nothing was raised")

    with connect("inline"):
        assert catching()() is None


def test_an_error_of_the_source_that_nobody_gets_is_let_go_of(
    cluster: Connection, without_collections: None
) -> None:
    """Since an element before it has failed. It would hold what the evaluation held, on workers too."""
    seen: list[weakref.ref[Box]] = []

    def source() -> Iterator[int]:
        mine = Box(True)
        seen.append(weakref.ref(mine))
        yield from (0, 1)
        raise LookupError("there is no more")

    def evaluate() -> None:
        with pytest.raises(ZeroDivisionError):
            parallel(source, partition_size=1).map(lambda x: 1 // x).map(str).fold(lambda a, b: a + b, "")

    evaluate()
    assert [ref() for ref in seen] == [None]
