"""A local cluster whose host or scheduler dies: another one takes over, and the answer stays exact."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripts import clean_environment, eventually, meanwhile

from parcoll import ClusterLostError, Connection, connect, parallel
from parcoll.cluster import clients
from parcoll.evaluation.engine import MAX_CLUSTERS_LOST
from parcoll.evaluation.inline import InlineEngine, InlineSession
from parcoll.worker.program import Program


@pytest.fixture
def own() -> Iterator[Connection]:
    """Give a cluster to be killed."""
    with connect(n_workers=2) as connection:
        yield connection


def kill(connection: Connection, who: str) -> None:
    host = psutil.Process(connection.engine.way.host.pid)
    victim = host if who == "host" else min(host.children(), key=lambda process: process.create_time())
    os.kill(victim.pid, signal.SIGKILL)


@contextmanager
def killed_each(seconds: float, times: int, connection: Connection, who: str) -> Iterator[list[int]]:
    """Kill it again and again while the block runs; gives the process ids of the hosts that were killed."""
    killed: list[int] = []

    def work(ended: threading.Event) -> None:
        while len(killed) < times and not ended.wait(seconds):
            pid = connection.engine.way.host.pid
            engine = connection.engine.current
            if pid not in killed and engine is not None and engine.link.connected:
                kill(connection, who)
                killed.append(pid)

    with meanwhile(work):
        yield killed


def slowly(x: int) -> int:
    time.sleep(0.004)
    return 2 * x


def large(x: int) -> bytes:
    time.sleep(0.002)
    return bytes([x % 251]) * 60_000


@pytest.mark.parametrize("who", ["host", "scheduler"])
def test_results_are_exact_and_in_order_however_often_it_dies(own: Connection, who: str) -> None:
    with killed_each(0.5, 3, own, who) as killed:
        assert list(parallel(range(1_500)).map(slowly)) == list(range(0, 3_000, 2))
    assert len(killed) == 3
    assert own.engine.way.host.pid not in killed


@pytest.mark.parametrize("who", ["host", "scheduler"])
def test_elements_and_results_in_shared_memory_survive(own: Connection, who: str) -> None:
    elements = [(x, bytes(40_000)) for x in range(800)]
    with killed_each(0.5, 2, own, who) as killed:
        results = list(parallel(elements).map(lambda pair: large(pair[0])))
    assert killed
    assert results == [bytes([x % 251]) * 60_000 for x in range(800)]


def test_a_scheduler_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel answers for a process that is stopped: only its silence tells."""
    monkeypatch.setattr(clients, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(clients, "seconds_allowed", lambda: 2.0)
    with connect(n_workers=2) as own:
        # Of that size most are still to be read when it hangs.
        numbers = parallel(iter(range(600)), partition_size=5).map(slowly)
        stream = iter(numbers)
        found = [next(stream) for _ in range(100)]
        victim = psutil.Process(own.engine.way.host.pid)
        min(victim.children(), key=lambda process: process.create_time()).suspend()
        found += stream
        assert found == list(range(0, 1_200, 2))
        assert numbers.stats.losses == 1
        assert own.engine.way.host.pid != victim.pid


DIED_UNNOTICED = """
import os, signal, sys, time
import psutil
from parcoll import connect, parallel

own = connect(n_workers=1)
assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
host = psutil.Process(own.engine.way.host.pid)
scheduler = min(host.children(), key=lambda process: process.create_time())
{"host": host, "scheduler": scheduler}[sys.argv[1]].kill()
while own.engine.current.client.status == "running":
    time.sleep(0.01)
own.close()
"""


@pytest.mark.parametrize("who", ["host", "scheduler"])
def test_one_that_died_unnoticed_is_closed_without_a_word(who: str) -> None:
    command = [sys.executable, "-c", DIED_UNNOTICED, who]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_what_was_yielded_before_is_not_yielded_again(own: Connection) -> None:
    """One partition at a time from a source that can be read once: nothing is lost or doubled."""
    stream = iter(parallel(iter(range(300)), partition_size=1).map(slowly))
    found = [next(stream) for _ in range(20)]
    kill(own, "host")
    found += [next(stream) for _ in range(100)]
    kill(own, "scheduler")
    found += stream
    assert found == list(range(0, 600, 2))


def test_count_and_unordered_survive(own: Connection) -> None:
    with killed_each(0.4, 1, own, "host") as killed:
        assert parallel(range(600)).map(slowly).count() == 600
    assert killed
    with killed_each(0.4, 1, own, "scheduler") as killed:
        assert sorted(parallel(range(600)).map(slowly).unordered()) == list(range(0, 1_200, 2))
    assert killed


@pytest.mark.parametrize("who", ["host", "scheduler"])
def test_the_next_evaluation_runs_on_another_one(own: Connection, who: str) -> None:
    address = own.address
    assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    kill(own, who)
    assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    assert own.address != address


def concatenated(text: str, x: int) -> str:
    return f"{text} {x}"


@pytest.mark.parametrize("who", [pytest.param("host", marks=pytest.mark.slow), "scheduler"])
def test_reduce_fold_and_foreach_begin_again(own: Connection, who: str) -> None:
    """What they hold on the cluster is made again from the source, and counted once."""
    numbers = parallel(range(600)).map(slowly)
    doubled = list(range(0, 1_200, 2))
    with killed_each(0.5, 1, own, who) as killed:
        assert numbers.map(str).reduce(lambda a, b: f"{a} {b}") == " ".join(map(str, doubled))
    assert killed
    assert numbers.stats.state == "ended"  # its numbers are those of the chain that went through it
    with killed_each(0.5, 2, own, who) as killed:
        assert numbers.fold(concatenated, "", operator.add) == functools.reduce(concatenated, doubled, "")
    assert len(killed) == 2
    with killed_each(0.5, 1, own, who) as killed:
        numbers.foreach(lambda x: -x)
    assert killed
    stats = numbers.stats
    assert (stats.losses, stats.state, stats.elements_in, stats.elements_out) == (1, "ended", 600, 600)
    assert [step.entered for step in stats.steps] == [600, 600]
    assert list(numbers) == [-x for x in doubled]


def test_what_cannot_be_read_again_does_not_begin_again(own: Connection) -> None:

    def source() -> Iterator[int]:
        for x in range(2_000):
            if x == 1_500:  # by now some are folded
                kill(own, "host")
            yield x

    with pytest.raises(ClusterLostError) as raised:
        parallel(source()).map(slowly).reduce(lambda a, b: a + b)
    text = str(raised.value)
    assert "\n" not in text
    assert "reduce() has no value" in text
    assert "only once: pass a list, or a function" in text
    assert raised.value.yielded == 0
    assert parallel(range(10)).reduce(lambda a, b: a + b) == 45


def test_results_that_it_kept_are_gone_and_that_is_said(own: Connection) -> None:
    """What a foreach has kept was in the workers' memory."""
    kept = parallel(range(10))
    kept.foreach(abs)
    stream = iter(kept)
    kill(own, "host")
    assert eventually(lambda: not own.engine.way.host.alive)
    for _ in range(2):
        with pytest.raises(ClusterLostError, match=r"of persist.* or foreach.* are gone.*; 0 elements"):
            list(stream)
        stream = iter(kept)
    with pytest.raises(ClusterLostError, match=r"are gone.*reduce.. has no value"):
        kept.reduce(lambda a, b: a + b)


def test_a_cluster_that_dies_each_time_is_given_up(tmp_path: Path) -> None:
    fresh: list[list[bool]] = []

    class Dying(InlineSession):
        def submit(self, jobs: Any) -> None:
            fresh.append([job.share.fresh for job in jobs])

        def completed(self, block: bool, seconds: float = 0.0) -> Any:
            raise ClusterLostError("it died")

    class Engine(InlineEngine):
        renews = True
        opened = 0

        def open(self, program: Program, label: str, keep: bool) -> InlineSession:
            Engine.opened += 1
            session = super().open(program, label, keep)
            return Dying(session.shared, keep, session._pack, session._owner)

    with connect("inline") as connection:
        connection.engine = Engine()
        with pytest.raises(ClusterLostError, match="it died"):
            list(parallel(range(3)).map(abs))
        assert Engine.opened == MAX_CLUSTERS_LOST + 1
        assert [all(sent) for sent in fresh] == [True, *[False] * MAX_CLUSTERS_LOST], "of a rate, say"
        # As often where evaluations are within others, and what is around them could begin again.
        begun_again = (
            lambda: parallel(range(3)).group_by(abs).count(),
            lambda: parallel(range(3)).distinct().map(abs).fold_by(abs, max, 0).reduce(max),
            lambda: parallel(range(3)).sorted().map(str).write_text(tmp_path / "all.txt"),
        )
        for evaluate in begun_again:
            Engine.opened = 0
            with pytest.raises(ClusterLostError, match="it died"):
                evaluate()
            assert Engine.opened < 2 * (MAX_CLUSTERS_LOST + 1)


class Mortal(InlineEngine):
    """Clusters that die one after the other, each with all that it has, when they have ended some tasks."""

    renews = True

    def __init__(self, lives: Iterable[int]) -> None:
        super().__init__()
        self._lives = iter(lives)
        self.died = 0
        self.left = next(self._lives)

    def open(self, program: Program, label: str, keep: bool) -> InlineSession:
        made = super().open(program, label, keep)
        return OnMortal(made.shared, keep, made._pack, made._owner, self)

    def die(self) -> None:
        self.died, self.left = self.died + 1, next(self._lives)


class OnMortal(InlineSession):
    """An evaluation on one of them."""

    def __init__(self, shared: Any, keep: bool, pack: Any, owner: str, engine: Mortal) -> None:
        super().__init__(shared, keep, pack, owner)
        self._engine = engine
        self._cluster = engine.died

    def _look(self) -> None:
        if self._cluster < self._engine.died:
            error = ClusterLostError(f"cluster {self._cluster} died")
            error._which = str(self._cluster)
            raise error

    def submit(self, jobs: Any) -> None:
        self._look()
        super().submit(jobs)

    def completed(self, block: bool, seconds: float = 0.0) -> Any:
        self._look()
        if block and not self._engine.left:
            self._engine.die()
            self._look()
        found = super().completed(block, seconds)
        self._engine.left -= len(found)
        return found


def key(x: int) -> int:
    return x % 3


NESTED = {
    "fold": lambda p: p.map(abs).fold(operator.add, 0),
    "fold of groups": lambda p: p.group_by(abs).starmap(concatenated_all).fold(operator.add, ""),
    "reduce in phases": lambda p: p.distinct().map(abs).fold_by(abs, max, 0).map(str).reduce(operator.add),
    "foreach in phases": lambda p: p.sorted(abs).scan(operator.add).map(abs).foreach(abs),
}
GROUPS = "".join(f"{number}{list(range(number, 40, 3))}" for number in range(3))


def concatenated_all(key: int, group: list[int]) -> str:
    return f"{key}{group}"


@pytest.mark.parametrize("ends_tasks", [1, 2, 5])
@pytest.mark.parametrize("nested", NESTED)
def test_a_cluster_that_dies_after_some_tasks_is_given_up_as_soon_in_any_nest(
    nested: str, ends_tasks: int
) -> None:
    """What has been done before is no progress: of a call that began again, six clusters are enough."""
    with connect("inline") as connection:
        connection.engine = engine = Mortal(itertools.repeat(ends_tasks))
        numbers = parallel(list(range(40)), partition_size=4)
        with pytest.raises(ClusterLostError, match="died"):
            NESTED[nested](numbers)
        tasks = 30  # of the first time, about
        assert engine.died <= tasks / ends_tasks + 2 * (MAX_CLUSTERS_LOST + 1)
        assert 0 < numbers.stats.losses <= engine.died


@pytest.mark.parametrize("method", ["fold", "reduce", "foreach"])
@pytest.mark.parametrize("first", [1, 5, 9])
def test_what_was_read_from_a_lost_cluster_is_not_read_again(first: int, method: str) -> None:
    """The fold had nothing on that cluster yet: it goes to the next one with the groups that are here."""
    opened = []

    def source() -> Iterator[int]:
        opened.append(True)
        return iter(range(40))

    with connect("inline") as connection:
        connection.engine = engine = Mortal(itertools.chain([first], itertools.repeat(1_000)))
        groups = parallel(source, partition_size=4).group_by(key).starmap(concatenated_all)
        if method == "foreach":
            groups.foreach(str)
            assert "".join(groups) == GROUPS
        else:
            assert getattr(groups, method)(operator.add, "") == GROUPS
        assert (engine.died, len(opened)) == (1, 1)


@pytest.mark.parametrize("method", ["reduce", "foreach"])
def test_one_lost_before_the_first_task_and_one_with_what_came_of_it(
    own: Connection, method: str, tmp_path: Path
) -> None:
    """The first task was sent where the second cluster took over: what it has kept is lost with that one."""
    opened: list[bool] = []
    lost, began = tmp_path / "lost", tmp_path / "began"

    def lose() -> None:
        kill(own, "scheduler")
        assert eventually(lambda: not own.engine.current.link.connected)

    def source() -> Iterator[int]:
        opened.append(True)
        if len(opened) == 1:
            lose()
        yield 0
        if len(opened) == 1:  # the first outcome has come, since no more than one element is read ahead
            assert method == "foreach" or eventually(began.exists)
            lose()
            lost.touch()
        yield from range(1, 6)

    def join(text: str, x: int) -> str:  # is under way when the second cluster is lost
        began.touch()
        while not lost.exists():
            time.sleep(0.01)
        return concatenated(text, x)

    rescue = threading.Timer(60.0, own.close)  # of an evaluation that waits for what was lost
    rescue.start()
    try:
        numbers = parallel(source, partition_size=1, buffersize=1)
        if method == "reduce":
            assert numbers.reduce(join, "") == " 0 1 2 3 4 5"
        else:
            numbers.foreach(slowly)
        assert (len(opened), numbers.stats.losses) == (2, 2)
        if method == "foreach":
            assert list(numbers) == [0, 2, 4, 6, 8, 10]
    finally:
        rescue.cancel()
