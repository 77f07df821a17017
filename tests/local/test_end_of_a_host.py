"""The local cluster's processes are gone afterwards, whatever happened."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_hosts import directories, finish, linux_only, processes_with, run, start_script, tree, workers_of
from scripts import eventually

from parcoll.errors import ClusterStartError
from parcoll.local.host import Host

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


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
        from parcoll import system
        system.die_with_parent = lambda template: False
        of_template, template_lives = os.pipe()
        template = os.getpid()
        if os.fork() == 0:
            os.close(template_lives)
            system.die_with(template, of_template)
            print("up", flush=True)
            time.sleep(60)
        time.sleep(60)
        """
    process = start_script(script)
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=5)  # at its end when nobody holds the pipe


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
