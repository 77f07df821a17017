"""`min`, `max`, `nlargest`, `nsmallest`, `sum`: the answers of the builtins and of heapq."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import operator
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import append, lines

from parcoll import connect, parallel

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "then", "some"]
NAN = math.nan


@pytest.mark.parametrize("place", ["inline", "cluster", "timeout"])
def test_answers_of_the_builtins(place: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("inline" if place == "inline" else "cluster")
    how: dict[str, Any] = {"timeout": 60} if place == "timeout" else {}
    words = parallel(WORDS, partition_size=2, **how).filter(lambda w: w != "fox")
    plain = [w for w in WORDS if w != "fox"]
    assert (words.min(), words.max(), words.min(len), words.max(key=len)) == ("and", "then", "the", "quick")
    for n in (0, 1, 4, 99) if place == "inline" else (3,):
        assert words.nlargest(n) == heapq.nlargest(n, plain)
        assert words.nsmallest(n, key=len) == heapq.nsmallest(n, plain, key=len)
        assert words.nlargest(n, len) == heapq.nlargest(n, plain, len)
    assert words.map(len).sum() == sum(map(len, plain))
    assert words.map(list).sum(start=[]) == list("".join(plain))
    assert words.batched(2).max(len) == tuple(plain[:2])
    assert words.enumerate().nlargest(1) == [(len(plain) - 1, plain[-1])]
    stats = words.stats
    assert (stats.elements_in, stats.elements_out, stats.state) == (len(WORDS), len(plain), "ended")
    assert parallel([], **how).map(abs).sum() == 0


@pytest.mark.usefixtures("inline")
def test_empty_ones() -> None:
    nothing = parallel([1]).filter(lambda x: x > 1)
    assert (nothing.min(default=None), nothing.max(None, "none"), nothing.sum()) == (None, "none", 0)
    assert (nothing.sum(True), nothing.nlargest(2), nothing.nsmallest(1, abs)) == (True, [], [])
    assert nothing.sum([]) == []
    message = r"max\(\) of an empty collection: <.*> has no elements and no default"
    with pytest.raises(ValueError, match=message):
        nothing.max()
    with pytest.raises(ValueError, match=r"min\(\) of an empty collection"):
        nothing.min(abs)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("values", [[3, NAN, 1], [NAN, 1, 3], [1, NAN, NAN], [2, (NAN)], [NAN]])
def test_nan_from_left_to_right(values: list[Any]) -> None:
    for size in (1, 2, 5):
        numbers = parallel(values, partition_size=size).map(lambda x: x)
        assert repr((numbers.min(), numbers.max())) == repr((min(values), max(values)))
        assert repr(numbers.max(lambda x: -x)) == repr(max(values, key=lambda x: -x))
        of_tuples = [(x, i) for i, x in enumerate(values)]
        tuples = parallel(of_tuples, partition_size=size).map(tuple)
        assert repr((tuples.min(), tuples.max())) == repr((min(of_tuples), max(of_tuples)))
        ranked = sorted((x for x in values if x == x), reverse=True)
        assert repr(numbers.nlargest(9)) == repr(ranked + [NAN] * (len(values) - len(ranked)))


@pytest.mark.usefixtures("inline")
def test_sets_have_an_order_of_their_own() -> None:
    values = [{1}, {1, 2}, {3}, set(), {3, 4}, {1, 2, 5}]
    for row in itertools.islice(itertools.permutations(values, 4), 0, None, 17):
        sets = parallel(row, partition_size=2).map(lambda x: x)
        assert (sets.min(), sets.max()) == (min(row), max(row))


SUMS: list[tuple[list[Any], Any]] = [
    ([0.1] * 10, 1.0),
    ([1e16, 1.0, -1e16], 1.0),
    ([1e308, 1e308, -1e308], 1e308),
    ([1e308] * 3, math.inf),
    ([-1e308] * 3, -math.inf),
    ([2**60, 0.5, -(2**60)], 0.5),
    ([math.inf, 1, 2.5], math.inf),
    ([math.inf, 1.0, -math.inf], NAN),
    ([NAN, 1, 2], NAN),
    ([True, False, True], 2),
    ([2**80, 1], 2**80 + 1),
    ([Fraction(1, 3), 1, Fraction(1, 3)], Fraction(5, 3)),
    ([Decimal("0.1"), 2, Decimal("0.2")], Decimal("2.3")),
    ([Fraction(1, 2), 0.25], 0.75),
]


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("values", "expected"), SUMS, ids=str)
def test_sums_do_not_show_the_partitions(values: list[Any], expected: Any) -> None:
    for size in (1, 2, 9):
        found = parallel(values, partition_size=size).map(lambda x: x).sum()
        assert repr(found) == repr(expected)


@pytest.mark.parametrize("place", ["inline", "cluster"])
def test_keys_that_a_comparison_makes(place: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(place)
    values = [(x % 3, x) for x in range(20)]
    key = functools.cmp_to_key(lambda one, other: (one[0] < other[0]) - (one[0] > other[0]))
    for size in (1, 6, 100):
        chain = parallel(values, partition_size=size)
        assert (chain.min(key), chain.max(key)) == (min(values, key=key), max(values, key=key))
        assert chain.nlargest(4, key) == heapq.nlargest(4, values, key=key)
        assert chain.nsmallest(4, key) == heapq.nsmallest(4, values, key=key)
        for reverse in (False, True):
            assert list(chain.sorted(key, reverse=reverse)) == sorted(values, key=key, reverse=reverse)
    numbers = functools.cmp_to_key(operator.sub)
    assert list(parallel([numbers(x) for x in (3, 1)]).map(lambda key: key < numbers(2))) == [False, True]
    assert [key.obj for key in sorted(parallel([3, 1, 2]).map(numbers))] == [1, 2, 3]


@pytest.mark.usefixtures("inline")
def test_numbers_of_numpy() -> None:
    for size in (1, 3, 9):
        whole, halves = (
            parallel(np.arange(7) / divisor if divisor > 1 else np.arange(7), partition_size=size).filter(
                lambda x: x != 3
            )
            for divisor in (1, 2)
        )
        assert repr((whole.sum(), halves.sum())) == repr((np.int64(18), np.float64(7.5)))
        assert repr((whole.max(), halves.min(), whole.nlargest(1))) == repr(
            (np.int64(6), np.float64(0), [np.int64(6)])
        )
        assert repr(whole.chain([0.5]).sum()) == repr(sum([np.int64(18), 0.5]))
        rows = parallel(np.ones((4, 2)), partition_size=size).map(lambda row: row * 2)
        assert rows.sum().tolist() == [8.0, 8.0]
    with pytest.raises(ValueError, match="truth value of an array"):
        rows.max()


@pytest.mark.usefixtures("inline")
def test_sums_from_a_start() -> None:
    days = parallel([timedelta(1), timedelta(2)]).map(lambda x: x)
    assert days.sum(timedelta()) == timedelta(3)
    assert repr(parallel([1, 2]).sum(0.5)) == "3.5"
    assert parallel([1, 2]).sum(Decimal(1)) == 4
    start: list[int] = []
    assert (parallel([[1], [2]]).sum(start), start) == ([1, 2], [])
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: parallel(["a"]).sum(), r"unsupported operand type\(s\) for \+: 'int' and 'str'"),
        (lambda: parallel(["a"]).sum(""), r"sum\(\) can't sum strings"),
        (lambda: parallel([b"a"]).sum(b""), r"sum\(\) can't sum bytes"),
        (lambda: parallel([0.5, Decimal(1)]).map(lambda x: x).sum(), "unsupported operand"),
    ]
    for call, message in refused:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(OverflowError):
        parallel([10**400, 0.5]).map(lambda x: x).sum()


def test_keys_have_the_settings_of_steps(cluster: object) -> None:
    words = parallel(["a", 3, "bcd", None, "ef"], partition_size=2)
    assert words.max(len, on_error="skip") == "bcd"
    assert words.max(len, on_error=lambda error: 9) == 3
    with pytest.raises(TypeError) as raised:
        words.filter(None).nlargest(2, len)
    assert "in step 2 of 2, nlargest(len), at element 1: 3" in raised.value.__notes__[0]
    with pytest.raises(TypeError, match="'<' not supported between") as compared:
        words.map(lambda x: x).min()
    assert compared.value.__notes__[0] == "in min()"
    with pytest.raises(TypeError, match=r"min\(\) needs a function, got 3"):
        words.min(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nlargest\(\) needs a whole number from 0 up, got -1"):
        words.nlargest(-1)
    with pytest.raises(TypeError, match=r"max\(\) has no setting 'retires'"):
        words.max(retires=3)  # type: ignore[call-overload]

    with pytest.raises(ValueError, match=r"retries has no effect without key, .* got retries=3"):
        words.max(retries=3)

    async def later(x: Any) -> Any:
        return x

    with pytest.raises(TypeError, match="needs a plain function, got the `async def` function later"):
        words.max(later)


def test_they_resume(tmp_path: Path) -> None:
    def noted(x: int) -> int:
        append(tmp_path / "calls", x)
        return x * 7 % 50

    with connect("inline"):
        numbers = parallel(range(50), partition_size=10, checkpoint=tmp_path / "saved").map(noted)
        expected = [x * 7 % 50 for x in range(50)]
        assert (numbers.sum(), numbers.max(), numbers.nsmallest(3)) == (sum(expected), 49, [0, 1, 2])
        assert len(lines(tmp_path / "calls")) == 50
        keyed = parallel(range(50), checkpoint=tmp_path / "keyed").map(noted)
        assert keyed.max(lambda x: -x) == keyed.max(lambda x: -x) == 0
        assert len(lines(tmp_path / "calls")) == 100


def test_a_worker_that_dies_costs_nothing(cluster: object, tmp_path: Path) -> None:
    def deadly(x: int) -> float:
        if x == 33 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x / 10

    numbers = parallel(range(60), partition_size=10).map(deadly).unordered()
    assert numbers.sum() == math.fsum(x / 10 for x in range(60))
    assert numbers.stats.deaths == 1
    assert numbers.nlargest(2) == [5.9, 5.8]
