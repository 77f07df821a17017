"""Awaited: what an `async def` factory of `per_workers` makes: one object for each event loop of a process.

An HTTP session, say, belongs to the loop that it was made in. The coroutines of a worker process share a
loop, and so the object.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Generator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple

from parcoll.calls import coroutines
from parcoll.calls.objects import gives_nothing, needs_itself, tell_of_end, tell_of_making, tell_of_yield
from parcoll.chain.failures import makes_apart
from parcoll.clock import time

END_SECONDS = 2.0  # that a loop has to run what follows the `yield` of a factory

Loop = asyncio.AbstractEventLoop

_making: ContextVar[tuple[Any, ...]] = ContextVar("making", default=())  # whose factories this is called by


class _Failed(NamedTuple):
    """What a factory has raised for all that wait, with the frames that say so.

    A task's own exception has them for the first one that asks only (Python 3.13).
    """

    error: Exception
    frames: TracebackType | None


class Awaited:
    """The objects of one process, by the event loop that they were made in."""

    def __init__(self, factory: Callable[[], Any], label: str, note: Callable[[float], None]) -> None:
        """`note` is told how long it took to make one."""
        self._factory = factory
        self._label = label
        self._note = note
        self._made: dict[Loop, asyncio.Task[Any]] = {}
        self._generators: dict[Loop, Any] = {}  # asynchronous ones
        coroutines.finishing.add(self.finish)

    async def get(self) -> Any:
        """Return the object of the loop that runs this; the first call makes it, and others wait.

        That time is taken out of the call's own, where it has a timeout.
        """
        loop = asyncio.get_running_loop()
        task = self._made.get(loop)
        if task is None:
            task = self._made[loop] = loop.create_task(self._make(loop))
        elif not task.done() and self in _making.get():
            raise needs_itself(self._label)
        if not task.done():
            with coroutines.stopped_clock():
                # A call that is cancelled meanwhile leaves the others their object.
                await asyncio.wait([task])
        made = task.result()
        if isinstance(made, _Failed):
            raise made.error.with_traceback(made.frames)
        return made

    async def _make(self, loop: Loop) -> Any:
        """Return the object, or what its factory has raised."""
        _making.set((*_making.get(), self))  # in the context of this task, and of those that it starts
        try:
            return await self._call(loop)
        except BaseException as error:
            self._made.pop(loop, None)  # the next call tries again
            if not isinstance(error, Exception):
                raise
            tell_of_making(self._label, error)
            return _Failed(error, error.__traceback__)

    async def _call(self, loop: Loop) -> Any:
        started = time.perf_counter()
        promised: Any = self._factory()
        if not inspect.isasyncgen(promised):
            made = await promised
        else:
            try:
                made = await anext(promised)
            except StopAsyncIteration:
                raise gives_nothing(self._label) from None
            self._generators[loop] = promised
        self._note(time.perf_counter() - started)
        return made

    async def finish(self) -> None:
        """Run what follows the `yield`, for the object of the loop that runs this."""
        loop = asyncio.get_running_loop()
        self._made.pop(loop, None)
        generator = self._generators.pop(loop, None)
        if generator is None:
            return
        try:
            await anext(generator)
        except StopAsyncIteration:
            return
        except Exception as error:
            tell_of_end(self._label, error)
            return
        await generator.aclose()
        tell_of_yield(self._label)

    def end(self) -> None:
        """Do so in all loops that run. Waits for them, but for one that runs this."""
        coroutines.finishing.discard(self.finish)
        here: Loop | None = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        for loop in list(self._generators):
            if loop.is_closed() or not loop.is_running():
                continue
            ending = asyncio.run_coroutine_threadsafe(self.finish(), loop)
            if loop is not here:
                with contextlib.suppress(TimeoutError):
                    ending.result(END_SECONDS)


def factory_of(
    factory: Callable[[], Any], label: str, note: Callable[[float], None]
) -> Callable[[], Generator[Awaited, None, None]]:
    """Return a plain factory of what waits for the objects of an `async def` factory."""

    def make() -> Generator[Awaited, None, None]:
        made = Awaited(factory, label, note)
        yield made
        made.end()

    return make


makes_apart(Awaited._make.__code__)
