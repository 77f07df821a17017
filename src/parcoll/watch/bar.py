"""Progress bar of one evaluation, drawn by tqdm from the evaluation's numbers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from parcoll.text import escaped
from parcoll.watch.stats import Stats
from parcoll.watch.table import troubles

DRAW_SECONDS = 0.1
LOG_SECONDS = 10.0  # between two lines in a log file
UNIT: dict[str, Any] = {"unit": " elements", "unit_scale": False}
BYTES: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
MAX_CAPTION = 30  # characters: the numbers must fit on the line


class Bar:
    """A line that shows how far an evaluation is; a thread of its own keeps it fresh until `end`."""

    def __init__(self, stats: Stats, caption: str) -> None:
        self._stats = stats
        self._ended = threading.Event()
        caption = escaped(" ".join(caption.split()))
        if len(caption) > MAX_CAPTION:
            caption = f"{caption[: MAX_CAPTION - 15]}...{caption[-12:]}"
        self._display: _Line | _Log | None = None
        with self._shown():
            self._display = _Line(caption) if _is_terminal() else _Log(caption)
        self._draw()
        self._thread = threading.Thread(target=self._keep_fresh, name="parcoll-progress", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: it is drawn at its end
            self._thread.start()

    def _keep_fresh(self) -> None:
        while self._display is not None and not self._ended.wait(self._display.seconds):
            self._draw()

    def _draw(self) -> None:
        with self._shown():
            if self._display is not None:
                self._display.draw(self._stats)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """If the bar cannot be drawn, show nothing from now on: the evaluation is worth more than its bar.

        This is so when standard error is closed, its terminal is gone, or it is a pipe without a reader.
        """
        try:
            yield
        except (OSError, ValueError):
            self._display = None

    def end(self) -> None:
        """Draw the final numbers, and leave the line as it is."""
        self._ended.set()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join()
        self._draw()
        with self._shown():
            if self._display is not None:
                self._display.close()


def _is_terminal() -> bool:
    """Tell whether a line can be drawn again in its place: in a terminal or a notebook."""
    try:
        return sys.stderr.isatty() or "ipykernel" in sys.modules
    except (AttributeError, ValueError):
        return False


def _has_width() -> bool:
    """Tell whether the terminal says how wide it is; if it says 0, tqdm would draw nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, ValueError, OSError):  # a notebook, whose bar has no width
        return "ipykernel" in sys.modules


def _done(stats: Stats) -> tuple[int, int | None, dict[str, Any]]:
    """Return how much is done, of how much, and in which unit: bytes of files, where they are known."""
    if stats.bytes_total:
        return stats.bytes_read, stats.bytes_total, BYTES
    return stats.elements_in, stats.total, UNIT


def _remarks(stats: Stats) -> str:
    remarks = [f"{stats.failed:,} failed"] if stats.failed else []
    remarks += troubles(vars(stats))
    remarks += [stats.state] if stats.state in ("failed", "stopped") else []
    return ", ".join(remarks)


class _Line:
    """A bar that is drawn again and again in the same place: in a terminal or a notebook."""

    seconds = DRAW_SECONDS

    def __init__(self, caption: str) -> None:
        size: dict[str, Any] = {"dynamic_ncols": True} if _has_width() else {"ncols": 80}
        self._bar = _bar_class()(desc=caption, **UNIT, mininterval=0, miniters=0, **size)

    def draw(self, stats: Stats) -> None:
        """Show the current numbers."""
        bar = self._bar
        done, total, unit = _done(stats)
        if bar.total != total:
            bar.total = total
            vars(bar).update(unit)
        bar.set_postfix_str(_remarks(stats), refresh=False)
        if done != bar.n:  # else tqdm would leave out of its rate the time in which nothing came
            bar.update(done - bar.n)
        bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class _Log:
    """Whole lines, and few of them, for a standard error that is a file or a pipe."""

    seconds = LOG_SECONDS

    def __init__(self, caption: str) -> None:
        from tqdm.std import tqdm

        self._caption = caption
        self._format = tqdm.format_meter
        self._shown = ""

    def draw(self, stats: Stats) -> None:
        """Write a line, unless it would be the same again."""
        begun = stats.elements_in or stats.waiting_for
        if stats.state == "new" or (stats.state == "running" and not begun):
            return
        remarks = _remarks(stats)
        done, total, unit = _done(stats)
        numbers = {"n": done, "total": total, "elapsed": stats.seconds, **unit}
        line = self._format(**numbers, ncols=100, prefix=self._caption, postfix=remarks)
        if line != self._shown:
            self._shown = line
            if sys.stderr is not None:  # print() would take None for standard output
                print(line.rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing: the lines stay."""


_made: list[Any] = []  # the class, once it was made


def _bar_class() -> Any:
    """Return tqdm's class for this place, without tqdm's thread for stalled bars and its lock.

    The thread of `Bar` draws stalled bars too. tqdm's lock would need a semaphore, since it also serves
    several processes that write to one terminal; a lock for threads is enough here.
    """
    if not _made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets the text bar
            from tqdm.auto import tqdm

        kind: Any = type("tqdm", (tqdm,), {"monitor_interval": 0})
        kind.set_lock(threading.RLock())
        _made.append(kind)
    return _made[0]
