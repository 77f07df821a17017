"""What becomes of elements that fail: skipped, replaced, raised; and what is told of them."""

from __future__ import annotations

import operator
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.bag
import pytest
from accounts import check_sums, drained
from failing import Failing, stand_in
from scripts import append, lines

from parcoll import Connection, ElementError, SerializationError, parallel

pytestmark = pytest.mark.usefixtures("impatient")


# --- an oracle in plain Python -------------------------------------------------------------------


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("on_error", ["skip", stand_in], ids=["skip", "function"])
def test_more_loops_than_python_nests(engine: Any, on_error: Any, timed: bool) -> None:
    """40 flatmaps, each with a guarded map and filter behind it, plain and with the clock read."""
    delay = 2e-5 if timed else 0  # elements as dear as that are timed each

    def same(x: int) -> int:
        time.sleep(delay)
        if x == 3:
            raise ValueError(x)
        return x

    def known(x: int) -> bool:
        return 1 / (x - 5) != 2

    def once(x: int) -> Iterator[int]:
        yield x
        if x == 7:
            raise KeyError(x)

    chain: Any = parallel(range(10), partition_size=10, on_error=on_error)
    for _ in range(40):
        chain = chain.flatmap(once).map(same).filter(known)
    results = list(chain)
    check_sums(chain.stats)
    if on_error == "skip":
        assert results == [0, 1, 2, 4, 6, 7, 8, 9]
        assert chain.stats.failed == 2 + 40
    else:
        assert Counter(results)[107] == 40
        assert [step.failed for step in chain.stats.steps[:3]] == [1, 1, 1]


# --- on_error ------------------------------------------------------------------------------------


def test_a_failing_element_costs_no_other_element(engine: Any, tmp_path: Path) -> None:
    """Every function is called once for each element, those of the same partition included."""
    calls = tmp_path / "calls"

    def half(x: int) -> float:
        append(calls, x)
        return 1 / (x % 10)

    chain = parallel(range(100), partition_size=50).map(half, on_error="skip")
    assert chain.count() == 90
    assert sorted(map(int, lines(calls))) == list(range(100))
    assert [error.index for error in chain.errors] == list(range(0, 100, 10))
    assert chain.stats.partitions == 2


def test_an_error_tells_all_there_is_to_know(engine: Any) -> None:
    chain = parallel(["5", "0", "7"], partition_size=3).map(int).map(lambda x: 1 / x, on_error="skip")
    assert chain.count() == 2
    (error,) = chain.errors
    assert isinstance(error, ElementError)
    assert (error.step, error.step_index) == ("map(lambda)", 1)
    assert (error.index, error.partition, error.element, error.attempts) == (1, None, 0, 1)
    assert type(error.exception) is ZeroDivisionError
    assert error.exception.__notes__ == [
        "in step 2 of 2, map(lambda), at element 1: 0 (made from source element '0')"
    ]
    frames = error.exception.__traceback__
    assert frames is not None
    assert frames.tb_frame.f_code.co_filename == __file__
    assert str(error) == "map(lambda) failed at element 1: ZeroDivisionError: division by zero"
    assert chain.errors[0] is error


def test_an_error_can_be_raised_pickled_and_copied() -> None:
    error = ElementError("map(f)", 0, 3, "x", ValueError("bad"), attempts=2, partition=4)
    copied = pickle.loads(pickle.dumps(error))
    assert repr(copied) == repr(error)
    assert vars(copied).keys() == vars(error).keys()
    assert str(copied) == "map(f) failed at element 3 of partition 4, 2 times: ValueError: bad"
    with pytest.raises(ElementError):
        raise copied


def test_the_function_runs_on_the_worker_with_the_error_itself(cluster: Connection) -> None:
    def where(error: ElementError) -> tuple[int, str, int, int, type]:
        return os.getpid(), error.step, error.index, error.element, type(error.exception)

    ((pid, *told),) = parallel([0]).map(lambda x: 1 / x, on_error=where)
    assert pid in cluster.engine.client.run(os.getpid).values()
    assert told == ["map(lambda)", 0, 0, ZeroDivisionError]


def test_its_value_takes_the_place_of_the_element(engine: Any) -> None:
    def invert(x: int) -> float:
        return 1 / x

    def halves(x: int) -> Iterator[float]:
        yield x / 2
        yield 1 / x

    zeros = parallel([1, 0, 2])
    assert list(zeros.map(invert, on_error=lambda e: None).map(str)) == ["1.0", "None", "0.5"]
    assert list(zeros.filter(invert, on_error=lambda e: "?")) == [1, "?", 2]
    assert list(zeros.filter(invert, on_error=lambda e: 0)) == [1, 0, 2], "true or not"
    assert list(zeros.flatmap(halves, on_error=lambda e: [e.element])) == [0.5, 1, 0.0, [0], 1.0, 0.5]
    zeros.foreach(invert, on_error=lambda e: -1)
    assert list(zeros) == [1.0, -1, 0.5]
    assert list(parallel([1, 0, 2]).flatmap(halves, on_error="skip")) == [0.5, 1, 0.0, 1.0, 0.5]


@pytest.mark.parametrize("method", ["map", "flatmap"])
def test_what_the_function_itself_raises_ends_the_evaluation_and_says_so(engine: Any, method: str) -> None:
    def decide(error: ElementError) -> int:
        raise OSError(f"cannot log {error.element}")

    def invert(x: int) -> Any:
        return 1 / x if method == "map" else [1 / x]

    chain = getattr(parallel([1, 0, 2], partition_size=3), method)(invert, on_error=decide)
    results, error = drained(chain)
    assert results == [1.0]
    assert type(error) is OSError
    assert "in on_error=decide, called for ZeroDivisionError" in error.__notes__[0]
    assert f"{method}(invert), at element 1: 0" in error.__notes__[0]
    assert type(error.__context__) is ZeroDivisionError
    check_sums(chain.stats)
    assert (chain.stats.failed, chain.stats.state) == (1, "failed")
    assert [type(e.exception) for e in chain.errors] == [ZeroDivisionError]


def test_a_function_may_raise_the_exception_after_all(engine: Any) -> None:
    def but_zero(error: ElementError) -> int:
        if error.element == 0:
            raise error.exception
        return -1

    results, error = drained(parallel([1, "x", 0], partition_size=3).map(lambda x: 1 / x, on_error=but_zero))
    assert results == [1.0, -1]
    assert type(error) is ZeroDivisionError


def test_a_step_says_otherwise_than_its_chain(engine: Any) -> None:
    def invert(x: int) -> float:
        return 1 / x

    chain = parallel([1, 0, 2], on_error="skip")
    assert list(chain.map(invert)) == [1.0, 0.5]
    assert list(chain.map(invert, on_error=lambda e: 9)) == [1.0, 9, 0.5]
    assert list(chain.map(invert).unordered().map(lambda x: 1 / (x - 1), on_error=None)) == [-2.0]
    with pytest.raises(ZeroDivisionError):
        list(chain.map(invert, on_error="raise"))
    flaky = parallel([1, 2], retries=1, on_error="skip").map(Failing("map", 1, 0, 1, 1, None, True))
    assert list(flaky) == [4, 5]
    assert flaky.stats.retries == 1


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("method", ["map", "filter", "flatmap"])
def test_what_is_no_exception_is_never_passed_over(engine: Any, ending: Any, method: str) -> None:
    def end(x: int) -> Any:
        if x == 1:
            raise ending
        return [x] if method == "flatmap" else x

    chain = getattr(parallel(range(3)), method)(end, on_error="skip", retries=3)
    with pytest.raises(ending if method != "flatmap" else BaseException):
        list(chain.map(str))
    assert chain.stats.retries == 0


def test_a_stop_iteration_is_an_error_as_any_other(engine: Any) -> None:
    def stop(x: int) -> int:
        if x % 2:
            raise StopIteration(x)
        return x

    chain = parallel(range(6), on_error="skip").map(stop)
    assert list(chain) == [0, 2, 4]
    assert [type(error.exception) for error in chain.errors] == [StopIteration] * 3
    chain = parallel(range(6), on_error=lambda e: [-1]).flatmap(lambda x: [stop(x)])
    assert list(chain) == [0, [-1], 2, [-1], 4, [-1]]


def test_what_cannot_be_pickled_still_arrives(engine: Any) -> None:
    class Odd(Exception):
        def __init__(self) -> None:
            super().__init__("odd")
            self.lock = threading.Lock()

    def fail(lock: Any) -> None:
        raise Odd

    chain = parallel(range(3), on_error="skip").map(lambda x: threading.Lock()).map(fail)
    assert list(chain) == []
    assert [error.index for error in chain.errors] == [0, 1, 2]
    for error in chain.errors:
        assert type(error.exception).__name__ == "Odd"
        assert "lock" in error.element


@pytest.mark.parametrize("timed", [False, True])
def test_a_result_that_cannot_be_pickled_behind_elements_that_were_skipped(
    cluster: Connection, timed: bool
) -> None:
    """Results do not stand where their elements do, so that its number among them is told."""

    def lock_at_10(x: int) -> Any:
        return threading.Lock() if x == 10 else 1 // (x not in (3, 5)) and x

    settings = {"on_error": "skip", "partition_size": 20} | ({"timeout": 60} if timed else {})
    with pytest.raises(SerializationError, match=r"^result 8 of the partition from element 0 to "):
        list(parallel(range(20), **settings).map(lock_at_10))
    settings |= {"on_error": lambda error: -1}
    with pytest.raises(SerializationError, match=r"^the result of element 10 cannot be sent back"):
        list(parallel(range(20), **settings).map(lock_at_10))


CALLS = {
    "reduce": lambda c: c.reduce(lambda a, b: a / 0),
    "fold": lambda c: c.fold(lambda a, b: a / 0, 1, operator.mul),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_function_of_a_reduce_or_fold_always_raises(engine: Any, call: Any) -> None:
    chain = parallel([2, 1, 0, 5], partition_size=4, on_error="skip").map(lambda x: 1 / x)
    with pytest.raises(ZeroDivisionError):
        call(chain)
    check_sums(chain.stats)
    assert chain.stats.state == "failed"
    assert chain.stats.failed == sum(step.failed for step in chain.stats.steps) + 1


def test_what_the_source_raises_always_ends_the_evaluation(engine: Any) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    results, error = drained(parallel(source, on_error="skip", retries=2).map(str))
    assert (results, repr(error)) == (["1"], "ValueError('no more')")


def test_a_bag_s_partitions_have_their_own_indices(engine: Any) -> None:
    bag = dask.bag.from_sequence(range(1, 7), npartitions=2)
    chain = parallel(bag, on_error="skip").map(lambda x: 1 / (x % 3))
    assert chain.count() == 4
    assert [(error.partition, error.index) for error in chain.errors] == [(0, 2), (1, 2)]


def test_dask_itself_runs_a_step_by_its_policy() -> None:
    chain = parallel([1, 0, 2]).map(lambda x: 1 / x, on_error="skip").map(str, on_error=stand_in)
    assert chain.bag.compute(scheduler="synchronous") == ["1.0", "0.5"]


# --- how it shows --------------------------------------------------------------------------------


def test_the_bar_the_table_and_the_page_tell(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def check(x: int) -> int:
        if x % 4 == 1:
            raise ValueError(f"bad {x}")
        return x

    chain = parallel(range(10), progress="check").map(check, on_error="skip", retries=1)
    assert chain.count() == 7
    assert "10/10" in (shown := capfd.readouterr().err.splitlines()[-1])
    assert "3 failed, 3 retries" in shown
    header, _, row, *_ = str(chain.stats).splitlines()
    assert header.endswith("3 failed, 3 retries")
    assert row.split()[:4] == ["map(check)", "10", "7", "3"]
    snapshot = chain.stats.snapshot()  # what the page gets
    assert (snapshot["state"], snapshot["failed"], snapshot["retries"]) == ("ended", 3, 3)
    told = {(failure["step"], failure["message"]) for failure in snapshot["failures"]}
    assert told == {("map(check)", f"ValueError: bad {x}") for x in (1, 5, 9)}


# --- arguments -----------------------------------------------------------------------------------

WRONG = [
    ({"on_error": "ignore"}, ValueError, "'ignore'"),
    ({"on_error": 3}, TypeError, "3 (an int)"),
    ({"on_error": KeyError}, TypeError, "<class 'KeyError'>"),
    ({"retries": -1}, ValueError, "-1"),
    ({"retries": 1.5}, TypeError, "1.5 (a float)"),
    ({"retries": True}, ValueError, "True"),
    ({"retries": 1, "retry_on": "OSError"}, TypeError, "'OSError' (a str)"),
    ({"retries": 1, "retry_on": ()}, TypeError, "() (a tuple)"),
    ({"retries": 1, "retry_on": KeyboardInterrupt}, TypeError, "<class 'KeyboardInterrupt'>"),
    ({"retries": 1, "retry_on": (OSError, int)}, TypeError, "<class 'int'>"),
    ({"retries": 1, "retry_on": int}, TypeError, "<class 'int'>"),
]


@pytest.mark.parametrize(("arguments", "kind", "quoted"), WRONG)
@pytest.mark.parametrize("method", ["parallel", "map", "filter", "flatmap", "foreach"])
def test_a_wrong_argument_is_refused_where_it_is_given(method, arguments, kind, quoted):
    call = parallel if method == "parallel" else getattr(parallel([1]), method)
    with pytest.raises(kind) as caught:
        call(str if method != "parallel" else [1], **arguments)
    (name, *_) = [name for name in ("on_error", "retry_on", "retries") if name in arguments]
    assert str(caught.value).startswith(f"{name} must be")
    assert quoted in str(caught.value)


def test_retry_on_without_retries_is_refused() -> None:
    with pytest.raises(ValueError, match="retry_on has no effect without retries"):
        parallel([1]).map(str, retry_on=OSError)
    assert parallel([1], retries=1).map(str, retry_on=OSError) is not None
    assert parallel([1], retry_on=OSError).map(str, retries=1) is not None


@pytest.mark.parametrize("name", ["on_error", "retry_on"])
def test_a_function_that_cannot_travel_is_named(cluster: Connection, name: str) -> None:
    lock = threading.Lock()

    def decide(error: Any) -> bool:
        return lock.locked()

    with pytest.raises(TypeError, match=rf"the {name} of map\(str\) cannot be sent .*it uses lock, "):
        list(parallel([1]).map(str, retries=1, **{name: decide}))
