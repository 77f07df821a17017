"""A local cluster that is killed while it starts is started again; one that cannot start says so at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import distributed
import psutil
import pytest
from leaks import POOL_THREADS
from scripts import eventually, meanwhile
from victims import Victims, strike

from parcoll import ClusterStartError, Connection, connect, parallel
from parcoll.cluster import clients
from parcoll.cluster.ways import MAX_KILLED
from parcoll.local.credentials import Credentials


def scheduler(victims: Victims) -> psutil.Process | None:
    return victims.scheduler()


def host(victims: Victims) -> psutil.Process | None:
    """The host, once it has forked."""
    return victims.host() if victims.scheduler() is not None else None


def new_host(victims: Victims) -> psutil.Process | None:
    return victims.host()


@contextmanager
def killed_at_starts(
    connection: Connection, choose: Callable[[Victims], psutil.Process | None], times: int
) -> Iterator[list[int]]:
    """Kill a process of each host that starts from now on, as soon as it is there."""
    killed: list[int] = []
    seen = {connection.engine.way.host.pid}

    def work(ended: threading.Event) -> None:
        victims = Victims(connection)
        while len(killed) < times and not ended.wait(0.001):
            of_host = victims.host()
            if of_host is None or of_host.pid in seen:
                continue
            victim = choose(victims)
            if victim is not None:
                seen.add(of_host.pid)
                killed.append(victim.pid)
                strike(victim)

    with meanwhile(work):
        yield killed


@pytest.mark.parametrize("choose", [new_host, host, scheduler])
def test_a_cluster_that_is_killed_while_it_starts_is_started_again(
    choose: Callable[[Victims], psutil.Process | None],
) -> None:
    def slowly(x: int) -> int:
        time.sleep(0.002)
        return -x

    with connect(n_workers=2) as own:
        # Of that size most are still to be read when the first one is struck.
        stream = iter(parallel(range(600), partition_size=5).map(slowly))
        found = [next(stream)]
        with killed_at_starts(own, choose, times=3) as killed:
            of_host = Victims(own).host()
            assert of_host is not None
            strike(of_host)
            found += stream
        assert found == [-x for x in range(600)]
        assert len(killed) == 3


def test_a_cluster_that_is_killed_each_time_is_given_up() -> None:
    with connect(n_workers=1) as own:
        of_host = Victims(own).host()
        assert of_host is not None
        with killed_at_starts(own, new_host, times=100) as killed:
            strike(of_host)
            assert eventually(lambda: not own.engine.way.host.alive)
            with pytest.raises(ClusterStartError, match="killed by signal 9"):
                list(parallel(range(10)))
        assert len(killed) == MAX_KILLED + 1
        assert list(parallel(range(10))) == list(range(10))


def own_threads() -> set[threading.Thread]:
    """Return the threads that there are, but for those of pools."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(POOL_THREADS)}


def test_a_client_that_does_not_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """dask's own close() does nothing for it. Nobody listens at that port."""
    monkeypatch.setattr(clients, "LOCAL_SECONDS", 0.5)
    before = own_threads()
    with pytest.raises(OSError, match=r"Timed out|refused|failed"):
        clients.client_of_host("tls://127.0.0.1:9", Credentials.generate().security())
    assert eventually(lambda: own_threads() <= before)


def test_ctrl_c_while_a_client_is_made_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has an event loop, there is nothing that dask's own close() could close."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed.Security, "get_connection_args", interrupted)
    before = own_threads()
    with pytest.raises(KeyboardInterrupt):
        clients.client_of_host("tls://127.0.0.1:9", Credentials.generate().security())
    assert eventually(lambda: own_threads() <= before)


def test_a_client_that_has_lost_its_scheduler_leaves_no_thread() -> None:
    """It is idle when that happens, and closed when another cluster is needed."""
    before = own_threads()
    with connect(n_workers=1) as own:
        client: distributed.Client = own.engine.client
        of_host = Victims(own).host()
        assert of_host is not None
        strike(of_host)
        assert eventually(lambda: client.status != "running")
        assert list(parallel(range(3))) == [0, 1, 2]
    assert eventually(lambda: own_threads() <= before)
