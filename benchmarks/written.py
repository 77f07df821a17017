"""What does it take to make a million records and have them in one file? And to read them back?

Each contender makes and encodes records as it can, and one process writes what comes back. parcoll has a call
for it. Then all add up a number of each record, as dicts where they have those. polars makes no dicts.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import report
from children import ChildError
from measuring import Bench, about, check, in_turn, tell
from peers import Peer

ROWS = ("jsonl", "parquet", "read-jsonl", "read-parquet")
COUNT = 1_000_000
PATIENCE = 120.0
NOT_HERE = ("bare processes", "pseq", "Ray", "mpire")
READERS = {"jsonl": ("serial", "parcoll", "remote parcoll", "dask.bag"), "parquet": ("serial", "parcoll")}
POLARS = "polars"  # reads in the driver of another one


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    writers = [peer for peer in bench.taking_part if peer not in NOT_HERE]
    for row in filter(bench.wants, ROWS):
        how, _, format = row.rpartition("-")
        peers = readers(writers, format) if how else writers
        if format == "parquet" and find_spec("pyarrow") is None:
            tell("pyarrow is not installed: no parquet is written")
            continue
        count = COUNT // bench.scale
        found: dict[str, list[float]] = {peer: [] for peer in peers}
        notes: dict[str, str] = {}
        for run in range(bench.runs):
            for peer in (peer for peer in in_turn(peers, run) if peer not in notes):
                try:
                    answer = _asked(bench, peer, how, format, count)
                except (ChildError, TimeoutError) as error:
                    bench.end_driver(_driver_of(peer), 0)
                    if peer == "parcoll":
                        raise
                    notes[peer] = "failed" if isinstance(error, ChildError) else f"> {PATIENCE:.0f} s"
                    continue
                check(f"written: {peer}", answer)
                found[peer].append(answer["seconds"])
            if not bench.small:
                tell(f"written: {row}, run {run + 1} of {bench.runs}")
        title = f"{count:,} records {'from' if how else 'in'} one file of {format}"
        yield row, {"title": title, "about": about(bench), "found": found, "notes": notes}


def readers(peers: list[str], format: str) -> list[str]:
    """Return who reads files of this format."""
    found = [peer for peer in peers if peer in READERS[format]]
    return [*found, POLARS] if found and find_spec(POLARS) else found


def _driver_of(peer: str) -> str:
    return "serial" if peer == POLARS else peer


def _asked(bench: Bench, peer: str, how: str, format: str, count: int) -> dict[str, Any]:
    more = {"engine": peer} if how else {}
    driver = bench.driver(_driver_of(peer))
    return driver.ask(PATIENCE, do=how or "written", format=format, count=count, **more)


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
            _write_table(path, peer.map(record, range(count), None))
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "right": _is_right(path, format, count)}


def read(peer: Peer, format: str, count: int, engine: str) -> dict[str, Any]:
    """Time in a driver how the records come back."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out")
        if format == "jsonl":
            with open(path, "w", encoding="ascii") as file:
                file.writelines(map(line, range(count)))
        else:
            _write_table(path, map(record, range(count)))
        peer.map(abs, list(range(-4, 4)), 1)
        started = time.perf_counter()
        found = READS[engine.rpartition(" ")[2], format](path)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "right": found == sum(range(count))}


def _number(row: dict[str, Any]) -> int:
    return int(row["id"])


def _read_lines(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return sum(json.loads(line)["id"] for line in file)


def _read_rows(path: str) -> int:
    import pyarrow.parquet

    return sum(map(_number, pyarrow.parquet.read_table(path).to_pylist()))


def _read_by_parcoll(format: str, path: str) -> int:
    import parcoll

    rows: Any = getattr(parcoll, f"read_{format}")(path)
    return int(rows.map(_number).sum())


def _read_by_bag(path: str) -> int:
    import dask.bag

    lines = dask.bag.read_text(path, blocksize="16 MiB")
    return int(lines.map(json.loads).map(_number).sum().compute())


def _read_by_polars(scan: str, path: str) -> int:
    import polars

    return int(getattr(polars, scan)(path).select(polars.col("id").sum()).collect().item())


READS: dict[tuple[str, str], Callable[[str], int]] = {
    ("serial", "jsonl"): _read_lines,
    ("serial", "parquet"): _read_rows,
    ("parcoll", "jsonl"): partial(_read_by_parcoll, "jsonl"),
    ("parcoll", "parquet"): partial(_read_by_parcoll, "parquet"),
    ("dask.bag", "jsonl"): _read_by_bag,
    (POLARS, "jsonl"): partial(_read_by_polars, "scan_ndjson"),
    (POLARS, "parquet"): partial(_read_by_polars, "scan_parquet"),
}


def _write_table(path: str, rows: Iterable[Any]) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=2**17)


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
