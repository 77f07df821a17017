"""Looping: results one by one, for a `for` loop, or for an event loop that goes on while a thread waits."""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from typing import Any

from parcoll.world import handlers

ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))  # nobody can tell how long they live
LOOP_SECONDS = 0.005  # after which the other tasks of an event loop get their turn
# Results that it gets between two looks at the clock: twice as many as before if they took little, or half.
MOST_BETWEEN = 512
LOOK_SECONDS = 0.001
SAMPLE = 64  # results, of which the type of one is looked at
DRAWN_WITHIN = (
    "the next result was asked for while it was being made: by a signal's handler, say, that draws from the "
    "iterator which it interrupted"
)


def let_go(results: list[Any]) -> Iterator[Any]:
    """Give the results one by one, and hold none that was taken."""
    if ATOMS.issuperset(map(type, results[::SAMPLE])):
        return iter(results)  # four times as fast
    results.reverse()
    return map(results.pop, itertools.repeat(-1, len(results)))


class ResultIterator(itertools.chain[Any]):
    """The results one by one, as from a generator, but four times as fast (10 ns each)."""

    _parts: Generator[list[Any], None, None]

    @classmethod
    def of(cls, parts: Generator[list[Any], None, None]) -> ResultIterator:
        """Chain the parts. Each is asked for when those before it have been taken."""
        results: ResultIterator = cls.from_iterable(_OneAtATime(parts))  # type: ignore[assignment]
        results._parts = parts
        return results

    def close(self) -> None:
        """End the evaluation: no more results come."""
        handlers.reached(self._parts.close)
        deque(self, maxlen=0)  # what is left of the part that was begun


class _OneAtATime:
    """An iterator that several threads may share. What it gives lets go of each result that is taken.

    A generator that one thread is in raises an error in another, and a chain whose source raises has ended
    for good.
    """

    def __init__(self, parts: Generator[list[Any], None, None]) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._draws = self._drawn_within = False

    def __iter__(self) -> _OneAtATime:
        return self

    def __next__(self) -> Iterable[Any]:
        with self._lock:
            if self._draws:
                self._drawn_within = True
                raise ValueError(DRAWN_WITHIN)
            try:
                self._draws = True
                results = handlers.reached(next, self._parts)
                if self._drawn_within:  # the chain around this has ended with the error there
                    raise ValueError(DRAWN_WITHIN)
            except BaseException:  # where a handler's came late, the generator is not at its end
                self._parts.close()
                raise
            finally:
                self._draws = False
        return let_go(results)


async def drawn(parts: Generator[list[Any], None, None]) -> AsyncGenerator[Any, None]:
    """Give the results one by one, to an event loop that goes on meanwhile: a thread draws the parts."""
    import asyncio  # 0.04 s, here for those who have it

    drawing, between = _Drawing(parts), 1
    loop = asyncio.get_running_loop()
    paused = looked = time.monotonic()
    try:
        while (results := await loop.run_in_executor(drawing.pool, drawing.draw)) is not None:
            given, left = let_go(results), len(results)
            while left > 0:
                for result in itertools.islice(given, between):
                    yield result
                left -= between
                now = time.monotonic()
                between = min(2 * between, MOST_BETWEEN) if now - looked < LOOK_SECONDS else -(-between // 2)
                if now - paused > LOOP_SECONDS:
                    await asyncio.sleep(0)
                    paused = now = time.monotonic()
                looked = now
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
