"""Looping: results for an event loop of the user's own, which goes on while a thread waits for them."""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

from parcoll.world import handlers

ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))  # nobody can tell how long they live
BETWEEN_LOOKS = 256  # results that are given to an event loop between two looks at the clock
LOOP_SECONDS = 0.005  # after which its other tasks get their turn
SAMPLE = 64  # results, of which the type of one is looked at


def let_go(results: list[Any]) -> Iterator[Any]:
    """Give the results one by one, and hold none that was taken."""
    if ATOMS.issuperset(map(type, results[::SAMPLE])):
        return iter(results)  # four times as fast
    results.reverse()
    return map(results.pop, itertools.repeat(-1, len(results)))


async def drawn(parts: Generator[list[Any], None, None]) -> AsyncGenerator[Any, None]:
    """Give the results one by one, to an event loop that goes on meanwhile: a thread draws the parts."""
    import asyncio  # 0.04 s, here for those who have it

    drawing, paused = _Drawing(parts), time.monotonic()
    loop = asyncio.get_running_loop()
    try:
        while (results := await loop.run_in_executor(drawing.pool, drawing.draw)) is not None:
            given = let_go(results)
            for _ in range(0, len(results), BETWEEN_LOOKS):
                for result in itertools.islice(given, BETWEEN_LOOKS):
                    yield result
                if time.monotonic() - paused > LOOP_SECONDS:
                    await asyncio.sleep(0)
                    paused = time.monotonic()
    finally:
        drawing.leave()
        await asyncio.shield(loop.run_in_executor(drawing.pool, drawing.close))


class _Drawing:
    """One evaluation in a thread of its own."""

    def __init__(self, parts: Generator[list[Any], None, None]) -> None:
        from concurrent.futures import ThreadPoolExecutor  # 5 ms

        self.pool = ThreadPoolExecutor(1, "parcoll-async")
        self._parts = parts
        self._context = contextvars.copy_context()  # dask's client may be in there
        self._thread = 0

    def draw(self) -> list[Any] | None:
        """Return the next results; None at the end."""
        self._thread = threading.get_ident()
        return self._context.run(next, self._parts, None)

    def leave(self) -> None:
        """Have the thread draw no more; from any thread."""
        handlers.left.add(self._thread)

    def close(self) -> None:
        """End the evaluation, and the thread."""
        handlers.left.discard(self._thread)
        self.pool.shutdown(wait=False)  # when this call is done
        self._context.run(self._parts.close)
