"""What `connect` takes, and what is said when nothing of the kind can be had."""

from __future__ import annotations

import asyncio
import http.server
import itertools
import re
import socket
import sys
import threading
import warnings
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
from bare import bare_cluster, tls_options
from broken import answering, but
from distributed.versions import get_versions
from places import check_sentence, evaluated_at
from ports import LOOPBACK, free_port
from scripts import Scripts

from parcoll import (
    ClusterLostError,
    ConnectError,
    SerializationError,
    VersionWarning,
    WorkerSetupError,
    connect,
    parallel,
)
from parcoll.cluster import clients
from parcoll.cluster.preparing import check_versions
from parcoll.local.credentials import Credentials
from parcoll.wire.payload import Packed, Shared
from parcoll.wire.segments import Address, Span
from parcoll.worker.program import Program, SharedProgram

pytestmark = pytest.mark.usefixtures("no_default_cluster")


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


def test_clusters_of_kubernetes_and_job_queues_are_used_as_the_guide_says(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands for each has the scheduler of another one, and tells what is done to it."""
    done: list[str] = []

    class StandIn:
        scheduler_address, security, status = remote, None, "running"

        def __init__(self, **options: Any) -> None:
            done.append(" ".join(options))

        def __enter__(self) -> StandIn:
            return self

        def __exit__(self, *error: object) -> None:
            self.close()
            with pytest.raises(ConnectError, match=r"the cluster object .*StandIn.* is closed: make another"):
                connect(self)

        def adapt(self, minimum: int, maximum: int) -> None:
            done.append("adapt")

        def scale(self, jobs: int) -> None:
            done.append("scale")

        def close(self) -> None:
            done.append("close")
            self.status = "closed"

    kubernetes = SimpleNamespace(KubeCluster=StandIn)
    monkeypatch.setitem(sys.modules, "dask_kubernetes", kubernetes)
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", kubernetes)
    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=StandIn))
    page = (Path(__file__).parents[2] / "docs/guides/remote.md").read_text(encoding="utf-8")
    (printed,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "KubeCluster" in block)
    names: dict[str, Any] = {"__name__": "guide"}
    exec(printed, names)
    total = sum(n * n for n in range(1000))
    assert (names["on_kubernetes"](), names["on_slurm"]()) == (total, total)
    assert done == ["name image", "adapt", "close", "cores processes memory walltime", "scale", "close"]


def test_a_closed_port_is_told_within_its_time() -> None:
    address = f"tcp://{LOOPBACK}:{free_port()}"
    with pytest.raises(ConnectError) as raised:
        connect(address)
    check_sentence(raised.value, "no dask scheduler", address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8786", "'http' is none of tcp, tls"),
        ("nonsense://127.0.0.1:8786", "'nonsense' is none of tcp, tls"),
        ("tcp://", "it needs a host and a port"),
        ("tcp://127.0.0.1", "it needs a host and a port"),
        ("tcp://::1:8786", "it needs a host and a port"),
        ("tcp://127.0.0.1:99999", "it needs a host and a port"),
        ("tcp://no such host:1", "it needs a host and a port"),
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


def test_certificates_that_are_missing_are_told_from_a_scheduler_without(remote: str, tmp_path: Path) -> None:
    """dask's sentence for the first speaks of an `ssl_context`; OpenSSL's for the second names no file."""
    address, made, gone = remote.replace("tcp://", "tls://"), Credentials.generate(), tmp_path / "gone.pem"
    files = tls_options(tmp_path, made.certificate, made.key)[3::2]
    ours = dict(zip(clients.CERTIFICATES, files, strict=True))
    with pytest.raises(ConnectError) as raised:
        connect(address, security=distributed.Security(tls_ca_file=ours["tls_ca_file"]))
    check_sentence(raised.value, address, "security= needs all of tls_ca_file, tls_client_cert and tls_cli")
    for name in clients.CERTIFICATES:
        with pytest.raises(ConnectError) as raised:
            connect(address, security=distributed.Security(**{**ours, name: str(gone)}))
        check_sentence(raised.value, address, f"no such file as security= names, {str(gone)!r}")


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
        # Another one takes its place in mid-run, with the certificate of others: it is not joined.
        with connect(address, security=ours.security(), reconnect=3):
            stream = iter(parallel(itertools.count()).map(abs))
            assert next(stream) == 0
            cluster.scheduler.kill()
            cluster.scheduler.wait(20)
            tls_options(tmp_path, others.certificate, others.key)
            cluster.start_scheduler(int(address.rpartition(":")[2]))
            with pytest.raises(ClusterLostError) as lost:
                deque(stream, maxlen=0)
            check_sentence(lost.value, "did not come back within 3 s", "its TLS certificate is not the one")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"address": 1', '{"address": null}', None])
def test_a_file_that_is_no_scheduler_file_is_told(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    for target in (path, str(path)):
        with pytest.raises(ConnectError) as raised:
            connect(target)
        check_sentence(raised.value, repr(str(path)), "is not a scheduler file")


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
    address = f"tcp://{LOOPBACK}:{free_port()}"
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


def test_a_broken_worker_is_told(client: Any) -> None:
    """tests/cluster/test_broken_workers.py has what else one may answer with."""
    with connect(client):
        assert list(parallel(range(4), partition_size=1).map(abs)) == [
            0,
            1,
            2,
            3,
        ]  # the worker has parcoll now
        in_memory = Shared(Span(Address(1, 5, bytes(16)), 4096, (5,)))
        for answer in (lambda _: None, but(read="x"), but(results=in_memory), but(produced=7)):
            with answering(client, answer, reported=False), pytest.raises(WorkerSetupError):
                list(parallel(range(4), partition_size=1).map(abs))
        assert list(parallel(range(4), partition_size=1).map(abs)) == [0, 1, 2, 3]


def test_what_of_this_process_goes_to_other_machines_and_what_does_not(
    client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing of the environment and the command line goes there, and no data through shared memory."""
    monkeypatch.setenv("SECRET_OF_THE_SCRIPT", "s3cret")
    monkeypatch.setattr("sys.argv", ["s3cret"])
    monkeypatch.chdir(tmp_path)
    captured = "a password"

    def look(_: int) -> tuple[str | None, list[str], str, str]:
        import os
        import sys

        return os.environ.get("SECRET_OF_THE_SCRIPT"), sys.argv, os.getcwd(), captured

    with connect(client) as connection:
        assert connection.engine.connected().link.sharing is None
        assert list(parallel([bytes(10**6)]).map(len)) == [10**6]
        ((environment, arguments, folder, password),) = parallel([1]).map(look)
    assert environment is None
    assert "s3cret" not in arguments
    assert folder != str(tmp_path)
    assert password == captured, "closures do"


@pytest.mark.parametrize("answer", [None, "x", {"a": "b"}, {"packages": 5}])
@pytest.mark.parametrize("what", ["ncores", "versions", "broadcast"])
def test_a_broken_scheduler_is_told(client: Any, what: str, answer: Any) -> None:
    """Where dask can do with its answer, so can an evaluation."""

    def break_it(dask_scheduler: Any) -> None:
        dask_scheduler.before_it_broke = dask_scheduler.handlers[what]
        dask_scheduler.handlers[what] = lambda *_, **__: answer

    def mend_it(dask_scheduler: Any) -> None:
        dask_scheduler.handlers[what] = dask_scheduler.before_it_broke

    client.run_on_scheduler(break_it)
    try:
        with connect(client):
            assert list(parallel(range(3)).map(abs)) == [0, 1, 2]
    except ConnectError as error:
        check_sentence(error, "the dask scheduler at tcp://", "does not answer as dask's own does (")
    finally:
        client.run_on_scheduler(mend_it)
    assert list(parallel(range(3), client=client).map(abs)) == [0, 1, 2]
