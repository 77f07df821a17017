"""Draws the pictures of the site anew: `python docs/pictures.py`, with parcoll installed.

The bar is what a script writes to a terminal, the notebook what one shows of a collection (with Chromium).
The drawing of the rooms is that of `architecture.md`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPT = """
from parcoll import parallel

def parse(line):
    sum(range(60_000))  # stands for work
    return int(line)

def valid(number):
    return number % 97

lines = [str(n) if n % 1000 != 999 else "cut off he" for n in range(3000)]
numbers = parallel(lines, on_error="skip", progress="parse logs").map(parse).filter(valid)
numbers.count()
print(numbers.stats.verdict)
"""
STYLE = """<style>
text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #e6e6e6; white-space: pre }
</style>"""


def screen(script: str) -> list[str]:
    """Return the lines that a terminal of 100 columns shows while and after a script runs."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    run = subprocess.Popen([sys.executable, "-c", script], stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    while True:
        try:
            written += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    run.wait()
    lines = re.split(r"\r?\n", re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", written.decode()))
    return [shown for line in lines if (shown := _midway(line))]


def _midway(line: str) -> str:
    """Return what stood in a line that was written over and over, about two thirds of the way."""
    states = [state for state in line.split("\r") if state.strip()]
    return states[len(states) * 2 // 3] if states else ""


def terminal(lines: list[str]) -> str:
    """Return a terminal with these lines, as SVG."""
    width, height = 8 * max(map(len, lines)) + 40, 20 * len(lines) + 50
    texts = "".join(
        f'<text x="20" y="{45 + 20 * number}" xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    dots = "".join(
        f'<circle cx="{20 + 18 * n}" cy="16" r="5" fill="{color}"/>'
        for n, color in enumerate(("#ff5f56", "#ffbd2e", "#27c93f"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f"{STYLE}"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1e1e24"/>{dots}{texts}</svg>\n'
    )


# The rooms from above to below: who runs them, which stand side by side, what they are for.
ROWS = [
    ("script", ["front"], "what users call"),
    ("script", ["connecting"], "which cluster that is evaluated on"),
    ("script", ["cluster"], "any dask cluster, seen from outside"),
    ("script", ["evaluation"], "from a chain to its results"),
    ("both", ["local"], "the local cluster's processes"),
    ("script", ["checkpoint", "watch"], "results on a disk; numbers to look at"),
    ("worker", ["worker"], "what a worker is asked, does, answers"),
    ("worker", ["calls", "files", "keys", "output"], "calls; formats; keys; files made"),
    ("both", ["chain", "world"], "steps and their loop; the script's state"),
    ("both", ["wire"], "objects as bytes, modules as text"),
    ("both", ["errors", "text", "ordered", "system"], "what every room may import"),
]
COLORS = {"script": "#2f6fde", "worker": "#2e8b57", "both": "#8a6d1d"}


def rooms() -> str:
    """Return the rooms of the code, as SVG: each imports from those below it."""
    width, height, step, left = 760, 46 * len(ROWS) + 70, 46, 20
    parts = []
    for number, (who, names, what) in enumerate(ROWS):
        wide = (400 - 8 * (len(names) - 1)) / len(names)
        for place, name in enumerate(names):
            x = left + place * (wide + 8)
            y = 20 + step * number
            box = f'x="{x:.0f}" y="{y}" width="{wide:.0f}" height="34" rx="5" fill="{COLORS[who]}"'
            parts.append(f"<rect {box}/>")
            parts.append(f'<text class="room" x="{x + wide / 2:.0f}" y="{y + 22}">{name}</text>')
        parts.append(f'<text class="what" x="440" y="{42 + step * number}">{escape(what)}</text>')
    told = {"script": "runs in the script", "worker": "runs on workers", "both": "runs in both"}
    for place, (who, text) in enumerate(told.items()):
        x, y = left + 180 * place, height - 30
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" rx="3" fill="{COLORS[who]}"/>')
        parts.append(f'<text class="what" x="{x + 22}" y="{y + 12}">{text}</text>')
    style = (
        "<style>text { font: 14px system-ui, sans-serif } .room { fill: #fff; text-anchor: middle; "
        "font-weight: 600 } .what { fill: #333 }</style>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f'{style}<rect width="{width}" height="{height}" rx="8" fill="#f6f7f9"/>{"".join(parts)}</svg>\n'
    )


CELL = """lines = [str(n) if n % 1000 != 999 else "cut off he" for n in range(3000)]
numbers = parallel(lines, on_error="skip").map(parse).filter(valid)
numbers.count()
numbers"""
PAGE = """<!doctype html><meta charset="utf-8"><style>
body { margin: 16px; font: 13px system-ui, sans-serif; color: #222; background: #fff }
pre { background: #f5f5f5; border: 1px solid #ddd; border-radius: 3px; padding: 8px; margin: 0 0 10px }
table { border-collapse: collapse; margin: 6px 0 } td, th { padding: 4px 10px; text-align: right }
tbody tr:nth-child(odd) { background: #f5f5f5 } td:first-child, th:first-child { text-align: left }
</style>"""


def notebook(target: Path) -> None:
    """Write what a notebook shows of a collection, drawn by the Chromium that is here."""
    known: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT.split("lines =")[0] + CELL, known)
    shown = f"{PAGE}<pre>{escape(CELL)}</pre>{known['numbers']._repr_html_()}"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "cell.html")
        page.write_text(shown, encoding="utf-8")
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=760,400")
        subprocess.run(["chromium", *options, f"--screenshot={target}", f"file://{page}"], check=True)


if __name__ == "__main__":
    static = FOLDER / "_static"
    (static / "bar.svg").write_text(terminal(["$ python3 logs.py", *screen(SCRIPT)]), encoding="utf-8")
    (static / "rooms.svg").write_text(rooms(), encoding="utf-8")
    notebook(static / "notebook.png")
