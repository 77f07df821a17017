"""Random work: a source, steps, what takes the results; and what plain Python gives for it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dask_model import look_at_late
from virtual import Clock

from parcoll import ClusterLostError, ParallelGen, parallel


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
    now().clock.sleep(costs[hash(x) % len(costs)])
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
    now().clock.sleep(now().costs[0] / 4)
    return f"{a}{b}"


def text(x: int) -> str:
    """Map to what `joined` takes."""
    return f"<{x}>"


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
OPERATIONS = (  # which do not resume
    *("skip(2)", "take_while(small)", "scan(add)", "batched(3)"),
    *("distinct(mod)", "sorted(mod)", "group_by(mod)", "fold_by(mod)"),
)
# Most faults need some elements in some partitions, and no more: small stories are many.
COUNTS = (*(0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 11, 13), *(3, 5, 7, 9, 20, 60))
ENDS = (
    *("list", "take", "count", "reduce", "fold", "fold with combine", "leave", "slow consumer", "foreach"),
    *("resume", "resume a fold"),
)


@dataclass
class Work:
    """One evaluation."""

    seed: int
    rng: random.Random
    count: int = 0
    source: str = ""
    steps: list[str] = field(default_factory=list)
    end: str = ""
    number: int = 0  # that is taken, or after which the consumer leaves
    settings: dict[str, Any] = field(default_factory=dict)
    ordered: bool = True
    read: int = 0  # elements of the source
    given: int = 0  # results that the consumer has
    most_unread: int = 0
    stops_at: int | None = None  # an element of the source, which raises there
    results: list[Any] = field(default_factory=list)  # that the consumer got

    @classmethod
    def of(cls, seed: int) -> Work:
        """Return the work of a seed."""
        rng = random.Random(seed)
        work = cls(seed, rng)
        work.count = rng.choice(COUNTS)
        work.source = rng.choice(["list", "generator", "slow generator", "failing generator", "function"])
        work.steps = rng.choices(list(STEPS)[:-1], k=rng.choice([0, 1, 1, 2, 3]))
        if rng.random() < 0.15:
            work.steps.append("map(bad)")
        work.end = rng.choice(ENDS)
        work.number = rng.randrange(12)
        if rng.random() < 0.5:
            work.settings["partition_size"] = rng.choice([1, 2, 3, 10])
        if rng.random() < 0.3:
            work.settings["buffersize"] = rng.choice([1, 2, 5, 20])
        if work.end.startswith("resume"):
            work.source = rng.choice(["list", "function"]) if work.end == "resume" else "function"
            work.settings["checkpoint"] = f"memory://simulation-{seed}"
            work.steps = [step for step in work.steps if step not in OPERATIONS]
        work.ordered = rng.random() < 0.8 or work.end not in ("list", "count", "slow consumer")
        scale = rng.choice([0.0001, 0.001, 0.02, 0.5])
        now().costs = [scale * rng.choice([0.5, 1.0, 1.0, 1.0]) for _ in range(7)]
        if rng.random() < 0.3:
            now().costs[rng.randrange(7)] = 20.0
        now().tried = {}
        return work

    @property
    def may_be_lost(self) -> bool:
        """Whether it may end with its scheduler: what is kept there, and a fold whose source is used up."""
        folds = self.end == "reduce" or self.end.startswith("fold")
        return self.end == "foreach" or (folds and self.source.endswith("generator"))

    @property
    def steps_multiply(self) -> bool:
        """Whether results are not one for each element."""
        return any(not step.startswith("map") or "skip" in step for step in self.steps)

    def __str__(self) -> str:
        steps = "".join(f".{step}" for step in self.steps) + ("" if self.ordered else ".unordered()")
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        costs = ", ".join(f"{cost:g}" for cost in now().costs)
        chain = f"parallel({self.source} of {self.count}{settings}){steps}"
        return f"{chain} -> {self.end} {self.number}; costs {costs}"

    def elements(self, quick: bool = False) -> Iterator[int]:
        """Give the elements of the source, and note how many were read."""
        for x in range(self.count):
            if not quick:
                self.read += 1
                self.most_unread = max(self.most_unread, self.read - self.given)
            if self.source == "slow generator" and not quick:
                now().clock.sleep(0.03 if x % 5 else 0.4)
            if x == self.stops_at:
                raise LookupError("the source ends here, this time")
            if self.source == "failing generator" and x == self.count - 2:
                raise LookupError(x)
            yield x

    def collection(self) -> ParallelGen[Any]:
        """Return the chain."""
        if self.source == "list":
            source: Any = list(range(self.count))
        elif self.source == "function":
            source = self.elements
        else:
            source = self.elements()
        made: Any = parallel(source, **self.settings)
        for step in self.steps:
            made = STEPS[step][0](made)
        return made if self.ordered else made.unordered()  # type: ignore[no-any-return]

    def plain(self) -> Iterator[Any]:
        """Return what plain Python gives for it."""
        made: Iterator[Any] = self.elements(quick=True)
        for step in self.steps:
            made = STEPS[step][1](made)
        return made


def resumed(work: Work, made: Any) -> Any:
    """Leave an evaluation early, and begin again with what it has saved."""
    if work.end == "resume a fold":
        work.stops_at = work.number
        with contextlib.suppress(LookupError, ValueError):
            made.map(text).fold(joined, "", operator.add)
        work.stops_at = None
        for _ in range(2):  # the second time it is all there
            value = made.map(text).fold(joined, "", operator.add)
        return value
    iterator = iter(made)
    with contextlib.suppress(ValueError):
        for _ in itertools.islice(iterator, work.number):
            pass
    iterator.close()
    work.read = 0
    first = list(made) if work.ordered else []
    second = list(made)
    assert not work.ordered or first == second, f"{first} and then {second}"
    return second


def outcome_of(call: Callable[[], Any]) -> tuple[str, Any]:
    """Return what a call returns, or what it raises."""
    try:
        return "returns", call()
    except ClusterLostError:
        return "is lost", None
    except (ValueError, LookupError, TypeError) as error:
        return "raises", (type(error), () if isinstance(error, TypeError) else error.args)


def expected(work: Work) -> tuple[str, Any]:
    """Return what plain Python does."""

    def call() -> Any:
        results = work.plain()
        if work.end == "take" or work.end == "leave":
            return list(itertools.islice(results, work.number))
        if work.end == "count":
            return sum(1 for _ in results)
        if work.end == "reduce":
            return functools.reduce(joined, map(text, results))
        if work.end == "foreach":
            return list(map(add, results))
        if "fold" in work.end:
            return functools.reduce(joined, map(text, results), "")
        return list(results)

    return outcome_of(call)


def found(work: Work) -> tuple[str, Any]:
    """Return what parcoll does."""
    made = work.collection()

    def call() -> Any:
        if work.end == "take":
            return made.take(work.number)
        if work.end == "count":
            return made.count()
        if work.end == "reduce":
            return made.map(text).reduce(joined)
        if work.end == "fold":
            return made.map(text).fold(joined, "")
        if work.end == "fold with combine":
            return made.map(text).fold(joined, "", operator.add)
        if work.end == "foreach":
            made.foreach(add)
            return list(made)
        if work.end.startswith("resume"):
            return resumed(work, made)
        results = work.results
        iterator = iter(made)
        for result in iterator if work.end != "leave" or work.number else ():
            results.append(result)
            work.given += 1
            if work.end == "leave" and len(results) == work.number:
                break
            if work.end == "slow consumer":
                now().clock.sleep(0.05)
        iterator.close()  # type: ignore[attr-defined]
        return results

    return outcome_of(call)
