"""What is written: Markdown tables from the figures of a results file. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
NOT_RIVALS = ("parcoll", "remote parcoll", "serial", "bare processes")
SUMMARIES: tuple[Callable[[Sequence[float]], float], ...] = (min, statistics.median)


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heading, rule, *lines)) + "\n"


def seconds(value: float) -> str:
    """Return three significant digits, never more than milliseconds' worth."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def two(values: Sequence[float], show: Callable[[float], str] = seconds) -> str:
    """Return minimum and median."""
    return " / ".join(show(summary(values)) for summary in SUMMARIES)


def contest(rows: Sequence[Row]) -> str:
    """Return a table with a line for each contender and a column for each workload, then the ratios."""
    labels: list[str] = []
    for row in rows:
        labels.extend(label for label in map(label_of, row["contenders"]) if label not in labels)
    lines = [[label, *[cell(best_of(row, label), label) for row in rows]] for label in labels]
    lines.append(["**parcoll / best peer**", *[f"**{against_best(row)}**" for row in rows]])
    lines.append(["the best peer", *[names_of_best(row) for row in rows]])
    lines.append(["parcoll / bare processes", *[against(row, "bare processes") for row in rows]])
    lines.append(["serial / parcoll", *[against(row, "parcoll", "serial") for row in rows]])
    remote = [against(row, "remote parcoll") for row in rows]
    if any(remote):
        lines.append(["parcoll / remote parcoll", *remote])
    return table(["seconds: minimum / median", *[row["title"] for row in rows]], lines)


def label_of(contender: Row) -> str:
    """Return the line that a contender stands in: the chunk sizes of one peer share one."""
    from peers import PEERS

    peer = contender["peer"]
    if contender["chunk"] is not None:
        return f"{peer}, tuned"
    return f"{peer}, default" if PEERS[peer].tuned else peer


def best_of(row: Row, label: str) -> Row | None:
    """Return the contender that a line shows: of a tuned peer's, the one that was kept to the end."""
    mine = [contender for contender in row["contenders"] if label_of(contender) == label]
    timed = [contender for contender in mine if contender["seconds"]]
    if timed:
        return max(timed, key=lambda c: (len(c["seconds"]), -statistics.median(c["seconds"])))
    return mine[0] if mine else None


def cell(contender: Row | None, label: str) -> str:
    if contender is None:
        return ""
    if not contender["seconds"]:
        return contender["note"].split(":")[0]
    text = two(contender["seconds"])
    if contender["share"] > 1:
        text = f"≈ {text} [x{contender['share']}]"
    if label.endswith("tuned"):
        text += f" ({contender['chunk']:,})" if contender["chunk"] else " (tasks)"
    if contender["note"].startswith("over"):
        text += " (one run)"
    return text


def against(row: Row, rival: str, who: str = "parcoll") -> str:
    """Return the ratio of two lines, by minimum and by median."""
    mine, other = best_of(row, label_for(row, who)), best_of(row, label_for(row, rival))
    if not (mine and other and mine["seconds"] and other["seconds"]):
        return ""
    return " / ".join(f"{summary(mine['seconds']) / summary(other['seconds']):.2f}" for summary in SUMMARIES)


def label_for(row: Row, peer: str) -> str:
    return next((label_of(c) for c in row["contenders"] if c["peer"] == peer), peer)


def rivals(row: Row) -> list[Row]:
    """Return each peer's lines that count: measured in full, serial and bare processes apart."""
    labels = {label_of(c) for c in row["contenders"] if c["peer"] not in NOT_RIVALS}
    best = [best_of(row, label) for label in sorted(labels)]
    return [contender for contender in best if contender and contender["seconds"] and contender["share"] == 1]


def best_rivals(row: Row) -> list[Row]:
    """Return the rival with the least minimum, and the one with the least median."""
    found = rivals(row)
    return [min(found, key=lambda c: summary(c["seconds"])) for summary in SUMMARIES] if found else []


def against_best(row: Row) -> str:
    mine = best_of(row, "parcoll")
    pairs = zip(SUMMARIES, best_rivals(row), strict=False)
    if not (mine and mine["seconds"]):
        return ""
    return " / ".join(f"{summary(mine['seconds']) / summary(best['seconds']):.2f}" for summary, best in pairs)


def names_of_best(row: Row) -> str:
    return " / ".join(dict.fromkeys(label_of(contender) for contender in best_rivals(row)))


def document(sections: Sequence[tuple[Any, Mapping[str, Row]]], plot: str | None) -> str:
    """Return the whole report: a section for each question module, from its docstring and its tables."""
    parts = ["# Benchmarks\n\nWritten by `python benchmarks`; how to read it: `benchmarks/README.md`.\n"]
    parts.append(origins([row for _, rows in sections for row in rows.values()]))
    if plot:
        parts.append(f"![each contender's median, parcoll marked]({plot})\n")
    for module, rows in sections:
        question, _, details = module.__doc__.strip().partition("\n\n")
        parts.append(f"## {question}\n\n{details.strip()}\n")
        parts.append(module.tables(rows))
    return "\n".join(parts).rstrip() + "\n"


def origins(rows: Sequence[Row]) -> str:
    """Return where the figures come from: rows that were measured elsewhere are named with their titles."""
    found: dict[str, list[str]] = {}
    for row in rows:
        about = row["about"]
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        origin = (
            f"{about['machine']}; Python {about['python']}; {versions}; {about['date']}, {about['runs']} runs"
        )
        found.setdefault(origin, []).append(row["title"])
    if len(found) == 1:
        return f"Measured on {next(iter(found))}.\n"
    return "\n".join(f"- {'; '.join(titles)}: {origin}" for origin, titles in found.items()) + "\n"
