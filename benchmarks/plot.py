"""The picture: a panel for each contest, a bar for each contender. Needs matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from report import best_of, label_of

COLOURS = {"parcoll": "#c44e52", "bare processes": "#8c8c8c", "serial": "#bcbcbc"}
OTHERS = "#4c72b0"
COLUMNS = 2


def draw(results: Mapping[str, Mapping[str, Any]], file: Path) -> bool:
    """Write the picture, if there is anything to draw; return whether there was."""
    panels = contests(results)
    if not panels:
        return False
    mpl.use("Agg")
    lines = ceil(len(panels) / COLUMNS)
    tallest = max(len(bars) for bars in panels.values())
    figure = Figure(figsize=(6.2 * COLUMNS, (0.9 + 0.21 * tallest) * lines), layout="constrained")
    axes = figure.subplots(lines, COLUMNS, squeeze=False)
    for place, (title, bars) in zip(axes.flat, panels.items(), strict=False):
        panel(place, title, bars)
    for place in list(axes.flat)[len(panels) :]:
        place.set_axis_off()
    figure.savefig(file, dpi=120)
    return True


def contests(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median seconds of each contender, by panel."""
    panels = {}
    for question in ("overhead", "short", "arrays"):
        for row in results.get(question, {}).values():
            best = {label: best_of(row, label) for label in map(label_of, row["contenders"])}
            panels[row["title"].replace("`x", "(x").replace("1`", "1)").replace("`", "")] = {
                label: statistics.median(c["seconds"]) for label, c in best.items() if c and c["seconds"]
            }
    for row in results.get("startup", {}).values():
        panels["cold script, to its end"] = {
            name: statistics.median(times["end"]) for name, times in row["scripts"].items()
        }
    return panels


def panel(place: Any, title: str, bars: Mapping[str, float]) -> None:
    """Draw one contest, the quickest on top."""
    names = sorted(bars, key=lambda name: -bars[name])
    values = [bars[name] for name in names]
    drawn = place.barh(names, values, color=[COLOURS.get(name, OTHERS) for name in names])
    place.bar_label(drawn, [f"{value:.3g}" for value in values], padding=2, fontsize=7)
    place.set_title(title, fontsize=10)
    place.tick_params(labelsize=7)
    if max(values) > 20 * min(values):
        place.set_xscale("log")  # else nothing could be seen beside somebody's minutes
        place.set_xlabel("median seconds, logarithmic", fontsize=7)
    else:
        place.set_xlabel("median seconds", fontsize=7)
    place.margins(x=0.12)
