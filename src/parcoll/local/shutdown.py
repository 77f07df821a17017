"""Shutdown: what can still be done when the script's last line has run.

Python ends in three stages. First it waits for the threads that are no daemons. Then it calls exit handlers.
In both, evaluations and new clusters work. At last it takes everything apart and calls `__del__`: a thread
that is started then never runs, and whoever waits for it waits for ever.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from parcoll.clock import time
from parcoll.errors import ClusterStartError

DAEMONS_SECONDS = 1.0  # more than a thread needs to print a traceback on a busy machine
# A daemon that began an evaluation so lately will begin another, as a rule: it is between two of them.
LATELY_SECONDS = 0.5


def refuse_at_end() -> None:
    """Raise an error in the last stage."""
    if sys.is_finalizing():
        raise ClusterStartError(
            "nothing can be evaluated any more, since the interpreter is ending: evaluate before the last "
            "line of the script or in a function that atexit calls, not in a __del__ that runs at the end"
        )


_begun: weakref.WeakKeyDictionary[threading.Thread, float] = weakref.WeakKeyDictionary()  # by daemons


def note_evaluation() -> None:
    """Note that this thread begins an evaluation."""
    thread = threading.current_thread()
    if thread.daemon:
        _begun[thread] = time.monotonic()


@contextlib.contextmanager
def daemons_may_end() -> Iterator[None]:
    """Wait a moment for daemon threads that evaluate, whose cluster the block closes.

    Each gets an error, which Python prints if nobody catches it. A thread that prints while the interpreter
    is taken apart would end the process with a fatal error of Python's own.
    """
    frames, lately = sys._current_frames(), time.monotonic() - LATELY_SECONDS
    daemons = [thread for thread in threading.enumerate() if thread.daemon]
    evaluating = [one for one in daemons if _begun.get(one, -1.0) > lately or _evaluates(one, frames)]
    yield
    deadline = time.monotonic() + DAEMONS_SECONDS
    for thread in evaluating:
        thread.join(max(deadline - time.monotonic(), 0))


def _evaluates(thread: threading.Thread, frames: dict[int, FrameType]) -> bool:
    frame = frames.get(thread.ident or 0) if thread is not threading.current_thread() else None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("parcoll.evaluation."):
            return True
        if frame.f_code.co_name == "invoke_excepthook":  # of `threading`: it prints its error already
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def registering_late() -> Iterator[None]:
    """Let modules be imported in the first two stages.

    As `concurrent.futures` is imported, it registers what ends its threads when the script's last line has
    run. Afterwards Python refuses that. It is called at once then: its executors take no work any more, as if
    they had been imported before. The names are private; `tests/dask_facts` fails when they change.
    """
    with _changing:  # other threads may import as well
        _imports.append(None)
        threading._register_atexit = _register_or_call  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _changing:
            _imports.pop()
            if not _imports:
                threading._register_atexit = _register  # type: ignore[attr-defined]


_changing = threading.RLock()
_imports: list[None] = []  # as many as are under way
_register = threading._register_atexit  # type: ignore[attr-defined]


def _register_or_call(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    try:
        _register(function, *arguments, **named)
    except RuntimeError:  # too late
        function(*arguments, **named)
