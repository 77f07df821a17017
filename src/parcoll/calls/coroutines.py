"""Coroutines: the event loop in which a process runs `async def` functions, in a thread of its own.

It is started by the first coroutine and lives as long as the process, or in the script's own process as long
as its inline connection: so what is bound to a loop, an HTTP session say, serves all evaluations. It is not
the loop of dask's worker: a coroutine that blocks holds up other coroutines, and no heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from parcoll import ending
from parcoll.clock import steady_loop

NAME = "parcoll-coroutines"  # of the thread
END_SECONDS = 0.2  # for what runs in the loop to be cancelled, where the process ends


# The time that the call which runs now has, and what is to run in the loop before it ends.
limit: contextvars.ContextVar[asyncio.Timeout | None] = contextvars.ContextVar("limit", default=None)
finishing: set[Callable[[], Coroutine[Any, Any, None]]] = set()


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Take the time of this block out of that of the call which runs now."""
    now, clock = limit.get(), asyncio.get_running_loop()
    when = None if now is None else now.when()
    if now is None or when is None:
        yield
        return
    left = when - clock.time()
    with contextlib.suppress(RuntimeError):  # its time is over already
        now.reschedule(None)
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):
            now.reschedule(clock.time() + left)


class _Loop:
    """An event loop and the thread that it runs in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        steady_loop(self.loop)
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def end(self, seconds: float) -> None:
        """Cancel what runs, and end the thread."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            asyncio.run_coroutine_threadsafe(self._wind_up(), self.loop)
            self._thread.join(seconds)

    async def _wind_up(self) -> None:
        try:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.gather(*(finish() for finish in list(finishing)), return_exceptions=True)
            await self.loop.shutdown_asyncgens()
        finally:
            self.loop.stop()


_lock = threading.Lock()
_here: _Loop | None = None


def loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop, which runs."""
    global _here
    with _lock:
        if _here is None:
            _here = _Loop()
        return _here.loop


def call_soon(
    call: Callable[..., object], *arguments: Any, context: contextvars.Context | None = None
) -> None:
    """Make a call in the loop. It finds no context variables but those given."""
    loop().call_soon_threadsafe(call, *arguments, context=context or contextvars.Context())


def result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine, and return what it returns, when it does."""
    future = asyncio.run_coroutine_threadsafe(coroutine, loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def end(seconds: float = END_SECONDS) -> None:
    """End the loop, if there is one. The next coroutine begins another."""
    global _here
    with _lock:
        ended, _here = _here, None
    if ended is not None:
        ended.end(seconds)


def _forget() -> None:
    """In a fork, which has the loop without its thread."""
    global _lock, _here
    _lock, _here = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
ending.forgets.insert(0, end)  # before what its coroutines use is gone
