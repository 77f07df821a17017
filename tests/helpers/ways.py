"""Ways to have one function called on a worker: as it comes, under a timeout, on another's cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bare import bare_cluster

from parcoll import connect, parallel

One = Callable[[Callable[[Any], Any]], Any]
Make = Callable[[str, str], ModuleType]


def plain(func: Callable[[Any], Any]) -> Any:
    """Call it on a worker."""
    return next(iter(parallel([1]).map(func)))


def beside(func: Callable[[Any], Any]) -> Any:
    """Call it in a process beside a worker."""
    return next(iter(parallel([1], timeout=60).map(func)))


WAYS = {"local": plain, "local-timeout": beside, "bare": plain, "bare-timeout": beside}
HERE = ("local", "local-timeout")


@contextmanager
def connected(way: str, folder: Path) -> Iterator[None]:
    """Evaluate on a local cluster, or on a bare one."""
    if way.startswith("local"):
        with connect(n_workers=2):
            yield
        return
    with bare_cluster(folder, 2, lacking=("parcoll",)) as cluster, connect(cluster.file):
        yield
