"""Sorting by large keys: of these, few are in the script at any time."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, connect, parallel
from parcoll.keys.exchange import HERE
from parcoll.keys.pieces import BlockKeys
from parcoll.keys.runs import Ranges, Runs, in_range

LARGE = 20_000  # characters of a key


def large(number: int) -> str:
    return f"{random.Random(number % 300).random():.17f}" + "x" * LARGE


def row_of(number: int) -> tuple[int, str]:
    return number, large(number)


def either(number: int) -> str:
    """Return a large key of every third number, and a small one of the others."""
    return large(number) if number % 3 == 0 else f"{random.Random(number).random():.17f}"


def runs_of(partitions: int, each: int, make: Callable[[int], Any]) -> Iterator[Any]:
    for start in range(0, partitions * each, each):
        gatherer = Runs(keyed=False, reverse=False).begin()
        gatherer.take(map(make, range(start, start + each)))
        yield gatherer.piece()


def unplain(runs: Iterator[Any]) -> Iterator[Any]:
    """Have ranges made of them, however little they are."""
    for run in runs:
        run.plain = False
        yield run


@pytest.mark.parametrize(
    ("make", "wait"),
    [(large, True), (either, True), (row_of, True), (str, False), (float, False)],
)
def test_which_keys_of_blocks_wait_in_the_store(make: Callable[[int], Any], wait: bool) -> None:
    (run,) = runs_of(1, 2000, make)
    assert isinstance(run.firsts, BlockKeys) is wait


def test_small_keys_of_large_elements_are_here() -> None:
    gatherer = Runs(keyed=True, reverse=False).begin()
    gatherer.take((number, large(number)) for number in range(500))
    run = gatherer.piece()
    assert isinstance(run.firsts, list)
    assert len(run.firsts) == 500


def test_large_keys_are_not_all_in_memory() -> None:
    expected = sorted(map(large, range(2000)))  # 40 MB
    runs = [*unplain(runs_of(20, 100, large))]
    tracemalloc.start()
    try:
        little = HERE._replace(memory_limit=lambda: 2**26)
        made = Ranges(reverse=False).within(little).made(iter(runs))
        found = in_range(next(made))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2000 * LARGE / 4
    for more in made:
        found += in_range(more)
    assert found == expected


@pytest.mark.parametrize("make", [large, either, row_of])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("key", [None, itemgetter(-1), itemgetter(slice(0, 4))])
def test_sorted_by_large_keys(
    cluster: Connection, make: Callable[[int], Any], reverse: bool, key: Callable[[Any], Any] | None
) -> None:
    chain = parallel(range(1500), partition_size=100).map(make).sorted(key, reverse=reverse)
    expected = sorted(map(make, range(1500)), key=key, reverse=reverse)
    assert list(chain) == expected
    assert chain.take(5) == expected[:5]


def test_large_keys_of_a_list(cluster: Connection) -> None:
    rows = [row_of(number) for number in range(1200)]
    expected = sorted(rows, key=itemgetter(1))
    found = list(parallel(rows, partition_size=100).sorted(itemgetter(1)))
    assert found == expected
    assert parallel(rows, partition_size=100).sorted(itemgetter(1)).take(3) == expected[:3]


def test_large_keys_with_a_scratch(tmp_path: Path) -> None:
    with connect(n_workers=2, scratch=str(tmp_path)):
        chain = parallel(range(800), partition_size=100).map(large).sorted()
        assert list(chain) == sorted(map(large, range(800)))
    assert list(tmp_path.iterdir()) == []


def test_large_keys_that_cannot_be_compared_are_told(cluster: Connection) -> None:
    def mixed(number: int) -> Any:
        return large(number) if number % 200 else large(number).encode()

    with pytest.raises(TypeError, match="'<' not supported between instances of") as raised:
        list(parallel(range(1000), partition_size=100).map(mixed).sorted())
    assert any("sorted()" in note for note in raised.value.__notes__)
