"""Simulation: whole evaluations on a model of dask, in virtual time, each made from a number.

The collection, the window, the feed, the sizes, the folds, the session and the receiving of outcomes are
parcoll's own. `run(seed)` makes work, faults and the delays of all messages from the seed, and compares what
comes with plain Python. The same number gives the same story.

    python tests/simulation/simulate.py --seconds 60          # fresh seeds
    python tests/simulation/simulate.py --seed 4711           # one story, told
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import logging
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

for folder in (".", "../helpers"):
    sys.path.insert(0, str((Path(__file__).parent / folder).resolve()))

import beside
import calling
import chains
import oracles
import quick
import saved
import stored
import work as works
from client_model import Client, Completed
from dask_model import Scheduler
from fsspec.implementations.memory import MemoryFileSystem
from together import Together
from virtual import Clock, virtual_time

import parcoll.cluster.clients
import parcoll.evaluation.bag  # noqa: F401 - loaded here, so that their clocks are virtual too
from parcoll import ClusterLostError, Connection, WorkerLostError, parallel
from parcoll.calls import looping
from parcoll.chain import apart, policy, timing
from parcoll.checkpoint import fingerprint, storage
from parcoll.cluster import losses, receiving, renewing, session
from parcoll.cluster.engine import DistributedEngine
from parcoll.cluster.link import Link
from parcoll.cluster.renewing import RenewingEngine
from parcoll.cluster.session import DistributedSession
from parcoll.evaluation import folding, window
from parcoll.keys import exchange, slots
from parcoll.output import staging
from parcoll.wire.codec import by_value
from parcoll.wire.payload import ByValue, Packed
from parcoll.worker import outcome as outcomes
from parcoll.worker import program
from parcoll.worker.program import Program
from parcoll.world import handlers

TELL_SECONDS = 60.0
TOGETHER = 0.03  # of the stories have several threads, and take twice as long
COLLECTED = 50  # stories, after which garbage is collected
FEW_SLOTS = (11, 7, 5, 3)  # instead of 127, which a story of some elements would find empty
# What a task that merges costs at least, and at most: with parcoll's own, a story has one such task.
COSTS = (exchange.LEAST_COST, exchange.MOST_COST)
SMALL_COSTS = ((150, 300), (400, 400), (1_500, 2_000))
FINGERPRINTS: dict[Any, Any] = {}  # of functions, which stay what they are


class SimulatedEngine(DistributedEngine):
    """The engine of a cluster, on a client of the model. Workers have this process's state already."""

    def open(self, program: Program, words: str, keep: bool) -> DistributedSession:
        """Start an evaluation."""
        if self.link.client.clock.turns is not None:
            self.link.client.clock.turns.pause()
        if not self.link.connected:
            raise self.link.lost()
        settings = (Packed.pack(program), b"", b"", words, keep, program.stops, None)
        return DistributedSession(self.link, self._reports, *settings)

    def threads(self) -> int:
        """Return how many threads the workers have, as far as it is known."""
        return self._counted.threads()

    def pack(self, value: Any, lasting: bool = False, by_value: ByValue = by_value) -> Packed:
        """Pickle the value."""
        return Packed.pack(value, by_value)

    def follow(self, stats: Any) -> Nobody:  # type: ignore[override]
        """Show it to nobody."""
        return Nobody()


class Nobody:
    """Whom an evaluation is shown to."""

    def end(self) -> None:
        """Do nothing."""


class Way:
    """How to get to a cluster of the model: there is always another one."""

    starts = True

    def __init__(self, simulation: Simulation, renews: bool, ends: bool = False) -> None:
        self.renews = renews
        self.ends = ends  # a cluster with its connection
        self._simulation = simulation

    @property
    def alive(self) -> bool:
        """Return True."""
        return True

    def connect(self, *before: Any) -> SimulatedEngine:
        """Start a cluster."""
        return self._simulation.start_cluster()

    def prepare(self, engine: Any) -> None:
        """Do nothing."""

    def close(self, engine: Any) -> None:
        """End the cluster, if it is to end."""
        if self.ends and engine is not None:
            engine.link.client.end()

    def gone(self, engine: Any) -> str:
        """Say what is closed."""
        return "the simulated cluster is closed"


class Other:
    """Another evaluation, of which a part is done wherever the first one waits."""

    def __init__(self, chance: random.Random, tell: Any) -> None:
        self._count = chance.choice([1, 3, 10, 30])
        size = chance.choice([1, 2, 5, "auto"])
        self._made = parallel(range(100, 100 + self._count), partition_size=size).map(chains.add)
        self._results = iter(self._made)
        self._found: list[int] = []
        self._under_way = False
        self._left = chance.random() < 0.3  # by its consumer, or since no cluster lasts
        self._tell = tell

    def go_on(self) -> None:
        """Take the next result, unless that is what is waited for."""
        if not self._under_way:
            self._under_way = True
            try:
                self._found += itertools.islice(self._results, 1)
            except (ClusterLostError, WorkerLostError):
                self._left = True
            except KeyboardInterrupt:  # which ends both
                self._left = True
                raise
            finally:
                self._under_way = False

    def end(self) -> None:
        """Take what is left, or leave it; compare."""
        if self._left:
            self._results.close()  # type: ignore[attr-defined]
        else:
            self._under_way = True
            try:
                self._found += self._results
            except (ClusterLostError, WorkerLostError):
                self._left = True
        self._tell(f"the other evaluation has given {len(self._found)} of {self._count} results")
        right = [1_100 + at for at in range(self._count)]
        assert self._found == (right[: len(self._found)] if self._left else right), self._found


class Simulation:
    """One story."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed ^ 0x5EED)
        self.hosts = random.Random(f"{seed} hosts")
        self.doomed = self.hosts.random() < 0.01  # no cluster lasts
        self.elsewhere = random.Random(f"{seed} remote")
        self.remote = self.elsewhere.random() < 0.2  # workers do not send outcomes: they are asked for
        pacing = random.Random(f"{seed} paces")
        self.uneven = pacing.random() < 0.15
        self.threads = random.Random(f"{seed} threads").choice([1, 1, 1, 1, 1, 2, 3])  # of each worker
        self.others = random.Random(f"{seed} others")
        self.other: Other | None = None
        self.together: Together | None = None
        self.clock = chains.now().clock = Clock()
        self.clock.pacing = pacing if self.uneven else None
        self.work = works.Work.of(seed)
        self.said: list[tuple[float, str]] = []
        self.n_workers = self.rng.choice([1, 2, 2, 3, 5])
        self.clusters: list[Scheduler] = []
        self.engines: list[SimulatedEngine] = []
        self.connected: list[RenewingEngine] = []
        self.progress = oracles.Progress()
        self.saved = saved.Saved(self.work.disk)

    def tell(self, what: str) -> None:
        """Add a line to the story."""
        self.said.append((self.clock.now, what))

    def story(self) -> str:
        """Return all that happened, a line each."""
        remote = ", on a remote cluster" if self.remote else ""
        remote += ", whose tasks take now more, now less time" if self.uneven else ""
        if self.together is not None:
            remote += f"; beside it, {self.together.count} threads: {self.together.kind}"
        lines = [
            f"seed {self.seed}: {self.work}{remote}",
            *(f"{when:10.4f}  {what}" for when, what in self.said),
        ]
        return "\n".join(lines)

    def engine(self, ends: bool = False) -> RenewingEngine:
        """Return an engine for a connection, whose cluster `ends` with that or does not."""
        self.connected.append(RenewingEngine(Way(self, renews=True, ends=ends)))
        return self.connected[-1]

    def start_cluster(self) -> SimulatedEngine:
        """Start a cluster, and plan what becomes of it."""
        scheduler = Scheduler(self.clock, self.rng, self.n_workers, self.tell, self.threads)
        self.clusters.append(scheduler)
        self.progress.started()
        link = Link(Client(scheduler), direct=True)
        link.token = f"{self.seed}-{len(self.clusters)}"
        engine = SimulatedEngine(link, reporting=not self.remote, worker_memory=lambda: math.inf)
        scheduler.tells = not self.remote or self.elsewhere.random() < 0.85
        self.engines.append(engine)
        self.clock.until(self.clock.now + 1.0)
        span = self.rng.choice([0.05, 1.0, 10.0, 60.0])
        for _ in range(self.rng.choice([0, 0, 1, 2, 4])):
            self.clock.after(self.rng.random() * span, self._kill_one, scheduler)
        for _ in range(self.rng.choice([0, 1, 5])):
            self.clock.after(self.rng.random() * span, scheduler.steal)
        if self.rng.random() < 0.2:
            self.clock.after(self.rng.random() * span, scheduler.add_worker)
        if len(self.clusters) <= 3 and self.rng.random() < 0.15:
            self.clock.after(self.rng.random() * span, scheduler.die)
        if self.doomed:
            self.clock.after(self.hosts.random() * 0.02, scheduler.die)
        hosts = self.hosts  # with chances of their own
        for _ in range(hosts.choice([0, 0, 0, 0, 0, 1, 1, 2, 4])):
            self.clock.after(hosts.random() * span, self._cut_off_one, scheduler)
        if len(self.clusters) <= 3 and hosts.random() < 0.05:
            self.clock.after(hosts.random() * span, scheduler.lose_client)
        return engine

    def _cut_off_one(self, scheduler: Scheduler) -> None:
        found = [worker for worker in scheduler.workers.values() if worker.answers]
        if found and scheduler.alive:
            scheduler.cut_off(self.hosts.choice(found))

    def _kill_one(self, scheduler: Scheduler) -> None:
        alive = [worker for worker in scheduler.workers.values() if worker.alive]
        if alive and scheduler.alive:
            scheduler.kill(self.rng.choice(alive))

    def wait_for(self, results: Any, seconds: float) -> Any:
        """Return the next of `results`, in the place of `nesting.wait_for`."""
        clock = self.clock
        clock.look()
        if self.other is not None and self.others.random() < 0.3:
            self.other.go_on()
        if self.rng.random() < 0.7:  # not each time that nothing happens it is looked at
            seconds = max(seconds, min(clock.next_at() - clock.now, 30 * seconds))
        if not clock.wait_for(results.empty, seconds):
            self._quiet += 1
            assert self._quiet < 40_000, "the evaluation waits for ever"
            return None
        self._quiet = 0
        return results.get_nowait()

    _quiet = 0

    def run(self) -> None:
        """Evaluate, and compare."""
        chains.now().clock = self.clock
        expected = works.expected(self.work)
        if self.work.store is not None:
            self.work.store.lost = lambda: sum(cluster.lost for cluster in self.clusters)
        engine = self.engine()
        chance = random.Random(f"{self.seed} together")
        if chance.random() < TOGETHER and self.work.disk is None and self.work.store is None:
            self.together = Together(self, chance)
        with virtual_time(self.clock), patched(self), contextlib.ExitStack() as stack:
            stack.callback(engine.close)
            engine.connected()
            with Connection(engine):
                if self.together is not None:
                    stack.callback(self.together.turns.end)
                    self.together.begin()
                elif self.others.random() < 0.08:
                    self.other = Other(self.others, self.tell)
                found = handlers.reached(works.found, self.work)
                self.tell(f"the evaluation {found[0]} {found[1]!r}"[:500])
                if self.other is not None:
                    self.other.end()
                if self.together is not None:
                    self.together.end()
            self.clock.drain()
            there = [cluster for cluster in self.clusters if cluster.alive]
            # The workers' frames have those of the client below them, which they do not have with dask. So
            # an error of a user's function may hold what the client has let go of.
            kept = self.work.end == "foreach"
            for _ in range(2):  # what a finalizer has looked at is freed by the second collection
                if not kept and any(cluster.tasks for cluster in there):
                    calling.forget()
                    gc.collect()
                    self.clock.drain()
        self.expected, self.found = expected, found
        oracles.check(self, expected, found)
        for cluster in there:
            left = [task.key for task in cluster.tasks.values()]
            if not kept:
                assert not left, f"the scheduler still has {left}"
        used = [engine.current.client for engine in self.connected if engine.current and not engine.way.ends]
        for cluster in there:
            known = cluster.client is None or cluster.client in used
            assert known, "a cluster was started, and is there though no connection needs it any more"
        for made in self.engines:
            assert not made.keys_wanted(), f"still waited for: {made.keys_wanted()}"
        assert not outcomes.under_way, "a task is said to be under way"
        assert not outcomes.mailbox, "an outcome was left in the mailbox"
        assert not staging._held, "a lock of a folder is still held"
        assert not storage._descriptors, "a lock of a checkpoint is still held"


@contextlib.contextmanager
def patched(simulation: Simulation) -> Iterator[None]:
    """Have parcoll wait in virtual time, and do quicker what is not the protocol."""
    small = random.Random(f"{simulation.seed} joins")  # so that few partitions fill blocks, and rows of them
    merging = random.Random(f"{simulation.seed} merging")
    costs = merging.choice([COSTS, COSTS, *SMALL_COSTS])
    changes: list[tuple[Any, str, Any]] = [
        (folding._Joins, "MEMORY", small.choice([3, 4, 8, 64])),
        (folding._Tree, "WIDTH", small.choice([2, 3, 16])),
        (folding._Chain, "WAITING", small.choice([2, 3, 16])),
        (receiving, "distributed", SimpleNamespace(as_completed=Completed)),
        (receiving.nesting, "wait_for", simulation.wait_for),
        (session, "enter_task", lambda: None),
        (policy, "_random", simulation.rng),
        (apart, "_thread", apart._Thread()),  # else what stories before have taken out rounds this one's time
        (window, "POLL_SECONDS", simulation.rng.choice([0.002, 0.02, 0.05, 0.1])),
        (slots, "LEVELS", FEW_SLOTS),
        *((module, "SLOTS", FEW_SLOTS[0]) for module in (slots, exchange)),
        (exchange, "LEAST_COST", costs[0]),
        (exchange, "MOST_COST", costs[1]),
        (fingerprint, "of_function", of_function),
        *beside.changes(simulation.clock, simulation.seed),
        *calling.changes(simulation.clock),
        *stored.changes(),
        *simulation.progress.changes(),
        *oracles.sending(),
        *(simulation.together.changes(looping, renewing) if simulation.together is not None else ()),
        *(simulation.saved.changes() if "checkpoint" in simulation.work.settings else ()),
        *quick.CHANGES,
    ]
    before = [getattr(owner, name) for owner, name, _ in changes]
    for owner, name, made in changes:
        setattr(owner, name, made)
    timing._seconds.clear()
    try:
        yield
    finally:
        for (owner, name, _), made in zip(changes, before, strict=True):
            setattr(owner, name, made)


_of_function = fingerprint.of_function


def of_function(func: Any) -> Any:
    """Return the fingerprint of a function, made once."""
    if func not in FINGERPRINTS:
        FINGERPRINTS[func] = _of_function(func)
    return FINGERPRINTS[func]


def run(seed: int) -> Simulation:
    """Run the story of a seed; AssertionError if something is wrong in it."""
    random.seed(seed)
    calling.calls.clear()
    simulation = Simulation(seed)
    collects = gc.isenabled()
    gc.disable()  # when it collects depends on the stories before this one
    try:
        simulation.run()
    except BaseException as error:
        error.add_note(simulation.story())
        raise
    finally:
        if simulation.work.disk is not None:
            simulation.work.disk.remove()
        simulation.clock.close()
        if collects:
            gc.enable()
        program._cache.clear()
        losses._told.clear()
        outcomes.under_way.clear()
        outcomes.mailbox.clear()
        MemoryFileSystem.store.clear()  # of checkpoints; to list a folder takes time for each file of all
        MemoryFileSystem.pseudo_dirs[:] = [""]
    return simulation


@contextlib.contextmanager
def collected() -> Iterator[Callable[[int], None]]:
    """Collect garbage between stories alone; gives what is to be called after each, with their number."""

    def ended(stories: int) -> None:
        if stories % COLLECTED == 0:
            gc.collect()

    gc.collect()
    gc.freeze()  # what was imported
    gc.disable()
    try:
        yield ended
    finally:
        gc.enable()
        gc.unfreeze()


def fresh(seconds: float, start: int) -> tuple[int, float]:
    """Run seeds one after the other, for so long; return how many, and how long it took."""
    began, number = time.perf_counter(), 0
    with collected() as ended:
        while time.perf_counter() - began < seconds:
            run(start + number)
            number += 1
            ended(number)
    return number, time.perf_counter() - began


def main() -> int:
    """Run from the command line; return how many stories were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--start", type=int, default=int(time.time() * 1000) % 10**12)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--go-on", action="store_true", help="tell of a wrong story in a line, and go on")
    chosen = parser.parse_args()
    logging.getLogger("parcoll").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore", RuntimeWarning)  # of clusters that have no worker just now
    if chosen.seed is not None:
        print(run(chosen.seed).story())
        return 0
    done = wrong = 0
    began = told = time.perf_counter()
    with collected() as ended:
        while (now := time.perf_counter()) - began < chosen.seconds:
            try:
                run(chosen.start + done)
            except Exception as error:
                if not chosen.go_on:
                    raise
                wrong += 1
                print(f"{chosen.start + done} is wrong: {type(error).__name__}: {error}"[:300], flush=True)
            done += 1
            ended(done)
            if now - told > TELL_SECONDS:
                told = now
                pace = done / (now - began)
                print(f"{done:,} stories from {chosen.start} on: {pace:,.0f} a second", flush=True)
    took, computed = time.perf_counter() - began, time.process_time()
    pace = f"{done / took:,.0f} a second, {done / computed:,.0f} a second of the processor"
    print(f"{done:,} stories from {chosen.start} on, {wrong} of them wrong: {pace}")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
