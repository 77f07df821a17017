"""How far a stream is read ahead, what runs when, and what an iterator that is left leaves behind."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.bag
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import append, eventually, lines, wait_for_file

from parcoll import Connection, parallel
from parcoll.evaluation.feed import StreamFeed
from parcoll.evaluation.sizing import MAX_ELEMENTS, Fixed

THREADS = 2  # of the `cluster` fixture
WINDOW = Fixed(1).window(THREADS)  # partitions under way or waiting for the consumer


class Counted:
    """An endless source that knows how many elements were drawn from it."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read += 1
            yield number


def tasks_on(cluster: Connection) -> int:
    return int(cluster.engine.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def settle(cluster: Connection) -> None:
    """Return when the scheduler knows no task any more and the workers have heard of it."""
    assert eventually(lambda: tasks_on(cluster) == 0), "tasks of an iterator that was left stay"
    cluster.engine.client.run(os.getpid)


# Reading ahead ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_few_elements_of_an_endless_source_read_no_more_than_the_window(
    cluster: Connection, size: int
) -> None:
    source = Counted()
    assert list(itertools.islice(parallel(source, partition_size=size).map(lambda x: -x), 10)) == [
        -x for x in range(10)
    ]
    taken = -(-10 // size)  # partitions that the consumer began
    assert 10 <= source.read <= (WINDOW + taken - 1) * size


def test_the_window_is_ten_partitions_for_two_threads(cluster):
    """In plain numbers: a bound taken from the code would grow with it."""
    read: list[int] = []

    def source():
        for number in itertools.count():
            read.append(number)
            yield number

    stream = iter(parallel(source, partition_size=3).map(lambda x: x))
    assert list(itertools.islice(stream, 10)) == list(range(10))
    assert len(read) <= (4 + 10) * 3, "four partitions were begun by the consumer, ten may wait"
    stream.close()
    read.clear()
    assert parallel(source).map(lambda x: x).first() == 0
    assert len(read) <= 4 + 10 * 64, "the first partitions have one element, the next at most 64"


def test_the_window_moves_with_the_consumer(cluster: Connection) -> None:
    """After each element no more than a window of partitions beyond the current one has been read."""
    source = Counted()
    for number in itertools.islice(parallel(source, partition_size=4).map(abs), 200):
        assert source.read <= (number // 4 + WINDOW) * 4


def test_each_next_reads_exactly_one_partition_more(inline: Connection) -> None:
    """Inline there is nothing to wait for, so that the exact numbers hold."""
    source = Counted()
    stream = iter(parallel(source, partition_size=3).map(abs))
    assert source.read == 0
    window = 3 * Fixed(3).window(1)
    reads = [source.read for _ in itertools.islice(stream, 7)]
    assert reads == [window] * 3 + [window + 3] * 3 + [window + 6]


def test_auto_partitions_read_a_bounded_number_too(cluster: Connection) -> None:
    source = Counted()
    assert parallel(source).map(abs).take(1000) == list(range(1000))
    assert source.read <= (WINDOW + 1000) * MAX_ELEMENTS
    assert source.read <= 2_000_000  # what it is in fact: sizes grow by sixteen from one on


def test_a_consumer_that_pauses_stops_the_reading(cluster: Connection) -> None:
    source = Counted()
    stream = iter(parallel(source, partition_size=5).map(abs))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    before = source.read
    time.sleep(0.5)
    assert source.read == before
    assert [next(stream) for _ in range(20)] == list(range(3, 23))
    assert source.read > before


def test_an_iterator_that_is_not_drawn_from_reads_nothing(cluster: Connection) -> None:
    source = Counted()
    iter(parallel(source).map(abs))
    assert source.read == 0


# Every element once -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 7, 10_000])
def test_each_function_runs_once_for_each_element(cluster: Connection, tmp_path: Path, size: Any) -> None:
    trace = tmp_path / "trace"
    numbers = parallel(range(300), partition_size=size).map(lambda x: (append(trace, f"f {x}"), x)[1])
    chain = numbers.filter(lambda x: (append(trace, f"g {x}"), x % 2)[1])
    assert list(chain) == list(range(1, 300, 2))
    assert Counter(lines(trace)) == Counter(f"{step} {x}" for x in range(300) for step in "fg")


def test_an_element_goes_through_the_chain_before_the_next_starts(
    cluster: Connection, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"

    def noting(step: str) -> Callable[[Any], Any]:
        return lambda x: (append(trace, f"{step}{x}"), x)[1]

    chain = parallel([1, 2, 3], partition_size=3).map(noting("a")).filter(noting("b"))
    pairs = chain.flatmap(lambda x: (noting("c")(10 * x + i) for i in (1, 2)))
    assert list(pairs.map(noting("d"))) == [11, 12, 21, 22, 31, 32]
    expected = [f"a{x} b{x} c{x}1 d{x}1 c{x}2 d{x}2".split() for x in (1, 2, 3)]
    assert lines(trace) == list(itertools.chain(*expected))


# Leaving early ------------------------------------------------------------------------------------


def leave_by_break(stream: Iterator[Any]) -> None:
    for _ in stream:
        break


def leave_by_error(stream: Iterator[Any]) -> None:
    with suppress(KeyError):
        for _ in stream:
            raise KeyError


def leave_by_close(stream: Iterator[Any]) -> None:
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert list(stream) == []


def leave_by_collection(stream: Iterator[Any]) -> None:
    cycle: list[Any] = [stream]
    cycle.append(cycle)
    next(cycle[0])


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error, leave_by_close, leave_by_collection])
def test_an_iterator_that_is_left_cancels_what_has_not_begun(
    cluster: Connection, tmp_path: Path, leave: Callable[[Iterator[Any]], None]
) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"

    def held(x: int) -> int:
        append(begun, x)
        if x > 1:
            wait_for_file(gate)
        return x

    streams = [iter(parallel(range(100), partition_size=1).map(held))]
    assert next(streams[0]) == 0
    # Each worker is at one when the iterator is left, and has others that it has not begun.
    assert eventually(lambda: len(lines(begun)) == 2 + THREADS, 20)
    started = lines(begun)
    leave(streams.pop())
    gc.collect()
    settle(cluster)
    gate.touch()
    assert list(parallel(range(20), partition_size=1).map(abs)) == list(range(20))
    assert lines(begun) == started


def test_a_generator_that_we_called_for_is_closed_with_the_iterator(cluster: Connection) -> None:
    ended = []

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            ended.append("source")

    stream = iter(parallel(source).map(abs))
    assert next(stream) == 0
    assert not ended
    stream.close()  # type: ignore[attr-defined]
    gc.collect()
    assert ended == ["source"]


def test_a_generator_of_the_user_s_own_stays_open(cluster: Connection) -> None:
    """Whoever made it may draw the rest; what was read ahead is gone."""
    source = (x for x in range(100))
    assert parallel(source, partition_size=1).map(abs).take(1) == [0]
    rest = list(source)
    assert rest == list(range(100 - len(rest), 100))
    assert len(rest) >= 100 - WINDOW


# Several at once ----------------------------------------------------------------------------------


def test_iterators_of_one_collection_and_of_others_take_turns(cluster: Connection) -> None:
    squares = parallel(range(300)).map(lambda x: x * x)
    cubes = parallel(range(300), partition_size=7).map(lambda x: x**3)
    assert list(zip(squares, cubes, squares, strict=True)) == [(x * x, x**3, x * x) for x in range(300)]


def test_loops_may_be_nested(cluster: Connection) -> None:
    inner = parallel("abc").map(str.upper)
    pairs = [(x, y) for x in parallel(range(5)).map(abs) for y in inner]
    assert pairs == [(x, y) for x in range(5) for y in "ABC"]


def test_threads_evaluate_side_by_side(cluster: Connection) -> None:
    shared = parallel(range(500)).map(lambda x: x + 1)

    def evaluate(n: int) -> tuple[list[int], int]:
        return list(parallel(range(n, n + 200)).map(abs)), sum(shared)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(evaluate, range(8)))
    assert results == [(list(range(n, n + 200)), sum(range(501))) for n in range(8)]


def test_an_iterator_may_move_between_threads(cluster: Connection) -> None:
    stream = iter(parallel(range(100), partition_size=3).map(abs))
    with ThreadPoolExecutor(1) as pool:
        got = [x for _ in range(25) for x in (next(stream), pool.submit(next, stream).result(30))]
        assert got == list(range(50))
        pool.submit(stream.close).result(30)  # type: ignore[attr-defined]
    assert list(stream) == []
    settle(cluster)


def test_leaving_one_iterator_again_and_again_does_not_disturb_another(cluster: Connection) -> None:
    """A result that is on its way to one evaluation may share its message with another's."""
    done = threading.Event()
    results: list[list[int]] = []

    def consume() -> None:
        while not done.is_set():
            results.append(list(parallel(range(100), partition_size=5).map(lambda x: x + 1)))

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    for _ in range(25):
        for x in parallel(itertools.count(), partition_size=10).map(lambda x: bytes(100_000)):
            assert len(x) == 100_000
            break
    done.set()
    thread.join(20)
    assert not thread.is_alive(), "an evaluation hangs since another one was left"
    assert results
    assert all(result == list(range(1, 101)) for result in results)


# Live sources -------------------------------------------------------------------------------------


def test_a_source_may_wait_for_results_a_window_behind(cluster: Connection) -> None:
    """Element i may depend on result i - WINDOW; on a later one it cannot, as its reader is the consumer."""
    got: list[int] = []
    behind: list[bool] = []

    def live() -> Iterator[int]:
        for i in range(100):
            if i >= WINDOW:
                behind.append(got[i - WINDOW] == i - WINDOW)
            yield i

    for x in parallel(live, partition_size=1).map(abs):
        got.append(x)
    assert got == list(range(100))
    assert behind == [True] * (100 - WINDOW)


# Sizes --------------------------------------------------------------------------------------------


def test_the_first_result_of_a_slow_function_comes_at_once(cluster: Connection, tmp_path: Path) -> None:
    """It does not wait for its neighbours: they run until the consumer has it."""
    gate = tmp_path / "gate"

    def held(x: int) -> int:
        if x > 0:
            wait_for_file(gate)
        return x

    stream = iter(parallel(range(10)).map(held))
    assert next(stream) == 0
    gate.touch()
    assert list(stream) == list(range(1, 10))


def test_partitions_of_a_cheap_function_grow(cluster: Connection) -> None:
    chain = parallel(range(200_000)).map(lambda x: x + 1)
    assert sum(chain) == sum(range(200_001))
    assert chain.stats.partitions <= 200
    assert chain.stats.elements_in == 200_000


def test_a_partition_that_takes_too_long_is_cut(
    cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cheap elements make the partitions large; dear ones follow, and their partition is shared out."""
    cuts = []
    rest_of = StreamFeed.rest_of

    def noted(feed: StreamFeed, job: Any, outcome: Any) -> Any:
        rest = rest_of(feed, job, outcome)
        cuts.append((job.size, outcome.read, len(rest)))
        return rest

    monkeypatch.setattr(StreamFeed, "rest_of", noted)
    trace = tmp_path / "trace"

    def skewed(x: int) -> int:
        if 15_000 <= x < 15_020:
            append(trace, x)
            time.sleep(0.1)
        return x

    chain = parallel(range(20_000)).map(skewed)
    assert list(chain) == list(range(20_000))
    assert cuts
    assert all(0 < read < size and read + rest == size for size, read, rest in cuts)
    assert Counter(lines(trace)) == Counter(map(str, range(15_000, 15_020)))
    assert chain.stats.elements_in == chain.stats.elements_out == 20_000


# Counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 7, 1000])
def test_in_is_out_and_filtered_and_failed(cluster: Connection, size: Any) -> None:
    chain = (
        parallel(range(100), partition_size=size)
        .map(lambda x: x - 60)
        .filter(lambda x: x % 3)
        .map(lambda x: 1 / x if x != 20 else 1 / 0)
        .filter(lambda y: y > 0)
    )
    with pytest.raises(ZeroDivisionError):
        list(chain)
    stats = chain.stats
    first, odd, divided, positive = stats.steps
    assert (stats.failed, divided.failed) == (1, 1)
    assert first.entered == first.left == odd.entered == stats.elements_in
    assert (odd.left, divided.left) == (divided.entered, positive.entered)
    assert divided.entered == divided.left + 1
    assert positive.left == stats.elements_out
    filtered = odd.entered - odd.left + positive.entered - positive.left
    assert stats.elements_in == stats.elements_out + filtered + stats.failed


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.integers(-5, 5), max_size=40),
    size=st.sampled_from(["auto", 1, 3]),
    bad=st.integers(-5, 20),
)
def test_counts_add_up_for_any_elements(numbers: list[int], size: Any, bad: int) -> None:
    def check(x: int) -> int:
        if x == bad:
            raise ValueError(x)
        return x

    from parcoll import connect

    with connect("inline"):
        chain = parallel(numbers, partition_size=size).filter(None).map(check).filter(lambda x: x > 0)
        try:
            assert list(chain) == [x for x in numbers if x > 0]
        except ValueError:
            assert bad in numbers
    true, checked, positive = chain.stats.steps
    filtered = true.entered - true.left + positive.entered - positive.left
    assert chain.stats.elements_in == chain.stats.elements_out + filtered + chain.stats.failed
    assert checked.entered == checked.left + checked.failed


# buffersize ---------------------------------------------------------------------------------------

CHAINS: dict[str, Callable[[Any], Any]] = {
    "map": lambda numbers: numbers.map(abs),
    "filter": lambda numbers: numbers.filter(lambda x: x % 3),
    "flatmap": lambda numbers: numbers.flatmap(lambda x: [x] * (x % 3)),
    "unordered": lambda numbers: numbers.map(abs).unordered(),
    "skipping": lambda numbers: numbers.map(lambda x: x // (x % 3), on_error="skip"),
}


@pytest.mark.parametrize(("buffersize", "size"), [(1, "auto"), (5, 1), (20, "auto"), (20, 7)])
def test_no_more_than_the_buffersize_is_read_and_not_yielded(
    cluster: Connection, buffersize: int, size: Any
) -> None:
    """As in `Executor.map`: counted in elements of the source, however many results are made of them."""
    read: list[int] = []

    def source() -> Iterator[int]:
        for x in range(60):
            read.append(x)
            yield x

    for chain in CHAINS.values():
        results, read[:] = [], []
        for x in chain(parallel(source, buffersize=buffersize, partition_size=size)):
            if chain is CHAINS["map"] or chain is CHAINS["unordered"]:
                assert len(read) - len(results) <= buffersize
            results.append(x)
        assert sorted(results) == sorted(chain(parallel(range(60))))
        assert read == list(range(60))


def test_a_buffersize_holds_whatever_takes_the_results(cluster: Connection, tmp_path: Path) -> None:
    numbers = parallel(range(100), buffersize=3)
    assert numbers.reduce(lambda a, b: a + b) == numbers.fold(lambda a, b: a + b, 0) == 4950
    assert (numbers.count(), numbers.take(5), numbers.first()) == (100, [0, 1, 2, 3, 4], 0)
    assert list(parallel(range(100), buffersize=3, checkpoint=tmp_path / "saved").map(abs)) == [*range(100)]
    assert list(parallel(range(100), buffersize=3, checkpoint=tmp_path / "saved").map(abs)) == [*range(100)]
    numbers.foreach(lambda x: -x)
    assert list(numbers) == [-x for x in range(100)]
    with pytest.raises(TypeError, match="buffersize= needs a source that is read here"):
        parallel(dask.bag.from_sequence([1]), buffersize=3)


def test_a_buffersize_holds_inline_too(inline: Connection) -> None:
    source = Counted()
    stream = iter(parallel(source, buffersize=2).map(abs))
    for x in range(20):
        assert next(stream) == x
        assert source.read - x <= 2


def test_few_elements_of_a_slow_function_are_read_ahead(cluster: Connection) -> None:
    """What keeps two workers busy for some seconds, and not what would do so for a cheap function."""
    source = Counted()
    stream = iter(parallel(source).map(lambda x: time.sleep(0.01)))
    for _ in itertools.islice(stream, 20):
        assert source.read <= 1500
