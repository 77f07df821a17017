"""Every core, or a whole dask cluster, as `map`: see `parallel`."""

from parcoll.collection import ParallelGen, parallel
from parcoll.connection import Connection, connect
from parcoll.errors import (
    ClusterLostError,
    ClusterStartError,
    ConnectError,
    ParcollError,
    SerializationError,
    SourceConsumedError,
    WorkerLostError,
)

__all__ = [
    "ClusterLostError",
    "ClusterStartError",
    "ConnectError",
    "Connection",
    "ParallelGen",
    "ParcollError",
    "SerializationError",
    "SourceConsumedError",
    "WorkerLostError",
    "connect",
    "parallel",
]
