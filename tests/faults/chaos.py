"""A soak: long streams on a local cluster whose processes are killed and stopped at random.

    python tests/faults/chaos.py --seconds 600 --seed 7 --clients 2

The seed decides when something happens, what, and to whom (by role, and by number among the workers); the
user's process, which runs this, is never a victim. Every result is compared with what plain Python makes
of the same element, in order, as it comes. Ends with a table, and with code 1 where anything was off.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import heapq
import itertools
import operator
import os
import random
import sys
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from victims import Victims, stop_for_a_while, strike

from parcoll import ClusterLostError, Connection, connect, parallel
from parcoll.watch.stats import Stats

WARM_UP_SECONDS = 5.0  # in which memory, threads and descriptors come to what they stay at
STREAM_SECONDS = 20.0  # of one stream, before the other kinds of evaluation have their turn
SHORT = 2_000  # elements of the others
LARGE_EVERY, LARGE = 40, 30_000  # every 40th element has so many bytes, which go through shared memory
PATIENCE = 60.0  # seconds without one result from a client, and it hangs
# What may grow from the warm-up to the end: pools of threads that dask fills one by one, segments of
# shared memory that are kept for later, and what the allocator keeps. One of each for a kill is more.
MORE_THREADS, MORE_DESCRIPTORS, MORE_MIB = 12, 40, 60

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

    def __init__(self, number: int, found: Found, ending: threading.Event) -> None:
        super().__init__(name=f"client-{number}")
        self.found = found
        self.ending = ending
        self.last_result = time.monotonic()

    def run(self) -> None:
        kinds = [self.stream, self.reduce, self.fold, self.foreach, self.count, self.unordered]
        kinds += [self.in_order, self.joined, self.largest]
        for kind in itertools.cycle(kinds):
            if self.ending.is_set():
                return
            self.last_result = time.monotonic()
            name = kind.__name__
            try:
                stats: Stats = kind()
            except ClusterLostError as error:
                if kind in (self.reduce, self.fold, self.foreach):
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

    def same(self, name: str, made: object, expected: object) -> None:
        if made != expected:
            self.found.off(f"{name}: {str(made)[:200]} instead of {str(expected)[:200]}")


RESULTS: list[Result] = [result for index in range(SHORT) for result in expected_of(index)]
DIGEST = functools.reduce(digest, RESULTS, 1)


# What happens -----------------------------------------------------------------------------------------


class Chaos:
    """Strikes at random; the seed decides when, how, and whom."""

    ROLES = ("worker", "scheduler", "host")

    def __init__(self, seed: int, every: float, connection: Connection) -> None:
        self.random = random.Random(seed)
        self.every = every
        self.victims = Victims(connection)
        self.killed: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()
        self.hosts: set[int] = set()

    def pause(self) -> float:
        """Return how long nothing happens."""
        return self.random.uniform(0.2, 2 * self.every - 0.2)

    def strike(self) -> None:
        """Let one thing happen. What is drawn does not depend on who is there."""
        (what,) = self.random.choices(["kill", "two", "all workers", "stop"], [12, 2, 1, 3])
        roles = self.random.choices(self.ROLES, [6, 1, 1], k=2)
        numbers = [self.random.randrange(2**16) for _ in roles]
        seconds = self.random.uniform(0.2, 3)
        if what == "all workers":
            for worker in self.victims.workers():
                self.kill("worker", worker)
            return
        chosen = [self.choose(role, number) for role, number in zip(roles, numbers, strict=True)]
        if what == "stop":
            if (process := chosen[0]) is not None:
                self.stopped[roles[0]] += 1
                stop_for_a_while(process, seconds)
            return
        for role, process in list(zip(roles, chosen, strict=True))[: 2 if what == "two" else 1]:
            self.kill(role, process)

    def choose(self, role: str, number: int) -> psutil.Process | None:
        """Return the process of that role; None where the cluster is not there at the moment."""
        if (host := self.victims.host()) is not None:
            self.hosts.add(host.pid)
        if role == "host":
            return host
        if role == "scheduler":
            return self.victims.scheduler()
        workers = self.victims.workers()
        return workers[number % len(workers)] if workers else None

    def kill(self, role: str, process: psutil.Process | None) -> None:
        if process is not None:
            self.killed[role] += 1
            strike(process)


# The whole --------------------------------------------------------------------------------------------


def _descriptors() -> int:
    """Count the open files of this process, without shared memory that waits for the next evaluation."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself
            found += "memfd:parcoll" not in os.readlink(file)
    return found


@dataclass
class Size:
    """What this process holds."""

    mib: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> Size:
        gc.collect()
        process = psutil.Process()
        memory = process.memory_info()
        # Shared memory that is kept for the next evaluation is not what leaks.
        mib = (memory.rss - getattr(memory, "shared", 0)) >> 20
        return cls(mib, process.num_threads(), _descriptors())

    def or_more(self, other: Size) -> Size:
        """Return the larger of each of the numbers."""
        return Size(*map(max, dataclasses.astuple(self), dataclasses.astuple(other)))


def tree_mib() -> int:
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total >> 20


def soak(seconds: float, seed: int, clients: int, workers: int, every: float) -> int:
    """Run for that long; return the exit code."""
    found, ending = Found(), threading.Event()
    started = time.monotonic()
    with connect(n_workers=workers) as connection:
        chaos = Chaos(seed, every, connection)
        running = [Client(number, found, ending) for number in range(clients)]
        for client in running:
            client.start()
        first: Size | None = None
        peak = 0
        due = started + chaos.pause()
        # A short soak on a slow machine goes on until there is something to be checked.
        while (now := time.monotonic()) < started + seconds or not found.begun:
            # The most of all that time: while a cluster is replaced there is little.
            if first is None or now < started + min(WARM_UP_SECONDS, seconds / 3):
                first = Size.now().or_more(first or Size(0, 0, 0))
            if now >= due:
                chaos.strike()
                due = time.monotonic() + chaos.pause()
            peak = max(peak, tree_mib())
            hung = [client.name for client in running if now - client.last_result > PATIENCE]
            if hung:
                found.off(f"no result for {PATIENCE:g} s: {hung}")
                break
            time.sleep(max(0.0, min(due - time.monotonic(), 0.25)))
        ending.set()
        for client in running:
            client.join(PATIENCE)
            if client.is_alive():
                found.off(f"{client.name} does not end")
        last = Size.now()
    assert first is not None
    left = [process for process in psutil.Process().children(recursive=True) if is_running(process)]
    if left:
        found.off(f"processes left: {left}")
    grown = [last.threads - first.threads, last.descriptors - first.descriptors, last.mib - first.mib]
    for name, more, most in zip(
        ("threads", "descriptors", "MiB"), grown, (MORE_THREADS, MORE_DESCRIPTORS, MORE_MIB), strict=True
    ):
        if more > most:
            found.off(f"{more} {name} more than after the warm-up")
    off = bool(found.errors or found.lost or found.doubled or found.wrong)
    rows = {
        "seconds": f"{time.monotonic() - started:.0f} (seed {seed}, {clients} clients, {workers} workers)",
        "evaluations": text(found.evaluations),
        "begun again": f"{text(found.again)} (what they kept went with their cluster)",
        "elements run": f"{found.elements:,}",
        "results checked in order": f"{found.checked:,}",
        "kills survived": text(chaos.killed),
        "stopped for a while": text(chaos.stopped),
        "clusters renewed": str(max(len(chaos.hosts) - 1, 0)),
        "elements lost": str(found.lost),
        "elements doubled": str(found.doubled),
        "wrong values": str(found.wrong),
        "MiB, all processes": f"{peak} at most",
        "MiB of its own, this process": f"{first.mib} after the warm-up, {last.mib} at the end",
        "threads": f"{first.threads} after the warm-up, {last.threads} at the end",
        "file descriptors": f"{first.descriptors} after the warm-up, {last.descriptors} at the end",
        "verdict": "SOMETHING IS OFF" if off else "nothing is off",
    }
    for error in found.errors[:20]:
        print(f"off: {error}", file=sys.stderr)
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()), flush=True)
    return int(off)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def text(counts: Counter[str]) -> str:
    each = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
    return f"{counts.total()}{f': {each}' if each else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="what decides; by default a random one")
    parser.add_argument("--clients", type=int, default=2, help="threads that evaluate on the one cluster")
    parser.add_argument("--workers", type=int, default=max(os.cpu_count() or 2, 2))
    parser.add_argument("--every", type=float, default=3, help="seconds between two strikes, on average")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10_000) if given.seed is None else given.seed
    return soak(given.seconds, seed, given.clients, given.workers, given.every)


if __name__ == "__main__":
    sys.exit(main())
