"""With `reconnect=`, a remote scheduler that goes away is waited for; the answer stays exact."""

from __future__ import annotations

import functools
import json
import logging
import operator
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import dask.bag
import distributed
import pytest
from bare import bare_cluster
from ports import free_port
from restarted import Restarted, slowly, stopped
from scripts import append, eventually, lines

from parcoll import ClusterLostError, Connection, connect, parallel
from parcoll.cluster import clients
from parcoll.connecting import current

WAIT = 60.0  # seconds: `reconnect` where the scheduler does come back


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    """Give a cluster that is running again after each test."""
    with bare_cluster(tmp_path_factory.mktemp("cluster"), 0, port=free_port()) as found:
        yield Restarted(found)


@pytest.fixture
def connection(cluster: Restarted) -> Iterator[Connection]:
    """Give a connection that waits for its scheduler."""
    with connect(cluster.address, reconnect=WAIT) as found:
        yield found


def concatenated(text: str, x: int) -> str:
    return f"{text} {x}"


def in_progress(collection: Any) -> Callable[[], bool]:
    return lambda: collection.stats.partitions_done >= 3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients of this process give up a silent scheduler after two seconds, not half a minute."""
    monkeypatch.setattr(clients, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(clients, "seconds_allowed", lambda: 2.0)


def test_a_scheduler_that_hung_for_a_while_is_joined_again(cluster: Restarted, impatient: None) -> None:
    """One that hangs for less is waited for, and nothing runs again."""
    with connect(cluster.address, reconnect=WAIT) as connection:
        numbers = parallel(iter(range(600)), partition_size=5).map(slowly)
        stream = iter(numbers)
        found = [next(stream) for _ in range(20)]
        with stopped(cluster.cluster.scheduler):
            time.sleep(1)
        found += [next(stream) for _ in range(200)]
        assert numbers.stats.losses == 0
        with stopped(cluster.cluster.scheduler):
            assert eventually(lambda: not connection.engine.current.link.connected, 10)
            time.sleep(1)
        found += stream
    assert found == list(range(0, 1_200, 2))
    assert numbers.stats.losses == 1


# With reconnect -----------------------------------------------------------------------------------


def test_results_are_exact_and_in_order_however_often_it_is_restarted(
    cluster: Restarted, connection: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Partitions that had come back do not run again."""
    ran = tmp_path / "ran"

    def noted(x: int) -> int:
        append(ran, x)
        return slowly(x)

    numbers = parallel(iter(range(1_500)), partition_size=10).map(noted)
    with caplog.at_level(logging.INFO, "parcoll"), cluster.losing([0.5, 1.0], in_progress(numbers)) as lost:
        assert list(numbers) == list(range(0, 3_000, 2))
    assert len(lost) == 2
    stats = numbers.stats
    assert (stats.losses, stats.state) == (2, "ended")
    assert (stats.elements_in, stats.elements_out, stats.steps[0].entered) == (1_500, 1_500, 1_500)
    assert (stats.partitions, stats.partitions_done) == (150, 150)
    assert "2 losses of the cluster" in str(stats)
    port = connection.engine.client.scheduler_info()["services"]["dashboard"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/parcoll/json", timeout=20) as response:
        (published,) = json.load(response)["pipelines"]
    found = [published[name] for name in ("state", "losses", "elements_in", "partitions_done")]
    assert found == ["ended", 2, 1_500, 150]
    times = {x: lines(ran).count(str(x)) for x in range(0, 1_500, 100)}
    assert times[0] == 1, "it had come back before the first loss"
    assert max(times.values()) <= 3
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([m for m in messages if f"{cluster.address} is gone" in m and "waiting up to 60 s" in m]) == 2
    assert len([m for m in messages if "partitions are sent again" in m]) == 2
    assert cluster.address == connection.address


def test_what_was_yielded_before_is_not_yielded_again(cluster: Restarted, connection: Connection) -> None:
    """The consumer draws while it is lost, and while it is not there at all."""
    stream = iter(parallel(iter(range(300)), partition_size=1).map(slowly))
    found = [next(stream) for _ in range(20)]
    cluster.lose()
    later = threading.Timer(2.0, cluster.start, [1])
    later.start()
    found += [next(stream) for _ in range(100)]
    later.join()
    cluster.lose(signal.SIGTERM)
    cluster.start()
    found += stream
    assert found == list(range(0, 600, 2))


def test_workers_may_come_back_long_after_their_scheduler(cluster: Restarted, connection: Connection) -> None:
    numbers = parallel(range(200), partition_size=5).map(slowly)
    stream = iter(numbers)
    found = [next(stream)]
    cluster.lose()
    cluster.start(workers=0)
    later = threading.Timer(4.0, lambda: cluster.workers.append(cluster.cluster.add_worker()))
    later.start()
    found += stream
    later.join()
    assert found == list(range(0, 400, 2))


def test_reduce_fold_and_foreach_begin_again(cluster: Restarted, connection: Connection) -> None:
    numbers = parallel(range(800)).map(slowly)
    doubled = list(range(0, 1_600, 2))
    with cluster.losing([0.5], in_progress(numbers)) as lost:
        assert numbers.reduce(concatenated, "") == functools.reduce(concatenated, doubled, "")
    assert len(lost) == numbers.stats.losses == 1
    assert numbers.stats.elements_in == numbers.stats.steps[0].left == 800
    folding = parallel(range(800)).map(slowly)
    with cluster.losing([0.5], in_progress(folding)) as lost:
        assert folding.fold(concatenated, "", operator.add) == functools.reduce(concatenated, doubled, "")
    assert len(lost) == 1
    kept = parallel(range(800))
    with cluster.losing([0.5], in_progress(kept)) as lost:
        kept.foreach(slowly)
    assert len(lost) == kept.stats.losses == 1
    assert list(kept) == doubled


def test_count_unordered_and_bags_go_on(cluster: Restarted, connection: Connection) -> None:
    counted = parallel(range(800)).map(slowly)
    with cluster.losing([0.5], in_progress(counted)) as lost:
        assert counted.count() == 800
    assert lost
    stream = parallel(range(800)).map(slowly).unordered()
    with cluster.losing([0.5], in_progress(stream)) as lost:
        assert sorted(stream) == list(range(0, 1_600, 2))
    assert lost
    # The partitions of this one share tasks, so that they are computed on the cluster beforehand.
    shared = dask.bag.range(100, npartitions=5).groupby((7).__rmod__, npartitions=20, shuffle="tasks")
    groups = parallel(shared).map(lambda pair: (time.sleep(1.0), pair[0], sorted(pair[1]))[1:])
    with cluster.losing([0.1], in_progress(groups)) as lost:
        assert sorted(groups) == [(n, list(range(n, 100, 7))) for n in range(7)]
    assert lost


def test_what_cannot_be_had_again_is_told(cluster: Restarted, connection: Connection) -> None:
    """A source that is spent, results that were kept, and a bag whose partitions were computed before."""
    kept = parallel(range(10))
    kept.foreach(abs)
    with connection.engine.client.as_current():
        bag = dask.bag.range(10, npartitions=2).persist()
        distributed.wait(bag, 30)
    spent = parallel(iter(range(2_000))).map(slowly)
    with cluster.losing([0.2], in_progress(spent)) as lost, pytest.raises(ClusterLostError) as raised:
        spent.reduce(lambda a, b: a + b)
    assert lost
    text = str(raised.value)
    assert text.startswith(f"the dask scheduler {cluster.address} is gone")
    assert "reduce() has no value: what it had folded was on that cluster, and cannot begin again" in text
    assert "pass a list, or a function" in text
    with pytest.raises(ClusterLostError, match=r"of persist\(\) or foreach\(\) are gone.*; 0 elements had"):
        list(kept)
    with pytest.raises(ClusterLostError, match=r"are gone.*; reduce\(\) has no value"):
        kept.reduce(lambda a, b: a + b)
    with pytest.raises(
        ClusterLostError, match=r"gave up a partition of the bag: results of persist\(\).* are lost"
    ):
        list(parallel(bag).map(abs))
    assert list(parallel(range(3)).map(abs)) == [0, 1, 2]


def test_it_is_waited_for_only_as_long_as_was_said(cluster: Restarted) -> None:
    with connect(cluster.address, reconnect=1.5) as connection:
        stream = iter(parallel(range(1_000), partition_size=1).map(slowly))
        assert next(stream) == 0
        cluster.lose()
        started = time.monotonic()
        with pytest.raises(ClusterLostError) as raised:
            list(stream)
        assert time.monotonic() - started >= 1.5
        text = str(raised.value)
        assert text.startswith(f"the dask scheduler {cluster.address} is gone")
        assert "did not come back within 1.5 s" in text
        assert re.search(r"; \d+ elements? had been yielded$", text)
        with pytest.raises(ClusterLostError, match=r"within 1.5 s.*; reduce\(\) has no value"):
            parallel(range(3)).reduce(lambda a, b: a + b)
        assert connection.address == cluster.address
        cluster.start()
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2], "and later it is there"


def test_between_evaluations_it_is_joined_again_too(cluster: Restarted, connection: Connection) -> None:
    assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    cluster.lose()
    cluster.start()
    assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    assert connection.engine.client.status == "running"


def test_several_threads_wait_for_it_together(cluster: Restarted, connection: Connection) -> None:
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = list(parallel(range(300)).map(lambda x: slowly(x) + number))

    threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    cluster.lose()
    cluster.start()
    for thread in threads:
        thread.join(90)
    assert found == {number: [2 * x + number for x in range(300)] for number in range(3)}


def test_closing_the_connection_ends_the_wait(cluster: Restarted) -> None:
    with connect(cluster.address, reconnect=600) as connection:
        stream = iter(parallel(range(1_000), partition_size=1).map(slowly))
        assert next(stream) == 0
        cluster.lose()
        closer = threading.Timer(1.0, connection.close)
        closer.start()
        with pytest.raises(ClusterLostError, match=r"connection was closed|the connection to .* is closed"):
            list(stream)
        closer.join()
    cluster.start()


def test_a_scheduler_file_is_read_again(tmp_path: Path) -> None:
    """The scheduler that comes in its place may be anywhere."""
    with (
        bare_cluster(tmp_path / "cluster", 1) as cluster,
        connect(cluster.file, reconnect=WAIT) as connection,
    ):
        before = connection.address
        stream = iter(parallel(range(200), partition_size=1).map(slowly))
        found = [next(stream)]
        cluster.scheduler.kill()
        cluster.scheduler.wait(20)
        cluster.start_scheduler()
        cluster.add_worker()
        found += stream
        assert found == list(range(0, 400, 2))
        assert connection.address != before


def test_a_cluster_object_is_asked_for_its_address_again(cluster: Restarted, tmp_path: Path) -> None:
    class Cluster:
        scheduler_address = cluster.address

    with bare_cluster(tmp_path / "other", 1) as other, connect(Cluster(), reconnect=WAIT) as connection:
        assert connection.address == cluster.address
        stream = iter(parallel(range(200), partition_size=1).map(slowly))
        found = [next(stream)]
        Cluster.scheduler_address = other.address
        cluster.lose()
        found += stream
        assert found == list(range(0, 400, 2))
        assert connection.address == other.address
    cluster.start()


def test_the_scheduler_in_dask_s_configuration_is_joined_anew_by_the_next_evaluation(
    cluster: Restarted,
) -> None:
    with dask.config.set({"scheduler-address": cluster.address}):
        stream = iter(parallel(range(200), partition_size=1).map(slowly))
        next(stream)
        cluster.lose()
        with pytest.raises(ClusterLostError, match=r"is gone.*yielded"):
            list(stream)
        cluster.start()
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    current.connected_engines.pop(cluster.address)[1].close()


# A client of the user's ---------------------------------------------------------------------------


@pytest.fixture
def client(cluster: Restarted) -> Iterator[Any]:
    """Give a client that looks for its scheduler, as dask's do."""
    with distributed.Client(cluster.address, set_as_default=False, timeout=WAIT) as found:
        yield found
        assert found.status == "running", "it was left as it was"


def test_a_user_s_client_stays_the_one_in_use(cluster: Restarted, client: Any) -> None:
    """dask has it look for its scheduler; with reconnect, the evaluation waits for that."""
    with connect(client, reconnect=WAIT) as connection:
        stream = iter(parallel(range(300), partition_size=1).map(slowly))
        found = [next(stream)]
        future = client.submit(abs, -1)
        assert future.result(30) == 1
        cluster.lose()
        cluster.start()
        found += stream
        assert found == list(range(0, 600, 2))
        assert connection.engine.client is client
        assert future.cancelled(), "dask gives up its futures, which are the user's own affair"
        assert client.submit(abs, -2).result(30) == 2


def test_without_reconnect_a_user_s_client_is_used_again_once_it_has_come_back(
    cluster: Restarted, client: Any
) -> None:
    with connect(client):
        numbers = parallel(range(300), partition_size=1, client=client).map(slowly)
        for collection in (numbers, parallel(range(300), partition_size=1).map(slowly)):
            stream = iter(collection)
            assert next(stream) == 0
            cluster.lose()
            with pytest.raises(ClusterLostError, match=rf"{cluster.address} is gone.*yielded"):
                list(stream)
            with pytest.raises(ClusterLostError, match=rf"{cluster.address} is gone"):
                list(collection)
            cluster.start()
            assert eventually(lambda: client.status == "running", 30)
            assert list(collection) == list(range(0, 600, 2))


def test_a_user_s_client_that_gives_up_is_told(cluster: Restarted) -> None:
    with distributed.Client(cluster.address, set_as_default=False, timeout=2) as client:
        with connect(client, reconnect=WAIT):
            stream = iter(parallel(range(300), partition_size=1).map(slowly))
            next(stream)
            cluster.lose()
            with pytest.raises(ClusterLostError, match=r"client.*is closed.*timeout="):
                list(stream)
        with pytest.raises(ClusterLostError, match="is gone"):
            list(parallel(range(3), client=client).map(abs))
        with suppress(ClusterLostError), connect(client):
            raise AssertionError("a closed client was connected")
    cluster.start()


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["30", True, [1], 1j])
def test_what_is_no_number_of_seconds_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="reconnect must be a number of seconds from 0 up, or None, got"):
        connect("tcp://127.0.0.1:1", reconnect=given)


@pytest.mark.parametrize("given", [-1, float("nan"), float("-inf")])
def test_a_negative_number_of_seconds_is_a_value_error(given: float) -> None:
    with pytest.raises(ValueError, match="reconnect must be a number of seconds from 0 up, or None, got"):
        connect("tcp://127.0.0.1:1", reconnect=given)


@pytest.mark.parametrize("target", [None, "inline"])
def test_what_has_no_scheduler_of_others_is_a_type_error(target: Any) -> None:
    with pytest.raises(TypeError, match="reconnect is for a dask scheduler that others run"):
        connect(target, reconnect=30)
    with connect("inline", reconnect=0) as connection:
        assert connection.address == "inline"
