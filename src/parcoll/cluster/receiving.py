"""Waits for the tasks of one evaluation on a cluster whose workers send no outcomes, and asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from typing import Any, Protocol

import distributed


class Receiver(Protocol):
    """What a collector tells."""

    @property
    def closed(self) -> bool:
        """Tell whether nobody waits for outcomes any more."""

    async def deliver(self, futures: list[Any]) -> None:
        """Bring the outcomes of these futures, which are done."""

    def fail(self, error: BaseException) -> None:
        """Take an error of the collector itself."""

    def lost(self) -> BaseException:
        """Return the error for a scheduler that is gone."""


class Collector:
    """A coroutine in the client's loop; results that are ready at the same time come in one request."""

    def __init__(self, loop: Any, receiver: Receiver) -> None:
        self._loop = loop
        self._receiver = receiver
        self._gathering = False
        self._wake = asyncio.Event()
        self._completed = distributed.as_completed(loop=loop)
        self._task: asyncio.Task[None] | None = None
        _collectors.add(self)
        loop.add_callback(self._start)

    def add(self, futures: list[Any]) -> None:
        """Wait for these too."""
        for future in futures:
            self._completed.add(future)
        self._loop.add_callback(self._wake.set)

    def stop(self) -> None:
        """End soon; from any thread."""
        with contextlib.suppress(RuntimeError):  # the client's loop has been closed
            self._loop.add_callback(self._stop)

    def _start(self) -> None:
        if not self._receiver.closed:
            self._task = asyncio.ensure_future(self._collect())

    def _stop(self) -> None:
        # A gather is never cancelled: the client shares it with those of other evaluations, which
        # would be cancelled too. It ends by itself, and the collector after it.
        if self._task is not None and not self._gathering:
            self._task.cancel()

    async def _collect(self) -> None:
        try:
            while not self._receiver.closed:
                self._wake.clear()
                try:
                    batch = [await self._completed.__anext__()]
                except StopAsyncIteration:  # nothing is under way: wait for the next submission
                    if self._completed.is_empty():
                        await self._wake.wait()
                    continue
                batch += self._completed.next_batch(block=False)
                self._gathering = True
                await self._receiver.deliver(batch)
                self._gathering = False
                del batch  # releases its futures before the next wait
        except Exception as error:
            self._receiver.fail(error)
        except asyncio.CancelledError:
            if not self._receiver.closed:  # the client's loop ends: nobody else would tell the consumer
                self._receiver.fail(self._receiver.lost())
            raise


_collectors: weakref.WeakSet[Collector] = weakref.WeakSet()


def _silence() -> None:
    """In a fork: a parent's collectors will never run here, and are no news at the child's end."""
    for collector in list(_collectors):
        if collector._task is not None:
            # asyncio's own switch for tasks that are known to end unfinished (its gather uses it).
            collector._task._log_destroy_pending = False  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_silence)
