"""Any chain of operations that need order, over any source, cut in any way, gives what plain Python gives."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parcoll import ParallelGen, connect, parallel
from parcoll.keys.streams import Sampled

# The client's own threads draw random numbers while hypothesis watches the generator.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

OTHERS = [3, 1, 2, 1]


def size(x: Any) -> int:
    return len(repr(x))


def pair(x: Any) -> tuple[Any, int]:
    return x, size(x) % 3


def second(x: Any, y: Any) -> Any:
    return y if y else x


def repeated(x: Any) -> list[Any]:
    return [x] * (size(x) % 3)


def odd(x: Any) -> bool:
    return size(x) % 2 == 1


def small(x: Any) -> bool:
    return size(x) % 5 < 3


def added(total: int, x: Any) -> int:
    return (total + size(x)) % 97


def key(x: Any) -> int:
    return size(x) % 5


def same(x: Any) -> Any:
    return x


def batches(elements: Iterable[Any], n: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(elements)
    while batch := tuple(itertools.islice(iterator, n)):
        yield batch


def joined(elements: Iterable[Any], how: str) -> Iterator[Any]:
    for x in elements:
        found = [other for other in OTHERS if other == key(x)]
        if how in ("semi", "anti"):
            yield from [x] if bool(found) == (how == "semi") else []
        else:
            yield from ((x, other) for other in found or ([None] if how == "left" else []))


def total(n: int, x: Any) -> int:
    return n + size(x)


def grouped(elements: Iterable[Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for x in elements:
        groups.setdefault(key(x), []).append(x)
    return groups


def folded(elements: Iterable[Any], func: Callable[[int, Any], int], start: int) -> Iterator[Any]:
    return ((k, functools.reduce(func, group, start)) for k, group in grouped(elements).items())


Operation = tuple[Callable[[ParallelGen[Any]], ParallelGen[Any]], Callable[[Iterable[Any]], Iterable[Any]]]
# Those whose answer is the same multiset whatever the order of the elements is.
ANY_ORDER: dict[str, Operation] = {
    "map": (lambda c: c.map(pair), lambda v: map(pair, v)),
    "filter": (lambda c: c.filter(odd), lambda v: filter(odd, v)),
    "flatmap": (
        lambda c: c.flatmap(repeated),
        lambda v: itertools.chain.from_iterable(map(repeated, v)),
    ),
    "starmap": (lambda c: c.map(pair).starmap(second), lambda v: itertools.starmap(second, map(pair, v))),
    "chain": (
        lambda c: c.chain(parallel(OTHERS).map(str), OTHERS),
        lambda v: itertools.chain(v, map(str, OTHERS), OTHERS),
    ),
    **{
        how: (
            lambda c, how=how: c.join(parallel(OTHERS, partition_size=3).map(same), key, same, how),
            lambda v, how=how: joined(v, how),
        )
        for how in ("inner", "left", "semi", "anti")
    },
}
OPERATIONS: dict[str, Operation] = ANY_ORDER | {
    "map_batches": (
        lambda c: c.map_batches(lambda b: [*map(repr, b)], 3),
        lambda v: map(repr, v),
    ),
    "batched": (lambda c: c.batched(3), lambda v: batches(v, 3)),
    "enumerate": (lambda c: c.enumerate(5), lambda v: enumerate(v, 5)),
    "zip": (
        lambda c: c.zip(parallel(range(15), partition_size=4).map(str), "abcdefghijklmnopqrst"),
        lambda v: zip(v, map(str, range(15)), "abcdefghijklmnopqrst", strict=False),
    ),
    "pairwise": (lambda c: c.pairwise(), itertools.pairwise),
    "scan": (lambda c: c.scan(added, 1), lambda v: itertools.accumulate(v, added, initial=1)),
    "take_while": (lambda c: c.take_while(small), lambda v: itertools.takewhile(small, v)),
    "drop_while": (lambda c: c.drop_while(small), lambda v: itertools.dropwhile(small, v)),
    "skip": (lambda c: c.skip(2), lambda v: itertools.islice(v, 2, None)),
    "group_by": (lambda c: c.group_by(key), lambda v: grouped(v).items()),
    "fold_by": (lambda c: c.fold_by(key, added, 1), lambda v: folded(v, added, 1)),
    "combined": (lambda c: c.fold_by(key, total, 0, operator.add), lambda v: folded(v, total, 0)),
    "distinct": (lambda c: c.distinct(key), lambda v: [group[0] for group in grouped(v).values()]),
    "sorted": (lambda c: c.sorted(key), lambda v: sorted(v, key=key)),
    "reversed": (lambda c: c.sorted(key, True), lambda v: sorted(v, key=key, reverse=True)),
    "sample": (lambda c: c.sample(0.6, "seed"), lambda v: Sampled(0.6, "seed").made(iter(v))),
}

names = st.lists(st.sampled_from([*OPERATIONS]), max_size=5)
sources = st.lists(st.integers(-20, 200) | st.sampled_from(["", "ab", None, 2.5]), max_size=20)
sizes = st.integers(1, 7) | st.just("auto")


def by_python(chain: list[str], values: list[Any]) -> list[Any]:
    made: Iterable[Any] = values
    for name in chain:
        made = OPERATIONS[name][1](made)
    return list(made)


def by_parcoll(chain: list[str], collection: ParallelGen[Any]) -> ParallelGen[Any]:
    for name in chain:
        collection = OPERATIONS[name][0](collection)
    return collection


def checked(chain: list[str], values: list[Any], cut: Any, n: int) -> list[Any]:
    """Return the elements of a chain; whatever else it can be asked has to agree with them."""
    collection, expected = by_parcoll(chain, parallel(values, partition_size=cut)), by_python(chain, values)
    assert list(collection) == expected
    for step in collection.stats.steps:
        assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed
    assert (collection.count(), collection.take(n)) == (len(expected), expected[:n])
    assert Counter(map(repr, collection.unordered())) == Counter(map(repr, expected))
    if ANY_ORDER.keys() >= set(chain):
        loose = by_parcoll(chain, parallel(values, partition_size=cut).unordered())
        assert Counter(map(repr, loose)) == Counter(map(repr, expected))
    numbers, plain = collection.map(size), [*map(size, expected)]
    assert (numbers.sum(), numbers.min(default=None)) == (sum(plain), min(plain, default=None))
    assert collection.max(key, default="none") == max(expected, key=key, default="none")
    assert [*collection.count_by(key).items()] == [*Counter(map(key, expected)).items()]
    assert collection.nlargest(n, key) == heapq.nlargest(n, expected, key)
    assert numbers.nsmallest(n) == heapq.nsmallest(n, plain)
    return list(collection)


@settings(deadline=None, max_examples=60)
@given(chain=names, values=sources, cut=sizes, n=st.integers(0, 9))
def test_inline(chain: list[str], values: list[Any], cut: Any, n: int) -> None:
    with connect("inline"):
        assert checked(chain, values, cut, n) == by_python(chain, values)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=names, values=sources, cut=sizes, n=st.integers(0, 9))
def test_on_workers(cluster: object, chain: list[str], values: list[Any], cut: Any, n: int) -> None:
    assert checked(chain, values, cut, n) == by_python(chain, values)


numbers = st.integers(-(2**70), 2**70) | st.booleans() | st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(numbers, max_size=12), cut=sizes, n=st.integers(0, 4))
def test_numbers_of_any_kind(values: list[Any], cut: Any, n: int) -> None:
    """NaN among them: from left to right, as the builtins go. Sums do not show the partitions."""
    finite = [x for x in values if math.isfinite(x)]
    with connect("inline"):
        for found in (parallel(values, partition_size=cut), parallel(values, partition_size=cut).map(same)):
            assert repr(found.min(default="none")) == repr(min(values, default="none"))
            assert repr(found.max(default="none")) == repr(max(values, default="none"))
        found = parallel(finite, partition_size=cut).filter(lambda x: True)
        assert repr(found.nlargest(n)) == repr(heapq.nlargest(n, finite))
        assert repr(found.nsmallest(n, abs)) == repr(heapq.nsmallest(n, finite, abs))
        if any(type(x) is float for x in finite):
            exact = sum(map(Fraction, finite))
            try:
                assert found.sum() == float(exact)
            except OverflowError:
                assert abs(found.sum()) == math.inf
        else:
            assert repr(found.sum(True)) == repr(sum(finite, True))
