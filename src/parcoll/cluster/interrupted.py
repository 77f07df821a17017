"""Interrupted: workers that are still busy, after Ctrl-C, with elements that nobody waits for.

A running task cannot be cancelled. A function that never returns would keep its worker from all that is
evaluated later, at a prompt or in a notebook. So such workers are ended when they are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from parcoll.log import logger

GRACE_SECONDS = 1.0  # for a worker to end its task, or to answer, which it cannot while it holds the GIL
LOOK_SECONDS = 0.05


def end_abandoned(client: Any, wanted: Callable[[], Collection[str]]) -> None:
    """End the workers of a local cluster that still run, after a second, only tasks that are not `wanted`.

    What they have kept is made again on others. A worker that does not answer is killed only if nothing is
    wanted. Does nothing if the cluster is lost: whoever needs it next finds out.
    """
    with contextlib.suppress(OSError, RuntimeError, asyncio.CancelledError):
        _end_abandoned(client, wanted)


def _end_abandoned(client: Any, wanted: Callable[[], Collection[str]]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        pids = client.run_on_scheduler(_pids)
        running = client.sync(_running, client, list(pids))
        busy = [address for address, keys in running.items() if _is_abandoned(keys, set(wanted()))]
        if not busy:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_SECONDS)
    logger.warning("%d workers are still busy with an interrupted evaluation and are replaced", len(busy))
    for number in (signal.SIGTERM, signal.SIGKILL):  # what their functions have written is to be whole
        for address in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[address], number)
        deadline = time.monotonic() + GRACE_SECONDS
        while busy and time.monotonic() < deadline:  # until the scheduler has noticed
            time.sleep(LOOK_SECONDS)
            busy = [address for address in busy if address in client.run_on_scheduler(_pids)]


def _is_abandoned(keys: list[str] | None, wanted: set[str]) -> bool:
    return not wanted if keys is None else bool(keys) and not wanted.intersection(keys)


async def _running(client: Any, addresses: list[str]) -> dict[str, list[str] | None]:
    """Return the keys of the tasks that each worker runs; None for a worker that does not answer."""

    async def one(address: str) -> list[str] | None:
        asked = client.run(_keys, workers=[address], asynchronous=True)
        try:
            answers: dict[str, list[str]] = await asyncio.wait_for(asked, GRACE_SECONDS)
        except TimeoutError:
            return None
        except (OSError, KeyError):
            return []  # it has just left
        return answers.get(address, [])

    found = await asyncio.gather(*map(one, addresses))
    return dict(zip(addresses, found, strict=True))


def _keys(dask_worker: Any) -> list[str]:
    return list(dask_worker.active_threads.values())


def _pids(dask_scheduler: Any) -> dict[str, int]:
    return {address: state.pid for address, state in dask_scheduler.workers.items()}


def was_interrupted() -> bool:
    """Tell whether Ctrl-C is the reason why the caller's caller cleans up."""
    error = sys.exception()
    for _ in range(10):
        if error is None or isinstance(error, KeyboardInterrupt):
            break
        error = error.__context__
    return isinstance(error, KeyboardInterrupt)
