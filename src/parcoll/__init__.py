"""Parallel collections: every core, or a whole dask cluster, as `map`. Begin with `parallel`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parcoll.calls.broadcasts import Broadcast, broadcast
    from parcoll.calls.per_workers import PerWorker, per_worker
    from parcoll.checkpoint.info import CheckpointFailure, CheckpointInfo, checkpoint_info
    from parcoll.connecting.connection import Connection, connect
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
    from parcoll.front.collection import ParallelGen
    from parcoll.front.reading import (
        read_archive,
        read_csv,
        read_files,
        read_jsonl,
        read_parquet,
        read_text,
    )
    from parcoll.front.sources import parallel
    from parcoll.output.rolling import Written
    from parcoll.watch.progress import progress

__all__ = [
    "Broadcast",
    "CheckpointError",
    "CheckpointFailure",
    "CheckpointInfo",
    "ClusterLostError",
    "ClusterStartError",
    "ConnectError",
    "Connection",
    "ElementError",
    "ElementTimeoutError",
    "ParallelGen",
    "ParcollError",
    "PerWorker",
    "SerializationError",
    "SourceConsumedError",
    "VersionWarning",
    "WorkerLostError",
    "WorkerSetupError",
    "Written",
    "broadcast",
    "checkpoint_info",
    "connect",
    "parallel",
    "per_worker",
    "progress",
    "read_archive",
    "read_csv",
    "read_files",
    "read_jsonl",
    "read_parquet",
    "read_text",
]

# A public name's module is imported when the name is first asked for. A package that imports its own modules
# deadlocks where two threads begin with two of them (each holds its module's lock and waits for the other's
# or the package's: a dask worker unpickles two first tasks at once). And processes that run functions need
# none of the modules that only the script's process does.
_HOMES = {
    "Broadcast": "parcoll.calls.broadcasts",
    "CheckpointFailure": "parcoll.checkpoint.info",
    "CheckpointInfo": "parcoll.checkpoint.info",
    "ParallelGen": "parcoll.front.collection",
    "PerWorker": "parcoll.calls.per_workers",
    "Written": "parcoll.output.rolling",
    "Connection": "parcoll.connecting.connection",
    "connect": "parcoll.connecting.connection",
    "parallel": "parcoll.front.sources",
    "checkpoint_info": "parcoll.checkpoint.info",
    "read_archive": "parcoll.front.reading",
    "read_csv": "parcoll.front.reading",
    "read_files": "parcoll.front.reading",
    "read_jsonl": "parcoll.front.reading",
    "read_parquet": "parcoll.front.reading",
    "read_text": "parcoll.front.reading",
    "broadcast": "parcoll.calls.broadcasts",
    "per_worker": "parcoll.calls.per_workers",
    "progress": "parcoll.watch.progress",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES.get(name, "parcoll.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
