"""Keys and values that travel packed otherwise than by pickle, or in lists, come back as they were."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyed import make_tasks_small

from parcoll import Connection, WorkerLostError, connect, parallel
from parcoll.keys import exchange, runs

first = itemgetter(0)


def grouped(elements: Any) -> dict[Any, list[Any]]:
    """Group as plain Python does."""
    groups: dict[Any, list[Any]] = {}
    for element in elements:
        groups.setdefault(element[0], []).append(element)
    return groups


def test_keys_and_values_that_are_packed_as_one_text(
    inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts with any character, numbers of any size and lists within themselves come back as they were."""
    monkeypatch.setattr(exchange, "MOST_COST", 2000)
    monkeypatch.setattr(exchange, "LEAST_COST", 2000)
    texts = ["", "\0", "a\0b", "é\ud800", "a", "b" * 300, "\n"]
    values = [
        *texts,
        0,
        255,
        256,
        -1,
        2**80,
        True,
        1.5,
        None,
        b"\0",
        (1, "x"),
        ("", None),
        ((1,), 2),
        [3],
        [[]],
    ]
    around: list[Any] = [1]
    around.append(around)
    for size in (1, 4, 100):
        chain = parallel([(at % 3, value) for at, value in enumerate(values * 2)], partition_size=size)
        expected = grouped([(at % 3, value) for at, value in enumerate(values * 2)])
        assert repr(list(chain.group_by(first))) == repr(list(expected.items()))
        assert list(parallel(texts * 3, partition_size=size).count_by().items()) == [(x, 3) for x in texts]
        last = parallel([*chain, (0, around)], partition_size=size).fold_by(
            first, lambda _, x: x[1], None, max
        )
        assert repr(dict(last)[0]) == repr(around)
        assert list(parallel(texts * 2, partition_size=size).sorted()) == sorted(texts * 2)
        assert list(parallel(texts * 2, partition_size=size).distinct(lambda x: x + "\0")) == texts


def given_of(number: int) -> list[Any]:
    """Return what a flatmap makes of a number: nothing, a few elements, or thousands, some without a hash."""
    if number % 97 == 5:
        return [f"{number % 7}-{at % 1500}" for at in range(3000)]
    made: list[Any] = [number % 13, str(number % 11), (number % 5, "x"), float(number % 3)][: number % 5]
    return [*made, [number]] if number % 61 == 60 else made


def even(number: int) -> bool:
    return number % 2 == 0


def keyed_by(element: Any) -> Any:
    """Return a key, or fail, or return what has no hash."""
    if element in (7, "7"):
        raise ValueError(element)
    return [] if element in (9, "9") else str(element)[-1]


def in_lists(shift: int, number: int, policy: Any, instead: Any) -> tuple[list[Any], list[Any]]:
    """Return what parcoll answers, and what plain Python does with the same elements."""
    source = list(range(shift, shift + number))
    chain = parallel(source).map(abs).filter(even).flatmap(given_of)
    elements = [element for x in source if even(x) for element in given_of(abs(x))]
    hashed = [x for x in elements if not isinstance(x, list)]
    if callable(policy):
        hashed = [instead if isinstance(x, list) else x for x in elements]
    pairs = []
    for element in elements:
        if isinstance(element, list):
            continue
        try:
            key = keyed_by(element)
            hash(key)
        except (ValueError, TypeError):
            if not callable(policy):
                continue
            key = instead
        pairs.append((key, element))
    texts = chain.filter(lambda x: not isinstance(x, list))
    found = [
        list(chain.count_by(on_error=policy).items()),
        list(chain.distinct(on_error=policy)),
        list(texts.count_by(keyed_by, on_error=policy).items()),
        [(key, group) for key, group in texts.group_by(keyed_by, on_error=policy)],
        list(texts.distinct(keyed_by, on_error=policy)),
        list(texts.sorted(lambda x: keyed_by(x) or 1 / 0, on_error=policy)),
    ]
    groups: dict[Any, list[Any]] = {}
    for key, element in pairs:
        groups.setdefault(key, []).append(element)
    return found, [
        list(Counter(hashed).items()),
        list(dict.fromkeys(hashed)),
        [(key, len(group)) for key, group in groups.items()],
        list(groups.items()),
        [group[0] for group in groups.values()],
        [element for _, element in sorted(pairs, key=first)],
    ]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shift=st.integers(0, 500), number=st.integers(0, 1500), replaced=st.booleans())
def test_elements_that_go_on_in_lists(inline: Connection, shift: int, number: int, replaced: bool) -> None:
    """Behind maps, filters and flatmaps, with some that fail: as one by one, repr for repr."""
    found, expected = in_lists(shift, number, (lambda error: "instead") if replaced else "skip", "instead")
    assert repr(found) == repr(expected)


def test_a_failure_among_many_ends_there(inline: Connection) -> None:
    """What is before it has been taken; it is named, and so is its place, in a flatmap as behind it."""

    def some(x: int) -> Iterator[Any]:
        yield from range(x * 3000, x * 3000 + 2500)
        if x == 4:
            yield [x]
            raise OSError("too late")
        if x == 7:
            raise OSError("in the midst")

    for source, where, what in (
        (range(6), "in step 2 of 2, distinct(), at element 4: [4] (made from source element 4)", TypeError),
        ([7, 1], "in step 1 of 2, flatmap(some), at element 0: 7", OSError),
    ):
        found = iter(parallel(source).flatmap(some).distinct())
        before: list[Any] = []
        with pytest.raises(what) as caught:
            before.extend(found)
        assert where in caught.value.__notes__
        assert before == [
            x for at in list(source)[: 5 if what is TypeError else 1] for x in islice(some(at), 2500)
        ]


class Anew:
    """An iterator that begins anew whenever it is asked for."""

    def __init__(self, number: int) -> None:
        self.number, self.at = number, 0

    def __iter__(self) -> Anew:
        self.at = 0
        return self

    def __next__(self) -> int:
        self.at += 1
        if self.at > self.number:
            raise StopIteration
        return self.at


class Bare:
    """An iterable whose iterator cannot be asked for another one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Any:
        class Iterator:
            __next__ = iter(range(1, self.number + 1)).__next__

        return Iterator()


@pytest.mark.parametrize("kind", [Anew, Bare])
def test_an_iterator_is_asked_for_once(inline: Connection, kind: Any) -> None:
    """As `for` does: one that begins anew would never end."""
    for number, size in ((5000, 3), (4, 1024), (3, 2500)):
        for policy in ("raise", "skip"):
            chain = parallel([size] * number).flatmap(kind, on_error=policy)
            assert chain.count_by() == dict.fromkeys(range(1, size + 1), number)


class Unhashable:
    """Its hash raises what it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __hash__(self) -> int:
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(3), TypeError("no"), KeyboardInterrupt()])
def test_what_a_hash_raises_is_told_once(inline: Connection, error: BaseException) -> None:
    """With the place, and without the look at many elements that came before."""
    chain = parallel(range(4000)).flatmap(lambda x: [x, Unhashable(error) if x == 3999 else x])
    with pytest.raises(type(error)) as caught:
        chain.count_by()
    (note,) = caught.value.__notes__
    assert "in step 2 of 2, count_by(), at element 3999: " in note
    assert caught.value.__context__ is None


class Once:
    """Its hash raises when it is asked for the first time, as a signal's handler may."""

    asked = False

    def __hash__(self) -> int:
        if not self.asked:
            self.asked = True
            raise OSError("once")
        return 1


def test_what_is_raised_once_is_raised(inline: Connection) -> None:
    """Where no element that is looked at alone raises it again."""
    chain = parallel(range(4000)).flatmap(lambda x: [x, Once() if x == 3999 else x])
    with pytest.raises(OSError, match="once"):
        chain.count_by()


class Deadly:
    """A key that ends its process where it is compared."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        os._exit(5)

    def __hash__(self) -> int:
        return self.value


def test_a_comparison_that_ends_its_process(cluster: Connection) -> None:
    """At which element that was is not known, so none is named."""
    chain = parallel([1, 2, 3, 2], partition_size=4).distinct(Deadly)
    with pytest.raises(
        WorkerLostError, match=r"distinct\(Deadly\) .* at one of the elements of its partition: it"
    ):
        list(chain)


def twice(x: Any) -> list[Any]:
    return [x, x]


def test_behind_many_flatmaps(inline: Connection) -> None:
    """More than loops may be nested in each other, with failing elements behind them."""
    chain = parallel(range(200))
    for flatmaps in range(1, 12):
        chain = chain.flatmap(twice if flatmaps == 1 else lambda x: [x])
        if flatmaps in (1, 2, 8, 9, 10, 11):
            assert chain.count_by(on_error="skip") == dict.fromkeys(range(200), 2)
            assert chain.count_by() == dict.fromkeys(range(200), 2)
            assert len(list(chain.group_by(lambda x: x % 3, on_error="skip"))) == 3


def test_a_key_is_asked_for_once(inline: Connection) -> None:
    """Also where one of many fails, or has no hash."""
    asked: list[int] = []

    def key(x: int) -> Any:
        asked.append(x)
        return [] if x % 1000 == 999 else x % 7

    with connect("inline", copies=False):
        chain = parallel(range(5000)).group_by(key, on_error="skip")
        assert sum(len(group) for _, group in chain) == 4995
    assert asked == list(range(5000))


def test_what_elements_of_a_partition_share_they_share_there(cluster: Connection) -> None:
    """However long it is; and texts and tuples, which travel in parts, come as they were."""
    shared = ["shared"]
    rows = [(shared, x) for x in range(10_000)]
    numbers = parallel(rows, partition_size=10_000).map_batches(
        lambda some: [len({id(row[0]) for row in some})] * len(some), size=10_000
    )
    assert set(numbers) == {1}
    long = parallel([3000, 5000]).flatmap(lambda size: ["x" * size] * 2000)
    assert [len(set(map(id, group))) for _, group in long.group_by(len)] == [1, 1]
    assert len(set(map(id, long.sorted()))) < 50
    for source in (
        [(f"é{x}", x, x / 3, None, b"\0", x % 2 == 0) for x in range(9000)],
        [str(x % 50) for x in range(9000)],
        [(), *[(x,) for x in range(9000)]],
    ):
        assert list(parallel(source, partition_size=9001)) == source


def test_classes_that_only_the_script_has(cluster: Connection) -> None:
    """Of keys, of elements, and of one of both: they travel by value beside what any pickler packs alike."""

    @functools.total_ordering
    class Mine:
        def __init__(self, x: int) -> None:
            self.x = x

        def __lt__(self, other: Any) -> bool:
            return bool(self.x % 7 < other.x % 7)

    numbers = parallel(range(200), partition_size=30)
    mine = numbers.map(Mine)
    in_order = sorted(range(200), key=Mine)
    assert list(numbers.sorted(Mine)) == in_order
    assert [one.x for one in mine.sorted(lambda one: one.x % 7)] == in_order
    assert [one.x for one in mine.sorted()] == in_order
    assert [one.x for one in mine.distinct(lambda one: one.x % 7)] == list(range(7))


def test_each_task_that_sorts_has_its_part(inline: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the first one all."""
    make_tasks_small(monkeypatch)
    sizes: list[int] = []
    begin = runs.Range.__post_init__

    def noted(self: runs.Range) -> None:
        begin(self)
        sizes.append(self.nbytes)

    monkeypatch.setattr(runs.Range, "__post_init__", noted)
    values = [x * 7_919 % 100_003 for x in range(3_000)]
    assert list(parallel(values, partition_size=100).sorted()) == sorted(values)
    assert len(sizes) > 5
    assert max(sizes) < 12_000, "some times what a task costs here, since blocks are read whole"
