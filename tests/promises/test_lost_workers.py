"""What a worker kept dies with it: it is made again from the same elements, neither fewer nor more."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bare import bare_cluster
from scripts import eventually

from parcoll import Connection, connect, parallel

SIZE = 40_000  # bytes of an element: more than what travels in a message


def processes(cluster: Connection) -> set[int]:
    return set(cluster.engine.client.run(os.getpid).values())


def are_two(cluster: Connection, but: int = 0) -> bool:
    """Tell whether the scheduler has two workers, without the one that was killed.

    Asking the workers themselves would have dask try for 10 s to connect to the dead one.
    """

    def pids(dask_scheduler: Any) -> list[int]:
        return [state.pid for state in dask_scheduler.workers.values()]

    found = cluster.engine.client.run_on_scheduler(pids)
    return len(found) == 2 and but not in found


def kill_one(cluster: Connection) -> None:
    killed = min(processes(cluster))
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: are_two(cluster, but=killed))


@pytest.mark.parametrize("size", ["auto", 1, 20])
def test_kept_results_of_large_elements_survive_their_worker(size: Any) -> None:
    """Elements that pass through shared memory are gone when their job is done; kept ones may not be."""
    elements = [bytes([i % 256]) * SIZE for i in range(60)]
    with connect(n_workers=2) as cluster:
        kept = parallel(elements, partition_size=size)
        kept.foreach(lambda x: x[:10])
        kill_one(cluster)
        assert list(kept) == [element[:10] for element in elements]


def test_a_kept_partition_takes_the_same_elements_when_it_runs_again(tmp_path: Path) -> None:
    """A time budget would cut it elsewhere, when it is faster or slower than the first time."""
    slow = tmp_path / "slow"
    slow.touch()

    def sometimes_slow(x: int) -> int:
        if slow.exists():
            time.sleep(0.002)
        return x

    with connect(n_workers=2) as cluster:
        kept = parallel(range(2_000))
        kept.foreach(sometimes_slow)
        slow.unlink()
        kill_one(cluster)
        assert list(kept) == list(range(2_000))


def test_a_reduce_of_large_elements_survives_a_worker(cluster: Connection) -> None:
    """A worker dies while the partitions that it has are being joined."""

    def add(total: int, text: bytes) -> int:
        time.sleep(0.005)
        return total + len(text)

    killer = threading.Timer(0.5, lambda: os.kill(min(processes(cluster)), signal.SIGKILL))
    killer.start()
    try:
        assert parallel([bytes(SIZE)] * 200, partition_size=5).map(lambda x: x).reduce(add, 0) == 200 * SIZE
    finally:
        killer.join()
    assert eventually(lambda: are_two(cluster))


def test_a_fold_that_is_one_task_survives_its_worker(cluster: Connection, tmp_path: Path) -> None:
    """It runs again, and each element counts once."""

    def once(x: str) -> str:
        if x == "f" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    chain = parallel("abcdefghij", partition_size=10).map(once)
    assert chain.reduce(lambda a, b: f"({a}{b})", "-") == "((((((((((-a)b)c)d)e)f)g)h)i)j)"
    assert (chain.stats.partitions, chain.stats.recovered) == (1, 1)
    (tmp_path / "died").unlink()
    assert chain.fold(lambda a, b: a + b, "") == "abcdefghij"
    assert (chain.stats.partitions, chain.stats.recovered) == (1, 1)
    assert eventually(lambda: are_two(cluster))


@pytest.mark.parametrize("where", ["inline", None])
def test_one_thread_takes_back_what_it_did_not_begin(where: str | None) -> None:
    """With one thread the window is two partitions, and a group of them at least one."""

    def once_slow(x: int) -> int:
        if x == 3:
            time.sleep(0.08)
        return x

    with connect(where) if where else connect(n_workers=1):
        assert list(parallel(list(range(20_000))).map(once_slow)) == list(range(20_000))


def test_two_threads_may_share_an_iterator(cluster: Connection) -> None:
    """Each result goes to one of them, and neither sees an end before it comes."""
    stream = iter(parallel(range(5_000), partition_size=50).map(lambda x: x))
    found: list[list[int]] = [[], []]

    def draw(into: list[int]) -> None:
        into.extend(stream)

    threads = [threading.Thread(target=draw, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found[0] + found[1]) == list(range(5_000))


def test_arrays_of_odd_sizes_are_aligned(cluster: Connection) -> None:
    """A buffer behind one of 1,500,001 bytes still starts where vector instructions can read it."""
    numpy = pytest.importorskip("numpy")
    pair = [numpy.ones(1_500_001, dtype="uint8"), numpy.ones(200_000)]
    results = list(parallel([pair], partition_size=1).map(lambda p: (p, [a.flags.aligned for a in p])))
    (arrays, aligned_there) = results[0]
    assert aligned_there == [True, True]
    assert [array.flags.aligned for array in arrays] == [True, True]
    assert all(map(numpy.array_equal, arrays, pair))


def test_a_result_that_is_asked_of_a_lost_worker_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dask goes on calling a worker that is gone, with the results of others in its hands."""

    def slowly(x: int) -> int:
        time.sleep(0.05)
        return x

    with bare_cluster(tmp_path / "cluster", 2) as cluster, connect(cluster.address) as connection:
        client = connection.engine.client
        gather, asked, end = client.gather, threading.Event(), asyncio.Event()

        def calling(futures: Any, **options: Any) -> Any:
            if asked.is_set():
                return gather(futures, **options)
            asked.set()
            return end.wait()

        monkeypatch.setattr(client, "gather", calling)
        results: list[int] = []
        numbers = parallel(range(100), partition_size=1).map(slowly)
        thread = threading.Thread(target=lambda: results.extend(numbers), daemon=True)
        thread.start()
        assert asked.wait(30)
        os.kill(min(processes(connection)), signal.SIGKILL)
        thread.join(30)
        client.loop.add_callback(end.set)
        assert results == list(range(100))
