"""The local cluster's processes work as asked, and lost ones are replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Worker
from local_hosts import directories, finish, linux_only, run, start_script, tree, workers_of
from scripts import eventually

from parcoll.errors import ClusterStartError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


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
        killed = time.monotonic()
        victim.kill()
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
    assert host.failure == (
        "the local cluster ended: 5 workers in a row could not start; their tracebacks are on standard error"
    )
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


def how_a_fork_ends_by_sigterm(_: int) -> int:
    pid = os.fork()
    if not pid:
        # What a process does that is about to wait for a lock: with a handler of Python's it would go on.
        os.kill(os.getpid(), signal.SIGTERM) or os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_a_function_forks_ends_by_sigterm(start: Any, connect: Any) -> None:
    host = start(n_workers=1)
    assert run(connect(host.wait_ready()), how_a_fork_ends_by_sigterm, 0) == -signal.SIGTERM
