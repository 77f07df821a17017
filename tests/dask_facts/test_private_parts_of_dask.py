"""The parts of dask that we lean on without their being public; a failure here names the part."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import dask.bag
import distributed
import pytest
from bare import bare_cluster
from dask._task_spec import Task, TaskRef
from distributed.scheduler import KilledWorker
from schedulers import client_of
from scripts import eventually

from parcoll import Connection
from parcoll.calls import objects
from parcoll.chain.steps import Map, Step
from parcoll.cluster import clients, losses
from parcoll.cluster.clients import client_of as joined_client


def test_dask_s_task_still_has_the_parts_that_graph_py_reads() -> None:
    task = Task("key", abs, TaskRef("before"))
    assert (task.key, task.func, task.args) == ("key", abs, (TaskRef("before"),))
    assert set(task.dependencies) == {"before"}


def test_dask_s_task_still_says_that_it_queues_at_the_scheduler(cluster: Connection) -> None:
    """`sending.opaque_task` says so, whatever its name has in common with others'."""
    client = client_of(cluster)
    tasks = {key: Task(key, abs, -1, _data_producer=key == "queues") for key in ("queues", "does-not")}
    futures = client.get(tasks, list(tasks), sync=False)
    assert client.gather(futures) == [1, 1]

    def which(dask_scheduler: Any) -> dict[str, bool]:
        return {key: dask_scheduler.is_rootish(dask_scheduler.tasks[key]) for key in ("queues", "does-not")}

    assert client.run_on_scheduler(which) == {"queues": True, "does-not": False}


def test_dask_s_map_partitions_still_makes_one_task_a_partition_with_our_step_as_its_function() -> None:
    step = Map(abs)
    bag = dask.bag.Bag({("base", 0): Task(("base", 0), list)}, "base", 1)
    longer = bag.map_partitions(step, token="word")
    node = longer.dask.to_dict()[(longer.name, 0)]
    assert type(node) is Task
    assert isinstance(node.func, Step)
    assert node.func is step
    assert set(node.dependencies) == {("base", 0)}
    assert longer.npartitions == 1


def test_dask_s_bag_still_optimizes_to_a_graph_of_tasks_with_dependencies() -> None:
    bag = dask.bag.from_sequence(range(4), npartitions=2).map(abs)
    keys = [(bag.name, i) for i in range(2)]
    graph = dict(bag.__dask_optimize__(bag.__dask_graph__(), keys))
    assert set(keys) <= set(graph)
    assert all(hasattr(node, "dependencies") for node in graph.values())


def test_dask_s_client_still_takes_a_graph_with_a_priority_for_each_key(cluster: Connection) -> None:
    client = client_of(cluster)
    assert {"dsk", "keys", "sync", "priority"} <= set(inspect.signature(client.get).parameters)
    graph = {"word-1": Task("word-1", abs, -1)}
    (future,) = client.get(graph, ["word-1"], sync=False, priority={"word-1": -3.0}.get)
    assert isinstance(future, distributed.Future)
    assert future.result(timeout=20) == 1
    assert not future.cancelled()
    future.release()


def test_dask_s_client_still_sends_in_intervals_which_are_short_for_ours(cluster: Connection) -> None:
    """`cluster.clients` and `local.children` set an attribute of what all send with."""
    stream = distributed.batched.BatchedSend(interval="10ms")
    assert stream.interval == 0.01
    ours = client_of(cluster).scheduler_comm
    assert (type(ours), ours.interval) == (type(stream), 0.001)

    def intervals(dask_scheduler: Any) -> set[float]:
        streams = [*dask_scheduler.stream_comms.values(), *dask_scheduler.client_comms.values()]
        return {stream.interval for stream in streams}

    assert client_of(cluster).run_on_scheduler(intervals) == {0.001}
    assert set(client_of(cluster).run(lambda dask_worker: dask_worker.batched_stream.interval).values()) == {
        0.001
    }


def test_dask_estimates_the_size_of_no_message_of_ours(cluster: Connection) -> None:
    """`cluster.clients` and `local.children` set an attribute of connections, which is True without that."""
    with distributed.Client(
        client_of(cluster).scheduler.address, security=client_of(cluster).security
    ) as other:
        assert other.scheduler_comm.comm.allow_offload is True
    assert client_of(cluster).scheduler_comm.comm.allow_offload is False
    of_workers = client_of(cluster).run(lambda dask_worker: dask_worker.batched_stream.comm.allow_offload)
    assert set(of_workers.values()) == {False}
    assert "allow_offload" in inspect.getsource(distributed.comm.tcp.TCP.write)


def test_dask_s_as_completed_still_works_in_a_coroutine_of_the_client_s_loop(cluster: Connection) -> None:
    client = client_of(cluster)
    completed = distributed.as_completed(loop=client.loop)
    assert completed.is_empty()
    future = client.submit(abs, -1, pure=False)
    completed.add(future)

    async def first() -> tuple[Any, Any]:
        return await completed.__anext__(), completed.next_batch(block=False)

    got = asyncio.run_coroutine_threadsafe(first(), client.loop.asyncio_loop).result(20)
    assert (got[0], list(got[1])) == (future, [])
    assert completed.is_empty()
    assert future.status == "finished"


def test_dask_s_secede_still_fails_outside_a_task() -> None:
    with pytest.raises((ValueError, AttributeError, KeyError)):
        distributed.secede()


def test_dask_s_killed_worker_still_says_how_many_deaths_it_took() -> None:
    error = KilledWorker("task", last_worker=None, allowed_failures=3)  # type: ignore[arg-type]
    assert error.allowed_failures == 3


def test_dask_s_group_of_a_key_is_still_its_leading_words(cluster: Connection) -> None:
    from distributed.utils import key_split

    assert key_split("map-abs-filter-lambda-12345678901234567890-3-17") == "map-abs-filter-lambda"


def test_dask_s_workers_still_understand_the_message_of_client_run(cluster: Connection) -> None:
    client = cluster.engine.client
    message = losses.message(objects.end_on, objects.Which(keys=["nobody's"]))
    said = client.sync(client.scheduler.broadcast, msg=message)
    assert {answer["status"] for answer in said.values()} == {"OK"}


def test_distributed_still_imports_and_works_without_numpy() -> None:
    """Leaving numpy out saves 0.1 s; whoever uses numpy gets it all the same, in any thread."""
    code = """
import sys
from parcoll import parallel
assert list(parallel(range(3)).map(lambda x: "numpy" in sys.modules)) == [False] * 3
assert "numpy" not in sys.modules, "distributed or parcoll loads numpy where nobody uses it"
import numpy, distributed.protocol.utils as utils
assert len(utils.host_array(5)) == 5
arrays = [numpy.arange(200_000.0) + i for i in range(4)]
assert all(map(numpy.array_equal, parallel(arrays).map(lambda a: a * 2), (a * 2 for a in arrays)))
import dask
assert dask.base.tokenize(arrays[0]) != dask.base.tokenize(arrays[1])
from distributed.protocol import deserialize, serialize
header, frames = serialize(arrays[0])
assert header["serializer"] == "dask" and numpy.array_equal(deserialize(header, frames), arrays[0])
print("right")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("right\n", "")


def test_a_client_of_ours_does_not_look_for_a_scheduler_that_it_has_lost(tmp_path: Path) -> None:
    """Ours overrides what dask's client calls to find it: status and streams are those of dask."""
    with bare_cluster(tmp_path / "cluster", 0) as found:
        ours = joined_client(found.address)
        ours._timeout = 0.5
        theirs = distributed.Client(found.address, set_as_default=False, timeout=0.5)
        streams = [client.scheduler_comm for client in (ours, theirs)]
        assert not any(stream.closed() for stream in streams)
        found.scheduler.kill()
        assert eventually(lambda: theirs.status == "closed", 10), "dask's own looks for it, and gives up"
        assert all(stream.closed() for stream in streams)
        assert (ours.status, ours.scheduler_comm) == ("connecting", None)
        ours.close()
        assert ours.status == "closed"


def test_a_connection_that_is_dropped_is_logged_by_dask_unless_it_is_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C drops one that is being made: of a client of ours not a word reaches the user's terminal."""

    async def drop(address: str) -> None:
        comm = await distributed.comm.connect(address)
        assert not comm.closed()
        del comm
        gc.collect()

    with bare_cluster(tmp_path / "cluster", 0) as found:
        address = found.address
        asyncio.run(drop(address))
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith("Closing dangling stream")
        assert address in message
        caplog.clear()
        monkeypatch.setattr(clients._quiet, "expected", {address})
        asyncio.run(drop(address))
        assert not caplog.records
