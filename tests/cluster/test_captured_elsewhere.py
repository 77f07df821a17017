"""Large data that functions capture, on the workers of others: sent once, past the scheduler, and kept."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare import BareCluster, bare_cluster
from scripts import append, eventually, wait_for_file

from parcoll import Connection, connect, parallel

MIB = 2**20
OTHERS = 6 * MIB  # more than the data of other test modules, which travels with each program


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """Give a cluster of two one-thread workers, which have numpy and no parcoll."""
    with bare_cluster(tmp_path_factory.mktemp("bare"), 2, lacking=("parcoll",)) as cluster:
        yield cluster


@pytest.fixture
def remote(bare: BareCluster) -> Iterator[Connection]:
    with connect(bare.file) as connection:
        bare.wait_for_workers(2)
        yield connection


def numbers(mib: int, start: float = 0.0) -> Any:
    return np.arange(start, start + mib * MIB // 8)


def places(bare: BareCluster) -> dict[str, tuple[int, int]]:
    """Return, of each key with captured data, how many workers have it, and how many MiB it is."""

    def look(dask_scheduler: Any) -> dict[str, tuple[int, int]]:
        tasks = dask_scheduler.tasks.items()
        return {
            key: (len(t.who_has), round(t.nbytes / 2**20)) for key, t in tasks if key.startswith("captured")
        }

    with bare.client() as client:
        return client.run_on_scheduler(look)  # type: ignore[no-any-return]


def is_mapped(array: Any) -> bool:
    """Tell whether an array shows memory that this process shares with others."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        spans = [line.split("-", 1) for line in file if "memfd:parcoll" in line]
    return any(int(a, 16) <= array.ctypes.data < int(b.split()[0], 16) for a, b in spans)


@pytest.mark.parametrize("settings", [{}, {"timeout": 60}], ids=["plain", "timeout"])
def test_what_has_not_changed_is_not_sent_again(
    remote: Connection, bare: BareCluster, settings: dict[str, Any]
) -> None:
    """Processes beside a worker read what is there, as workers of a local cluster do."""
    data, label = numbers(24, start=len(settings)), bytes(3 * MIB)
    chain = parallel([5, 7, 9, 11], partition_size=1, **settings).map(
        lambda i: (float(data[i]), len(label), is_mapped(data))
    )

    def sent() -> int:
        assert list(chain) == [(data[i], 3 * MIB, bool(settings)) for i in (5, 7, 9, 11)]
        return chain.stats.bytes_sent

    assert 24 * MIB < sent() < 27 * MIB + OTHERS
    assert sent() < 3 * MIB + OTHERS
    assert {size for _, size in places(bare).values()} >= {24}
    data[7] = -1.0
    assert 24 * MIB < sent() < 27 * MIB + OTHERS
    other = chain.map(lambda x: (x, data[3]))  # the same array, in another program
    assert [x[0] for x, _ in other] == [data[i] for i in (5, 7, 9, 11)]
    assert other.stats.bytes_sent < 3 * MIB + OTHERS


def test_each_worker_has_it_once_and_nothing_is_left_of_it(bare: BareCluster) -> None:
    data = numbers(8)
    with connect(bare.file):
        bare.wait_for_workers(2)
        chain = parallel(range(40), partition_size=1).map(lambda i: (os.getpid(), float(data[i])))
        found = list(chain)
        assert [x for _, x in found] == list(data[:40])
        assert len({pid for pid, _ in found}) == 2
        assert list(places(bare).values()) == [(2, 8)]
        assert [x for _, x in chain] == list(data[:40])
        assert list(places(bare).values()) == [(2, 8)]
        other = numbers(8, start=1.0)
        assert list(parallel([3]).map(lambda i: float(other[i]))) == [4.0]
        assert len(places(bare)) == 1, "what is captured last"
    assert eventually(lambda: not places(bare), 20)


def test_where_a_process_beside_a_worker_cannot_read_it_it_gets_messages(
    remote: Connection, bare: BareCluster
) -> None:
    """As in a container that hides /proc: what is opened there is something else."""
    data = numbers(5)
    chain = parallel(range(6), partition_size=1, timeout=60).map(lambda i: (float(data[i]), is_mapped(data)))

    def hide(pid: Any) -> None:
        from parcoll.wire import payload, segments

        payload.free_beside()
        renew = segments.Segment.__dict__["renew"]
        if pid is None:
            segments.Segment.renew = renew.before
            return

        def renewed(segment: Any) -> None:
            renew(segment)
            segment.address = segment.address._replace(pid=pid)

        renewed.before = renew  # type: ignore[attr-defined]
        segments.Segment.renew = renewed  # type: ignore[method-assign]

    assert list(chain) == [(x, True) for x in data[:6]]
    with bare.client() as client:
        client.run(hide, "self")
        try:
            data[0] = -1.0
            assert list(chain) == [(x, False) for x in data[:6]]
            assert chain.fold(lambda n, x: n + x[0], 0.0, lambda n, m: n + m) == 14.0
        finally:
            client.run(hide, None)


def test_a_worker_that_writes_into_it_changes_nothing_elsewhere(remote: Connection) -> None:
    data = numbers(6)

    def write(i: int) -> tuple[int, float]:
        data[0] += 1
        return os.getpid(), float(data[0])

    chain = parallel(range(60), partition_size=5).map(write)
    for _ in range(2):
        found = list(chain)
        for worker in {pid for pid, _ in found}:
            counts = sorted(count for pid, count in found if pid == worker)
            # dask may take a copy from a worker that has nothing to do just now, and bring it another one.
            copies = counts.count(1.0)
            assert 0 < copies < 4, "of this evaluation alone"
            assert Counter(counts) <= Counter(dict.fromkeys([n + 1.0 for n in range(len(counts))], copies))
    assert data[0] == 0


def test_a_worker_that_dies_with_it(bare: BareCluster, tmp_path: Path) -> None:
    """It had the only copy, perhaps; from then on the data travels as it can."""
    data, told = numbers(8), tmp_path / "told"

    def deadly(i: int) -> float:
        if i == 3 and not told.exists():
            append(told, "")
            os.kill(os.getpid(), signal.SIGKILL)
        return float(data[i])

    with connect(bare.file):
        bare.wait_for_workers(2)
        chain = parallel(range(30), partition_size=1).map(deadly)
        assert list(chain) == list(data[:30])
        bare.add_worker()
        bare.wait_for_workers(2)
        assert list(chain) == list(data[:30])
        assert list(parallel(range(30), partition_size=1).map(lambda i: float(data[i]))) == list(data[:30])


def test_all_workers_die_with_it(bare: BareCluster) -> None:
    data = numbers(8)
    with connect(bare.file), bare.client() as client:
        bare.wait_for_workers(2)
        chain = parallel(range(10), partition_size=1).map(lambda i: float(data[i]))
        assert list(chain) == list(data[:10])
        for pid in client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not client.scheduler_info()["workers"], 20)
        for _ in range(2):
            bare.add_worker()
        bare.wait_for_workers(2)
        assert list(chain) == list(data[:10])


def test_the_only_worker_that_has_it_dies_and_another_comes(tmp_path: Path) -> None:
    data, told, taken = numbers(8), tmp_path / "told", tmp_path / "taken"

    def deadly(i: int) -> float:
        if i == 3 and not told.exists():
            wait_for_file(taken)  # a first result that is not fetched yet would be lost with the worker
            append(told, "")
            os.kill(os.getpid(), signal.SIGKILL)
        return float(data[i])

    with bare_cluster(tmp_path, 1, lacking=("parcoll",)) as cluster, connect(cluster.file):
        stream = iter(parallel(range(30), partition_size=1).map(deadly))
        assert next(stream) == 0.0
        taken.touch()
        assert eventually(told.exists, 20)
        cluster.add_worker()
        assert list(stream) == list(data[1:30])


def test_a_client_of_the_user_s_keeps_nothing_when_it_is_left(bare: BareCluster) -> None:
    data = numbers(8)
    with bare.client() as client:
        with connect(client) as connection:
            bare.wait_for_workers(2)
            assert list(parallel([1, 2]).map(lambda i: float(data[i]))) == [1.0, 2.0]
            assert len(places(bare)) == 1
        assert eventually(lambda: not places(bare), 20), connection


def test_two_threads_at_once(remote: Connection) -> None:
    found: dict[float, list[float]] = {}

    def evaluate(start: float) -> None:
        data = numbers(5, start)
        for _ in range(3):
            found[start] = list(parallel(range(20), partition_size=2).map(lambda i: float(data[i])))

    threads = [threading.Thread(target=evaluate, args=(float(start),)) for start in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {start: [start + i for i in range(20)] for start in (0.0, 1000.0)}


def test_results_that_are_kept_can_be_made_again_without_it(remote: Connection) -> None:
    """They outlive the evaluation, so what they were made of travels with the program, as small data does."""
    data = numbers(5)
    kept = parallel(range(10), partition_size=2)
    kept.foreach(lambda i: float(data[i]))
    assert list(kept) == list(data[:10])
    assert parallel(range(10)).map(lambda i: data[i]).reduce(lambda a, b: a + b) == 45
