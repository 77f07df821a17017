"""What a soak evaluates: chains of every kind, each compared with what plain Python makes of them."""

from __future__ import annotations

import asyncio
import errno
import functools
import heapq
import itertools
import operator
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parcoll import ClusterLostError, parallel, per_worker
from parcoll.watch.stats import Stats

STREAM_SECONDS = 20.0  # of one stream, before the other kinds of evaluation have their turn
SHORT = 2_000  # elements of the others
LARGE_EVERY, LARGE = 40, 30_000  # every 40th element has so many bytes, which go through shared memory
KINDS = 17  # of evaluations
HEAVY, HEAVY_BYTES = 24, 24 * 2**20  # results that together are more than a worker may hold

Element = tuple[int, bytes]
Result = tuple[int, int, int]  # index, number among the results of this element, value


# The chain, and what plain Python makes of it ---------------------------------------------------------


def element(index: int) -> Element:
    return index, bytes([index % 251]) * (LARGE if index % LARGE_EVERY == 0 else 8)


def work(x: Element) -> tuple[int, int]:
    time.sleep(0.001)
    return x[0], zlib.crc32(x[1], x[0])


def passes(x: tuple[int, int]) -> bool:
    return x[1] % 3 != 0


def spread(x: tuple[int, int]) -> list[Result]:
    return [(x[0], number, x[1]) for number in range(x[1] % 4)]


def expected_of(index: int) -> list[Result]:
    x = element(index)
    y = x[0], zlib.crc32(x[1], x[0])
    return spread(y) if passes(y) else []


def digest(total: int, x: Result) -> int:
    """Fold in a way that depends on the order."""
    return (total * 31 + x[0] * 7 + x[1] * 5 + x[2]) % (2**61 - 1)


def value_of(x: Result) -> int:
    return x[2]


def key_of(x: Result) -> int:
    return x[2] % 17


def keyed(x: Result) -> tuple[int, int]:
    return x[2] % 17, x[2]


def first(x: tuple[int, int]) -> int:
    return x[0]


def add_second(total: int, x: tuple[int, int]) -> int:
    return total + x[1]


def waits(x: int) -> int:
    time.sleep(0.002)
    return x * 3


async def awaits(x: int) -> int:
    await asyncio.sleep(0.002)
    return x + 1


@per_worker
def table() -> dict[int, int]:
    time.sleep(0.05)
    return {x: x * 7 for x in range(100)}


def look_up(x: int) -> int:
    return table()[x % 100]


def heavy(x: int) -> bytes:
    return bytes([x]) * HEAVY_BYTES


def wide(x: Result) -> str:
    return f"{x}" * 1_500


# What is found out ------------------------------------------------------------------------------------


@dataclass
class Found:
    """The numbers of all clients; one lock for all of them."""

    begun: bool = False  # some result of a stream has come
    elements: int = 0
    checked: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    evaluations: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)  # gone with their cluster, as is documented
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def off(self, what: str) -> None:
        with self.lock:
            self.errors.append(what)


class Client(threading.Thread):
    """Evaluates, one collection after the other, until it is told to end."""

    def __init__(self, number: int, found: Found, ending: threading.Event, small: Path | None = None) -> None:
        super().__init__(name=f"client-{number}")
        self.found = found
        self.ending = ending
        self.last_result = time.monotonic()
        self.number = number
        self.small = small  # a folder in which there is little room
        self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
        self.wrote = False

    def run(self) -> None:
        kinds = [self.stream, self.reduce, self.grouped, self.fold, self.written, self.foreach, self.waiting]
        kinds += [self.count, self.unordered, self.in_order, self.totals, self.heavy, self.joined, self.full]
        kinds += [self.stated, self.largest, self.sorted]
        assert len(kinds) == KINDS
        first = 7 * self.number % len(kinds)  # no two clients do the same at the same time
        for kind in itertools.cycle(kinds[first:] + kinds[:first]):
            if self.ending.is_set():
                return
            self.last_result = time.monotonic()
            name = kind.__name__
            try:
                stats: Stats = kind()
            except ClusterLostError as error:
                if kind in (self.reduce, self.fold, self.foreach, self.heavy):
                    with self.found.lock:
                        self.found.again[name] += 1
                else:
                    self.found.off(f"{name}: {type(error).__name__}: {error}")
                continue
            except Exception:
                self.found.off(f"{name}: {traceback.format_exc()}")
                continue
            with self.found.lock:
                self.found.evaluations[name] += 1
            self.account(name, stats)

    def account(self, name: str, stats: Stats) -> None:
        """Check that each element of an evaluation is accounted for, in each step."""
        with self.found.lock:
            self.found.elements += stats.elements_in
        for before, step in zip([None, *stats.steps], stats.steps, strict=False):
            entered = stats.elements_in if before is None else before.left
            sums = step.entered + step.added + step.replaced == step.left + step.filtered + step.failed
            if not sums or step.entered != entered or step.failed:
                self.found.off(f"{name}: {step} after {entered}")

    def chain(self, source: Any) -> Any:
        return parallel(source).map(work).filter(passes).flatmap(spread)

    def stream(self) -> Stats:
        """Read a source that nobody knows the end of, once, and compare as results come."""
        until = time.monotonic() + STREAM_SECONDS
        given = 0

        def source() -> Iterator[Element]:
            nonlocal given
            while time.monotonic() < until and not self.ending.is_set():
                yield element(given)
                given += 1

        collection = self.chain(source())
        oracle = itertools.chain.from_iterable(map(expected_of, itertools.count()))
        due = next(oracle)
        checked = lost = doubled = wrong = 0
        for result in collection:
            self.last_result = time.monotonic()
            self.found.begun = True
            checked += 1
            while due[:2] < result[:2]:
                lost += 1
                due = next(oracle)
            if due[:2] > result[:2]:
                doubled += 1
                continue
            wrong += result != due
            due = next(oracle)
        if due[0] < given:
            lost += 1 + sum(1 for _ in itertools.takewhile(lambda later: later[0] < given, oracle))
        if collection.stats.elements_in != given:
            self.found.off(f"stream: {given} elements given, {collection.stats.elements_in} run")
        with self.found.lock:
            self.found.checked += checked
            self.found.lost += lost
            self.found.doubled += doubled
            self.found.wrong += wrong
        return collection.stats

    def reduce(self) -> Stats:
        collection = self.chain(map(element, range(SHORT)))
        self.same("reduce", collection.reduce(digest, 1), DIGEST)
        return collection.stats

    def fold(self) -> Stats:
        collection = self.chain(map(element, range(SHORT))).map(value_of)
        self.same("fold", collection.fold(operator.add, 0), sum(map(value_of, RESULTS)))
        return collection.stats

    def foreach(self) -> Stats:
        collection = parallel(map(element, range(SHORT)))
        collection.foreach(work)
        stats = collection.stats
        self.same("foreach", list(collection.filter(passes).flatmap(spread)), RESULTS)
        return stats

    def count(self) -> Stats:
        collection = self.chain(map(element, range(SHORT)))
        self.same("count", collection.count(), len(RESULTS))
        return collection.stats

    def unordered(self) -> Stats:
        collection = self.chain(map(element, range(SHORT))).unordered()
        self.same("unordered", sorted(collection), RESULTS)
        return collection.stats

    def in_order(self) -> Stats:
        collection = self.chain(map(element, range(SHORT))).enumerate().map(tuple).pairwise()
        self.same("in_order", list(collection), list(itertools.pairwise(enumerate(RESULTS))))
        return collection.stats

    def joined(self) -> Stats:
        collection = self.chain(map(element, range(SHORT)))
        other = self.chain(map(element, range(SHORT // 2)))
        joined = collection.join(other, lambda x: x, how="semi")
        self.same("joined", list(joined), [x for x in RESULTS if x[0] < SHORT // 2])
        return joined.stats

    def largest(self) -> Stats:
        collection = self.chain(map(element, range(SHORT)))
        found = collection.nlargest(100, value_of)
        self.same("largest", found, heapq.nlargest(100, RESULTS, value_of))
        return collection.stats

    def grouped(self) -> Stats:
        collection = self.chain(map(element, range(SHORT))).group_by(key_of)
        self.same("grouped", [(key, list(group)) for key, group in collection], list(GROUPS.items()))
        return collection.stats

    def totals(self) -> Stats:
        collection = (
            self.chain(map(element, range(SHORT))).map(keyed).fold_by(first, add_second, 0, operator.add)
        )
        expected = {key: sum(map(value_of, group)) for key, group in GROUPS.items()}
        self.same("totals", list(collection), list(expected.items()))
        return collection.stats

    def sorted(self) -> Stats:
        collection = self.chain(map(element, range(SHORT))).sorted(value_of)
        self.same("sorted", list(collection), sorted(RESULTS, key=value_of))
        return collection.stats

    def waiting(self) -> Stats:
        collection = parallel(range(SHORT)).map(waits, concurrency=16).map(awaits, concurrency=32)
        self.same("waiting", list(collection), [x * 3 + 1 for x in range(SHORT)])
        return collection.stats

    def stated(self) -> Stats:
        collection = parallel(range(SHORT)).map(look_up)
        self.same("stated", list(collection), [x % 100 * 7 for x in range(SHORT)])
        return collection.stats

    def heavy(self) -> Stats:
        """Fold what does not fit into the workers' memory all at once."""
        collection = parallel(range(HEAVY), partition_size=1).map(heavy)
        found = collection.map(zlib.crc32).fold(operator.add, 0)
        self.same("heavy", found, sum(zlib.crc32(bytes([x]) * HEAVY_BYTES) for x in range(HEAVY)))
        return collection.stats

    def written(self) -> Stats:
        """Write files over those of the last time: all or nothing, and nothing beside them."""
        collection = self.chain(lambda: map(element, range(SHORT))).map(str)
        target = self.folder / "part-*.txt"
        try:
            collection.write_text(target, rows_per_file=300, overwrite=True)
        finally:
            files = sorted(self.folder.glob("part-*.txt"))
            lines = [line for file in files for line in file.read_text().splitlines()]
            if lines or self.wrote:
                self.same("written", lines, list(map(str, RESULTS)))
            self.same("beside what is written", [x.name for x in self.folder.glob(".*")], [])
        self.wrote = True
        return collection.stats

    def full(self) -> Stats:
        """Write more than there is room for, where there is a disk as small as that."""
        collection = self.chain(lambda: map(element, range(SHORT // 4)))
        if self.small is None:
            self.same("full", collection.count(), sum(x[0] < SHORT // 4 for x in RESULTS))
            return collection.stats
        folder = self.small / self.name
        folder.mkdir(exist_ok=True)
        rows = collection.map(wide)
        try:
            rows.write_text(folder / "part-*.txt", rows_per_file=50)
            self.found.off("full: there was room")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        self.same("what is left on the full disk", [str(x) for x in folder.rglob("*")], [])
        return rows.stats

    def same(self, name: str, made: object, expected: object) -> None:
        if made != expected:
            self.found.off(f"{name}: {str(made)[:200]} instead of {str(expected)[:200]}")


RESULTS: list[Result] = [result for index in range(SHORT) for result in expected_of(index)]
DIGEST = functools.reduce(digest, RESULTS, 1)
GROUPS: dict[int, list[Result]] = {}
for _result in RESULTS:
    GROUPS.setdefault(key_of(_result), []).append(_result)
