"""Which engine evaluates, what `connect` takes and gives back, and what is said when none can be had."""

from __future__ import annotations

import asyncio
import http.server
import os
import socket
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from bare import bare_cluster, tls_options
from distributed.versions import get_versions
from scripts import Scripts

from parcoll import (
    ClusterLostError,
    ConnectError,
    SerializationError,
    VersionWarning,
    connect,
    current,
    parallel,
)
from parcoll.cluster import clients
from parcoll.cluster.joining import check_versions
from parcoll.local.credentials import Credentials
from parcoll.wire.payload import Packed
from parcoll.worker.program import Program, SharedProgram

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a scheduler with a one-thread worker, started as an administrator would."""
    with bare_cluster(tmp_path_factory.mktemp("remote"), 1) as cluster:
        yield cluster.address


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

    monkeypatch.setattr(current, "_local", refuse)
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
        joined = current._joined[remote][1]
        assert evaluated_at() == remote
        assert current._joined[remote][1] is joined
    assert no_default_client()
    joined.client.close()
    with dask.config.set({"scheduler-address": remote}):
        assert evaluated_at() == remote, "a client that was closed is replaced"
    current._joined.pop(remote)[1].client.close()


def test_the_address_in_the_environment_is_joined(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", remote)
    assert evaluated_at() == remote
    current._joined.pop(remote)[1].client.close()


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
    out, _ = scripts.run(
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
    assert out == "done\n"
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
    ("address", "words"),
    [
        ("http://127.0.0.1:8786", "'http' is none of tcp, tls"),
        ("nonsense://127.0.0.1:8786", "'nonsense' is none of tcp, tls"),
        ("tcp://", "no host and port"),
        ("tcp://127.0.0.1", "no host and port"),
        ("tcp://::1:8786", "no host and port"),
        ("tcp://127.0.0.1:99999", "no host and port"),
        ("tcp://no such host:1", "no host and port"),
        ("tcp://host.invalid:8786", "its host is not known here"),
        ("tcp://127.0.0.1:1", "nothing listens there"),
        ("tcp://127.0.0.1:1/\n", "nothing listens there"),
        ("://", "'' is none of tcp, tls"),
    ],
)
def test_an_address_that_leads_nowhere_is_told(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    with pytest.raises(ConnectError) as raised:
        connect(address)
    check_sentence(
        raised.value, "no dask scheduler", repr(address.strip("/\n") if "\n" in address else address), words
    )


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400", b"SSH-2.0-x\r\n", b"\0" * 64, b"\xff" * 64])
def test_a_server_that_speaks_first_is_told(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask takes the first bytes for a length: those of HTTP for one of some exabytes."""
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(answer)
                    ended.wait(3)

    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        address = f"tcp://{LOOPBACK}:{listener.getsockname()[1]}"
        try:
            with pytest.raises(ConnectError) as raised:
                connect(address)
        finally:
            ended.set()
            thread.join()
    check_sentence(raised.value, "no dask scheduler", address, "does not answer as dask does")


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


def test_a_web_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and answers in its own way."""
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer((LOOPBACK, 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"tcp://{LOOPBACK}:{server.server_port}"
        try:
            with pytest.raises(ConnectError) as raised:
                connect(address)
        finally:
            server.shutdown()
            thread.join()
    check_sentence(raised.value, "no dask scheduler", address, "does not answer as dask does")


def test_a_dask_worker_is_told_from_a_scheduler(client: Any, remote: str) -> None:
    (worker,) = client.scheduler_info()["workers"]
    with pytest.raises(ConnectError) as raised:
        connect(worker)
    check_sentence(raised.value, "no dask scheduler", worker, "a dask worker", remote)


def test_tls_where_the_scheduler_speaks_none_is_told(remote: str) -> None:
    address = remote.replace("tcp://", "tls://")
    with pytest.raises(ConnectError) as raised:
        connect(address)
    check_sentence(raised.value, address, "security=")
    with pytest.raises(ConnectError) as raised:
        connect(address, security=Credentials.generate().security())
    check_sentence(raised.value, address, "does not speak TLS", "tcp://")


def test_a_scheduler_that_speaks_tls_tells_whom_it_refuses(tmp_path: Path) -> None:
    ours, others = Credentials.generate(), Credentials.generate()
    options = tls_options(tmp_path, ours.certificate, ours.key)
    with bare_cluster(tmp_path / "cluster", 1, *options, security=ours.security()) as cluster:
        address = cluster.address
        for given, words in (
            ({"target": address}, ["needs security="]),
            ({"target": address, "security": others.security()}, ["certificate", "security="]),
            ({"target": address.replace("tls://", "tcp://")}, ["closed the connection", "tls://"]),
        ):
            with pytest.raises(ConnectError) as raised:
                connect(**given)
            check_sentence(raised.value, "no dask scheduler", *words)
        with connect(address, security=ours.security()):
            assert evaluated_at() == address
        with connect(cluster.file, security=ours.security()) as connection:
            assert connection.address == address


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"address": 1', '{"address": null}', None])
def test_a_file_that_is_no_scheduler_file_is_told(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    for target in (path, str(path)):
        with pytest.raises(ConnectError) as raised:
            connect(target)
        check_sentence(raised.value, repr(str(path)), "no scheduler file")


def test_a_worker_of_another_python_is_refused_and_other_versions_are_warned_of() -> None:
    """No second Python with dask is at hand, so the answer of the cluster is changed."""

    class Cluster:
        def __init__(self, worker: dict[str, str], scheduler: dict[str, str]) -> None:
            here = get_versions()
            self.versions = {"client": here, "scheduler": {"packages": here["packages"] | scheduler}}
            self.versions["workers"] = {
                "tcp://gone:1": OSError("it has just gone"),
                "tcp://host:1": {"packages": here["packages"] | worker},
            }

        def get_versions(self) -> Any:
            return self.versions

    with pytest.raises(ConnectError) as raised:
        check_versions(Cluster({"python": "3.9.1.final.0"}, {}))
    check_sentence(raised.value, "worker tcp://host:1 runs Python 3.9", "this process Python 3.", "bytecode")
    with pytest.raises(ConnectError) as raised:
        check_versions(Cluster({}, {"distributed": "2024.12.0"}))
    check_sentence(raised.value, "the scheduler has distributed 2024.12.0", "2026.1")
    with pytest.warns(VersionWarning, match=r"2099.1rc1"):
        check_versions(Cluster({"distributed": "2099.1rc1"}, {"distributed": "2099.1rc1"}))
    with pytest.warns(
        VersionWarning, match=r"the scheduler has dask 2026\.1\.0 and this process dask"
    ) as found:
        check_versions(Cluster({"dask": "2026.1.0"}, {"dask": "2026.1.0"}))
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_versions(Cluster({"numpy": None}, {"python": "3.9.1.final.0"}))  # it runs no function


def test_a_worker_that_comes_later_with_another_python_says_so() -> None:
    program = SharedProgram(Packed.pack(Program(())), "token", python=(3, 9))
    with pytest.raises(SerializationError) as raised:
        program.load()
    check_sentence(raised.value, "runs Python 3.", "Python 3.9")


def test_an_address_in_the_config_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "JOIN_SECONDS", 1)
    address = f"tcp://{LOOPBACK}:{closed_port()}"
    with dask.config.set({"scheduler-address": address}), pytest.raises(ConnectError) as raised:
        list(parallel(range(3)).map(abs))
    check_sentence(raised.value, address)


@pytest.mark.parametrize(
    "target",
    [1, "localhost", b"tcp://127.0.0.1:1", [], distributed.Client, distributed.LocalCluster],
)
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
