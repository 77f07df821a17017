"""How many worker threads can one scheduler serve?

A real dask scheduler, simulated worker threads that sleep, and one script that streams elements through
them with parcoll's own partition sizes. What the scheduler uses of its one core, by number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import report
from children import FOLDER, Child
from measuring import Bench, about, check, tell

from parcoll.evaluation.sizing import TARGET_SECONDS, TASKS_A_SECOND

ROWS = ("load",)
THREADS = (2, 16, 64, 128, 256, 512)
A_WORKER = 8  # threads
PROCESSES = 2  # that the workers share
PAUSE = 0.1  # seconds an element
PATIENCE = 60.0
SCRIPT = str(FOLDER / "many_workers.py")


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the row's figures: one run each, since they are means over seconds."""
    if bench.peers is not None and "parcoll" not in bench.peers:
        return
    if bench.wants("load"):
        yield "load", measure_load(bench)


def measure_load(bench: Bench) -> dict[str, Any]:
    """Return what was used and done in each second, by number of threads."""
    loads = {}
    for threads in (2, 16) if bench.small else THREADS:
        timing = {"pause": PAUSE, "warm": 4.0, "measured": 6.0}
        if bench.small:
            timing = {"pause": 0.01, "warm": 0.2, "measured": 0.2}
        answer = run(threads, timing)
        check(f"load: parcoll with {threads} threads", answer)
        seconds = answer.pop("seconds")
        loads[str(threads)] = {
            name: answer[name] / seconds for name in ("scheduler", "client", "tasks", "elements")
        } | {"machine": answer["machine"]}
        if not bench.small:
            tell(f"load: {threads} threads, scheduler {loads[str(threads)]['scheduler']:.2f} of a core")
    title = f"elements of {PAUSE:g} s, results in order"
    return {"title": title, "about": about(bench) | {"runs": 1}, "loads": loads, "pause": PAUSE}


def run(threads: int, timing: dict[str, float]) -> dict[str, Any]:
    """Return what a script on a new cluster with so many threads answers."""
    each = min(threads, A_WORKER)
    workers = threads // each
    processes = min(workers, PROCESSES)
    with ExitStack() as stack:
        scheduler = stack.enter_context(Child(SCRIPT, "scheduler"))
        address = scheduler.hear(PATIENCE)["address"]
        shares = [workers // processes + (number < workers % processes) for number in range(processes)]
        started = [
            stack.enter_context(Child(SCRIPT, "workers", address, str(share), str(each))) for share in shares
        ]
        for child in started:
            child.hear(PATIENCE)
        client = stack.enter_context(Child(SCRIPT, "client", address, str(scheduler.process.pid)))
        psutil.cpu_percent()
        answer = client.ask(PATIENCE, do="stream", **timing)
        return answer | {"machine": psutil.cpu_percent() / 100}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    if "load" not in rows:
        return ""
    row = rows["load"]
    heading = ["threads", "of them busy", "tasks a second", "scheduler, cores", "scheduler, ms a task"]
    heading += ["script, ms a task", "predicted scheduler, cores, all busy", "whole machine busy"]
    return report.table(heading, [line(int(threads), load, row) for threads, load in row["loads"].items()])


def line(threads: int, load: dict[str, float], row: dict[str, Any]) -> list[str]:
    """Return the cells for one number of threads; predicted is for tasks of the length aimed at."""
    cost = load["scheduler"] / load["tasks"]
    return [
        str(threads),
        f"{load['elements'] * row['pause']:.0f}",
        f"{load['tasks']:.0f}",
        f"{load['scheduler']:.2f}",
        f"{cost * 1000:.2f}",
        f"{load['client'] / load['tasks'] * 1000:.2f}",
        f"{min(threads / TARGET_SECONDS, TASKS_A_SECOND) * cost:.2f}",
        f"{load['machine']:.0%}",
    ]
