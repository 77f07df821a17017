"""How many elements a partition takes: in plain numbers, and what becomes of one that was cut too large."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import append, lines
from seen import after, begun, ran

from parcoll import Connection, parallel
from parcoll.evaluation import sizing
from parcoll.evaluation.feed import StreamFeed
from parcoll.evaluation.sizing import Adaptive, Fixed, sizer_for
from parcoll.evaluation.source import source_of
from parcoll.wire.payload import Packed
from parcoll.worker.outcome import Outcome

MIB = 2**20


# Nothing is known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("remaining", [None, 80])
def test_what_is_known_to_take_long_is_not_handed_back_at_the_start(remaining: int | None) -> None:
    """It would run behind what others have been given by then, though it is wanted first."""
    sizer = Adaptive(pace=0.1)
    assert [sizer.next_size(remaining, 4) for _ in range(4)] == [1] * 4
    size = sizer.next_size(remaining, 4)
    assert size > 1
    assert sizer.budget() == pytest.approx(2 * size * 0.1)
    unknown = Adaptive()
    assert [unknown.next_size(remaining, 4) for _ in range(4)] == [1] * 4
    assert unknown.next_size(remaining, 4) > 1
    assert unknown.budget() == 0.05


@pytest.mark.parametrize("remaining", [None, 10**5, 10**9])
@pytest.mark.parametrize(("threads", "alone"), [(1, 1), (2, 2), (64, 8)])
def test_the_first_elements_go_alone(remaining: int | None, threads: int, alone: int) -> None:
    """One for each thread, up to eight: each of them may take long."""
    sizer = Adaptive()
    assert [sizer.next_size(remaining, threads) for _ in range(alone)] == [1] * alone
    assert sizer.next_size(10**9, threads) == 2048


@pytest.mark.parametrize(
    ("remaining", "threads", "size"),
    [
        (None, 2, 16),  # a stream that goes on: of a slow function few elements are to be read ahead
        (10**9, 2, 2048),
        (10_000, 2, 1250),  # a quarter of what a thread gets
        (10_000, 64, 39),
        (100, 2, 12),
        (15, 2, 1),
        (1, 64, 1),
    ],
)
def test_those_behind_it_are_small_until_one_comes_back(
    remaining: int | None, threads: int, size: int
) -> None:
    """So that a short source is shared by all threads, whatever its function turns out to cost."""
    sizer = begun()
    for _ in range(6):  # of 64 threads, eight get one element
        sizer.next_size(remaining, threads)
    assert [sizer.next_size(remaining, threads) for _ in range(5)] == [size] * 5


def test_at_the_start_a_worker_gives_back_soon_and_little_is_read() -> None:
    sizer = begun()
    assert (sizer.budget(), sizer.max_bytes(2), sizer.max_bytes(64)) == (0.05, MIB, MIB)
    ran(sizer, 1, 0.001)
    sizer.next_size(None, 2)
    assert (sizer.budget(), sizer.max_bytes(2)) == (1.0, 8 * MIB)


@pytest.mark.parametrize(("count", "budget"), [(4, 0.25), (40, 0.54), (10**6, 1.0)])
def test_a_partition_that_should_take_little_is_not_waited_for_long(count: int, budget: float) -> None:
    """One element of it may take as long as all others, and the next ones would wait behind it."""
    sizer = begun()
    ran(sizer, 100, 0.01)
    sizer.next_size(count, 1)
    assert sizer.budget() == pytest.approx(budget)


@pytest.mark.parametrize(("pace", "size"), [(None, 1), (1.0, 1), (0.1, 5), (1e-6, 16)])
def test_what_cannot_be_handed_back_begins_as_small_as_it_is_known_to_take(
    pace: float | None, size: int
) -> None:
    """A kept partition of a stream, behind the first ones."""
    sizer = Adaptive(lasting=True, pace=pace)
    assert [sizer.next_size(None, 2) for _ in range(4)] == [1, 1, size, size]


@pytest.mark.parametrize(("limit", "size"), [(1, 64), (100, 100), (10**6, 2048), (None, 2048)])
def test_where_few_results_are_wanted_few_elements_go_out(limit: int | None, size: int) -> None:
    assert Adaptive(limit).next_size(None, 2) == 1
    assert begun(limit).next_size(10**9, 2) == size


def test_where_few_results_are_wanted_the_next_partitions_are_small_too() -> None:
    """64 times the first element, and not START."""
    sizer = begun(limit=10)
    ran(sizer, 1, 1e-7)
    assert sizer.next_size(None, 2) == 64


# The same functions ran before ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pace", "remaining", "sizes"),
    [
        (1e-6, 10, [10]),  # one message there and one back
        (1e-3, 10, [5, 5]),
        (1e-3, 99, [50, 50]),
        (1e-3, 400, [160, 160, 40, 40]),  # what is left evens out what the first ones have taken longer
        (1e-3, 1500, [600, 600, 120, 120]),
        (1e-3, 4000, [1, 1, 499]),  # as if nothing were known
        (1e-3, 5000, [1, 1, 500]),  # but no longer than is aimed at
        (1.0, 50, [1, 1, 1]),
        (1.0, 2, [1, 1]),
    ],
)
def test_a_short_source_of_known_functions_goes_at_once(
    pace: float, remaining: int, sizes: list[int]
) -> None:
    sizer = Adaptive(pace=pace)
    for size in sizes:
        assert sizer.next_size(remaining, 2) == size
        remaining -= size


def test_a_function_that_has_become_slow_gives_back_soon() -> None:
    sizer = Adaptive(pace=1e-6)
    assert sizer.next_size(10, 2) == 10
    assert sizer.budget() == 0.05
    ran(sizer, 1, 1.0)
    assert sizer.next_size(9, 2) == 1


@pytest.mark.parametrize(("lasting", "sole"), [(False, False), (True, True)])
def test_where_nobody_takes_elements_away_the_budget_cuts_what_has_become_slow(
    lasting: bool, sole: bool
) -> None:
    sizer = Adaptive(pace=1e-6, hands_back=False, lasting=lasting, sole=sole)
    assert (sizer.next_size(10, 2), sizer.budget(sole=True)) == (10, 0.05)


def test_what_is_given_back_goes_out_one_by_one() -> None:
    """The function takes longer than it did, whatever was known of it."""
    sizer = Adaptive(pace=1e-6)
    assert sizer.next_size(8, 8) == 8
    sizer.forget()
    assert [sizer.next_size(7, 8) for _ in range(7)] == [1] * 7


def test_a_rest_of_what_was_quick_is_cut_into_single_elements() -> None:
    feed = StreamFeed(source_of(range(8)).open(), Adaptive(pace=1e-6), Packed.pack)
    job = feed.next_job(8)
    assert job is not None
    assert job.size == 8
    rest = feed.rest_of(job, Outcome(read=1, complete=False, early=True))
    assert [cut.size for _ in range(7) if (cut := feed.job_of(rest, 8)) is not None] == [1] * 7


# One partition has come back ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds_each", "size"),
    [(1e-8, 131_072), (1e-6, 131_072), (1e-5, 50_000), (1e-3, 500), (0.1, 5), (0.49, 1), (60, 1)],
)
def test_sizes_reach_their_target_one_round_later(seconds_each: float, size: int) -> None:
    """0.5 s, or 131,072 elements: at once where the elements are slow, else when START have come back."""
    sizer = begun()
    ran(sizer, 1, seconds_each)
    assert sizer.next_size(None, 2) == pytest.approx(min(size, 2048), abs=1)
    ran(sizer, min(2048, size), seconds_each)
    assert sizer.next_size(None, 2) == pytest.approx(size, abs=1)


@pytest.mark.parametrize(
    ("bytes_each", "size"), [(1000, 8388), (8 * MIB, 1), (100 * MIB, 1), (0.5, 131_072), (80_000, 104)]
)
def test_partitions_hold_no_more_than_eight_mebibytes(bytes_each: float, size: int) -> None:
    assert after(2048, 1e-7, bytes_each).next_size(None, 2) == size
    sizer = begun()
    for elements in (1, 2048):
        ran(sizer, elements, 1e-7, bytes_each=1, sent=int(elements * max(bytes_each, 1)))
    assert sizer.next_size(None, 2) == min(size, 131_072), "elements that are sent count as results do"


def test_slow_elements_shrink_partitions_at_once() -> None:
    sizer = after(1000, 0.001)
    assert sizer.next_size(None, 2) == pytest.approx(500, abs=1)
    ran(sizer, 500, 0.01)
    assert sizer.next_size(None, 2) == pytest.approx(50, abs=1)


def test_faster_elements_let_them_grow_by_halves() -> None:
    """The mean of what is believed and what was seen: 4 ms, 2.5, 1.75."""
    sizer = after(100, 0.004)
    sizes = []
    for _ in range(3):
        sizes.append(sizer.next_size(None, 2))
        ran(sizer, 100, 0.001)
    assert sizes == pytest.approx([125, 200, 285], abs=1)


def test_small_samples_do_not_spoil_the_estimate() -> None:
    """A few elements take mostly what each partition takes; a long time of one element is news though."""
    sizer = after(10_000, 1e-5)
    for _ in range(5):
        ran(sizer, 1, 0.005)
        ran(sizer, 1, 1e-8)
    assert sizer.next_size(None, 2) == pytest.approx(50_000, abs=1)
    ran(sizer, 1, 1.0)
    assert sizer.next_size(None, 2) == 1


@pytest.mark.parametrize(
    ("known", "slow", "each"), [(2048, 7, 0.003), (2048, 40, 0.02), (131_072, 1, 1.0), (700, 600, 0.02)]
)
def test_what_few_elements_took_does_not_keep_sizes_small(known: int, slow: int, each: float) -> None:
    """A busy machine held up one of 7, say. Partitions begin as small as if all were slow, and grow."""
    sizer = after(known, 1e-6)
    ran(sizer, slow, each)
    assert sizer.next_size(None, 2) == pytest.approx(max(0.5 / each, 1), abs=1)
    for _ in range(40):
        size = sizer.next_size(None, 2)
        ran(sizer, size, 1e-6 + 2e-4 / size)
    assert size > 20_000


def test_a_much_larger_sample_is_believed_at_once() -> None:
    """The first element imports a module, say."""
    sizer = begun()
    ran(sizer, 1, 0.5)
    assert sizer.next_size(None, 2) == 1
    ran(sizer, 4, 1e-4)
    assert sizer.next_size(None, 2) == 2048
    ran(sizer, 2048, 1e-4)
    assert sizer.next_size(None, 2) == pytest.approx(5000, abs=1)


def test_a_partition_of_which_nothing_was_begun_says_nothing() -> None:
    sizer = after(1000, 0.001)
    sizer.observe(Outcome(read=0, complete=False, seconds=5.0), 10**9)
    assert sizer.next_size(None, 2) == pytest.approx(500, abs=1)
    empty = begun()
    empty.observe(Outcome(read=0, complete=False), 0)
    assert (empty.next_size(None, 2), empty.budget()) == (16, 0.05)


# The window ---------------------------------------------------------------------------------------


def test_the_window_in_plain_numbers() -> None:
    """For 2 and for 64 threads: places, places that are filled at once, and bytes of one partition."""
    fresh, known = begun(), after(2048, 1e-4)

    def numbers(sizer: Any, threads: int) -> tuple[int, int, int]:
        return sizer.window(threads), sizer.refill(threads), sizer.max_bytes(threads)

    assert [numbers(fresh, threads) for threads in (2, 64)] == [(4, 1, MIB), (16, 5, MIB)]
    assert [numbers(known, threads) for threads in (2, 64)] == [(12, 4, 8 * MIB), (260, 64, MIB / 2)]
    fixed = Fixed(3)
    assert [numbers(fixed, threads) for threads in (2, 64)] == [(10, 1, sys.maxsize), (258, 1, sys.maxsize)]


@pytest.mark.parametrize(("threads", "seconds"), [(2, 0.5), (256, 0.5), (512, 1.0), (2048, 4.0)])
def test_partitions_take_longer_where_there_are_many_threads(threads: int, seconds: float) -> None:
    """So that one scheduler has no more than 512 tasks a second, and a budget that fits."""
    sizer = after(2048, 1e-4)
    assert sizer.next_size(None, threads) == pytest.approx(min(seconds / 1e-4, 131_072), abs=1)
    assert sizer.budget() == pytest.approx(2 * seconds)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_there_is_always_a_place_to_fill(threads: int) -> None:
    """With none, elements that were handed back would never be sent again."""
    for sizer in (begun(), after(1, 1e-8), after(2048, 1e-4), Fixed(1)):
        assert 1 <= sizer.refill(threads) <= sizer.window(threads)


def test_a_fixed_size_is_what_was_asked_for() -> None:
    sizer = sizer_for(1000)
    assert isinstance(sizer, Fixed)
    assert (sizer.exact, sizer.budget()) == (True, None)
    for _ in range(3):
        assert sizer.next_size(10, 64) == sizer.next_size(None, 1) == 1000
        ran(sizer, 1000, 10)
    assert not sizer_for("auto").exact


# On workers ---------------------------------------------------------------------------------------


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Collect how many elements of a partition were begun, and how many handed back: after 0.1 s here."""
    monkeypatch.setattr(sizing, "TARGET_SECONDS", 0.05)
    found: list[tuple[int, int]] = []
    rest_of = StreamFeed.rest_of

    def noted(feed: StreamFeed, job: Any, outcome: Any) -> Any:
        rest = rest_of(feed, job, outcome)
        assert job.size == outcome.read + len(rest)
        found.append((outcome.read, len(rest)))
        return rest

    monkeypatch.setattr(StreamFeed, "rest_of", noted)
    return found


def unsized(length: int) -> Callable[[], Iterator[int]]:
    """Return a source whose length nobody knows."""
    return lambda: iter(range(length))


def slow_from(first: int, last: int, trace: Path | None = None) -> Callable[[int], int]:
    """Return a function that takes 10 ms for some elements, 0.4 s for the first, and nothing for the others.

    However its partition is cut, the others of it are handed back during the first.
    """

    def func(x: int) -> int:
        if trace is not None:
            append(trace, x)
        if first <= x < last:
            time.sleep(0.4 if x == first else 0.01)
        return -x

    return func


def drain(collection: Any) -> tuple[list[Any], Any]:
    """Return the results that come, and the error that ends them."""
    results: list[Any] = []
    try:
        for result in collection:
            results += [result]
    except Exception as error:
        return results, error
    return results, None


@pytest.mark.parametrize("source", [unsized(6000), range(6000)], ids=["unsized", "sized"])
def test_slow_elements_at_the_start_are_handed_back(
    cluster: Connection, tmp_path: Path, rests: list[Any], source: Any
) -> None:
    """Their partition was cut before anybody knew; order stays, and each element runs once."""
    trace = tmp_path / "trace"
    chain = parallel(source).map(slow_from(20, 60, trace))
    assert list(chain) == [-x for x in range(6000)]
    assert Counter(lines(trace)) == Counter(map(str, range(6000)))
    assert (chain.stats.elements_in, chain.stats.elements_out) == (6000, 6000)
    assert rests
    assert all(read >= 1 and rest >= 1 for read, rest in rests)


def test_everything_slow_is_shared_out(cluster: Connection, rests: list[Any]) -> None:
    """300 elements of 10 ms: each worker hands back what it was given, and both go on with it."""

    def slow(x: int) -> int:  # the first of each worker tells nothing until others are sent
        time.sleep(0.4 if x < 2 else 0.01)
        return -x

    assert list(parallel(unsized(300)).map(slow)) == [-x for x in range(300)]
    assert rests[0][0] + rests[0][1] == sizing.START_STREAM


def test_what_was_handed_back_may_be_filtered_and_multiplied(cluster: Connection, rests: list[Any]) -> None:
    chain = parallel(unsized(3000)).map(slow_from(100, 130)).filter(lambda x: x % 3)
    expected = [y for x in range(3000) if x % 3 for y in (-x, x)]
    assert list(chain.flatmap(lambda x: (x, -x))) == expected
    assert rests
    assert chain.count() == 2000
    assert chain.reduce(lambda a, b: (*a[-2:], b), ()) == (-2996, -2998, -2999)
    assert chain.fold(lambda a, b: a + b, 0) == -sum(x for x in range(3000) if x % 3)
    kept = parallel(unsized(3000))
    kept.foreach(slow_from(100, 130))
    assert list(kept) == [-x for x in range(3000)]


@pytest.mark.parametrize(
    "bad", [50, 110, 1500, 2500, 5990], ids=["before", "within", "in the rest", "behind it", "far behind"]
)
def test_an_error_is_raised_in_its_place(cluster: Connection, rests: list[Any], bad: int) -> None:
    """After all results before it, wherever it stands to what is handed back; the first of several."""
    slow = slow_from(100, 130)

    def check(x: int) -> int:
        if x in (bad, bad + 1, 5999):
            raise ValueError(x)
        return slow(x)

    results, error = drain(parallel(unsized(6000)).map(check))
    assert results == [-x for x in range(bad)]
    assert (type(error), error.args) == (ValueError, (bad,))
    assert f"element {bad}: {bad}" in "\n".join(error.__notes__)
    if bad > 130:
        assert rests


def test_an_error_of_the_source_comes_after_what_was_handed_back(
    cluster: Connection, rests: list[Any]
) -> None:
    def source() -> Iterator[int]:
        yield from range(2500)
        raise OSError("the disk is gone")

    results, error = drain(parallel(source).map(slow_from(100, 130)))
    assert str(error) == "the disk is gone"
    assert results == [-x for x in range(2500)]
    assert rests


def test_unordered_results_are_complete_too(cluster: Connection, rests: list[Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    chain = parallel(unsized(5000)).map(slow_from(100, 130, trace)).unordered()
    assert sorted(chain, reverse=True) == [-x for x in range(5000)]
    assert rests
    assert Counter(lines(trace)) == Counter(map(str, range(5000)))


@pytest.mark.parametrize("n", [1, 105, 110, 1500, 4000])
def test_take_reaches_into_what_was_handed_back(cluster: Connection, rests: list[Any], n: int) -> None:
    chain = parallel(lambda: itertools.count()).map(slow_from(100, 130))
    assert chain.take(n) == [-x for x in range(n)]
    assert parallel(unsized(200)).map(abs).take(n) == list(range(min(n, 200))), "the workers are well"


def test_what_was_handed_back_is_left_with_the_rest(cluster: Connection, rests: list[Any]) -> None:
    """An iterator that is closed between a rest and its results."""
    for taken in (1, 50, 102, 140):
        stream = iter(parallel(lambda: itertools.count()).map(slow_from(100, 130)))
        assert list(itertools.islice(stream, taken)) == [-x for x in range(taken)]
        stream.close()
        assert list(stream) == []
    assert list(parallel(range(100)).map(abs)) == list(range(100))
