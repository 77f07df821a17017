"""The facts about dask that the design rests on, on real workers; a failure here names the fact."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import itertools
import operator
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.bag
import distributed
import pytest
from bare import bare_cluster
from dask._task_spec import Task, TaskRef
from distributed.protocol.serialize import serialize
from distributed.scheduler import KilledWorker
from scripts import append, eventually, lines

from parcoll import Connection, connect, parallel
from parcoll.chain.steps import Map, Step
from parcoll.cluster import clients
from parcoll.cluster.clients import client_of as joined_client
from parcoll.cluster.engine import DistributedEngine
from parcoll.cluster.session import EMBEDDED_BYTES
from parcoll.evaluation.engine import Job
from parcoll.evaluation.sizing import Fixed
from parcoll.wire.payload import Packed
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Program


def client_of(cluster: Connection) -> Any:
    return cluster.engine.client


def on_scheduler(cluster: Connection, func: Any) -> Any:
    return client_of(cluster).run_on_scheduler(func)


def tasks(dask_scheduler: Any) -> list[str]:
    return sorted(map(str, dask_scheduler.tasks))


def finished(dask_scheduler: Any) -> int:
    return sum(task.state == "memory" for task in dask_scheduler.tasks.values())


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
        gathered.extend(values)
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


# Order and identity -------------------------------------------------------------------------------


def test_a_group_of_tasks_runs_in_source_order(tmp_path: Path) -> None:
    """Without a priority each, a group runs last first, and the first result comes at the end."""
    trace = tmp_path / "trace"
    window = Fixed(1).window(1)
    with connect(n_workers=1):
        parallel(range(window), partition_size=1).foreach(lambda x: append(trace, x))
        assert lines(trace) == [str(x) for x in range(window)]
        trace.unlink()
        parallel(range(60), partition_size=1).foreach(lambda x: append(trace, x))
    places = {int(x): place for place, x in enumerate(lines(trace))}
    assert len(places) == 60
    assert all(abs(x - place) < window for x, place in places.items())


def test_equal_partitions_all_run(cluster: Connection, tmp_path: Path) -> None:
    """Keys are not hashes of content: what looks the same happens as often as it stands there."""
    trace = tmp_path / "trace"
    collection = parallel([7] * 20, partition_size=1).map(lambda x: append(trace, x))
    assert list(collection) == [None] * 20
    assert Counter(lines(trace)) == {"7": 20}


def test_two_evaluations_of_one_collection_both_run(cluster: Connection, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    collection = parallel(range(10), partition_size=3).map(lambda x: (append(trace, x), x)[1])
    assert list(zip(collection, collection, strict=True)) == [(x, x) for x in range(10)]
    assert collection.count() == 10
    assert Counter(lines(trace)) == {str(x): 3 for x in range(10)}


def test_two_clients_of_one_scheduler_make_different_keys(cluster: Connection) -> None:
    client = client_of(cluster)
    with distributed.Client(cluster.address, security=client.security, set_as_default=False) as other:
        streams = [iter(parallel(range(50), client=c, partition_size=2).map(abs)) for c in (client, other)]
        assert list(zip(*streams, strict=True)) == [(x, x) for x in range(50)]


def test_a_bag_computed_by_dask_itself_gives_the_same(cluster: Connection) -> None:
    """The wrapped bag is a real one: dask's own schedulers run it."""
    pairs = parallel(range(50)).map(lambda x: (x, [x])).filter(lambda pair: pair[0] % 3)
    chain = pairs.flatmap(lambda pair: pair[1] * 2).map(str)
    assert chain.bag.compute(scheduler="synchronous") == list(chain)
    assert isinstance(chain.bag, dask.bag.Bag)


def test_a_user_s_bag_is_evaluated_where_it_is(cluster: Connection) -> None:
    bag = dask.bag.from_sequence(range(30), npartitions=4).map(lambda x: x + 1)
    chain = parallel(bag).map(lambda x: 2 * x)
    assert list(chain) == [2 * (x + 1) for x in range(30)] == chain.bag.compute(scheduler="synchronous")


# What a scheduler keeps ---------------------------------------------------------------------------


def evaluate_in_all_ways(size: Any = "auto") -> None:
    chain = parallel(range(40), partition_size=size).map(abs).filter(lambda x: x % 2)
    assert list(chain) == list(range(1, 40, 2))
    assert chain.reduce(operator.add) == 400
    assert chain.count() == 20
    assert chain.take(2) == [1, 3]
    assert parallel(range(40)).fold(operator.add, 0) == 780
    kept = parallel(range(40), partition_size=size)
    kept.foreach(abs)
    assert list(kept) == list(range(40))


def test_no_task_and_no_future_outlives_its_evaluation(cluster: Connection) -> None:
    evaluate_in_all_ways()
    evaluate_in_all_ways(1)
    stream = iter(parallel(itertools.count(), partition_size=1).map(abs))
    next(stream)
    del stream
    with pytest.raises(ZeroDivisionError):
        list(parallel(range(20), partition_size=1).map(lambda x: 1 // (x - 5)))
    assert eventually(lambda: not on_scheduler(cluster, tasks)), on_scheduler(cluster, tasks)
    assert eventually(lambda: not client_of(cluster).futures), client_of(cluster).futures

    def held() -> set[int]:
        count = client_of(cluster).run
        return set(count(lambda dask_worker: len(dask_worker.data) + len(dask_worker.state.tasks)).values())

    assert eventually(lambda: held() == {0}), held()


def test_iterators_that_are_left_keep_no_task(cluster: Connection) -> None:
    """Wherever the results were just then: running, finished, or on their way here."""
    for taken in range(30):
        stream = iter(parallel(range(100), partition_size=3).map(abs))
        assert list(itertools.islice(stream, taken)) == list(range(taken))
        stream.close()  # type: ignore[attr-defined]
        del stream
    assert eventually(lambda: not on_scheduler(cluster, tasks)), on_scheduler(cluster, tasks)


def test_names_on_the_scheduler_are_words_that_do_not_multiply(cluster: Connection) -> None:
    """A prefix lives as long as the scheduler: no uuid, no number of an evaluation may be in it."""

    def names(dask_scheduler: Any) -> tuple[set[str], int]:
        return set(dask_scheduler.task_prefixes), len(dask_scheduler.task_groups)

    evaluate_in_all_ways()
    assert eventually(lambda: not on_scheduler(cluster, tasks))
    prefixes, groups = on_scheduler(cluster, names)
    for _ in range(5):
        evaluate_in_all_ways(2)
    assert eventually(lambda: not on_scheduler(cluster, tasks))
    assert on_scheduler(cluster, names) == (prefixes, groups)
    assert all(re.fullmatch("[a-z_]+(-[a-z_]+)*", name) for name in prefixes), prefixes
    assert {"map-abs-filter-lambda-x-mod-two", "reduce-add", "fold-add"} <= prefixes


def test_the_scheduler_keeps_no_span_of_what_is_over(cluster: Connection) -> None:
    """dask begins a span whenever nothing runs: for each element of a source that pauses between them."""

    def spans(dask_scheduler: Any) -> int:
        return len(dask_scheduler.extensions["spans"].spans) if "spans" in dask_scheduler.extensions else 0

    def pausing() -> Iterator[int]:
        for x in range(5):
            yield x
            time.sleep(0.1)

    assert list(parallel(range(5)).map(abs)) == [0, 1, 2, 3, 4]
    before = on_scheduler(cluster, spans)
    assert list(parallel(pausing).map(abs)) == [0, 1, 2, 3, 4]
    for _ in range(10):
        assert parallel([-1]).map(abs).first() == 1
    assert on_scheduler(cluster, spans) <= before + 1


def test_a_name_of_the_user_s_own_names_the_tasks(cluster: Connection) -> None:
    list(parallel(range(3), name="My step no. 7").map(abs))
    prefixes = on_scheduler(cluster, lambda dask_scheduler: set(dask_scheduler.task_prefixes))
    assert any(name.lower().startswith("my-step") for name in prefixes)


def test_messages_that_were_sent_are_not_kept(cluster: Connection) -> None:
    """dask keeps the last 1000, our partitions in them; the user's own configuration stays as it is."""

    def kept(dask_scheduler: Any) -> list[int]:
        comms = [*dask_scheduler.client_comms.values(), *dask_scheduler.stream_comms.values()]
        return [comm.recent_message_log.maxlen for comm in comms]

    list(parallel(range(3)).map(abs))
    assert client_of(cluster).scheduler_comm.recent_message_log.maxlen <= 10
    on_both_sides = on_scheduler(cluster, kept)
    assert on_both_sides
    assert max(on_both_sides) <= 10
    assert on_scheduler(cluster, lambda dask_scheduler: dask_scheduler.computations.maxlen) == 1
    assert dask.config.get("distributed.admin.low-level-log-length") == 1000
    assert dask.config.get("distributed.diagnostics.computations.max-history") == 100


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
    # A large one is a key of dask's, which a worker drops when it has no task for it, and fetches again.
    assert max(counts.values()) <= (1 if nbytes < EMBEDDED_BYTES else 3)


def test_a_large_closure_travels_apart_from_the_tasks(cluster: Connection, tmp_path: Path) -> None:
    sent: list[int] = []
    submit_get = client_of(cluster).get

    def noted(graph: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        sent.append(len(pickle.dumps(graph)))
        return submit_get(graph, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_of(cluster), "get", noted)
        list(parallel(range(40), partition_size=1).map(Ballast(tmp_path / "trace", 20 * 2**20)))
    assert len(sent) > 2
    assert [nbytes > 20 * 2**20 for nbytes in sent].count(True) == 1
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
    engine = DistributedEngine(client)  # of a cluster whose workers do not report by themselves
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


# The parts of dask that are not documented as public ----------------------------------------------


def test_dask_s_task_still_has_the_parts_that_graph_py_reads() -> None:
    task = Task("key", abs, TaskRef("before"))
    assert (task.key, task.func, task.args) == ("key", abs, (TaskRef("before"),))
    assert set(task.dependencies) == {"before"}


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
    """`engine.clients._prompt` sets an attribute of what the client sends with."""
    stream = distributed.batched.BatchedSend(interval="10ms")
    assert stream.interval == 0.01
    ours = client_of(cluster).scheduler_comm
    assert (type(ours), ours.interval) == (type(stream), 0.001)


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


@pytest.fixture(autouse=True)
def config_stays() -> Iterator[None]:
    """Fail a test after which dask's configuration is another."""
    before = repr(dask.config.config)
    yield
    assert repr(dask.config.config) == before


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
