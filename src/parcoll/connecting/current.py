"""Current engine: what an evaluation runs on if several could do it.

The first of these that is there: the client given with `client=`, the innermost `connect`, dask's current
client, the scheduler in dask's configuration, a local cluster.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from types import FrameType
from typing import Any

from parcoll.cluster.renewing import RenewingEngine, at_work, is_at_work
from parcoll.cluster.ways import AtAddress, StartedHere
from parcoll.evaluation.engine import Engine
from parcoll.evaluation.inline import InlineEngine
from parcoll.local.imports import import_whole
from parcoll.local.shutdown import daemons_may_end, refuse_at_end
from parcoll.worker import program
from parcoll.worker.program import is_loading
from parcoll.worker.this_worker import has_worker
from parcoll.world.handlers import UNBROKEN

# By their names: the loop of a client, and where it packs and unpacks large messages.
LOG_S_FILE = logging.Logger.callHandlers.__code__.co_filename
THREADS_OF_DASK = ("IO loop", "Dask-Offload")
THREADS_WAITED_FOR = (*THREADS_OF_DASK, UNBROKEN)
SYNCHRONOUS = ("synchronous", "sync", "single-threaded")

_lock = threading.RLock()
default: RenewingEngine | None = None  # started by the first evaluation that finds nothing else
# The engines for addresses from dask's configuration, each with the process that made it.
connected_engines: dict[str, tuple[int, RenewingEngine]] = {}
_connected: list[tuple[int, Any]] = []  # the connections in force, innermost last
_is_fork_of_worker = False
_all_closed = False  # the exit handler has run: what evaluates after it starts no cluster that nobody ends
_abandoned: list[Any] = []  # of the parent, in a forked child: neither used nor garbage-collected


def engine_for(client: Any) -> Engine:
    """Return the engine for an evaluation; `client` is what its collection was given, or None."""
    refuse_at_end()
    if _must_not_wait():
        return InlineEngine()
    innermost = current_connection() if client is None else None
    if innermost is not None:
        engine: Engine = innermost.engine
        return engine
    found = client if client is not None else _dask_client()
    if _in_thread_of_task(found):
        return InlineEngine()
    if found is not None:
        return _engine_of_client(found)
    return _from_config() or (InlineEngine() if _all_closed else local_engine())


def describe_engine(client: Any) -> str:
    """Say which engine `engine_for` would return. Starts nothing and connects to nothing."""
    inline = "this process: waiting for a worker would never end here"
    innermost = current_connection() if client is None else None
    current = _dask_client() if client is None else client
    if _must_not_wait() or (innermost is None and _in_thread_of_task(current)):
        return inline
    if client is not None:
        return f"the client given, {_address(client)}"
    if innermost is not None:
        return f"connect(), {innermost.address}"
    if current is not None:
        return f"dask's current client, {_address(current)}"
    import dask

    if dask.config.get("scheduler", None) in SYNCHRONOUS:
        return "this process, as dask's configuration says"
    address = os.environ.get("DASK_SCHEDULER_ADDRESS") or dask.config.get("scheduler-address", None)
    if address:
        return f"the scheduler in dask's configuration, {address}"
    running = default is not None and default.usable and default.way.alive
    return f"a local cluster, {'running' if running else 'started by the first evaluation'}"


def _address(client: Any) -> str:
    return getattr(getattr(client, "scheduler", None), "address", "which is not connected")


def _engine_of_client(client: Any) -> Engine:
    from parcoll.cluster.engine import engine_of_client  # lazy: distributed

    return engine_of_client(client)


def current_connection() -> Any:
    """Return the innermost connection that this process has opened; None if there is none."""
    with _lock:
        for pid, connection in reversed(_connected):
            if pid == os.getpid():
                return connection
    return None


def enter(connection: Any) -> None:
    """Make a connection the innermost one."""
    with _lock:
        _connected.append((os.getpid(), connection))


def leave(engine: Engine) -> None:
    """Take the connection of an engine out, wherever it stands."""
    with _lock:
        _connected[:] = [entry for entry in _connected if entry[1].engine is not engine]


def _dask_client() -> Any:
    if "distributed" not in sys.modules:
        return None  # no client can exist
    from parcoll.cluster.clients import current_client  # lazy: distributed

    return current_client()


def _must_not_wait() -> bool:
    """Tell whether to wait for another task would never end, here in a worker.

    This is so while a task imports a module whose top level evaluates, since other tasks wait for that
    import. It is also so in a thread that a user's function started: that thread cannot give up its place in
    the worker's thread pool to the tasks that it would wait for. And a process that it has forked has
    nothing of its worker but a copy.

    In the script's process it is so in a thread that starts or ends a cluster, and in those threads of dask's
    that bring the results: there a signal's handler or a callback of the garbage collector evaluates. It is
    also so within a handler of the log, which has a lock that any of these threads may want.
    """
    if is_loading() or program.isolated or _is_fork_of_worker or is_at_work() or _in_thread_waited_for():
        return True
    if _is_within(LOG_S_FILE, "callHandlers"):
        return True
    if "distributed" not in sys.modules:
        return False
    from parcoll.cluster.clients import in_task  # lazy: distributed

    if in_task():
        return _is_within("<frozen importlib._bootstrap>")
    return "parcoll.local.host_main" in sys.modules


def _in_thread_waited_for() -> bool:
    return threading.current_thread().name.startswith(THREADS_WAITED_FOR)


def _in_thread_of_task(client: Any) -> bool:
    """Tell whether a function that runs on a worker must have started this thread: it has no other client.

    Any worker, that is: those of the local cluster are known already. The thread cannot leave its task's
    place to others either. A cluster of its own would be started within the worker.
    """
    if "distributed" not in sys.modules:
        return False
    from parcoll.cluster.clients import in_task, is_of_worker  # lazy: distributed

    return not in_task() and is_of_worker(client)


def _is_within(file: str, function: str | None = None) -> bool:
    """Tell whether this was called by code of the file, if need be by one function there."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == file and function in (None, frame.f_code.co_name):
            return True
        frame = frame.f_back
    return False


def _from_config() -> Engine | None:
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    import_whole("dask")  # 0.05 s, part of what the client needs anyway
    import dask

    if dask.config.get("scheduler", None) in SYNCHRONOUS:
        return InlineEngine()
    address = address or dask.config.get("scheduler-address", None)
    return _engine_at(address) if address else None


def _engine_at(address: str) -> Engine:
    lost: RenewingEngine | None = None
    with _lock:
        pid, engine = connected_engines.get(address, (0, None))
        if engine is not None and pid != os.getpid():
            _abandoned.append(engine)
            engine = None
        if engine is not None and engine.current is not None and not engine.current.link.connected:
            engine, lost = None, engine
        if engine is None:
            engine = RenewingEngine(AtAddress(lambda: address))
            connected_engines[address] = (os.getpid(), engine)
    if lost is not None:
        lost.close()
    try:
        engine.connected()  # without the lock, which others may want meanwhile
    except BaseException:
        with _lock:
            if connected_engines.get(address, (0, None))[1] is engine and engine.current is None:
                del connected_engines[address]
        raise
    return engine


def local_engine() -> Engine:
    global default
    with _lock:
        if default is None or not default.usable:
            if default is not None:
                _abandoned.append(default)
            way = StartedHere()
            default = RenewingEngine(way)
            at_work(way.start)
        return default


def _begin_as_fork() -> None:
    global _lock, _is_fork_of_worker
    _lock = threading.RLock()  # another thread may have held it
    _is_fork_of_worker = _is_fork_of_worker or has_worker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_as_fork)


@atexit.register
def _close_all() -> None:
    global _all_closed
    _all_closed = True
    with daemons_may_end():
        for pid, connection in list(_connected):
            if pid == os.getpid():
                connection.close()
        for pid, engine in list(connected_engines.values()):
            if pid == os.getpid():
                engine.close()
        if default is not None and default.usable:
            default.close()
