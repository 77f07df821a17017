"""`reduce` is `functools.reduce`; `fold` gives the same answer however the source is cut."""

from __future__ import annotations

import functools
import operator
import os
import threading
from collections import Counter, defaultdict

import distributed
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcoll import connect, parallel
from parcoll.chain import timing
from parcoll.evaluation import sizing


@pytest.fixture(params=["inline", "cluster"])
def engine(request):
    """Run the test in this process, and once more on worker processes."""
    return request.getfixturevalue(request.param)


def nest(left, right):
    """Tell by its result which arguments it was called with, in which order."""
    return f"({left}{right})"


def group_letters(groups, word):
    groups[word[0]].append(word)
    return groups


def append(values, value):
    values.append(value)
    return values


def divide(left, right):
    return left / right


# --- reduce --------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition_size", [1, 2, 7, "auto"])
@pytest.mark.parametrize("func", [operator.sub, nest, lambda a, b: (a, b)], ids=["sub", "nest", "pair"])
def test_reduce_equals_functools_for_functions_that_are_not_associative(engine, func, partition_size):
    numbers = parallel(range(20), partition_size=partition_size)
    assert numbers.reduce(func) == functools.reduce(func, range(20))
    assert numbers.reduce(func, 1000) == functools.reduce(func, range(20), 1000)


def test_reduce_of_one_element_does_not_call_the_function(engine):
    assert parallel(["only"]).reduce(divide) == "only"
    assert parallel(["b"]).reduce(nest, "a") == "(ab)"


def test_none_is_an_initial_value_like_any_other(engine):
    assert parallel([1, 2]).reduce(nest, None) == functools.reduce(nest, [1, 2], None)
    assert parallel([]).reduce(nest, None) is None
    assert parallel([None, None]).reduce(nest) == "(NoneNone)"
    assert parallel([1, 2]).fold(nest, None, lambda a, b: f"<{a}{b}>") == "((None1)2)"


def test_reduce_of_nothing_without_initial_is_functools_error(engine):
    with pytest.raises(TypeError) as expected:
        functools.reduce(nest, [])
    for empty in [parallel([]), parallel(range(9), partition_size=2).filter(lambda x: False)]:
        with pytest.raises(TypeError) as caught:
            empty.reduce(nest)
        assert str(caught.value) == str(expected.value)


def test_reduce_of_nothing_gives_initial(engine):
    assert parallel([]).reduce(nest, "start") == "start"
    assert parallel(range(9), partition_size=2).filter(lambda x: False).reduce(nest, "start") == "start"


@pytest.mark.parametrize("kept", [[], [0], [4], [9], [3, 4, 8]], ids=str)
def test_partitions_that_are_filtered_empty_add_nothing(engine, kept):
    numbers = parallel(range(10), partition_size=1).filter(lambda x: x in kept)
    assert numbers.reduce(nest, "i") == functools.reduce(nest, kept, "i")
    assert numbers.fold(operator.add, 5) == sum(kept, 5)
    if kept:
        assert numbers.reduce(nest) == functools.reduce(nest, kept)


def test_initial_is_not_mutated(engine):
    initial = defaultdict(list)
    words = parallel(["apple", "bean", "avocado", "beet"], partition_size=2)
    expected = {"a": ["apple", "avocado"], "b": ["bean", "beet"]}
    assert words.reduce(group_letters, initial) == expected
    assert words.reduce(group_letters, initial) == expected
    assert initial == {}


def test_what_an_empty_reduce_returns_is_not_initial_itself(engine):
    initial = [1]
    parallel([]).reduce(append, initial).append(2)
    parallel([]).fold(append, initial).append(2)
    assert initial == [1]


def test_reduce_over_a_chain_of_all_steps(engine):
    words = parallel(["a b", "", "c d e"], partition_size=1).flatmap(str.split).filter(None).map(str.upper)
    assert words.reduce(nest) == "((((AB)C)D)E)"


def test_only_the_result_travels(cluster):
    class Local:
        """Fails to unpickle in the test's own process."""

        def __init__(self, home):
            self.home = home

        def __setstate__(self, state):
            assert os.getpid() != state["home"], "an element travelled to the client"
            self.__dict__ = state

    home = os.getpid()
    with pytest.raises(Exception, match="travelled"):
        list(parallel([1]).map(lambda x: Local(home)))
    locals_ = parallel(range(6), partition_size=2).map(lambda x: Local(home))
    assert locals_.reduce(lambda n, element: n + (element.home == home), 0) == 6
    assert locals_.fold(lambda n, element: n + (element.home == home), 0, operator.add) == 6


class Known(dict):
    def get(self, functions, unknown):
        return 1e-9, None


@pytest.mark.parametrize("source", [lambda: range(10), lambda: iter(range(10))], ids=["list", "stream"])
def test_few_quick_elements_are_one_task(cluster, monkeypatch, source):
    """Where the functions ran before; what is folded comes with the task's outcome."""
    tasks = []
    get = distributed.Client.get

    def counted(client, graph, *arguments, **settings):
        tasks.extend(graph)
        return get(client, graph, *arguments, **settings)

    def ask(evaluate):
        tasks.clear()
        return evaluate(parallel(source()).map(abs).filter(None)), len(tasks)

    monkeypatch.setattr(distributed.Client, "get", counted)
    monkeypatch.setattr(timing, "_seconds", Known())  # however busy the machine is
    monkeypatch.setattr(sizing, "START_SECONDS", 10.0)
    assert ask(lambda chain: chain.reduce(nest)) == (functools.reduce(nest, range(1, 10)), 1)
    assert ask(lambda chain: chain.reduce(nest, "0")) == (functools.reduce(nest, range(1, 10), "0"), 1)
    assert ask(lambda chain: chain.reduce(append, [])) == ([*range(1, 10)], 1)
    assert ask(lambda chain: chain.fold(operator.add, 0)) == (45, 1)
    assert ask(lambda chain: chain.fold(operator.add, 0, operator.add)) == (45, 1)
    assert ask(lambda chain: chain.fold(operator.add, 5, operator.add)) == (50, 1)  # not neutral
    assert ask(lambda chain: chain.filter(lambda x: x > 9).reduce(nest, "none")) == ("none", 1)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        ask(lambda chain: chain.reduce(lambda a, b: a / (b - 5)))
    assert "at element 4 of those that reached it: 5" in caught.value.__notes__[-1]


def test_fold_takes_elements_that_could_not_travel_at_all(cluster):
    locks = parallel(range(6), partition_size=2).map(lambda x: threading.Lock())
    assert locks.fold(lambda n, lock: n + (not lock.locked()), 0, operator.add) == 6


def test_large_elements_reduce_to_a_small_result(cluster):
    blocks = parallel(range(12), partition_size=1).map(lambda x: bytes(2**20))
    assert blocks.reduce(lambda n, block: n + len(block), 0) == 12 * 2**20


@pytest.mark.parametrize("partition_size", [1, 3, 100])
def test_an_error_in_the_reducing_function_names_the_element(engine, partition_size):
    with pytest.raises(ZeroDivisionError) as caught:
        parallel([8, 4, 2, 0, 1], partition_size=partition_size).reduce(divide)
    assert "reduce(divide)" in caught.value.__notes__[-1]
    assert "element 3" in caught.value.__notes__[-1]
    assert caught.value.__notes__[-1].endswith(": 0")


def test_errors_of_reduce_and_of_a_step_come_in_the_order_of_the_elements(engine):
    def check(x):
        if x == 7:
            raise KeyError(x)
        return x

    numbers = parallel(range(1, 9), partition_size=1).map(check)
    with pytest.raises(ZeroDivisionError):
        numbers.reduce(lambda a, b: a / (b - 5))
    with pytest.raises(KeyError):
        numbers.reduce(lambda a, b: a / (b - 8))


@pytest.mark.parametrize("settings", [{}, {"timeout": 30}], ids=["", "timeout"])
def test_errors_of_fold_and_of_a_step_come_in_the_order_of_the_elements(engine, settings):
    """Also where the element that the fold refuses is the first of a partition in which a step fails."""

    def refuse(left, right):
        if 3 in right:
            raise KeyError(3)
        return left + right

    numbers = parallel(range(9), partition_size=3, **settings)
    with pytest.raises(KeyError):
        numbers.map(lambda x: [x] if x != 4 else divide(x, 0)).fold(refuse, [])
    with pytest.raises(ZeroDivisionError):
        numbers.map(lambda x: [x] if x != 2 else divide(x, 0)).fold(refuse, [])


def test_reduce_and_fold_keep_the_order_of_an_unordered_collection(engine):
    letters = parallel("abcdefghij", partition_size=1).unordered()
    assert letters.reduce(nest) == functools.reduce(nest, "abcdefghij")
    assert letters.fold(operator.add, "") == "abcdefghij"


# --- fold ----------------------------------------------------------------------------------------

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
IN_PARTITIONS = pytest.mark.parametrize("partition_size", [7, 4, 1], ids=["1 part", "2 parts", "7 parts"])


@IN_PARTITIONS
def test_fold_of_an_associative_function_is_reduce(engine, partition_size):
    assert parallel(WORDS, partition_size=partition_size).fold(operator.add, ">") == ">" + "".join(WORDS)


@IN_PARTITIONS
def test_fold_with_combine_may_change_the_type(engine, partition_size):
    words = parallel(WORDS, partition_size=partition_size)
    assert words.fold(lambda n, word: n + len(word), 0, operator.add) == len("".join(WORDS))
    assert words.fold(append, [], operator.add) == WORDS
    counts = words.fold(lambda c, word: c + Counter(word), Counter(), operator.add)
    assert counts == Counter("".join(WORDS))


@IN_PARTITIONS
def test_an_initial_that_is_not_neutral_counts_once(engine, partition_size):
    numbers = parallel(range(7), partition_size=partition_size)
    assert numbers.fold(operator.add, 100) == 121
    assert numbers.fold(lambda n, x: n + x, 100, operator.add) == 121
    assert numbers.fold(append, ["start"], operator.add) == ["start", *range(7)]


@IN_PARTITIONS
def test_an_initial_that_combines_to_itself_but_is_not_neutral_is_refused(engine, partition_size):
    """Each partition would start from depth 0 and overwrite the depth found before it."""
    pairs = [("name", "x"), ("depth", 5), ("size", 1), ("size", 2), ("a", 0), ("b", 0), ("c", 0)]
    settings = parallel(pairs, partition_size=partition_size)
    with pytest.raises(ValueError, match=r"not neutral.*use reduce"):
        settings.fold(
            lambda settings, pair: {**settings, pair[0]: pair[1]},
            {"depth": 0},
            lambda left, right: {**left, **right},
        )


@pytest.mark.parametrize("partition_count", [1, 2, 7])
def test_initial_counts_once_over_the_partitions_of_a_bag(engine, partition_count):
    bag = pytest.importorskip("dask.bag").from_sequence(range(14), npartitions=partition_count)
    assert bag.npartitions == partition_count
    assert parallel(bag).fold(operator.add, 100) == 191
    assert parallel(bag).fold(lambda n, x: n + x, 100, operator.add) == 191
    assert parallel(bag).reduce(nest, ">") == functools.reduce(nest, range(14), ">")


def test_initial_counts_once_over_the_results_of_foreach(engine):
    numbers = parallel(range(6), partition_size=2)
    numbers.foreach(lambda x: x + 1)
    assert numbers.fold(operator.add, 100) == 121
    assert numbers.fold(operator.add, 100, operator.add) == 121


@IN_PARTITIONS
def test_a_mutable_initial_is_copied_for_each_partition(engine, partition_size):
    initial: list[str] = []
    words = parallel(WORDS, partition_size=partition_size)
    assert words.fold(append, initial, operator.add) == WORDS
    assert words.fold(append, initial, operator.iadd) == WORDS
    assert initial == []


def test_fold_of_nothing_is_initial(engine):
    for empty in [parallel([]), parallel(range(9), partition_size=2).filter(lambda x: False)]:
        assert empty.fold(operator.add, 100) == 100
        assert empty.fold(operator.add, 100, operator.add) == 100
        assert empty.fold(append, [], operator.add) == []


@IN_PARTITIONS
def test_fold_of_floats_and_arrays(engine, partition_size):
    halves = parallel([0.5, 0.25, 8, 1, -2, 64, 0.125], partition_size=partition_size)
    assert halves.fold(operator.add, 0.0) == 71.875
    rows = parallel(numpy.arange(14.0).reshape(7, 2), partition_size=partition_size)
    initial = numpy.ones(2)
    for total in [rows.fold(operator.add, initial), rows.fold(operator.add, initial, operator.add)]:
        assert total.tolist() == [43.0, 50.0]
    assert rows.fold(operator.iadd, initial, operator.add).tolist() == [43.0, 50.0]
    assert initial.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("combine", [None, operator.add])
def test_an_error_in_the_folding_function_names_the_element(engine, combine):
    def check(left, right):
        if right == 5:
            raise ValueError("five")
        return left + right

    with pytest.raises(ValueError, match="five") as caught:
        parallel(range(9), partition_size=3).fold(check, 0, combine)
    assert "fold(check)" in caught.value.__notes__[-1]
    assert "at element 5: 5" in caught.value.__notes__[-1]


def test_an_error_in_combine_says_so(engine):
    def refuse(left, right):
        if left or right:
            raise ValueError("refused")
        return 0

    with pytest.raises(ValueError, match="refused") as caught:
        parallel([1, 2], partition_size=1).fold(operator.add, 0, refuse)
    assert "combining with refuse" in caught.value.__notes__[-1]


ASSOCIATIVE = [
    (operator.add, st.integers()),
    (operator.mul, st.integers(-9, 9)),
    (operator.add, st.text(max_size=3)),
    (operator.add, st.lists(st.none(), max_size=3)),
    (max, st.integers()),
    (operator.xor, st.integers()),
    (lambda a, b: b, st.integers()),
    (lambda a, b: a, st.none() | st.integers()),
]


# The client's own threads draw random numbers while hypothesis watches the generator.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.parametrize(("func", "elements"), ASSOCIATIVE)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_fold_equals_reduce_for_every_associative_function(func, elements, data):
    values = data.draw(st.lists(elements))
    initial = data.draw(elements)
    size = data.draw(st.integers(1, 7) | st.just("auto"))
    expected = functools.reduce(func, values, initial)
    with connect("inline"):
        source = parallel(values, partition_size=size)
        assert source.reduce(func, initial) == expected
        assert source.fold(func, initial) == expected


class Merging(list[int]):
    """A function that is false, since it is an empty list."""

    def __call__(self, one: int, other: int) -> int:
        return one + other


def test_a_combine_that_is_false_is_used(cluster):
    for timeout in (None, 9):
        numbers = parallel(range(30), partition_size=10, timeout=timeout)
        assert numbers.fold(lambda count, x: count + 1, 0, Merging()) == 30
