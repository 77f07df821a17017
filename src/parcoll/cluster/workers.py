"""Workers: how many threads they have, whether any takes a task, and which run what nobody waits for.

A running task cannot be cancelled. A function that never returns would keep its worker, after Ctrl-C, from
all that is evaluated later, at a prompt or in a notebook. So such workers are ended when they are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import dask

from parcoll.clock import time
from parcoll.errors import logger

T = TypeVar("T")

QUIET_SECONDS = 4.0  # without an outcome, after which the scheduler is asked whether a worker takes the tasks
COUNTED_FOR = 1.0  # seconds, after which threads are counted again
START_SECONDS = 30.0  # QUIET_SECONDS of a local cluster, whose workers may be just starting
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


def _begun(client: Any, make: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Run a coroutine in the client's loop, where it is made: a closed loop leaves none behind."""
    answer: Future[T] = Future()

    async def run() -> None:
        try:
            answer.set_result(await make())
        except Exception as error:
            answer.set_exception(error)

    def begin() -> None:
        answer.task = asyncio.ensure_future(run())  # type: ignore[attr-defined] # asyncio itself holds none

    with contextlib.suppress(RuntimeError):  # it has been closed
        client.loop.asyncio_loop.call_soon_threadsafe(begin)
    return answer


class Placement:
    """Whether tasks wait for a worker that may run them, asked of the scheduler while nothing comes back.

    `dask.annotate(resources=...)` may ask for what no worker has, and a cluster may have no worker yet. A
    worker that has it may still come, so this is told and nothing fails.
    """

    def __init__(self, client: Any, name: str, starts_workers: bool) -> None:
        self.waiting_for: str | None = None  # for example "a worker with the resources GPU=1"
        self.program = ""  # the key of the program, where it is a task of its own
        self._client = client
        self._name = name
        self._wanted = _wanted(dask.get_annotations())
        self._patience = START_SECONDS if starts_workers else QUIET_SECONDS
        self._quiet_since = time.monotonic()
        self._asked: Future[int] | None = None

    def came(self) -> None:
        """Note that an outcome has come: there is a worker."""
        self._quiet_since, self._asked, self.waiting_for = time.monotonic(), None, None

    def look(self, keys: Callable[[], list[str]]) -> None:
        """Ask, after some seconds of silence, what became of these tasks; a later look sees the answer."""
        if self._asked is not None and self._asked.done():
            self._take(self._asked)
            self._quiet_since, self._asked = time.monotonic(), None
        if self._asked is None and time.monotonic() - self._quiet_since > self._patience:
            self._asked = _begun(self._client, functools.partial(self._unplaced, keys()))

    async def _unplaced(self, keys: list[str]) -> int:
        scheduler = self._client.scheduler
        # Without threads most tasks are "queued", as those are that wait for their turn.
        if not await scheduler.ncores():
            return len(keys)
        states = await scheduler.get_task_status(keys=[*keys, self.program])
        if states.pop(self.program, None) == "no-worker":  # what all tasks wait for
            return len(keys)
        return sum(state == "no-worker" for state in states.values())

    def _take(self, asked: Future[int]) -> None:
        try:
            count = asked.result()
        except Exception:  # a scheduler that is gone is found out elsewhere
            return
        before, self.waiting_for = self.waiting_for, self._wanted if count else None
        if count and before is None:
            start = ": start one that has them (`dask worker --resources`)"
            advice = start if "resources" in self._wanted else ""
            wait = f"{count} tasks wait" if count > 1 else "a task waits"
            told = f"{self._name}: {wait} for {self._wanted}{advice}"
            logger.warning("%s", told)
            # A script that does not log would stand still without a word. It is no error: one may still come.
            with contextlib.suppress(RuntimeWarning):
                warnings.warn(told, RuntimeWarning, stacklevel=2)


class ThreadCount:
    """How many threads the workers of a cluster have. Any thread may ask."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._threads = 0
        self._since = 0.0
        self._asked: Future[dict[str, int]] | None = None

    def threads(self) -> int:
        """Return what is known; wait for the scheduler's answer only while it knows of no worker."""
        asked = self._asked
        if asked is not None and asked.done():
            with contextlib.suppress(Exception):  # a scheduler that is gone is found out elsewhere
                self._threads = sum(asked.result().values())
            self._asked, self._since = None, time.monotonic()
        if not self._threads:
            self._threads = sum(self._client.nthreads().values())
            self._since = time.monotonic()
        elif self._asked is None and time.monotonic() - self._since >= COUNTED_FOR:
            self._asked = _begun(self._client, self._ask)
        return self._threads

    async def _ask(self) -> dict[str, int]:
        found: dict[str, int] = await self._client.scheduler.ncores()
        return found


def _wanted(annotations: dict[str, Any]) -> str:
    """Say which worker tasks with these annotations wait for, where there is none."""
    resources, workers = annotations.get("resources"), annotations.get("workers")
    if isinstance(resources, dict) and resources:
        found = ", ".join(f"{name}={amount}" for name, amount in resources.items())
        return f"a worker with the resources {found}"
    if workers:
        named = [workers] if isinstance(workers, str) else list(workers)
        return f"one of the workers {', '.join(map(str, named))}"
    return "a worker: the cluster has none"
