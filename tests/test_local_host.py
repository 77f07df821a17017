"""The local cluster's processes: they start, work, and are gone afterwards, whatever happened."""

from __future__ import annotations

import asyncio
import ctypes
import glob
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import distributed.comm
import psutil
import pytest
from distributed import Client, Security, Worker
from scripts import eventually

from parcoll.errors import ClusterStartError
from parcoll.local import host_process as host_processes
from parcoll.local.credentials import Credentials
from parcoll.local.host import Host, Ready

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

MARK = "PARCOLL_TEST_RUN"


def processes_with(mark: str) -> list[psutil.Process]:
    """Return the processes that were started, by whomever, in the environment of this test."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def directories() -> list[str]:
    return glob.glob(os.path.join(tempfile.gettempdir(), "parcoll-*"))


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Check after each test that no process and no directory of it remains."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    yield value
    gone = eventually(lambda: not processes_with(value))
    remaining = processes_with(value)
    for process in remaining:
        with suppress(psutil.Error):
            process.kill()
    assert gone, f"still running: {remaining}"
    assert eventually(lambda: not directories(), 2), f"still there: {directories()}"


@pytest.fixture
def start() -> Iterator[Callable[..., Host]]:
    """Start hosts that are closed when the test ends."""
    hosts: list[Host] = []

    def start_host(*args: Any, **kwargs: Any) -> Host:
        hosts.append(Host(*args, **kwargs))
        return hosts[-1]

    yield start_host
    for host in hosts:
        host.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Ready], Client]]:
    """Connect clients that are closed before the hosts are."""
    clients: list[Client] = []

    def connect_client(ready: Ready) -> Client:
        security = ready.credentials.security()
        clients.append(Client(ready.address, security=security, set_as_default=False))
        return clients[-1]

    yield connect_client
    for client in clients:
        client.close()


def run(client: Client, func: Callable[..., Any], *args: object, **kwargs: Any) -> Any:
    return client.submit(func, *args, pure=False, **kwargs).result(timeout=20)


def tree(host: Host) -> list[psutil.Process]:
    template = psutil.Process(host.pid)
    return [template, *template.children(recursive=True)]


def workers_of(client: Client) -> dict[str, int]:
    """Return the process id of each worker, by address."""
    return dict(client.run(os.getpid))


PRELUDE = """
import ctypes, os, signal, sys, time
from parcoll.local.host import Host
def connect(host):
    from distributed import Client
    ready = host.wait_ready()
    return Client(ready.address, security=ready.credentials.security())
"""


def start_script(body: str, *, directory: Path | None = None, **kwargs: Any) -> Any:
    """Run a script that uses Host as a user's process would; its standard output is a pipe."""
    code = PRELUDE + textwrap.dedent(body)
    path = Path(directory or tempfile.gettempdir()) / f"script_{uuid.uuid4().hex}.py"
    path.write_text(code)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, str(path)], env=env, **options)


def finish(script: Any, seconds: float = 30) -> str:
    """Return what a script wrote that must have succeeded, quietly."""
    out, err = script.communicate(timeout=seconds)
    assert script.returncode == 0, err
    assert err == ""
    return str(out)


# Working ------------------------------------------------------------------------------------------


def test_a_client_gets_results(start: Any, connect: Any) -> None:
    host = start(n_workers=2)
    ready = host.wait_ready()
    assert host.wait_ready() == ready
    assert ready.address.startswith("tls://127.0.0.1:")
    assert ready.n_workers == 2
    assert host.alive
    assert not host.closed
    assert run(connect(ready), sum, [1, 2, 3]) == 6


def test_the_defaults_are_a_worker_a_core_with_equal_memory(start: Any, connect: Any) -> None:
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    ready = start().wait_ready()
    client = connect(ready)
    client.wait_for_workers(CPU_COUNT, timeout=20)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert ready.n_workers == len(workers) == CPU_COUNT
    assert {worker["nthreads"] for worker in workers} == {1}
    assert {worker["memory_limit"] for worker in workers} == {MEMORY_LIMIT // CPU_COUNT}


def test_workers_have_the_threads_and_memory_asked_for(start: Any, connect: Any) -> None:
    client = connect(start(1, threads_per_worker=3, memory_limit="123 MiB").wait_ready())
    client.wait_for_workers(1, timeout=20)
    (worker,) = client.scheduler_info()["workers"].values()
    assert (worker["nthreads"], worker["memory_limit"]) == (3, 123 * 2**20)


def test_a_worker_may_have_no_memory_limit(start: Any, connect: Any) -> None:
    def limit(dask_worker: Worker) -> int | None:
        return dask_worker.memory_manager.memory_limit

    client = connect(start(1, memory_limit=None).wait_ready())
    client.wait_for_workers(1, timeout=20)
    assert list(client.run(limit).values()) == [None]


def test_two_hosts_work_side_by_side(start: Any, connect: Any) -> None:
    hosts = [start(n_workers=1), start(n_workers=1)]
    clients = [connect(host.wait_ready()) for host in hosts]
    pids = [run(client, os.getppid) for client in clients]
    assert pids == [host.pid for host in hosts]
    hosts[0].close()
    assert run(clients[1], len, "abc") == 3


def drawn_by_two_workers(start: Any, connect: Any) -> list[tuple[float, float]]:
    """Return a random number of Python's and one of numpy's from each."""

    def draw() -> tuple[float, float]:
        import numpy as np

        return random.random(), float(np.random.random())

    client = connect(start(n_workers=2).wait_ready())
    client.wait_for_workers(2, timeout=20)
    return list(client.run(draw).values())


def test_workers_draw_different_random_numbers(start: Any, connect: Any) -> None:
    (random_a, numpy_a), (random_b, numpy_b) = drawn_by_two_workers(start, connect)
    assert random_a != random_b
    assert numpy_a != numpy_b


def test_numpy_is_reseeded_when_the_template_has_its_random_numbers(
    start: Any, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker gets a copy of a generator that was made before the fork."""
    # Stands for whatever version of dask imports numpy.random by itself; this one does not.
    (tmp_path / "psutil.py").write_text(
        "import sys, importlib.util, numpy.random\n"
        "sys.path.remove(__file__.rpartition('/')[0])\n"
        "del sys.modules['psutil']\n"
        "import psutil\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (_, numpy_a), (_, numpy_b) = drawn_by_two_workers(start, connect)
    assert numpy_a != numpy_b


def test_workers_see_an_empty_main_and_the_script_s_modules(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def double(x): return 2 * x\n")
    script = start_script(
        """
        import beside
        host = Host(n_workers=1)
        client = connect(host)
        def names():
            import sys
            return [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")]
        print(client.submit(beside.double, 21).result(), client.submit(names).result())
        """,
        directory=tmp_path,
    )
    assert finish(script) == "42 []\n"


def test_what_workers_print_reaches_the_terminal() -> None:
    script = start_script(
        """
        host = Host(n_workers=1)
        client = connect(host)
        client.submit(print, "a whole", "line").result()
        client.submit(print, "no newline", end="").result()
        client.close()
        host.close()
        """
    )
    assert finish(script) == "a whole line\nno newline"


def test_the_lines_of_two_workers_do_not_mix() -> None:
    script = start_script(
        """
        def write(letter):
            for _ in range(500):
                print(letter, letter, letter, sep=",")
        host = Host(n_workers=2)
        client = connect(host)
        client.gather(client.map(write, ["a", "b"]))
        """
    )
    assert set(finish(script).splitlines()) == {"a,a,a", "b,b,b"}


def test_a_process_without_standard_streams_can_start_a_host(tmp_path: Path) -> None:
    result = tmp_path / "result"
    script = start_script(
        f"""
        host = Host(n_workers=1)
        client = connect(host)
        total = client.submit(sum, [1, 2]).result()
        client.submit(print, "nobody reads this").result()
        open({str(result)!r}, "w").write(str(total))
        """,
        stdin=None,
        stdout=None,
        stderr=None,
        preexec_fn=lambda: os.closerange(0, 3),
    )
    assert script.wait(30) == 0
    assert result.read_text() == "3"


@linux_only
def test_the_template_has_one_thread(start: Any) -> None:
    host = start(n_workers=1)
    host.wait_ready()
    assert psutil.Process(host.pid).num_threads() == 1


# Ending -------------------------------------------------------------------------------------------


def test_close_ends_everything(start: Any, mark: str) -> None:
    def ready_host() -> Host:
        host: Host = start(n_workers=2)
        host.wait_ready()  # the template and the scheduler; the workers follow
        assert eventually(lambda: len(processes_with(mark)) == 4, 20)
        return host

    host = ready_host()
    soon = seconds_to_close(host) < 1
    assert not processes_with(mark)
    assert not directories()
    assert host.closed
    assert not host.alive
    host.close()
    with pytest.raises(ClusterStartError, match="closed"):
        host.wait_ready()
    # They are asked to end; those that do not are killed after a second.
    assert soon or any(seconds_to_close(ready_host()) < 1 for _ in range(3))


def seconds_to_close(host: Host) -> float:
    """Return how long it takes. A machine that pauses may make it late once, but not each time."""
    started = time.monotonic()
    host.close()
    return time.monotonic() - started


def test_a_host_that_is_not_ready_yet_can_be_closed(start: Any, mark: str) -> None:
    host = start(n_workers=1)
    host.close()
    assert not processes_with(mark)


def test_close_may_be_called_by_several_threads(start: Any, mark: str) -> None:
    host = start(n_workers=1)
    threads = [threading.Thread(target=host.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not processes_with(mark)


def test_close_ends_a_wait_in_another_thread(start: Any) -> None:
    host = start(n_workers=1)
    failures: list[str] = []

    def wait() -> None:
        try:
            host.wait_ready()
        except ClusterStartError as error:
            failures.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    host.close()
    thread.join(5)
    assert failures in ([], ["the local cluster is closed"])


def test_a_host_that_nobody_holds_ends(mark: str) -> None:
    host = Host(n_workers=1)
    host.wait_ready()
    del host
    assert eventually(lambda: not processes_with(mark))


def test_a_script_need_not_close_its_host() -> None:
    assert finish(start_script("host = Host(n_workers=2)\nconnect(host).submit(len, '').result()")) == ""


def test_a_script_that_ends_at_once_leaves_nothing() -> None:
    assert finish(start_script("Host()")) == ""


def test_an_error_in_the_script_leaves_nothing() -> None:
    script = start_script("host = Host(n_workers=1)\nhost.wait_ready()\nraise KeyError('mine')")
    _, err = script.communicate(timeout=30)
    assert err.strip().endswith("KeyError: 'mine'")


@pytest.mark.parametrize("ready", [True, False])
def test_everything_ends_when_the_script_is_killed(mark: str, ready: bool) -> None:
    wait = "host.wait_ready()" if ready else ""
    script = start_script(f"host = Host(n_workers=2)\n{wait}\nprint('up', flush=True)\ntime.sleep(60)")
    assert script.stdout.readline() == "up\n"
    assert processes_with(mark)
    script.kill()
    script.wait()
    assert eventually(lambda: not processes_with(mark), 5)
    assert not directories()
    assert script.communicate()[1] == ""


def test_everything_ends_when_the_template_is_killed(start: Any, mark: str) -> None:
    host = start(n_workers=2)
    host.wait_ready()
    os.kill(host.pid, signal.SIGKILL)
    assert eventually(lambda: not processes_with(mark), 5)
    assert not host.alive
    assert host.failure == "the local cluster ended: its host process was killed by signal 9 (SIGKILL)"


def test_everything_ends_when_the_template_is_told_to(start: Any, mark: str) -> None:
    host = start(n_workers=2)
    host.wait_ready()
    os.kill(host.pid, signal.SIGTERM)
    assert eventually(lambda: not processes_with(mark), 5)
    assert not directories()


def test_everything_ends_when_the_scheduler_dies(start: Any, mark: str) -> None:
    host = start(n_workers=1)
    ready = host.wait_ready()
    port = int(ready.address.rpartition(":")[2])
    (scheduler,) = [
        process
        for process in tree(host)
        if any(c.laddr.port == port and c.status == "LISTEN" for c in process.net_connections())
    ]
    scheduler.kill()
    assert eventually(lambda: not host.alive)
    assert host.failure == "the local cluster ended: its scheduler was killed by signal 9 (SIGKILL)"
    assert eventually(lambda: not processes_with(mark), 5)


@linux_only
@pytest.mark.parametrize("how", ["close", "kill the template"])
def test_a_worker_that_holds_the_gil_ends_with_the_rest(
    start: Any, connect: Any, mark: str, tmp_path: Path, how: str
) -> None:
    flag = tmp_path / "flag"

    def hold_the_gil(path: str) -> None:
        Path(path).touch()
        ctypes.PyDLL(None).sleep(1000)

    host = start(n_workers=2)
    client = connect(host.wait_ready())
    future = client.submit(hold_the_gil, str(flag))
    assert eventually(flag.exists)
    if how == "close":
        host.close()
    else:
        os.kill(host.pid, signal.SIGKILL)
    assert eventually(lambda: not processes_with(mark), 20)  # of the thousand seconds
    del future


@pytest.mark.parametrize("how", ["close", "kill"])
def test_programs_that_tasks_started_end_too(start: Any, connect: Any, mark: str, how: str) -> None:
    def start_program() -> int:
        return subprocess.Popen(["sleep", "1000"]).pid

    def seconds() -> float:
        host = start(n_workers=1)
        client = connect(host.wait_ready())
        pid = run(client, start_program)
        (worker,) = workers_of(client).values()
        if how == "kill":  # its parent first
            os.kill(worker, signal.SIGKILL)
        assert psutil.pid_exists(pid)
        taken = seconds_to_close(host)
        assert not processes_with(mark)
        return taken

    assert any(seconds() < 1 for _ in range(4))  # they are asked to end, not waited for


def test_without_the_kernel_s_help_a_child_sees_that_its_template_is_gone() -> None:
    """The way of macOS, and of no use to a worker that holds the GIL."""
    script = """
        from parcoll.local import host_main
        host_main._prctl = lambda *_: False
        of_template, template_lives = os.pipe()
        template = os.getpid()
        if os.fork() == 0:
            os.close(template_lives)
            host_main._die_with(template, of_template)
            print("up", flush=True)
            time.sleep(60)
        time.sleep(60)
        """
    process = start_script(script)
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=5)  # at its end when nobody holds the pipe


# Losing workers -----------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced(start: Any, connect: Any) -> None:
    client = connect(start(n_workers=1).wait_ready())
    for _ in range(2):
        pid = run(client, os.getpid)
        os.kill(pid, signal.SIGKILL)
        assert run(client, os.getpid) != pid


def test_a_retired_worker_is_replaced(start: Any, connect: Any) -> None:
    client = connect(start(n_workers=1).wait_ready())
    pid = run(client, os.getpid)
    client.retire_workers(list(workers_of(client)))
    assert run(client, os.getpid) != pid


def test_workers_that_die_young_are_replaced_ever_more_slowly(start: Any, connect: Any) -> None:
    """After 50 ms, 100, 200 and 400; from the beginning where one has lived for a second."""
    client = connect(start(n_workers=1).wait_ready())
    victim = psutil.Process(run(client, os.getpid))
    template = victim.parent()
    assert template is not None
    known = {child.pid for child in template.children()}
    pause, killed, deadline = 0.0, 0.0, time.monotonic() + 60
    while pause < 0.4 and time.monotonic() < deadline:
        young = time.monotonic() - killed - pause < 0.3
        if not young:  # the first, or this machine held us up: for the host it shall be old, too
            time.sleep(1.2)
        victim.kill()
        killed = time.monotonic()
        pause = max(0.05, 2 * pause) if young else 0.0
        assert eventually(lambda: {child.pid for child in template.children()} - known)
        assert time.monotonic() - killed >= pause
        (pid,) = {child.pid for child in template.children()} - known
        known.add(pid)
        victim = psutil.Process(pid)
    assert pause == 0.4


def test_a_host_whose_workers_cannot_start_ends_and_tells_why(
    start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mark: str
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "no_such_module_at_all")
    host = start(n_workers=2)
    with suppress(ClusterStartError):
        host.wait_ready()
    assert eventually(lambda: not host.alive, 20)
    assert host.failure == "the local cluster ended: its workers do not start (5 attempts)"
    assert "no_such_module_at_all" in capfd.readouterr().err
    assert not directories()


def test_ctrl_c_is_nothing_to_the_cluster(start: Any, connect: Any) -> None:
    host = start(n_workers=1)
    client = connect(host.wait_ready())
    pid = run(client, os.getpid)
    for process in tree(host):
        process.send_signal(signal.SIGINT)
    assert run(client, os.getpid) == pid
    assert os.getpgid(host.pid) == host.pid != os.getpgrp()


# Forks of the user's process ----------------------------------------------------------------------


def test_a_fork_that_ends_leaves_the_cluster_alone() -> None:
    script = start_script(
        """
        host = Host(n_workers=1)
        host.wait_ready()
        pid = os.fork()
        if pid == 0:
            host.close()
            print(host.closed, host.alive, flush=True)
            sys.exit(0)  # with all exit handlers
        os.waitpid(pid, 0)
        print(host.closed, host.alive, connect(host).submit(len, "abc").result())
        """
    )
    assert finish(script) == "True False\nFalse True 3\n"


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.CDLL(None).fork()"])
def test_a_fork_that_lives_on_does_not_keep_the_cluster(fork: str, mark: str) -> None:
    """libc's fork runs none of Python's hooks: that copy of the pipe stays open."""
    script = start_script(
        f"""
        host = Host(n_workers=1)
        host.wait_ready()
        pid = {fork}
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        print(host.pid, pid, flush=True)
        time.sleep(60)
        """
    )
    host, child = map(int, script.stdout.readline().split())
    assert {host, child} < {process.pid for process in processes_with(mark)}
    script.kill()
    script.wait()
    assert eventually(lambda: [process.pid for process in processes_with(mark)] == [child])
    os.kill(child, signal.SIGKILL)
    script.communicate(timeout=5)


# Privacy ------------------------------------------------------------------------------------------


def test_ports_listen_on_loopback_only(start: Any, connect: Any) -> None:
    host = start(n_workers=2)
    client = connect(host.wait_ready())
    client.wait_for_workers(2, timeout=20)
    listening = [
        connection.laddr.ip
        for process in tree(host)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}


def test_a_client_without_the_key_is_refused(start: Any) -> None:
    """With dask's connections: a Client that fails hangs now and then when it is collected."""
    ready = start(n_workers=1).wait_ready()
    own = ready.credentials.security()
    others = (
        Security(),
        Security(require_encryption=True, tls_ca_file=ready.credentials.certificate),
        Credentials.generate().security(),
    )

    async def ask(address: str, security: Security) -> Any:
        timeout = 20 if security is own else 2  # dask tries again until then
        comm = await distributed.comm.connect(
            address, timeout=timeout, **security.get_connection_args("client")
        )
        await comm.write({"op": "identity"})
        answer = await comm.read()
        await comm.close()
        return answer

    assert asyncio.run(ask(ready.address, own))["type"] == "Scheduler"
    for security in others:
        with pytest.raises((OSError, TypeError)):
            asyncio.run(ask(ready.address, security))
    with pytest.raises(OSError):
        asyncio.run(ask(ready.address.replace("tls", "tcp"), Security()))


@pytest.mark.parametrize("own", [None, Credentials.generate()])
def test_every_port_asks_for_the_key(
    start: Any, connect: Any, tmp_path: Path, own: Credentials | None
) -> None:
    """Scheduler and workers; a handshake alone may seem to succeed before the peer refuses."""
    ready = start(n_workers=1).wait_ready()
    client = connect(ready)
    client.wait_for_workers(1, timeout=20)
    context = ssl.create_default_context(cadata=ready.credentials.certificate)
    context.check_hostname = False
    if own:
        pem = tmp_path / "own.pem"
        pem.write_text(own.certificate + own.key)
        context.load_cert_chain(pem)
    for address in (ready.address, *client.scheduler_info()["workers"]):
        port = int(address.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            pytest.raises(ssl.SSLError),
            context.wrap_socket(raw) as wrapped,
        ):
            wrapped.recv(1)


def test_the_key_is_nowhere_to_be_read(start: Any, connect: Any, mark: str) -> None:
    ready = start(n_workers=1).wait_ready()
    run(connect(ready), len, "abc")
    secrets = [line for line in ready.credentials.key.splitlines() if "-" not in line]
    assert len(secrets) >= 3
    texts = [repr(ready), repr(ready.credentials)]
    for process in processes_with(mark):
        texts += [*process.cmdline(), *process.environ().values()]
    for directory in directories():
        for path in Path(directory).rglob("*"):
            if path.is_file():
                texts.append(path.read_text(errors="replace"))
    assert not [secret for secret in secrets if any(secret in text for text in texts)]


def test_the_directory_is_private(start: Any) -> None:
    start(n_workers=1).wait_ready()
    (directory,) = directories()
    assert os.stat(directory).st_mode & 0o777 == 0o700


def test_this_process_s_environment_is_unchanged(start: Any) -> None:
    before = dict(os.environ)
    start(n_workers=1).wait_ready()
    assert dict(os.environ) == before


def test_workers_leave_the_cores_to_each_other(
    start: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    client = connect(start(n_workers=1).wait_ready())
    assert run(client, os.getenv, "OMP_NUM_THREADS") == "1"
    assert run(client, os.getenv, "MKL_NUM_THREADS") == "7"


# The dashboard ------------------------------------------------------------------------------------


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def bokeh_is_loaded() -> bool:
    return "bokeh" in sys.modules


def test_the_dashboard_is_loaded_at_the_first_visit(start: Any, connect: Any) -> None:
    ready = start(n_workers=1).wait_ready()
    client = connect(ready)
    run(client, len, "abc")
    base = ready.dashboard_link.removesuffix("/status")
    assert fetch(base + "/health") == (200, "ok")
    assert not client.run_on_scheduler(bokeh_is_loaded)
    status, page = fetch(ready.dashboard_link)
    assert status == 200
    assert "Bokeh" in page
    assert client.run_on_scheduler(bokeh_is_loaded)
    assert "Bokeh" in fetch(base + "/")[1]
    assert fetch(base + "/workers")[0] == 200
    assert fetch(base + "/static/js/bokeh.min.js")[0] == 200
    assert fetch(base + "/no-such-page")[0] == 404
    assert run(client, len, "abcd") == 4


def test_a_dashboard_page_gets_its_data(start: Any, connect: Any) -> None:
    """The websocket of a page that was loaded late works."""
    bokeh_client = pytest.importorskip("bokeh.client")
    ready = start(n_workers=1).wait_ready()
    run(connect(ready), len, "abc")
    fetch(ready.dashboard_link)
    session = bokeh_client.pull_session(url=ready.dashboard_link)
    try:
        assert session.document.roots
    finally:
        session.close()


def test_pages_of_an_earlier_cluster_do_not_load_the_dashboard(start: Any, connect: Any) -> None:
    ready = start(n_workers=1).wait_ready()
    request = urllib.request.Request(
        f"{ready.dashboard_link}/ws", headers={"Upgrade": "websocket", "Connection": "Upgrade"}
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    raised.value.close()
    assert raised.value.code == 503
    assert not connect(ready).run_on_scheduler(bokeh_is_loaded)


def test_without_bokeh_the_dashboard_says_so(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bokeh.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, page = fetch(start(n_workers=1).wait_ready().dashboard_link)
    assert status == 200
    assert "pip install" in page


def test_a_taken_dashboard_port_is_no_trouble() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else has it: as good
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        script = start_script("host = Host(n_workers=1)\nprint(host.wait_ready().dashboard_link)")
        link = finish(script).strip()
    assert link.startswith("http://127.0.0.1:")
    assert not link.startswith("http://127.0.0.1:8787/")


# Failing to start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_workers": 0}, ValueError, "n_workers must be at least 1, not 0"),
        ({"n_workers": "2"}, TypeError, "n_workers must be an int, not str: '2'"),
        ({"n_workers": True}, TypeError, "n_workers must be an int, not bool: True"),
        ({"threads_per_worker": -1}, ValueError, "threads_per_worker must be at least 1, not -1"),
        ({"memory_limit": "lots"}, ValueError, "memory_limit must be .* not 'lots'"),
        ({"memory_limit": -5}, ValueError, "memory_limit must be .* not -5"),
        ({"memory_limit": float("nan")}, ValueError, "memory_limit must be .* not nan"),
        ({"memory_limit": [1]}, TypeError, r"memory_limit must be a size, not list: \[1\]"),
    ],
)
def test_wrong_arguments_are_told_at_once(
    options: dict[str, Any], error: type[Exception], message: str, mark: str
) -> None:
    with pytest.raises(error, match=message):
        Host(**options)
    assert not processes_with(mark)


def test_a_failing_child_is_quoted(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distributed.py").write_text("raise ImportError('broken install')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    host = start(n_workers=1)
    with pytest.raises(ClusterStartError) as raised:
        host.wait_ready()
    assert str(raised.value) == (
        "the local cluster did not start: ImportError: broken install; its host ended with exit code 1"
    )
    assert "Traceback" in raised.value.__notes__[0]


def test_a_child_that_dies_silently_is_told(start: Any) -> None:
    host = start(n_workers=1)
    os.kill(host.pid, signal.SIGKILL)
    with pytest.raises(ClusterStartError, match="did not start: its host was killed by signal 9"):
        host.wait_ready()


def test_a_scheduler_that_cannot_start_is_told(
    start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__PRELOAD", "no_such_module_at_all")
    with pytest.raises(ClusterStartError, match=r"did not start: .*no_such_module_at_all"):
        start(n_workers=1).wait_ready()


def test_a_host_that_is_late_is_ended(start: Any, mark: str) -> None:
    host = start(n_workers=1)
    with pytest.raises(ClusterStartError, match=r"was not ready after 0\.01 s"):
        host.wait_ready(timeout=0.01)
    assert host.closed
    assert not processes_with(mark)


def test_an_interpreter_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ClusterStartError, match="'/no/such/python' could not be run"):
        Host()


def test_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(1000)")
    script = start_script(
        """
        import threading
        os.environ["DASK_DISTRIBUTED__SCHEDULER__PRELOAD"] = "slow"
        host = Host(n_workers=1)
        os.kill(host.pid, signal.SIGSTOP)
        try:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            host.wait_ready()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        host.close()
        """,
        directory=tmp_path,
    )
    assert finish(script) == "interrupted\n"


def test_a_system_without_fork_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ClusterStartError, match=r"needs Linux or macOS.*connect\(\)"):
        Host()


def test_a_frozen_program_does_not_start_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ClusterStartError, match="needs a Python interpreter"):
        Host()


def test_importing_the_parent_side_does_not_import_dask() -> None:
    code = "import sys, parcoll.local.host; print({'dask', 'distributed'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout == "set()\n"
    assert not host_processes._live
