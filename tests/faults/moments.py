"""When a fault strikes: each moment is an evaluation that calls `here` once it has come so far.

An evaluation returns what it made and what the builtins make of the same; or it raises.
"""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import wait_for_file

from parcoll import ParallelGen, parallel
from parcoll.watch.stats import Stats

ELEMENTS = 120
HALF = ELEMENTS // 2
ELEMENT_SECONDS = 0.002
REACHED_SECONDS = 30  # that an element waits to be struck: a test that forgets to strike fails, and ends
LARGE = 40_000  # bytes: partitions of such elements go through shared memory


@dataclass(frozen=True)
class Reached:
    """What an element does once it is the moment: it dies, or says in a file where it is and waits.

    It does so `times` times, then it runs like any other.
    """

    folder: Path
    times: int
    die: Callable[[], None] | None = None  # from within; None: waits to be struck

    def __call__(self) -> None:
        for number in range(self.times):
            place = self.folder / f"reached-{number}"
            try:
                with open(place, "x") as file:
                    file.write(f"{os.getpid()}\n")
            except FileExistsError:
                continue
            if self.die is not None:
                self.die()
            deadline = time.monotonic() + REACHED_SECONDS
            while not (self.folder / f"struck-{number}").exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody struck: {place}")
                time.sleep(0.01)
            return


@dataclass
class Evaluated:
    """One evaluation: what it made, what it had to make, and its numbers."""

    made: Any
    expected: Any
    stats: Stats | None
    flows: list[tuple[int, int]]  # elements that enter and leave each step


# Steps. Everything is a module's function, or a partial of one, that workers unpickle by value.


def work(x: int) -> int:
    time.sleep(ELEMENT_SECONDS)
    return x * 3


def work_at(here: Reached, moment: int, x: int) -> int:
    if x == moment:
        here()
    return work(x)


def is_even(x: int) -> bool:
    return x % 2 == 0


def repeated(x: int) -> list[int]:
    return [x] * (x % 3)


def add_at(here: Reached, moment: int, total: int, x: int) -> int:
    if x == work(moment):
        here()
    return total + x


def note_at(here: Reached, moment: int, text: str, x: int) -> str:
    if x == work(moment):
        here()
    return f"{text},{x}"


def large(x: int) -> bytes:
    return bytes([x % 251]) * LARGE


def small(x: bytes) -> int:
    return x[0]


def chain(here: Reached, moment: int) -> ParallelGen[int]:
    steps = parallel(range(ELEMENTS)).map(functools.partial(work_at, here, moment))
    return steps.filter(is_even).flatmap(repeated)


def chained() -> tuple[list[int], list[tuple[int, int]]]:
    mapped = [3 * x for x in range(ELEMENTS)]
    filtered = [x for x in mapped if is_even(x)]
    flat = [y for x in filtered for y in repeated(x)]
    return flat, [(ELEMENTS, ELEMENTS), (ELEMENTS, len(filtered)), (len(filtered), len(flat))]


def stream(moment: int, here: Reached) -> Evaluated:
    collection = chain(here, moment)
    expected, flows = chained()
    return Evaluated(list(collection), expected, collection.stats, flows)


def one_pass(here: Reached) -> Evaluated:
    """A source that can be read once, of elements that go through shared memory."""
    source = (large(x) for x in range(ELEMENTS))

    def at(x: bytes) -> bytes:
        if x[0] == HALF:
            here()
        time.sleep(ELEMENT_SECONDS)
        return x[:1] * LARGE

    collection = parallel(source).map(at)
    expected = [large(x) for x in range(ELEMENTS)]
    return Evaluated(list(collection), expected, collection.stats, [(ELEMENTS, ELEMENTS)])


def counting(here: Reached) -> Evaluated:
    collection = chain(here, HALF)
    expected, flows = chained()
    return Evaluated(collection.count(), len(expected), collection.stats, flows)


def unordered(here: Reached) -> Evaluated:
    collection = chain(here, HALF).unordered()
    expected, flows = chained()
    return Evaluated(sorted(collection), sorted(expected), collection.stats, flows)


def reducing(here: Reached) -> Evaluated:
    """Strikes the worker that folds; the value so far and the partitions to come are on workers."""
    collection = parallel(range(ELEMENTS)).map(work)
    made = collection.reduce(functools.partial(note_at, here, HALF), "")
    expected = "".join(f",{3 * x}" for x in range(ELEMENTS))
    return Evaluated(made, expected, collection.stats, [(ELEMENTS, ELEMENTS)])


def folding(here: Reached) -> Evaluated:
    collection = parallel(range(ELEMENTS)).map(work)
    made = collection.fold(functools.partial(add_at, here, HALF), 0, operator.add)
    return Evaluated(made, 3 * sum(range(ELEMENTS)), collection.stats, [(ELEMENTS, ELEMENTS)])


def foreach(here: Reached) -> Evaluated:
    collection = parallel(range(ELEMENTS))
    collection.foreach(functools.partial(work_at, here, HALF))
    stats = collection.stats
    expected = [3 * x for x in range(ELEMENTS)]
    return Evaluated(list(collection), expected, stats, [(ELEMENTS, ELEMENTS)])


def kept(here: Reached) -> Evaluated:
    """What a foreach has left on the workers is read when the fault strikes."""
    collection = parallel(range(ELEMENTS))
    collection.foreach(work)
    second = collection.map(functools.partial(work_at, here, 3 * HALF))
    made = list(second)
    return Evaluated(made, [9 * x for x in range(ELEMENTS)], second.stats, [(ELEMENTS, ELEMENTS)])


def closing(here: Reached) -> Evaluated:
    """The consumer leaves at the moment at which the fault strikes; the results before were right."""
    collection = parallel(range(10**9), partition_size=4).map(functools.partial(work_at, here, HALF))
    results = iter(collection)
    made = [next(results) for _ in range(HALF)]
    wait_for_file(here.folder / "reached-0")
    results.close()  # type: ignore[attr-defined]
    return Evaluated(made, [3 * x for x in range(HALF)], None, [])


@dataclass(frozen=True)
class Moment:
    """One row of moments."""

    name: str
    run: Callable[[Reached], Evaluated]
    keeps: bool = False  # what it holds is in the workers' memory, and gone with the cluster
    once: bool = False  # the element does not run again


MOMENTS = [
    Moment("before the first result", functools.partial(stream, 0)),
    Moment("mid-stream", functools.partial(stream, HALF)),
    Moment("last partition", functools.partial(stream, ELEMENTS - 1)),
    Moment("mid-stream, one pass, shared memory", one_pass),
    Moment("count", counting),
    Moment("unordered", unordered),
    Moment("reduce", reducing),
    Moment("fold", folding),
    Moment("foreach", foreach),
    Moment("reading what foreach kept", kept, keeps=True),
    Moment("while the iterator is closed", closing, once=True),
]
