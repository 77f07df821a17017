"""Engines that elements fail on, places to evaluate, a server of pages, and no pause before a retry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from impatience import no_pause
from pages import Pages, pages

from parcoll import Connection
from parcoll.chain import policy
from parcoll.chain.policy import BASE_SECONDS
from parcoll.worker.program import Program


@pytest.fixture(scope="module")
def impatient(cluster: Connection) -> Iterator[None]:
    """Have nothing wait before a retry, here and in the workers."""
    cluster.engine.client.wait_for_workers(2, timeout=30)
    cluster.engine.client.run(no_pause)
    no_pause()
    yield
    policy.BASE_SECONDS = BASE_SECONDS


@pytest.fixture
def isolated(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Have all partitions run beside the workers, as those do whose steps have a timeout."""
    monkeypatch.setattr(Program, "stops", True)
    return cluster


@pytest.fixture(params=["inline", "cluster", "isolated"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["inline", "cluster"])
def place(request: pytest.FixtureRequest) -> Connection:
    """Run the test in this process, and once more on worker processes."""
    connection: Connection = request.getfixturevalue(request.param)
    return connection


@pytest.fixture(scope="module")
def server(leaves_no_trace: None) -> Iterator[Pages]:
    """Give a server whose pages take as long as they are asked to."""
    with pages() as found:
        yield found
