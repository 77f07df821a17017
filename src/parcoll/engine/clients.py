"""dask's clients: the current one, a new one for an address, the one of our local cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import distributed
import distributed.comm

from parcoll.errors import ConnectError

JOIN_SECONDS = 10.0
# dask keeps trying to connect for that long, also to a worker that has died with a result: its 30 s
# are for networks. On loopback an answer takes milliseconds.
LOCAL_SECONDS = 5.0


def is_client(value: Any) -> bool:
    """Tell whether this is a `distributed.Client`."""
    return isinstance(value, distributed.Client)


def in_task() -> bool:
    """Tell whether this thread runs a dask task."""
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def current_client() -> Any:
    """Return the client of the task that runs this, or else dask's current one; None without."""
    try:
        return distributed.get_client()
    except ValueError:
        return None


def client_of(address: str, security: Any = None) -> Any:
    """Return a new client of the scheduler at `address`, or say in one sentence why there is none.

    It does not become dask's current client: the user's own stays what it was.
    """
    try:
        # A client that fails to start is collected some time later, and its end can deadlock with
        # the start of another (both take LoopRunner's lock): so a connection is tried first.
        _in_own_thread(_try_to_connect(address, security or distributed.Security()))
        return distributed.Client(
            address, security=security, set_as_default=False, timeout=JOIN_SECONDS, name="parcoll"
        )
    except (OSError, TimeoutError, TypeError, ValueError, RuntimeError) as error:
        raise ConnectError(
            f"no dask scheduler could be joined at {address!r} within {JOIN_SECONDS:.0f} s: "
            f"{type(error).__name__}: {error or 'no answer'}{_hint(address, security)}"
        ) from error


def _hint(address: str, security: Any) -> str:
    if address.startswith("tls://") and security is None:
        return " (a tls:// address needs security=)"
    return ""


async def _try_to_connect(address: str, security: Any) -> None:
    arguments = security.get_connection_args("client")
    # The timeout of connect() does not cover a server that accepts and then says nothing.
    connecting = distributed.comm.connect(address, timeout=JOIN_SECONDS, **arguments)
    comm = await asyncio.wait_for(connecting, JOIN_SECONDS)
    await comm.close()


def _in_own_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also where this thread has an event loop already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def client_of_host(address: str, security: Any) -> Any:
    """Return a client of the local cluster's scheduler."""
    # BatchedSend keeps the last 1000 messages that it sent, our partitions: 500 MB after a while.
    with dask.config.set({"distributed.admin.low-level-log-length": 5}):
        return distributed.Client(
            address,
            security=security,
            set_as_default=False,
            direct_to_workers=True,
            timeout=LOCAL_SECONDS,
            name="parcoll",
        )
