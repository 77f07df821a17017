"""`progress`: whether evaluations show a progress bar, for a block or for the whole program."""

from __future__ import annotations

import sys

from parcoll.text import describe

_setting: bool | None = False  # None: where somebody watches


class progress:
    """Switch progress bars on for all evaluations from now on; as a context manager, for its block.

    `progress()` shows a bar where standard error is a terminal or a notebook, `progress(True)` in a
    log file too, where it is a line every 10 s; `progress(False)` shows none. What a collection was
    given, `parallel(..., progress=...)`, comes first. It counts in all threads.

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
        _setting = on

    def __enter__(self) -> progress:
        return self

    def __exit__(self, *_: object) -> None:
        global _setting
        _setting = self._before


def wanted(given: bool | str | None) -> bool:
    """Tell whether a collection that was given this `progress` shows a bar."""
    if given is None:
        return _watched() if _setting is None else _setting
    return given is not False


def _watched() -> bool:
    if "ipykernel" in sys.modules and "IPython" in sys.modules:
        return True
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
