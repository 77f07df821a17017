"""Any chain over any source, cut in any way, gives what the builtins give."""

from __future__ import annotations

import functools
import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parcoll import connect, parallel

# The client's own threads draw random numbers while hypothesis watches the generator.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

# Functions for elements of any type; some give None, some what is false.


def pair(x):
    return (x, x)


def kind(x):
    return type(x).__name__


def nothing(x):
    return None


def truth(x):
    return bool(x)


def is_text(x):
    return isinstance(x, str)


def short(x):
    return len(repr(x)) < 4


def falsy_or_not(x):
    return [] if x is None else [0]


def twice(x):
    return [x, x]


def characters(x):
    return repr(x)[:4]


def lazily(x):
    yield x
    yield None


def parts(x):
    return x if isinstance(x, (str, tuple)) else ()


def nest(left, right):
    """Neither associative nor commutative, and defined for all elements."""
    return f"({left!r}{right!r})"[-40:]


STEPS = [
    *(("map", func) for func in (pair, kind, repr, nothing, truth)),
    *(("filter", func) for func in (None, is_text, short, truth, falsy_or_not)),
    *(("flatmap", func) for func in (twice, characters, lazily, parts)),
]

chains = st.lists(st.sampled_from(STEPS), max_size=6)
elements = st.none() | st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.none())
sources = st.lists(elements, max_size=25)
sizes = st.integers(1, 7) | st.just("auto")


def by_builtins(chain, values):
    """Return what the builtins make of the same chain."""
    for method, func in chain:
        if method == "flatmap":
            values = itertools.chain.from_iterable(map(func, values))
        else:
            values = map(func, values) if method == "map" else filter(func, values)
    return list(values)


def by_parcoll(chain, values, size, as_function=False):
    """Return the collection of that chain."""
    collection = parallel(lambda: (x for x in values), partition_size=size) if as_function else None
    if collection is None:
        collection = parallel(values, partition_size=size)
    for method, func in chain:
        collection = getattr(collection, method)(func)
    return collection


def answers_of(collection, n):
    """Return what every evaluating call gives; results by repr too, since 1 equals True."""
    results = list(collection)
    return {
        "list": results,
        "list, by repr": repr(results),
        "unordered": Counter(map(repr, collection.unordered())),
        "count": collection.count(),
        "take": collection.take(n),
        "first": collection.first("none"),
        "reduce from a start": collection.reduce(nest, "start"),
        "reduce": collection.reduce(nest) if results else None,
        "fold": collection.map(repr).fold(lambda a, b: a + b, ">"),
        "fold, combining": collection.fold(lambda n, x: n + 1, 0, lambda a, b: a + b),
    }


def answers_by_builtins(chain, values, n):
    """Return the same of the builtins."""
    expected = by_builtins(chain, values)
    return {
        "list": expected,
        "list, by repr": repr(expected),
        "unordered": Counter(map(repr, expected)),
        "count": len(expected),
        "take": expected[:n],
        "first": next(iter(expected), "none"),
        "reduce from a start": functools.reduce(nest, expected, "start"),
        "reduce": functools.reduce(nest, expected) if expected else None,
        "fold": ">" + "".join(map(repr, expected)),
        "fold, combining": len(expected),
    }


@settings(deadline=None, max_examples=150)
@given(chain=chains, values=sources, size=sizes, as_function=st.booleans(), n=st.integers(0, 30))
def test_all_answers_equal_the_builtins_inline(chain, values, size, as_function, n):
    with connect("inline"):
        found = answers_of(by_parcoll(chain, values, size, as_function), n)
    assert found == answers_by_builtins(chain, values, n)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=chains, values=sources, size=sizes, as_function=st.booleans(), n=st.integers(0, 30))
def test_all_answers_equal_the_builtins_on_workers(cluster, chain, values, size, as_function, n):
    found = answers_of(by_parcoll(chain, values, size, as_function), n)
    assert found == answers_by_builtins(chain, values, n)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=chains, values=sources, size=sizes)
def test_results_equal_the_builtins_on_workers(cluster, chain, values, size):
    results = list(by_parcoll(chain, values, size))
    assert repr(results) == repr(by_builtins(chain, values))


@settings(deadline=None, max_examples=60)
@given(before=chains, after=chains, values=sources, size=sizes)
def test_foreach_is_a_map_that_happens_at_once(before, after, values, size):
    with connect("inline"):
        collection = by_parcoll(before, values, size)
        collection.foreach(pair)
        for method, func in after:
            collection = getattr(collection, method)(func)
        assert repr(list(collection)) == repr(by_builtins([*before, ("map", pair), *after], values))


@settings(deadline=None, max_examples=60)
@given(chain=chains, values=sources, sizes=st.tuples(sizes, sizes))
def test_the_partition_size_never_changes_the_answer(chain, values, sizes):
    with connect("inline"):
        one, other = (by_parcoll(chain, values, size) for size in sizes)
        assert repr(list(one)) == repr(list(other))
        assert one.reduce(nest, None) == other.reduce(nest, None)


@settings(deadline=None, max_examples=100)
@given(values=st.lists(st.integers(0, 9), max_size=30), bad=st.integers(0, 9), size=sizes)
def test_an_error_comes_after_exactly_the_results_before_it(values, bad, size):
    def check(x):
        if x == bad:
            raise ValueError(x)
        return x

    results, notes = [], ""
    with connect("inline"):
        try:
            for x in parallel(values, partition_size=size).map(check):
                results += [x]
        except ValueError as error:
            notes = error.__notes__[0]
    position = values.index(bad) if bad in values else len(values)
    assert results == values[:position]
    assert (f"element {position}: {bad}" in notes) == (bad in values)
