"""Which engine evaluates, what `connect` takes and gives back, and what is said when none can be had."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from scripts import Scripts, clean_environment, eventually, import_path

from parcoll import ClusterLostError, ConnectError, connect, parallel
from parcoll.engine import choose, clients

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a scheduler with a one-thread worker, started as an administrator would."""
    folder = tmp_path_factory.mktemp("remote")
    file = folder / "scheduler.json"
    # Functions of this module travel by name, as those of any module that is installed there.
    path = os.pathsep.join([*import_path(), str(Path(__file__).parent)])
    env = clean_environment(PYTHONPATH=path, TMPDIR=str(folder))
    common = ["--scheduler-file", str(file), "--host", LOOPBACK, "--no-dashboard"]
    commands = [
        ["scheduler", *common, "--port", "0"],
        ["worker", *common, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)],
    ]
    with open(folder / "log", "w") as log:
        started = [
            subprocess.Popen([sys.executable, "-m", "dask", *command], env=env, stdout=log, stderr=log)
            for command in commands
        ]
    try:
        assert eventually(lambda: file.exists() and file.stat().st_size, 30), (folder / "log").read_text()
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(1, timeout=30)
            address = client.scheduler.address
        yield address
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


@pytest.fixture
def client(remote: str) -> Iterator[Any]:
    """Give a client of the user's own, which is not dask's default."""
    with distributed.Client(remote, set_as_default=False) as found:
        yield found


@pytest.fixture(autouse=True)
def no_default_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail, instead of starting the process's own cluster, where a test expects another engine."""

    def refuse() -> None:
        raise AssertionError("the default local cluster would be started")

    monkeypatch.setattr(choose, "_local", refuse)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)


def place(_: object = None) -> str:
    """Return the address of the scheduler whose worker runs this, or which process does."""
    try:
        return str(distributed.get_worker().scheduler.address)
    except ValueError:
        return f"process {os.getpid()}"


HERE = f"process {os.getpid()}"


def evaluated_at(**options: Any) -> str:
    (found,) = set(parallel(range(3), **options).map(place))
    return str(found)


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
        joined = choose._joined[remote][1]
        assert evaluated_at() == remote
        assert choose._joined[remote][1] is joined
    assert no_default_client()
    joined.client.close()
    with dask.config.set({"scheduler-address": remote}):
        assert evaluated_at() == remote, "a client that was closed is replaced"
    choose._joined.pop(remote)[1].client.close()


def test_the_address_in_the_environment_is_joined(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", remote)
    assert evaluated_at() == remote
    choose._joined.pop(remote)[1].client.close()


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


# Targets ------------------------------------------------------------------------------------------


def test_a_client_that_was_connected_stays_open(client: Any, remote: str) -> None:
    with connect(client) as connection:
        assert connection.address == remote == evaluated_at()
    assert client.status == "running"
    assert client.submit(abs, -1).result(timeout=20) == 1


def test_dask_s_own_local_cluster_is_used_and_left_open(tmp_path: Path) -> None:
    """As a client, as a cluster object, as the current client; nested evaluations included."""
    scripts = Scripts(tmp_path)
    scripts.run(
        scripts.write(
            "script.py",
            """
            from distributed import Client, LocalCluster, get_worker
            from parcoll import connect, parallel
            where = lambda _: get_worker().scheduler.address
            def nested(x):
                inner = parallel(range(x)).map(lambda y: parallel(range(y)).map(abs).reduce(int.__add__, 0))
                return list(inner)
            if __name__ == "__main__":  # which LocalCluster needs
                options = {"threads_per_worker": 1, "dashboard_address": None}
                with LocalCluster(n_workers=2, **options) as cluster:
                    here = {cluster.scheduler_address}
                    with Client(cluster) as client:
                        assert set(parallel(range(3)).map(where)) == here
                        plain = [[sum(range(y)) for y in range(x)] for x in range(6)]
                        assert list(parallel(range(6)).map(nested)) == plain
                        with connect(client):
                            assert set(parallel(range(3)).map(where)) == here
                        assert client.submit(abs, -1).result() == 1
                    with connect(cluster):
                        assert set(parallel(range(3)).map(where)) == here
                    assert cluster.status.name == "running"
                    with Client(cluster) as client:
                        assert client.submit(abs, -2).result() == 2
                print("done")
            """,
        )
    )
    scripts.check()


def closed_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])


def check_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_a_closed_port_is_told_within_its_time() -> None:
    address = f"tcp://{LOOPBACK}:{closed_port()}"
    with pytest.raises(ConnectError) as raised:
        connect(address)
    check_sentence(raised.value, "no dask scheduler", address)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8786",
        "nonsense://127.0.0.1:8786",
        "tcp://",
        "tcp://127.0.0.1:99999999",
        "tcp://no such host:1",
        "tcp://host.invalid:8786",
        "://",
    ],
)
def test_an_address_that_leads_nowhere_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    with pytest.raises(ConnectError) as raised:
        connect(address)
    check_sentence(raised.value, "no dask scheduler", repr(address))


def test_a_port_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens there that is no dask: the wait for its greeting ends too."""
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    errors: list[BaseException] = []

    def attempt(address: str) -> None:
        try:
            connect(address)
        except BaseException as error:
            errors.append(error)

    with socket.create_server((LOOPBACK, 0)) as silent:
        address = f"tcp://{LOOPBACK}:{silent.getsockname()[1]}"
        thread = threading.Thread(target=attempt, args=(address,), daemon=True)
        thread.start()
        thread.join(15)
        hung = thread.is_alive()
    thread.join(15)  # the listener is gone, which ends a wait that had no end
    assert not hung, "connect() waits for ever"
    (error,) = errors
    assert isinstance(error, ConnectError)
    check_sentence(error, "no dask scheduler", address)


def test_tls_without_a_certificate_is_told(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    address = remote.replace("tcp://", "tls://")
    with pytest.raises(ConnectError) as raised:
        connect(address)
    check_sentence(raised.value, address)


def test_an_address_in_the_config_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    address = f"tcp://{LOOPBACK}:{closed_port()}"
    with dask.config.set({"scheduler-address": address}), pytest.raises(ConnectError) as raised:
        list(parallel(range(3)).map(abs))
    check_sentence(raised.value, address)


@pytest.mark.parametrize("target", [1, "localhost", b"tcp://127.0.0.1:1", [], object(), distributed.Client])
def test_another_target_is_a_type_error(target: Any) -> None:
    with pytest.raises(TypeError, match="connect"):
        connect(target)


@pytest.mark.parametrize("option", [{"n_workers": 1}, {"threads_per_worker": 2}, {"memory_limit": None}])
@pytest.mark.parametrize("target", ["inline", "tcp://127.0.0.1:1"])
def test_options_of_a_local_cluster_need_no_target(target: str, option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="are for a local cluster"):
        connect(target, **option)


def test_an_asynchronous_client_is_refused(remote: str) -> None:
    async def attempt() -> None:
        async with distributed.Client(remote, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(TypeError, match="asynchronous"):
                connect(client)
            with pytest.raises(TypeError, match="asynchronous"):
                list(parallel([1], client=client).map(abs))

    asyncio.run(attempt())


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
    scripts.run_file(
        """
        import os
        import distributed
        from parcoll import connect, parallel
        hosts = lambda: set(parallel(range(9)).map(lambda _: os.getppid()))
        default = hosts()
        assert len(default) == 1
        with connect(n_workers=1):
            assert not hosts() & default
        with connect("inline"):
            assert hosts() == {os.getppid()}
        assert hosts() == default
        try:
            distributed.default_client()
        except ValueError:
            pass
        else:
            raise AssertionError("there is a default client")
        """
    )
    scripts.check()
