"""Errors by the thousand: the first are kept, all are counted, and memory stays bounded."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
from accounts import check_sums

from parcoll import Connection, parallel
from parcoll.chain.failures import ELEMENT_BYTES, KEPT, Ledger, packed
from parcoll.chain.loop import Chain
from parcoll.chain.policy import Policy
from parcoll.chain.steps import Map
from parcoll.chain.tally import Tally

pytestmark = pytest.mark.usefixtures("impatient")


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
    steps = [Map(fail_always, Policy("skip"))]
    for _ in range(3):
        chain = Chain(steps, Tally(steps, ledger))
        assert list(chain.run(list(range(700)))) == []
        assert chain.tally.counts[0].failed == 700
        sent.append(packed(chain.tally.failed_elements))
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
