"""A collection gives what the builtins give, and no call but an evaluating one does anything."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sized

import distributed
import pytest

from parcoll import ParallelGen, parallel


@pytest.fixture(params=["inline", "cluster"])
def engine(request):
    """Run the test in this process, and once more on worker processes."""
    return request.getfixturevalue(request.param)


class Unread:
    """A source that fails the test when it is read."""

    def __iter__(self):
        raise AssertionError("the source was read")

    def __len__(self):
        raise AssertionError("the source was asked for its length, which a lazy one may have to read for")


class Untouched(distributed.Client):
    """A client that fails the test as soon as anything is asked of it."""

    def __init__(self):
        pass

    def __del__(self):
        pass

    def __getattribute__(self, name):
        raise AssertionError(f"{name} was asked for")


class WorkerOnly:
    """A value that cannot come back to the process that made the class's `home`."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __reduce__(self):
        return revive, (self.home,)


def revive(home: int) -> WorkerOnly:
    assert os.getpid() != home, "a result travelled to the client"
    return WorkerOnly(home)


def append_line(path, text) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def lines(path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def double(x):
    return x * 2


def is_odd(x):
    return x % 2 == 1


def twice(x):
    return [x, x]


def fail(x):
    raise ValueError(f"no {x}")


# --- map, filter, flatmap ------------------------------------------------------------------------


def test_map_equals_the_builtin(engine):
    assert list(parallel(range(50)).map(double)) == list(map(double, range(50)))


def test_filter_equals_the_builtin(engine):
    assert list(parallel(range(50)).filter(is_odd)) == list(filter(is_odd, range(50)))


def test_filter_goes_by_truth_not_by_the_predicates_value(engine):
    words = ["", "a", "", "bc"]
    assert list(parallel(words).filter(lambda word: word)) == ["a", "bc"]


def test_filter_none_keeps_the_true_elements(engine):
    values = [0, 1, "", "a", None, [], [0], False, True, 0.0, float("nan")]
    assert list(map(repr, parallel(values).filter(None))) == list(map(repr, filter(None, values)))


def test_none_results_survive(engine):
    assert list(parallel([1, None, 2]).map(lambda x: None)) == [None] * 3


@pytest.mark.parametrize(
    "func",
    [
        lambda n: [n] * n,
        lambda n: (n, n + 1),
        lambda n: range(n),
        lambda n: (i * i for i in range(n)),
        lambda n: map(str, range(n)),
        lambda n: "x" * n,
        lambda n: dict.fromkeys(range(n)),
        lambda n: dict.fromkeys(range(n), "v").items(),
        lambda n: {n},
        lambda n: [],
        lambda n: [[n], [[n]], None, ""],
    ],
    ids=["list", "tuple", "range", "generator", "map", "string", "dict", "items", "set", "nothing", "nested"],
)
def test_flatmap_flattens_any_iterable_by_one_level(engine, func):
    assert list(parallel(range(5)).flatmap(func)) == [y for n in range(5) for y in func(n)]


@pytest.mark.parametrize("result", [5, None, object])
def test_flatmap_of_a_result_that_is_no_iterable_is_an_error_naming_the_element(engine, result):
    with pytest.raises(TypeError, match="not iterable") as caught:
        list(parallel([10, 20]).map(double).flatmap(lambda x: result if x == 40 else [x]))
    assert "flatmap(lambda)" in caught.value.__notes__[0]
    assert "element 1: 40" in caught.value.__notes__[0]


def test_flat_map_is_flatmap():
    assert ParallelGen.flat_map is ParallelGen.flatmap


STEPS = [("map", double), ("filter", is_odd), ("flatmap", twice), ("filter", None), ("map", lambda x: x + 1)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(len(STEPS)), 3)), ids=str)
def test_steps_chain_in_any_order(inline, order):
    collection, expected = parallel(range(9)), list(range(9))
    for method, func in (STEPS[i] for i in order):
        collection = getattr(collection, method)(func)
        if method == "flatmap":
            expected = [y for x in expected for y in func(x)]
        else:
            expected = list((map if method == "map" else filter)(func, expected))
    assert list(collection) == expected


def test_a_chain_of_3000_maps_works(engine):
    collection = parallel(range(3))
    for _ in range(3000):
        collection = collection.map(lambda x: x + 1)
    assert list(collection) == [3000, 3001, 3002]
    assert repr(collection).count(".map(") == 3000


def test_a_chain_of_40_flatmaps_works(engine):
    collection, expected = parallel(["a", "b"]), 2
    for depth in range(40):
        collection = collection.flatmap(twice if depth % 10 == 0 else lambda x: [x])
        expected *= 2 if depth % 10 == 0 else 1
    assert list(collection) == ["a"] * (expected // 2) + ["b"] * (expected // 2)


def test_an_element_goes_through_the_whole_chain_before_the_next_starts(engine, tmp_path):
    log = tmp_path / "log"

    def split(x):
        for y in (x, x + 0.5):
            append_line(log, f"split {y}")
            yield y

    def show(x):
        append_line(log, f"show {x}")
        return x

    assert list(parallel([1, 2], partition_size=2).flatmap(split).map(show)) == [1, 1.5, 2, 2.5]
    assert lines(log) == [f"{word} {y}" for y in (1, 1.5, 2, 2.5) for word in ("split", "show")]


# --- each call makes a new collection ------------------------------------------------------------


def test_every_call_leaves_the_collection_it_is_called_on_as_it_was(engine):
    base = parallel([3, 1, 2])
    before = repr(base)
    branches = [base.map(double), base.filter(is_odd), base.flatmap(twice), base.unordered()]
    assert len({id(collection) for collection in [base, *branches]}) == 5
    assert repr(base) == before
    assert [list(branch) for branch in branches[:3]] == [[6, 2, 4], [3, 1], [3, 3, 1, 1, 2, 2]]
    assert list(base) == [3, 1, 2]


def test_two_iterators_of_one_collection_run_side_by_side(engine):
    squares = parallel(range(20), partition_size=3).map(lambda x: x * x)
    assert list(zip(squares, squares, strict=True)) == [(x * x, x * x) for x in range(20)]


def test_each_evaluation_runs_the_functions_again(engine, tmp_path):
    log = tmp_path / "log"
    collection = parallel([1, 1, 1]).map(lambda x: append_line(log, x))
    assert list(collection) == list(collection)
    assert lines(log) == ["1"] * 6


# --- take, first, count, unordered ---------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 1000])
def test_take_gives_the_first_elements_or_all_there_are(engine, n):
    assert parallel(range(8), partition_size=3).filter(is_odd).take(n) == [1, 3, 5, 7][:n]


def test_take_and_first_of_a_collection_without_steps(engine):
    numbers = parallel([0, 1, 2, 3], partition_size=3)
    assert numbers.take(2) == [0, 1]
    assert numbers.first() == 0
    numbers.foreach(double)
    assert numbers.take(2) == [0, 2]


def test_take_reads_a_bounded_number_of_an_endless_source(engine):
    read = itertools.count()
    endless = ((next(read), i)[1] for i in itertools.count())
    assert parallel(endless, partition_size=1).map(double).take(3) == [0, 2, 4]
    assert next(read) < 100


def test_take_ends_an_endless_flatmap(engine):
    assert parallel([5, 6]).flatmap(itertools.count).map(double).take(4) == [10, 12, 14, 16]


def test_first_is_the_first_element_even_if_false(engine):
    assert parallel([1]).map(lambda x: None).first() is None
    assert parallel([1, 0, 2]).filter(lambda x: x != 1).first("other") == 0


def test_first_of_an_empty_collection_is_the_default_or_an_error(engine):
    empty = parallel([1, 2]).filter(lambda x: False)
    assert empty.first(None) is None
    assert empty.first(default="none") == "none"
    with pytest.raises(ValueError, match=r"first\(\) of an empty collection"):
        empty.first()


@pytest.mark.parametrize("partition_size", [1, 3, "auto"])
def test_count_is_the_number_of_elements_after_all_steps(engine, partition_size):
    numbers = parallel(range(100), partition_size=partition_size)
    assert numbers.count() == 100
    assert numbers.filter(is_odd).flatmap(twice).map(str).count() == 100
    assert numbers.filter(lambda x: False).count() == 0
    assert parallel([]).count() == 0


def test_count_brings_no_element_back(cluster):
    home = os.getpid()
    assert parallel(range(5)).map(lambda x: WorkerOnly(home)).count() == 5


def test_unordered_gives_the_same_elements(engine):
    numbers = parallel(range(60), partition_size=7).map(double).unordered()
    assert sorted(numbers.filter(lambda x: x % 3).map(str)) == sorted(
        str(x * 2) for x in range(60) if x * 2 % 3
    )


def test_unordered_does_not_wait_for_a_slow_element_and_ordered_does(cluster, tmp_path):
    gate = tmp_path / "gate"

    def wait_for_gate(x):
        for _ in range(2000 if x == 0 else 0):
            if gate.exists():
                break
            time.sleep(0.01)
        return x, gate.exists()

    stream = iter(parallel(range(4), partition_size=1).map(wait_for_gate).unordered())
    assert next(stream) != (0, False)
    gate.touch()
    assert (0, True) in list(stream)
    assert list(parallel(range(4), partition_size=1).map(wait_for_gate).map(lambda x: x[0])) == [0, 1, 2, 3]


# --- foreach -------------------------------------------------------------------------------------


def test_foreach_runs_at_once_for_every_element_and_returns_none(engine, tmp_path):
    log = tmp_path / "log"
    numbers = parallel([4, 4, 5], partition_size=1)
    assert numbers.foreach(lambda x: append_line(log, x)) is None
    assert sorted(lines(log)) == ["4", "4", "5"]
    assert list(numbers) == [None] * 3
    assert len(lines(log)) == 3, "reading the results ran the function again"


def test_foreach_replaces_the_elements_in_order_and_the_chain_goes_on(engine):
    numbers = parallel(range(10), partition_size=3).filter(is_odd)
    numbers.foreach(double)
    assert list(numbers) == [2, 6, 10, 14, 18]
    assert list(numbers.map(str).filter(lambda s: len(s) > 1)) == ["10", "14", "18"]
    assert numbers.reduce(lambda a, b: a - b) == 2 - 6 - 10 - 14 - 18
    assert numbers.fold(lambda a, b: a + b, 100) == 150
    assert numbers.map(str).take(2) == ["2", "6"]
    assert numbers.count() == 5
    numbers.foreach(str)
    assert list(numbers) == ["2", "6", "10", "14", "18"]


def test_collections_chained_before_foreach_keep_their_elements(engine):
    numbers = parallel([1, 2, 3])
    child, twin = numbers.map(str), numbers.unordered()
    numbers.foreach(double)
    assert list(child) == ["1", "2", "3"]
    assert sorted(twin) == [1, 2, 3]
    assert list(numbers.map(str)) == ["2", "4", "6"]


def test_a_failing_foreach_leaves_the_collection_as_it_was(engine):
    numbers = parallel([1, 2, 3])
    before = repr(numbers)
    with pytest.raises(ValueError, match="no 1"):
        numbers.foreach(fail)
    assert repr(numbers) == before
    assert list(numbers) == [1, 2, 3]


def test_foreach_of_an_unordered_or_empty_collection(engine):
    unordered = parallel(range(30), partition_size=4).unordered()
    unordered.foreach(double)
    assert sorted(unordered) == [x * 2 for x in range(30)]
    empty = parallel([])
    empty.foreach(double)
    assert list(empty) == []


def test_results_of_foreach_stay_on_the_cluster(cluster):
    home = os.getpid()
    numbers = parallel(range(5))
    numbers.foreach(lambda x: WorkerOnly(home))
    assert numbers.count() == 5
    assert list(numbers.map(lambda x: type(x).__name__)) == ["WorkerOnly"] * 5


# --- nothing else evaluates ----------------------------------------------------------------------


def test_looking_at_a_collection_never_evaluates():
    source = parallel(Unread(), client=Untouched())
    for collection in [source, source.map(fail), source.filter(None).flatmap(fail).unordered()]:
        assert "ParallelGen" in repr(collection)
        assert f"{collection!s}"
        assert collection == collection
        assert collection != [1]
        assert collection != source.map(fail)
        assert bool(collection)
        assert hash(collection) == hash(collection)
        assert isinstance(collection, Iterable)
        assert not isinstance(collection, (Iterator, Sized))
        with pytest.raises(TypeError):
            len(collection)  # type: ignore[arg-type]
        assert all(hasattr(collection, name) for name in dir(collection))
        assert iter(collection) is not iter(collection)


def test_repr_shows_the_source_and_every_step():
    chain = parallel([1, 2, 3]).map(double).filter(None).flatmap(lambda x: x).unordered()
    parts = ["list of 3 elements", ".map(double)", ".filter(None)", ".flatmap(lambda)", ".unordered()"]
    positions = [repr(chain).find(part) for part in parts]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_a_source_of_10_to_the_27_elements_is_read_as_far_as_needed(engine):
    huge = parallel(range(10**27)).map(double).filter(lambda x: x % 3 == 0)
    assert huge.take(3) == [0, 6, 12]
    assert huge.first() == 0
    assert list(itertools.islice(huge, 4)) == [0, 6, 12, 18]


def test_many_early_stops_one_after_another_do_not_hang(cluster):
    squares = parallel(range(10**27)).map(double)
    firsts: list[int] = []

    def stop_early():
        for _ in range(60):
            firsts.extend(squares.take(2))

    thread = threading.Thread(target=stop_early, daemon=True)
    thread.start()
    thread.join(60)  # not a matter of speed: all of it takes 5 s
    assert not thread.is_alive(), f"hung after {len(firsts) // 2} evaluations"
    assert firsts == [0, 2] * 60


BAD_CALLS = [
    (lambda c: c.map(17), TypeError, "17"),
    (lambda c: c.map(None), TypeError, "None"),
    (lambda c: c.filter("abc"), TypeError, "'abc'"),
    (lambda c: c.flatmap([1]), TypeError, "[1]"),
    (lambda c: c.reduce(17), TypeError, "17"),
    (lambda c: c.fold(17, 0), TypeError, "17"),
    (lambda c: c.fold(max, 0, 18), TypeError, "18"),
    (lambda c: c.foreach(None), TypeError, "None"),
    (lambda c: c.take("two"), TypeError, "'two'"),
    (lambda c: c.take(1.5), TypeError, "1.5"),
    (lambda c: c.take(-3), ValueError, "-3"),
    (lambda c: parallel([], partition_size=0), ValueError, "0"),
    (lambda c: parallel([], partition_size=-7), ValueError, "-7"),
    (lambda c: parallel([], partition_size=True), ValueError, "True"),
    (lambda c: parallel([], partition_size=2.5), TypeError, "2.5"),
    (lambda c: parallel([], partition_size="big"), TypeError, "'big'"),
    (lambda c: parallel([], client="tcp://x"), TypeError, "'tcp://x'"),
    (lambda c: parallel([], client=3), TypeError, "3"),
    (lambda c: parallel([], name=9), TypeError, "9"),
]


@pytest.mark.parametrize(("call", "kind", "quoted"), BAD_CALLS)
def test_a_bad_argument_is_refused_at_once_in_one_sentence_that_quotes_it(call, kind, quoted):
    collection = parallel(iter([]), client=Untouched())
    with pytest.raises(kind) as caught:
        call(collection)
    assert quoted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        parallel([1], 5)  # type: ignore[misc]
