"""How much memory does a stream hold, however long it is?

20,000,000 elements from a generator through `map` and `filter`, consumed one by one; and gigabytes of
arrays of 1 MiB from a generator through `map`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import psutil
import report
from children import FOLDER, Child
from measuring import Bench, about, check, tell

ROWS = ("stream", "gigabytes")
MIB = 1 << 20
SAMPLE_EVERY = 0.25  # seconds; reading the memory maps of five processes takes some 10 ms


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures. These are long and steady: one run each."""
    if bench.peers is not None and "parcoll" not in bench.peers:
        return
    if bench.wants("stream"):
        yield "stream", measure_stream(bench)
    if bench.wants("gigabytes") and find_spec("numpy"):
        yield "gigabytes", measure_gigabytes(bench)


def measure_stream(bench: Bench) -> dict[str, Any]:
    """Return each process's resident memory where the script stops."""
    count = bench.elements // bench.scale
    points: list[int] = []
    resident: dict[str, list[float]] = {}
    with Child(str(FOLDER / "consumer.py"), "elements", str(count)) as child:
        while "at" in (answer := child.hear(600)):
            points.append(answer["at"])
            for role, process in roles(child).items():
                memory = process.memory_info().rss / MIB
                # A process that comes later, such as a worker that was replaced, shows a gap.
                resident.setdefault(role, [0.0] * (len(points) - 1)).append(memory)
            if not bench.small:
                tell(f"stream: {answer['at']:,} results")
            child.say(go="on")
        check("stream: parcoll", answer)
    title = f"{count:,} elements through `map` and `filter`"
    return {"title": title, "about": about(bench), "points": points, "resident": resident}


def roles(child: Child) -> dict[str, psutil.Process]:
    """Return the script's processes by role: its child is the host, which forks the scheduler first."""
    script = psutil.Process(child.process.pid)
    found = {"script": script}
    for host in script.children():
        found["host"] = host
        for number, process in enumerate(sorted(host.children(), key=lambda process: process.pid)):
            found[f"worker {number}" if number else "scheduler"] = process
    return found


def measure_gigabytes(bench: Bench) -> dict[str, Any]:
    """Return the memory of all processes together while the arrays go by."""
    count = int(bench.gigabytes * 1e9 / MIB / (10 if bench.small else 1)) // (10 if bench.small else 1)
    shared_before = shared_memory()
    samples: list[dict[str, float]] = []
    with Child(str(FOLDER / "consumer.py"), "arrays", str(count)) as child:
        answer = None
        while answer is None:
            with suppress(TimeoutError):
                answer = child.hear(SAMPLE_EVERY)
            samples.append(sample(child) | {"shared": shared_memory() - shared_before})
        check("gigabytes: parcoll", answer)
    return {
        "title": f"{count:,} arrays of 1 MiB ({count * MIB / 1e9:.1f} GB) through `map`",
        "about": about(bench),
        "seconds": answer["seconds"],
        "samples": samples,
    }


def sample(child: Child) -> dict[str, float]:
    """Return the MiB of all the script's processes; proportional: what several share counts once."""
    resident = proportional = 0.0
    for process in child.processes():
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            resident += memory.rss / MIB
            proportional += getattr(memory, "pss", memory.uss) / MIB
    return {"resident": resident, "proportional": proportional}


def shared_memory() -> float:
    """Return the MiB in use under /dev/shm, where there is one: segments that nobody maps are there too."""
    if not os.path.isdir("/dev/shm"):
        return 0.0
    usage = os.statvfs("/dev/shm")
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize / MIB


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    parts = []
    if "stream" in rows:
        parts.append(stream_table(rows["stream"]))
    if "gigabytes" in rows:
        parts.append(gigabytes_table(rows["gigabytes"]))
    return "\n".join(parts)


def stream_table(row: dict[str, Any]) -> str:
    heading = ["resident MiB", "at the first result", "at a tenth", "at half", "at the last", "growth"]
    heading += ["growth after a tenth"]
    lines = []
    for role, values in row["resident"].items():
        first, tenth, last = values[0], values[1], values[-1]
        shown = [f"{value:.1f}" for value in (first, tenth, values[len(values) // 2], last)]
        lines.append([role, *shown, f"{last - first:+.1f}", f"{last - tenth:+.1f}"])
    return f"{row['title']}:\n\n{report.table(heading, lines)}"


def gigabytes_table(row: dict[str, Any]) -> str:
    samples = row["samples"]
    later = samples[len(samples) // 2 :]
    kinds = {
        "resident, summed (RSS)": "resident",
        "proportional, summed (PSS)": "proportional",
        "/dev/shm": "shared",
    }
    lines = [
        [name, f"{max(s[kind] for s in samples):.0f}", f"{max(s[kind] for s in later):.0f}"]
        for name, kind in kinds.items()
    ]
    table = report.table(["MiB, all processes together", "peak", "peak of the second half"], lines)
    return f"{row['title']}, in {row['seconds']:.1f} s:\n\n{table}"
