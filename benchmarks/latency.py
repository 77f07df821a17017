"""How long does one wait for a result while the source still goes on?

The first result of a function that takes a second, from sources of any length; and each result of a
source that gives ten elements a second.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import report
from children import ChildError
from measuring import Bench, about, check, in_turn, tell

ROWS = ("first", "live")
STREAMING = ("parcoll", "Pool", "ProcessPoolExecutor", "joblib", "mpire")
SOURCES = (2, 1_000, 1_000_000, None)  # None: endless
PATIENCE = 30.0
# Its `map` reads the whole source before it returns; on an endless one it fills the memory.
NEVER = {("ProcessPoolExecutor", None)}


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    peers = [name for name in STREAMING if name in bench.taking_part]
    if bench.wants("first"):
        yield "first", measure_first(bench, peers)
    if bench.wants("live"):
        yield "live", measure_live(bench, peers)


def measure_first(bench: Bench, peers: list[str]) -> dict[str, Any]:
    """Return the seconds to the first result, by peer and source; instead of a number, why there is none."""
    pause = 0.05 if bench.small else 1.0
    sources = (2, 1_000, None) if bench.small else SOURCES
    waits: dict[str, dict[str, list[float] | str]] = {
        peer: {name_of(count): "never" if (peer, count) in NEVER else [] for count in sources}
        for peer in peers
    }
    for run in range(bench.runs):
        for peer in in_turn(peers, run):
            for count in sources:
                seconds = waits[peer][name_of(count)]
                if isinstance(seconds, str):
                    continue
                answer = ask(bench, peer, do="first", pause=pause, count=count)
                if isinstance(answer, str):
                    waits[peer][name_of(count)] = answer
                else:
                    seconds.append(answer["seconds"])
        if not bench.small:
            tell(f"first: run {run + 1} of {bench.runs}")
    return {"title": f"first result of a function of {pause:g} s", "about": about(bench), "waits": waits}


def measure_live(bench: Bench, peers: list[str]) -> dict[str, Any]:
    """Return how long after its element each result came, by peer."""
    interval, count = (0.02, 20) if bench.small else (0.1, 100)
    delays = {}
    for peer in peers:
        answer = ask(bench, peer, do="live", interval=interval, count=count)
        delays[peer] = answer if isinstance(answer, str) else answer["delays"]
        if not bench.small:
            tell(f"live: {peer}")
    title = f"{count} elements, {1 / interval:.0f} a second: result behind its element"
    return {"title": title, "about": about(bench), "delays": delays}


def ask(bench: Bench, peer: str, **command: Any) -> dict[str, Any] | str:
    """Return a peer's answer, or why there is none.

    Each question gets a process of its own: what a peer has read ahead for it ends with that.
    """
    try:
        answer = bench.driver(peer).ask(PATIENCE, **command)
    except (TimeoutError, ChildError) as error:
        bench.end_driver(peer, 0)
        if peer == "parcoll":
            raise
        tell(f"{peer}: {error}")
        return f"> {PATIENCE:.0f}" if isinstance(error, TimeoutError) else "failed"
    check(f"latency: {peer}", answer)
    bench.end_driver(peer, 3)
    return answer


def name_of(count: int | None) -> str:
    return "endless" if count is None else f"{count:,}"


def delay_cells(delays: list[float] | str) -> list[str]:
    summaries = (min, statistics.median, max)
    if isinstance(delays, str):
        return [delays] * len(summaries)
    return [f"{1000 * summary(delays):.1f}" for summary in summaries]


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    parts = []
    if "first" in rows:
        waits = rows["first"]["waits"]
        sources = list(next(iter(waits.values()), {}))
        heading = ["seconds: minimum / median", *[f"of {source}" for source in sources]]
        lines = [
            [
                peer,
                *[cell if isinstance(cell := mine[source], str) else report.two(cell) for source in sources],
            ]
            for peer, mine in waits.items()
        ]
        parts.append(f"{rows['first']['title']}:\n\n{report.table(heading, lines)}")
    if "live" in rows:
        lines = [[peer, *delay_cells(delays)] for peer, delays in rows["live"]["delays"].items()]
        table = report.table(["milliseconds", "minimum", "median", "maximum"], lines)
        parts.append(f"{rows['live']['title']}:\n\n{table}")
    return "\n".join(parts)
