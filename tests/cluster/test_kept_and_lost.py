"""Results that a cluster keeps, and loses with the worker and with those on which dask makes them again."""

from __future__ import annotations

import operator
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import BareCluster, bare_cluster
from scripts import eventually, lines, meanwhile

from parcoll import ClusterLostError, connect, parallel

TWO_THREADS = ("--nthreads", "2")  # one is held up, and the other one tells what has come
GIVEN_UP = "the worker that kept them was lost, and so were those on which dask made them again"


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[BareCluster]:
    """Give a cluster that gives a task up with the first worker that is lost while it runs there."""
    with bare_cluster(tmp_path / "bare", 0) as cluster:
        cluster.scheduler.kill()
        cluster.scheduler.wait(20)
        cluster.environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
        cluster.start_scheduler()
        cluster.add_worker(*TWO_THREADS)
        cluster.wait_for_workers(1)
        yield cluster


class Noted:
    """Writes down its calls with 100, and waits in all but the first while it is to be held up; so does 0."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.held = folder / "held"

    def __call__(self, x: int) -> int:
        if x == 100:
            with self.log.open("a") as log:
                log.write(f"{os.getpid()}\n")
        if (x == 100 and len(lines(self.log)) > 1) or x == 0:
            assert eventually(lambda: not self.held.exists(), 60)
        return x


def lose_twice(cluster: BareCluster, noted: Noted) -> None:
    """Kill the worker that has made the result, and the one that makes it again."""
    for runs in (1, 2):
        assert eventually(lambda runs=runs: len(lines(noted.log)) == runs, 30), cluster.log()
        cluster.add_worker(*TWO_THREADS)
        cluster.wait_for_workers(2)  # meanwhile the result is told
        os.kill(int(lines(noted.log)[-1]), signal.SIGKILL)
    assert eventually(lambda: "marked as failed because" in cluster.log(), 30), cluster.log()
    noted.held.unlink()


@pytest.fixture
def noted(impatient: BareCluster, tmp_path: Path) -> Noted:
    """Give the function, held up."""
    made = Noted(tmp_path)
    made.held.touch()
    return made


NUMBERS = [100, 0, 1, 2, 3, 4]  # what came of 100 can be joined when 0 is ready


def test_a_fold_begins_again_on_the_same_cluster(impatient: BareCluster, noted: Noted) -> None:
    with connect(impatient.address):
        numbers = parallel(NUMBERS, partition_size=1).map(noted)
        with meanwhile(lambda ended: lose_twice(impatient, noted)):
            assert numbers.fold(operator.add, 0) == 110
        assert numbers.stats.elements_out == 6
    assert len(lines(noted.log)) == 3


def test_of_what_can_be_read_only_once_it_says_what_is_lost(impatient: BareCluster, noted: Noted) -> None:
    numbers = parallel((x for x in NUMBERS), partition_size=1).map(noted)
    losing = meanwhile(lambda ended: lose_twice(impatient, noted))
    with connect(impatient.address), losing, pytest.raises(ClusterLostError) as raised:
        numbers.fold(operator.add, 0)
    said = f"results that this evaluation still needs are gone: {GIVEN_UP}; fold() has no value"
    assert said in str(raised.value)
    assert "cannot begin again" in str(raised.value)


def test_results_of_foreach_are_told_to_be_gone(impatient: BareCluster, noted: Noted) -> None:
    with connect(impatient.address):
        numbers = parallel([100])
        numbers.foreach(noted)
        lose_twice(impatient, noted)
        for read in (lambda: list(numbers), lambda: list(numbers.map(abs)), lambda: numbers.reduce(max)):
            with pytest.raises(ClusterLostError, match=f"of persist.. or foreach.. are gone: {GIVEN_UP}"):
                read()
