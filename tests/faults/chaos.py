"""A soak: evaluations of every kind on a local cluster whose processes are killed and stopped at random.

    python tests/faults/chaos.py --seconds 600 --seed 7 --clients 2

The seed decides when something happens, what, and to whom (by role, and by number among the workers); the
user's process, which runs this, is never a victim. Every result is compared with what plain Python makes
of the same element, in order, as it comes. Ends with a table, and with code 1 where anything was off.

Workers have little memory, the wall clock jumps, and for some seconds no shared memory is to be had. Where
this runs as root, there is a disk with little room too, and the same is evaluated by two users on several
hosts that are cut off at random (`cut_off.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import faulthandler
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

from clocks import WallClock

CLOCK = WallClock(Path(tempfile.mkdtemp(prefix="soak-clock-")))
CLOCK.here()  # before anybody here keeps the real one for himself

import cut_off
import hosts
import psutil
from evaluations import KINDS, Client, Found
from victims import Victims, stop_for_a_while, strike

from parcoll import Connection, connect

PATIENCE = 180.0  # seconds without one result from a client, and it hangs
# What may grow from the warm-up to the end: pools of threads that dask fills one by one, segments of
# shared memory that are kept for later, and what the allocator keeps. One of each for a kill is more.
MEMORY = "700 MiB"  # of each worker
ROOM = "6m"  # on the small disk
MORE_THREADS, MORE_DESCRIPTORS, MORE_MIB = 12, 40, 60
SHIFTS = (-31_536_000, -7_200, -3, 0, 3, 7_200, 31_536_000)  # seconds by which the wall clock is wrong


# What happens -----------------------------------------------------------------------------------------


class Chaos:
    """Strikes at random; the seed decides when, how, and whom."""

    ROLES = ("worker", "scheduler", "host")

    def __init__(self, seed: int, every: float, connection: Connection, memory: SharedMemory) -> None:
        self.random = random.Random(seed)
        self.every = every
        self.victims = Victims(connection)
        self.memory = memory
        self.killed: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()
        self.jumps = 0  # of the wall clock
        self.hosts: set[int] = set()

    def pause(self) -> float:
        """Return how long nothing happens."""
        return self.random.uniform(0.2, 2 * self.every - 0.2)

    def strike(self) -> None:
        """Let one thing happen. What is drawn does not depend on who is there."""
        kinds = {"kill": 12, "two": 2, "all workers": 1, "stop": 3, "clock": 2, "no memory": 2}
        (what,) = self.random.choices(list(kinds), list(kinds.values()))
        roles = self.random.choices(self.ROLES, [6, 1, 1], k=2)
        numbers = [self.random.randrange(2**16) for _ in roles]
        seconds = self.random.uniform(0.2, 3)
        shift = self.random.choice(SHIFTS)
        if what == "clock":
            self.jumps += 1
            CLOCK.set(shift)
            return
        if what == "no memory":
            self.memory.full_for(3 * seconds)
            return
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


class SharedMemory:
    """In its block no shared memory is to be had now and then. What is there stays."""

    def __init__(self) -> None:
        self.times = self.refused = 0
        self._until = 0.0
        self._make = os.memfd_create

    def full_for(self, seconds: float) -> None:
        """Give no more of it for so long."""
        self.times += 1
        self._until = time.monotonic() + seconds

    def _made(self, name: str, *flags: int) -> int:
        if time.monotonic() < self._until:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._make(name, *flags)

    def __enter__(self) -> SharedMemory:
        os.memfd_create = self._made  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        os.memfd_create = self._make


@contextlib.contextmanager
def small_disk() -> Iterator[Path | None]:
    """Give a folder on a disk that is soon full; None where that cannot be had."""
    folder = tempfile.mkdtemp(prefix="soak-small-")
    mount = ("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder)
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield Path(folder) if mounted else None
    finally:
        if mounted:
            subprocess.run(("umount", folder), check=True)
        os.rmdir(folder)


def soak(seconds: float, seed: int, clients: int, workers: int, every: float, on_hosts: bool) -> int:
    """Run for that long; return the exit code."""
    found, ending = Found(), threading.Event()
    started = time.monotonic()
    beside = cut_off.CutOff(seconds, seed) if on_hosts else None
    with (
        small_disk() as small,
        SharedMemory() as memory,
        connect(n_workers=workers, memory_limit=MEMORY) as connection,
    ):
        chaos = Chaos(seed, every, connection, memory)
        running = [Client(number, found, ending, small) for number in range(clients)]
        if beside is not None:
            beside.start()
        for client in running:
            client.start()
        first: Size | None = None
        peak = 0
        due = started + chaos.pause()
        # A short soak on a slow machine goes on until there is something to be checked.
        while (now := time.monotonic()) < started + seconds or not found.begun:
            # The most of all that time: while a cluster is replaced there is little.
            warm = len(found.evaluations) >= KINDS or now > started + seconds / 2
            if first is None or not warm:  # memory, threads and descriptors come to what they stay at
                first = Size.now().or_more(first or Size(0, 0, 0))
            if now >= due:
                chaos.strike()
                due = time.monotonic() + chaos.pause()
            peak = max(peak, tree_mib())
            hung = [client.name for client in running if now - client.last_result > PATIENCE]
            if hung:
                found.off(f"no result for {PATIENCE:g} s: {hung}")
                faulthandler.dump_traceback()
                break
            time.sleep(max(0.0, min(due - time.monotonic(), 0.25)))
        ending.set()
        for client in running:
            client.join(PATIENCE)
            if client.is_alive():
                found.off(f"{client.name} does not end")
        if beside is not None:
            beside.join()
            found.errors += beside.errors
            for name in ("lost", "doubled", "wrong"):
                setattr(found, name, getattr(found, name) + beside.numbers[name])
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
        "jumps of the wall clock": str(chaos.jumps),
        "no shared memory": f"{memory.times} times, {memory.refused} segments refused",
        "on hosts that are cut off": told_of(beside),
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


def told_of(beside: cut_off.CutOff | None) -> str:
    if beside is None:
        return "not tried"
    done = f"{beside.evaluations.total()} evaluations, {beside.numbers['checked']} results checked in order"
    return f"{text(beside.happened)}; {done}"


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
    parser.add_argument(
        "--hosts", action=argparse.BooleanOptionalAction, default=None, help="that are cut off"
    )
    given = parser.parse_args()
    on_hosts = hosts.why_not() is None if given.hosts is None else given.hosts
    seed = random.SystemRandom().randrange(10_000) if given.seed is None else given.seed
    path = (str(CLOCK.folder), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))  # of the processes of the cluster
    try:
        return soak(given.seconds, seed, given.clients, given.workers, given.every, on_hosts)
    finally:
        shutil.rmtree(CLOCK.folder)


if __name__ == "__main__":
    sys.exit(main())
