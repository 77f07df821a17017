"""A scheduler that is there and says nothing: its process hangs or is stopped.

TCP does not tell, since the kernel of its host answers for it, and dask waits for ever. So a client of ours
asks it for something small now and then, and ends the connection after a silence as long as dask allows a
peer's host (`distributed.comm.timeouts.tcp`, 30 s): what follows is what follows any lost connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

import dask
from dask.utils import parse_timedelta

ASK_SECONDS = 5.0  # between two questions: so often a client of dask's says that it lives
LOOK_SECONDS = 0.5


def seconds_allowed() -> float:
    """Return how long a scheduler may say nothing."""
    seconds: float = parse_timedelta(dask.config.get("distributed.comm.timeouts.tcp"))
    return seconds


async def watch(client: Any) -> None:
    """End the client's connection when its scheduler has been silent for too long; runs in its event loop."""
    allowed, silent = seconds_allowed(), 0.0
    stream = client.scheduler_comm
    while silent <= allowed:
        await asyncio.sleep(LOOK_SECONDS if silent else ASK_SECONDS)
        if not _is_used(client, stream):  # before it has no scheduler any more
            return
        # The answer of a scheduler without such workers is empty.
        asked = asyncio.ensure_future(client.scheduler.ncores(workers=[]))
        while not asked.done() and silent <= allowed:
            await asyncio.wait([asked], timeout=LOOK_SECONDS)
            if not _is_used(client, stream):
                asked.cancel()
                return
            # Not the time that has passed: this process may have been stopped, or its event loop kept from
            # running by a function that holds the GIL, and the answer be there.
            silent += 0.0 if asked.done() else LOOK_SECONDS
        if not asked.done():
            asked.cancel()
        elif asked.cancelled() or asked.exception() is not None:  # it could not be sent
            silent += LOOK_SECONDS
        else:
            silent = 0.0
    client.silent_seconds = silent
    stream.abort()
    client.rpc.remove(client.scheduler.address)  # where others wait for answers


def _is_used(client: Any, stream: Any) -> bool:
    return client.status == "running" and not stream.closed()
