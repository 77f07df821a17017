"""What does it cost to move data there and back?

300 NumPy arrays of 1 MiB, doubled: the work itself takes 1 ms, or less.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import report
from measuring import Bench, Contender, about, compare, contenders_for, tell

ROWS = ("arrays",)


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the row's figures."""
    if not bench.wants("arrays"):
        return
    if find_spec("numpy") is None:
        tell("numpy is not installed: no arrays")
        return
    contenders = [c for c in contenders_for(bench, "arrays", {}) if c.peer != "bare processes"]
    if "Ray" in bench.taking_part:
        contenders.append(Contender("Ray", 0))  # tasks: its object store, where results stay
    title = compare(bench, "arrays", contenders, scale=bench.scale)
    results = [contender.as_result() for contender in contenders]
    yield "arrays", {"title": title, "about": about(bench), "contenders": results}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    return report.contest([rows[row] for row in ROWS if row in rows])
