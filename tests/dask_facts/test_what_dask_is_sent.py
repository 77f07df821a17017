"""Facts about dask that the design rests on: data travels as data, and large things once."""

from __future__ import annotations

import asyncio
import copy
import io
import operator
import os
import pickle
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dask._task_spec import Task, TaskRef
from distributed.protocol.serialize import serialize
from schedulers import client_of, finished, on_scheduler
from scripts import append, eventually, lines

from parcoll import Connection, parallel
from parcoll.chain.steps import Map
from parcoll.cluster.engine import DistributedEngine
from parcoll.cluster.link import Link
from parcoll.cluster.session import EMBEDDED_BYTES
from parcoll.evaluation.engine import Job
from parcoll.wire.payload import Packed
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Program

# Data ---------------------------------------------------------------------------------------------


class Same:
    """Equal to another of its kind that was pickled and back: dask's own nodes compare by key only."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and repr(self.node) == repr(other.node)

    __hash__ = None  # type: ignore[assignment]


LIKE_TASKS: list[Any] = [
    (len, [1, 2, 3]),
    [(sum, [1, 2])],
    {"a": (os.getpid,)},
    ("source-0", 0),
    "program-1",
    Same(Task("key", os.getpid)),
    Same(TaskRef("program-1")),
]


@pytest.mark.parametrize("size", ["auto", 1, 100])
def test_data_that_looks_like_a_task_is_not_run(cluster: Connection, size: Any) -> None:
    """`from_sequence([(len, [1, 2, 3])])` computes to `[3]`; ours gives what it was given."""
    data = LIKE_TASKS
    collection = parallel(data, partition_size=size).map(lambda x: x)
    assert list(collection) == data
    assert parallel([0]).map(lambda _: data).first() == data
    assert collection.reduce(lambda a, b: a) == data[0]
    kept = parallel(data, partition_size=size)
    kept.foreach(lambda x: x)
    assert list(kept) == data


def test_an_initial_value_that_looks_like_a_task_is_not_run(cluster: Connection) -> None:
    assert parallel([]).reduce(lambda a, b: a, (len, [1, 2, 3])) == (len, [1, 2, 3])
    assert parallel([1, 2]).fold(lambda a, b: a, (len, [1, 2, 3]), lambda a, b: a) == (len, [1, 2, 3])


def test_results_travel_as_one_opaque_object(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask would send a list of 200,000 ints as 200,000 objects (distributed#6368)."""
    gathered: list[Any] = []
    gather = client_of(cluster).gather

    async def noted(*args: Any, **kwargs: Any) -> Any:
        values = await gather(*args, **kwargs)
        gathered.extend(map(copy.copy, values))  # the evaluation lets go of results that were taken
        return values

    monkeypatch.setattr(client_of(cluster), "gather", noted)
    numbers = list(range(200_000))
    client = client_of(cluster)  # named, it is a client like any other: no memory is shared with it
    assert list(parallel(numbers, partition_size=200_000, client=client).map(abs)) == numbers
    (outcome,) = gathered
    assert type(outcome) is Outcome
    assert type(outcome.results) is Packed
    for travels in (outcome, outcome.results, Kept(Outcome(), outcome.results)):
        header, frames = serialize(travels)
        assert header["serializer"] == "pickle", "dask took the object apart"
        assert len(frames) <= 2


class Names(pickle.Unpickler):
    """Notes the modules that a pickle names."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.modules.add(module.partition(".")[0])
        return super().find_class(module, name)


def test_the_scheduler_is_sent_names_of_dask_and_the_standard_library_only(cluster: Connection) -> None:
    """It may have neither parcoll nor a user's modules; and dask looks into no list, tuple, set or dict."""
    graphs: list[dict[Any, Any]] = []
    submit_get = client_of(cluster).get

    def noted(graph: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        graphs.append(graph)
        return submit_get(graph, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_of(cluster), "get", noted)
        assert list(parallel([Same(1), (len, [1])], partition_size=1).map(type)) == [Same, tuple]
        kept = parallel(range(2), partition_size=1)
        data = os.urandom(100_000)
        kept.foreach(lambda x: x + len(data))
        assert kept.reduce(operator.add) == 200_001
    unpickler = Names(pickle.dumps(graphs))
    copies = unpickler.load()
    assert unpickler.modules <= sys.stdlib_module_names | {"dask", "_pickle"}
    assert len(copies) > 4
    arguments = [argument for graph in copies for task in graph.values() for argument in task.args]
    assert {type(argument) for argument in arguments} == {Task, TaskRef}


# Large programs and partitions --------------------------------------------------------------------


class Ballast:
    """Notes where it is unpickled."""

    def __init__(self, trace: Path, nbytes: int) -> None:
        self.trace = trace
        self.data = os.urandom(nbytes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        append(self.trace, os.getpid())

    def __call__(self, x: int) -> int:
        return x + len(self.data)


@pytest.mark.parametrize("nbytes", [100, EMBEDDED_BYTES - 2000, EMBEDDED_BYTES + 1, 20 * 2**20])
def test_a_closure_is_unpickled_once_a_worker_and_nowhere_else(
    cluster: Connection, tmp_path: Path, nbytes: int
) -> None:
    """Not once a task, not on the scheduler; and dask's advice about large graphs stays unsaid."""
    trace = tmp_path / "trace"
    ballast = Ballast(trace, nbytes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(parallel(range(40), partition_size=1).map(ballast)) == [x + nbytes for x in range(40)]
    workers = {str(pid) for pid in client_of(cluster).run(os.getpid).values()}
    counts = Counter(lines(trace))
    assert counts.keys() <= workers
    assert max(counts.values()) == 1


def test_of_large_closures_a_worker_keeps_those_whose_evaluations_go_on(
    cluster: Connection, tmp_path: Path
) -> None:
    """Several at once are each unpickled once; of those that have ended, the last one at most stays."""
    balls = [Ballast(tmp_path / f"trace-{n}", 200_000) for n in range(4)]
    streams = [iter(parallel(range(60), partition_size=1).map(ball)) for ball in balls]
    for x in range(60):
        assert [next(stream) for stream in streams] == [x + 200_000] * 4
    for n in range(4):
        assert max(Counter(lines(tmp_path / f"trace-{n}")).values()) == 1
    del streams
    assert parallel(range(40), partition_size=1).map(balls[0]).count() == 40

    def kept() -> int:
        from parcoll.worker.program import _lent_here

        return len(_lent_here)

    assert set(client_of(cluster).run(kept).values()) == {1}


@pytest.mark.parametrize("shares", [True, False])
def test_a_large_closure_travels_apart_from_the_tasks(
    cluster: Connection, tmp_path: Path, shares: bool
) -> None:
    """Through shared memory, where there is such; else as a task of its own."""
    sent: list[int] = []
    submit_get = client_of(cluster).get

    def noted(graph: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        sent.append(len(pickle.dumps(graph)))
        return submit_get(graph, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_of(cluster), "get", noted)
        if not shares:
            patch.setattr(cluster.engine.way.sharing, "_works", False)
        list(parallel(range(40), partition_size=1).map(Ballast(tmp_path / "trace", 20 * 2**20)))
    assert len(sent) > 2
    assert [nbytes > 20 * 2**20 for nbytes in sent].count(True) == (0 if shares else 1)
    assert max(sorted(sent)[:-1]) < 10_000


def test_large_elements_bring_no_warning(cluster: Connection) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elements = (bytes(12 * 2**20) for _ in range(4))
        assert list(parallel(elements, partition_size=2).map(len)) == [12 * 2**20] * 4


# Gathering ----------------------------------------------------------------------------------------


def test_a_session_that_closes_does_not_take_another_s_results(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client's gathers share a future: cancelling one's wait cancels them all, for good."""
    client = client_of(cluster)
    begun, go = threading.Event(), asyncio.Event()
    gather_remote = client._gather_remote

    async def held(*args: Any) -> Any:
        begun.set()
        await go.wait()
        return await gather_remote(*args)

    monkeypatch.setattr(client, "_gather_remote", held)
    engine = DistributedEngine(Link(client))  # of a cluster whose workers do not report by themselves
    session = engine.open(Program((Map(abs),)), "left", keep=False)
    session.submit([Job(elements=engine.pack([-1]), size=1)])
    assert begun.wait(10)
    results: list[int] = []
    chain = parallel(range(5), client=client).map(abs)
    other = threading.Thread(target=lambda: results.extend(chain), daemon=True)
    other.start()
    assert eventually(lambda: on_scheduler(cluster, finished) >= 2)
    session.close()
    client.loop.add_callback(go.set)
    other.join(10)
    assert results == [0, 1, 2, 3, 4]
