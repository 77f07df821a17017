"""Groups that go out to workers again: behind `group_by`, a step gets what plain Python's dict has.

A worker packs each group by itself. This process puts them into their order, and does not open them.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keyed import grouped, make_tasks_small, pairs

from parcoll import Connection, ElementTimeoutError, parallel
from parcoll.keys import merging, store

first = operator.itemgetter(0)


class Opened:
    """Says where it was unpickled last."""

    def __init__(self, at: int) -> None:
        self.at, self.where = at, 0

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state, where=os.getpid())
        opened.append(self.where)


opened: list[int] = []


@pytest.fixture(params=["local", "timeout", "small"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make collections on workers: with time limits too, and of so little that it counts as much."""
    settings: dict[str, Any] = {"timeout": 60} if request.param == "timeout" else {}
    if request.param == "small":
        make_tasks_small(monkeypatch)
    return functools.partial(parallel, **settings)


def test_they_are_not_opened_here(cluster: Connection) -> None:
    opened.clear()
    chain = parallel(range(2000), partition_size=100).map(lambda x: (x % 90, Opened(x)))
    sums = chain.group_by(first).map(lambda group: (group[0], sum(one.at for _, one in group[1])))
    assert list(sums) == [(key, sum(range(key, 2000, 90))) for key in range(90)]
    assert opened == [], "each of these objects was made by a worker, and is wanted by a worker"
    assert len(list(chain.group_by(first))) == 90
    assert len(opened) == 2000


def test_every_step_gets_them_in_order(cluster: Connection, start: Callable[..., Any]) -> None:
    elements = [(key, at) for at, (key, _) in enumerate(pairs(3000, 40))]
    expected = list(grouped(elements, first).items())
    groups = start(elements, partition_size=170).group_by(first)
    assert list(groups.map(lambda group: group)) == expected
    assert list(groups.filter(lambda group: group[0] % 2)) == [found for found in expected if found[0] % 2]
    assert list(groups.flatmap(lambda group: group[1])) == [one for _, group in expected for one in group]
    assert groups.map(lambda group: len(group[1])).fold(lambda found, n: [*found, n], [], operator.add) == [
        len(group) for _, group in expected
    ]
    assert groups.map_batches(lambda some: [key for key, _ in some]).take(5) == [
        key for key, _ in expected[:5]
    ]
    again = groups.map(lambda group: (len(group[1]), group[0])).group_by(first).map(len)
    assert again.count() == len({len(group) for _, group in expected})
    assert sorted(groups.unordered().map(first)) == sorted(key for key, _ in expected)


@dataclasses.dataclass(frozen=True)
class Point:
    """What only this file has."""

    x: int
    y: float


def values_of(kind: str, at: int) -> Any:
    class Local:
        """What no other process can name."""

        def __init__(self) -> None:
            self.at = at

        def __repr__(self) -> str:
            return f"Local({self.at})"

    made: dict[str, Any] = {
        "texts": "é" * (at % 5),
        "rows": {"at": at, "name": f"n{at}"},
        "points": Point(at, at / 3),
        "arrays": np.arange(at % 7),
        "local": Local(),
        "functions": lambda: at,
        "mixed": [at, None, (at, {at}), b"frame", "frame"],
    }
    return made[kind]


@pytest.mark.parametrize("kind", ["texts", "rows", "points", "arrays", "local", "functions", "mixed"])
def test_whatever_is_in_them(cluster: Connection, kind: str) -> None:
    def shown(group: tuple[str, list[Any]]) -> tuple[str, list[str]]:
        return group[0], [repr(one() if callable(one) else one) for _, one in group[1]]

    chain = parallel(range(600), partition_size=100).map(lambda x: (f"{x % 20}\0", values_of(kind, x)))
    made = [(f"{x % 20}\0", values_of(kind, x)) for x in range(600)]
    assert list(chain.group_by(first).map(shown)) == [shown(found) for found in grouped(made, first).items()]


def test_groups_of_all_sizes(cluster: Connection) -> None:
    """Some of one element, which travel with others, and some of many, which go alone."""
    elements = [(key, key * 1000 + at) for key in range(300) for at in range(1 + key % 3 * (key % 50))]
    found = parallel(elements, partition_size=97).group_by(first).map(lambda group: group)
    assert list(found) == list(grouped(elements, first).items())
    large = [(at % 3, bytes(300_000)) for at in range(60)]
    sizes = parallel(large).group_by(first).map(lambda group: (group[0], len(group[1])))
    assert list(sizes) == [(0, 20), (1, 20), (2, 20)]


def test_an_element_that_fails_is_the_group(cluster: Connection) -> None:
    """In the message, for `on_error` functions and among the errors."""
    elements = [(x % 10, x) for x in range(200)]
    groups = parallel(elements, partition_size=30).group_by(first)

    def fail(group: tuple[int, list[Any]]) -> int:
        if group[0] == 7:
            raise ValueError("seven")
        return group[0]

    with pytest.raises(ValueError, match="seven") as caught:
        list(groups.map(fail))
    assert any("at element 7: (7, [(7, 7), (7, 17)" in note for note in caught.value.__notes__)
    left = groups.map(fail, on_error="skip")
    assert list(left) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert [(error.index, error.element[0]) for error in left.errors] == [(7, 7)]
    with pytest.raises(ElementTimeoutError, match=r"at element 7: \(7, \["):
        list(groups.map(lambda group: "x".startswith(("y" * (group[0] == 7),)) or wait(group), timeout=0.5))


def wait(group: tuple[int, list[Any]]) -> int:
    if group[0] == 7:
        time.sleep(30)
    return group[0]


def test_they_are_handed_back_and_sent_again(cluster: Connection, tmp_path: Path) -> None:
    """What a slow partition leaves goes to other workers; a worker that dies has had some of them."""
    elements, mark = [(x % 60, x) for x in range(1200)], tmp_path / "died"

    def slow(group: tuple[int, list[Any]]) -> tuple[int, int]:
        time.sleep(0.02 if group[0] > 5 else 0.0)
        return group[0], len(group[1])

    assert list(parallel(elements).group_by(first).map(slow)) == [(key, 20) for key in range(60)]

    def deadly(group: tuple[int, list[Any]]) -> tuple[int, int]:
        if group[0] == 30 and not mark.exists():
            mark.touch()
            os._exit(3)
        return group[0], len(group[1])

    found = parallel(elements).group_by(first).map(deadly)
    assert list(found) == [(key, 20) for key in range(60)]
    assert found.stats.deaths == 1


def test_what_is_asked_of_one_that_nobody_has_opened() -> None:
    """Its size is that of the packed group; what is shown is the group."""
    (packed,) = store.Framer().each([(1, [2, 3])], plain=True)
    assert store.Unopened(packed).nbytes == len(packed)
    assert repr(store.Unopened(packed)) == "(1, [2, 3])"


def test_they_are_packed_alone_where_they_have_some_elements() -> None:
    """Of smaller ones, that would take longer than it saves."""
    few, many = [[0] * (merging.ELEMENTS_EACH - 1)] * 3, [[0] * merging.ELEMENTS_EACH] * 3
    assert not merging._are_many(few)
    assert merging._are_many(many)


def test_inline_they_are_made_here(inline: Connection) -> None:
    elements = [(x % 10, x) for x in range(200)]
    found = parallel(elements).group_by(first).map(lambda group: group)
    assert list(found) == list(grouped(elements, first).items())
