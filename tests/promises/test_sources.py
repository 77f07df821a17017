"""What may be a source, how often it is read, and that its elements arrive as they are."""

from __future__ import annotations

import enum
import functools
import itertools
import sys
import types
from collections import ChainMap, OrderedDict, deque

import dask
import dask.bag
import numpy
import pytest

from parcoll import SourceConsumedError, parallel


@pytest.fixture(params=["inline", "cluster"])
def engine(request):
    """Run the test in this process, and once more on worker processes."""
    return request.getfixturevalue(request.param)


class Indexed:
    """Iterable by the old protocol alone."""

    def __getitem__(self, index):
        return "abc"[index]

    def __len__(self):
        return 3


class Iterated:
    """Iterable anew each time, without a length."""

    def __iter__(self):
        yield from (1, None, "x")


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Backwards(list):
    """A list whose iterator goes the other way: a slice would give other elements."""

    def __iter__(self):
        return reversed(self)


def count_to_three():
    yield from (1, 2, 3)


def count_to(n, start=0):
    yield from range(start, n)


def same(x):
    return x


def drain(collection):
    """Return the results that come, and the error that ends them."""
    results = []
    try:
        for result in collection:
            results += [result]
    except Exception as error:
        return results, error
    return results, None


REPEATABLE = [
    [3, 1, 2],
    (3, 1, 2),
    {3, 1, 2},
    frozenset("abc"),
    {"a": 1}.keys(),
    {"a": 1, "b": 2}.values(),
    {"a": 1, "b": 2}.items(),
    "strïng",
    "",
    b"bytes",
    bytearray(b"bytes"),
    range(5, 50, 3),
    deque([1, 2]),
    Indexed(),
    Iterated(),
    Backwards([1, 2, 3]),
    Color,
    [[1], [2, [3]], []],
]


@pytest.mark.parametrize("source", REPEATABLE, ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("partition_size", [2, "auto"])
def test_an_iterable_gives_its_elements_at_every_evaluation(engine, source, partition_size):
    collection = parallel(source, partition_size=partition_size).map(same)
    assert list(collection) == list(source)
    assert list(collection) == list(source)


@pytest.mark.parametrize("kind", [dict, OrderedDict, ChainMap])
def test_a_mapping_gives_its_pairs(engine, kind):
    mapping = kind({"a": 1, "b": None})
    assert list(parallel(mapping).map(same)) == list(mapping.items())


def test_a_source_that_changes_is_read_as_it_is_at_each_evaluation(engine):
    words = ["a"]
    collection = parallel(words).map(same)
    words.append("b")
    assert list(collection) == ["a", "b"]


ONE_PASS = {
    "generator": lambda path: (x for x in "abc"),
    "list iterator": lambda path: iter(["a", "b", "c"]),
    "zip": lambda path: zip("ab", "cd", strict=True),
    "map": lambda path: map(str, [1, 2]),
    "file": lambda path: open(path, encoding="utf-8"),  # noqa: SIM115
}


@pytest.fixture(params=ONE_PASS)
def one_pass(request, tmp_path):
    """Give a source that can be read once, and what it gives."""
    path = tmp_path / "file"
    path.write_text("one\ntwo\n", encoding="utf-8")
    source = ONE_PASS[request.param](path)
    yield source, list(ONE_PASS[request.param](path)) if request.param != "file" else ["one\n", "two\n"]
    if request.param == "file":
        source.close()


def test_a_one_pass_source_gives_its_elements_once_and_then_says_so(engine, one_pass):
    source, expected = one_pass
    collection = parallel(source).map(same)
    assert list(collection) == expected
    with pytest.raises(SourceConsumedError, match="pass a list, or a function"):
        list(collection)
    with pytest.raises(SourceConsumedError):
        collection.count()


def test_a_one_pass_source_is_consumed_for_its_siblings_and_parents_too(inline, one_pass):
    base = parallel(one_pass[0])
    first, second = base.map(same), base.filter(None)
    assert list(first) == one_pass[1]
    for consumed in [second, base, first.map(same)]:
        with pytest.raises(SourceConsumedError):
            consumed.take(1)


def test_a_one_pass_source_is_consumed_after_an_early_stop(engine, one_pass):
    collection = parallel(one_pass[0], partition_size=1).map(same)
    assert collection.first() == one_pass[1][0]
    with pytest.raises(SourceConsumedError):
        list(collection)


def test_making_and_chaining_a_collection_reads_nothing_of_a_generator(inline):
    numbers = iter(range(5))
    collection = parallel(numbers).map(same).filter(None).unordered()
    assert next(numbers) == 0
    assert list(collection) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (count_to_three, [1, 2, 3]),
        (functools.partial(count_to, 4, start=2), [2, 3]),
        (functools.partial(functools.partial(count_to, 3)), [0, 1, 2]),
        (lambda: iter("ab"), ["a", "b"]),
        (lambda: [1, 2], [1, 2]),
        (Iterated().__iter__, [1, None, "x"]),
        (lambda *args, key=None: iter(args or [key]), [None]),
    ],
)
def test_a_function_is_called_anew_for_each_evaluation(engine, function, expected):
    collection = parallel(function).map(same)
    assert [list(collection) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize("generator", [True, False])
def test_a_function_is_called_once_for_each_evaluation(inline, generator):
    calls = []

    def give():
        calls.append(1)
        return iter("ab")

    def generate():
        calls.append(1)
        yield from "ab"

    collection = parallel(generate if generator else give)
    branches = [collection.map(same), collection.filter(None)]
    for number, branch in enumerate(branches * 2, 1):
        assert list(branch) == ["a", "b"]
        assert len(calls) == number


def test_endless_sources_work(engine):
    assert parallel(itertools.count(5)).map(same).take(3) == [5, 6, 7]
    assert parallel(lambda: itertools.cycle("ab")).map(same).take(3) == ["a", "b", "a"]


# --- numpy and dask ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(7),
        numpy.linspace(0, 1, 5)[::2],
        numpy.arange(6).reshape(3, 2),
        numpy.array([None, "a", {"b": 1}], dtype=object),
        numpy.array([], dtype=float),
        numpy.array([(1, 2.5), (3, 4.5)], dtype=[("n", int), ("x", float)]),
    ],
    ids=["1-d", "strided", "2-d", "object", "empty", "records"],
)
def test_an_array_gives_what_iterating_it_gives(engine, array):
    results = list(parallel(array, partition_size=2).map(same))
    assert [(type(x), repr(x)) for x in results] == [(type(x), repr(x)) for x in array]


@pytest.mark.parametrize("length", [3, 100_000])
def test_a_workers_function_may_write_into_arrays_and_the_callers_stay_as_they_are(cluster, length):
    arrays = [numpy.zeros(length), numpy.ones(length)]
    table = numpy.zeros((4, length))

    def write(array):
        array += 5
        return array.sum()

    assert list(parallel(arrays).map(write)) == [5 * length, 6 * length]
    assert list(parallel(table, partition_size=2).map(write)) == [5 * length] * 4
    assert arrays[0].sum() == table.sum() == 0


def bags():
    """Give bags of every make, each with whether its order is fixed."""
    numbers = dask.bag.from_sequence(range(10), npartitions=3)
    yield "plain", numbers
    yield "one partition", dask.bag.from_sequence("abc", npartitions=1)
    yield "mapped", numbers.map(lambda x: x + 1).filter(lambda x: x % 3)
    yield "empty partitions", numbers.filter(lambda x: x == 4)
    yield "all empty", numbers.filter(lambda x: False)
    yield "range", dask.bag.range(10, npartitions=4)
    yield "concatenated", dask.bag.concat([numbers, numbers])
    yield "shared task", numbers.repartition(npartitions=1).repartition(npartitions=3)


BAGS = dict(bags())


@pytest.mark.parametrize("bag", BAGS.values(), ids=BAGS)
def test_a_bag_gives_the_elements_that_dask_computes(engine, bag):
    expected = bag.compute(scheduler="synchronous")
    collection = parallel(bag)
    assert list(collection) == expected
    assert list(collection.map(str).filter(None)) == [str(x) for x in expected]
    assert collection.count() == len(expected)
    assert collection.map(same).take(2) == expected[:2]


def test_a_shuffled_bag_whose_partitions_share_tasks(engine):
    groups = dask.bag.from_sequence(range(30), npartitions=4).groupby(lambda x: x % 7)
    result = dict(parallel(groups).map(lambda group: (group[0], sorted(group[1]))))
    assert result == {key: [x for x in range(30) if x % 7 == key] for key in range(7)}


def test_persisted_bags(engine):
    bag = dask.bag.from_sequence(range(10), npartitions=3).map(lambda x: x * x)
    assert list(parallel(bag.persist(scheduler="synchronous")).map(str)) == [str(x * x) for x in range(10)]


def test_a_bag_persisted_on_the_cluster_stays_there(cluster):
    bag = cluster.engine.client.persist(dask.bag.from_sequence(range(10), npartitions=3))
    assert list(parallel(bag).map(str)) == [str(x) for x in range(10)]


def test_an_error_names_the_partition_of_a_bag(engine):
    bag = dask.bag.from_sequence([[1, 2], [3, 0]], npartitions=2).flatten()
    with pytest.raises(ZeroDivisionError) as caught:
        list(parallel(bag).map(lambda x: 1 / x))
    assert "element 1 of partition 1: 0" in caught.value.__notes__[0]


def test_an_error_in_a_bags_own_task_keeps_its_type(engine):
    bag = dask.bag.from_sequence([1, 0], npartitions=2).map(lambda x: 1 / x)
    with pytest.raises(ZeroDivisionError):
        list(parallel(bag).map(same))


def test_a_bag_made_of_a_chain_and_a_chain_made_of_a_chain(engine):
    chain = parallel(range(10), partition_size=3).map(lambda x: x * 2)
    assert list(parallel(chain.bag).map(str)) == [str(x * 2) for x in range(10)]
    assert list(parallel(chain.bag.map(lambda x: x + 1))) == [x * 2 + 1 for x in range(10)]
    assert list(parallel(chain).map(str)) == [str(x * 2) for x in range(10)]
    kept = parallel(range(4), partition_size=2)
    kept.foreach(lambda x: x + 1)
    assert list(parallel(kept.bag).map(str)) == ["1", "2", "3", "4"]


# --- what is no source ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        (1, "1 (an int)"),
        (None, "None"),
        (2.5, "2.5"),
        (object(), "object"),
        (int, "int"),
        (lambda: 1, "1 (an int)"),
        (lambda: None, "None"),
        (lambda x: x, "lambda"),
        (len, "len"),
        (numpy.array(7), "array(7)"),
        (numpy.float64(1.5), "1.5"),
        (lambda: numpy.array(7), "array(7)"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed_and_what_came(given, quoted):
    with pytest.raises(TypeError) as caught:
        parallel(given)
    assert "an iterable" in str(caught.value)
    assert quoted in str(caught.value)
    assert "\n" not in str(caught.value)


# --- errors of the source ------------------------------------------------------------------------


@pytest.mark.parametrize("partition_size", [1, 3, "auto"])
@pytest.mark.parametrize("position", range(8))
def test_an_error_of_the_source_comes_as_it_is_after_the_elements_before_it(engine, position, partition_size):
    error = LookupError("the source broke", position)

    def broken():
        yield from range(position)
        raise error

    results, caught = drain(parallel(broken, partition_size=partition_size).map(lambda x: x * 2))
    assert caught is error
    assert results == [x * 2 for x in range(position)]


def test_an_error_of_the_source_reaches_every_evaluating_call(engine):
    def broken():
        yield from range(5)
        raise LookupError("the source broke")

    collection = parallel(broken, partition_size=2).map(same)
    calls = [
        collection.count,
        lambda: collection.reduce(max),
        lambda: collection.fold(max, 0),
        lambda: collection.foreach(same),
        lambda: collection.take(6),
        lambda: list(collection.unordered()),
    ]
    for call in calls:
        with pytest.raises(LookupError, match="the source broke"):
            call()
    assert collection.take(5) == [0, 1, 2, 3, 4]


# --- any element ---------------------------------------------------------------------------------


def odd_elements():
    class Local:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return type(self) is type(other) and self.value == other.value

        __hash__ = None

    yield "tasks", [(len, [1, 2]), (sum, [(1, 2)]), ("source-0", 0), [(len, "a")]]
    yield "keys", ["source-0", "map-same", ("source-0", 0), {"source-0": 1}]
    yield "none", [None, None, ...]
    yield "local class", [Local(1), Local([2]), Local]
    yield "exceptions", [ValueError, StopIteration, GeneratorExit]
    yield "empty", ["", (), [], {}, 0]
    yield "large", [bytes(3 * 2**20), "x" * 10, bytes(40 * 2**20)]


ODD = dict(odd_elements())


@pytest.mark.parametrize("elements", ODD.values(), ids=ODD)
@pytest.mark.parametrize("partition_size", [1, 10, "auto"])
def test_elements_arrive_and_come_back_as_they_are(engine, elements, partition_size):
    assert list(parallel(elements, partition_size=partition_size).map(same)) == elements


def test_functions_and_exceptions_are_elements_like_any_other(engine):
    offset = 10
    assert list(parallel([lambda: 1 + offset, lambda: 2]).map(lambda function: function())) == [11, 2]
    returned = list(parallel([ValueError("a"), StopIteration(3), SystemExit(4)]).map(same))
    assert list(map(repr, returned)) == ["ValueError('a')", "StopIteration(3)", "SystemExit(4)"]


@pytest.mark.parametrize("partition_size", [1, 4, "auto"])
def test_equal_elements_are_not_merged_and_each_has_its_side_effect(engine, tmp_path, partition_size):
    log = tmp_path / "log"

    def write(x):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{x}\n")
        return x

    assert list(parallel(["same"] * 20, partition_size=partition_size).map(write)) == ["same"] * 20
    assert log.read_text(encoding="utf-8") == "same\n" * 20


def test_a_source_is_taken_while_another_thread_imports_dask_bag(monkeypatch, inline):
    monkeypatch.setitem(sys.modules, "dask.bag", types.ModuleType("dask.bag"))  # begun, and still empty
    chain = parallel([1, 2])
    monkeypatch.undo()
    assert list(chain) == [1, 2]
