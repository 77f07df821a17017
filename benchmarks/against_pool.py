"""Compare parcoll, as it comes, with multiprocessing.Pool, its chunk size tuned or not.

    python benchmarks/against_pool.py [--runs 5] [--rows cold,increment] [--small]

How to read what it prints: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import functools
import gc
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from parcoll import connect, parallel

Seconds = dict[str, list[float]]  # by contender, one number a run


@dataclass(frozen=True)
class Row:
    """One workload: func mapped over source, and what tells a right answer from a wrong one."""

    title: str
    func: Callable[[Any], Any]
    source: list[Any]
    is_right: Callable[[list[Any]], bool]
    chunk_sizes: tuple[int, int, int]


def increment(x: int) -> int:
    return x + 1


def double(array: np.ndarray) -> np.ndarray:
    return array * 2


def spin(loops: int, x: int) -> int:
    """Return x + loops, the slow way.

    Counted, not timed: a wait for the clock would look just as parallel on one busy core.
    """
    for _ in range(loops):
        x += 1
    return x


def increment_row(scale: int) -> Row:
    count = 1_000_000 // scale
    want = list(range(1, count + 1))
    title = f"{count:,} x `x + 1`"
    return Row(title, increment, list(range(count)), want.__eq__, (1_000, 10_000, 50_000))


def arrays_row(scale: int) -> Row:
    count = max(8, 300 // scale)
    source = [np.full(131_072, float(number)) for number in range(count)]

    def is_right(answer: list[np.ndarray]) -> bool:
        return len(answer) == count and all(map(np.array_equal, answer, map(double, source)))

    return Row(f"{count:,} arrays of 1 MB, `a * 2`", double, source, is_right, (1, 4, 16))


def short_row(scale: int) -> Row:
    return spin_row(200_000 // scale, 20, (100, 1_000, 10_000))


def long_row(scale: int) -> Row:
    return spin_row(800 // scale, 5_000, (1, 8, 50))


def spin_row(count: int, microseconds: int, chunk_sizes: tuple[int, int, int]) -> Row:
    loops = loops_in(microseconds * 1e-6)
    want = list(range(loops, loops + count))
    func = functools.partial(spin, loops)
    title = f"{count:,} x {microseconds:,} µs"
    return Row(title, func, list(range(count)), want.__eq__, chunk_sizes)


def loops_in(seconds: float) -> int:
    """Return how many loops `spin` does in that time on this machine, undisturbed."""
    probe = 100_000
    best = min(timed(functools.partial(spin, probe, 0))[0] for _ in range(10))
    return max(1, round(probe * seconds / best))


ROWS: dict[str, Callable[[int], Row]] = {
    "increment": increment_row,
    "arrays": arrays_row,
    "short": short_row,
    "long": long_row,
}


def measure_warm(row: Row, pool: Any, runs: int) -> Seconds:
    """Time each contender with its processes up and the function's module loaded."""

    def timed_and_checked(name: str, call: Callable[[], list[Any]]) -> float:
        gc.collect()
        elapsed, answer = timed(call)
        if not row.is_right(answer):
            raise SystemExit(f"{row.title}: {name} gave a wrong answer")
        return elapsed

    contenders = {
        "serial": lambda: list(map(row.func, row.source)),
        "Pool.map": lambda: pool.map(row.func, row.source),
        "parcoll": lambda: list(parallel(row.source).map(row.func)),
    }
    for size in row.chunk_sizes:
        contenders[f"{size:,}"] = functools.partial(pool.map, row.func, row.source, size)
    seconds: Seconds = {name: [] for name in contenders}
    for name in in_turn(contenders, runs):
        seconds[name].append(timed_and_checked(name, contenders[name]))
    return seconds


SCRIPTS = {
    "serial": """
print(next(map(lambda x: x + 1, range(100))), flush=True)
""",
    "Pool.map": """
import multiprocessing

def increment(x):
    return x + 1

if __name__ == "__main__":
    with multiprocessing.Pool() as pool:
        print(pool.map(increment, range(100))[0], flush=True)
""",
    "LocalCluster": """
from distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster) as client:
            print(client.gather(client.map(lambda x: x + 1, range(100)))[0], flush=True)
""",
    "parcoll": """
from parcoll import parallel

print(next(iter(parallel(range(100)).map(lambda x: x + 1))), flush=True)
""",
}


def measure_cold(runs: int) -> tuple[Seconds, Seconds]:
    """Time whole scripts from their start: until the first result is read, and until they end."""
    until_result: Seconds = {name: [] for name in SCRIPTS}
    until_end: Seconds = {name: [] for name in SCRIPTS}
    for name in in_turn(SCRIPTS, runs):
        result, end = run_script(name)
        until_result[name].append(result)
        until_end[name].append(end)
    return until_result, until_end


def run_script(name: str) -> tuple[float, float]:
    with tempfile.TemporaryFile() as complaints:
        started = time.perf_counter()
        command = [sys.executable, "-c", SCRIPTS[name]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints) as script:
            line = script.stdout.readline() if script.stdout else b""
            until_result = time.perf_counter() - started
            script.communicate()
        until_end = time.perf_counter() - started
        if line != b"1\n" or script.returncode:
            complaints.seek(0)
            sys.stderr.write(complaints.read().decode(errors="replace"))
            raise SystemExit(f"cold: {name} printed {line!r} and ended with {script.returncode}")
    return until_result, until_end


def in_turn(names: Any, runs: int) -> list[str]:
    """Return the order of play: all once a run, with another one first each time.

    So a slow minute of the machine hits them all, and nobody is always after the same one.
    """
    order = list(names)
    turns = [order[run % len(order) :] + order[: run % len(order)] for run in range(runs)]
    return [name for turn in turns for name in turn]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


COLUMNS = ("serial", "Pool.map", "Pool.map, best chunksize", "LocalCluster", "parcoll")


def heading() -> str:
    names = ["seconds: min / median", *COLUMNS, "parcoll / Pool.map", "parcoll / best"]
    return line(names) + "\n" + line("---" for _ in names)


def table_line(title: str, seconds: Seconds) -> str:
    """Return a row of the table; the best chunk size is the one with the smallest median."""
    tuned = [name for name in seconds if name.replace(",", "").isdigit()]
    best = min(tuned, key=lambda name: statistics.median(seconds[name]), default="")
    cells = [title]
    for name in COLUMNS:
        if name in seconds:
            cells.append(two(lambda summary, name=name: summary(seconds[name])))
        elif name.endswith("chunksize") and best:
            cells.append(f"{two(lambda summary: summary(seconds[best]))} ({best})")
        else:
            cells.append("")
    for rival in ("Pool.map", best):
        cells.append(
            two(lambda summary, rival=rival: summary(seconds["parcoll"]) / summary(seconds[rival]))
            if rival
            else ""
        )
    return line(cells)


def two(figure: Callable[[Callable[[list[float]], float]], float]) -> str:
    return f"{figure(min):.2f} / {figure(statistics.median):.2f}"


def line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def parse_arguments() -> argparse.Namespace:
    known = ["cold", *ROWS]
    parser = argparse.ArgumentParser(description="Compare parcoll with multiprocessing.Pool.")
    parser.add_argument("--runs", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument(
        "--rows", default=",".join(known), help="which, with commas between (default: %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="a hundredth of the data, once: answers only")
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(known):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.runs < 1:
        parser.error("--runs: at least 1")
    return options


def main() -> None:
    options = parse_arguments()
    scale, runs = (100, 1) if options.small else (1, options.runs)

    def report(title: str, seconds: Seconds) -> None:
        print(f"{title}: right" if options.small else table_line(title, seconds), flush=True)

    if not options.small:
        print(
            f"{platform.platform()}, {os.cpu_count()} processors, Python"
            f" {platform.python_version()}, distributed {version('distributed')}, {runs} runs\n"
        )
        print(heading(), flush=True)
    if "cold" in options.rows:
        until_result, until_end = measure_cold(runs)
        report("cold script, first result", until_result)
        report("cold script, whole", until_end)
    warm = [name for name in options.rows if name != "cold"]
    if not warm:
        return
    # The pool first: it forks, and a process with the cluster's threads should not.
    with multiprocessing.Pool() as pool, connect():
        pool.map(increment, range(1_000))
        list(parallel(range(1_000)).map(increment))
        for name in warm:
            row = ROWS[name](scale)
            report(row.title, measure_warm(row, pool, runs))


if __name__ == "__main__":
    main()
