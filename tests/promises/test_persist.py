"""`persist`: what was evaluated once stays on the workers, and another collection has it."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from scripts import append, eventually, lines

from parcoll import ClusterLostError, Connection, connect, parallel


def tasks_of(cluster: Connection) -> int:
    """Return how many tasks the scheduler knows."""
    return int(cluster.engine.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def test_nothing_before_it_runs_again_and_the_first_collection_stays(
    place: Connection, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"

    def square(x: int) -> int:
        append(calls, f"{x}")
        return x * x

    chain = parallel(range(20)).map(square)
    squares = chain.persist()
    assert len(lines(calls)) == 20
    assert list(squares) == list(squares.map(abs)) == [x * x for x in range(20)]
    assert (squares.count(), squares.first(), squares.take(2)) == (20, 0, [0, 1])
    assert squares.reduce(lambda a, b: a + b) == squares.fold(lambda a, b: a + b, 0) == sum(squares)
    assert list(squares.filter(lambda x: x % 2).persist().map(str)) == [str(x * x) for x in range(1, 20, 2)]
    assert squares.bag.npartitions >= 1
    assert len(lines(calls)) == 20
    assert list(chain) == list(squares)
    assert len(lines(calls)) == 40


def test_numbers_and_errors_are_those_of_the_evaluation(place: Connection) -> None:
    found = parallel([3, 0, 5], on_error="skip").map(lambda x: 15 // x).persist()
    assert found.stats.failed == 1
    assert [error.element for error in found.errors] == [0]
    assert list(found) == [5, 3]


def test_an_endless_or_failing_source_raises_and_keeps_nothing(place: Connection) -> None:
    chain = parallel([1, 0]).map(lambda x: 1 // x)
    with pytest.raises(ZeroDivisionError):
        chain.persist()
    assert chain.first() == 1


def test_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="persist"):
        parallel([1], checkpoint=str(tmp_path / "saved")).map(abs).persist()


def test_what_nobody_refers_to_is_freed(cluster: Connection) -> None:
    gc.collect()  # what is left of the tests before
    assert eventually(lambda: tasks_of(cluster) == 0, 20)
    kept = parallel(range(50), partition_size=10).map(lambda x: bytes(100_000)).persist()
    assert tasks_of(cluster) >= 5
    longer = kept.map(len)
    del kept
    gc.collect()
    assert list(longer) == [100_000] * 50
    del longer
    gc.collect()
    assert eventually(lambda: tasks_of(cluster) == 0, 20)


def test_a_result_that_is_lost_with_its_worker_is_made_again(cluster: Connection) -> None:
    kept = parallel(range(40), partition_size=5).map(lambda x: (x, os.getpid())).persist()
    victim = next(iter(kept))[1]
    os.kill(victim, signal.SIGKILL)
    assert [x for x, _ in kept] == list(range(40))
    assert victim not in {pid for _, pid in kept}


def test_a_function_in_the_script_s_own_process_is_told_to_get_a_list(cluster: Connection) -> None:
    kept = parallel([1, 2]).map(str).persist()
    with connect("inline"):
        assert list(kept) == ["1", "2"]
        with pytest.raises(ClusterLostError, match=r"keep on a cluster cannot be had .*: pass it list\(coll"):
            list(parallel([0]).map(lambda _: kept.count()))
