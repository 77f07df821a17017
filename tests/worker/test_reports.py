"""Outcomes that travel as events: nothing is asked for, nothing is kept, and large results still come."""

from __future__ import annotations

import gc
import itertools
import operator
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.bag
import distributed
import pytest
from distributed.diagnostics.plugin import WorkerPlugin
from scripts import append, eventually, lines, wait_for_file

from parcoll import Connection, parallel


def client_of(cluster: Connection) -> Any:
    return cluster.engine.client


@pytest.fixture
def gathers(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what the client asks workers for."""
    asked: list[Any] = []
    gather = client_of(cluster).gather

    def noted(futures: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(futures)
        return gather(futures, *args, **kwargs)

    monkeypatch.setattr(client_of(cluster), "gather", noted)
    return asked


@pytest.fixture
def submitted(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the keys of what the client submits."""
    keys: list[str] = []
    get = client_of(cluster).get

    def noted(graph: Any, *args: Any, **kwargs: Any) -> Any:
        keys.extend(graph)
        return get(graph, *args, **kwargs)

    monkeypatch.setattr(client_of(cluster), "get", noted)
    return keys


@pytest.fixture
def without_sharing(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything travel in messages."""
    monkeypatch.setattr(cluster.engine.way.sharing, "_works", False)


def waiting_reports(cluster: Connection) -> int:
    """Return how many outcomes the workers still hold."""

    def held() -> int:
        from parcoll.worker.outcome import mailbox

        return len(mailbox)

    return sum(client_of(cluster).run(held).values())


def evaluate_in_all_ways(size: Any) -> None:
    chain = parallel(range(60), partition_size=size).map(abs).filter(lambda x: x % 2)
    assert list(chain) == list(range(1, 60, 2))
    assert sorted(chain.unordered()) == list(range(1, 60, 2))
    assert chain.count() == 30
    assert chain.take(2) == [1, 3]
    assert chain.reduce(operator.add) == 900
    assert parallel(range(60), partition_size=size).fold(operator.add, 0) == 1770
    kept = parallel(range(60), partition_size=size)
    kept.foreach(abs)
    assert list(kept) == list(range(60))


# Without a request --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 25])
def test_outcomes_come_without_being_asked_for(cluster: Connection, gathers: list[Any], size: Any) -> None:
    chain = parallel(range(200), partition_size=size).map(lambda x: x + 1)
    assert list(chain) == list(range(1, 201))
    assert sorted(chain.unordered()) == list(range(1, 201))
    assert chain.count() == 200
    assert chain.take(3) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        list(parallel(range(20), partition_size=size).map(lambda x: 1 // (x - 5)))
    assert gathers == []


def test_of_kept_results_only_a_value_is_asked_for(cluster: Connection, gathers: list[Any]) -> None:
    """The outcomes of `foreach` and of the partitions of a `reduce` are events too."""
    kept = parallel(range(60), partition_size=2)
    kept.foreach(abs)
    assert gathers == []
    assert kept.map(lambda x: x + 1).reduce(operator.add) == 1830
    assert len(gathers) <= 1


def test_kept_results_need_no_task_that_reports_on_them(cluster: Connection, submitted: list[str]) -> None:
    """One task a partition: on a scheduler of another's, a second one tells what became of it."""
    kept = parallel(range(30), partition_size=3)
    kept.foreach(lambda x: -x)
    assert list(kept) == [-x for x in range(30)]
    assert kept.reduce(operator.add) == -435
    assert submitted
    assert not [key for key in submitted if key.startswith("report-")]


def test_a_client_of_the_user_s_own_needs_no_plugin(cluster: Connection) -> None:
    """It asks for outcomes, and has tasks that report, on whatever cluster it is connected to."""
    security = client_of(cluster).security
    with distributed.Client(cluster.address, security=security, set_as_default=False) as client:
        submitted: list[str] = []
        get = client.get
        client.get = lambda graph, *args, **kwargs: (submitted.extend(graph), get(graph, *args, **kwargs))[1]
        kept = parallel(range(30), partition_size=3, client=client)
        kept.foreach(lambda x: -x)
        assert list(kept) == [-x for x in range(30)]
        assert kept.reduce(operator.add) == -435
        assert [key for key in submitted if key.startswith("report-")]
    assert waiting_reports(cluster) == 0


# Large results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 4])
@pytest.mark.usefixtures("without_sharing")
def test_results_too_large_for_an_event_are_asked_for(
    cluster: Connection, gathers: list[Any], size: Any
) -> None:
    """The scheduler would keep them, and send them on: 200 kB here."""
    texts = parallel(range(30), partition_size=size).map(lambda n: str(n % 10) * 200_000)
    assert list(texts) == [str(n % 10) * 200_000 for n in range(30)]
    assert gathers


@pytest.mark.usefixtures("without_sharing")
def test_small_and_large_results_keep_their_order(cluster: Connection, gathers: list[Any]) -> None:
    """Those that are asked for come later than events that left after them."""
    texts = parallel(range(60), partition_size=1).map(lambda n: str(n) * (100_000 if n % 3 == 1 else 10))
    assert list(texts) == [str(n) * (100_000 if n % 3 == 1 else 10) for n in range(60)]
    assert gathers
    gathers.clear()
    assert list(parallel(range(60), partition_size=1).map(lambda n: "x" * 20_000)) == ["x" * 20_000] * 60
    assert gathers == [], "20 kB fit in an event"


# What dask does -----------------------------------------------------------------------------------


class Noting(WorkerPlugin):
    """Logs an event for each task that ends with a result."""

    name = "noting"

    def setup(self, worker: Any) -> None:
        self.worker = worker

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        if finish == "memory":
            self.worker.log_event("noted", key)


@pytest.fixture
def noted(cluster: Connection) -> Iterator[list[tuple[str, str]]]:
    """Give the keys of tasks of which an event came, and what the client knew of their futures then."""
    client = client_of(cluster)
    seen: list[tuple[str, str]] = []

    def note(event: Any) -> None:
        state = client.futures.get(event[1])
        seen.append((event[1], state.status if state is not None else "unknown"))

    client.register_plugin(Noting())
    client.subscribe_topic("noted", note)
    yield seen
    client.unsubscribe_topic("noted")
    client.unregister_worker_plugin("noting")


def test_dask_s_events_of_a_transition_still_come_before_the_news_that_the_task_is_done(
    cluster: Connection, noted: list[tuple[str, str]]
) -> None:
    """On one stream, in order: else the client would ask for outcomes that are on their way."""
    client = client_of(cluster)
    futures = client.map(abs, range(-200, 0), pure=False)
    assert client.gather(futures) == list(range(200, 0, -1))
    assert eventually(lambda: len(noted) == 200)
    assert noted == [(key, "pending") for key, _ in noted]
    assert {key for key, _ in noted} == {future.key for future in futures}


# What is kept -------------------------------------------------------------------------------------


def test_the_scheduler_keeps_only_the_last_few_events(cluster: Connection) -> None:
    """dask's own bound is 1000 for each topic: outcomes of up to 64 kB each."""
    assert list(parallel(range(100), partition_size=1).map(lambda x: "x" * 20_000)) == ["x" * 20_000] * 100
    events = client_of(cluster).run_on_scheduler(
        lambda dask_scheduler: {
            topic: len(found)
            for topic, found in dask_scheduler.get_events().items()
            if topic.startswith("parcoll-") and topic != "parcoll-leaving-clients"
        }
    )
    assert len(events) == 1, "one topic a client"
    assert 1 <= max(events.values()) <= 10


@pytest.mark.parametrize("size", ["auto", 1])
def test_workers_keep_no_outcome(cluster: Connection, size: Any) -> None:
    evaluate_in_all_ways(size)
    with pytest.raises(ZeroDivisionError):
        list(parallel(range(20), partition_size=size).map(lambda x: 1 // (x - 5)))
    assert eventually(lambda: waiting_reports(cluster) == 0)


@pytest.mark.usefixtures("without_sharing")
def test_workers_keep_no_outcome_that_was_asked_for(cluster: Connection) -> None:
    texts = parallel(range(10), partition_size=1).map(lambda n: str(n) * 100_000)
    assert [len(text) for text in texts] == [100_000] * 10
    assert eventually(lambda: waiting_reports(cluster) == 0)


def test_workers_keep_no_outcome_that_nobody_waits_for(cluster: Connection, tmp_path: Path) -> None:
    """Tasks that run, or have just ended, when their iterator is left."""
    begun, gate, ended = tmp_path / "begun", tmp_path / "gate", tmp_path / "ended"

    def held(x: int) -> int:
        if x > 0:
            append(begun, x)
            wait_for_file(gate)
            append(ended, x)
        return x

    stream = iter(parallel(range(20), partition_size=1).map(held))
    assert next(stream) == 0
    assert eventually(lambda: len(lines(begun)) == 2)
    stream.close()
    assert eventually(lambda: client_of(cluster).run_on_scheduler(number_of_tasks) == 0)
    gate.touch()
    assert eventually(lambda: len(lines(ended)) == 2)
    assert eventually(lambda: waiting_reports(cluster) == 0)
    for taken in range(15):
        stream = iter(parallel(itertools.count(), partition_size=1).map(abs))
        assert list(itertools.islice(stream, taken)) == list(range(taken))
        stream.close()
    assert eventually(lambda: waiting_reports(cluster) == 0)
    assert eventually(lambda: not cluster.engine.connected().keys_wanted()), (
        "nor does the client wait for any"
    )


def test_the_client_waits_for_no_task_that_could_not_be_sent(cluster: Connection) -> None:
    """What a bag holds cannot always be pickled, which dask finds out when all is made ready."""
    bag = dask.bag.Bag({("unsendable", 0): (list, [threading.Lock()])}, "unsendable", 1)
    with pytest.raises((TypeError, RuntimeError)):
        list(parallel(bag).map(id))
    assert not cluster.engine.connected().keys_wanted()


def test_ctrl_c_while_futures_are_released_is_raised(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are dropped, Python calls `__del__`, and what that raises is printed and forgotten."""
    presses: list[type[BaseException]] = [KeyboardInterrupt]
    release = distributed.Future.release

    def interrupted(future: Any) -> None:
        release(future)
        if presses and threading.current_thread() is threading.main_thread():
            raise presses.pop()

    gc.collect()  # else a future of an earlier test may be dropped here, and take the exception
    monkeypatch.setattr(distributed.Future, "release", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parallel(range(200), partition_size=1).map(abs).count()  # those of some partitions go meanwhile
    assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    assert eventually(lambda: client_of(cluster).run_on_scheduler(number_of_tasks) == 0)


def number_of_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def test_an_outcome_that_comes_twice_counts_once(cluster: Connection, tmp_path: Path) -> None:
    """dask runs the tasks of a dead worker again, whose outcomes came before it died."""
    pids = client_of(cluster).run(os.getpid).values()
    stream = iter(parallel(range(200), partition_size=2).map(lambda x: (append(tmp_path / "runs", x), x)[1]))
    results = list(itertools.islice(stream, 3))
    assert eventually(lambda: len(lines(tmp_path / "runs")) >= 10)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    results += stream
    assert results == list(range(200))
    assert {int(x) for x in lines(tmp_path / "runs")} == set(range(200))
