"""`retries=`: one element runs again, and not its partition; which, how often, and after which pause."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accounts import check_sums
from failing import Failing
from scripts import append, lines

import parcoll.chain.guard
from parcoll import Connection, parallel
from parcoll.chain import policy
from parcoll.chain.policy import BASE_SECONDS, CAP_SECONDS, pause

pytestmark = pytest.mark.usefixtures("impatient")


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
    assert "in retry_on=lambda, called for ZeroDivisionError" in caught.value.__notes__[0]
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
