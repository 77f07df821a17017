"""No silent zero: numbers nobody counted, folds that depend on the partitions, culprits by their names."""

from __future__ import annotations

import asyncio
import functools
import operator
import os
import queue
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, ElementError, SerializationError, connect, parallel

# Numbers -----------------------------------------------------------------------------------------


@pytest.fixture(params=["inline", "cluster"])
def engine(request: pytest.FixtureRequest) -> Connection:
    connection: Connection = request.getfixturevalue(request.param)
    return connection


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "evaluate",
    [
        lambda p: list(p.unordered()),
        lambda p: list(p.map(str)),
        lambda p: p.map(str).filter(None).count(),
        lambda p: p.map(str).reduce(operator.add),
        lambda p: p.unordered().map(str).foreach(len),
        lambda p: p.unordered().take(3),
    ],
)
def test_a_collection_has_the_numbers_of_what_was_evaluated_through_it(evaluate: Callable[[Any], Any]):
    numbers = parallel(["1", "x", "2"], on_error="skip").map(int)
    evaluate(numbers)
    assert numbers.stats.failed == 1
    assert [(error.index, error.element) for error in numbers.errors] == [(1, "x")]
    assert "1 failed" in str(numbers.stats)
    assert "1 failed" in str(numbers.explain())


@pytest.mark.usefixtures("engine")
def test_its_own_evaluation_counts_before_any_other():
    numbers = parallel(["1", "x", "2"], on_error="skip").map(int)
    assert numbers.count() == 2
    own = numbers.stats
    assert list(numbers.filter(lambda x: 1 / (x - 1)).unordered()) == [2]
    assert numbers.stats is own
    assert numbers.stats.failed == 1


def test_what_was_never_evaluated_says_so():
    numbers = parallel(["1", "x"], on_error="skip").map(int)
    assert numbers.stats.state == "new"
    assert "not evaluated yet" in str(numbers.stats)


def test_a_run_that_is_resumed_whole_says_so(inline: Connection, tmp_path: Path):
    for _ in range(2):
        numbers = parallel(range(30), checkpoint=tmp_path / "run").map(str)
        assert numbers.count() == 30
    assert numbers.stats.resumed == 30
    assert "all 30 elements came from the checkpoint" in str(numbers.stats)


# Folds -------------------------------------------------------------------------------------------


def square_sum(n: int, x: int) -> int:
    return n + x * x


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("partition_size", ["auto", 1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("func", "initial"),
    [
        (square_sum, 0),
        (lambda n, _: n + 1, 0),
        (operator.sub, 0),
        (lambda n, x: 0.5 * n + x, 0.0),
        (lambda seen, x: [*seen, x] if isinstance(seen, list) else [seen, x], []),
    ],
)
def test_a_fold_that_depends_on_the_partitions_is_refused(func: Any, initial: Any, partition_size: Any):
    numbers = parallel(range(1, 3001 if partition_size != 1 else 20), partition_size=partition_size)
    with pytest.raises((ValueError, TypeError), match="combine=") as raised:
        numbers.fold(func, initial)
    assert "fold(" in "".join([str(raised.value), *raised.value.__notes__])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("func", "initial", "right"),
    [
        (operator.add, 0, sum(range(3000))),
        (max, -1, 2999),
        (lambda a, b: a + b * 1.0, 0.0, float(sum(range(3000)))),
        (lambda a, b: (a * b) % 1_000_003, 1, 0),
    ],
)
def test_one_that_does_not_is_right(func: Any, initial: Any, right: Any):
    assert parallel(range(3000)).fold(func, initial) == pytest.approx(right)


def test_the_check_is_made_with_copies(cluster: Connection):
    def update(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
        for key, count in other.items():
            one[key] = one.get(key, 0) + count
        return one

    words = [{"a": 1, str(n % 7): 1} for n in range(2000)]
    counts = parallel(words).fold(update, {})
    assert counts["a"] == 2000
    assert sum(counts.values()) == 4000


def test_with_combine_it_is_right(cluster: Connection):
    assert parallel(range(3000)).fold(square_sum, 0, operator.add) == sum(x * x for x in range(3000))


def test_a_failure_in_such_a_fold_says_how_it_was_called(cluster: Connection):
    # TypeError in a partition, ValueError where it shows in the values of the first ones that are joined.
    with pytest.raises((TypeError, ValueError)) as raised:
        parallel([str(n) for n in range(3000)]).fold(lambda n, word: n + len(word), 0)
    assert "pass combine=" in "".join([str(raised.value), *raised.value.__notes__])


@pytest.mark.usefixtures("engine")
def test_one_partition_does_not_hide_it():
    """From `initial` on all calls work, and the next longer source would fail."""
    words = [str(n) for n in range(50)]
    for size in (50, 7):
        with pytest.raises((TypeError, ValueError), match="combine=") as raised:
            parallel(words, partition_size=size).fold(lambda n, word: n + len(word), 0)
        assert type(raised.value) is ValueError, "what the first three elements tell"


def test_random_numbers_from_a_seed_and_the_element_are_distinct_and_come_again(cluster: Connection):
    """As docs/world.md says, where a generator that is captured repeats itself."""
    chain = parallel(range(60), partition_size=7).map(lambda i: random.Random(f"7 {i}").random())
    found = list(chain)
    assert len(set(found)) == 60
    assert list(chain) == found
    captured = random.Random(1)
    drawn = list(parallel(range(60), partition_size=7).map(lambda _: captured.random()))
    assert len(set(drawn)) < 60


# Culprits ----------------------------------------------------------------------------------------

waiting: queue.Queue[int] = queue.Queue()


class Pipeline:
    def __init__(self) -> None:
        self.settings = {"locks": [1, threading.Lock()]}

    def run(self, x: int) -> int:
        return x

    def __call__(self, x: int) -> int:
        return x


class Holder:
    """Of a class of the user's own, within another."""

    __slots__ = ("pipeline",)

    def __init__(self) -> None:
        self.pipeline = Pipeline()


def captured() -> Callable[[int], int]:
    holder = Holder()
    return lambda x: x + len(holder.pipeline.settings)


def with_default(x: int, lock: Any = threading.Lock()) -> int:  # noqa: B008
    return x


@pytest.mark.parametrize(
    ("func", "path"),
    [
        (lambda x: waiting.put(x), "waiting, "),
        (Pipeline(), "self.settings['locks'][1], "),
        (Pipeline().run, "self.settings['locks'][1], "),
        (captured(), "holder.pipeline.settings['locks'][1], "),
        (with_default, "the default of lock, "),
    ],
)
def test_what_cannot_travel_is_named_as_the_script_has_it(cluster: Connection, func: Any, path: str):
    if func is with_default:
        func.__module__ = "__main__"  # or it would travel by its name
    with pytest.raises(SerializationError) as raised:
        list(parallel([1]).map(func))
    assert f"it uses {path}" in str(raised.value)


class Device:
    """Can be loaded in the process that made it only, as what holds a device or a file of this machine."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if os.getpid() != state["process"]:
            raise OSError("no device 7 here")


class Broken:
    """Can be loaded nowhere."""

    def __reduce__(self) -> Any:
        return refuse, ("config.ini",)


def refuse(name: str) -> None:
    raise RuntimeError(f"cannot read {name}")


class Job:
    def __init__(self, part: Any) -> None:
        self.parts = {"gpu": [0, part]}

    def run(self, x: int, _: Any = None) -> int:
        return x + len(self.parts)


def using(part: Any) -> Callable[..., int]:
    return lambda x, _=None: x + (part is not None)


@pytest.mark.parametrize("part", [Device(), Broken()], ids=["in one process", "nowhere"])
@pytest.mark.parametrize(
    ("make", "path"),
    [
        (using, "it uses part, "),
        (lambda part: Job(part).run, "it uses self.parts['gpu'][1], "),
        (lambda part: functools.partial(max, part), "it uses the argument 1 of its partial, "),
    ],
    ids=["captured", "method", "partial"],
)
def test_what_a_worker_cannot_load_is_named_as_the_script_has_it(
    cluster: Connection, part: Any, make: Any, path: str
):
    func = make(part)
    evaluations: list[Callable[[], Any]] = [
        lambda: list(parallel([1]).map(func)),
        lambda: list(parallel([1], timeout=60).filter(func)),
        lambda: parallel([1, 2]).reduce(func),
    ]
    for evaluate in evaluations:
        with pytest.raises(SerializationError, match="the worker could not load the chain") as raised:
            evaluate()
        assert path in str(raised.value)
        assert f"(a {type(part).__name__})" in str(raised.value)
        assert isinstance(raised.value.__cause__, (OSError, RuntimeError))


def test_a_connection_in_an_object_is_named(cluster: Connection):
    class Job:
        def __init__(self) -> None:
            self.cluster = cluster

        def run(self, x: int) -> int:
            return x

    with pytest.raises(SerializationError, match=r"it uses self\.cluster, <Connection: .* \(a Connection\)"):
        list(parallel([1]).map(Job().run))


async def fetch(x: int) -> int:
    await asyncio.sleep(0)
    return x


@pytest.mark.parametrize(
    "evaluate", [lambda p: list(p.map(lambda x: fetch(x))), lambda p: p.foreach(lambda x: fetch(x))]
)
def test_a_coroutine_says_what_to_write_instead(
    cluster: Connection, evaluate: Callable[[Any], Any], capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(SerializationError, match=r"is a coroutine.*pass the `async def`") as raised:
        evaluate(parallel([1, 2]))
    assert not isinstance(raised.value, ElementError)
    assert "never awaited" not in capfd.readouterr().err


def test_a_plain_function_around_it_works():
    with connect("inline"):
        assert list(parallel([1, 2]).map(lambda x: asyncio.run(fetch(x)))) == [1, 2]
