"""Parallel collections: every core, or a whole dask cluster, as `map`. Begin with `parallel`.

>>> from parcoll import parallel
>>> list(parallel([1, 2, 3]).map(lambda x: x * x))
[1, 4, 9]

What makes a collection:
    parallel(source)        of any iterable, mapping, function that returns an iterator, or dask bag
    read_text(paths)        of the lines of files; read_jsonl, read_csv, read_parquet: of their rows
    read_files(paths)       of (path, bytes) of whole files; read_archive: of members of zip and tar files

What a collection has; `help(parcoll.ParallelGen)` explains each:
    a new collection        map filter flatmap starmap map_batches batched enumerate zip chain pairwise scan
                            skip take_while drop_while sample distinct group_by fold_by sorted join unordered
    an evaluation           iterating, take first count sum min max nlargest nsmallest count_by reduce fold
                            foreach persist write_text write_jsonl write_csv write_parquet to_arrow to_pandas
    a look at it            stats errors explain bag

What is beside it:
    connect(...)            where it runs: a local cluster, a dask scheduler, "inline"
    dashboard_link()        the web page of the cluster that is in force
    progress()              bars for the whole program, or for a block
    per_worker(factory)     a model or a connection that each worker makes once
    broadcast(value)        a large object that is pickled once
    checkpoint_info(folder) what the folder of parallel(..., checkpoint=folder) has

What these return: ParallelGen, Connection, PerWorker, Broadcast, CheckpointInfo with CheckpointFailures, and
Written of what writes files.

Errors, all of them ParcollError; what your functions raise keeps its own type:
    ElementError            what `on_error` functions get, and `errors` has
    ElementTimeoutError, WorkerLostError, WorkerSetupError, SerializationError, SourceConsumedError,
    CheckpointError, ConnectError, ClusterStartError, ClusterLostError; VersionWarning
"""

import importlib as _importlib
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

__version__ = "0.2.0"

if _TYPE_CHECKING:
    from parcoll.calls.broadcasts import Broadcast, broadcast
    from parcoll.calls.per_workers import PerWorker, per_worker
    from parcoll.checkpoint.info import CheckpointFailure, CheckpointInfo, checkpoint_info
    from parcoll.connecting.connection import Connection, connect, dashboard_link
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
    "dashboard_link",
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
    "dashboard_link": "parcoll.connecting.connection",
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


def __getattr__(name: str) -> _Any:
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        if not name.startswith("_"):
            from parcoll.mistakes import not_a_collection  # lazy: only where something is wrong

            message = not_a_collection(f"module {__name__!r}", name)
        raise AttributeError(message, name=name, obj=_sys.modules[__name__])
    found = getattr(_importlib.import_module(_HOMES.get(name, "parcoll.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    # help() shows all that is here, with all that classes inherit: 2,700 lines. It gets what to begin with.
    asking: list[_Any] = []
    frame = _sys._getframe()
    while (before := frame.f_back) is not None and len(asking) < 3:  # inspect.getmembers stands between
        frame = before
        asking.append(frame.f_globals.get("__name__"))
    names = ["connect", "parallel"] if "pydoc" in asking else __all__
    return sorted([*(name for name in globals() if name.startswith("__")), *names])
