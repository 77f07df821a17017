"""Steps that make several calls at the same time account for every element as others do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from accounts import check_sums, drained
from failing import Failing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_accounts import Oracle, chains, found_errors, raising_chains, rows_of, sizes, sources

from parcoll import ParallelGen, connect, parallel

pytestmark = [
    pytest.mark.usefixtures("impatient"),
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

concurrencies = st.lists(st.sampled_from([None, 1, 2, 3, 20]), min_size=5, max_size=5)


def waiting_chain_of(
    steps: list[Failing], values: list[int], size: Any, concurrencies: list[int | None]
) -> ParallelGen[Any]:
    collection: ParallelGen[Any] = parallel(values, partition_size=size)
    for step, concurrency in zip(steps, concurrencies, strict=False):
        collection = step.extend(collection, concurrency=concurrency)
    return collection


def check_errors(collection: ParallelGen[Any], oracle: Oracle) -> None:
    """Those of one source element may be in another order: steps before are ahead of those behind."""
    found = found_errors(collection)
    assert Counter(found) == Counter(oracle.errors)
    assert [index for _, index, *_ in found] == [index for _, index, *_ in oracle.errors]


@settings(deadline=None, max_examples=60)
@given(steps=chains, values=sources, size=sizes, several=concurrencies)
def test_every_element_is_accounted_for(steps, values, size, several):
    oracle = Oracle(steps)
    expected = list(oracle.run(values))
    with connect("inline"):
        collection = waiting_chain_of(steps, values, size, several)
        assert list(collection) == expected
    check_sums(collection.stats)
    assert rows_of(collection.stats) == oracle.rows
    check_errors(collection, oracle)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=chains, values=sources, size=sizes, several=concurrencies)
def test_so_it_is_on_workers(cluster, steps, values, size, several):
    oracle = Oracle(steps)
    expected = list(oracle.run(values))
    collection = waiting_chain_of(steps, values, size, several)
    assert list(collection) == expected
    assert rows_of(collection.stats) == oracle.rows
    check_errors(collection, oracle)


@settings(deadline=None, max_examples=60)
@given(steps=raising_chains, values=sources, size=sizes, several=concurrencies)
def test_what_is_raised_comes_after_the_results_before_it(steps, values, size, several):
    oracle = Oracle(steps)
    expected, error = drained(oracle.run(values))
    with connect("inline"):
        collection = waiting_chain_of(steps, values, size, several)
        results, raised = drained(collection)
    assert (results, repr(raised)) == (expected, repr(error))
    # Elements behind the one that ended it were under way, and may have failed too.
    assert not Counter(oracle.errors) - Counter(found_errors(collection))
