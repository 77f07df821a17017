"""dask's configuration stays what it was."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import dask.bag
import pytest


@pytest.fixture(autouse=True)
def config_stays() -> Iterator[None]:
    """Fail a test after which dask's configuration is another."""
    before = repr(dask.config.config)
    yield
    assert repr(dask.config.config) == before
