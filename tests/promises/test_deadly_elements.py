"""An element that ends its process each time is found, named, and costs no other element's result."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import dask.bag
import psutil
import pytest
from scripts import append, clean_environment, eventually, lines
from test_failing_elements import check_sums, drained

from parcoll import Connection, ElementError, SerializationError, WorkerLostError, connect, parallel
from parcoll.evaluation.feed import StreamFeed
from parcoll.evaluation.sizing import sizer_for
from parcoll.evaluation.source import source_of
from parcoll.wire.payload import Packed
from parcoll.worker import program
from parcoll.worker.outcome import Outcome
from parcoll.worker.subworker import pool

WAYS: dict[str, tuple[Any, str]] = {
    "exit": (lambda: os._exit(3), "it ended with exit code 3"),
    "leave": (lambda: os._exit(0), "it ended with exit code 0"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), "it was killed by signal 9 (SIGKILL)"),
    "terminate": (lambda: os.kill(os.getpid(), signal.SIGTERM), "it was killed by signal 15 (SIGTERM)"),
    "segfault": (lambda: ctypes.string_at(0), "it was killed by signal 11 (SIGSEGV)"),
    "abort": (os.abort, "it was killed by signal 6 (SIGABRT)"),
}


# Each way and each size by itself; all pairs are slow.
SLOW = [
    pytest.param(way, size, marks=pytest.mark.slow)
    for way in WAYS
    for size in (1, "auto")
    if way != "segfault"
]
PAIRS = [*((way, 40) for way in WAYS), ("segfault", 1), ("segfault", "auto"), *SLOW]


@pytest.mark.parametrize(("way", "size"), PAIRS)
def test_it_is_found_and_left_out(cluster: Connection, way: str, size: Any) -> None:
    die, how = WAYS[way]

    def work(x: int) -> int:
        if x == 23:
            die()
        return x * 2

    chain = parallel(range(40), on_error="skip", partition_size=size).map(work)
    assert list(chain) == [x * 2 for x in range(40) if x != 23]
    (error,) = chain.errors
    assert (error.index, error.element, error.step, error.attempts) == (23, 23, "map(work)", 2)
    assert isinstance(error.exception, WorkerLostError)
    assert str(error.exception).startswith("map(work) ends the process that runs it, at element 23: " + how)
    check_sums(chain.stats)
    assert chain.stats.deaths >= 3  # a worker, and two processes beside one
    assert chain.stats.recovered >= 1
    assert "processes died" in str(chain.stats)


@pytest.mark.parametrize("way", ["exit", "segfault", "kill"])
def test_it_is_found_among_ten_thousand(cluster: Connection, way: str) -> None:
    die, how = WAYS[way]
    chain = parallel(range(10_000), partition_size=10_000).map(lambda x: die() if x == 7_777 else -x)
    found, raised = drained(chain)
    assert found == [-x for x in range(7_777)]
    assert isinstance(raised, WorkerLostError)
    assert str(raised) == f"map(lambda) ends the process that runs it, at element 7777: {how}"
    assert raised.__notes__ == ["in step 1 of 1, map(lambda), at element 7777: 7777, 2 times"]
    check_sums(chain.stats)


def test_there_may_be_several(cluster: Connection) -> None:
    """In one partition, in two steps, of many that a flatmap made."""

    def first(x: int) -> int:
        if x in (5, 6, 99):
            os._exit(1)
        return x

    def second(x: int) -> int:
        if x == 41:
            ctypes.string_at(0)
        return x

    chain: Any = parallel(range(100), on_error="skip", partition_size=50).map(first)
    chain = chain.flatmap(lambda x: [x, x]).map(second).filter(lambda x: x != 60)
    assert list(chain) == [x for x in range(100) for _ in "ab" if x not in (5, 6, 99, 41, 60)]
    places = [(error.step, error.index) for error in chain.errors]
    twice = ("map(second)", 41)
    assert places == [("map(first)", 5), ("map(first)", 6), twice, twice, ("map(first)", 99)]
    check_sums(chain.stats)


def test_a_value_takes_its_place_and_retries_hold(cluster: Connection, tmp_path: Path) -> None:
    def stand_in(error: ElementError) -> str:
        return f"{type(error.exception).__name__} {error.attempts}"

    def work(x: int) -> Any:
        if x == 3:
            append(tmp_path / "calls", "")
            os._exit(1)
        return x

    chain = parallel(range(6), retries=4, on_error=stand_in).map(work)
    assert list(chain) == [0, 1, 2, "WorkerLostError 5", 4, 5]
    # In one worker to three, which nobody counts (dask may be quicker with a third), and five that were.
    assert 6 <= len(lines(tmp_path / "calls")) <= 8
    assert chain.stats.retries == 4
    chain = parallel(range(6), retries=4, retry_on=ValueError, on_error=stand_in).map(work)
    assert list(chain) == [0, 1, 2, "WorkerLostError 2", 4, 5]


def test_what_works_at_another_time_is_no_failure(cluster: Connection, tmp_path: Path) -> None:
    """The process ends twice at the same element, at least once in a worker."""

    def work(x: int) -> int:
        if x == 30 and len(lines(tmp_path / "calls")) < 2:
            append(tmp_path / "calls", "")
            os._exit(1)
        return x

    chain = parallel(range(60), partition_size=20).map(work)
    assert list(chain) == list(range(60))
    assert chain.stats.failed == 0
    check_sums(chain.stats)


def test_no_other_element_is_lost_or_doubled(cluster: Connection, tmp_path: Path) -> None:
    """Others of its partition run again after a death, and have one result all the same."""

    def work(x: int) -> int:
        append(tmp_path / str(x), "")
        if x == 50:
            os._exit(1)
        return x

    numbers = parallel(range(200), on_error="skip", partition_size=20)
    numbers.foreach(work)
    assert list(numbers) == [x for x in range(200) if x != 50]
    calls = {x: len(lines(tmp_path / str(x))) for x in range(200)}
    assert min(calls.values()) == 1
    assert max(calls.values()) <= 5
    check_sums(numbers.stats)


@pytest.mark.parametrize("call", ["reduce", "reduce from 0", "fold", "fold and combine"])
def test_the_function_of_a_fold(cluster: Connection, call: str) -> None:
    def add(total: int, x: int) -> int:
        if x == 33:
            os._exit(4)
        return total + x

    size = 100 if call in ("reduce from 0", "fold and combine") else 10  # one task was to fold all of them
    chain = parallel(range(1, 60), partition_size=size).map(lambda x: x)
    calls = {
        "reduce": lambda: chain.reduce(add),
        "reduce from 0": lambda: chain.reduce(add, 0),
        "fold": lambda: chain.fold(add, 0),
        "fold and combine": lambda: chain.fold(add, 0, lambda a, b: a + b),
    }
    with pytest.raises(WorkerLostError) as raised:
        calls[call]()
    name = call.split(" ", maxsplit=1)[0]
    assert str(raised.value).startswith(f"{name}(add) ends the process that runs it, at element 32")
    assert str(raised.value).endswith(": it ended with exit code 4")
    check_sums(chain.stats)


def test_a_result_that_ends_the_process_that_packs_it(cluster: Connection) -> None:
    class Result:
        def __reduce__(self) -> Any:
            os._exit(5)

    chain = parallel(range(20), partition_size=10).map(lambda x: Result() if x == 15 else x)
    found, raised = drained(chain)
    assert found == list(range(15))
    assert isinstance(raised, WorkerLostError)
    assert str(raised) == "the result of element 15 ends the process that packs it: it ended with exit code 5"


def test_an_element_that_cannot_even_be_described(cluster: Connection) -> None:
    class Worse:
        def __repr__(self) -> str:
            os._exit(5)

    elements = [Worse() if x == 15 else x for x in range(20)]
    chain: Any = parallel(elements, partition_size=10).map(lambda x: x + 1)
    found, raised = drained(chain)
    assert found == list(range(1, 16))
    assert isinstance(raised, WorkerLostError)
    assert (
        str(raised) == "map(lambda) ends the process that runs it, at element 15: it ended with exit code 5"
    )


class Truth:
    def __init__(self, n: int) -> None:
        self.n = n

    def __bool__(self) -> bool:
        if self.n == 13:
            os._exit(3)
        return True


def test_the_truth_of_an_element(cluster: Connection) -> None:
    chain = parallel(map(Truth, range(30)), on_error="skip", partition_size=10).map(lambda x: x).filter(None)
    assert [truth.n for truth in chain] == [n for n in range(30) if n != 13]
    assert [(error.step, error.index) for error in chain.errors] == [("filter(None)", 13)]


def test_a_partition_that_ends_who_loads_it(cluster: Connection) -> None:
    class Element:
        def __reduce__(self) -> Any:
            return os._exit, (5,)

    elements = [Element() if x == 15 else x for x in range(20)]
    found, raised = drained(parallel(elements, partition_size=10).map(lambda x: x))
    assert found == list(range(10))
    assert isinstance(raised, WorkerLostError)
    assert (
        str(raised) == "the partition at element 10 ends the process that loads it: it ended with exit code 5"
    )


def test_a_bag(cluster: Connection) -> None:
    bag = dask.bag.from_sequence(range(12), npartitions=3)
    chain = parallel(bag, on_error="skip").map(lambda x: os._exit(1) if x == 4 else x)
    assert list(chain) == [x for x in range(12) if x != 4]
    assert [(error.partition, error.index) for error in chain.errors] == [(1, 0)]


def test_one_that_kills_the_worker_itself_is_given_up_at_last(cluster: Connection) -> None:
    """From a process beside it: so the worker cannot tell which one it was."""

    def work(x: int) -> int:
        if x == 2:
            os.kill(
                os.getppid() if program.isolated else os.getpid(),
                signal.SIGKILL,
            )
            time.sleep(60)
        return x

    found, raised = drained(parallel(range(4), partition_size=1).map(work))
    assert found == [0, 1]
    assert isinstance(raised, WorkerLostError)
    assert "the partition of 1 element from element 2 lost 7 worker processes" in str(raised)


def test_processes_beside_workers_may_be_killed_too(cluster: Connection) -> None:
    """Whoever kills them: their elements run again, and nobody is to blame."""

    def work(x: int) -> int:
        time.sleep(0.01)
        return x

    # Kills come half a second apart at least: what is met by two of them is blamed.
    chain = parallel(range(800), timeout=60, partition_size=20).map(work)
    host = psutil.Process(cluster.engine.way.host.pid)
    found: list[int] = []
    killed = 0
    with closing(iter(chain)) as stream:  # type: ignore[type-var]
        for x in stream:
            found.append(x)
            if x % 100 == 25:
                beside = set(host.children(recursive=True)) - set(host.children())
                with suppress(psutil.NoSuchProcess):  # one that was killed a moment ago
                    if beside:
                        random.choice(sorted(beside, key=lambda child: child.pid)).kill()
                        killed += 1
                time.sleep(0.5)
    assert found == list(range(800))
    assert killed >= 4
    assert chain.stats.failed == 0
    assert chain.stats.deaths >= 1
    check_sums(chain.stats)


def hang_at_4(x: int) -> int:
    while x == 4:
        pass
    return x


def test_on_any_cluster(tmp_path: Path) -> None:
    """Its nannies replace workers, and nobody tells how they ended: a process beside them does."""
    file = tmp_path / "scheduler.json"
    commands = [
        ["scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        ["worker", "--scheduler-file", str(file), "--nworkers", "2", "--nthreads", "1"],
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command], env=clean_environment(), stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        assert eventually(lambda: file.exists() and file.stat().st_size, 30)
        with connect(str(file)) as connection:
            # `dask worker` ends where a worker dies before its nanny has seen it start.
            client = connection.engine.client
            client.wait_for_workers(2, timeout=30)

            def nannies() -> set[str]:
                return set(client.run(lambda dask_worker: dask_worker.status.name, nanny=True).values())

            assert eventually(lambda: nannies() == {"running"}, 30)
            chain: Any = parallel(range(2_000), partition_size=500, on_error="skip")
            chain = chain.map(lambda x: ctypes.string_at(0) if x == 777 else x)
            assert list(chain) == [x for x in range(2_000) if x != 777]
            (error,) = chain.errors
            assert "at element 777: it was killed by signal 11 (SIGSEGV)" in str(error.exception)
            check_sums(chain.stats)
            chain = parallel(range(9), timeout=0.5, on_error="skip").map(hang_at_4)
            assert list(chain) == [0, 1, 2, 3, 5, 6, 7, 8]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


def test_two_evaluations_at_a_time(cluster: Connection) -> None:
    """One dies again and again; the other, on the same workers, has all its results in order."""
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.extend(parallel(range(3_000)).map(lambda x: x + 1)))
    other.start()
    chain = parallel(range(300), on_error="skip", partition_size=10)
    chain = chain.map(lambda x: os._exit(1) if x % 100 == 50 else x)
    assert list(chain) == [x for x in range(300) if x % 100 != 50]
    other.join(60)
    assert found == list(range(1, 3_001))


def test_what_was_delivered_is_not_run_again(tmp_path: Path) -> None:
    """Nor do further deadly elements of what was handed back cost a worker each."""

    def work(x: int) -> int:
        append(tmp_path / "calls", x)
        if x % 60 == 30:
            os._exit(1)
        time.sleep(0.002)
        return x

    with connect(n_workers=1):
        chain = parallel(range(300), on_error="skip").map(work)
        assert list(chain) == [x for x in range(300) if x % 60 != 30]
    calls = Counter(map(int, lines(tmp_path / "calls")))
    assert all(2 <= calls[x] <= 8 for x in range(300) if x % 60 == 30)  # more than 4 on a busy machine
    assert sum(calls.values()) < 900
    check_sums(chain.stats)


def test_attempts_that_raised_are_no_deaths(cluster: Connection, tmp_path: Path) -> None:
    """It raises, is killed once, and works: the kill was not its own doing."""

    def work(x: int) -> int:
        append(tmp_path / "calls", "")
        if len(lines(tmp_path / "calls")) == 1:
            raise ValueError(x)
        if len(lines(tmp_path / "calls")) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    chain = parallel([7], timeout=60, retries=2, on_error="skip").map(work)
    assert list(chain) == [7]
    assert chain.stats.failed == 0


def test_who_is_asked_about_a_slow_element_may_be_deadly(cluster: Connection, tmp_path: Path) -> None:
    """The slow function is not called again for that."""

    def hang(x: int) -> int:
        append(tmp_path / "calls", "")
        while True:
            pass

    def stand_in(error: ElementError) -> int:
        os._exit(6)

    chain = parallel([7], timeout=0.3, on_error=stand_in).map(hang)
    with pytest.raises(
        WorkerLostError, match=r"map\(hang\) ends the process .* element 0: it ended with exit code 6"
    ):
        list(chain)
    assert len(lines(tmp_path / "calls")) == 1
    assert chain.stats.timeouts == 1


def test_what_a_deadly_element_has_started_ends_with_it(cluster: Connection, tmp_path: Path) -> None:
    """Found by a variable in its environment, whoever has adopted it; but not what a worker's own had."""
    sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]

    def work(x: int) -> int:
        if x == 2:
            append(tmp_path / "pids", subprocess.Popen(sleep, start_new_session=True).pid)
            os._exit(1)
        return x

    assert list(parallel(range(4), timeout=60, on_error="skip").map(work)) == [0, 1, 3]
    pids = [int(pid) for pid in lines(tmp_path / "pids")]
    assert len(pids) == 2
    assert eventually(lambda: not any(psutil.pid_exists(pid) and is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_worker_is_counted_once(cluster: Connection) -> None:
    """A reduce has two sessions, which both had tasks there."""
    chain = parallel(range(40), on_error="skip", partition_size=10)
    chain = chain.map(lambda x: os._exit(1) if x == 20 else x)
    assert chain.reduce(lambda a, b: a + b) == sum(range(40)) - 20
    assert 3 <= chain.stats.deaths <= 5  # one worker to three, and twice a process beside one


def test_a_process_outlives_the_thread_that_asked_for_it(cluster: Connection) -> None:
    """dask's threads come and go, and the kernel would end it with the one that started it."""
    lent: list[Any] = []

    def take() -> None:
        with pool.lend() as found:
            lent.append(found.get())

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    time.sleep(0.2)
    try:
        assert lent[0].alive
    finally:
        pool.close()
    assert not lent[0].alive


def test_streams_that_are_gone_do_no_harm(cluster: Connection) -> None:
    def work(x: int) -> int:
        sys.stdout = None  # type: ignore[assignment]
        return x

    assert list(parallel(range(5), timeout=60).map(work)) == [0, 1, 2, 3, 4]


def test_a_fold_beside_a_worker_names_the_element_as_any_other(cluster: Connection) -> None:
    def add(total: int, x: int) -> int:
        if x == 51:
            raise KeyError(x)
        return total + x

    chain = parallel(range(100), timeout=60, partition_size=100).filter(lambda x: x % 2)
    with pytest.raises(KeyError) as raised:
        chain.fold(add, 0)
    [note] = raised.value.__notes__
    assert note.startswith("in fold(add), at element 25 of those of its partition that reached it: 51 (fold")


def test_an_element_that_cannot_be_unpickled_leaves_shared_memory_in_use(cluster: Connection) -> None:
    class Picky:
        def __init__(self) -> None:
            self.held = bytes(40_000)

        def __setstate__(self, state: Any) -> None:
            raise ValueError("no")

    with pytest.raises(SerializationError, match="could not load the partition at element 0: ValueError: no"):
        list(parallel([Picky()], timeout=60).map(id))
    assert cluster.engine.way.sharing._works in (True, None)


def test_what_an_isolated_job_hands_back_stays_isolated() -> None:
    """There may be more deadly elements in it, and each would cost a worker again."""
    feed = StreamFeed(source_of(range(100)).open(), sizer_for("auto"), Packed.pack)
    feed.next_job(2)
    for isolated in (True, False):
        job = feed.next_job(2)
        assert job is not None
        job.isolated = isolated
        rest = feed.rest_of(job, Outcome(read=1))
        cut = feed.job_of(rest, 2)
        assert cut is not None
        assert cut.isolated is isolated
        assert cut.place.base == job.place.base + 1
