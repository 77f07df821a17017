"""What is not the protocol, done quicker: pickling, bags, texts of tracebacks, records of logs.

Each story does all this some dozens of times, and other tests show that it is right. What travels is still a
copy of its own, as it is between processes.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
from typing import Any

from dask._task_spec import TaskRef

from parcoll.calls import waiting
from parcoll.calls.rates import Share
from parcoll.chain.place import Place
from parcoll.cluster import session
from parcoll.evaluation import bag
from parcoll.evaluation.plan import Node, Plan
from parcoll.evaluation.source import Source
from parcoll.wire import codec, exceptions, payload
from parcoll.wire.payload import Packed
from parcoll.worker import program, tasks
from parcoll.worker.outcome import Outcome, Ticket
from parcoll.worker.program import SharedProgram

_pickled = payload.pickled
_reducers_of = codec._Reducers.of
_bag_of, _plan_of = bag.bag_of, bag.plan_of


def pickled(value: object, *by_value: Any) -> tuple[bytes]:
    """Pickle with Python's own pickler; as parcoll does, where that refuses."""
    try:
        return (pickle.dumps(value, 5),)
    except Exception:
        return _pickled(value, *by_value)  # type: ignore[return-value]


def reducers_of(self: Any, table: Any) -> dict[type, Any]:
    """Return the table for one pickle, which nobody changes while stories run."""
    return self._made or _reducers_of(self, table)


# What nobody writes into: it travels as it is.
CONSTANT = {Packed, Place, Share, Ticket, TaskRef, *map(type, (None, True, 1, 1.0, ""))}


def copied(argument: Any) -> Any:
    """Return what a worker gets of an argument."""
    kind = type(argument)
    if kind in CONSTANT:
        return argument
    if kind is SharedProgram and argument.lent is None:
        _, settings = argument.__reduce__()
        return SharedProgram(*settings)
    return pickle.loads(pickle.dumps(argument, 5))


class QuickTask:
    """What stands for dask's task: a function and its arguments, of which the worker gets copies."""

    __slots__ = ("_arguments", "_func", "dependencies")

    def __init__(self, key: str, func: Any, *arguments: Any, queues: bool = False) -> None:
        self.dependencies = tuple(a.key for a in arguments if type(a) is TaskRef)
        self._func, self._arguments = func, [copied(argument) for argument in arguments]

    def __call__(self, values: dict[str, Any]) -> Any:
        given = [values[a.key] if type(a) is TaskRef else copied(a) for a in self._arguments]
        return self._func(*given)


def plan_of(node: Any) -> Plan:
    """Read a chain without making a bag of it."""
    if not isinstance(node, Node):
        return _plan_of(node)
    *row, first = node.back()
    return Plan(first.source, tuple(one.step for one in reversed(row)))  # type: ignore[misc]


def bag_of(node: Node) -> Any:
    """Return the node itself, unless there is a bag already, or something else below it."""
    row = list(node.back())
    if any(one.bag is not None for one in row) or not isinstance(row[-1].source, Source):
        return _bag_of(node)
    return node


class Nowhere:
    """Where records of logs are collected: there are none."""

    def __init__(self, post: Any) -> None:
        pass

    def __enter__(self) -> Nowhere:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def remaining(self) -> bytes:
        """Return none."""
        return b""


class _Traceback:
    """The module `traceback`, which looks into no file."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def format_tb(self, frames: Any) -> list[str]:
        """Return no line."""
        return []


def is_sound(answer: Any, size: int | None, on_this_machine: bool) -> bool:
    """Tell whether something is an outcome: no worker of a story is a broken one."""
    return type(answer) is Outcome and (size is None or answer.read <= size)


def events_of(ticket: Any) -> None:
    """Return where a task sends what it logs: nowhere."""


_nothing: Any = contextlib.nullcontext()


def nothing(*of: Any) -> Any:
    """Do nothing around a block."""
    return _nothing


_is_async, _is_generator = map(functools.lru_cache, (waiting.is_async, waiting.is_generator))
_QUIET = _Traceback(exceptions.traceback)


CHANGES: list[tuple[Any, str, Any]] = [  # the owner, the name, and by what it is replaced
    (payload, "pickled", pickled),
    (codec._Reducers, "of", reducers_of),
    (session, "opaque_task", QuickTask),
    (session, "is_sound", is_sound),
    (bag, "bag_of", bag_of),
    (bag, "plan_of", plan_of),
    (session, "without_collections", nothing),
    (tasks, "borrowed", nothing),
    (tasks, "running", nothing),
    (program, "running", nothing),
    (program, "loading", nothing),
    (program, "_as_loading", nothing),
    (tasks, "collecting", Nowhere),
    (tasks, "events_of", events_of),
    (exceptions, "traceback", _QUIET),
    (waiting, "is_async", _is_async),
    (waiting, "is_generator", _is_generator),
]
