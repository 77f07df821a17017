"""What does it cost that a function holds a large array, at its first evaluation and at the next ones?

The work itself is nothing: the function looks one number up.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import report
from children import ChildError
from measuring import Bench, about, check, in_turn, tell

SIZES = {"50MiB": 50, "300MiB": 300}
ROWS = tuple(SIZES)
AGAIN = 3
PATIENCE = 120.0
NOT_HERE = ("bare processes", "dask.bag", "pseq", "Ray")  # the first forks; the others take a minute each


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    if find_spec("numpy") is None:
        tell("numpy is not installed: nothing is captured")
        return
    peers = [peer for peer in bench.taking_part if peer not in NOT_HERE]
    for row in filter(bench.wants, ROWS):
        mebibytes = max(2, SIZES[row] // bench.scale)
        found: dict[str, dict[str, list[float]]] = {peer: {"first": [], "again": []} for peer in peers}
        notes: dict[str, str] = {}
        for run in range(bench.runs):
            for peer in in_turn(peers, run):
                if peer in notes:
                    continue
                try:
                    answer = bench.driver(peer).ask(
                        PATIENCE, do="captured", mebibytes=mebibytes, start=float(run), again=AGAIN
                    )
                except (ChildError, TimeoutError) as error:
                    bench.end_driver(peer, 0)
                    if peer == "parcoll":
                        raise
                    notes[peer] = "failed" if isinstance(error, ChildError) else f"> {PATIENCE:.0f} s"
                    continue
                check(f"captured: {peer}", answer)
                found[peer]["first"].append(answer["first"])
                found[peer]["again"] += answer["again"]
            if not bench.small:
                tell(f"captured: {row}, run {run + 1} of {bench.runs}")
        title = f"a function that holds an array of {mebibytes} MiB, on eight elements"
        yield row, {"title": title, "about": about(bench), "found": found, "notes": notes}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    parts = []
    for row in (rows[name] for name in ROWS if name in rows):
        lines = []
        for peer, times in row["found"].items():
            note = row["notes"].get(peer, "")
            lines.append([peer, *(report.two(times[key]) if times[key] else note for key in times)])
        table = report.table(["seconds: minimum / median", "first", "again"], lines)
        parts.append(f"{row['title']}:\n\n{table}")
    return "\n".join(parts)
