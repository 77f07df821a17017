"""A scheduler as an administrator starts one, and no default cluster where another engine is meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import distributed
import pytest
from bare import bare_cluster

from parcoll.connecting import current


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a scheduler with a one-thread worker, started as an administrator would."""
    with bare_cluster(tmp_path_factory.mktemp("remote"), 1) as cluster:
        yield cluster.address


@pytest.fixture
def client(remote: str) -> Iterator[Any]:
    """Give a client of the user's own, which is not dask's default."""
    with distributed.Client(remote, set_as_default=False) as found:
        yield found


@pytest.fixture
def no_default_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail, instead of starting the process's own cluster, where a test expects another engine."""

    def refuse() -> None:
        raise AssertionError("the default local cluster would be started")

    monkeypatch.setattr(current, "local_engine", refuse)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
