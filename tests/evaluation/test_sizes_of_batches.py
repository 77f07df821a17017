"""The sizes of partitions whose functions get many elements in one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parcoll.evaluation.sizing import Sizer, sizer_for
from parcoll.worker.outcome import Outcome

THREADS = 2


def sizes_of(sizer: Sizer, elements: int, batch: int, seconds: Callable[[int], float]) -> list[int]:
    """Return the sizes of the calls, where two partitions of each thread are under way."""
    calls: list[int] = []
    sent: list[int] = []
    while elements or sent:
        while elements and len(sent) < 2 * THREADS:
            sent.append(min(sizer.next_size(elements, THREADS), elements))
            elements -= sent[-1]
        size = sent.pop(0)
        cut = [min(batch, size - start) for start in range(0, size, batch)]
        sizer.observe(Outcome(read=size, seconds=sum(map(seconds, cut))), 0)
        calls += cut
    return calls


@pytest.mark.parametrize("each_call", [0.01, 0.25, 10.0])
def test_where_a_call_takes_as_long_whatever_it_gets_no_batch_is_cut(each_call: float) -> None:
    """A commit of a database, a request, a model on a GPU."""
    calls = sizes_of(sizer_for("auto", batch=1000), 20_000, 1000, lambda n: each_call)
    assert len([size for size in calls if size < 1000]) <= 8
    assert len(calls) <= 28


def test_where_each_element_takes_its_time_batches_hold_up_nobody() -> None:
    calls = sizes_of(sizer_for("auto", batch=1000), 20_000, 1000, lambda n: n * 0.1)
    assert calls[:4] == [1, 1, 64, 64]
    assert max(calls[4:]) <= 40, "four seconds"


def test_what_was_quick_last_time_goes_in_whole_batches_from_the_first_on() -> None:
    known = sizer_for("auto", batch=1000, pace=1e-5)
    assert sizes_of(known, 20_400, 1000, lambda n: 0.01) == [1000] * 20 + [400]
    assert sizer_for("auto", 5, batch=1000, pace=1e-5).next_size(None, THREADS) <= 64, "five are wanted"
    slow = sizer_for("auto", batch=1000, pace=0.01)
    assert slow.next_size(20_000, THREADS) == 1


def test_a_part_of_a_batch_says_little_of_a_whole_one() -> None:
    sizer = sizer_for("auto", batch=1000)
    for read, seconds in ((1, 0.25), (1000, 0.25), (15, 0.25), (15, 0.25)):
        sizer.observe(Outcome(read=read, seconds=seconds), 0)
    assert sizer.next_size(None, THREADS) == 2000
    sizer.observe(Outcome(read=1000, seconds=0.25, nbytes=10**9), 0)
    assert sizer.next_size(None, THREADS) <= 8, "a batch of large results is not one partition"
