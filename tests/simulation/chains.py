"""The functions of random chains, and each step with what plain Python does in its place."""

from __future__ import annotations

import asyncio
import itertools
import operator
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import beside
import calling
from dask_model import look_at_late
from virtual import Clock


class Now(ModuleType):
    """What the functions of the work that is under way need."""

    clock: Clock
    costs: list[float]
    tried: dict[tuple[str, int], int]
    look_at_late = staticmethod(look_at_late)


sys.modules["work_now"] = Now("work_now")


def now() -> Now:
    """Return it: from where nobody finds it who looks for what functions depend on, as a checkpoint does."""
    return sys.modules["work_now"]  # type: ignore[return-value]


def spend(x: Any) -> None:
    """Let the time pass that an element takes."""
    costs = now().costs
    now().clock.spend(costs[hash(x) % len(costs)])
    beside.called()
    now().look_at_late()


def add(x: int) -> int:
    """Map."""
    spend(x)
    return x + 1_000


def is_odd(x: int) -> bool:
    """Filter."""
    spend(x)
    return x % 2 == 1


def several(x: int) -> list[int]:
    """Flatmap: none, one or more."""
    spend(x)
    return [x * 10 + i for i in range(x % 4)]


def lazily(x: int) -> Iterator[int]:
    """Flatmap, with a generator."""
    for i in range(x % 3):
        spend(x)
        yield x * 10 + i


def flaky(x: int) -> int:
    """Map: fails the first time with some elements."""
    spend(x)
    key = "flaky", x
    now().tried[key] = now().tried.get(key, 0) + 1
    if x % 3 == 0 and now().tried[key] == 1:
        raise ConnectionError(x)
    return x


def bad(x: int) -> int:
    """Map: fails with some elements."""
    spend(x)
    if x % 5 == 3:
        raise ValueError(x)
    return x


def ends(x: int) -> int:
    """Map: ends its process with some elements."""
    spend(x)
    if x % 9 == 4:
        beside.ended()
    return x


def hangs(x: int) -> int:
    """Map: takes very long with some elements."""
    spend(x)
    if x % 7 == 5:
        now().clock.sleep(HANGS * 100)
        beside.called()
    return x


def instead(error: Any) -> int:
    """Return what stands for an element that failed."""
    return -int(error.element)


def small(x: int) -> bool:
    """Take_while."""
    return x % 50 < 45


def batches(elements: Iterator[int]) -> Iterator[tuple[int, ...]]:
    """Give tuples of three; the last may be shorter."""
    while batch := tuple(itertools.islice(elements, 3)):
        yield batch


def mod(x: int) -> int:
    """Key."""
    return x % 4


def told(key: int, group: list[int]) -> int:
    """Map a group to a number that its order shows in."""
    return key + sum((at + 1) * x for at, x in enumerate(group))


def pair(key: int, total: int) -> int:
    """Map a key and a sum to a number."""
    return key * 7 + total


def groups(elements: list[int]) -> dict[int, list[int]]:
    """Return what has the same key, in order of first appearance."""
    found: dict[int, list[int]] = {}
    for x in elements:
        found.setdefault(mod(x), []).append(x)
    return found


def in_order(elements: list[int]) -> list[int]:
    """Sort."""
    return sorted(elements, key=mod, reverse=True)


def after_all(elements: Iterator[int], make: Callable[[list[int]], list[int]]) -> Iterator[int]:
    """Give what is made of all elements."""
    yield from make(list(elements))


def first_of_each(elements: Iterator[int]) -> Iterator[int]:
    """Give the first element of each key."""
    seen: set[int] = set()
    for x in elements:
        if mod(x) not in seen:
            seen.add(mod(x))
            yield x


def joined(a: str, b: str) -> str:
    """Fold: every order but the right one gives another result."""
    now().clock.spend(now().costs[0] / 4)
    return f"{a}{b}"


def picky(a: str, b: str) -> str:
    """Fold: refuses some elements, wherever they come in from the right."""
    if "3>" in b or "6>" in b:
        raise ValueError("refused")
    return joined(a, b)


def text(x: int) -> str:
    """Map to what `joined` takes."""
    return f"<{x}>"


def waits(x: int) -> int:
    """Map: waits for somebody else."""
    began = now().clock.read()
    now().clock.sleep(now().costs[hash(x) % len(now().costs)])
    calling.note("waits", began, now().clock.read())
    return x + 2_000


async def awaits(x: int) -> int:
    """Map: the same, as a coroutine."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        await asyncio.sleep(now().costs[hash(x) % len(now().costs)])
    finally:
        calling.note("awaits", began, loop.time())
    return x + 3_000


async def flaky_awaits(x: int) -> int:
    """Map: fails the first time with some elements, and hangs with others."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    key = "flaky_awaits", x
    now().tried[key] = now().tried.get(key, 0) + 1
    try:
        if x % 3 == 0 and now().tried[key] == 1:
            raise ConnectionError(x)
        await asyncio.sleep(HANGS if x % 7 == 4 else now().costs[0] / 10)
    finally:
        calling.note("flaky_awaits", began, loop.time())
    return x


async def awaits_if_odd(x: int) -> bool:
    """Filter."""
    await asyncio.sleep(now().costs[x % len(now().costs)] / 3)
    return x % 2 == 1


async def awaits_several(x: int) -> AsyncIterator[int]:
    """Flatmap, with an asynchronous generator."""
    for i in range(x % 3):
        await asyncio.sleep(now().costs[i] / 3)
        yield x * 10 + i


def twin(x: int) -> tuple[int, int]:
    """Map to what is no atom."""
    return x, x


HANGS, LATE = 30.0, 5.0  # seconds that such a call takes, and that it has
AT_ONCE, RATE = 3, (2, 1.0)


# Each step: its name, how parcoll is asked for it, and what plain Python does.
Plain = Callable[[Iterator[Any]], Iterator[Any]]
flat = itertools.chain.from_iterable
STEPS: dict[str, tuple[Callable[[Any], Any], Plain]] = {
    "map(add)": (lambda p: p.map(add), lambda it: map(add, it)),
    "filter(is_odd)": (lambda p: p.filter(is_odd), lambda it: filter(is_odd, it)),
    "flatmap(several)": (
        lambda p: p.flatmap(several),
        lambda it: itertools.chain.from_iterable(map(several, it)),
    ),
    "flatmap(lazily)": (
        lambda p: p.flatmap(lazily),
        lambda it: itertools.chain.from_iterable(map(lazily, it)),
    ),
    "map(flaky, retries=2)": (lambda p: p.map(flaky, retries=2, retry_on=ConnectionError), lambda it: it),
    "map(bad, skip)": (lambda p: p.map(bad, on_error="skip"), lambda it: (x for x in it if x % 5 != 3)),
    "map(bad, instead)": (
        lambda p: p.map(bad, on_error=instead),
        lambda it: (-x if x % 5 == 3 else x for x in it),
    ),
    "skip(2)": (lambda p: p.skip(2), lambda it: itertools.islice(it, 2, None)),
    "take_while(small)": (lambda p: p.take_while(small), lambda it: itertools.takewhile(small, it)),
    "scan(add)": (
        lambda p: p.scan(operator.add, 0),
        lambda it: itertools.accumulate(it, operator.add, initial=0),
    ),
    "distinct(mod)": (lambda p: p.distinct(mod), lambda it: first_of_each(it)),
    "sorted(mod)": (lambda p: p.sorted(mod, reverse=True), lambda it: after_all(it, in_order)),
    "group_by(mod)": (
        lambda p: p.group_by(mod).starmap(told),
        lambda it: after_all(it, lambda xs: [told(key, group) for key, group in groups(xs).items()]),
    ),
    "fold_by(mod)": (
        lambda p: p.fold_by(mod, operator.add, 0, operator.add).starmap(pair),
        lambda it: after_all(it, lambda xs: [pair(key, sum(group)) for key, group in groups(xs).items()]),
    ),
    "batched(3)": (lambda p: p.batched(3).map(sum), lambda it: map(sum, batches(it))),
    "map(bad)": (lambda p: p.map(bad), lambda it: map(bad, it)),
}
WAITING: dict[str, tuple[Callable[[Any], Any], Plain]] = {
    "map(waits, concurrency)": (
        lambda p: p.map(waits, concurrency=AT_ONCE),
        lambda it: (x + 2_000 for x in it),
    ),
    "map(waits, rate)": (lambda p: p.map(waits, rate=RATE), lambda it: (x + 2_000 for x in it)),
    "map(waits, concurrency, rate)": (
        lambda p: p.map(waits, concurrency=AT_ONCE, rate=RATE),
        lambda it: (x + 2_000 for x in it),
    ),
    "map(awaits)": (lambda p: p.map(awaits), lambda it: (x + 3_000 for x in it)),
    "map(awaits, concurrency)": (
        lambda p: p.map(awaits, concurrency=AT_ONCE),
        lambda it: (x + 3_000 for x in it),
    ),
    "map(awaits, concurrency, rate)": (
        lambda p: p.map(awaits, concurrency=AT_ONCE, rate=RATE),
        lambda it: (x + 3_000 for x in it),
    ),
    "map(flaky_awaits, concurrency, retries, timeout, skip)": (
        lambda p: p.map(
            flaky_awaits,
            concurrency=AT_ONCE,
            retries=2,
            retry_on=ConnectionError,
            timeout=LATE,
            on_error="skip",
        ),
        lambda it: (x for x in it if x % 7 != 4),
    ),
    "filter(awaits_if_odd)": (
        lambda p: p.filter(awaits_if_odd),
        lambda it: (x for x in it if x % 2 == 1),
    ),
    "flatmap(awaits_several, concurrency)": (
        lambda p: p.flatmap(awaits_several, concurrency=AT_ONCE),
        lambda it: (x * 10 + i for x in it for i in range(x % 3)),
    ),
}
BESIDE: dict[str, tuple[Callable[[Any], Any], Plain]] = {
    "map(ends, skip)": (lambda p: p.map(ends, on_error="skip"), lambda it: (x for x in it if x % 9 != 4)),
    "map(ends, instead)": (
        lambda p: p.map(ends, on_error=instead),
        lambda it: (-x if x % 9 == 4 else x for x in it),
    ),
    "map(hangs, timeout, skip)": (
        lambda p: p.map(hangs, timeout=HANGS, on_error="skip"),
        lambda it: (x for x in it if x % 7 != 5),
    ),
    "map(flaky, retries, timeout)": (
        lambda p: p.map(flaky, retries=2, retry_on=ConnectionError, timeout=HANGS),
        lambda it: it,
    ),
}
OPERATIONS = {  # which do not resume
    *("skip(2)", "take_while(small)", "scan(add)", "batched(3)"),
    *("distinct(mod)", "sorted(mod)", "group_by(mod)", "fold_by(mod)"),
}
ALL = STEPS | WAITING | BESIDE
