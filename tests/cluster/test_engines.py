"""Which engine evaluates, and what a connection is while it lasts."""

from __future__ import annotations

import os
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from places import check_sentence, evaluated_at, place
from scripts import Scripts

from parcoll import (
    ClusterLostError,
    connect,
    parallel,
)
from parcoll.connecting import current

LOOPBACK = "127.0.0.1"

pytestmark = pytest.mark.usefixtures("no_default_cluster")


HERE = f"process {os.getpid()}"


def no_default_client() -> bool:
    try:
        distributed.default_client()
    except ValueError:
        return True
    return False


# Choosing -----------------------------------------------------------------------------------------


def test_the_client_argument_beats_connect(client: Any, remote: str) -> None:
    with connect("inline"):
        assert evaluated_at(client=client) == remote
        assert evaluated_at() == HERE


def test_connect_beats_dask_s_current_client(remote: str) -> None:
    with distributed.Client(remote) as current:
        with connect("inline"):
            assert evaluated_at() == HERE
        assert evaluated_at() == remote
        assert current.status == "running"


def test_dask_s_current_client_beats_its_config(remote: str) -> None:
    with dask.config.set(scheduler="synchronous"):
        with distributed.Client(remote):
            assert evaluated_at() == remote
        assert evaluated_at() == HERE


def test_as_current_counts_too(client: Any, remote: str) -> None:
    with dask.config.set(scheduler="synchronous"), client.as_current():
        assert evaluated_at() == remote


@pytest.mark.parametrize("name", ["synchronous", "sync", "single-threaded"])
def test_the_synchronous_scheduler_is_this_process(name: str) -> None:
    with dask.config.set(scheduler=name):
        assert evaluated_at() == HERE


def test_the_address_in_dask_s_config_is_joined_once(remote: str) -> None:
    with dask.config.set({"scheduler-address": remote}):
        assert evaluated_at() == remote
        joined = current.connected_engines[remote][1]
        assert evaluated_at() == remote
        assert current.connected_engines[remote][1] is joined
    assert no_default_client()
    joined.client.close()
    with dask.config.set({"scheduler-address": remote}):
        assert evaluated_at() == remote, "a client that was closed is replaced"
    current.connected_engines.pop(remote)[1].close()


def test_the_address_in_the_environment_is_joined(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", remote)
    assert evaluated_at() == remote
    current.connected_engines.pop(remote)[1].close()


def test_connect_beats_the_environment(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", remote)
    with connect("inline"):
        assert evaluated_at() == HERE


def test_connections_nest_and_give_back(remote: str) -> None:
    with connect(remote) as outer:
        assert outer.address == remote == evaluated_at()
        with connect("inline") as inner:
            assert (inner.address, evaluated_at()) == ("inline", HERE)
        assert evaluated_at() == remote
    with dask.config.set(scheduler="synchronous"):
        assert evaluated_at() == HERE


def test_a_bare_connection_lasts_until_it_is_closed(remote: str) -> None:
    first = connect(remote)
    second = connect("inline")
    assert evaluated_at() == HERE
    first.close()  # out of order: the innermost stays in force
    assert evaluated_at() == HERE
    second.close()
    second.close()
    first.close()
    assert repr(first) == "<Connection: closed>"
    with dask.config.set(scheduler="synchronous"), connect(remote):
        assert evaluated_at() == remote


def test_a_connection_ends_with_an_error_in_its_block(remote: str) -> None:
    with pytest.raises(KeyError), connect("inline"):
        raise KeyError
    with distributed.Client(remote):
        assert evaluated_at() == remote


def test_each_evaluation_chooses_anew(remote: str) -> None:
    chain = parallel(range(3)).map(place)
    with connect(remote):
        assert set(chain) == {remote}
    with connect("inline"):
        assert set(chain) == {HERE}


def test_our_clients_are_not_dask_s_default(remote: str) -> None:
    assert no_default_client()
    with connect(remote):
        evaluated_at()
        assert no_default_client()
    with distributed.Client(remote) as mine, connect(n_workers=1) as local:
        assert evaluated_at() == local.address
        assert distributed.default_client() is mine


# On a cluster -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "remote"])
def test_evaluations_nest_two_deep_on_one_thread(remote: str, where: str) -> None:
    """The waiting task gives its thread away; otherwise this would hang."""

    def innermost(y: int) -> int:
        return parallel(range(y)).map(lambda z: z + 1).reduce(lambda a, b: a + b, 0)

    def middle(x: int) -> list[int]:
        return list(parallel(range(x)).map(innermost))

    with ExitStack() as stack:
        stack.enter_context(connect(n_workers=1) if where == "local" else connect(remote))
        expected = [[sum(range(1, y + 1)) for y in range(x)] for x in range(7)]
        assert list(parallel(range(7)).map(middle)) == expected
        assert list(parallel(range(7), partition_size=2).map(middle)) == expected


def test_kept_results_can_be_read_through_another_connection(remote: str) -> None:
    with connect(remote) as first:
        kept = parallel(range(10))
        kept.foreach(lambda x: x * 10)
        with connect(first.engine.client):
            assert list(kept) == list(range(0, 100, 10))
        with connect(remote):
            assert list(kept.map(str)) == [str(x) for x in range(0, 100, 10)]
        with connect("inline"):
            assert list(kept) == list(range(0, 100, 10))
        with connect(n_workers=1) as other:
            assert set(kept.map(place)) == {other.address}
            assert kept.reduce(lambda a, b: a + b) == 450
        assert kept.count() == 10


def test_results_kept_in_this_process_can_be_read_on_a_cluster(remote: str) -> None:
    with connect("inline"):
        kept = parallel(range(10))
        kept.foreach(lambda x: -x)
    with connect(remote):
        assert list(kept.map(lambda x: -x)) == list(range(10))


@pytest.mark.parametrize("then", ["inline", "remote"])
def test_results_whose_cluster_was_closed_are_gone_and_that_is_said(remote: str, then: str) -> None:
    with connect(n_workers=1):
        kept = parallel(range(10))
        kept.foreach(abs)
    with connect(remote if then == "remote" else "inline"):
        with pytest.raises(ClusterLostError) as raised:
            list(kept)
        check_sentence(raised.value, "foreach", "gone")
        with pytest.raises(ClusterLostError):
            kept.map(str).reduce(lambda a, b: a + b)
        assert list(parallel(range(3)).map(abs)) == [0, 1, 2]


def test_an_evaluation_whose_cluster_is_closed_under_it_says_so() -> None:
    with connect(n_workers=1):
        stream = iter(parallel(range(1000), partition_size=1).map(abs))
        assert next(stream) == 0
    with pytest.raises(ClusterLostError) as raised:
        list(stream)
    check_sentence(raised.value, "cluster")


def test_a_closed_connection_s_engine_is_not_used_again() -> None:
    with connect(n_workers=1) as first:
        one = first.address
        assert evaluated_at() == one
    with connect(n_workers=1) as second:
        assert evaluated_at() == second.address != one


def test_the_dashboard_answers_on_loopback() -> None:
    with connect(n_workers=1) as connection:
        link = connection.dashboard_link
        assert link is not None
        assert link.startswith(f"http://{LOOPBACK}:")
        with urllib.request.urlopen(link, timeout=30) as response:
            assert response.status == 200


def test_a_connection_without_cluster_has_no_dashboard() -> None:
    with connect("inline") as connection:
        assert connection.dashboard_link is None
        assert repr(connection) == "<Connection: inline>"


def test_without_any_of_these_one_local_cluster_serves_the_process(tmp_path: Path) -> None:
    """Before a connection and after it: the same one; closing a connection does not end it."""
    scripts = Scripts(tmp_path)
    out = scripts.run_file(
        """
        import os
        import distributed
        from parcoll import connect, parallel
        hosts = lambda: set(parallel(range(9)).map(lambda _: os.getppid()))
        default = hosts()
        with connect(n_workers=1):
            other = hosts()
        with connect("inline"):
            inline = hosts()
        print(len(default), len(other), default & other, inline == {os.getppid()}, hosts() == default)
        try:
            print(distributed.default_client())
        except ValueError:
            print("no default client")
        """
    )
    assert out == "1 1 set() True True\nno default client\n"
    scripts.check()
