"""What keeps a local cluster from starting is told in one sentence, with numbers and what to do, at once."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import types
from typing import Any

import pytest
from scripts import clean_environment

from parcoll import ClusterStartError, ConnectError, connect, parallel
from parcoll.local import host, limits

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")
INLINE = re.escape('or evaluate in this process with connect("inline")')

TRY = """
import os, resource, sys
from parcoll import ParcollError, connect, parallel

def attempt(**settings):
    try:
        with connect(**settings):
            print(parallel(range(100)).map(abs).fold(lambda a, b: a + b, 0, combine=lambda a, b: a + b))
    except ParcollError as error:
        print(type(error).__name__, error)
"""


def run(text: str, *before: str) -> list[str]:
    """Return what a script prints; it says nothing on standard error."""
    command = [*before, sys.executable, "-c", TRY + textwrap.dedent(text)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment())
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_each_limit_of_open_files_gives_the_results_or_a_sentence_with_numbers() -> None:
    lines = run(
        """
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for limit in (10, 20, 24, 28):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            attempt(n_workers=2)
        """
    )
    told = [line for line in lines if line != "4950"]
    assert lines[-1] == "4950"
    assert len(lines) == 4
    for line in told:
        assert re.fullmatch(
            r"ClusterStartError a local cluster of 2 workers needs \d+ (more here|in its scheduler) of the "
            r"files that a process may have open \(this process has \d+ of \d+\): raise the limit "
            rf"\(`ulimit -n 1024`\), close some, connect\(n_workers=1\), {INLINE}",
            line,
        )
    assert len(told) >= 2
    assert "of 10)" in told[0]


def test_files_that_the_program_itself_has_open_count() -> None:
    first, second = run(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        attempt(n_workers=1)
        for descriptor in held:
            os.close(descriptor)
        attempt(n_workers=1)
        """
    )
    assert re.search(r"of 1 worker needs 12 more here .*\(this process has 5\d of 64\)", first)
    assert second == "4950"


def may_unshare() -> bool:
    command = ["unshare", "-n", "true"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not may_unshare(), reason="this user may not make a network namespace")
def test_without_a_loopback_network() -> None:
    local, here = run('attempt(n_workers=1); attempt(target="inline")', "unshare", "-n")
    assert re.fullmatch(
        r"ClusterStartError a local cluster speaks through 127\.0\.0\.1, which cannot be reached here \("
        rf"\[Errno \d+\] .*\): bring the loopback network up \(`ip link set lo up`\), {INLINE}",
        local,
    )
    assert here == "4950"


def refused(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, "can't start new thread")
    with pytest.raises(
        ClusterStartError,
        match=r"^a local cluster needs threads: can't start new thread \(this user may have [0-9a-z ,]+ "
        rf"processes and threads\): end some of them, raise the limit \(`ulimit -u`\), {INLINE}$",
    ):
        connect(n_workers=1)
    with connect("inline"):  # and its bar, which then is drawn at the end alone
        assert parallel(range(10), progress=True).map(abs).count() == 10


def test_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(
        ClusterStartError, match=r"temporarily unavailable.*processes and threads\): end some"
    ):
        connect(n_workers=1)


def test_a_descriptor_that_is_missing_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", refuse)
    with pytest.raises(
        ClusterStartError,
        match=r"^the local cluster did not start: Too many open files \(this process has \d+ of [\d,]+\): "
        rf".*{INLINE}$",
    ):
        connect(n_workers=1)


def patched(library: str) -> types.ModuleType:
    """Return what tells of a library's patches, as that of `monkey.patch_all(os=False)` does."""
    module = types.ModuleType(library)
    names = ("threading", "thread", "socket", "select", "subprocess")
    tells = "is_module_patched" if "gevent" in library else "is_monkey_patched"
    setattr(module, tells, names.__contains__)
    return module


@pytest.mark.parametrize("library", ["gevent.monkey", "eventlet.patcher"])
def test_a_patched_process(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, patched(library))
    told = (
        rf"^{library.partition('.')[0]} has patched .*socket, select, .* in this process, and dask's clients "
        rf"need Python's own: evaluate in a process that is not patched, {INLINE}$"
    )
    with pytest.raises(ClusterStartError, match=told):
        connect(n_workers=1)
    with pytest.raises(ConnectError, match=told):
        connect("tcp://127.0.0.1:9")
    with connect("inline"):
        assert parallel(range(10)).map(abs).count() == 10


@pytest.mark.parametrize(
    ("library", "patch"),
    [
        ("gevent", "from gevent import monkey; monkey.patch_all()"),
        ("gevent", "from gevent import monkey; monkey.patch_all(thread=False)"),
        (
            "eventlet",
            "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
        ),
    ],
)
def test_a_process_that_is_really_patched(library: str, patch: str) -> None:
    pytest.importorskip(library)
    script = f"{patch}\n{TRY}\nattempt(n_workers=1)\nattempt(target='inline')"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment())
    told, here = done.stdout.splitlines()
    assert told.startswith(f"ClusterStartError {library} has patched ")
    assert here == "4950"


def refusal(workers: int) -> str | None:
    """Return the sentence with which a cluster of so many workers is refused; None if it may start."""
    try:
        limits.check(workers)
    except ClusterStartError as error:
        return str(error)
    return None


def test_a_library_that_has_patched_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("gevent.monkey")
    module.is_module_patched = ("time", "ssl").__contains__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", module)
    assert refusal(1) is None
    module.is_module_patched = ("thread", "socket").__contains__  # type: ignore[attr-defined]
    assert "gevent has patched" in (refusal(1) or "")


def test_errors_of_other_kinds_stay_what_they_are() -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("another"), KeyError(1)):
        assert limits.reason(error) is None
        with pytest.raises(type(error)), limits.told():
            raise error
    with pytest.raises(ConnectionRefusedError), limits.told(), socket.socket() as closed:
        closed.connect(("127.0.0.1", 9))
    assert host.limits is limits


@pytest.mark.parametrize(
    ("name", "told"), [("builtins.open", True), ("subprocess.run", True), ("glob.glob", False)]
)
def test_a_test_that_mocks_what_a_cluster_starts_with(name: str, told: bool) -> None:
    """Told at once, where dask would hang, or fail without a word of it. Later such a mock is harmless."""
    lines = run(
        f"""
        from unittest import mock
        import glob, subprocess
        with mock.patch("{name}"):
            attempt(n_workers=1)
        with connect(n_workers=1):
            print(parallel([1, 2]).map(abs).count())
            with mock.patch("{name}"):
                print(parallel([1, 2]).map(abs).count())
        """
    )
    message = (
        f"ClusterStartError {name} is a mock in this process, and dask starts with Python's own: evaluate "
        "something, if only parallel([1]).count(), before it is put there"
    )
    assert lines == [message if told else "4950", "2", "2"]
