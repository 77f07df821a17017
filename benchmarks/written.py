"""What does it take to make a million records and have them in one file?

Each contender makes and encodes records as it can, and one process writes what comes back. parcoll has a call
for it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import report
from children import ChildError
from measuring import Bench, about, check, in_turn, tell
from peers import Peer

ROWS = ("jsonl", "parquet")
COUNT = 1_000_000
PATIENCE = 120.0
NOT_HERE = ("bare processes", "pseq", "Ray", "mpire")


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    peers = [peer for peer in bench.taking_part if peer not in NOT_HERE]
    for row in filter(bench.wants, ROWS):
        if row == "parquet" and find_spec("pyarrow") is None:
            tell("pyarrow is not installed: no parquet is written")
            continue
        count = COUNT // bench.scale
        found: dict[str, list[float]] = {peer: [] for peer in peers}
        notes: dict[str, str] = {}
        for run in range(bench.runs):
            for peer in (peer for peer in in_turn(peers, run) if peer not in notes):
                try:
                    answer = bench.driver(peer).ask(PATIENCE, do="written", format=row, count=count)
                except (ChildError, TimeoutError) as error:
                    bench.end_driver(peer, 0)
                    if peer == "parcoll":
                        raise
                    notes[peer] = "failed" if isinstance(error, ChildError) else f"> {PATIENCE:.0f} s"
                    continue
                check(f"written: {peer}", answer)
                found[peer].append(answer["seconds"])
            if not bench.small:
                tell(f"written: {row}, run {run + 1} of {bench.runs}")
        title = f"{count:,} records in one file of {row}"
        yield row, {"title": title, "about": about(bench), "found": found, "notes": notes}


def write(peer: Peer, format: str, count: int) -> dict[str, Any]:
    """Time it in a driver."""
    assert peer.map(abs, list(range(-4, 4)), 1) == [4, 3, 2, 1, 0, 1, 2, 3]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out")
        started = time.perf_counter()
        if peer.name.endswith("parcoll"):
            from parcoll import parallel

            getattr(parallel(range(count)).map(record), f"write_{format}")(path)
        elif format == "jsonl":
            with open(path, "w", encoding="ascii") as file:
                file.writelines(peer.map(line, range(count), None))
        else:
            import pyarrow.parquet

            rows = peer.map(record, range(count), None)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "right": _is_right(path, format, count)}


def record(x: int) -> dict[str, Any]:
    return {"id": x, "name": f"name {x}", "values": [x, 2 * x, 3 * x], "text": "x" * 80}


def line(x: int) -> str:
    return json.dumps(record(x)) + "\n"


def _is_right(path: str, format: str, count: int) -> bool:
    if format == "jsonl":
        with open(path, encoding="ascii") as file:
            return all(found == line(x) for x, found in zip(range(count), file, strict=True))
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return table.column("id").to_pylist() == [*range(count)] and table.slice(count - 1).to_pylist() == [
        record(count - 1)
    ]


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    parts = []
    for row in (rows[name] for name in ROWS if name in rows):
        lines = [
            [peer, report.two(times) if times else row["notes"].get(peer, "")]
            for peer, times in row["found"].items()
        ]
        table = report.table(["seconds: minimum / median", row["title"]], lines)
        parts.append(f"{row['title']}:\n\n{table}")
    return "\n".join(parts)
