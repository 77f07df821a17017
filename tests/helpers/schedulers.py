"""A look into the scheduler of a connection."""

from __future__ import annotations

from typing import Any

from parcoll import Connection


def client_of(cluster: Connection) -> Any:
    return cluster.engine.client


def on_scheduler(cluster: Connection, func: Any) -> Any:
    return client_of(cluster).run_on_scheduler(func)


def finished(dask_scheduler: Any) -> int:
    return sum(task.state == "memory" for task in dask_scheduler.tasks.values())


def tasks(dask_scheduler: Any) -> list[str]:
    return sorted(map(str, dask_scheduler.tasks))
