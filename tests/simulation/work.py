"""Random work: a source, steps, what takes the results; and what plain Python gives for it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import chains
import stored
import written
from disk import DiedError, Disk
from written import Files

from parcoll import CheckpointError, ClusterLostError, ParallelGen, WorkerLostError, parallel

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
    loose: bool = False  # the chain is said to be unordered, and what comes of it is in order
    read: int = 0  # elements of the source
    given: int = 0  # results that the consumer has
    most_unread: int = 0
    stops_at: int | None = None  # an element of the source, which raises there
    results: list[Any] = field(default_factory=list)  # that the consumer got
    func: Callable[[str, str], str] = chains.joined  # of a fold
    stats: Any = None  # of an evaluation that has given all results
    disk: Disk | None = None  # on which it writes
    files: Any = None  # which it writes
    store: stored.Store | None = None  # into which it puts objects
    interrupted: int = 0  # a first run has Ctrl-C where it waits so often

    @classmethod
    def of(cls, seed: int, alone: bool = True) -> Work:
        """Return the work of a seed; one that is not `alone` has no disk, which is a process's."""
        rng = random.Random(seed)
        work = cls(seed, rng)
        work.count = rng.choice(COUNTS)
        work.source = rng.choice(["list", "generator", "slow generator", "failing generator", "function"])
        work.steps = rng.choices(list(chains.STEPS)[:-1], k=rng.choice([0, 1, 1, 2, 3]))
        if rng.random() < 0.15:
            work.steps.append("map(bad)")
        work.end = rng.choice(ENDS if alone else ENDS[:-2])
        work.number = rng.randrange(12)
        if rng.random() < 0.5:
            work.settings["partition_size"] = rng.choice([1, 2, 3, 10])
        if rng.random() < 0.3:
            work.settings["buffersize"] = rng.choice([1, 2, 5, 20])
        if work.end.startswith("resume"):
            work.source = rng.choice(["list", "function"]) if work.end == "resume" else "function"
            work.settings["checkpoint"] = f"memory://simulation-{seed}"
            work.steps = [step for step in work.steps if step not in chains.OPERATIONS]
            work.interrupted = random.Random(f"{seed} Ctrl-C").choice([0, 0, 2, 5, 9, 15, 30])
        work.ordered = rng.random() < 0.8 or work.end not in ("list", "count", "slow consumer")
        calls = random.Random(f"{seed} calls")  # what came later has chances of its own
        if calls.random() < 0.15:
            work.steps.insert(calls.randrange(len(work.steps) + 1), calls.choice(list(chains.WAITING)))
        apart = random.Random(f"{seed} beside")
        if apart.random() < 0.06:
            work.steps.insert(apart.randrange(len(work.steps) + 1), apart.choice(list(chains.BESIDE)))
        if alone:
            work.choose_disk(random.Random(f"{seed} disk"))
        folds = work.end == "reduce" or "fold" in work.end  # which join in order all the same
        work.loose = folds and random.Random(f"{seed} unordered").random() < 0.2
        picky = random.Random(f"{seed} picky")
        if work.end in ("reduce", "fold") and picky.random() < 0.2:
            work.func = chains.picky
            if picky.random() < 0.5:  # refused where partitions are joined, and an error of the source behind
                work.source, work.settings["partition_size"] = "failing generator", picky.choice([1, 2, 3])
        scale = rng.choice([0.0001, 0.001, 0.02, 0.5])
        chains.now().costs = [scale * rng.choice([0.5, 1.0, 1.0, 1.0]) for _ in range(7)]
        if rng.random() < 0.3:
            chains.now().costs[rng.randrange(7)] = 20.0
        chains.now().tried = {}
        return work

    def choose_disk(self, chance: random.Random) -> None:
        """Have some stories write files, or a checkpoint, on a disk that fails."""
        resumes = self.end.startswith("resume")
        if chance.random() >= (0.4 if resumes else 0.08):
            kept = random.Random(f"{self.seed} store")
            if not resumes and kept.random() < 0.03:
                self.end, self.store = "write", stored.Store(kept, chains.now().clock)
            return
        self.disk = disk = Disk(chance, chains.now().clock)
        disk.loses_power = chance.random() < 0.3
        disk.seconds = chance.choice([0.0, 0.0, 0.001, 0.3])
        fault, at = chance.choice(["dies", "dies moving", "is full", "none"]), chance.randrange(1, 60)
        disk.dies_at = at if fault == "dies" else None
        if fault == "none" and not resumes:
            disk.interrupted = random.Random(f"{self.seed} interrupted").choice([None, 1, 2, 3, 5, 9])
        disk.dies_moving = chance.randrange(12) if fault == "dies moving" else None
        if fault == "is full":
            disk.full = range(at, at + chance.choice([1, 5, 10_000]))
        if resumes:
            self.settings["checkpoint"] = str(disk.folder / "checkpoint")
            return
        self.end = "write"
        choices = chance.random() < 0.6, chance.choice([1, 2, 5]), chance.choice([0, 1, 3, 12])
        self.files = Files(disk, *choices, missing=chance.random() < 0.3)

    @property
    def may_be_lost(self) -> bool:
        """Whether it may end with its scheduler: what is kept there, and a fold whose source is used up."""
        folds = self.end in ("reduce", "write") or self.end.startswith("fold")
        return self.end == "foreach" or (folds and self.source.endswith("generator"))

    @property
    def steps_multiply(self) -> bool:
        """Whether results are not one for each element."""
        return any(not step.startswith("map") or "skip" in step for step in self.steps)

    def __str__(self) -> str:
        steps = "".join(f".{step}" for step in self.steps) + (
            ".unordered()" if self.loose or not self.ordered else ""
        )
        told = self.settings | ({"checkpoint": "..."} if "checkpoint" in self.settings else {})
        settings = "".join(f", {name}={value}" for name, value in told.items())
        costs = ", ".join(f"{cost:g}" for cost in chains.now().costs)
        chain = f"parallel({self.source} of {self.count}{settings}){steps}"
        disk = "" if self.disk is None else f"; {self.disk}"
        disk += f"; Ctrl-C at wait {self.interrupted} of a first run" if self.interrupted else ""
        disk += "" if self.store is None else f"; {self.store}"
        return f"{chain} -> {self.end} {self.number}; costs {costs}{disk}"

    def elements(self, quick: bool = False) -> Iterator[int]:
        """Give the elements of the source, and note how many were read."""
        for x in range(self.count):
            if not quick:
                self.read += 1
                self.most_unread = max(self.most_unread, self.read - self.given)
            if self.source == "slow generator" and not quick:
                chains.now().clock.sleep(0.03 if x % 5 else 0.4)
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
            made = chains.ALL[step][0](made)
        return made if self.ordered and not self.loose else made.unordered()  # type: ignore[no-any-return]

    def plain(self) -> Iterator[Any]:
        """Return what plain Python gives for it."""
        made: Iterator[Any] = self.elements(quick=True)
        for step in self.steps:
            made = chains.ALL[step][1](made)
        return made


def evaluated(work: Work, made: Any) -> Any:
    """Return what comes of a chain with a checkpoint."""
    if work.end == "resume a fold":
        return made.map(chains.text).fold(chains.joined, "", operator.add)
    return list(made)


def interrupted(work: Work, made: Any, waits: int) -> None:
    """Begin a run that ends early, at the latest by Ctrl-C at the `waits`-th wait, if there is one."""
    clock = chains.now().clock
    clock.interrupted = waits or None
    try:
        with contextlib.suppress(LookupError, ValueError, DiedError, CheckpointError, KeyboardInterrupt):
            evaluated(work, made)
    finally:  # also if it was lost: what follows has no Ctrl-C
        clock.interrupted = None


def resumed(work: Work, made: Any) -> Any:
    """Leave an evaluation early, and begin again with what it has saved."""
    if work.disk is not None:  # in processes that die with their disk, or find it full
        for number in range(2):
            with work.disk.patched():
                interrupted(work, made, work.interrupted if number == 0 else 0)
            if work.disk.dead:
                work.disk.revive()
                work.disk.dies_at = work.disk.steps + 1 + work.number
        work.disk.revive()
    elif work.interrupted:
        interrupted(work, made, work.interrupted)
    if work.end == "resume a fold":
        work.stops_at = work.number
        with contextlib.suppress(LookupError, ValueError):
            evaluated(work, made)
        work.stops_at = None
        for _ in range(2):  # the second time it is all there
            value = evaluated(work, made)
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
    work.stats, work.results = made.stats, second  # as of a run that was never left
    return second


def outcome_of(call: Callable[[], Any]) -> tuple[str, Any]:
    """Return what a call returns, or what it raises."""
    try:
        return "returns", call()
    except ClusterLostError:
        return "is lost", None
    except WorkerLostError:
        return "gives up", None
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
            return functools.reduce(work.func, map(chains.text, results))
        if work.end == "write":
            return list(map(chains.text, results))
        if work.end == "foreach":
            return list(map(chains.add, results))
        if "fold" in work.end:
            return functools.reduce(work.func, map(chains.text, results), "")
        return list(results)

    return outcome_of(call)


def found(work: Work) -> tuple[str, Any]:
    """Return what parcoll does."""
    if work.store is not None:
        return stored.outcome_of(work, lambda: work.collection().map(chains.text), expected(work))
    if work.end == "write":
        return written.outcome_of(work, lambda: work.collection().map(chains.text), expected(work))
    made = work.collection()

    def call() -> Any:
        if work.end == "take":
            return made.take(work.number)
        if work.end == "count":
            return made.count()
        if work.end == "reduce":
            return made.map(chains.text).reduce(work.func)
        if work.end == "fold":
            return made.map(chains.text).fold(work.func, "")
        if work.end == "fold with combine":
            return made.map(chains.text).fold(chains.joined, "", operator.add)
        if work.end == "foreach":
            made.foreach(chains.add)
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
                chains.now().clock.sleep(0.05)
        if work.end != "leave":
            work.stats = made.stats
        iterator.close()  # type: ignore[attr-defined]
        return results

    return outcome_of(call)
