"""Records: what functions log on a worker, for the script's own loggers; and the settings of its logging.

On a worker a record of a task is packed where it is made, and goes to the script: at once where the worker
can send by itself, else with the task's outcome. There the logger of its name handles it, with the script's
filters, handlers and formats. Handlers that a function has added on the worker get the record there, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from parcoll.errors import logger
from parcoll.text import message_of, short_repr
from parcoll.wire.codec import by_reference, by_value, loads
from parcoll.wire.exceptions import Failure
from parcoll.wire.reducers import names_made

PLACEHOLDER = logging.PlaceHolder
DASK = ("distributed", "dask")  # loggers that dask sets up in each of its processes
# Of threads that no function has started, those of dask's servers.
SERVERS = (*DASK, "tornado", "asyncio", "bokeh")

Send = Callable[[bytes], None]  # one record, packed


# Settings -----------------------------------------------------------------------------------------


def read_settings() -> list[Any]:
    """Return what can be compared of this process's logging."""
    root, names = logging.root, logging._levelToName
    loggers: Any = root.manager.loggerDict.values()
    found = [
        (logger.level, logger.disabled, logger.propagate, type(logger), *logger.handlers, _added(logger))
        for logger in loggers
        if type(logger) is not PLACEHOLDER
        and (
            logger.level
            or logger.handlers
            or logger.disabled
            or not logger.propagate
            or type(logger) is not logging.Logger
            or len(vars(logger)) > len(_FRESH)
        )
    ]
    captures = getattr(logging, "_warnings_showwarning", None) is not None
    return [
        root.manager.disable,
        root.level,
        tuple(root.handlers),
        dict(names),
        captures,
        logging.getLogRecordFactory(),
        found,
    ]


_FRESH = {*vars(logging.getLogger("parcoll"))}  # what any logger has


def _added(logger: logging.Logger) -> dict[str, Any]:
    """Return the attributes that a logger of the program has beside those of any."""
    return {name: value for name, value in vars(logger).items() if name not in _FRESH}


def _packed_attributes(logger: logging.Logger) -> dict[str, bytes]:
    packed = {}
    for name, value in _added(logger).items():
        with contextlib.suppress(Exception):  # as a logger's class that cannot travel
            packed[name] = by_value(value)
    return packed


def pack_settings(found: list[Any]) -> dict[str, Any]:
    """Return what travels of it."""
    disable, _, _, names, captures, factory, _ = found
    loggers: dict[str, tuple[int, bool, bool, list[Any], bytes | None, dict[str, bytes]]] = {}
    for name, found_here in [("", logging.root), *logging.root.manager.loggerDict.copy().items()]:
        if isinstance(found_here, logging.Logger) and not _is_of(name, DASK):
            handlers = [_described(handler) for handler in found_here.handlers]
            kind = _packed_kind(type(found_here))
            disabled, propagate = found_here.disabled, bool(found_here.propagate)
            added = _packed_attributes(found_here)
            if not name or found_here.level or disabled or not propagate or handlers or kind or added:
                loggers[name] = found_here.level, disabled, propagate, handlers, kind, added
    try:
        made_by = by_value(factory) if factory is not logging.LogRecord else None
    except Exception:
        made_by = None
    return {
        "disable": disable,
        "names": names,
        "captures": captures,
        "factory": made_by,
        "loggers": loggers,
    }


def set_settings(wanted: dict[str, Any]) -> None:
    """Have this process's loggers let through what the script's do."""
    for level, name in wanted["names"].items():
        if logging.getLevelName(level) != name:
            logging.addLevelName(level, name)
    logging.disable(wanted["disable"])
    factory = logging.LogRecord if wanted["factory"] is None else loads(wanted["factory"])
    logging.setLogRecordFactory(factory)
    loggers = wanted["loggers"]
    for name in [name for name in _twins if name not in loggers]:
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).disabled, logging.getLogger(name).propagate = False, True
        logging.getLogger(name).removeHandler(_IN_SCRIPT)
    _twins.clear()
    for name, (level, disabled, propagate, handlers, kind, added) in loggers.items():
        logger = logging.getLogger(name or None)
        if kind is not None and type(logger) is logging.Logger:
            logger.__class__ = loads(kind)
        vars(logger).update({attribute: loads(value) for attribute, value in added.items()})
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        _twins[name] = handlers
        if handlers and not logger.handlers:
            logger.addHandler(_IN_SCRIPT)
        elif not handlers:
            logger.removeHandler(_IN_SCRIPT)
    logging.captureWarnings(wanted["captures"])


def _packed_kind(kind: type) -> bytes | None:
    """Return what travels of the class of a logger (`logging.setLoggerClass`); None of Python's own."""
    if kind.__module__ == "logging":
        return None
    try:
        return by_value(kind)
    except Exception:
        return None


def _described(handler: logging.Handler) -> tuple[Any, ...]:
    """Return by what a handler is known that a module adds in each process which imports it."""
    stream = getattr(getattr(handler, "stream", None), "name", None)
    file = getattr(handler, "baseFilename", None)
    return type(handler).__qualname__, file if isinstance(file, str) else str(stream)


_IN_SCRIPT = logging.NullHandler()  # in the place of the script's: some functions add one where there is none
_twins: dict[str, list[Any]] = {}  # the script's handlers, by logger


def _is_of(name: str, families: tuple[str, ...]) -> bool:
    return name.partition(".")[0] in families


# Worker -------------------------------------------------------------------------------------------


class Logged(NamedTuple):
    """What a process beside a worker sends before its reply, where a function logs."""

    packed: bytes


class Post(Protocol):
    """How records leave a process while their task goes on."""

    def later(self, flush: Callable[[], None]) -> None:
        """Call `flush` in a moment, in another thread."""

    def send(self, packed: list[bytes]) -> None:
        """Send some records."""


class Collected:
    """The records of one task that were not sent yet, in order."""

    def __init__(self, post: Post | None) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._packed: list[bytes] = []

    def take(self, packed: bytes) -> None:
        """Take a record of the task."""
        with self._lock:
            self._packed.append(packed)
            first = len(self._packed) == 1
        if first and self._post is not None:
            self._post.later(self._flush)

    def _flush(self) -> None:
        assert self._post is not None
        with self._lock:  # held while they are sent, so that the outcome is behind them
            if self._packed:
                self._post.send(self._packed)
            self._packed = []

    def remaining(self) -> bytes:
        """Return those that go with the outcome; none are left then."""
        with self._lock:
            packed, self._packed = self._packed, []
        return by_reference(packed) if packed else b""


_thread = threading.local()
_elsewhere: Send | None = None  # for threads that functions have started
_process_name = ""


@contextlib.contextmanager
def collecting(post: Post | None) -> Iterator[Collected]:
    """Collect what this thread logs; `post` where the process can send by itself."""
    global _elsewhere
    _replace_handling()
    process_name()  # other threads cannot tell
    collected, outer = Collected(post), getattr(_thread, "collected", None)
    _thread.collected = collected
    _elsewhere = collected.take if post is None else Collected(post).take
    try:
        yield collected
    finally:
        _thread.collected = outer
        if post is None:
            _elsewhere = None


class _Sent(NamedTuple):
    """The records of one task that leave by a way of its own."""

    take: Send


def send_own(send: Send) -> None:
    """Send what this thread logs."""
    _thread.collected = _Sent(send)


def send_all(send: Send, name: str) -> None:
    """Send what any other thread of this process logs, which is a process beside a worker, named so."""
    global _elsewhere, _process_name
    _elsewhere, _process_name = send, name
    _replace_handling()


def forward(packed: bytes) -> None:
    """Take a record that a process beside this worker has packed."""
    taker = _taker("")
    if taker is not None:
        taker(packed)


def _taker(name: str) -> Send | None:
    if _is_of(name, DASK):
        return None
    collected: Collected | _Sent | None = getattr(_thread, "collected", None)
    if collected is not None:
        return collected.take
    return _elsewhere if not _is_of(name, SERVERS) else None


def process_name() -> str:
    """Return how this worker's records name it."""
    global _process_name
    distributed = sys.modules.get("distributed")
    if not _process_name and distributed is not None:
        with contextlib.suppress(ValueError):  # not in a task
            _process_name = f"worker-{distributed.get_worker().name}"
    return _process_name or "worker"


_call_handlers = logging.Logger.callHandlers


def _call_handlers_of_script(self: logging.Logger, record: logging.LogRecord) -> None:
    """Do what `Logger.callHandlers` does; stands in its place on workers."""
    taker = _taker(self.name)
    if taker is None or getattr(_thread, "packing", False):
        _call_handlers(self, record)
        return
    _thread.packing = True  # what is packed may log
    try:
        handled = _call_own_handlers(self, record)
        taker(_packed(record, handled))
    finally:
        _thread.packing = False


def _call_own_handlers(logger: logging.Logger | None, record: logging.LogRecord) -> bool:
    """Hand the record to the handlers that the script has not; tell whether there are any."""
    found = False
    while logger is not None:
        twins = _twins.get(logger.name if logger is not logging.root else "", ())
        for handler in logger.handlers:
            if not isinstance(handler, logging.NullHandler) and _described(handler) not in twins:
                found = True
                if record.levelno >= handler.level:
                    handler.handle(record)
        logger = logger.parent if logger.propagate else None
    return found


def _packed(record: logging.LogRecord, handled: bool) -> bytes:
    """Pack a record as it is now: what it refers to may change."""
    fields = dict(record.__dict__)
    if fields.get("processName") in (None, "MainProcess"):
        fields["processName"] = process_name()
    info = fields.get("exc_info")
    fields["exc_info"] = None
    failure = Failure.of(info[1], "") if info and info[1] is not None else None
    whole = record.name, handled, failure, fields
    try:
        return _pickled(whole)
    except Exception:
        fields["msg"], fields["args"] = _message(record), None
        for name, value in fields.items():
            try:
                _pickled(value)
            except Exception:
                fields[name] = short_repr(value)
        return _pickled(whole)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: the script's handler would say so of its own
        return str(record.msg)


def _pickled(value: Any) -> bytes:
    try:
        content = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return by_value(value)
    return by_value(value) if names_made(content) else content


def _replace_handling() -> None:
    if logging.Logger.callHandlers is not _call_handlers_of_script:
        logging.Logger.callHandlers = _call_handlers_of_script  # type: ignore[method-assign]


# Script -------------------------------------------------------------------------------------------


def replay(packed: Iterable[bytes]) -> None:
    """Have the script's loggers handle some records."""
    for one in packed:
        try:
            name, handled, failure, fields = loads(one)
            record = logging.makeLogRecord({})
            record.__dict__.update(fields)
            record.__dict__ |= _raised(failure)
        except Exception as error:
            logger.warning("what a worker has logged cannot be unpickled here: %s", message_of(error))
            continue
        target = logging.getLogger(name) if name != "root" else logging.root
        # Without a handler a warning goes to standard error, but not where a function has added one.
        if not handled or target.hasHandlers():
            target.handle(record)


def _raised(failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return {}
    raised = failure.original()
    raised.__notes__.remove("")
    if not raised.__notes__:
        del raised.__notes__
    return {"exc_info": (type(raised), raised, raised.__traceback__)}


def _forget() -> None:
    """In a fork, which cannot send."""
    global _thread, _elsewhere
    _thread, _elsewhere = threading.local(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
