"""Results that a cluster keeps, and loses with the worker and with those on which dask makes them again."""

from __future__ import annotations

import operator
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import BareCluster, bare_cluster
from scripts import eventually, lines

from parcoll import ClusterLostError, connect, parallel

GIVEN_UP = "the worker that kept them was lost, and so were those on which dask made them again"


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[BareCluster]:
    """Give a cluster that gives a task up with the first worker that is lost while it runs there."""
    with bare_cluster(tmp_path / "bare", 0) as cluster:
        cluster.scheduler.kill()
        cluster.scheduler.wait(20)
        cluster.environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
        cluster.start_scheduler()
        cluster.add_worker()
        cluster.wait_for_workers(1)
        yield cluster


class Noted:
    """Writes down its calls with 100, and waits in all but the first while it is to be held up."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.held = folder / "held"

    def __call__(self, x: int) -> int:
        if x < 100:
            return x
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        deadline = time.monotonic() + 60
        while self.held.exists() and len(lines(self.log)) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        return x


def lose_twice(cluster: BareCluster, noted: Noted) -> None:
    """Kill the worker that has made the result, and the one that makes it again."""
    noted.held.touch()
    for runs in (1, 2):
        assert eventually(lambda runs=runs: len(lines(noted.log)) == runs, 30), cluster.log()
        cluster.add_worker()
        cluster.wait_for_workers(2)
        os.kill(int(lines(noted.log)[-1]), signal.SIGKILL)
    assert eventually(lambda: "marked as failed because" in cluster.log(), 30), cluster.log()
    noted.held.unlink()


def losing(cluster: BareCluster, noted: Noted) -> Iterator[int]:
    """Give 100, lose the worker that has made something of it, and that of the second time; give the rest.

    This runs in the thread that has the partitions joined, so what came of 100 is not joined before.
    """
    for x in (100, 0):
        yield x
        time.sleep(0.5)
    lose_twice(cluster, noted)
    yield from range(5)


def test_a_fold_begins_again_on_the_same_cluster(impatient: BareCluster, tmp_path: Path) -> None:
    noted = Noted(tmp_path)
    sources = iter([losing(impatient, noted), iter([100, *range(5)])])
    with connect(impatient.address):
        numbers = parallel(lambda: next(sources), partition_size=1).map(noted)
        assert numbers.fold(operator.add, 0) == 110
        assert numbers.stats.elements_out == 6


def test_of_what_can_be_read_only_once_it_says_what_is_lost(impatient: BareCluster, tmp_path: Path) -> None:
    noted = Noted(tmp_path)
    with connect(impatient.address), pytest.raises(ClusterLostError) as raised:
        parallel(losing(impatient, noted), partition_size=1).map(noted).fold(operator.add, 0)
    said = f"results that this evaluation still needs are gone: {GIVEN_UP}; fold() has no value"
    assert said in str(raised.value)
    assert "cannot begin again" in str(raised.value)


def test_results_of_foreach_are_told_to_be_gone(impatient: BareCluster, tmp_path: Path) -> None:
    noted = Noted(tmp_path)
    with connect(impatient.address):
        numbers = parallel([100])
        numbers.foreach(noted)
        lose_twice(impatient, noted)
        for read in (lambda: list(numbers), lambda: list(numbers.map(abs)), lambda: numbers.reduce(max)):
            with pytest.raises(ClusterLostError, match=f"the results of foreach.. are gone: {GIVEN_UP}"):
                read()
