"""A remote scheduler that goes away: told at once, or waited for and joined again; the answer stays exact."""

from __future__ import annotations

import functools
import json
import logging
import operator
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import dask.bag
import distributed
import pytest
from bare import BareCluster, bare_cluster
from scripts import append, clean_environment, eventually, lines, meanwhile

from parcoll import ClusterLostError, Connection, connect, current, parallel
from parcoll.cluster import silence

WAIT = 60.0  # seconds: `reconnect` where the scheduler does come back


class Restarted:
    """A cluster whose scheduler is killed, and started again at the same port, as its administrator would."""

    def __init__(self, cluster: BareCluster) -> None:
        self.cluster = cluster
        self.address = cluster.address
        self.workers = [cluster.add_worker() for _ in range(2)]
        cluster.wait_for_workers(2)

    def lose(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the scheduler; its workers end themselves."""
        self.cluster.scheduler.send_signal(how)
        self.cluster.scheduler.wait(20)

    def start(self, workers: int = 2) -> None:
        """Start another one at the same address, and workers for it."""
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:  # dask's own way to end may hang; its administrator's does not
                worker.kill()
                worker.wait(5)
        self.cluster.start_scheduler(int(self.address.rpartition(":")[2]))
        self.workers = [self.cluster.add_worker() for _ in range(workers)]

    @contextmanager
    def losing(self, pauses: list[float], begun: Callable[[], object]) -> Iterator[list[float]]:
        """Lose it so many seconds after the block has begun, and after each restart."""
        lost: list[float] = []

        def work(ended: threading.Event) -> None:
            assert eventually(begun, 30)
            for pause in pauses:
                if ended.wait(pause):
                    return
                self.lose()
                lost.append(time.time())
                self.start()
                self.cluster.wait_for_workers(2)

        with meanwhile(work):
            yield lost


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    """Give a cluster that is running again after each test."""
    with bare_cluster(tmp_path_factory.mktemp("cluster"), 0) as found:
        yield Restarted(found)


@pytest.fixture
def connection(cluster: Restarted) -> Iterator[Connection]:
    """Give a connection that waits for its scheduler."""
    with connect(cluster.address, reconnect=WAIT) as found:
        yield found


def slowly(x: int) -> int:
    time.sleep(0.01)
    return 2 * x


def concatenated(text: str, x: int) -> str:
    return f"{text} {x}"


def in_progress(collection: Any) -> Callable[[], bool]:
    return lambda: collection.stats.partitions_done >= 3


# Without reconnect --------------------------------------------------------------------------------

ALL_CALLS = """
import json, os, sys, threading, time
import dask.bag
from parcoll import ClusterLostError, connect, parallel

def slow(x):
    time.sleep(0.05)
    return x

over = sys.argv[2]

def endless(x):
    while not os.path.exists(over):
        time.sleep(0.05)

drawn_from = threading.Semaphore(0)
gone = threading.Event()

def drawn(collection, wait=False):
    stream = iter(collection)
    next(stream)
    drawn_from.release()
    if wait:
        gone.wait(60)
    for _ in stream:
        pass

numbers = parallel(range(100_000), partition_size=1).map(slow)
bag = parallel(dask.bag.range(5_000, npartitions=1_000)).map(slow)
calls = {
    "nothing had come": lambda: list(parallel(range(1)).map(endless)),
    "in order": lambda: drawn(numbers),
    "unordered": lambda: drawn(numbers.unordered()),
    "not drawn from": lambda: drawn(numbers, wait=True),
    "bag": lambda: drawn(bag),
    "take": lambda: numbers.take(90_000),
    "count": numbers.count,
    "reduce": lambda: numbers.reduce(lambda a, b: a + b),
    "fold": lambda: numbers.fold(lambda a, b: a + b, 0),
    "foreach": lambda: parallel(range(100_000), partition_size=1).foreach(slow),
    "reduce of an iterator": lambda: parallel(iter(range(100_000))).map(slow).reduce(lambda a, b: a + b),
}
found = {}

def run(name):
    try:
        calls[name]()
        found[name] = ["no error", None]
    except ClusterLostError as error:
        found[name] = [str(error), error.yielded]
    except BaseException as error:
        found[name] = [repr(error), None]

with connect(sys.argv[1]) as connection:
    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in calls]
    for thread in threads:
        thread.start()
    for _ in range(4):
        assert drawn_from.acquire(timeout=60)
    print("begun", flush=True)
    sys.stdin.readline()
    gone.set()
    for thread in threads:
        thread.join(30)
    for name in ("afterwards", "again"):
        calls[name] = lambda: list(parallel(range(3)).map(abs))
        run(name)
found["threads"] = [thread.name for thread in threading.enumerate()]
print(json.dumps(found))
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "how", ["kill", pytest.param("terminate", marks=SLOW), pytest.param("shutdown", marks=SLOW)]
)
def test_every_call_says_at_once_that_its_scheduler_is_gone(tmp_path: Path, how: str) -> None:
    """However it goes, without a word of dask's, and without a thread that stays."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {
        "env": clean_environment()
    }
    over = tmp_path / "over"
    # One is kept by what never ends.
    with bare_cluster(tmp_path / "cluster", 3) as cluster:
        address = cluster.address
        script = subprocess.Popen([sys.executable, "-c", ALL_CALLS, address, str(over)], text=True, **pipes)
        assert script.stdout is not None
        assert script.stdout.readline() == "begun\n"
        if how == "shutdown":
            with cluster.client() as client:
                client.shutdown()
        else:
            cluster.scheduler.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        cluster.scheduler.wait(30)
        out, err = script.communicate("gone\n", timeout=50)
        over.touch()
    assert err == ""
    found = json.loads(out)
    assert found.pop("threads") == ["MainThread"]
    gone = f"the dask scheduler {address} is gone: its connection was closed or lost"
    for name in ("afterwards", "again"):
        text, yielded = found.pop(name)
        assert text == f"{gone}: connect() anew, or with reconnect=, the seconds to wait for it; " + (
            "0 elements had been yielded"
        )
        assert yielded == 0
    told = {name: text.removeprefix(f"{gone}; ") for name, (text, _) in found.items()}
    for name in ("in order", "unordered", "not drawn from", "bag"):
        text, yielded = told.pop(name), found[name][1]
        assert text == f"{yielded} element{'s' * (yielded != 1)} had been yielded"
        assert yielded >= 1
    assert re.fullmatch(r"\d+ of the first 90,000 had come, and take\(\) gives all or none", told.pop("take"))
    assert re.fullmatch(r"count\(\) had come to \d+", told.pop("count"))
    lost = "has no value: what it had folded was on that cluster"
    assert told == {
        "nothing had come": "0 elements had been yielded",
        "reduce": f"reduce() {lost}",
        "fold": f"fold() {lost}",
        "foreach": "foreach() kept nothing: its results were on that cluster",
        "reduce of an iterator": f"reduce() {lost}",
    }


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have a process stand still while the block runs."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients of this process give up a silent scheduler after two seconds, not half a minute."""
    monkeypatch.setattr(silence, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(silence, "seconds_allowed", lambda: 2.0)


def test_a_scheduler_that_hangs_is_lost_too(cluster: Restarted, impatient: None) -> None:
    """Its kernel answers for a process that is stopped; every call ends all the same, and the next one."""
    numbers = parallel(range(5_000), partition_size=1).map(slowly)
    large = parallel((bytes(3_000_000) for _ in range(1_000)), partition_size=1).map(len).map(slowly)
    calls: dict[str, Callable[[], object]] = {
        "in order": lambda: list(numbers),
        "large elements": lambda: list(large),
        "count": lambda: numbers.unordered().count(),
        "reduce": lambda: numbers.reduce(lambda a, b: a + b),
        "foreach": lambda: parallel(range(5_000), partition_size=1).foreach(slowly),
        "bag": lambda: list(parallel(dask.bag.range(2_000, npartitions=500)).map(slowly)),
    }
    found: dict[str, BaseException | None] = {}

    def run(name: str) -> None:
        try:
            calls[name]()
        except BaseException as error:
            found[name] = error

    with connect(cluster.address) as connection:
        assert list(parallel(range(30)).map(slowly)) == list(range(0, 60, 2))
        threads = [threading.Thread(target=run, args=(name,)) for name in calls]
        for thread in threads:
            thread.start()
        time.sleep(1)
        assert not found
        with stopped(cluster.cluster.scheduler):
            for thread in threads:
                thread.join(20)
            calls["afterwards"] = lambda: list(parallel(range(3)).map(abs))
            run("afterwards")
            assert not connection.engine.connected
    for name in calls:
        assert isinstance(found[name], ClusterLostError), name
        assert f"the dask scheduler {cluster.address} is gone: no answer in 2 s" in str(found[name]), name
    with connect(cluster.address):
        assert list(parallel(range(30)).map(slowly)) == list(range(0, 60, 2))


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
            assert eventually(lambda: not connection.engine.connected, 10)
            time.sleep(1)
        found += stream
    assert found == list(range(0, 1_200, 2))
    assert numbers.stats.losses == 1


def test_without_reconnect_a_scheduler_that_is_there_again_is_not_joined(cluster: Restarted) -> None:
    """The connection stays lost, and a new one is had."""
    with connect(cluster.address):
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
        cluster.lose()
        cluster.start()
        for _ in range(2):
            with pytest.raises(ClusterLostError, match=r"connect.. anew, or with reconnect="):
                list(parallel(range(3)).map(abs))
    with connect(cluster.address):
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2]


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
    with pytest.raises(ClusterLostError, match=r"the results of foreach\(\) are gone.*; 0 elements had"):
        list(kept)
    with pytest.raises(ClusterLostError, match=r"are gone.*; reduce\(\) has no value"):
        kept.reduce(lambda a, b: a + b)
    with pytest.raises(ClusterLostError, match=r"a partition of the bag: what persist\(\).* is gone"):
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
        assert "was not joined again within 1.5 s" in text
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
        with pytest.raises(ClusterLostError, match="connection was closed"):
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
    current._joined.pop(cluster.address)[1].client.close()


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
