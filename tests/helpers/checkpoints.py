"""Runs with a checkpoint: what they called, what they saved, where they stopped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts import append

from parcoll import Connection, ParallelGen


def noting(log: Path) -> Callable[[int], int]:
    """Return a function that doubles, and writes a line for each call."""

    def double(x: int) -> int:
        append(log, x)
        return 2 * x

    return double


def pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.piece"))


def stopped_after(collection: ParallelGen[Any], results: int) -> list[Any]:
    """Take some results, and end the evaluation there."""
    stream = iter(collection)
    found = list(itertools.islice(stream, results))
    stream.close()  # type: ignore[attr-defined]
    return found


def at_rest(connection: Connection) -> bool:
    """Tell whether the workers are through with what they had begun for an iterator that was left."""
    client = connection.engine.client
    if client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        return False
    return not any(client.run(lambda dask_worker: len(dask_worker.state.all_running_tasks)).values())
