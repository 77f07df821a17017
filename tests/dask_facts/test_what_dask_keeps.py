"""Facts about dask that the design rests on: what runs when, how often, and what its scheduler keeps."""

from __future__ import annotations

import itertools
import operator
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.bag
import distributed
import pytest
from schedulers import client_of, on_scheduler, tasks
from scripts import append, eventually, lines

from parcoll import Connection, connect, parallel
from parcoll.evaluation.sizing import Fixed

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
    assert parallel(range(40), partition_size=size).fold(operator.add, 0) == 780
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
    evaluate_in_all_ways(2)  # a fold of one partition has no joins, which have a name of their own
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
