"""A local cluster that cannot start says why, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_hosts import finish, processes_with, start_script
from scripts import clean_environment

from parcoll.errors import ClusterStartError
from parcoll.local import host_process as host_processes
from parcoll.local.host import Host

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_workers": 0}, ValueError, "n_workers must be at least 1, got 0"),
        ({"n_workers": "2"}, TypeError, r"n_workers must be a whole number, got '2' \(a str\)"),
        ({"n_workers": True}, TypeError, r"n_workers must be a whole number, got True \(a bool\)"),
        ({"threads_per_worker": -1}, ValueError, "threads_per_worker must be at least 1, got -1"),
        ({"memory_limit": "lots"}, ValueError, "memory_limit must be .* got 'lots'"),
        ({"memory_limit": -5}, ValueError, "memory_limit must be .* got -5"),
        ({"memory_limit": float("nan")}, ValueError, "memory_limit must be .* got nan"),
        ({"memory_limit": [1]}, TypeError, r"memory_limit must be .* got \[1\] \(a list\)"),
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
        "the local cluster did not start: ImportError: broken install; its host process ended with "
        "exit code 1"
    )
    assert "Traceback" in raised.value.__notes__[0]


def test_a_child_that_dies_silently_is_told(start: Any) -> None:
    host = start(n_workers=1)
    os.kill(host.pid, signal.SIGKILL)
    with pytest.raises(ClusterStartError, match="did not start: its host process was killed by signal 9"):
        host.wait_ready()


def test_a_scheduler_that_cannot_start_is_told(
    start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__PRELOAD", "no_such_module_at_all")
    with pytest.raises(ClusterStartError, match=r"did not start: .*no_such_module_at_all"):
        start(n_workers=1).wait_ready()


def test_a_host_that_is_late_is_ended(start: Any, mark: str) -> None:
    host = start(n_workers=1)
    with pytest.raises(ClusterStartError, match=r"was not ready within 0\.01 s and was stopped"):
        host.wait_ready(timeout=0.01)
    assert host.closed
    assert not processes_with(mark)


def test_an_interpreter_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ClusterStartError, match="'/no/such/python' could not be run"):
        Host()


def test_a_script_without_streams_whose_numbers_files_have_since(tmp_path: Path) -> None:
    """As a daemon's, which closes them: a child of its inherits no file in the place of a stream."""
    script = """
import os, sys
files = [open(os.devnull) for _ in range(3)]
from parcoll import connect, parallel
assert sys.stdout is None and os.fstat(1)
with connect(n_workers=1):
    found = list(parallel([1, 2]).map(lambda x: (x, print(x))))
open("found", "w").write(repr(found))
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script]
    assert subprocess.run(command, cwd=tmp_path, env=clean_environment(), timeout=60).returncode == 0
    assert (tmp_path / "found").read_text() == "[(1, None), (2, None)]"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_numbers_of_closed_streams_are_no_files_of_the_cluster(tmp_path: Path) -> None:
    """What a library of C prints there would go into messages, or into the data of elements."""
    script = """
import os
from parcoll import connect, parallel
with connect(n_workers=1):
    found = list(parallel([bytes(300_000)]).map(len))
    files = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
open("found", "w").write(repr((found, files)))
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script]
    assert subprocess.run(command, cwd=tmp_path, env=clean_environment(), timeout=60).returncode == 0
    assert (tmp_path / "found").read_text() == repr(([300_000], ["/dev/null"] * 3))


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
