"""Handlers: what the script's signal handlers raise reaches whoever called parcoll, as from a builtin.

Python runs a handler between any two steps of the main thread: also while parcoll, dask or pickle run there
with an `except Exception` of their own, which would take the handler's exception for one of an element, or
drop it. So a handler is replaced, while parcoll works for the main thread, by one that calls it and notes
what it raises. What was noted and did not arrive is raised in the end.

What must be done whole, whatever a handler raises, is done by another thread.

A handler that the script's own code caught is the script's business, and so is one that a function or a
source has set while parcoll worked.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes an enum of each handler, in 1 µs
import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, FunctionType, TracebackType
from typing import Any, ParamSpec, TypeVar

from parcoll.mistakes import wrong_arguments

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Whose `except` is not the script's own.
FOREIGN = {
    *("parcoll", "dask", "distributed", "cloudpickle", "tornado", "tblib", "tqdm"),
    *("fsspec", "toolz", "msgpack", "zict", "locket", "psutil"),
}
# Of others than the script. The first raises KeyboardInterrupt, which nobody takes for an error; asyncio asks
# whether it is there. The second is asyncio's, does nothing, and would lose its `siginterrupt`.
LEFT_ALONE = ("default_int_handler", "_sighandler_noop")
FINALIZERS = ("__del__", "_remove", "_cb")  # of dask's futures, and of weak references in `weakref`
UNBROKEN = "parcoll-unbroken"  # the name of threads that no handler reaches

_numbers = [int(number) for number in signal.valid_signals()]
_replaced: list[int] = []  # the signals whose handlers are
_noted: list[BaseException] = []  # what handlers have raised since the main thread called
_active = False  # the main thread has called, and handlers are replaced
_postponing = 0  # so many contexts within each other have handlers wait until they end
_postponed: list[tuple[_Noting, int, Any]] = []


class Left(GeneratorExit):
    """Ends an evaluation whose thread is told to, since nobody waits for it any more."""


left: set[int] = set()  # the threads that are told to


class _Noting:
    """Stands for a handler of the script's."""

    __slots__ = ("handler",)

    def __init__(self, handler: Callable[[int, Any], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: Any) -> None:
        if _postponing:
            _postponed.append((self, number, frame))
            return
        try:
            self.handler(number, frame)
        except BaseException as error:
            if _active:
                _noted.append(error)
                if _in_finalizer(frame):  # Python would write the exception to standard error
                    return
            raise


def reached(call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Return `call(*arguments)`. What a handler raised meanwhile is raised here, whoever has caught it."""
    global _active, _postponing
    if _active or not _in_main_thread():
        return call(*arguments, **named)
    ended: BaseException | None = None
    # An exception may come between any two lines, but for those that follow `finally`: they call nothing.
    try:
        _active = True
        _replace()
        return call(*arguments, **named)
    except BaseException as error:
        ended = error
        raise
    finally:
        _postponing = 1
        try:
            try:
                _restore()
            except BaseException:  # Ctrl-C, which is not replaced; else stand-ins would stay
                _restore()
                raise
            swallowed = None if ended is not None and not isinstance(ended, Exception) else _swallowed(ended)
            _noted.clear()
        finally:
            _active, _postponing = False, 0
        ended = None  # else the exception would be in a cycle with this frame
        _run_postponed()
        if swallowed is not None:
            try:
                raise swallowed
            finally:
                swallowed = None


def reaching(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that the script calls."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return reached(function, *arguments, **named)
        except TypeError as error:
            message = None if _has_begun(error) else wrong_arguments(function, arguments, named)
            if message is None:
                raise
        raise TypeError(message)

    return call


def _has_begun(error: TypeError) -> bool:
    """Tell whether an error was raised within the function that was called, and not by the call."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return frames is None or frames.tb_frame.f_code is not reached.__code__


def methods_reaching(kind: type[T]) -> type[T]:
    """Decorate the methods and properties of a class that the script uses."""
    made: dict[Any, Any] = {}  # a method may have two names
    for name, value in vars(kind).copy().items():
        if name.startswith("_") and name not in ("__iter__", "__repr__", "__reduce__", "_repr_html_"):
            continue
        if isinstance(value, FunctionType):
            setattr(kind, name, made.setdefault(value, reaching(value)))
        elif isinstance(value, property) and value.fget is not None:
            setattr(kind, name, property(reaching(value.fget), doc=value.__doc__))
    return kind


def look() -> None:
    """Raise what a handler has raised, if it was swallowed; `Left` in a thread that is told to end.

    For loops that may go on for long, and where something is kept of an exception that was caught.
    """
    if left and threading.get_ident() in left:
        raise Left
    if _noted and _in_main_thread() and (swallowed := _swallowed(None)) is not None:
        raise swallowed


class _Postponed:
    """A context in which no handler runs: they run at its end. For what takes milliseconds."""

    def __enter__(self) -> None:
        global _postponing
        if _active and _in_main_thread():
            _postponing += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        global _postponing
        if _postponing and _in_main_thread():
            _postponing -= 1
            _run_postponed()


postponed = _Postponed()


# Out of reach of handlers --------------------------------------------------------------------------
# What a handler raises may come when a process has been started and nobody has it yet, or when half of it has
# been ended. Handlers run in the main thread alone.


def unbroken(work: Callable[[], T]) -> T:
    """Return `work()`, or raise what it raises: no handler comes between its steps.

    A thread of its own does it, and what a handler raises ends only the wait for it. So `work` keeps what it
    makes where whoever cleans up finds it. If a handler raises before `work` has begun, it may never begin.
    """
    # In the last stage of Python's end, a thread that is started never runs.
    if not _in_main_thread() or sys.is_finalizing():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=UNBROKEN, daemon=True)
    if not _started(thread):
        return work()
    thread.join()
    try:
        if errors:
            raise errors[0]
        return results[0]
    finally:
        errors.clear()  # else the exception would be in a cycle with this frame


def _started(thread: threading.Thread) -> bool:
    """Start a thread; return False if this process may have no more of them."""
    handled = sys.exception()
    with postponed:  # else `threading` might list a thread for ever that has not begun
        try:
            thread.start()
        except RuntimeError as error:
            if error.__context__ not in (None, handled):  # Ctrl-C, which has had `threading` fail
                raise error.__context__ from None
            return False
        return True


def _run_postponed() -> None:
    while _postponed and not _postponing:
        noting, number, frame = _postponed.pop(0)
        noting(number, frame)


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _replace() -> None:
    for number in _numbers:
        handler = _signal.getsignal(number)
        if type(handler) is int:  # the default, or ignored: of 62 signals, as a rule, all but one
            continue
        if callable(handler) and getattr(handler, "__name__", None) not in LEFT_ALONE:
            _replaced.append(number)
            if not isinstance(handler, _Noting):  # as one is that the script has put back later
                with contextlib.suppress(ValueError):  # this is not the main interpreter
                    _signal.signal(number, _Noting(handler))


def _restore() -> None:
    for number in _replaced:
        handler = _signal.getsignal(number)
        if isinstance(handler, _Noting):
            _signal.signal(number, handler.handler)
    _replaced.clear()


def _swallowed(ended: BaseException | None) -> BaseException | None:
    """Return what a handler raised last, unless it is what ends this now, or the script has caught it."""
    if any(error is ended for error in _noted):
        return None
    return next((error for error in reversed(_noted) if not _script_caught(error)), None)


def _script_caught(error: BaseException) -> bool:
    """Tell whether an exception got as far as code of the script's, or of a library of the script's.

    The first frame of a traceback is the last one that the exception has come to.
    """
    return error.__traceback__ is not None and not _is_foreign(error.__traceback__.tb_frame)


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in FINALIZERS and _is_foreign(frame):
            return True
        frame = frame.f_back
    return False


def _is_foreign(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__") or frame.f_code.co_filename.strip(
        "<"
    )  # a compiled loop has none
    package = module.partition(".")[0].partition(" ")[0]
    return package in FOREIGN or package in sys.stdlib_module_names


def _renew() -> None:
    """In a fork, which may be a process of `multiprocessing` and never come back: begin anew."""
    global _active, _postponing
    _active, _postponing = False, 0
    _noted.clear()
    _postponed.clear()
    if _in_main_thread():
        _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
