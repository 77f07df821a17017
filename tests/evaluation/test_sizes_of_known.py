"""Sizes of functions that ran before, of partitions that are never cut, and where little is wanted."""

from __future__ import annotations

import pytest

from parcoll import Connection, parallel
from parcoll.chain import timing
from parcoll.evaluation.sizing import Adaptive, Sizer, sizer_for
from parcoll.evaluation.window import remember
from parcoll.worker.outcome import Outcome


def see(sizer: Sizer, read: int, seconds_each: float) -> None:
    sizer.observe(Outcome(read=read, seconds=read * seconds_each), 0)


@pytest.mark.parametrize(
    ("pace", "remaining", "sizes"),
    [
        (1e-3, 2_500, [1, 1, 312]),  # more than a second for each thread: as if nothing were known
        (1e-6, 200_000, [80_000, 80_000, 20_000, 20_000]),  # cheap ones too, and not START of them
    ],
)
def test_how_much_of_known_functions_goes_at_once(pace: float, remaining: int, sizes: list[int]) -> None:
    sizer = Adaptive(pace=pace)
    for size in sizes:
        assert sizer.next_size(remaining, 2) == size
        remaining -= size


@pytest.mark.parametrize("settings", [{"limit": 300}, {"lasting": True}, {"hands_back": False}])
def test_less_goes_at_once_of_what_nobody_hands_back_or_wants(settings: dict[str, int]) -> None:
    """0.05 s for each thread, and not a second."""
    assert Adaptive(pace=1e-3, **settings).next_size(400, 2) == 1  # type: ignore[arg-type]
    assert Adaptive(pace=1e-4, **settings).next_size(400, 2) > 1  # type: ignore[arg-type]


def test_where_a_partition_is_never_cut_each_worker_gets_its_share() -> None:
    assert Adaptive(pace=1e-6, lasting=True).next_size(10, 2) == 5


def test_few_elements_go_out_for_few_results_of_known_functions() -> None:
    assert Adaptive(limit=3, pace=1e-9).next_size(10**6, 2) == 64


def test_a_stream_of_known_functions_is_read_ahead() -> None:
    """For a second of each thread; if few results are wanted, as little as if nothing were known."""
    assert [Adaptive(pace=1e-3).ahead(threads) for threads in (2, 64)] == [2_001, 64_001]
    assert Adaptive(pace=1e-9).ahead(2) == 131_072
    assert [Adaptive(limit=3, pace=pace).ahead(2) for pace in (1e-3, 0.01)] == [32, 1]
    assert [Adaptive(lasting=True, pace=pace).ahead(2) for pace in (1e-3, 0.01)] == [32, 1]


def test_partitions_that_are_never_cut_start_from_one_element() -> None:
    sizer = Adaptive(lasting=True)
    assert [sizer.next_size(10**9, 2) for _ in range(6)] == [1] * 6
    assert sizer.budget() is None
    see(sizer, 1, 1e-6)
    assert sizer.next_size(10**9, 2) == 64
    assert sizer.budget() is None


def test_while_partitions_grow_few_are_sent() -> None:
    """More of the small ones would stand before the first of the next size."""
    sizer = Adaptive()
    assert [sizer.window(threads) for threads in (3, 64)] == [6, 16]
    see(sizer, 1, 1e-6)
    assert [sizer.window(threads) for threads in (3, 64)] == [6, 128]
    see(sizer, 131_072, 1e-6)
    assert [sizer.window(threads) for threads in (3, 64)] == [16, 260]


def test_partitions_of_what_becomes_little_take_three_times_as_long() -> None:
    sizer, usual = sizer_for("auto", long=True), sizer_for("auto")
    for one in (sizer, usual):
        see(one, 1, 1e-3)
        see(one, 64, 1e-3)
    assert (sizer.next_size(None, 2), usual.next_size(None, 2)) == (1_500, 500)


def test_a_sizer_tells_what_it_has_learnt() -> None:
    sizer = Adaptive(batch=64)
    assert (sizer.pace, sizer.of_few) == (None, None)
    see(sizer, 1, 0.4)
    see(sizer, 64, 0.4 / 64)
    assert sizer.pace == pytest.approx(0.4 / 64)
    assert sizer.of_few == 0.4
    assert Adaptive(batch=64, of_few=0.4).of_few == 0.4


def test_what_an_evaluation_has_learnt_is_there_in_the_next_one(
    inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[float | None] = []

    def remembered(*arguments: object) -> None:
        remember(*arguments)  # type: ignore[arg-type]
        known.append(timing.remembered(arguments[0]))  # type: ignore[arg-type]

    monkeypatch.setattr("parcoll.evaluation.window.remember", remembered)
    assert parallel(range(100)).map(str).count() == 100
    assert known
    assert known[0] is not None
    assert 0 < known[0] < 1
