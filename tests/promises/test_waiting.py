"""`concurrency=`: so many calls at the same time, over the whole cluster, in threads of the workers."""

from __future__ import annotations

import functools
import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare import bare_cluster
from pages import Pages, collect, fetch, fetch_async, most_within, starts_of
from scripts import append, eventually, lines

from parcoll import Connection, ElementError, connect, parallel, per_worker


def is_at_rest(server: Pages) -> bool:
    """Tell whether nobody asks for anything, over some time."""
    asked = len(server.asked)
    time.sleep(0.2)
    return server.now == 0 and len(server.asked) == asked


def seconds_of(number: int) -> float:
    """Return how long a page takes: 5 to 20 ms, in no order."""
    return 0.005 + number * 7919 % 16 / 1000


def get(port: int, number: int) -> int:
    return fetch(port, number, seconds_of(number))


async def get_async(port: int, number: int) -> int:
    return await fetch_async(port, number, seconds_of(number))


@pytest.mark.usefixtures("place")
def test_so_many_calls_run_at_the_same_time_and_results_keep_their_order(server: Pages):
    server.forget()
    port = server.port
    found = parallel(range(300)).map(lambda n: get(port, n), concurrency=30)
    assert list(found) == list(range(300))
    assert sorted(server.asked) == list(range(300))
    assert 15 < server.most <= 30
    (step,) = found.stats.steps
    assert (step.label, step.entered, step.left) == ("map(lambda n: get(port, n))", 300, 300)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_calls_than_threads_of_workers(cluster: Connection, server: Pages, n: int):
    server.forget()
    port = server.port
    numbers = parallel(range(20), partition_size=3).map(lambda n: get(port, n), concurrency=n)
    assert sorted(numbers.unordered()) == list(range(20))
    assert list(numbers) == list(range(20))
    assert server.most <= n


def test_each_kind_of_step_has_it(place: Connection):
    numbers = parallel(range(50))
    assert list(numbers.filter(lambda x: x % 3, concurrency=7)) == [x for x in range(50) if x % 3]
    assert list(parallel([0, 1, "", "a", None]).filter(None, concurrency=2)) == [1, "a"]
    assert list(numbers.flatmap(range, concurrency=7)) == [y for x in range(50) for y in range(x)]
    numbers.foreach(lambda x: -x, concurrency=7)
    assert list(numbers) == [-x for x in range(50)]
    assert numbers.map(abs, concurrency=4).reduce(int.__add__) == sum(range(50))
    assert numbers.map(abs, concurrency=4).count() == 50
    assert numbers.map(abs, concurrency=4).take(3) == [0, 1, 2]


def test_functions_run_in_threads_of_their_own_and_steps_beside_them_in_that_of_the_task(place: Connection):
    def both(x: int) -> tuple[bool, bool]:
        return x, threading.current_thread() is threading.main_thread()

    found = list(parallel(range(40)).map(lambda x: x).map(both).map(lambda p: (p, both(0)[1]), concurrency=4))
    assert {main for (_, main), _ in found} == {True}
    assert {main for _, main in found} == {False}


def test_threads_that_make_calls_keep_their_own_objects_and_end_them(place: Connection, tmp_path: Path):
    """A connection of sqlite may be closed by its own thread alone."""

    @per_worker(scope="thread")
    def database() -> Iterator[sqlite3.Connection]:
        append(tmp_path / "made", f"{os.getpid()} {threading.current_thread().name}")
        connection = sqlite3.connect(":memory:")
        yield connection
        connection.close()
        append(tmp_path / "ended", "")

    def ask(x: int) -> int:
        time.sleep(0.01)
        return int(database().execute("select ?", (x,)).fetchone()[0])

    chain = parallel(range(64)).map(ask, concurrency=4)
    for _ in range(3):
        assert list(chain) == list(range(64))
    made = lines(tmp_path / "made")
    assert all("parcoll-call" in name for name in made)
    assert len(made) <= 24, "some tasks begin while the threads of the last one are just going to be free"
    assert chain.take(2) == [0, 1]
    names = parallel(range(4), partition_size=1).flatmap(lambda _: [t.name for t in threading.enumerate()])

    def all_ended() -> bool:
        database.close()  # what `take` has left on its way makes objects for a moment longer
        ended = len(lines(tmp_path / "ended")) == len(lines(tmp_path / "made"))
        return ended and not [name for name in names if "parcoll-call" in name]

    assert eventually(all_ended, 20)


def test_a_call_that_takes_long_holds_up_no_other(place: Connection):
    def slow_first(x: int) -> tuple[int, float]:
        time.sleep(0.3 if x == 0 else 0.001)
        return x, time.monotonic()

    times = dict(parallel(range(12), partition_size=12).map(slow_first, concurrency=6))
    assert all(times[x] < times[0] for x in range(1, 12))


def test_the_first_failure_in_the_order_of_the_source_ends_it(place: Connection, server: Pages):
    """60 calls are under way when the fifth fails; one behind it has failed before."""
    server.forget()
    port = server.port

    def one(n: int) -> int:
        if n == 9:
            raise KeyError("too early")
        time.sleep(0.05 if n == 5 else 0.0)
        if n == 5:
            raise ValueError("the fifth")
        return fetch(port, n, 0.1)

    stream = iter(parallel(range(2000), partition_size=1000).map(one, concurrency=120))
    found: list[int] = []
    with pytest.raises(ValueError, match="the fifth") as raised:
        collect(stream, found)
    assert found == [0, 1, 2, 3, 4]
    assert raised.value.__notes__ == ["in step 1 of 1, map(one), at element 5: 5"]
    assert len(server.asked) < 500, "others were begun after the failure"


def test_failures_name_their_elements_in_all_steps(place: Connection):
    def odd(x: int) -> int:
        time.sleep(x * 7919 % 5 / 1000)
        if x % 10 == 3:
            raise ValueError(x)
        return x

    def behind(x: int) -> int:
        if x % 10 == 4:
            raise KeyError(x)
        return x

    def before(x: int) -> int:
        if x % 10 == 5:
            raise OSError(x)
        return x

    chain = parallel(range(100), on_error="skip").map(before).map(odd, concurrency=8).map(behind)
    found = chain.map(lambda x: x, concurrency=3)
    assert list(found) == [x for x in range(100) if x % 10 not in (3, 4, 5)]
    kinds = {3: ("ValueError", "map(odd)"), 4: ("KeyError", "map(behind)"), 5: ("OSError", "map(before)")}
    assert [(e.index, e.element, type(e.exception).__name__, e.step) for e in found.errors] == [
        (x, x, *kinds[x % 10]) for x in range(100) if x % 10 in kinds
    ]
    stats = found.stats
    assert (stats.elements_in, stats.failed, stats.elements_out) == (100, 30, 70)


def test_elements_of_a_flatmap_before_it_are_named_by_their_source(place: Connection):
    def odd(pair: tuple[int, int]) -> int:
        time.sleep(sum(pair) * 7919 % 5 / 1000)
        if pair == (7, 2):
            raise ValueError(pair)
        return pair[0]

    pairs = parallel(range(20)).map(abs, concurrency=3).flatmap(lambda x: [(x, i) for i in range(4)])
    found = pairs.map(odd, concurrency=6, on_error="skip")
    assert list(found) == [x for x in range(20) for i in range(4) if (x, i) != (7, 2)]
    assert [(error.index, error.element) for error in found.errors] == [(7, (7, 2))]


def test_batches_behind_it_name_their_elements(place: Connection):
    def some(batch: list[int]) -> list[int]:
        if any(x % 10 == 4 for x in batch):
            raise ValueError(batch)
        return batch

    def one(x: int) -> int:
        time.sleep(x * 7919 % 5 / 1000)
        if x % 10 == 7:
            raise KeyError(x)
        return x

    numbers = parallel(range(60), partition_size=30, on_error="skip")
    found = numbers.map(one, concurrency=5).map_batches(some, 7)
    assert list(found) == [x for x in range(60) if x % 10 not in (4, 7)]
    assert [(e.index, e.element) for e in found.errors] == [(x, x) for x in range(60) if x % 10 in (4, 7)]
    assert list(numbers.map_batches(some, 7).map(one, concurrency=5)) == list(found)


@pytest.mark.parametrize("ends", [12, 40])
def test_a_failure_before_it_comes_after_the_results_that_are_under_way(place: Connection, ends: int):
    """And one in it comes first, where its element does."""

    def before(x: int) -> int:
        if x == 20:
            raise KeyError(x)
        return x

    def slow(x: int) -> int:
        time.sleep(0.01)
        if x == ends:
            raise ValueError(x)
        return x

    found: list[int] = []
    chain = parallel(range(50), partition_size=50).map(before).map(slow, concurrency=10)
    with pytest.raises(ValueError if ends < 20 else KeyError) as raised:
        collect(chain, found)
    assert found == list(range(min(ends, 20)))
    assert f"at element {min(ends, 20)}" in raised.value.__notes__[0]
    assert chain.stats.failed == 1


def test_retries_and_replacements(place: Connection, tmp_path: Path):
    def flaky(x: int) -> int:
        append(tmp_path / str(x), "call")
        if x % 4 == 0 and len(lines(tmp_path / str(x))) < 3:
            raise OSError(x)
        if x == 5:
            raise ValueError(x)
        return x

    def replaced(error: ElementError) -> str:
        return f"{error.index} after {error.attempts}"

    chain = parallel(range(12)).map(flaky, concurrency=6, retries=3, retry_on=OSError, on_error=replaced)
    assert list(chain) == [*range(5), "5 after 1", *range(6, 12)]
    (step,) = chain.stats.steps
    assert (step.retries, step.failed, step.replaced) == (6, 1, 1)


def test_what_retry_on_raises_names_the_element(place: Connection):
    def broken(error: Exception) -> bool:
        raise RuntimeError("cannot tell")

    with pytest.raises(RuntimeError, match="cannot tell") as raised:
        list(parallel([1, 0]).map(lambda x: 1 // x, concurrency=2, retries=1, retry_on=broken))
    assert "in retry_on=" in raised.value.__notes__[0]
    assert "at element 1" in raised.value.__notes__[0]


def test_an_iterable_that_fails_halfway_keeps_what_it_gave(place: Connection):
    def half(x: int) -> Iterator[int]:
        yield x
        if x == 2:
            raise ValueError(x)
        yield x

    found = parallel(range(4)).flatmap(half, concurrency=3, on_error=lambda error: -error.index)
    assert list(found) == [0, 0, 1, 1, 2, -2, 3, 3]


def test_a_timeout_of_threads_is_refused_and_one_beside_them_holds(cluster: Connection):
    with pytest.raises(
        ValueError, match=r"timeout=5 cannot stop one of several calls in threads, .*=3 makes"
    ):
        parallel(range(3), timeout=5).map(abs, concurrency=3)
    with pytest.raises(ValueError, match=r"which rate=\(3, 1\) makes of abs: make it an `async def`"):
        parallel(range(3)).map(abs, timeout=5, rate=(3, 1))

    def slow(x: int) -> int:
        time.sleep(30 if x == 11 else 0)
        return x

    fetched = parallel(range(30), partition_size=15).map(lambda x: time.sleep(0.01) or x, concurrency=8)
    found = fetched.map(slow, timeout=0.5, on_error="skip")
    assert list(found) == [x for x in range(30) if x != 11]
    assert [(error.index, error.step) for error in found.errors] == [(11, "map(slow)")]


def test_a_call_that_ends_its_process_costs_its_own_element(cluster: Connection):
    def deadly(x: int) -> int:
        if x == 7:
            os._exit(3)
        time.sleep(0.01)
        return x

    found = parallel(range(20), partition_size=10).map(deadly, concurrency=8, on_error="skip")
    assert list(found) == [x for x in range(20) if x != 7]
    assert [(error.index, type(error.exception).__name__) for error in found.errors] == [
        (7, "WorkerLostError")
    ]


def test_a_half_consumed_iterator_leaves_nothing_running(place: Connection, server: Pages):
    server.forget()
    port = server.port
    stream = iter(parallel(range(10**9)).map(lambda n: fetch(port, n, 0.01), concurrency=16))
    assert [next(stream) for _ in range(5)] == list(range(5))
    stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: is_at_rest(server), 20)


def test_a_slow_consumer_bounds_what_is_called(place: Connection, server: Pages):
    server.forget()
    port = server.port
    numbers = parallel(range(10**9), buffersize=40).map(lambda n: fetch(port, n), concurrency=8)
    stream = iter(numbers)
    for _ in range(3):
        next(stream)
    time.sleep(0.3)
    assert len(server.asked) <= 3 + 40 + 8
    stream.close()  # type: ignore[attr-defined]


def test_a_checkpoint_holds_whatever_the_concurrency(inline: Connection, tmp_path: Path):
    def half(x: int) -> int:
        append(tmp_path / "calls", str(x))
        return x

    for settings in ({"concurrency": 5}, {}, {"concurrency": 9}):
        numbers = parallel(range(100), checkpoint=tmp_path / "saved", partition_size=20)
        assert list(numbers.map(half, **settings)) == list(range(100))
    assert sorted(map(int, lines(tmp_path / "calls"))) == list(range(100))


def test_the_verdict_tells_where_calls_wait_one_by_one(place: Connection):
    def wait(x: int) -> int:
        time.sleep(0.06)
        return x

    def work(x: int) -> int:
        end = time.thread_time() + 0.06
        while time.thread_time() < end:
            pass
        return x

    one_by_one, busy = parallel(range(50)).map(wait), parallel(range(50)).map(work)
    assert [one_by_one.count(), busy.count()] == [50, 50]
    assert one_by_one.stats.verdict.endswith(
        " of the workers' time, and waits for most of it: with concurrency=, several of its calls run at the "
        "same time"
    )
    assert busy.stats.verdict.endswith("% of the workers' time")
    assert one_by_one.stats.busy_seconds < 0.2 * one_by_one.stats.worker_seconds
    together = parallel(range(60)).map(wait, concurrency=2)
    assert together.count() == 60
    assert together.stats.verdict.endswith("% of the workers' time")
    assert together.count_by(bool) == {False: 1, True: 59}
    assert together.stats.steps[0].waits, "behind an operation, too"


@pytest.mark.parametrize("given", [0, -1, True])
def test_a_number_is_wanted(given: Any):
    with pytest.raises(ValueError, match="concurrency must be None or a whole number from 1 up, got"):
        parallel([1]).map(abs, concurrency=given)
    with pytest.raises(TypeError, match="concurrency must be None or a whole number from 1 up, got"):
        parallel([1]).filter(None, concurrency=math.inf)


def test_never_more_over_bare_workers_of_which_one_joins_and_one_is_killed(server: Pages, tmp_path: Path):
    server.forget()
    with bare_cluster(tmp_path / "bare", 2) as bare, connect(bare.address):
        doomed = [bare.add_worker("--nthreads", "2")]
        bare.wait_for_workers(3)
        for func in (get, get_async):
            numbers = parallel(range(1000)).map(functools.partial(func, server.port), concurrency=20)
            found = []
            for number in numbers:
                found.append(number)
                if number == 200:
                    doomed.append(bare.add_worker("--nthreads", "2"))
                    bare.wait_for_workers(4)
                if number == 400:
                    doomed.pop(0).send_signal(signal.SIGKILL)
            assert found == list(range(1000))
            assert 10 <= server.most <= 20

        def note(x: int) -> int:
            append(tmp_path / "starts", f"{time.monotonic()}")
            time.sleep(0.02)
            return x

        found = []
        for x in parallel(range(200)).map(note, concurrency=30, rate=(30, 0.5)):
            found.append(x)
            if x == 40:
                bare.add_worker("--nthreads", "2")
                bare.wait_for_workers(3)
            if x == 80:
                doomed.pop().send_signal(signal.SIGKILL)
        assert found == list(range(200))
        starts = starts_of(tmp_path / "starts")
        assert len(starts) >= 200
        assert most_within(starts, 0.5) <= 30
