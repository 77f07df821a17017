"""A function finds in a worker the thread, the signals and the family of processes that a script has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import distributed
import pytest
from scripts import append, lines

import parcoll
from parcoll import Connection, connect, parallel


@pytest.fixture(scope="module", autouse=True)
def tracker(leaves_no_trace: None) -> Iterator[None]:
    """Have a process that tracks this one's shared memory, and end it with the module."""
    resource_tracker.ensure_running()
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


WAYS = {"in the worker": {}, "beside it": {"timeout": 60}}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, cluster: Connection) -> dict[str, Any]:
    """Settings by which functions run in the workers, or in processes beside them."""
    return WAYS[request.param]


def in_main_thread(_: object = None) -> bool:
    return threading.current_thread() is threading.main_thread() and sys.getrecursionlimit() > 0


# The main thread ----------------------------------------------------------------------------------


def test_functions_run_in_the_main_thread(way: dict[str, Any]) -> None:
    assert all(parallel(range(100), partition_size=5, **way).map(in_main_thread))
    assert (
        parallel(range(100), **way).filter(in_main_thread).flatmap(lambda x: [in_main_thread()]).count()
        == 100
    )
    assert (
        parallel(range(100), **way).fold(lambda n, _: n + in_main_thread(), 0, combine=lambda a, b: a + b)
        == 100
    )


def test_so_do_those_of_evaluations_within_functions(cluster: Connection) -> None:
    def outer(n: int) -> tuple[bool, list[bool], bool]:
        before = in_main_thread()
        inner = list(parallel(range(6), partition_size=1).map(in_main_thread))
        return before, inner, in_main_thread()

    found = list(parallel(range(8), partition_size=1).map(outer))
    assert found == [(True, [True] * 6, True)] * 8

    def outermost(n: int) -> list[Any]:
        return list(parallel(range(3), partition_size=1).map(outer))

    assert list(parallel(range(4), partition_size=1).map(outermost)) == [found[:3]] * 4


def test_an_outer_function_begins_when_the_one_before_has_ended(cluster: Connection, tmp_path: Path) -> None:
    """As in a script's own loop: what they keep in globals is not used by two at a time."""

    def outer(n: int) -> int:
        append(tmp_path / str(os.getpid()), "begin")
        total: int = parallel(range(5), partition_size=1).map(lambda x: x).reduce(lambda a, b: a + b)
        append(tmp_path / str(os.getpid()), "end")
        return total

    assert list(parallel(range(10), partition_size=1).map(outer)) == [10] * 10
    for file in tmp_path.iterdir():
        assert lines(file) == ["begin", "end"] * (len(lines(file)) // 2)


def test_one_worker_is_enough_for_evaluations_within_evaluations() -> None:
    def total(n: int) -> int:
        found: int = parallel(range(n), partition_size=1).map(lambda x: x).reduce(lambda a, b: a + b)
        return found

    def totals(n: int) -> int:
        return sum(parallel(range(2, n), partition_size=1).map(total))

    with connect(n_workers=1):
        assert list(parallel(range(4, 9), partition_size=1).map(totals)) == [4, 10, 20, 35, 56]


def test_signals_have_handlers(way: dict[str, Any]) -> None:
    def within_half_a_second(seconds: float) -> str:
        def too_late(*_: object) -> None:
            raise TimeoutError("too late")

        signal.signal(signal.SIGALRM, too_late)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            time.sleep(seconds)
            return "done"
        except TimeoutError as error:
            return str(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    assert list(parallel([0, 20, 0, 20], **way).map(within_half_a_second)) == ["done", "too late"] * 2


def test_a_function_hears_a_signal_that_it_asks_for(way: dict[str, Any]) -> None:
    def heard(number: int) -> list[int]:
        found: list[int] = []
        before = signal.signal(number, lambda number, _: found.append(number))
        os.kill(os.getpid(), number)
        signal.signal(number, before)
        return found

    numbers = [signal.SIGINT, signal.SIGUSR1, signal.SIGALRM]
    assert list(parallel(numbers, **way).map(heard)) == [[number] for number in numbers]


def test_an_alarm_that_a_function_leaves_comes_to_no_other_partition(way: dict[str, Any]) -> None:
    def leave_one(x: int) -> int:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        return x

    assert list(parallel(range(2), partition_size=1, **way).map(leave_one)) == [0, 1]
    slow = parallel(range(20), partition_size=1, **way).map(lambda x: time.sleep(0.1) or x)
    assert list(slow) == list(range(20))


def test_an_alarm_of_an_outer_function_outlives_the_inner_ones(cluster: Connection) -> None:
    def outer(n: int) -> int:
        def ring(*_: object) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 6)
        assert sum(parallel(range(5), partition_size=1).map(lambda x: x)) == 10
        with contextlib.suppress(TimeoutError):
            time.sleep(20)
            return 0
        return n

    assert list(parallel([1, 2], partition_size=1).map(outer)) == [1, 2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_there_is_an_event_loop_as_in_a_script(way: dict[str, Any]) -> None:
    def looped(n: int) -> int:
        if sys.version_info < (3, 14):
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loop = asyncio.get_event_loop()
        else:
            loop = asyncio.new_event_loop()
        return loop.run_until_complete(asyncio.sleep(0, n))

    assert list(parallel(range(5), **way).map(looped)) == list(range(5))
    assert list(parallel(range(5), **way).map(lambda n: asyncio.run(asyncio.sleep(0, n)))) == list(range(5))


def test_what_is_bound_to_its_thread_can_be_kept(way: dict[str, Any]) -> None:
    def count(n: int) -> int:
        database = vars(parcoll).get("kept_by_a_test")
        if database is None:
            database = vars(parcoll)["kept_by_a_test"] = sqlite3.connect(":memory:")
            database.execute("create table numbers (n)")
        database.execute("insert into numbers values (?)", (n,))
        total = parallel(range(n)).map(lambda x: x + 1).count()
        (found,) = database.execute("select count(*) from numbers where n = ?", (n,)).fetchone()
        return int(total * found)

    assert list(parallel(range(1, 9), partition_size=1, **way).map(count)) == list(range(1, 9))


def test_thread_locals_last_from_one_partition_to_the_next(way: dict[str, Any]) -> None:
    local = "local_of_a_test"

    def number(_: int) -> tuple[int, int]:
        kept = vars(parcoll).setdefault(local, threading.local())
        if not hasattr(kept, "numbers"):
            kept.numbers = itertools.count()
        return os.getpid(), next(kept.numbers)

    found = list(parallel(range(12), partition_size=1, **way).map(number))
    assert len(set(found)) == 12, "one counter a process"


# Code that leaves dask's pool ----------------------------------------------------------------------


def test_a_worker_s_client_works_within_functions(cluster: Connection) -> None:
    def outer(n: int) -> list[Any]:
        with distributed.worker_client() as client:
            found = client.submit(pow, n, 2, pure=False).result()
        inner = parallel(range(n)).map(abs).count()
        with distributed.worker_client() as client:
            return [found, inner, *client.gather(client.map(abs, [-n, n])), in_main_thread()]

    assert list(parallel(range(1, 7), partition_size=1).map(outer)) == [
        [n * n, n, n, n, True] for n in range(1, 7)
    ]


def test_an_evaluation_works_in_a_task_that_a_function_waits_for(cluster: Connection) -> None:
    def outer(n: int) -> int:
        with distributed.worker_client() as client:
            found: int = client.submit(lambda n: parallel(range(n)).map(abs).count(), n, pure=False).result()
            return found + parallel(range(n)).map(abs).count()

    assert list(parallel(range(1, 5), partition_size=1).map(outer)) == [2, 4, 6, 8]
    with connect(n_workers=1):
        assert list(parallel(range(1, 5), partition_size=1).map(outer)) == [2, 4, 6, 8]


def test_a_function_may_leave_the_pool_and_not_come_back(cluster: Connection) -> None:
    def outer(n: int) -> bool:
        distributed.secede()  # type: ignore[no-untyped-call]
        return in_main_thread()

    assert all(parallel(range(6), partition_size=1).map(outer))
    assert all(parallel(range(6), partition_size=1).map(in_main_thread))

    def inner(n: int) -> bool:
        return all(parallel(range(4), partition_size=1).map(outer)) and in_main_thread()

    assert all(parallel(range(4), partition_size=1).map(inner))


def test_tasks_of_dask_s_own_run_in_the_main_thread_too(cluster: Connection) -> None:
    client = cluster.engine.client
    assert all(client.gather(client.map(in_main_thread, range(10), pure=False)))
    numbers = client.gather(client.map(lambda n: parallel(range(n)).map(abs).count(), range(5), pure=False))
    assert numbers == list(range(5))


# The family ------------------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[SyncManager]:
    with multiprocessing.get_context("fork").Manager() as manager:
        yield manager


def test_a_manager_s_objects_work_within_functions(way: dict[str, Any], manager: SyncManager) -> None:
    found, lock, queue = manager.dict(), manager.Lock(), manager.Queue()

    def work(x: int) -> int:
        with lock:
            found.update({x: x * x})
        queue.put(x)
        return len(found)

    assert max(parallel(range(10), partition_size=2, **way).map(work)) == 10
    assert dict(found) == {x: x * x for x in range(10)}
    assert sorted(queue.get() for _ in range(10)) == list(range(10))


def test_a_manager_s_object_works_as_an_element_and_within_an_inner_function(
    cluster: Connection, manager: SyncManager
) -> None:
    lists = [manager.list() for _ in range(3)]
    parallel(lists, partition_size=1).foreach(
        lambda kept: parallel(range(4)).foreach(lambda x: kept.append(x))
    )
    assert [sorted(kept) for kept in lists] == [[0, 1, 2, 3]] * 3


def test_the_key_is_in_no_environment_and_on_no_command_line(way: dict[str, Any]) -> None:
    key = bytes(multiprocessing.current_process().authkey)

    def see(_: int) -> tuple[bool, bytes]:
        places = b"".join(Path(f"/proc/self/{name}").read_bytes() for name in ("environ", "cmdline"))
        own = bytes(multiprocessing.current_process().authkey)
        return own in places or own.hex().encode() in places, own

    if Path("/proc/self/environ").exists():
        assert list(parallel(range(4), partition_size=1, **way).map(see)) == [(False, key)] * 4


def test_shared_memory_of_the_script_stays_when_workers_end(tmp_path: Path) -> None:
    segment = SharedMemory(create=True, size=100)

    def write(x: int) -> int:
        mine = SharedMemory(name=segment_name)
        mine.buf[x] = x + 1
        mine.close()
        return x

    segment_name = segment.name
    try:
        for settings in WAYS.values():
            with connect(n_workers=2):
                assert list(parallel(range(20), partition_size=2, **settings).map(write)) == list(range(20))
            again = SharedMemory(name=segment_name)
            assert bytes(again.buf[:20]) == bytes(range(1, 21))
            again.buf[:20] = bytes(20)
            again.close()
    finally:
        segment.close()
        segment.unlink()


def test_shared_memory_that_a_function_makes_is_the_script_s() -> None:
    def make(x: int) -> str:
        segment = SharedMemory(create=True, size=10)
        segment.buf[0] = x
        segment.close()
        return segment.name

    for settings in WAYS.values():
        with connect(n_workers=2):
            names = list(parallel(range(4), partition_size=1, **settings).map(make))
        for x, name in enumerate(names):
            segment = SharedMemory(name=name)
            assert segment.buf[0] == x
            segment.close()
            segment.unlink()


def test_a_worker_that_dies_takes_no_shared_memory_of_others_with_it(
    cluster: Connection, tmp_path: Path
) -> None:
    segment = SharedMemory(create=True, size=10)

    def attach_and_die(x: int) -> int:
        mine = SharedMemory(name=name)
        mine.buf[x] += 1
        mine.close()
        with contextlib.suppress(FileExistsError):
            os.close(os.open(tmp_path / "died", os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    name = segment.name
    try:
        assert list(parallel(range(4), partition_size=1).map(attach_and_die)) == list(range(4))
        assert all(segment.buf[x] for x in range(4))
        SharedMemory(name=name).close()
    finally:
        segment.close()
        segment.unlink()
