"""Another client calls `client.restart()` while an evaluation runs: told as what it is, or gone on from."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bare import BareCluster, bare_cluster
from scripts import meanwhile

from parcoll import ClusterLostError, connect, parallel


@contextmanager
def nannied(folder: Path) -> Iterator[BareCluster]:
    """Give a cluster whose workers can be restarted."""
    with bare_cluster(folder, 0) as cluster:
        for _ in range(2):
            options = ("--nthreads", "1", "--local-directory", str(cluster.folder))
            cluster._dask("worker", *options)
        cluster.wait_for_workers(2)
        yield cluster


def slow(x: int) -> int:
    time.sleep(0.02)
    return x + 1


def restarted_soon(cluster: BareCluster, seconds: float) -> object:
    def work(ended: threading.Event) -> None:
        if not ended.wait(seconds):
            with cluster.client() as client:
                client.restart(timeout=60)

    return meanwhile(work)


def test_without_reconnect_it_is_told_and_the_connection_works_at_once(tmp_path: Path):
    with nannied(tmp_path / "bare") as cluster, connect(cluster.address):
        with restarted_soon(cluster, 1.5), pytest.raises(ClusterLostError) as raised:  # type: ignore[attr-defined]
            list(parallel(range(400), partition_size=10).map(slow))
        assert "was restarted, as client.restart() does" in str(raised.value)
        assert "is gone:" not in str(raised.value)
        assert list(parallel(range(20)).map(slow)) == list(range(1, 21))


def test_with_reconnect_it_goes_on(tmp_path: Path):
    with nannied(tmp_path / "bare") as cluster, connect(cluster.address, reconnect=60):
        numbers = parallel(range(400), partition_size=10).map(slow)
        with restarted_soon(cluster, 1.5):  # type: ignore[attr-defined]
            assert list(numbers) == list(range(1, 401))
        assert numbers.stats.losses == 1
        with restarted_soon(cluster, 1.0):  # type: ignore[attr-defined]
            assert numbers.reduce(lambda a, b: a + b) == sum(range(1, 401))
