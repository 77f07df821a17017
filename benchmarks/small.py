"""How long does an evaluation of ten quick elements take, once all processes are up?

What a library does for any evaluation, however small: round trips, and the messages of others.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import report
from measuring import Bench, about, check, in_turn, tell

ROWS = ("map", "calls")
PARCOLL = ("parcoll", "remote parcoll")
CALLS = ("list", "take", "first", "count", "reduce", "fold")
TIMES = 100  # evaluations of one turn
PATIENCE = 60.0
NOT_HERE = ("bare processes", "dask.bag", "pseq")  # these start their processes anew for each evaluation


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    if bench.wants("map"):
        peers = [peer for peer in bench.taking_part if peer not in NOT_HERE]
        yield "map", measured(bench, "`abs` of ten elements, again and again", [(p, "list") for p in peers])
    if bench.wants("calls"):
        peers = [peer for peer in PARCOLL if peer in bench.taking_part]
        chosen = [(peer, call) for peer in peers for call in CALLS]
        yield "calls", measured(bench, "each evaluating call on ten elements", chosen)


def measured(bench: Bench, title: str, chosen: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the seconds of each evaluation, by peer and call, in turns."""
    times = 5 if bench.small else TIMES
    seconds: dict[str, list[float]] = {f"{peer}, {call}": [] for peer, call in chosen}
    for run in range(bench.runs):
        for peer, call in in_turn(chosen, run):
            answer = bench.driver(peer).ask(PATIENCE, do="small", call=call, times=times)
            check(f"small: {peer}, {call}", answer)
            seconds[f"{peer}, {call}"] += answer["seconds"]
        if not bench.small:
            tell(f"small: run {run + 1} of {bench.runs}")
    return {"title": title, "about": about(bench), "seconds": seconds}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    parts = []
    for row in (rows[name] for name in ROWS if name in rows):
        lines = [
            [name, f"{1000 * min(seconds):.2f}", f"{1000 * statistics.median(seconds):.2f}"]
            for name, seconds in row["seconds"].items()
        ]
        table = report.table(["milliseconds an evaluation", "minimum", "median"], lines)
        parts.append(f"{row['title']}:\n\n{table}")
    return "\n".join(parts)
