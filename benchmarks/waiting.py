"""How long does it take to fetch pages from a server, fifty at the same time?

Nothing is computed: what a way costs above the pool of threads is the time in which fewer calls wait.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import report
from children import FOLDER
from measuring import Bench, about, check, in_turn, tell

ROWS = ("pages",)
PAGES = 300
PEERS = {"serial": "", "parcoll": "", "remote parcoll": "remote "}  # and what stands before the name of a way
PATIENCE = 120.0


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the row's figures."""
    peers = [peer for peer in PEERS if peer in bench.taking_part]
    if not bench.wants("pages") or not peers:
        return
    count = max(10, PAGES // bench.scale)
    found: dict[str, list[float]] = {}
    command = [sys.executable, str(FOLDER / "pages.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for run in range(bench.runs + 1):  # the first one brings all processes up
            for peer in in_turn(peers, run):
                answer = bench.driver(peer).ask(PATIENCE, do="pages", port=port, count=count)
                check(f"pages: {peer}", answer)
                for way, (seconds, _) in answer["seconds"].items():
                    times = found.setdefault(PEERS[peer] + way, [])
                    times += [seconds] if run else []
            if run and not bench.small:
                tell(f"pages: run {run} of {bench.runs}")
        assert server.stdin is not None
        server.stdin.close()
    title = f"{count} pages of 50 to 200 ms, one in twenty of which fails, fifty at a time"
    yield "pages", {"title": title, "about": about(bench), "found": found}


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    parts = []
    for row in rows.values():
        lines = [[way, report.two(times)] for way, times in row["found"].items()]
        parts.append(f"{row['title']}:\n\n{report.table(['seconds: minimum / median', ''], lines)}")
    return "\n".join(parts)
