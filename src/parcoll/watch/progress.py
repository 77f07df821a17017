"""`progress`: the switch for progress bars, of the whole program or of a block."""

from __future__ import annotations

import sys

from parcoll.text import describe

_setting: bool | None = False  # None: bars are shown if somebody watches


class progress:
    """Switch progress bars on for all evaluations from now on; in a `with` statement, for its block.

    `progress()` shows a bar if standard error is a terminal or a notebook. `progress(True)` also shows one
    in a log file, as a line every 10 s. `progress(False)` shows none. The setting holds in all threads. A
    collection that was made with `parallel(..., progress=...)` follows its own setting instead.

    >>> from parcoll import parallel, progress
    >>> with progress(False):
    ...     parallel(range(3)).count()
    3
    """

    def __init__(self, on: bool | None = None) -> None:
        global _setting
        if on is not None and not isinstance(on, bool):
            raise TypeError(f"progress() needs True, False or nothing, got {describe(on)}")
        self._before = _setting
        _setting = self._set = on

    def __repr__(self) -> str:
        shown = {None: "where somebody watches", True: "everywhere", False: "nowhere"}[self._set]
        return f"<progress: bars are shown {shown}>"

    def __enter__(self) -> progress:
        return self

    def __exit__(self, *_: object) -> None:
        global _setting
        _setting = self._before


def wanted(given: bool | str | None) -> bool:
    """Tell whether a collection that was made with this `progress` shows a bar."""
    if given is None:
        return _watched() if _setting is None else _setting
    return given is not False


def _watched() -> bool:
    """Tell whether standard error is a terminal or a notebook."""
    if "ipykernel" in sys.modules and "IPython" in sys.modules:
        return True
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is no standard error, or it is closed
        return False
