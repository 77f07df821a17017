"""Table: the numbers of an evaluation (`Stats.snapshot`) as text, as HTML, and as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("step", "in", "out", "failed", "seconds", "mean", "share")
BUSY = 0.7  # utilisation of the workers; below, the source or the consumer may be the bottleneck
MUCH = 0.4  # of the time: something that takes at least this part is named
LONG = 1.0  # second of each thread's time; less says little
IDLE = 0.2  # of it, at most, a worker is busy with calls that wait
ADVICE = "with concurrency=, several of its calls run at the same time"
CUT = ("read_text", "read_jsonl", "read_csv")  # what reads files in parts, if it is told to
LEAST = 0.9995  # of a unit: the least that three digits show as 1 of it


def text(snapshot: dict[str, Any]) -> str:
    """Return the numbers as a table, with some lines above and below."""
    rows = [COLUMNS, *_rows(snapshot)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [row[0].ljust(widths[0]) + _right(row[1:], widths[1:]) for row in rows]
    return "\n".join([headline(snapshot), *aligned, *_details(snapshot), verdict(snapshot)])


def _right(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def html(snapshot: dict[str, Any]) -> str:
    """Return the numbers as an HTML fragment; everything in it is escaped."""
    from html import escape  # 5 ms, for notebooks only

    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(snapshot)
    )
    lines = [*_details(snapshot), verdict(snapshot)]
    failures = [f"{f['message']} ({f['note']})" for f in reversed(snapshot["failures"])]
    return (
        f"<div>{escape(headline(snapshot))}</div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + "".join(f"<div>{escape(line)}</div>" for line in lines)
        + "".join(f"<div><code>{escape(failure)}</code></div>" for failure in failures)
    )


def html_of(chain: str, snapshot: dict[str, Any]) -> str:
    """Return a chain as HTML, with its numbers if it was evaluated."""
    from html import escape  # as above

    numbers = "" if snapshot["state"] == "new" else html(snapshot)
    return f"<div><code>{escape(chain)}</code></div>{numbers}"


def headline(snapshot: dict[str, Any]) -> str:
    """Say how far the evaluation is: ``ended after 3.2 s: 1,000 of 1,000 elements, 312 a second``."""
    state = snapshot["state"]
    if state == "new":
        return "not evaluated yet"
    done, total, passed = snapshot["elements_in"], snapshot["total"], snapshot["seconds"]
    of = f" of {total:,}" if total is not None else ""
    what = f"{done:,}{of} element{'s' * ((done if total is None else total) != 1)}"
    rate = f", {done / passed:,.0f} a second" if passed > 0 and done else ""
    if snapshot.get("bytes_total"):
        read = snapshot["bytes_read"]
        what = f"{size(read)} of {size(snapshot['bytes_total'])}, {done:,}{of} files or parts of them"
        rate = f", {size(read / passed)} a second" if passed > 0 and done else ""
    failed = f", {snapshot['failed']:,} failed" if snapshot["failed"] else ""
    failed += f", {snapshot['resumed']:,} from the checkpoint" if snapshot.get("resumed") else ""
    failed += "".join(f", {remark}" for remark in troubles(snapshot))
    after = "for" if state == "running" else "after"
    return f"{state} {after} {duration(passed)}: {what}{rate}{failed}"


def troubles(snapshot: dict[str, Any]) -> list[str]:
    """Return what went wrong and was overcome, or is waited for: ``["3 retries", "1 process died"]``."""
    words = {
        "retries": ("retry", "retries"),
        "timeouts": ("call timed out", "calls timed out"),
        "deaths": ("process died", "processes died"),
        "losses": ("loss of the cluster", "losses of the cluster"),
        "recovered": ("partition sent again", "partitions sent again"),
    }
    found = [f"{snapshot[name]:,} {words[name][snapshot[name] != 1]}" for name in words if snapshot.get(name)]
    return found + ([f"waits for {snapshot['waiting_for']}"] if snapshot.get("waiting_for") else [])


def verdict(snapshot: dict[str, Any]) -> str:
    """Say where the time went: to the source, the consumer, one of the steps, or none of these."""
    passed, waited = snapshot["seconds"], snapshot["waited"]
    if snapshot.get("resumed") and not snapshot["partitions_done"]:
        return f"all {snapshot['resumed']:,} elements came from the checkpoint: nothing had to be evaluated"
    if not passed or not snapshot["partitions_done"]:
        return "nothing has been evaluated"
    if snapshot["utilisation"] < BUSY:
        whom, seconds = max(
            (("source", waited["source"]), ("consumer", waited["consumer"])), key=lambda pair: pair[1]
        )
        if seconds >= MUCH * passed and seconds >= waited["workers"]:
            return f"the {whom} is the bottleneck: {seconds / passed:.0%} of the time was waiting for it"
    parts = _parts(snapshot)
    if parts and snapshot["worker_seconds"]:
        label, seconds = max(parts, key=lambda part: part[1])
        share = seconds / snapshot["worker_seconds"]
        if share >= MUCH:
            more = f", and waits for most of it: {ADVICE}" if _waits(snapshot, label) else _few(snapshot)
            return f"`{label}` takes {min(share, 1):.0%} of the workers' time{more}"
        if sum(seconds for _, seconds in parts) < MUCH * snapshot["worker_seconds"]:
            return "most of the workers' time goes into moving the elements: the steps are cheap"
    return "no step takes most of the time"


def _few(snapshot: dict[str, Any]) -> str:
    """Say so where files came in fewer parts than there are threads, and this took long."""
    parts, threads = snapshot["partitions_done"], snapshot["threads"]
    first = next(iter(snapshot["steps"]), {"label": "", "left": 0})
    few = snapshot["state"] == "ended" and first["label"] in CUT and parts < min(threads, first["left"])
    if not few or snapshot["worker_seconds"] < LONG * parts:
        return ""
    return f", on {parts:,} of {threads:,} threads: a smaller blocksize= cuts so few files into more parts"


def _waits(snapshot: dict[str, Any], label: str) -> bool:
    """Tell whether the calls of a step are made one by one, and mostly wait."""
    seconds, busy = snapshot["worker_seconds"], snapshot.get("busy_seconds")
    one_by_one = any(step["label"] == label and not step.get("waits") for step in snapshot["steps"])
    long_enough = seconds > LONG * max(snapshot["threads"], 1)
    return one_by_one and busy is not None and long_enough and busy < IDLE * seconds


def duration(seconds: float) -> str:
    """Return seconds in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * LEAST:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} µs"


def size(nbytes: float) -> str:
    """Return bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{_three_digits(nbytes)} {unit}" if unit != "B" else f"{nbytes:.0f} B"
        nbytes /= 1024
    return f"{nbytes:,.1f} TiB"


def _three_digits(number: float) -> str:
    """Return three digits, or all digits of a large number, never an exponent as in 1e+03."""
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"


def _parts(snapshot: dict[str, Any]) -> list[tuple[str, float]]:
    parts = [(part["label"], part["seconds"]) for part in [*snapshot["steps"], *snapshot.get("made", ())]]
    return parts + ([(snapshot["fold"], snapshot["fold_seconds"])] if snapshot["fold"] else [])


def _rows(snapshot: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for step in snapshot["steps"]:
        counts = (f"{step[name]:,}" for name in ("entered", "left", "failed"))
        rows.append((step["label"], *counts, *_times(step["seconds"], step["entered"], snapshot)))
    for made in snapshot.get("made", ()):
        times = _times(made["seconds"], made["count"], snapshot)
        rows.append((made["label"], "", f"{made['count']:,}", "", *times))
    if snapshot["fold"]:
        folded = snapshot["elements_out"]
        times = _times(snapshot["fold_seconds"], folded, snapshot)
        rows.append((snapshot["fold"], f"{folded:,}", "", "", *times))
    return rows


def _times(seconds: float, elements: int, snapshot: dict[str, Any]) -> tuple[str, str, str]:
    all_seconds = snapshot["worker_seconds"]
    mean = duration(seconds / elements) if elements else ""
    share = f"{min(seconds / all_seconds, 1):.0%}" if all_seconds else ""
    return f"{seconds:,.2f}", mean, share


def _written(written: dict[str, Any]) -> str:
    rows, nbytes, seconds = written["rows"], size(written["bytes"]), duration(written["seconds"])
    return f"{rows:,} row{'s' * (rows != 1)} written, {nbytes} in whole files, which took {seconds}"


def _details(snapshot: dict[str, Any]) -> list[str]:
    if not snapshot["partitions"]:
        return []
    threads = f"{snapshot['threads']:,} worker thread{'s' * (snapshot['threads'] != 1)}"
    sizes, waited, written = snapshot["sizes"], snapshot["waited"], snapshot.get("written")
    spilled = snapshot.get("bytes_spilled", 0)
    return [
        *(() if written is None else [_written(written)]),
        f"{snapshot['partitions_done']:,} of {snapshot['partitions']:,} "
        f"partition{'s' * (snapshot['partitions'] != 1)} came back, of {sizes['smallest']:,} to "
        f"{sizes['largest']:,} element{'s' * (sizes['largest'] != 1)} (median {sizes['median']:,})",
        f"{size(snapshot['bytes_sent'])} sent, {size(snapshot['bytes_received'])} received; "
        f"{f'{size(spilled)} through a temporary file; ' if spilled else ''}"
        f"{threads}, busy {snapshot['utilisation']:.0%} of the time",
        f"waited {duration(waited['source'])} for the source, {duration(waited['workers'])} for the "
        f"workers, {duration(waited['consumer'])} for the consumer",
    ]
