"""Simulation: whole evaluations on a model of dask, in virtual time, each made from a number.

The collection, the window, the feed, the sizes, the folds, the session and the receiving of outcomes are
parcoll's own. `run(seed)` makes work, faults and the delays of all messages from the seed, and compares what
comes with plain Python. The same number gives the same story.

    python tests/simulation/simulate.py --seconds 60          # fresh seeds
    python tests/simulation/simulate.py --seed 4711           # one story, told
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for folder in (".", "../helpers"):
    sys.path.insert(0, str(Path(__file__).resolve().parent / folder))

import work as works
from client_model import Client
from dask_model import Scheduler
from virtual import Clock, virtual_time

import parcoll.evaluation.bag  # noqa: F401 - loaded here, so that its clock is virtual too
from parcoll import Connection
from parcoll.chain import policy, timing
from parcoll.cluster import losses, receiving, session
from parcoll.cluster.engine import DistributedEngine
from parcoll.cluster.link import Link
from parcoll.cluster.renewing import RenewingEngine
from parcoll.cluster.session import DistributedSession
from parcoll.worker import outcome as outcomes
from parcoll.worker.program import Program, packed_program
from parcoll.worker.tasks import join_kept, run_partition


class SimulatedEngine(DistributedEngine):
    """The engine of a cluster, on a client of the model. Workers have this process's state already."""

    def open(self, program: Program, words: str, keep: bool) -> DistributedSession:
        """Start an evaluation."""
        if not self.link.connected:
            raise self.link.lost()
        packed, script = packed_program(program)
        settings = (packed, b"", script, words, keep, program.stops, None)
        return DistributedSession(self.link, self._reports, *settings)

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

    def __init__(self, simulation: Simulation, renews: bool) -> None:
        self.renews = renews
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
        """Do nothing."""

    def gone(self, engine: Any) -> str:
        """Say what is closed."""
        return "the simulated cluster is closed"


class Simulation:
    """One story."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed ^ 0x5EED)
        self.clock = works.now().clock = Clock()
        self.work = works.Work.of(seed)
        self.said: list[tuple[float, str]] = []
        self.n_workers = self.rng.choice([1, 2, 2, 3, 5])
        self.clusters: list[Scheduler] = []
        self.engines: list[SimulatedEngine] = []

    def tell(self, what: str) -> None:
        """Add a line to the story."""
        self.said.append((self.clock.now, what))

    def story(self) -> str:
        """Return all that happened, a line each."""
        lines = [f"seed {self.seed}: {self.work}", *(f"{when:10.4f}  {what}" for when, what in self.said)]
        return "\n".join(lines)

    def start_cluster(self) -> SimulatedEngine:
        """Start a cluster, and plan what becomes of it."""
        scheduler = Scheduler(self.clock, self.rng, self.n_workers, self.tell)
        self.clusters.append(scheduler)
        link = Link(Client(scheduler), direct=True)
        link.token = f"{self.seed}-{len(self.clusters)}"
        engine = SimulatedEngine(link, reporting=True, worker_memory=lambda: math.inf)
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
        return engine

    def _kill_one(self, scheduler: Scheduler) -> None:
        alive = [worker for worker in scheduler.workers.values() if worker.alive]
        if alive and scheduler.alive:
            scheduler.kill(self.rng.choice(alive))

    def wait_for(self, results: Any, seconds: float) -> Any:
        """Return the next of `results`, in the place of `nesting.wait_for`."""
        until = self.clock.now + seconds
        self.clock.wait(lambda: not results.empty(), seconds)
        if results.empty():
            self.silent = self.clock.now - until if self.clock.now > until else 0.0
            self._quiet += 1
            assert self._quiet < 40_000, "the evaluation waits for ever"
            return None
        self._quiet = 0
        return results.get_nowait()

    _quiet = 0

    def run(self) -> None:
        """Evaluate, and compare."""
        works.now().clock = self.clock
        expected = works.expected(self.work)
        engine = RenewingEngine(Way(self, renews=True))
        with virtual_time(self.clock), patched(self), contextlib.ExitStack() as stack:
            stack.callback(engine.close)
            engine.connected()
            with Connection(engine):
                found = works.found(self.work)
                self.tell(f"the evaluation {found[0]} {found[1]!r}"[:500])
            gc_free = [cluster for cluster in self.clusters if cluster.alive]
            self.clock.drain()
        self.expected, self.found = expected, found
        self.check(expected, found)
        for cluster in gc_free:
            left = [task.key for task in cluster.tasks.values()]
            if self.work.end != "foreach":
                assert not left, f"the scheduler still has {left}"
        for made in self.engines:
            assert not made.keys_wanted(), f"still waited for: {made.keys_wanted()}"
        assert not outcomes.under_way, "a task is said to be under way"
        assert not outcomes.mailbox, "an outcome was left in the mailbox"

    def check(self, expected: tuple[str, Any], found: tuple[str, Any]) -> None:
        """Compare what came with what plain Python gives."""
        work = self.work
        if found[0] == "is lost" and work.may_be_lost and not all(cluster.alive for cluster in self.clusters):
            return
        if not work.ordered and expected[0] == found[0] == "returns" and work.end != "count":
            expected = "returns", collections.Counter(expected[1])  # type: ignore[assignment]
            found = "returns", collections.Counter(found[1])
        any_order = not work.ordered or work.end == "count"  # whose first error is the one that comes first
        if any_order and expected[0] == found[0] == "raises":
            return
        assert found == expected, f"{found} instead of {expected}"
        if expected[0] == "raises" and work.end in ("list", "leave", "slow consumer"):
            before: list[Any] = []
            with contextlib.suppress(ValueError, LookupError):
                before.extend(works_before(work))
            assert work.results == before, f"{work.results} came before the error, instead of {before}"
        size = work.settings.get("buffersize")
        if size is not None and work.end in ("leave", "slow consumer") and not work.steps_multiply:
            assert work.most_unread <= size + 1, f"{work.most_unread} were read and not taken"


def works_before(work: works.Work) -> Iterator[Any]:
    """Give what comes before an error."""
    return work.plain()


@contextlib.contextmanager
def patched(simulation: Simulation) -> Iterator[None]:
    """Have parcoll wait in virtual time, and run isolated tasks in the worker itself."""
    wait_for = receiving.nesting.wait_for
    isolated, joins = session.run_isolated, session.join_isolated
    enter, chance = session.enter_task, policy._random
    receiving.nesting.wait_for = simulation.wait_for
    session.run_isolated, session.join_isolated = run_beside, join_kept
    session.enter_task, policy._random = lambda: None, simulation.rng  # type: ignore[assignment]
    timing._seconds.clear()
    try:
        yield
    finally:
        receiving.nesting.wait_for = wait_for
        session.run_isolated, session.join_isolated = isolated, joins
        session.enter_task, policy._random = enter, chance


def run_beside(
    shared: Any, place: Any, keep: bool, elements: Any, budget: Any, ticket: Any, *share: Any
) -> Any:
    """Run a partition as `isolation.run_isolated` does, without another process."""
    return run_partition(shared, place, keep, elements, budget, None, ticket, *share)


def run(seed: int) -> Simulation:
    """Run the story of a seed; AssertionError if something is wrong in it."""
    random.seed(seed)
    simulation = Simulation(seed)
    try:
        simulation.run()
    except BaseException as error:
        error.add_note(simulation.story())
        raise
    finally:
        simulation.clock.close()
        losses._told.clear()
        outcomes.under_way.clear()
        outcomes.mailbox.clear()
    return simulation


def fresh(seconds: float, start: int) -> tuple[int, float]:
    """Run seeds one after the other, for so long; return how many, and how long it took."""
    began, number = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run(start + number)
        number += 1
    return number, time.perf_counter() - began


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--start", type=int, default=int(time.time() * 1000) % 10**12)
    parser.add_argument("--seed", type=int)
    chosen = parser.parse_args()
    logging.getLogger("parcoll").setLevel(logging.CRITICAL)
    if chosen.seed is not None:
        print(run(chosen.seed).story())
        return
    done, took = 0, 0.0
    while took < chosen.seconds:
        number, seconds = fresh(min(60.0, chosen.seconds - took), chosen.start + done)
        done, took = done + number, took + seconds
        print(f"{done:,} stories from {chosen.start} on were right: {done / took:,.0f} a second", flush=True)


if __name__ == "__main__":
    main()
