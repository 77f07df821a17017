"""What does an element cost beyond its own work?

Increments, short and long work, uneven work, and the words of files that the workers read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import report
from measuring import Bench, about, compare, contenders_for
from workloads import words_digest

ROWS = ("increment", "short", "long", "skewed", "words")
# Elements for one of them cost so much that all of them would take minutes: these get one so many-th.
# For a million increments, an executor with its chunks of 1 takes some 200 s.
SHARES = {"increment": {"dask.bag": 10, "ProcessPoolExecutor": 50}, "short": {"ProcessPoolExecutor": 10}}
NEEDS_SPEED = {"short", "long", "skewed"}
WITHOUT_BARE = {"increment"}  # not work for the processor


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each row's figures."""
    for row in filter(bench.wants, ROWS):
        parameters: dict[str, Any] = {"scale": bench.scale}
        if row in NEEDS_SPEED:
            parameters["speed"] = bench.speed
        if row == "words":
            parameters["digest"] = words_digest(bench.scale)
        yield row, measure_row(bench, row, parameters)


def measure_row(bench: Bench, row: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return one row's figures: its title and each contender's seconds."""
    contenders = [
        contender
        for contender in contenders_for(bench, row, SHARES.get(row, {}))
        if not (row in WITHOUT_BARE and contender.peer == "bare processes")
    ]
    title = compare(bench, row, contenders, **parameters)
    return {"title": title, "about": about(bench), "contenders": [c.as_result() for c in contenders]}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    return report.contest([rows[row] for row in ROWS if row in rows])
