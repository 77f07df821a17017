"""What does more cost: more elements, more steps, more workers?

`x + 1` on ten thousand to ten million elements, ten steps against one, and one worker against two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import report
from measuring import Bench, Contender, about, compare

ROWS = ("growth", "steps", "workers")
COUNTS = (10_000, 100_000, 1_000_000, 10_000_000)
STEPS = (1, 10)
CORES = os.cpu_count() or 1


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    for row, figures in (("growth", measure_growth), ("steps", measure_steps), ("workers", measure_workers)):
        if bench.wants(row):
            yield row, {"about": about(bench)} | figures(bench)


def measure_growth(bench: Bench) -> dict[str, Any]:
    """Return seconds by number of elements and peer."""
    sizes = {}
    for count in COUNTS:
        contenders = [Contender(peer) for peer in ("serial", "parcoll", "Pool") if peer in bench.taking_part]
        compare(bench, "increment", contenders, scale=bench.scale, count=count)
        sizes[str(count // bench.scale)] = {c.peer: c.seconds for c in contenders}
    return {"title": "`x + 1`", "sizes": sizes}


def measure_steps(bench: Bench) -> dict[str, Any]:
    """Return seconds by number of chained steps, for parcoll and for the builtin map in itself."""
    steps = {}
    for number in STEPS:
        contenders = [Contender(peer) for peer in ("serial", "parcoll") if peer in bench.taking_part]
        compare(bench, "steps", contenders, scale=bench.scale, steps=number)
        steps[str(number)] = {c.peer: c.seconds for c in contenders}
    return {"title": "chained steps `x + 1`", "steps": steps, "elements": 1_000_000 // bench.scale}


def measure_workers(bench: Bench) -> dict[str, Any]:
    """Return seconds by number of workers: powers of two, and all cores."""
    if "parcoll" not in bench.taking_part:
        return {"title": "", "workers": {}}
    numbers = sorted({CORES, *(2**power for power in range(CORES.bit_length()) if 2**power <= CORES)})
    contenders = [Contender("parcoll", arguments={"n_workers": number}) for number in numbers]
    serial = [Contender("serial")] if "serial" in bench.taking_part else []
    title = compare(bench, "short", serial + contenders, scale=bench.scale, speed=bench.speed)
    bench.end_drivers()  # several clusters at a time are for this row only
    workers = {str(number): c.seconds for number, c in zip(numbers, contenders, strict=True)}
    return {"title": title, "workers": workers, "serial": serial[0].seconds if serial else []}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    shown = {"growth": growth_table, "steps": steps_table, "workers": workers_table}
    return "\n".join(shown[row](rows[row]) for row in ROWS if row in rows)


def growth_table(row: dict[str, Any]) -> str:
    peers = list(dict.fromkeys(peer for times in row["sizes"].values() for peer in times))
    lines = []
    for count, times in row["sizes"].items():
        cells = [two_micro(times[peer], int(count)) if times.get(peer) else "" for peer in peers]
        lines.append([f"{int(count):,}", *cells])
    return report.table(["elements; µs for each: minimum / median", *peers], lines)


def two_micro(seconds: list[float], count: int) -> str:
    return report.two([value * 1e6 / count for value in seconds], lambda value: f"{value:.3f}")


def steps_table(row: dict[str, Any]) -> str:
    few, many = (str(number) for number in STEPS)
    between = (STEPS[1] - STEPS[0]) * row["elements"]
    lines = []
    for peer in row["steps"][few]:
        less, more = row["steps"][few][peer], row["steps"][many][peer]
        extra = [(summary(more) - summary(less)) * 1e6 / between for summary in report.SUMMARIES]
        cores = CORES if peer == "parcoll" else 1
        lines.append(
            [
                {"serial": "nested builtin `map`"}.get(peer, peer),
                report.two(less),
                report.two(more),
                " / ".join(f"{value:.3f}" for value in extra),
                " / ".join(f"{value * cores:.3f}" for value in extra),
            ]
        )
    heading = [f"{row['elements']:,} elements", f"{few} step, s", f"{many} steps, s"]
    heading += ["extra µs a step and element", "times cores used"]
    return report.table(heading, lines)


def workers_table(row: dict[str, Any]) -> str:
    if not row["workers"]:
        return ""
    alone = row["workers"]["1"]
    lines = [["serial", report.two(row["serial"]), ""]] if row["serial"] else []
    for number, seconds in row["workers"].items():
        ratio = " / ".join(f"{summary(alone) / summary(seconds):.2f}" for summary in report.SUMMARIES)
        lines.append([f"{number} worker{'s' if number != '1' else ''}", report.two(seconds), ratio])
    return report.table([row["title"], "seconds: minimum / median", "times as fast as 1 worker"], lines)
