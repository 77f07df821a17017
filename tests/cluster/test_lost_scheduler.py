"""A remote scheduler that goes away is told at once, in every call, also where it only hangs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.bag
import pytest
from bare import bare_cluster
from ports import free_port
from restarted import Restarted, slowly, stopped
from scripts import clean_environment

from parcoll import ClusterLostError, connect, parallel
from parcoll.cluster import clients


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    """Give a cluster that is running again after each test."""
    with bare_cluster(tmp_path_factory.mktemp("cluster"), 0, port=free_port()) as found:
        yield Restarted(found)


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
    for thread in threads[1:]:
        thread.start()
    for _ in range(4):
        assert drawn_from.acquire(timeout=60)
    # Last: dask leaves the tasks that wait behind an endless one there while no worker is idle.
    threads[0].start()
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
        if script.stdout.readline() != "begun\n":
            pytest.fail(f"the script has not begun:\n{script.communicate()[1]}")
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
        assert text == f"{gone}: connect() again, or pass reconnect=, the seconds to wait for it; " + (
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients of this process give up a silent scheduler after two seconds, not half a minute."""
    monkeypatch.setattr(clients, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(clients, "seconds_allowed", lambda: 2.0)


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
            assert not connection.engine.current.link.connected
    for name in calls:
        assert isinstance(found[name], ClusterLostError), name
        assert f"the dask scheduler {cluster.address} is gone: no answer in 2 s" in str(found[name]), name
    with connect(cluster.address):
        assert list(parallel(range(30)).map(slowly)) == list(range(0, 60, 2))


def test_without_reconnect_a_scheduler_that_is_there_again_is_not_joined(cluster: Restarted) -> None:
    """The connection stays lost, and a new one is had."""
    with connect(cluster.address):
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
        cluster.lose()
        cluster.start()
        for _ in range(2):
            with pytest.raises(ClusterLostError, match=r"connect.. again, or pass reconnect="):
                list(parallel(range(3)).map(abs))
    with connect(cluster.address):
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
