"""What becomes of elements that fail: skipped, replaced, tried again; and each of them is accounted for."""

from __future__ import annotations

import itertools
import operator
import os
import pickle
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.bag
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import append, lines

import parcoll.chain.guard
from parcoll import Connection, ElementError, SerializationError, connect, parallel
from parcoll.chain import policy
from parcoll.chain.failures import ELEMENT_BYTES, KEPT, Ledger, packed
from parcoll.chain.loop import Chain
from parcoll.chain.policy import BASE_SECONDS, CAP_SECONDS, Policy, pause
from parcoll.chain.steps import Map
from parcoll.worker.program import Program

# The client's own threads draw random numbers while hypothesis watches the generator.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


def no_pause() -> None:
    from parcoll.chain import policy
    from parcoll.worker import subworker

    policy.BASE_SECONDS = 0.0
    line = "import parcoll.chain.policy; parcoll.chain.policy.BASE_SECONDS = 0.0\n"
    subworker._BOOT = subworker._BOOT.replace("\nmain(", f"\n{line}main(")


@pytest.fixture(autouse=True, scope="module")
def impatient(cluster: Connection) -> Iterator[None]:
    """Have nothing wait before a retry, here and in the workers."""
    cluster.engine.client.wait_for_workers(2, timeout=30)
    cluster.engine.client.run(no_pause)
    no_pause()
    yield
    policy.BASE_SECONDS = BASE_SECONDS


@pytest.fixture
def isolated(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Have all partitions run beside the workers, as those do whose steps have a timeout."""
    monkeypatch.setattr(Program, "stops", True)
    return cluster


@pytest.fixture(params=["inline", "cluster", "isolated"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


# --- an oracle in plain Python -------------------------------------------------------------------


class Failing:
    """A step that fails for some elements: for good, or so many times before it works."""

    def __init__(
        self, kind: str, bad: int, given_first: int, fails: int, retries: int, on_error: Any, known: bool
    ) -> None:
        self.kind = kind
        self.bad = bad  # the elements of this remainder fail
        self.given_first = given_first if kind == "flatmap" else 0  # before it raises
        self.retries = retries
        self.on_error = on_error
        self.known = known  # the exception is one of those to retry on
        self.fails = fails  # times in a row
        self.calls = 0

    @property
    def for_good(self) -> bool:
        return self.fails > self.retries or not self.known or self.given_first > 0

    def __repr__(self) -> str:
        return f"Failing{tuple(vars(self).values())}"

    def raises(self, x: int) -> bool:
        if x % 5 != self.bad:
            return False
        if self.for_good:
            return True
        self.calls = (self.calls + 1) % (self.fails + 1)  # works at last, and starts again
        return self.calls > 0

    def right(self, x: int) -> Any:
        """Return what the step makes of an element that does not fail."""
        return {"map": x + 3, "filter": x % 3 != 0, "flatmap": [x + i for i in range(x % 4)]}[self.kind]

    def __call__(self, x: int) -> Any:
        if self.kind == "flatmap":
            return self.draw(x)
        if self.raises(x):
            raise ValueError(x)
        return self.right(x)

    def draw(self, x: int) -> Iterator[int]:
        if self.raises(x):
            yield from range(self.given_first)
            raise ValueError(x)
        yield from self.right(x)

    def extend(self, collection: Any) -> Any:
        retry_on = {} if not self.retries else {"retry_on": ValueError if self.known else KeyError}
        method = getattr(collection, self.kind)
        return method(self, on_error=self.on_error, retries=self.retries, **retry_on)


def stand_in(error: ElementError) -> int:
    return 100 + error.element


@dataclass
class Row:
    """The numbers of one step."""

    entered: int = 0
    left: int = 0
    failed: int = 0
    replaced: int = 0
    retries: int = 0
    filtered: int = 0
    added: int = 0


@dataclass
class Oracle:
    """What a chain gives, element by element, with the numbers of each step."""

    steps: list[Failing]
    rows: list[Row] = field(default_factory=list)
    errors: list[tuple[int, int, int, int]] = field(default_factory=list)  # step, index, element, attempts

    def run(self, values: list[int]) -> Iterator[int]:
        self.rows = [Row() for _ in self.steps]
        for index, x in enumerate(values):
            yield from self.after(0, index, x)

    def after(self, position: int, index: int, x: int) -> Iterator[int]:
        if position == len(self.steps):
            yield x
            return
        for made in self.apply(self.steps[position], self.rows[position], position, index, x):
            self.rows[position].left += 1
            yield from self.after(position + 1, index, made)

    def apply(self, step: Failing, row: Row, position: int, index: int, x: int) -> Iterator[int]:
        row.entered += 1
        if x % 5 == step.bad:
            tried_again = step.known and not step.given_first
            row.retries += min(step.fails, step.retries) if tried_again else 0
            if step.for_good:
                row.added -= step.kind == "flatmap"
                for given in range(step.given_first):
                    row.added += 1
                    yield given
                row.added += step.kind == "flatmap"
                row.failed += 1
                self.errors.append((position, index, x, 1 + (step.retries if tried_again else 0)))
                if step.on_error == "raise":
                    raise ValueError(x)
                if callable(step.on_error):
                    row.replaced += 1
                    yield 100 + x
                return
        if step.kind == "filter":
            row.filtered += not step.right(x)
            yield from [x] if step.right(x) else []
        elif step.kind == "map":
            yield step.right(x)
        else:
            row.added -= 1
            for given in step.right(x):
                row.added += 1
                yield given


def rows_of(stats: Any) -> list[Row]:
    names = vars(Row())
    return [Row(**{name: getattr(step, name) for name in names}) for step in stats.steps]


def check_sums(stats: Any) -> None:
    """Every element is accounted for: from step to step, and in each."""
    entered = stats.elements_in
    for step in stats.steps:
        assert step.entered == entered
        assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed
        assert step.filtered >= 0
        assert step.added >= -step.entered
        if step.label.startswith(("map", "foreach")):
            assert step.entered + step.replaced == step.left + step.failed
        entered = step.left
    assert stats.elements_out == entered
    assert stats.retries == sum(step.retries for step in stats.steps)


def found_errors(collection: Any) -> list[tuple[int, int, int, int]]:
    return [(e.step_index, e.index, e.element, e.attempts) for e in collection.errors]


def steps_with(on_errors: Any) -> Any:
    return st.builds(
        Failing,
        kind=st.sampled_from(["map", "filter", "flatmap"]),
        bad=st.integers(0, 5),  # 5: none
        given_first=st.integers(0, 2),
        fails=st.integers(1, 3),
        retries=st.integers(0, 2),
        on_error=on_errors,
        known=st.booleans(),
    )


PASSING = st.sampled_from(["skip", stand_in])
chains = st.lists(steps_with(PASSING), min_size=1, max_size=5)
raising_chains = st.lists(steps_with(st.sampled_from(["raise", "skip", stand_in])), min_size=1, max_size=4)
sources = st.lists(st.integers(0, 30), max_size=25)
sizes = st.integers(1, 7) | st.just("auto")


def chain_of(steps: list[Failing], values: list[int], size: Any) -> Any:
    collection: Any = parallel(values, partition_size=size)
    for step in steps:
        collection = step.extend(collection)
    return collection


def accounts_of(steps: list[Failing], values: list[int], size: Any, n: int) -> dict[str, Any]:
    """Return what each evaluating call gives, with its numbers and errors; the sums hold."""
    calls: dict[str, Callable[[Any], Any]] = {
        "list": list,
        "count": lambda c: c.count(),
        "reduce": lambda c: c.reduce(lambda a, b: [*a, b], []),
        "fold": lambda c: c.fold(operator.add, 0),
    }
    found: dict[str, Any] = {}
    for name, call in calls.items():
        collection = chain_of(steps, values, size)
        answer = call(collection)
        stats = collection.stats
        check_sums(stats)
        found[name] = answer, rows_of(stats), found_errors(collection), stats.failed, stats.state
    found["unordered"] = Counter(chain_of(steps, values, size).unordered())
    taking = chain_of(steps, values, size)
    found["take"] = taking.take(n)
    check_sums(taking.stats)
    found["errors of take"] = Counter(found_errors(taking))
    return found


def accounts_by_oracle(
    steps: list[Failing], values: list[int], found: dict[str, Any], n: int
) -> dict[str, Any]:
    """Return the same of the oracle; but of take only errors that it may have: it may stop early."""
    oracle = Oracle(steps)
    expected = list(oracle.run(values))
    numbers = oracle.rows, oracle.errors, len(oracle.errors), "ended"
    answers = {"list": expected, "count": len(expected), "reduce": expected, "fold": sum(expected)}
    return {
        **{name: (answer, *numbers) for name, answer in answers.items()},
        "unordered": Counter(expected),
        "take": expected[:n],
        "errors of take": found["errors of take"] & Counter(oracle.errors),
    }


@settings(deadline=None, max_examples=150)
@given(steps=chains, values=sources, size=sizes, n=st.integers(0, 30))
def test_every_element_is_accounted_for_inline(steps, values, size, n):
    with connect("inline"):
        found = accounts_of(steps, values, size, n)
    assert found == accounts_by_oracle(steps, values, found, n)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=chains, values=sources, size=sizes, n=st.integers(0, 30))
def test_every_element_is_accounted_for_on_workers(cluster, steps, values, size, n):
    found = accounts_of(steps, values, size, n)
    assert found == accounts_by_oracle(steps, values, found, n)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=chains, values=sources, size=sizes, n=st.integers(0, 30))
def test_every_element_is_accounted_for_beside_workers(isolated, steps, values, size, n):
    found = accounts_of(steps, values, size, n)
    assert found == accounts_by_oracle(steps, values, found, n)


@settings(deadline=None, max_examples=150)
@given(steps=raising_chains, values=sources, size=sizes)
def test_what_is_raised_comes_after_the_results_before_it_and_the_sums_hold(steps, values, size):
    oracle = Oracle(steps)
    expected, error = drained(oracle.run(values))
    with connect("inline"):
        collection = chain_of(steps, values, size)
        results, raised = drained(collection)
    assert (results, repr(raised)) == (expected, repr(error))
    assert rows_of(collection.stats) == oracle.rows
    check_sums(collection.stats)
    assert found_errors(collection) == oracle.errors
    assert collection.stats.state == ("failed" if error else "ended")


def drained(values: Any) -> tuple[list[Any], Exception | None]:
    results: list[Any] = []
    try:
        for result in values:
            results += [result]
    except Exception as error:
        return results, error
    return results, None


@settings(deadline=None, max_examples=40)
@given(steps=chains, step=steps_with(PASSING), values=sources, size=sizes)
def test_foreach_accounts_for_its_elements(steps, step, values, size):
    step.kind, step.given_first = "map", 0
    oracle = Oracle([*steps, step])
    expected = list(oracle.run(values))
    with connect("inline"):
        collection = chain_of(steps, values, size)
        collection.foreach(step, on_error=step.on_error, retries=step.retries, **kinds(step))
        numbers, errors = rows_of(collection.stats), found_errors(collection)
        assert list(collection) == expected
    assert (numbers, errors) == (oracle.rows, oracle.errors)


def kinds(step: Failing) -> dict[str, Any]:
    return {"retry_on": ValueError if step.known else KeyError} if step.retries else {}


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
    assert "in on_error=decide, asked about ZeroDivisionError" in error.__notes__[0]
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
    def end(x: int) -> int:
        if x == 1:
            raise ending
        return x

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


# --- retries -------------------------------------------------------------------------------------


def test_one_element_runs_again_and_not_its_partition(engine: Any, tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def flaky(x: int) -> int:
        append(calls, x)
        if x % 10 == 3 and lines(calls).count(str(x)) < 3:
            raise OSError(x)
        return x

    chain = parallel(range(30), partition_size=30).map(flaky, retries=2)
    assert list(chain) == list(range(30))
    counts = Counter(map(int, lines(calls)))
    assert counts == {x: 3 if x % 10 == 3 else 1 for x in range(30)}
    assert (chain.stats.retries, chain.stats.failed, chain.errors) == (6, 0, [])


def test_an_error_is_raised_after_the_last_attempt(engine: Any, tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def refuse(x: int) -> int:
        append(calls, x)
        raise OSError(f"attempt {len(lines(calls))}")

    chain = parallel([7]).map(refuse, retries=3)
    with pytest.raises(OSError, match="attempt 4") as caught:
        list(chain)
    assert caught.value.__notes__ == ["in step 1 of 1, map(refuse), at element 0: 7, 4 times"]
    assert caught.value.__context__ is None, "not the attempts before"
    assert [error.attempts for error in chain.errors] == [4]


@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [
        (OSError, 3),
        (ConnectionError, 3),
        (ValueError, 1),
        ((ValueError, OSError), 3),
        (ValueError | OSError, 3),
        (lambda error: "reset" in str(error), 3),
        (lambda error: False, 1),
    ],
    ids=["class", "subclass", "other class", "tuple", "union", "function", "function that refuses"],
)
@pytest.mark.parametrize("method", ["map", "filter", "flatmap"])
def test_which_exceptions_are_worth_a_retry(engine: Any, method: str, retry_on: Any, attempts: int) -> None:
    def fail(x: int) -> int:
        raise ConnectionResetError("reset by peer")

    chain = getattr(parallel([1, 2]), method)(fail, retries=2, retry_on=retry_on, on_error="skip")
    assert list(chain) == []
    assert [error.attempts for error in chain.errors] == [attempts, attempts]


def test_what_retry_on_itself_raises_ends_the_evaluation_and_says_so(engine: Any) -> None:
    chain = parallel([0]).map(lambda x: 1 / x, retries=2, retry_on=lambda e: e.status > 500, on_error="skip")
    with pytest.raises(AttributeError) as caught:
        list(chain)
    assert "in retry_on=lambda, asked about ZeroDivisionError" in caught.value.__notes__[0]
    check_sums(chain.stats)


def test_a_flatmap_is_tried_again_until_it_has_given_something(engine: Any) -> None:
    class Twice:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, x: int) -> Iterator[int]:
            self.calls += 1
            if self.calls == 1:
                raise OSError("first")
            yield x
            if self.calls == 2:
                raise OSError("second")
            yield -x

    chain = parallel([1, 2], partition_size=2).flatmap(Twice(), retries=5, on_error="skip")
    assert list(chain) == [1, 2, -2]
    assert [(error.element, error.attempts) for error in chain.errors] == [(1, 2)]


def test_a_filter_that_is_tried_again_may_say_no(engine: Any) -> None:
    keep = Failing("filter", 0, 0, 1, 1, None, True)
    chain = parallel(range(31)).filter(keep, retries=1)
    assert list(chain) == [x for x in range(31) if x % 3]
    assert chain.stats.retries == 7
    check_sums(chain.stats)


def test_pauses_double_up_to_a_cap_with_a_random_part_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BASE_SECONDS", BASE_SECONDS)
    for attempts in (1, 2, 3, 5, 8, 100, 10**6):
        longest = min(CAP_SECONDS, BASE_SECONDS * 2 ** min(attempts - 1, 50))
        pauses = {pause(attempts) for _ in range(50)}
        assert len(pauses) > 40
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


def test_each_retry_waits_for_its_pause(inline: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(policy, "BASE_SECONDS", BASE_SECONDS)
    monkeypatch.setattr(parcoll.chain.guard.time, "sleep", waited.append)
    assert list(parallel([0]).map(lambda x: 1 / x, retries=3, on_error="skip")) == []
    assert [BASE_SECONDS / 2 <= x / 2**i <= BASE_SECONDS for i, x in enumerate(waited)] == [True] * 3


def test_a_retry_leaves_the_user_s_random_numbers_alone(inline: Connection) -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    assert list(parallel([0]).map(lambda x: 1 / x, retries=2, on_error="skip")) == []
    assert random.random() == expected


# --- many errors ---------------------------------------------------------------------------------


def fail_always(x: Any) -> None:
    raise ValueError("bad")


@pytest.mark.parametrize("size", [700, "auto"])
def test_the_first_thousand_errors_are_kept_and_all_are_counted(engine: Any, size: Any) -> None:
    chain = parallel(range(5000), partition_size=size, on_error="skip").map(fail_always)
    assert list(chain) == []
    assert len(chain.errors) == KEPT == 1000
    indices = [error.index for error in chain.errors]
    assert indices == sorted(set(indices))
    assert (chain.stats.failed, chain.stats.steps[0].failed) == (5000, 5000)
    assert 0 < len(chain.stats.failures) <= 20
    check_sums(chain.stats)


def test_a_worker_sends_no_more_than_a_thousand(inline: Connection) -> None:
    """Of all partitions of one evaluation together, and each a few kilobytes."""
    ledger, sent = Ledger(), []
    for _ in range(3):
        chain = Chain([Map(fail_always, Policy("skip"))], ledger)
        assert list(chain.run(list(range(700)))) == []
        assert chain.counts[0].failed == 700
        sent.append(packed(chain.failed_elements))
        chain.close()
    assert [len(pickle.loads(content)) if content else 0 for content in sent] == [700, 300, 0]
    assert sum(map(len, sent)) < 1000 * 8192


def test_large_elements_come_back_until_there_are_too_many(inline: Connection) -> None:
    size = ELEMENT_BYTES // 4
    data = [bytes([i]) * size for i in range(6)]
    chain = parallel(data, on_error="skip").map(fail_always)
    assert list(chain) == []
    whole, rest = chain.errors[:3], chain.errors[3:]
    assert [error.element for error in whole] == data[:3]
    assert all(isinstance(error.element, str) and len(error.element) <= 200 for error in rest)


def test_errors_are_there_while_the_evaluation_runs(engine: Any) -> None:
    chain = parallel(itertools.count(), partition_size=4, on_error="skip").map(lambda x: 1 / (x % 2))
    iterator = iter(chain)
    next(iterator)
    assert chain.stats.state == "running"
    assert {error.element for error in chain.errors} >= {0, 2}
    assert len(chain.errors) == chain.stats.failed
    iterator.close()


def test_errors_are_those_of_the_last_evaluation(engine: Any) -> None:
    chain = parallel([1, 0, 2]).map(lambda x: 1 / x, on_error="skip")
    assert chain.errors == []
    assert chain.count() == chain.count() == 2
    assert len(chain.errors) == chain.stats.failed == 1


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
    with pytest.raises(ValueError, match="retry_on says nothing without retries"):
        parallel([1]).map(str, retry_on=OSError)
    assert parallel([1], retries=1).map(str, retry_on=OSError) is not None
    assert parallel([1], retry_on=OSError).map(str, retries=1) is not None


@pytest.mark.parametrize("name", ["on_error", "retry_on"])
def test_a_function_that_cannot_travel_is_named(cluster: Connection, name: str) -> None:
    lock = threading.Lock()

    def decide(error: Any) -> bool:
        return lock.locked()

    with pytest.raises(TypeError, match=rf"the {name} of map\(str\) cannot be sent .*'lock'"):
        list(parallel([1]).map(str, retries=1, **{name: decide}))
