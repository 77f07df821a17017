"""How it is measured: who takes part, whose turn it is, when to stop, what was right."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from children import FOLDER, Child, ChildError
from engines import ENGINES
from peers import PEERS, Peer, is_installed
from workloads import WORKLOADS, loops_in_a_second

T = TypeVar("T")
PACKAGES = ("dask", "distributed", "numpy", "joblib", "loky", "mpire", "ray", "pyfunctional")
LIMIT = 15.0  # seconds: who took longer gets no further turn on that workload
PATIENCE = 150.0  # seconds: who takes longer is ended


class WrongAnswer(Exception):
    """Somebody's result is not the right one: no figure means anything then."""


@dataclass
class Contender:
    """A peer with one setting, and its times for one workload."""

    peer: str
    chunk: int | None = None
    share: int = 1  # gets one so many-th of the elements, because it would take minutes for all
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    note: str = ""  # why there are no more runs

    @property
    def name(self) -> str:
        settings = [*([] if self.chunk is None else [f"{self.chunk:,}"]), *map(str, self.arguments.values())]
        return f"{self.peer} ({', '.join(settings)})" if settings else self.peer

    def as_result(self) -> dict[str, Any]:
        """Return what goes into the results file; `seconds` is for the whole workload."""
        seconds = [value * self.share for value in self.seconds]
        return {"peer": self.peer, "chunk": self.chunk, "share": self.share, "note": self.note} | {
            "seconds": seconds
        }


@dataclass
class Bench:
    """What was asked for on the command line, and the drivers that are up."""

    runs: int = 5
    small: bool = False
    rows: frozenset[str] | None = None
    peers: frozenset[str] | None = None
    gigabytes: float = 20.0
    elements: int = 20_000_000
    drivers: dict[str, Child] = field(default_factory=dict)

    @property
    def scale(self) -> int:
        return 100 if self.small else 1

    @cached_property
    def speed(self) -> float:
        """How many loops a second this machine does. Measured once, the same for all."""
        return loops_in_a_second()

    def wants(self, row: str) -> bool:
        return self.rows is None or row in self.rows

    @cached_property
    def taking_part(self) -> frozenset[str]:
        """The peers that were asked for and are installed; says once who is not."""
        return self._installed(PEERS)

    @cached_property
    def engines(self) -> frozenset[str]:
        """The same of those that do nothing but bring elements together by key."""
        return self._installed(ENGINES)

    def _installed(self, peers: Mapping[str, type[Peer]]) -> frozenset[str]:
        asked = [name for name in peers if self.peers is None or name in self.peers]
        installed = frozenset(name for name in asked if is_installed(peers[name]))
        for name in asked:
            if name not in installed:
                tell(f"{name} is not installed: left out")
        return installed

    def driver(self, peer: str, **arguments: Any) -> Child:
        """Return the process of this peer, which is started when first asked for."""
        key = f"{peer} {arguments}"
        if key not in self.drivers:
            self.drivers[key] = Child(str(FOLDER / "driver.py"), peer, json.dumps(arguments))
        return self.drivers[key]

    def end_driver(self, peer: str, seconds: float = 10, **arguments: Any) -> None:
        """End the process of this peer, if it is up, and all that it started."""
        child = self.drivers.pop(f"{peer} {arguments}", None)
        if child is not None:
            child.close(seconds)

    def end_drivers(self, seconds: float = 10) -> None:
        """End all of them."""
        while self.drivers:
            self.drivers.popitem()[1].close(seconds)


def tell(text: str) -> None:
    """Say how far it is, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def in_turn(players: Sequence[T], run: int) -> list[T]:
    """Return the order of play of one run: all once, with another one first each time.

    So a slow minute of the machine hits them all, and nobody is always after the same one.
    """
    first = run % len(players) if players else 0
    return [*players[first:], *players[:first]]


def contenders_for(bench: Bench, workload: str, shares: dict[str, int], **parameters: Any) -> list[Contender]:
    """Return all who take part in a workload: each untuned, and with three chunk sizes."""
    sizes = WORKLOADS[workload](scale=bench.scale, **parameters).chunk_sizes
    found = []
    for name in PEERS:
        if name not in bench.taking_part:
            continue
        if PEERS[name].default:
            found.append(Contender(name, share=shares.get(name, 1)))
        if PEERS[name].tuned:
            tried = sizes[1:2] if bench.small else sizes
            found.extend(Contender(name, chunk) for chunk in tried)
    return found


def compare(bench: Bench, workload: str, contenders: list[Contender], **parameters: Any) -> str:
    """Fill in the contenders' times, in turns, and return the workload's title.

    Each run has processes of its own. A process can be 15 % slower than its neighbour at the same loop for as
    long as it lives, by where its memory came to lie: drawn once, that would decide who is ahead.
    """
    title = ""
    for run in range(bench.runs):
        if not bench.small:  # where only answers count
            bench.end_drivers()
        for contender in in_turn(contenders, run):
            if contender.note:
                continue
            answer = measure(bench, workload, contender, **parameters)
            if contender.share == 1 and answer:
                title = answer["title"]
        done = [c for c in contenders if len(c.seconds) > run]  # in this run
        if not bench.small and done:
            tell(f"{workload}: run {run + 1} of {bench.runs}, {', '.join(map(latest, done))}")
        if run == 1:
            drop_lesser_chunks(contenders)
    return title


def latest(contender: Contender) -> str:
    return f"{contender.name} {contender.seconds[-1] * contender.share:.3f}"


def measure(bench: Bench, workload: str, contender: Contender, **parameters: Any) -> dict[str, Any] | None:
    """Give a contender its turn; returns what its driver answered, None if it came to nothing."""
    peer = contender.peer
    parameters["scale"] = parameters.get("scale", 1) * contender.share
    try:
        answer = bench.driver(peer, **contender.arguments).ask(
            PATIENCE, do="run", workload=workload, chunk=contender.chunk, **parameters
        )
    except TimeoutError:
        contender.note = f"> {PATIENCE:.0f} s"
        bench.end_driver(peer, 0, **contender.arguments)
        return None
    except ChildError as error:
        bench.end_driver(peer, 0, **contender.arguments)
        if peer == "parcoll":
            raise
        contender.note = f"failed: {str(error)[:200]}"
        tell(f"{workload}: {contender.name} {contender.note}")
        return None
    check(f"{workload}: {contender.name}", answer)
    contender.seconds.append(answer["seconds"])
    if answer["seconds"] > LIMIT and peer != "parcoll":
        contender.note = f"over {LIMIT:.0f} s: one run"
    if PEERS[peer].rests:
        bench.end_driver(peer, **contender.arguments)
    return answer


def drop_lesser_chunks(contenders: Iterable[Contender]) -> None:
    """Keep each peer's best chunk size after two runs of all three, and give only that the other turns."""
    tuned = [c for c in contenders if c.chunk is not None and c.seconds]
    for peer in {contender.peer for contender in tuned}:
        mine = [contender for contender in tuned if contender.peer == peer]
        best = min(mine, key=lambda contender: min(contender.seconds))
        for contender in mine:
            if contender is not best:
                contender.note = contender.note or "not the best chunk size"


def check(what: str, answer: dict[str, Any]) -> None:
    """Raise WrongAnswer unless the answer says that it was right."""
    if not answer["right"]:
        raise WrongAnswer(f"{what} gave a wrong answer")


def about(bench: Bench) -> dict[str, Any]:
    """Return where and when a figure was measured."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "runs": bench.runs,
    }


def processor() -> str:
    """Return the processor's name; Linux tells it in a file only."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
