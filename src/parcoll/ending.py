"""Ending: a process that runs functions ends as a script does, but within a second.

Functions are interrupted, threads joined, `atexit` handlers called, generators closed, objects finalized,
files flushed. The interpreter's own end would wait for functions that never return, and takes 0.1 s more,
for it takes apart all that dask has loaded.
"""

from __future__ import annotations

import _io
import atexit
import contextlib
import functools
import gc
import math
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import Any, NoReturn

from parcoll.clock import time
from parcoll.system import leave_to_forks

ALL_SECONDS = 0.85  # less than the second after which the host kills
UNWIND_SECONDS = 0.2  # of these, until a function has to be interrupted
THREADS_SECONDS = 0.3  # of these, for threads that are no daemons
# Their content is flushed, where that of other files (gzip's) is only whole once they are closed.
PLAIN_FILES = (
    *(_io.FileIO, _io.TextIOWrapper, _io.BytesIO, _io.StringIO),
    *(_io.BufferedWriter, _io.BufferedRandom, _io.BufferedReader, _io.BufferedRWPair),
)


class ProcessEnds(BaseException):
    """Raised in the main thread, in the middle of whatever it does, when the process is told to end."""


begins: list[Callable[[], object]] = []  # called first: then nothing gets out of this process any more
forgets: list[Callable[[], object]] = []  # called late: let go of what functions have made

told = False  # whether it was told to end

_code: int | None = None  # None where a signal told it, by which it ends then
_deadline = math.inf
_ending = threading.Lock()  # held by the thread that ends the process


def after(work: Callable[[], object]) -> NoReturn:
    """Do this process's work until it is done, or SIGTERM comes; then end the process as a script does."""
    try:
        with contextlib.suppress(ProcessEnds):
            _end_at_signal()
            work()
        end()
    except ProcessEnds:  # it came between the two
        end()


def _end_at_signal() -> None:
    """Have SIGTERM end this process as `end` does, even while its main thread is in a call of C."""
    signals, written = os.pipe()
    os.set_blocking(written, False)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    leave_to_forks(signal.SIGTERM)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_watch, args=(signals,), name="parcoll-end", daemon=True).start()


def seconds_left() -> float:
    """Return how long this process has to end; after that it is killed."""
    return max(0.0, _deadline - time.monotonic())


def ask(code: int = 0) -> None:
    """Have this process end soon; from any thread."""
    global _code
    _code = code
    os.kill(os.getpid(), signal.SIGTERM)


def end() -> NoReturn:
    """End this process now."""
    global _deadline
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is at it
    _deadline = time.monotonic() + ALL_SECONDS
    threading.Thread(target=_give_up, args=(ALL_SECONDS,), daemon=True).start()
    threading.excepthook = lambda *_: None  # other threads go on while what they need is taken away
    with contextlib.suppress(BaseException):
        for begin in begins:
            begin()
    for step in (_flush_files, _join_threads, _run_handlers, _finalize, _close_rest):
        with contextlib.suppress(BaseException):
            step()
    _exit()


def _exit() -> NoReturn:
    with contextlib.suppress(BaseException):
        if _code is None and told:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
    os._exit(_status())


def _status() -> int:
    return _code if _code is not None else 128 + signal.SIGTERM if told else 0


def _interrupt(*_: object) -> None:
    """Handle SIGTERM: the function that runs is unwound, and nothing that comes of it is told."""
    global told
    if told or _ending.locked():  # raised once: `_watch` sees to it where that was caught
        return
    told = True
    with contextlib.suppress(BaseException):
        for begin in begins:
            begin()
    raise ProcessEnds


def _watch(signals: int) -> None:
    """End the process where its main thread does not: it is in a call of C, or has caught the exception."""
    global told
    while signal.SIGTERM not in os.read(signals, 512):
        pass
    time.sleep(UNWIND_SECONDS)
    told = True  # also where a function has put a handler of its own
    end()


def _give_up(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(_status())


def _join_threads() -> None:
    """Join the threads that are no daemons, and have executors end theirs, as a script does."""
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    if set(others) - {threading.main_thread(), threading.current_thread()}:
        joining = threading.Thread(target=threading._shutdown, daemon=True)  # type: ignore[attr-defined]
        joining.start()
        joining.join(THREADS_SECONDS)


def _run_handlers() -> None:
    distributed = sys.modules.get("distributed.client")
    if distributed is not None:  # it would wait for the loop, which stands still
        atexit.unregister(distributed._close_global_client)
    atexit._run_exitfuncs()


def _finalize() -> None:
    """Let go of the user's modules and functions, so that what only they hold is finalized."""
    for forget in forgets:
        forget()
    files = {name: getattr(module, "__file__", None) for name, module in [*sys.modules.items()]}
    for name, file in files.items():
        if name == "__main__" or (isinstance(file, str) and _is_users(file)):
            del sys.modules[name]
    gc.collect()


def _close_rest() -> None:
    """Close the generators and the files that something else holds, too."""
    objects = gc.get_objects()
    for found in objects:
        if type(found) is GeneratorType and not found.gi_running and _is_users(found.gi_code.co_filename):
            with contextlib.suppress(BaseException):
                found.close()
    files = [found for found in objects if _is_file(found)]
    for file in files:
        if not isinstance(file, PLAIN_FILES) and _is_written(file):
            with contextlib.suppress(BaseException):
                file.close()
    _flush(files)


def _flush_files() -> None:
    _flush([found for found in gc.get_objects() if _is_file(found)])


def _flush(files: Iterable[Any]) -> None:
    for file in (*files, sys.stdout, sys.stderr):
        if _is_written(file):
            with contextlib.suppress(BaseException):
                file.flush()


def _is_file(value: object) -> bool:
    return issubclass(type(value), _io._IOBase)  # `isinstance` asks the value, if that is a mock


def _is_written(file: Any) -> bool:
    with contextlib.suppress(BaseException):
        return not file.closed and bool(file.writable())
    return False


@functools.cache
def _is_users(path: str) -> bool:
    """Tell whether code at this path is the user's: neither the standard library's nor an installed one."""
    return not path.startswith("<frozen") and not os.path.abspath(path).startswith(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(os.path.join(folder, "") for folder in (*folders, os.path.dirname(__file__)))
