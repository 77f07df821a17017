"""Lost workers are told by a plugin of their own: no page, no publisher and no other client is needed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import distributed
import pytest
from bare import bare_cluster
from scripts import eventually

from parcoll import Connection, WorkerLostError, connect, parallel
from parcoll.cluster.losses import LossDetector
from parcoll.watch.page import Page
from parcoll.watch.publish import Publisher


def deadly(x: int) -> int:
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.fixture
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no evaluation published, so that nobody puts a page anywhere."""
    monkeypatch.setattr(Publisher, "begin", lambda self: None)


def blamed() -> int:
    """Return the element that is blamed for the death of its workers; the others come."""
    with pytest.raises(WorkerLostError, match="it was killed by signal 9"):
        list(parallel(range(20), partition_size=4).map(deadly))
    skipping = parallel(range(20), partition_size=4, on_error="skip").map(deadly)
    came = list(skipping)
    assert skipping.stats.recovered > 0
    assert skipping.stats.deaths > 0
    (error,) = skipping.errors
    assert came == [x for x in range(20) if x != error.element]
    return int(error.index)


@pytest.mark.usefixtures("unpublished", "cluster")
def test_a_local_cluster_tells_without_a_publisher():
    assert blamed() == 5


def plugins(client: distributed.Client) -> set[str]:
    found: set[str] = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.plugins))
    return found


@pytest.mark.usefixtures("unpublished")
def test_a_bare_cluster_tells_without_a_page(tmp_path: Path):
    with bare_cluster(tmp_path / "bare", 0) as bare:
        for _ in range(2):  # with nannies, since the workers die
            bare._dask("worker", "--nthreads", "1", "--local-directory", str(bare.folder))
        bare.wait_for_workers(2)
        with connect(bare.address) as connection:
            found = plugins(connection.engine.client)
            assert LossDetector.name in found
            assert Page.name not in found
            assert blamed() == 5


def test_the_plugin_is_installed_once_and_told_to_all(cluster: Connection):
    """Two evaluations of one client, and two clients of one scheduler."""
    results = [iter(parallel(range(40), partition_size=4, on_error="skip").map(deadly)) for _ in range(2)]
    assert [next(result) for result in results] == [0, 0]
    assert [list(result) for result in results] == [[x for x in range(1, 40) if x != 5]] * 2
    names = [name for name in plugins(cluster.engine.client) if "losses" in name]
    assert names == [LossDetector.name]


def test_a_worker_that_is_lost_before_its_task_is_known_here(
    cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a busy machine, dask may have run the task again, and told it, when `Client.get` returns."""
    died, ended = tmp_path / "died", tmp_path / "ended"

    def once(x: str) -> str:
        if x == "c" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if x == "d" and died.exists():
            ended.touch()
        return x

    get = distributed.Client.get

    def slowly(client: Any, *arguments: Any, **settings: Any) -> Any:
        futures = get(client, *arguments, **settings)
        if not ended.exists():
            assert eventually(ended.exists)
            time.sleep(0.2)  # until its outcome has come
        return futures

    monkeypatch.setattr(distributed.Client, "get", slowly)
    chain = parallel("abcdef", partition_size=6).map(once)
    assert list(chain) == list("abcdef")
    assert (chain.stats.partitions, chain.stats.recovered, chain.stats.deaths) == (1, 1, 1)
