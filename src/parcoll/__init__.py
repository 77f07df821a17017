"""Parallel collections: every core, or a whole dask cluster, as `map`. Begin with `parallel`."""

from parcoll.collection import ParallelGen
from parcoll.connection import Connection, connect
from parcoll.errors import (
    CheckpointError,
    ClusterLostError,
    ClusterStartError,
    ConnectError,
    ElementError,
    ElementTimeoutError,
    ParcollError,
    SerializationError,
    SourceConsumedError,
    VersionWarning,
    WorkerLostError,
    WorkerSetupError,
)
from parcoll.sources import parallel, read_text
from parcoll.watch.progress import progress

__all__ = [
    "CheckpointError",
    "ClusterLostError",
    "ClusterStartError",
    "ConnectError",
    "Connection",
    "ElementError",
    "ElementTimeoutError",
    "ParallelGen",
    "ParcollError",
    "SerializationError",
    "SourceConsumedError",
    "VersionWarning",
    "WorkerLostError",
    "WorkerSetupError",
    "connect",
    "parallel",
    "progress",
    "read_text",
]
