"""Engines that elements fail on, places and ways to evaluate, modules, pages, and no pause before a retry."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from impatience import no_pause
from pages import Pages, pages
from ways import WAYS, Make, One, connected

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


@pytest.fixture(scope="module", params=["local", "bare"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Evaluate on a local cluster, then on one of dask's own processes."""
    with connected(request.param, tmp_path_factory.mktemp("place")):
        yield request.param


@pytest.fixture(params=["", "-timeout"])
def one(request: pytest.FixtureRequest, way: str) -> One:
    """Give what calls a function on a worker, which has run something before."""
    call = WAYS[way + request.param]
    assert call(lambda x: x) == 1
    return call


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Give what writes a module of the user's own, and imports it."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(name: str, text: str) -> ModuleType:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        made.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)
