"""The processes of a local cluster's host, seen from a test, and scripts that start one."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from parcoll.local.host import Host

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
