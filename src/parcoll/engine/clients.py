"""dask's clients: the current one, a new one for an address, the one of our local cluster."""

from __future__ import annotations

from typing import Any

import dask
import distributed

from parcoll.errors import ConnectError

JOIN_SECONDS = 10.0


def is_client(value: Any) -> bool:
    """Tell whether this is a `distributed.Client`."""
    return isinstance(value, distributed.Client)


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
        return distributed.Client(
            address, security=security, set_as_default=False, timeout=JOIN_SECONDS, name="parcoll"
        )
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise ConnectError(
            f"no dask scheduler could be joined at {address!r} within {JOIN_SECONDS:.0f} s: "
            f"{type(error).__name__}: {error}"
        ) from error


def client_of_host(address: str, security: Any) -> Any:
    """Return a client of the local cluster's scheduler."""
    # BatchedSend keeps the last 1000 messages that it sent, our partitions: 500 MB after a while.
    with dask.config.set({"distributed.admin.low-level-log-length": 5}):
        return distributed.Client(
            address, security=security, set_as_default=False, direct_to_workers=True, name="parcoll"
        )
