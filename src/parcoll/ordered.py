"""Ordered: how classes that have objects of themselves are pickled: each part finds what it needs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from parcoll.errors import SerializationError
from parcoll.objects import ATOMS, CONTAINERS, SCALARS, Later, is_by_default, settled

_CODE = (FunctionType, staticmethod, classmethod, property, functools.cached_property)
_KNOWN = (FunctionType, types.BuiltinFunctionType, types.ModuleType)  # what is made of no object of a class
_FILLED = (dict, list, set, OrderedDict, Counter, WeakSet, WeakKeyDictionary, WeakValueDictionary)


class Order:
    """What a pickler has under way: each class gets its functions first, then what they name, then all else.

    What else it has may be an object of the class itself, which its functions make. So classes that the
    functions name wait with all else, too.
    """

    def __init__(self, set_first: Any, set_names: Any, table: Mapping[type, Any], known: Any) -> None:
        self._set_first = set_first
        self._table, self._known = table, known  # the types for which the pickler has a way of its own
        self._set_names = set_names
        self._bare: dict[int, list[Any]] = {}  # functions that get their state later; where that is noted
        self._waiting: list[Any] | None = None
        self.depth = 0  # how many classes' members are being pickled

    def of_function(self, func: FunctionType, reduction: Any) -> Any:
        """Return the reduction of a function: without its state, where that comes later."""
        states = self._bare.pop(id(func), None)
        if states is None:
            return reduction
        make, arguments, state, *_, setter = reduction
        states.append((func, state, setter))
        return make, arguments

    def _sendable(self, kind: type, name: str, part: Any) -> Any:
        """Return a member, or what stands for it where it cannot be sent: only who asks for it is refused."""
        of = type(part)
        if of is io.TextIOWrapper and part.mode != "r" and part not in (sys.stdout, sys.stderr):
            return Absent(f"{kind.__qualname__}.{name}", of.__qualname__, "it is open for writing")
        if of in ATOMS or of in _CODE or of in CONTAINERS or of in self._table or issubclass(of, self._known):
            return part
        named = {(base.__module__, base.__name__) for base in of.__mro__}
        reason = "it belongs to the process that made it" if named & _OF_PROCESS else ""
        if not reason and (is_by_default(of) or of.__module__ in _OF_C):
            try:
                part.__reduce_ex__(5)
            except Exception as error:
                reason = str(error)
        return Absent(f"{kind.__qualname__}.{name}", of.__qualname__, reason) if reason else part

    def of_class(self, kind: Any, reduction: Any) -> Any:
        """Return the reduction of a class, whose state is set in that order."""
        make, arguments, (members, slots), *_, setter = reduction
        state = {name: self._sendable(kind, name, part) for name, part in members.items()}, slots
        first, blank = _first(kind, state[0])
        states: list[Any] = []
        is_outer = self._waiting is None

        def functions() -> Any:
            if is_outer:
                self._waiting = []
            for part in first.values():
                found = (part.fget, part.fset, part.fdel) if type(part) is property else (_bare(part),)
                self._bare.update((id(func), states) for func in found if type(func) is FunctionType)
            return self._set_first, (kind, first, blank)

        def names() -> Any:
            known = [(func, *_known(given[1])) for func, given, _ in states]
            return self._set_names, ([given for given in known if any(given[1:])],)

        def rest() -> Any:
            assert self._waiting is not None
            self._waiting.append(Later(lambda: (setter, (kind, state))))
            if not is_outer:
                return settled, ()
            parts, self._waiting = self._waiting, None
            return self._as_members(*parts)

        given = Later(lambda: (set_states, (states,)))
        # What libraries have made: the fields of a dataclass are asked for when one gets its state.
        made = {name: part for name, part in state[0].items() if name[:2] == "__" and name not in first}
        if (fields := made.get("__dataclass_fields__")) is not None:
            made["__dataclass_fields__"] = {name: _named(field) for name, field in fields.items()}
        noted = Later(lambda: self._as_members(Later(lambda: (self._set_first, (kind, made, {})))))
        steps = Later(functions), Later(names), given, noted, Later(rest)
        parts = Later(lambda: (settled, steps))
        return make, arguments, parts, None, None, settled

    def _as_members(self, *parts: Any) -> Any:
        """Return the reduction of members of classes: locks among them are new."""
        self.depth += 1
        return settled, (*parts, Later(self._end))

    def _end(self) -> Any:
        self.depth -= 1
        return settled, ()


def set_states(states: Iterable[tuple[Any, Any, Callable[..., Any]]]) -> None:
    """Give functions all that they have."""
    for func, state, setter in states:
        setter(func, state)


_OF_C = {"_io", "_socket", "socket", "_ssl", "ssl", "mmap", "select"}
_OF_PROCESS = {("threading", "Thread"), ("subprocess", "Popen"), ("concurrent.futures._base", "Executor")}
_OF_PROCESS |= {("multiprocessing.process", "BaseProcess"), ("asyncio.events", "AbstractEventLoop")}
_OF_PROCESS |= {("tempfile", "_TemporaryFileWrapper")}


class Absent:
    """What stands on a worker for an attribute of a class that cannot be sent."""

    def __init__(self, name: str, kind: str, reason: str) -> None:
        self._told = name, kind, reason

    def __get__(self, instance: Any, owner: Any) -> Any:
        name, kind, reason = self._told
        raise SerializationError(
            f"{name} is not on the workers: its value, of type {kind}, cannot be sent ({reason}): make it "
            "within the function, or once in each worker with @per_worker"
        )


def _named(field: Any) -> Any:
    """Return a field of a dataclass without its value, which may be a table of the class's objects."""
    found = copy.copy(field)
    found.default = found.default_factory = dataclasses.MISSING
    return found


_SET_ONCE = ("_abc_impl", "_fields_")  # the fields of a structure of ctypes


def _first(kind: type, members: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the members that are made of no object of the class, and what stands for others meanwhile."""
    first = {n: part for n, part in members.items() if type(part) in _CODE or type(part) in SCALARS}
    left = [name for name in members if name not in first and name[:2] != "__" and name not in _SET_ONCE]
    blank = {name: made for name in left if (made := _empty(members[name])) is not None}
    asked = {
        name
        for part in first.values()
        for name in getattr(_bare(part), "__code__", settled.__code__).co_names
    }
    if not asked & {"hasattr", "getattr", "vars"}:  # a class that has one object: `if cls.one is None`
        blank.update((name, type(None)) for name in left if type(members[name]) is kind)
    return first, blank


def _empty(value: Any) -> Callable[[], Any] | None:
    """Return what makes an empty container of that kind; None for another value."""
    kind: Any = type(value)
    if kind is defaultdict:
        return functools.partial(defaultdict, value.default_factory)
    if kind is deque:
        return functools.partial(deque, (), value.maxlen)
    return kind if kind in _FILLED else None


def _bare(part: Any) -> Any:
    return getattr(part, "__func__", getattr(part, "func", part))


def _known(slots: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return of a function's state what is made of no object of a class."""

    def is_known(value: Any) -> bool:
        return type(value) in (*_KNOWN, *SCALARS) or issubclass(type(value), type)

    cells = {}
    for at, cell in enumerate(slots["__closure__"] or ()):
        with contextlib.suppress(ValueError):  # it is empty
            if is_known(cell.cell_contents):
                cells[at] = cell.cell_contents
    names = {name: value for name, value in slots["__globals__"].items() if is_known(value)}
    defaults, keywords = slots["__defaults__"], slots["__kwdefaults__"]
    defaults = defaults if all(map(is_known, defaults or ())) else None
    return names, cells, defaults, keywords if all(map(is_known, (keywords or {}).values())) else None
