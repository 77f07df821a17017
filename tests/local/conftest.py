"""Hosts and clients that are closed when the test ends, and a check that nothing of them is left."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from local_hosts import MARK, directories, processes_with
from scripts import eventually

from parcoll.local.host import Host, Ready


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
