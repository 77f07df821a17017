"""Clients: dask's current client, a new one for an address, and the one of our local cluster.

A client of ours watches whether its scheduler still answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import warnings
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import dask
import distributed
import distributed.comm
import distributed.comm.registry
import distributed.versions
from dask.utils import parse_timedelta

from parcoll.clock import steady_loop, steady_loop_of_dask, time
from parcoll.errors import ConnectError
from parcoll.local import limits
from parcoll.local.imports import steady_messages
from parcoll.worker.this_worker import has_worker

T = TypeVar("T")

JOIN_SECONDS = 8.0  # a scheduler may be starting; a user who mistyped its address waits no longer
# dask tries for so long to connect, also to a worker that has died with a result. Its default of 30 s is for
# networks; on loopback an answer takes milliseconds.
LOCAL_SECONDS = 5.0
CLOSE_SECONDS = 2.0  # that a client may take to close
PLAIN_SECONDS = 0.5  # that a plain socket tries to connect, to see why there was no answer
WITH_PORT = ("tcp", "tls", "ws", "wss")
CERTIFICATES = ("tls_ca_file", "tls_client_cert", "tls_client_key")  # of a `distributed.Security`
SCHEMES = (*WITH_PORT, "inproc", "ucx")
# A scheduler that is there and silent hangs, or is stopped. TCP does not notice, since the kernel of its host
# answers for it, and dask waits for ever. So a client of ours asks it for something small now and then.
ASK_SECONDS = 5.0  # between two questions: dask's clients send a sign of life as often
LOOK_SECONDS = 0.5
SEND_SECONDS = 0.001  # between two messages of a client to its scheduler


def is_client(value: Any) -> bool:
    """Tell whether this is a `distributed.Client`."""
    return isinstance(value, distributed.Client)


def in_task() -> bool:
    """Tell whether this thread runs a dask task.

    `get_worker` alone answers also in a thread that a task has started with a copy of its context, as
    `asyncio.to_thread` does; only the task's own thread has a key.
    """
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return getattr(distributed.worker.thread_state, "key", None) is not None


def is_of_worker(client: Any) -> bool:
    """Tell whether a worker in this process made the client for its tasks; of None, whether there is one.

    The name is private, and tests/dask_facts fails when dask does without it.
    """
    return has_worker() if client is None else client in distributed.Worker._initialized_clients


def current_client() -> Any:
    """Return the client of the task that runs this, or else dask's current one; None without either."""
    try:
        return distributed.get_client()
    except ValueError:
        return None


class Client(distributed.Client):
    """A client that does not look for a scheduler that it has lost: its engine does, or tells the user.

    dask's own client would look for it for some seconds, come back to a scheduler on which nothing of ours
    is, or write its failure on the user's terminal. It has no setting for that, and none for its clocks. The
    methods that are overridden here are private; `tests/dask_facts` fails when dask changes them.
    """

    _was_connected = False
    silent_seconds: float | None = None  # for which its scheduler was silent, if that is how it was lost

    async def _start(self, *arguments: Any, **settings: Any) -> Any:
        steady_loop_of_dask(self.loop)
        return await super()._start(*arguments, **settings)  # type: ignore[no-untyped-call]

    async def _ensure_connected(self, timeout: Any = None) -> None:
        if self._was_connected:
            await asyncio.Event().wait()  # until the client is closed
        await super()._ensure_connected(timeout=timeout)  # type: ignore[no-untyped-call]
        self._was_connected = True


def client_of(address: str, security: Any = None, seconds: float | None = None) -> Any:
    """Return a new client of the scheduler at `address`, or say in one sentence why there is none.

    It does not become dask's current client: the user's own stays what it was.
    """
    started = time.monotonic()
    seconds = JOIN_SECONDS if seconds is None else seconds
    address = _checked(address)
    if why := limits.patches():
        raise ConnectError(why)
    try:
        server = _in_own_thread(_greet(address, security or distributed.Security(), seconds))
        if server["type"] != "Scheduler":
            raise ConnectError(
                f"no dask scheduler is at {address!r}, but a dask {server['type'].lower()}: connect to its "
                f"scheduler instead{_address_of_its(server)}"
            )
        left = max(seconds - (time.monotonic() - started), 1.0)
        with warnings.catch_warnings():
            # Versions are compared in `cluster.preparing`, in a sentence instead of a table.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            client = _started(address, security=security, timeout=left)
        return client
    except ConnectError:
        raise
    except Exception as error:
        seconds = time.monotonic() - started
        raise ConnectError(
            f"no dask scheduler could be reached at {address!r} after {seconds:.0f} s: "
            f"{_reason(error, address, security)}"
        ) from error


def is_address(value: Any) -> bool:
    """Tell whether this may be a scheduler's address: its scheme is one that dask knows in this process."""
    if not isinstance(value, str):
        return False
    scheme, _ = distributed.comm.parse_address(value.strip())
    return _is_known(scheme.lower())


def _is_known(scheme: str) -> bool:
    """Tell whether dask knows the scheme; packages as dask-gateway add schemes of their own."""
    return scheme in SCHEMES or scheme in distributed.comm.registry.backends


def _checked(address: str) -> str:
    """Return the address without what may stand around it; refuse one at which no scheduler can be."""
    scheme, place = distributed.comm.parse_address(address.strip())
    scheme, place = scheme.lower(), place.rstrip("/")
    if not _is_known(scheme):
        raise ConnectError(
            f"no dask scheduler can be at {address!r}: {scheme!r} is none of {', '.join(SCHEMES)}"
        )
    if scheme in WITH_PORT:
        try:
            host, port = distributed.comm.parse_host_port(place)
            possible = bool(host) and " " not in host and 0 < port < 65536
        except ValueError:
            possible = False
        if not possible:
            raise ConnectError(
                f"no dask scheduler can be at {address!r}: it needs a host and a port, as in tcp://host:8786"
            )
    return f"{scheme}://{place}"


def _address_of_its(server: dict[str, Any]) -> str:
    return f", {server['scheduler']}" if isinstance(server.get("scheduler"), str) else ""


def _reason(error: BaseException, address: str, security: Any) -> str:
    """Say in words what dask's error means."""
    encrypted = address.startswith("tls://")
    if encrypted and isinstance(error, TypeError):
        if security is None:
            return "a tls:// address needs security=, or certificates in dask's configuration"
        return "security= needs all of tls_ca_file, tls_client_cert and tls_client_key"
    if encrypted and isinstance(error, FileNotFoundError):  # OpenSSL does not say which
        named = [str(getattr(security, name, "")) for name in CERTIFICATES]
        lost = [path for path in named if "\n" not in path and not os.path.exists(path)]
        return f"there is no such file as security= names, {', '.join(map(repr, lost))}"
    if isinstance(error, distributed.comm.core.FatalCommClosedError) and "certificate" in str(error):
        return "its TLS certificate is not the one that security= trusts, or it does not trust ours"
    no_tls = isinstance(error, distributed.comm.core.FatalCommClosedError) or "SSL" in str(error)
    if encrypted and no_tls:
        return "it does not speak TLS, so its address may begin with tcp:// instead"
    if isinstance(error, distributed.comm.CommClosedError):
        hint = "" if encrypted else "; if it speaks TLS, its address begins with tls://"
        return f"what listens there closed the connection{hint}"
    if isinstance(error, _NoGreeting):
        return "something listens there that does not answer as dask does"
    # dask says only that it has tried for so many seconds.
    scheme, place = distributed.comm.parse_address(address)
    try:
        if isinstance(error, OSError) and scheme in WITH_PORT:
            socket.create_connection(distributed.comm.parse_host_port(place), timeout=PLAIN_SECONDS).close()
    except socket.gaierror as plain:
        return f"its host is not known here ({plain.strerror})"
    except ConnectionRefusedError:
        return "nothing listens there"
    except OSError:
        pass
    return f"{type(error).__name__}: {error or 'no answer'}"


class _NoGreeting(TimeoutError):
    """A connection was made, and nothing came through it that dask would send."""


async def _greet(address: str, security: Any, seconds: float) -> dict[str, Any]:
    """Return what a server says of itself."""
    steady_loop(asyncio.get_running_loop())
    arguments = security.get_connection_args("client")
    # The timeout of connect() does not cover a server that accepts and then says nothing.
    connecting = distributed.comm.connect(address, timeout=seconds, **arguments)
    try:
        # A second more, so that the connection's own timeout comes first.
        comm = await asyncio.wait_for(connecting, seconds + 1)
    except TimeoutError as error:
        if isinstance(error.__cause__ or error, asyncio.CancelledError) or not str(error):
            raise _NoGreeting from error
        raise
    except (OSError, TypeError, RuntimeError):
        raise
    except Exception as error:
        # Where the scheduler's greeting, in plain bytes, comes before the encryption has begun.
        if isinstance(error, ValueError) and "SSL" in str(error):
            raise  # its bytes were read as a length (MemoryError), or as msgpack
        raise _NoGreeting from error
    try:
        await comm.write({"op": "identity", "reply": True})
        found: Any = await asyncio.wait_for(comm.read(), seconds)
    finally:
        await comm.close()
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise _NoGreeting
    return found


def _in_own_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, even if this thread has an event loop already."""
    told: Future[T] = Future()

    def run() -> None:
        try:
            told.set_result(asyncio.run(work))
        except BaseException as error:
            told.set_exception(error)

    # Not one of an executor, which takes no work when the script's last line has run.
    threading.Thread(target=run, name="parcoll-greet", daemon=True).start()
    return told.result()


def close_lost(client: Any) -> None:
    """Close a client whose scheduler may be gone, and write nothing about that on the user's terminal."""
    logger = logging.getLogger("distributed.client")

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        # The peer may be silent, or Ctrl-C may have stopped the client when half of it was made.
        with contextlib.suppress(OSError, TimeoutError, RuntimeError, AttributeError):
            client.close(timeout=CLOSE_SECONDS)
    finally:
        logger.removeFilter(nothing)
        # If a client has given up by itself, or did not start, dask's close() does nothing: the thread of its
        # event loop, and three descriptors, would stay. Nothing public ends it.
        if (runner := getattr(client, "_loop_runner", None)) is not None:
            runner.stop(timeout=1)


def client_of_host(address: str, security: Any) -> Any:
    """Return a client of the local cluster's scheduler."""
    # BatchedSend keeps the last 1000 messages that it sent, our partitions: 500 MB after a while.
    with dask.config.set({"distributed.admin.low-level-log-length": 5}):
        return _started(address, security=security, direct_to_workers=True, timeout=LOCAL_SECONDS)


class _Quiet(logging.Filter):
    """Keeps dask from logging, with a traceback, that the connection of a client of ours is closed.

    Its cluster is gone. An error of ours says so, or parcoll's own log if another one is started.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expected: set[str] = set()  # addresses

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the record of such a connection, also if it was not used yet when Ctrl-C came."""
        message = str(record.msg)
        if message.startswith("Closing dangling stream") and any(name in message for name in self.expected):
            return False
        comm = record.args[0] if isinstance(record.args, tuple) and record.args else None
        return getattr(comm, "peer_address", None) not in self.expected


_quiet = _Quiet()
for _name in ("distributed.batched", "distributed.comm.tcp"):
    logging.getLogger(_name).addFilter(_quiet)


def _not_at_the_end(record: logging.LogRecord) -> bool:
    """Drop what dask says of results that were still on their way when the script's last line had run.

    They are of a loop that was left. Their bytes cannot be unpacked then: Python's executors take no work.
    """
    refused = record.exc_info is not None and isinstance(record.exc_info[1], RuntimeError)
    return not refused or threading.main_thread().is_alive()


logging.getLogger("distributed.utils_comm").addFilter(_not_at_the_end)


def _started(address: str, **settings: Any) -> Any:
    """Return a client of ours. One that does not start, or that Ctrl-C stops, is closed here and now.

    If it were garbage-collected later, its end could deadlock with the start of another one: both take
    LoopRunner's lock.
    """
    client: Any = Client.__new__(Client)
    _quiet.expected.add(address)
    try:
        client.__init__(address, set_as_default=False, name="parcoll", **settings)
    except BaseException:
        close_lost(client)
        raise
    _quiet.expected.add(client.scheduler.address)  # the one given may have had a name, or no protocol
    steady_messages()
    client.loop.add_callback(_watch_silence, client)
    return _prompt(client)


def _prompt(client: Any) -> Any:
    """Have a client of ours send its messages sooner, which makes more messages of them, and unmeasured.

    dask waits 10 ms, and has no public setting for that. Tasks that follow a release of futures, or other
    tasks, reached the scheduler that much later, while its workers had nothing to do. And it estimates the
    size of each message, to pack one above 10 MiB in another thread: 0.1 ms, a sixth of what its loop does
    for a task. What is large in ours is packed before.
    """
    stream = client.scheduler_comm
    stream.interval = SEND_SECONDS
    if stream.comm is not None:
        stream.comm.allow_offload = False
    return client


def seconds_allowed() -> float:
    """Return how long a scheduler may be silent."""
    seconds: float = parse_timedelta(dask.config.get("distributed.comm.timeouts.tcp"))
    return seconds


async def _watch_silence(client: Any) -> None:
    """End the client's connection if its scheduler has been silent for too long. Runs in its event loop."""
    allowed, silent = seconds_allowed(), 0.0
    stream = client.scheduler_comm
    while silent <= allowed:
        await asyncio.sleep(LOOK_SECONDS if silent else ASK_SECONDS)
        if not _is_used(client, stream):  # checked first: a client that is closed has no scheduler to ask
            return
        # The answer of a scheduler without such workers is empty.
        asked = asyncio.ensure_future(client.scheduler.ncores(workers=[]))
        while not asked.done() and silent <= allowed:
            await asyncio.wait([asked], timeout=LOOK_SECONDS)
            if not _is_used(client, stream):
                asked.cancel()
                return
            # Not measured by the clock: this process may have been stopped, or a function that holds the GIL
            # may have kept its event loop from running, and the answer may be there.
            silent += 0.0 if asked.done() else LOOK_SECONDS
        if not asked.done():
            asked.cancel()
        elif asked.cancelled() or asked.exception() is not None:  # it could not be sent
            silent += LOOK_SECONDS
        else:
            silent = 0.0
    client.silent_seconds = silent
    stream.abort()
    client.rpc.remove(client.scheduler.address)  # others may wait for answers there


def _is_used(client: Any, stream: Any) -> bool:
    return client.status == "running" and not stream.closed()
