"""How many elements the last partitions of a source take, and how far a stream is read ahead for that."""

from __future__ import annotations

import pytest
from seen import after, begun

from parcoll.evaluation.sizing import Adaptive, Fixed


@pytest.mark.parametrize(
    ("remaining", "threads", "size"),
    [
        (10**6, 2, 5000),  # 0.5 s
        (15_000, 2, 5000),
        (6000, 2, 2000),  # two thirds of what a thread gets
        (1500, 2, 500),
        (750, 2, 250),  # 0.025 s, and not less
        (400, 2, 250),
        (350, 2, 350),  # with what would be left, if that is less than half of it
        (1, 2, 1),
        (10**6, 64, 5000),
        (12_000, 64, 250),
    ],
)
def test_partitions_shrink_towards_the_end_of_a_sized_source(remaining: int, threads: int, size: int) -> None:
    sizer = after(2048, 1e-4)
    assert sizer.next_size(remaining, threads) == pytest.approx(size, abs=1)
    assert sizer.next_size(None, threads) == pytest.approx(5000, abs=1)


def test_where_there_are_many_threads_the_last_partitions_are_longer() -> None:
    """0.2 s for 2,048: one scheduler does so many tasks a second, and they all shrink at once."""
    sizer = after(2048, 1e-4)
    assert [sizer.next_size(remaining, 2048) for remaining in (10**5, 10**6)] == [2000, 2000]
    assert sizer.next_size(10**7, 2048) == pytest.approx(3256, abs=1)


def test_the_last_partitions_wait_for_a_worker_that_needs_them() -> None:
    """From the first that is smaller than it would be in mid-stream; small ones of cheap elements do not."""
    known = after(2048, 1e-4)
    assert [known.nears_end(remaining, 2) for remaining in (15_100, 14_900, 1)] == [False, True, True]
    assert not known.nears_end(None, 2), "a stream's end comes as a surprise"
    assert not after(131_072, 1e-8).nears_end(1000, 2)
    assert not begun().nears_end(10, 2), "nothing is known yet"
    assert not Fixed(3).nears_end(1, 2)


@pytest.mark.parametrize("remaining", [20_000, 5000, 2000])
def test_the_last_partitions_are_no_larger_than_others(remaining: int) -> None:
    """Elements of 1 µs and 8 kB: 1,048 of them are 8 MiB, however soon all of the rest would be done."""
    assert after(2048, 1e-6, 8000).next_size(remaining, 2) <= 1048
    assert after(131_072, 1e-8).next_size(100 * remaining, 2) <= 131_072


@pytest.mark.parametrize("seconds_each", [1e-6, 1e-4, 0.01, 0.3, 60])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_streams_are_read_ahead_so_far_that_their_ends_are_seen_in_time(
    seconds_each: float, threads: int
) -> None:
    """With so many at hand, the next partition has the size that it would have in mid-stream."""
    sizer = after(2048, seconds_each)
    ahead = sizer.ahead(threads)
    assert ahead <= 131_072
    if ahead < 131_072:
        assert sizer.next_size(ahead, threads) == sizer.next_size(None, threads)
        assert sizer.next_size(ahead // 2, threads) < sizer.next_size(None, threads) or seconds_each > 0.25


def test_how_far_a_stream_is_read_ahead_in_plain_numbers() -> None:
    """Before anything is known: one element, then enough for the partitions that go out together."""
    assert [Adaptive().ahead(threads) for threads in (2, 64)] == [1, 1]
    assert [begun().ahead(threads) for threads in (2, 64)] == [32, 256]
    assert [after(2048, 0.01).ahead(threads) for threads in (2, 64)] == [150, 4800]  # 0.75 s for each thread
    assert after(131_072, 1e-8).ahead(2) == 131_072
    assert Fixed(3).ahead(2) == 0
