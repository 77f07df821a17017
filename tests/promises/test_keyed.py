"""Keys: count_by, fold_by, group_by, distinct and sorted answer as plain Python does, on every engine."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import itertools
import math
import os
import random
import signal
import sys
from collections import Counter, namedtuple
from decimal import Decimal
from fractions import Fraction
from operator import add, itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from keyed import answers, first, grouped, make_tasks_small, of_python, pairs

from parcoll import Connection, connect, parallel
from parcoll.evaluation.inline import InlineEngine
from parcoll.keys import store


@dataclasses.dataclass(frozen=True)
class Point:
    """A key of a user's."""

    x: int
    y: Any = None


class Colour(enum.Enum):
    """Keys that are hashed by their names."""

    RED = 1
    BLUE = 2


Named = namedtuple("Named", "a b")
Nothing = namedtuple("Nothing", "")


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have little data be much."""
    make_tasks_small(monkeypatch)


@pytest.mark.parametrize(
    ("number", "keys", "size"), [(0, 1, "auto"), (1, 1, 1), (500, 9, 7), (4000, 2500, "auto")]
)
def test_answers_are_those_of_plain_python(inline: Connection, number: int, keys: int, size: Any) -> None:
    """Whatever the partitions are, in the order of first appearance."""
    elements = pairs(number, keys)
    assert answers(elements, partition_size=size) == of_python(elements)


def test_answers_on_workers(cluster: Connection) -> None:
    """The same through processes."""
    elements = pairs(6000, 1500)
    assert answers(elements, partition_size=900) == of_python(elements)
    assert type(parallel(elements).count_by(first)) is Counter


@pytest.mark.parametrize(("number", "keys"), [(1200, 900), (1000, 3)])
def test_much_data_is_cut_into_many_tasks(
    inline: Connection, small_tasks: None, number: int, keys: int
) -> None:
    """Slots that are too large for a task are cut again; one key in all of them too."""
    elements = pairs(number, keys)
    assert answers(elements, partition_size=60) == of_python(elements)


def test_folds_that_go_on_may_be_small(inline: Connection, small_tasks: None) -> None:
    """Values of one key whose elements no task can take at once, which travel as other things do."""
    folds: list[Any] = [
        (0, lambda found, x: (found + x) % 7),
        ("", lambda found, x: str(x)),
        (b"", lambda *_: b"x"),
    ]
    for start, fold in folds:
        found = parallel(range(1500), partition_size=60).fold_by(lambda x: "key", fold, start)
        assert list(found) == [("key", functools.reduce(fold, range(1500), start))]


def test_skew_is_cut_too(inline: Connection, small_tasks: None) -> None:
    """Nine of ten elements have one key."""
    most, all_of_them = [(0 if at % 10 else at, at) for at in range(1000)], [(5, at) for at in range(600)]
    assert answers(most, partition_size=50) == of_python(most)
    assert answers(all_of_them, partition_size=30) == of_python(all_of_them)


def test_tasks_are_as_many_as_partitions_and_merges(cluster: Connection) -> None:
    """P + N, never P times N."""
    chain = parallel(range(20_000), partition_size=500).group_by(lambda x: x % 5000)
    assert chain.map(lambda group: len(group[1])).fold(add, 0) == 20_000
    assert chain.stats.partitions_done < 40 + 20


def test_equal_in_a_dict_is_equal_here(inline: Connection) -> None:
    """Numbers of all kinds are one key, and the first that was seen is given."""
    ones = [True, 1, 1.0, Decimal(1), Fraction(1), np.int64(1), np.float32(1), 1 + 0j, 2]
    assert list(parallel(ones, partition_size=1).count_by().items()) == [(True, 8), (2, 1)]
    assert repr(list(parallel(ones[2:], partition_size=2).distinct())) == "[1.0, 2]"
    halves = [(0.5, "a"), (Fraction(1, 2), "a"), (np.float64(0.5), "a"), (Decimal("0.5"), np.str_("a"))]
    assert len(parallel(halves, partition_size=1).count_by()) == 1
    assert len(parallel([Point(()), Point(Nothing())], partition_size=1).count_by()) == 1
    mixed = [None, "a", b"a", (1, None), (1.0, None), Named(1, None), Point(1), Point(1), Colour.RED, 1j, int]
    mixed += [
        frozenset([1, 2]),
        frozenset([2.0, 1]),
        datetime.date(2020, 1, 1),
        "é\ud800",
        np.str_("a"),
        2**70,
    ]
    expected = Counter(mixed + mixed)
    assert parallel(mixed + mixed, partition_size=3).count_by() == expected
    assert list(parallel(mixed + mixed, partition_size=3).distinct()) == list(expected)


class OfOneKind:
    """A key that can be compared with its own kind only."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(("of one kind", self.value))


def test_keys_are_compared_where_a_dict_compares_them(inline: Connection) -> None:
    """If their hashes are equal: `==` may raise for others that are in the same slot."""
    keys = [OfOneKind(at % 9) for at in range(60)] + [*range(200), *map(str, range(200))]
    random.Random(3).shuffle(keys)
    assert list(parallel(keys, partition_size=90).count_by().items()) == list(Counter(keys).items())
    assert parallel(keys, partition_size=90).group_by(lambda key: key).count() == 409


def test_keys_of_a_class_with_a_timeout(cluster: Connection) -> None:
    """Functions with one run in processes beside the workers, which should hash as these do."""
    elements = pairs(200, 9)
    key = lambda pair: OfOneKind(pair[0])
    chain = parallel(elements, partition_size=50).fold_by(
        key, lambda found, x: [*found, x], [], add, timeout=60
    )
    assert [found for _, found in chain] == list(grouped(elements, first).values())


def test_elements_are_their_own_keys_with_a_timeout(cluster: Connection) -> None:
    """They come back as they were, where each call is noted; one that fails is named."""
    elements = [3, 1, 3, 2, 1]
    chain = parallel(elements, timeout=60)
    assert list(chain.distinct()) == [3, 1, 2]
    assert list(chain.map(lambda x: [x]).sorted(reverse=True)) == [[3], [3], [2], [1], [1]]
    assert chain.flatmap(lambda x: [x, x]).count_by() == Counter(elements * 2)
    assert list(chain.map(lambda x: [x] if x > 1 else x).distinct(on_error=lambda error: 7)) == [7, 1]
    with pytest.raises(
        TypeError, match=r"unhashable type: 'list'(?s:.)*step 2 of 2, distinct\(\), at element 0"
    ):
        list(chain.map(lambda x: [x]).distinct())


class Row(tuple[Any, ...]):
    """A tuple of a user's class."""


def test_every_nan_is_one_key(inline: Connection) -> None:
    """Which object it is does not travel; so NaNs are one key, also within keys that hold others."""
    nan = float("nan")
    values = [nan, 1.0, np.float32("nan"), math.nan, (1, nan), (1.0, math.nan), Named(1, math.nan)]
    one = frozenset([nan])
    values += [frozenset([1, nan]), (2, one), Row([2, one]), frozenset([math.nan, 1])]
    numbers = [3, 1, 3, 2, 2]
    if sys.version_info < (3, 13):  # there, dataclasses are not compared as tuples
        values, numbers = [*values, Point(1, (nan,)), Point(1, (math.nan,))], [*numbers, 2]
    for size in (1, 100):
        chain = parallel(values, partition_size=size)
        assert list(chain.count_by().values()) == numbers
        assert chain.distinct().count() == len(numbers)
        assert [len(group) for _, group in chain.group_by(lambda x: x)] == numbers
    alone = parallel([Row([5, nan])], partition_size=1).group_by(lambda row: row).first()[0]
    assert (type(alone), alone[0]) == (Row, 5)
    assert parallel([Decimal("nan"), Decimal("nan")], partition_size=1).count_by().total() == 2


def test_what_is_equal_to_itself_alone_is_refused(inline: Connection) -> None:
    """Rather than as many groups as there are copies."""

    class Thing:
        pass

    for call, thing in itertools.product(("count_by", "distinct"), (Thing(), Point(1, (Thing(),)))):
        with pytest.raises(TypeError, match=r"Thing are told apart by identity.*__eq__ and __hash__"):
            list(getattr(parallel([thing] * 3), call)())
    with pytest.raises(TypeError, match="method-wrapper are told apart by identity"):
        parallel([Thing().__str__]).count_by()
    assert parallel([1, "a", 2]).count_by(type) == {int: 2, str: 1}


def test_a_key_that_fails_is_a_failed_element(inline: Connection) -> None:
    """It raises, has no hash, or is replaced: as in any step."""
    with pytest.raises(TypeError, match="unhashable") as caught:
        list(parallel([1, [2]]).group_by(lambda x: x))
    assert "in step 1 of 1, group_by(lambda), at element 1: [2]" in caught.value.__notes__
    chain = parallel([1, [2], 1, {}]).distinct(on_error="skip")
    assert list(chain) == [1]
    assert [error.index for error in chain.errors] == [1, 3]
    by_letter = parallel(["a", "", "b", ""]).group_by(itemgetter(0), on_error=lambda error: None)
    assert list(by_letter) == [("a", ["a"]), (None, ["", ""]), ("b", ["b"])]
    tries: list[int] = []

    def key(element: int) -> int:
        tries.append(element)
        if len(tries) < 3:
            raise OSError
        return element

    with connect("inline", copies=False):
        assert parallel([7]).count_by(key, retries=2) == {7: 1}
    assert parallel([3, 1, 2]).sorted(lambda x: 1 / (x - 1), on_error="skip").take(5) == [3, 2]


@pytest.mark.parametrize("combine", [None, lambda one, other: one + other])
def test_a_mutable_start_is_each_keys_own(inline: Connection, combine: Any) -> None:
    """The function may write into it; dask.bag shares it among keys."""

    def append(found: list[int], element: int) -> list[int]:
        found.append(element)
        return found

    start: list[int] = []
    chain = parallel(range(8), partition_size=3).fold_by(lambda x: x % 2, append, start, combine)
    assert list(chain) == list(chain) == [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7])]
    assert start == []


def test_a_start_counts_once(inline: Connection) -> None:
    """Also where it is not neutral to `combine`."""
    chain = parallel(range(10), partition_size=2).fold_by(lambda x: x % 2, add, 100, add)
    assert dict(chain) == {0: 120, 1: 125}


def test_an_error_of_a_folding_function_names_the_key(inline: Connection) -> None:
    """Whether partitions are folded or all elements."""
    for combine in (None, add):
        with pytest.raises(ZeroDivisionError) as caught:
            list(
                parallel(range(9)).fold_by(lambda x: x % 3, lambda total, x: total + 1 // (x - 7), 0, combine)
            )
        assert any("key 1" in note or "element 7" in note for note in caught.value.__notes__)


def test_distinct_of_an_endless_source(cluster: Connection) -> None:
    """It gives each element when it has come."""
    assert parallel(itertools.cycle("abc")).distinct().take(3) == ["a", "b", "c"]
    numbers = parallel(itertools.count()).map(lambda x: x // 10).distinct()
    assert numbers.take(5) == [0, 1, 2, 3, 4]


def test_chains_go_on_behind_them(cluster: Connection) -> None:
    """And before them, and after one another; each evaluation reads the source anew."""
    words = parallel(range(600)).map(lambda x: x * 7 % 100).filter(lambda x: x % 3).flatmap(lambda x: [x, x])
    plain = [y for x in range(600) if (y := x * 7 % 100) % 3 for _ in range(2)]
    chain = words.group_by(lambda x: x % 10).map(lambda group: (group[0], len(group[1]))).sorted(reverse=True)
    expected = sorted(
        ((key, len(found)) for key, found in grouped(plain, lambda x: x % 10).items()), reverse=True
    )
    assert list(chain) == list(chain) == expected
    assert chain.take(2) == expected[:2]
    assert words.sorted().batched(4).map(sum).count() == -(-len(plain) // 4)
    assert words.distinct().sorted().count_by(lambda x: x % 2) == Counter(x % 2 for x in set(plain))
    assert "group_by(lambda)" in repr(chain)
    assert ".sorted(reverse=True)" in repr(chain)
    assert "exchange" not in repr(chain)
    assert [row.label for row in chain.stats.steps][-4:] == [
        "map(lambda group: (group[0], len(group[1])))",
        "sorted(reverse=True)",
        "exchange()",
        "sort()",
    ]


def test_an_iterator_is_read_once(inline: Connection) -> None:
    """As everywhere."""
    chain = parallel(iter(range(10))).group_by(lambda x: x % 2)
    assert len(list(chain)) == 2
    with pytest.raises(Exception, match="read by an earlier evaluation"):
        list(chain)


def test_dask_s_own_engines_run_the_bag(inline: Connection) -> None:
    """As they do behind `batched`."""
    chain = parallel(pairs(100, 7))
    groups = grouped(pairs(100, 7), first)
    assert chain.group_by(first).bag.compute(scheduler="synchronous") == list(groups.items())
    assert chain.sorted(first).map(first).bag.compute(scheduler="synchronous") == sorted(
        map(first, pairs(100, 7))
    )
    assert chain.distinct(first).bag.compute(scheduler="synchronous") == [
        found[0] for found in groups.values()
    ]


def test_wrong_arguments_are_told_at_once(tmp_path: Path) -> None:
    """Nothing runs."""
    chain = parallel([1])
    for call in (chain.group_by, chain.sorted, chain.distinct, chain.count_by):
        with pytest.raises(TypeError, match="needs a function, got"):
            call("name")
        with pytest.raises(TypeError, match="no setting 'speed'"):
            call(abs, speed=1)

    async def key(x: int) -> int:
        return x

    with pytest.raises(TypeError, match="needs a plain function"):
        chain.group_by(key)
    saved = parallel([1], checkpoint=tmp_path / "saved")
    for name in ("group_by", "sorted", "distinct"):
        with pytest.raises(
            TypeError, match=rf"{name}\(\) brings elements of all partitions together, and checkp"
        ):
            getattr(saved, name)(abs)


def test_counts_and_folds_resume(inline: Connection, tmp_path: Path) -> None:
    """The keys are saved, with their elements for a fold: which function folds them may change."""
    calls = tmp_path / "calls"

    def key(element: int) -> int:
        with calls.open("a") as file:
            file.write("x")
        return element % 3

    for func in (add, max):
        chain = parallel(range(10), checkpoint=tmp_path / "saved")
        assert chain.count_by(key) == {0: 4, 1: 3, 2: 3}
        folded = dict(parallel(range(10), checkpoint=tmp_path / "pairs").fold_by(key, func, 0))
        assert folded == {at: functools.reduce(func, range(at, 10, 3), 0) for at in range(3)}
    assert len(calls.read_text()) == 20


def test_a_nested_evaluation_groups(cluster: Connection) -> None:
    """Within a function on a worker."""

    def inner(number: int) -> Any:
        return parallel(range(number)).count_by(lambda x: x % 2), parallel([3, number, 1]).sorted().take(3)

    assert list(parallel([4, 2]).map(inner)) == [({0: 2, 1: 2}, [1, 3, 4]), ({0: 1, 1: 1}, [1, 2, 3])]


def test_unordered_groups_come_as_they_come(cluster: Connection) -> None:
    """As multisets."""
    chain = parallel(pairs(2000, 50), partition_size=100).unordered()
    groups = {key: sorted(found) for key, found in chain.group_by(first)}
    assert groups == grouped(pairs(2000, 50), first)
    assert list(chain.sorted()) == sorted(pairs(2000, 50))


def test_what_cannot_be_compared_or_sent(inline: Connection) -> None:
    """An error as Python's, or one that names the element."""
    with pytest.raises(TypeError, match="not supported between"):
        list(parallel([1, "a"], partition_size=1).sorted())
    with pytest.raises(TypeError, match="not supported between"):
        list(parallel([1, "a"]).sorted())
    with pytest.raises(Exception, match=r"group_by\(lambda\) cannot send <generator") as caught:
        list(parallel([1]).map(lambda x: (i for i in "a")).group_by(lambda x: 1))
    assert type(caught.value).__name__ == "SerializationError"


@pytest.mark.parametrize("count", [1, 5_000])
@pytest.mark.parametrize("name", ["sorted", "nlargest", "min", "sum", "fold_by"])
def test_what_cannot_be_done_names_its_call(inline: Connection, name: str, count: int) -> None:
    """However few elements there are, and not the phase of it that nobody has written."""
    arguments: Any = {"nlargest": (3,), "fold_by": (lambda _: 0, add, 0)}.get(name, ())
    with pytest.raises(TypeError) as raised:
        list(getattr(parallel([*range(count), "text"]), name)(*arguments))
    assert raised.value.__notes__[-1] == f"in {name}()"


def test_a_sort_of_values_without_order_loses_none(inline: Connection, small_tasks: None) -> None:
    """NaN is before nothing and behind nothing: the order is nobody's, but each element is there once."""
    chosen = random.Random(2)
    values = [chosen.choice([math.nan, chosen.random()]) for _ in range(2000)]
    found = list(parallel(list(enumerate(values)), partition_size=70).sorted(itemgetter(1)))
    assert sorted(at for at, _ in found) == list(range(2000))


def test_a_group_too_large_is_named(inline: Connection, small_tasks: None, monkeypatch: Any) -> None:
    """With what it has, and what to use; a fold of it goes on."""
    monkeypatch.setattr(InlineEngine, "memory_limit", lambda self: 40_000)
    chain = parallel([("hot", "x" * 20)] * 3000 + [("cold", "y")], partition_size=50)
    with pytest.raises(
        MemoryError, match=r"the group of the key 'hot' has 3,000 elements, 0 MiB .* fold_by\(\)"
    ):
        list(chain.group_by(first))
    assert dict(chain.fold_by(first, lambda n, x: n + 1, 0)) == {"hot": 3000, "cold": 1}


def test_nothing_is_left_of_files(cluster: Connection, monkeypatch: Any, tmp_path: Path) -> None:
    """They have no names; and a disk that is full is told."""
    monkeypatch.setattr(store, "MEMORY_BYTES", 0)
    chain = parallel(pairs(2000, 200)).sorted()
    assert chain.take(3) == sorted(pairs(2000, 200))[:3]
    assert 2000 < chain.stats.bytes_spilled < 100_000
    assert "KiB through a temporary file" in str(chain.stats)
    groups = iter(parallel(pairs(2000, 200)).group_by(first))
    next(groups)
    del groups
    assert not list(Path(os.environ["TMPDIR"]).glob("parcoll-*.tmp"))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    # Of this module alone: shared memory is written so, too.
    monkeypatch.setattr(store, "os", SimpleNamespace(**{**vars(os), "pwrite": full}))
    with pytest.raises(OSError, match=r"no space left in .* for sorted, which has written 0 MiB there"):
        list(chain)


@pytest.mark.parametrize("phase", ["key", "merge"])
def test_a_worker_that_dies_in_any_phase(cluster: Connection, phase: str, tmp_path: Path) -> None:
    """Each element once, though its worker is killed in the middle."""

    def once(x: Any) -> None:
        try:
            os.close(os.open(tmp_path / "died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def key(x: int) -> int:
        if phase == "key" and x == 700:
            once(x)
        return x % 40

    def func(total: int, x: int) -> int:
        if phase == "merge" and x == 900:
            once(x)
        return total + 1

    chain = parallel(range(2000), partition_size=100)
    assert list(chain.fold_by(key, func, 0)) == [(key, 50) for key in range(40)]
    assert (tmp_path / "died").exists()
    (tmp_path / "died").unlink()
    if phase == "key":
        assert chain.count_by(key) == dict.fromkeys(range(40), 50)
        (tmp_path / "died").unlink()
        assert list(chain.sorted(key)) == sorted(range(2000), key=lambda x: x % 40)


class Travelling:
    """A number that kills the worker where it arrives after so many trips, the first time."""

    def __init__(self, number: int, deadly: int, flag: str, trips: int = 0) -> None:
        self.number = number
        self.deadly = deadly
        self.flag = flag
        self.trips = trips
        if trips == deadly and number == 77 and not os.path.exists(flag):
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __reduce__(self) -> Any:
        return Travelling, (self.number, self.deadly, self.flag, self.trips + 1)


@pytest.mark.parametrize(("trips", "cut_again"), [(1, False), (2, True)])
def test_a_worker_that_dies_with_what_it_merges(
    cluster: Connection, trips: int, cut_again: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In the second phase, where the first task takes in elements of all partitions; and in the third."""
    if cut_again:
        request.getfixturevalue("small_tasks")
    flag = str(tmp_path / "died")
    chain = parallel(range(400), partition_size=50).map(lambda x: Travelling(x, trips, flag))
    expected = grouped(range(400), lambda x: x % 9)
    found = chain.group_by(lambda x: x.number % 9)
    assert {key: [x.number for x in group] for key, group in found} == expected
    assert os.path.exists(flag)
    if not cut_again:
        os.remove(flag)
        assert [x.number for x in chain.sorted(lambda x: -x.number)] == [*reversed(range(400))]
        assert os.path.exists(flag)
