"""Every element is accounted for, whichever fail: all numbers against an oracle in plain Python."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from accounts import check_sums, drained
from failing import Failing, stand_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parcoll import connect, parallel

pytestmark = [
    pytest.mark.usefixtures("impatient"),
    # The client's own threads draw random numbers while hypothesis watches the generator.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]


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
