"""Measure, then write: `python benchmarks --questions overhead,arrays --runs 5`.

What each row is, and how to read the figures: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import arrays
import captured
import keyed
import latency
import memory
import overhead
import report
import scaling
import scheduler_load
import short
import small
import startup
import waiting
import written
from children import RUN, ChildError, kill, marked
from engines import ENGINES
from measuring import Bench, WrongAnswer, tell
from peers import PEERS

QUESTIONS: dict[str, ModuleType] = {
    "overhead": overhead,
    "short": short,
    "small": small,
    "captured": captured,
    "arrays": arrays,
    "written": written,
    "keyed": keyed,
    "waiting": waiting,
    "startup": startup,
    "memory": memory,
    "latency": latency,
    "scaling": scaling,
    "scheduler": scheduler_load,
}
Results = dict[str, dict[str, Any]]  # by question and row


def main() -> None:
    options = parse_arguments()
    if options.given:
        write(json.loads(options.given.read_text(encoding="utf-8")), options.output or options.given.parent)
        return
    signal.signal(signal.SIGTERM, stop)
    bench = Bench(
        runs=1 if options.small else options.runs,
        small=options.small,
        rows=options.rows,
        peers=options.peers,
        gigabytes=options.gigabytes,
        elements=options.elements,
    )
    results: Results = {}
    patience = 0.0  # seconds for a driver to end by itself; none after a failure or Ctrl-C
    try:
        for name in options.questions:
            for row, figures in QUESTIONS[name].measure(bench):
                results.setdefault(name, {})[row] = figures
                if bench.small:
                    print(f"{name}, {row}: right", flush=True)
                else:
                    save(results, options.output)
            bench.end_drivers()
        patience = 10.0
    except (WrongAnswer, ChildError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        bench.end_drivers(patience)
        end_rest()
    if not bench.small:
        write(json.loads(file_in(options.output).read_text(encoding="utf-8")), options.output)


def stop(number: int, frame: object) -> NoReturn:
    """End in order at SIGTERM, as at Ctrl-C."""
    sys.exit(128 + number)


def end_rest() -> None:
    """End what a child left behind, and say so: nothing should be there."""
    deadline = time.monotonic() + 2
    while (left := marked(RUN)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        tell(f"still there at the end, killed: {', '.join(map(str, left))}")
        kill(left)


def file_in(folder: Path) -> Path:
    return folder / "benchmarks.json"


def save(results: Results, folder: Path) -> None:
    """Put these rows into the folder's results file; its other rows stay."""
    folder.mkdir(parents=True, exist_ok=True)
    file = file_in(folder)
    kept: Results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for question, rows in results.items():
        kept.setdefault(question, {}).update(rows)
    file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write(results: Results, folder: Path) -> None:
    """Write the report and the plot from figures, and print the report."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import plot
    except ImportError:
        tell("matplotlib is not installed: no plot")
        has_plot = False
    else:
        has_plot = plot.draw(results, folder / "benchmarks.png")
    sections = [(QUESTIONS[name], results[name]) for name in QUESTIONS if results.get(name)]
    text = report.document(sections, "benchmarks.png" if has_plot else None)
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description="Compare parcoll with what people use now."
    )
    parser.add_argument("--questions", type=names, default=",".join(QUESTIONS), help="default: %(default)s")
    parser.add_argument("--rows", type=names, help="only these; default: all of each question")
    parser.add_argument("--peers", type=names, help=f"only these; default: {','.join(PEERS | ENGINES)}")
    parser.add_argument("--runs", type=int, default=5, help="turns for each contender (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a hundredth of the data, once: answers only")
    parser.add_argument(
        "--gigabytes", type=float, default=20.0, help="of arrays, for memory (default: %(default)s)"
    )
    parser.add_argument("--elements", type=int, default=20_000_000, help="for memory (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for json, md, png (default: build/benchmarks)"
    )
    parser.add_argument(
        "--from", dest="given", type=Path, metavar="JSON", help="write the report of these figures again"
    )
    options = parser.parse_args()
    rows = [row for name in options.questions if name in QUESTIONS for row in QUESTIONS[name].ROWS]
    known_peers = [*PEERS, *ENGINES, *startup.SCRIPTS]
    for kind, given, known in (
        ("question", options.questions, list(QUESTIONS)),
        ("row", options.rows or (), rows),
        ("peer", options.peers or (), known_peers),
    ):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(known)}")
    if options.runs < 1:
        parser.error("--runs: at least 1")
    if options.output is None and options.given is None:
        options.output = Path("build/benchmarks")
    options.questions = [name for name in QUESTIONS if name in options.questions]
    return options


def names(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


if __name__ == "__main__":
    main()
