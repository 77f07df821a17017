"""`memory_limit=` holds, and what is too large for a worker is named, and costs nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import psutil
import pytest
from test_failing_elements import check_sums, drained

from parcoll import Connection, SerializationError, WorkerLostError, connect, parallel
from parcoll.worker.this_worker import Room, memory_limit

LIMIT = 400 * 2**20  # bytes of a worker


@pytest.fixture(scope="module")
def small(leaves_no_trace: None) -> Iterator[Connection]:
    """Two workers with a memory limit."""
    with connect(n_workers=2, memory_limit=LIMIT) as connection:
        yield connection


def take_memory() -> None:
    held = []
    while True:
        held.append(bytearray(20 * 2**20))
        time.sleep(0.005)


@pytest.mark.parametrize("size", [1, 40, "auto"])
def test_a_function_that_needs_too_much(small: Connection, size: Any) -> None:
    chain = parallel(range(40), on_error="skip", partition_size=size)
    chain = chain.map(lambda x: take_memory() if x == 23 else x)
    assert list(chain) == [x for x in range(40) if x != 23]
    (error,) = chain.errors
    assert (error.index, error.attempts) == (23, 2)
    message = (
        r"map\(lambda\) ends the process that runs it, at element 23: it was ended, since it held (\d+) MiB, "
    )
    message += r"and memory_limit leaves it (\d+) MiB \(raise memory_limit, or have it hold less\)"
    told = re.fullmatch(message, str(error.exception))
    assert told is not None, error.exception
    held, most = map(int, told.groups())
    assert LIMIT / 2 <= most * 2**20 <= LIMIT
    assert held >= most
    check_sums(chain.stats)


def test_what_grows_from_element_to_element_is_no_element_s_fault(small: Connection) -> None:
    """A function that keeps what it made: its process is ended now and then, and no result is lost."""
    kept: list[bytes] = []

    def work(x: int) -> int:
        kept.append(b"x" * (16 * 2**20))  # zeros would take no memory
        time.sleep(0.02)
        return x

    chain = parallel(range(120), partition_size=60).map(work)
    assert list(chain) == list(range(120))
    assert chain.stats.deaths >= 2
    check_sums(chain.stats)


def test_a_worker_knows_its_limit(small: Connection) -> None:
    assert memory_limit() == float("inf")  # here
    assert parallel([1]).map(lambda _: memory_limit()).first() == LIMIT
    assert small.engine.memory_limit() == LIMIT
    found = [parallel([1], timeout=timeout).map(lambda _: Room()._bytes).first() for timeout in (None, 60)]
    assert 0 < found[0] < LIMIT / 8
    assert found[1] == float("inf"), "a process beside a worker asks it for nothing"
    assert small.engine.connected().memory_limit() == LIMIT


def test_a_partition_stops_where_its_results_have_taken_much() -> None:
    """The first ones are of many elements: nobody knows yet that each of these makes 64 KiB."""
    with connect(n_workers=2, memory_limit=LIMIT // 2):
        chain = parallel(range(6000)).map(lambda x: (x % 400, x, b"x" * 2**16))  # zeros would take no memory
        groups = chain.group_by(itemgetter(0))
        assert sum(len(elements) for _, elements in groups) == 6000
        assert groups.stats.deaths == 0


def test_elements_and_results_too_large_for_a_worker_are_named(small: Connection) -> None:
    large = LIMIT * 3 // 4
    found, raised = drained(parallel(bytes(large) if x == 5 else x for x in range(9)).map(lambda x: x))
    assert found == list(range(5))
    assert isinstance(raised, SerializationError)
    assert str(raised).startswith(
        "element 5 of the source takes 300 MiB packed, and a worker, which may hold 400"
    )
    found, raised = drained(parallel(range(9), partition_size=3).map(lambda x: bytes(large) if x == 5 else x))
    assert found == list(range(5))
    assert isinstance(raised, WorkerLostError)
    assert str(raised).startswith(
        "the result of element 5 ends the process that packs it: it was ended, since"
    )
    found, raised = drained(
        parallel(range(9), partition_size=3, timeout=60).map(lambda x: bytes(LIMIT // 3) if x == 5 else x)
    )
    assert found == list(range(5))
    assert isinstance(raised, SerializationError)
    assert str(raised).startswith(
        "the result of element 5 takes 133 MiB packed, and its worker, which may hold"
    )
    several = [bytes(LIMIT // 10) for _ in range(8)]
    with pytest.raises(
        SerializationError, match=r"partition of 8 elements from element 0 .* a smaller partition_size"
    ):
        list(parallel(several, partition_size=8).map(len))
    assert list(parallel(several).map(len)) == [LIMIT // 10] * 8


def test_kept_results_of_a_worker_that_grew_too_large_are_made_again(small: Connection) -> None:
    numbers = parallel(range(40), partition_size=10)
    numbers.foreach(lambda x: x + 1)
    with pytest.raises(WorkerLostError):
        list(parallel([1]).map(lambda x: take_memory()))
    assert list(numbers) == list(range(1, 41))


@contextlib.contextmanager
def watched(peaks: dict[int, int]) -> Iterator[None]:
    """Note the most that each process takes meanwhile, in bytes of its own: of this one, what comes to it."""
    me, ended = psutil.Process(), threading.Event()
    before = own_bytes(me)

    def watch() -> None:
        while not ended.wait(0.02):
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    takes = own_bytes(process) - (before if process == me else 0)
                    peaks[process.pid] = max(peaks.get(process.pid, 0), takes)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def own_bytes(process: psutil.Process) -> int:
    found = process.memory_info()
    return int(found.rss - found.shared)


LITTLE = 256 * 2**20  # bytes of a worker, which takes 90 of them with nothing to do
LARGE = 128 * 1024  # bytes of an element


@pytest.mark.slow
@pytest.mark.parametrize("keys", [60, 3_000])
def test_four_times_as_much_as_the_cluster_may_hold_is_grouped_and_sorted(keys: int) -> None:
    """Of 60 keys, a group is 34 MiB. What lies on the disk meanwhile is told, and gone afterwards."""
    count = 4 * 2 * LITTLE // LARGE

    def make(x: int) -> tuple[int, int, bytes]:
        return x * 7919 % keys, x, bytes(LARGE)

    peaks: dict[int, int] = {}
    with connect(n_workers=2, memory_limit=LITTLE), watched(peaks):
        chain = parallel(range(count)).map(make)
        groups = chain.group_by(itemgetter(0))
        number = 0
        for at, (key, elements) in enumerate(groups):
            assert key == at * 7919 % keys
            assert [x for _, x, _ in elements] == [*range(at, count, keys)]
            number += len(elements)
        assert number == count
        assert groups.stats.bytes_spilled > 2 * 2 * LITTLE
        sizes = [(key, len(range(key * pow(7919, -1, keys) % keys, count, keys))) for key in range(keys)]
        assert sorted(groups.map(lambda group: (group[0], len(group[1])))) == sizes, "which go out again"
        expected = sorted((x * 7919 % keys, x) for x in range(count))
        assert [element[:2] for element in chain.sorted(itemgetter(0))] == expected
    assert max(takes for pid, takes in peaks.items() if pid != os.getpid()) < 2 * LITTLE
    assert peaks[os.getpid()] < 2 * LITTLE, "the script holds what the cluster may not"
