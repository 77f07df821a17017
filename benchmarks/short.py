"""How much of a short job is lost, from a list and from a generator?

Jobs of a tenth of a second to one and a half, for one process: what people run all day.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import report
from measuring import Bench, about, compare, contenders_for

JOBS = ((0.1, 1), (0.4, 1), (0.4, 10), (1.5, 1), (1.5, 10))  # seconds of the job, milliseconds of an element
ROWS = {
    f"{seconds:g}s-{milliseconds}ms-{'generator' if stream else 'list'}": (seconds, milliseconds, stream)
    for (seconds, milliseconds), stream in itertools.product(JOBS, (False, True))
}


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each row's figures."""
    for row in filter(bench.wants, ROWS):
        seconds, milliseconds, stream = ROWS[row]
        contenders = contenders_for(bench, "job", {}, length=seconds, milliseconds=milliseconds)
        parameters = {"length": seconds, "milliseconds": milliseconds, "stream": stream}
        title = compare(
            bench, "job", contenders, rehearsed=True, scale=bench.scale, speed=bench.speed, **parameters
        )
        yield (
            row,
            {"title": title, "about": about(bench), "contenders": [c.as_result() for c in contenders]},
        )


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown: jobs from lists, then from generators."""
    kinds = [[row for row in ROWS if row in rows and ROWS[row][2] is stream] for stream in (False, True)]
    return "\n".join(report.contest([rows[row] for row in kind]) for kind in kinds if kind)
