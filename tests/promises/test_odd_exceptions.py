"""Exceptions and results that misbehave themselves still arrive as what they are."""

from __future__ import annotations

import dataclasses
import os

import pytest

from parcoll import SerializationError, parallel


class MakesItsMessage(Exception):
    def __init__(self, code):
        super().__init__(f"bad code {code}")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def test_a_message_made_in_init_is_not_made_twice(cluster):
    def fail(x):
        raise MakesItsMessage(x)

    with pytest.raises(MakesItsMessage) as caught:
        list(parallel([7]).map(fail))
    assert str(caught.value) == "bad code 7"


def test_a_frozen_exception_keeps_type_fields_and_note(cluster):
    def fail(x):
        raise Frozen(x)

    with pytest.raises(Frozen) as caught:
        list(parallel([3]).map(fail))
    assert caught.value.code == 3
    assert "element 0" in caught.value.__notes__[0]


def test_a_missing_file_is_told_as_python_tells_it(cluster):
    with pytest.raises(FileNotFoundError) as caught:
        list(parallel(["/nonexistent"]).map(open))
    assert str(caught.value) == "[Errno 2] No such file or directory: '/nonexistent'"


def test_notes_that_are_no_list_do_no_harm(cluster):
    def fail(x):
        error = KeyError(x)
        error.__notes__ = 5
        raise error

    with pytest.raises(KeyError) as caught:
        list(parallel([1]).map(fail))
    assert "element 0" in caught.value.__notes__[-1]


def test_a_chain_of_causes_is_kept_without_being_doubled(cluster):
    def fail(x):
        error = None
        for number in range(6):
            try:
                raise ValueError(number) from error
            except ValueError as caught:
                error = caught
        raise error

    with pytest.raises(ValueError, match="5") as caught:
        list(parallel([1]).map(fail))
    numbers, error = [], caught.value
    while error is not None:
        numbers.append(error.args[0])
        assert error.__context__ is error.__cause__
        error = error.__cause__
    assert numbers == [5, 4, 3, 2, 1, 0]


def test_a_result_that_exits_while_it_is_pickled_ends_no_worker(cluster):
    class Exits:
        def __reduce__(self):
            raise SystemExit(3)

    def pid_or_exit(x):
        return os.getpid() if x else Exits()

    client = cluster.engine.client
    client.wait_for_workers(2, timeout=30)
    before = set(client.run(os.getpid).values())
    with pytest.raises(SerializationError, match="SystemExit: 3"):
        list(parallel([0]).map(pid_or_exit))
    assert set(parallel([1] * 50, partition_size=1).map(pid_or_exit)) <= before


def test_a_source_s_error_comes_after_an_error_of_reduce_on_earlier_elements(cluster):
    def source():
        yield 1
        yield 0
        raise KeyError("source")

    with pytest.raises(ZeroDivisionError):
        parallel(source).reduce(lambda a, b: a / b)
    with pytest.raises(KeyError, match="source"):
        parallel(source).reduce(lambda a, b: a + b)


def test_counts_are_right_when_a_fold_fails_after_a_filter(cluster):
    chain = parallel(range(10), partition_size=10).filter(lambda x: x > 6)
    with pytest.raises(ZeroDivisionError):
        chain.fold(lambda a, b: a / (b - 8), 1)
    (step,) = chain.stats.steps
    assert (step.entered, step.left, chain.stats.failed) == (9, 2, 1)


def test_a_running_mean_may_start_each_partition(cluster):
    """Joined to its neutral start it differs by a rounding, which is no difference."""

    def add(mean, x):
        count, value = mean
        return count + 1, (value * count + x) / (count + 1)

    def merge(one, other):
        count = one[0] + other[0]
        return count, (one[0] * one[1] + other[0] * other[1]) / count if count else 0.0

    numbers = parallel([0.1 * i for i in range(100)], partition_size=7)
    assert numbers.fold(add, (0, 0.0), merge) == (100, pytest.approx(4.95))


def test_partitions_of_a_bag_may_be_dictionaries(cluster):
    bag = pytest.importorskip("dask.bag").from_sequence(["a", "b"], npartitions=2)
    keyed = bag.map_partitions(lambda part: dict.fromkeys(part, 0))
    assert list(parallel(keyed).map(str.upper)) == ["A", "B"]


@pytest.mark.parametrize("outcome", ["skip", "xfail", "fail"])
def test_pytest_s_own_exceptions_are_pytest_s(cluster, outcome):
    """They say that they are built-in ones."""
    kind = getattr(pytest, outcome).Exception
    with pytest.raises(kind, match="because"):
        list(parallel([1, 2]).map(lambda x: getattr(pytest, outcome)("because")))
    assert list(parallel([kind("because")]).map(type)) == [kind]


def test_a_class_of_a_library_may_say_that_it_is_another_module_s(scripts):
    scripts.write("library/__init__.py", "")
    scripts.write(
        "library/inner.py",
        """
        class Base(Exception): ...
        class Derived(Base): ...
        class Plain:
            def __init__(self, x): self.x = x
            def __eq__(self, other): return isinstance(other, Plain) and other.x == self.x
        Derived.__module__ = Plain.__module__ = "builtins"
        """,
    )
    out = scripts.run_file(
        """
        from library.inner import Base, Derived, Plain
        from parcoll import connect, parallel
        def fail(x): raise Derived(x)
        with connect(n_workers=1):
            try:
                list(parallel([1]).map(fail))
            except Base as error:
                assert type(error) is Derived
            for timeout in (None, 30):
                given = [Plain(1), Derived, Plain]
                look = parallel(given, timeout=timeout).map(lambda x: (x, isinstance(x, Plain), x is Derived))
                found = list(look)
                want = [(Plain(1), True, False), (Derived, False, True), (Plain, False, False)]
                assert found == want
        print("done")
        """
    )
    assert out == "done\n"
