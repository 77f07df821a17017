"""Somebody sets the wall clock, by hours, while a cluster is up: no evaluation waits for it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import WallClock
from scripts import Scripts, import_path

from parcoll import Connection, clock, parallel
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

SCRIPT = """
import itertools, os, signal, sys, time
from parcoll import connect, parallel

file, *shifts = sys.argv[1:]

def numbers(n):
    return parallel(range(n), partition_size=5).map(lambda x: x + 1)

with connect(n_workers=2) as cluster:
    cluster.engine.client.wait_for_workers(2)
    stream = iter(numbers(100_000))
    assert next(stream) == 1
    expected = itertools.count(2)
    before = time.time()
    for shift in shifts:
        with open(file + "new", "w") as new:
            new.write(shift)
        os.replace(file + "new", file)
        assert abs(time.time() - before - float(shift)) < 600
        for _ in range(300):  # with messages under way
            assert next(stream) == next(expected)
        chain = numbers(200)
        assert chain.count() == 200
        assert 0 < chain.stats.seconds < 600
        assert 0 < chain.stats.ended - chain.stats.started < 600
        assert parallel(range(20), timeout=60, retries=1).map(abs).take(20) == [*range(20)]
        time.sleep(0.6)  # what comes again and again comes again: dask's heartbeats
        assert numbers(200).reduce(max) == 200
        victim = cluster.engine.client.run(os.getpid)
        os.kill(next(iter(victim.values())), signal.SIGKILL)
        assert numbers(200).count() == 200
        cluster.engine.client.wait_for_workers(2, timeout=60)
    stream.close()
    with connect(n_workers=1):
        assert numbers(200).count() == 200
print("all of it")
"""


@pytest.mark.parametrize("shifts", [("-7200", "0", "7200"), ("-31536000", "-31536003", "31536000")])
def test_a_clock_that_is_set_while_a_cluster_is_up(
    scripts: Scripts, tmp_path: Path, shifts: tuple[str, ...]
) -> None:
    clock = WallClock(tmp_path / "clock")
    script = scripts.write("script.py", SCRIPT)
    env = {"PYTHONPATH": os.pathsep.join([str(clock.folder), *import_path()])}
    out, err = scripts.run_with(script, clock.file, *shifts, env=env)
    assert out == "all of it\n"
    assert "Traceback" not in err


REAL = clock.time.time


def shift(seconds: float) -> None:
    """Have the wall clock of this process's parcoll differ."""
    clock.time.time = lambda: REAL() + seconds


@pytest.fixture
def restored() -> Iterator[None]:
    """Put it back: a function of a step would have a copy of `monkeypatch`, which undoes nothing."""
    yield
    clock.time.time = REAL


def test_the_seconds_of_an_evaluation(inline: Connection, restored: None) -> None:
    def set_back(x: int) -> int:
        shift(-7200)
        return x

    chain = parallel([1]).map(set_back)
    assert list(chain) == [1]
    stats = chain.stats
    assert stats.started is not None
    assert stats.ended is not None
    assert 0 <= stats.seconds == stats.ended - stats.started < 600
    assert pickle.loads(pickle.dumps(stats)).seconds == stats.seconds
    running = Stats()
    Recorder(running).begin()
    shift(7200)
    assert 0 <= running.seconds < 600
