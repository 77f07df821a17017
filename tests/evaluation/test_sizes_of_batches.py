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


def test_a_batch_that_takes_little_is_not_cut_at_the_end_of_the_source_either() -> None:
    """0.1 s each, which is more than half of what a worker's share of the rest would take there."""
    calls = sizes_of(sizer_for("auto", batch=1000), 20_000, 1000, lambda n: n * 1e-4)
    whole = calls.index(1000)
    assert whole < 8
    assert set(calls[whole:-1]) == {1000}


def test_two_batches_that_take_little_have_their_time() -> None:
    """Before anything has come back too."""
    assert sizer_for("auto", batch=1000, pace=1e-4).budget() == 0.4
    assert sizer_for("auto", batch=1000, pace=1e-3).budget() == 0.05, "a second each"


def test_elements_that_take_as_long_in_a_batch_begin_alone() -> None:
    """What is remembered of single ones is no reason for a batch of 26 s."""
    assert sizer_for("auto", batch=64, pace=0.4, of_few=0.4).next_size(10_000, THREADS) == 1
    assert sizer_for("auto", batch=64, pace=0.01, of_few=0.4).next_size(10_000, THREADS) == 64


def test_where_few_results_are_wanted_batches_are_small() -> None:
    few, all_of_them = sizer_for("auto", 5, batch=1000), sizer_for("auto", batch=1000)
    for sizer in (few, all_of_them):
        sizer.observe(Outcome(read=1, seconds=1e-5), 0)
    assert [sizer.next_size(10**6, THREADS) for sizer in (few, all_of_them)] == [64, 2_000]


def test_a_batch_may_be_larger_than_any_first_partition() -> None:
    assert sizer_for("auto", batch=5000, pace=1e-5).next_size(20_000, THREADS) == 5_000


@pytest.mark.parametrize(("each", "size"), [(0.02, 100), (0.1, 40)])
def test_a_partition_is_a_whole_batch_if_that_takes_some_times_as_long(each: float, size: int) -> None:
    """Eight times the half of a second that others take: four seconds."""
    sizer = sizer_for("auto", batch=100)
    for read in (1, 25):
        sizer.observe(Outcome(read=read, seconds=read * each), 0)
    assert sizer.next_size(10**6, THREADS) == size
