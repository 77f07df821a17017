"""A worker of dask's may forget a task that it was given; parcoll's plugin has it given out again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from bare import bare_cluster
from schedulers import client_of
from scripts import eventually, wait_for_file

from parcoll import Connection, parallel


def awaited(client: Any, seconds: float) -> int:
    """Have a worker fetch a result from another that hangs, is given up by the scheduler, and then dies.

    It has run a task that needed the same result, and forgets it meanwhile.
    """

    # Here, so that they travel by value: a bare cluster has no file of these.
    def state_of_made(dask_worker: Any) -> str:
        found = dask_worker.state.tasks.get("made")
        return "unknown" if found is None else found.state

    async def remove_holder_and_release_first(dask_scheduler: Any) -> None:
        removing = asyncio.ensure_future(
            dask_scheduler.remove_worker(holder, stimulus_id="test", close=False)
        )
        await asyncio.sleep(0)
        dask_scheduler.client_releases_keys(keys=["first"], client=name)
        await removing

    def drop(dask_scheduler: Any) -> None:
        dask_scheduler.request_remove_replicas(other, ["made"], stimulus_id="test")

    def state() -> str:
        return client.run(state_of_made, workers=[other])[other]

    client.wait_for_workers(2)
    name = client.id
    holder, other = client.scheduler_info(n_workers=-1)["workers"]
    pid = client.run(os.getpid, workers=[holder])[holder]
    made = client.submit(bytes, 3_000_000, key="made", workers=[holder], allow_other_workers=True)
    first = client.submit(len, made, key="first", workers=[other], allow_other_workers=True)
    assert eventually(first.done)
    client.run_on_scheduler(drop)  # as dask's memory manager does
    assert eventually(lambda: state() in ("released", "unknown"))
    os.kill(pid, signal.SIGSTOP)
    try:
        needs = client.submit(len, made, key="needs", workers=[other], allow_other_workers=True)
        assert eventually(lambda: state() == "flight")
        client.run_on_scheduler(remove_holder_and_release_first)
    finally:
        os.kill(pid, signal.SIGKILL)
    try:
        return int(needs.result(timeout=seconds))
    finally:
        for future in (needs, first, made):
            future.release()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[distributed.Client]:
    with bare_cluster(tmp_path / "bare", workers=2) as cluster, cluster.client() as client:
        yield client


def test_dask_s_worker_forgets_a_task_whose_result_it_was_fetching(bare: distributed.Client) -> None:
    """If this fails, `bootstrap.ask_again` need not be any more."""
    with pytest.raises(TimeoutError):
        awaited(bare, 3)


def test_it_is_given_out_again_where_parcoll_was(bare: distributed.Client) -> None:
    assert list(parallel([-1], client=bare).map(abs)) == [1]
    assert awaited(bare, 60) == 3_000_000


def test_it_is_given_out_again_on_a_local_cluster(cluster: Connection) -> None:
    assert awaited(client_of(cluster), 60) == 3_000_000
    assert list(parallel(range(10)).map(abs)) == list(range(10))


def test_dask_s_worker_forgets_tasks_that_it_has_not_begun_and_the_scheduler_gives_them_out_again(
    cluster: Connection, tmp_path: Path
) -> None:
    """As `worker.outcome.Watch` does: `state.ready`, `state.executing`, `FreeKeysEvent`, `RescheduleMsg`."""
    client = client_of(cluster)
    client.wait_for_workers(2)  # one may have been killed by the test before, or be starting
    holder, other = client.scheduler_info(n_workers=-1)["workers"]
    gates = {worker: tmp_path / str(number) for number, worker in enumerate((holder, other))}

    def hand_back(dask_worker: Any) -> tuple[int, list[str], bool]:
        from distributed.worker_state_machine import FreeKeysEvent, RescheduleMsg

        state = dask_worker.state
        keys = [ts.key for ts in state.ready]
        dask_worker.handle_stimulus(FreeKeysEvent(keys=keys, stimulus_id="test"))
        for key in keys:
            dask_worker.batched_send(RescheduleMsg(key=key, stimulus_id="test").to_dict())
        return len(state.executing), keys, any(key in state.tasks for key in keys)

    held = [
        client.submit(wait_for_file, str(gates[worker]), workers=[worker], pure=False) for worker in gates
    ]
    assert eventually(lambda: all(client.processing().values()))
    waiting = client.map(abs, range(4), pure=False)
    assert eventually(lambda: len(client.processing()[holder]) > 1)
    gates[other].touch()
    executing, keys, known = client.run(hand_back, workers=[holder])[holder]
    assert (executing, known) == (1, False)
    assert client.gather(waiting) == [0, 1, 2, 3]
    assert not held[0].done()
    gates[holder].touch()
    client.gather(held)
    assert set(keys) <= {future.key for future in waiting}


def test_a_result_that_dask_s_worker_forgets_is_made_again_and_then_the_task_that_wants_it(
    cluster: Connection, tmp_path: Path
) -> None:
    """As `worker.outcome.run_again_after` does: `FreeKeysEvent` for a result, and `Reschedule`."""
    client = client_of(cluster)
    runs = str(tmp_path / "runs")

    def make() -> int:
        with open(runs, "a") as file:
            file.write(".")
            return file.tell()

    def want(made: int) -> int:
        if made > 1:
            return made
        worker = distributed.get_worker()

        def forget() -> None:
            from distributed.worker_state_machine import FreeKeysEvent

            known = worker.state.tasks["made-1"]
            assert known.state == "memory"
            assert [task.state for task in known.dependents] == ["executing"]
            worker.handle_stimulus(FreeKeysEvent(keys=["made-1"], stimulus_id="test"))

        worker.loop.add_callback(forget)
        raise distributed.Reschedule

    made = client.submit(make, key="made-1")
    assert made.result(timeout=30) == 1
    at = ["tcp://127.0.0.1:1"]  # no worker of this cluster's
    wanted = client.submit(want, made, key="wanted-1", workers=at, allow_other_workers=True)
    assert wanted.result(timeout=30) == 2
    assert made.result(timeout=30) == 2


def test_tasks_are_handed_back_on_a_remote_cluster_too(bare: distributed.Client, tmp_path: Path) -> None:
    """Quick elements do not wait behind a slow one that the scheduler had put before them."""
    gate = str(tmp_path / "gate")

    def held(x: int) -> int:
        if x == 1:
            import time

            while not os.path.exists(gate):
                time.sleep(0.02)
        return x

    given = iter(parallel(range(8), partition_size=1, client=bare).map(held).unordered())
    assert sorted(next(given) for _ in range(7)) == [0, 2, 3, 4, 5, 6, 7]
    Path(gate).touch()
    assert list(given) == [1]
