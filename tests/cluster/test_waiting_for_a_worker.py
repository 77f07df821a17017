"""No worker of a cluster may run the partitions: this is told, and a worker that comes later runs them."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import dask
import pytest
from bare import BareCluster, bare_cluster
from scripts import eventually

from parcoll import connect, parallel
from parcoll.cluster import session, workers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "QUIET_SECONDS", 0.3)


@pytest.fixture(scope="module")
def bare(leaves_no_trace: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    with bare_cluster(tmp_path_factory.mktemp("bare"), 0) as cluster:
        yield cluster


def waits(
    bare: BareCluster, block: Callable[[], AbstractContextManager[Any]], progress: bool = False
) -> tuple[Any, Callable[[], Any]]:
    """Start an evaluation that no worker takes. Returns its collection, and what waits for its result."""
    collection = parallel(range(10), progress=progress).map(abs)
    begun = threading.Event()

    def evaluate() -> list[int]:
        with connect(bare.file), block():
            begun.set()
            return list(collection)

    pool = ThreadPoolExecutor(1)

    def begin() -> Any:
        future = pool.submit(evaluate)
        assert begun.wait(30)
        assert eventually(lambda: collection.stats.waiting_for, 30), future
        return future

    with pytest.warns(RuntimeWarning, match=r"map-abs: (2 tasks wait|a task waits) for (a|one of the) wo"):
        future = begin()
    return collection, lambda: (future.result(60), pool.shutdown())[0]


def test_a_cluster_without_workers_is_told(bare: BareCluster, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "parcoll"):
        collection, result = waits(bare, nullcontext)
    assert collection.stats.waiting_for == "a worker: the cluster has none"
    assert re.search(r"map-abs: (2 tasks wait|a task waits) for a worker: the cluster has none", caplog.text)
    bare.add_worker()
    assert result() == list(range(10))
    assert collection.stats.waiting_for is None


@pytest.mark.parametrize("embedded", [session.EMBEDDED_BYTES, 1], ids=["within tasks", "as a task"])
def test_a_resource_that_no_worker_has_is_told(
    bare: BareCluster,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    embedded: int,
) -> None:
    """Whether the program lies within the tasks, or is a task that they wait for."""
    monkeypatch.setattr(session, "EMBEDDED_BYTES", embedded)
    with caplog.at_level(logging.WARNING, "parcoll"):
        collection, result = waits(bare, lambda: dask.annotate(resources={"GPU": 1, "TPU": 2}), progress=True)
    assert collection.stats.waiting_for == "a worker with the resources GPU=1, TPU=2"
    assert "waits for a worker with the resources GPU=1, TPU=2" in str(collection.stats)
    assert re.search(r"(2 tasks wait|a task waits) for a worker with the resources GPU=1, TPU=2", caplog.text)
    assert "dask worker --resources" in caplog.text
    worker = bare.add_worker("--resources", "GPU=1 TPU=2")
    assert result() == list(range(10))
    worker.kill()  # dask's own way to end may take longer than a test
    worker.wait(20)
    assert "waits" not in str(collection.stats)
    assert "10/10" in capfd.readouterr().err


def test_where_warnings_are_errors_the_evaluation_goes_on() -> None:
    placement = workers.Placement(None, "map-abs", False)
    counted: Future[int] = Future()
    counted.set_result(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placement._take(counted)
    assert placement.waiting_for == "a worker: the cluster has none"


def test_a_worker_that_is_not_there_is_told(bare: BareCluster, tmp_path: Path) -> None:
    collection, result = waits(bare, lambda: dask.annotate(workers=["late"], allow_other_workers=False))
    assert collection.stats.waiting_for == "one of the workers late"
    bare.add_worker("--name", "late")
    assert result() == list(range(10))
    assert collection.stats.snapshot()["waiting_for"] is None
