"""Ordered: how what leads back to itself is pickled, so that each part finds what it needs when it is made.

Classes that have objects of themselves, and objects that are keys of tables to which they lead.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from parcoll.errors import SerializationError


def settled(*_: Any) -> None:
    """Do nothing: all has been done where the arguments were unpickled."""


class Later:
    """What is reduced when a pickler comes to it."""

    def __init__(self, reduced: Callable[[], Any]) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced()


# Classes ------------------------------------------------------------------------------------------

_SCALARS = (int, float, complex, str, bytes, bool, type(None))
_CODE = (FunctionType, staticmethod, classmethod, property, functools.cached_property)
_KNOWN = (FunctionType, types.BuiltinFunctionType, types.ModuleType)  # what is made of no object of a class
_ATOMS = frozenset(_SCALARS)
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
        if (
            of in _ATOMS
            or of in _CODE
            or of in _CONTAINERS
            or of in self._table
            or issubclass(of, self._known)
        ):
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
            self.depth += 1
            return settled, (*parts, Later(end))

        def end() -> Any:
            self.depth -= 1
            return settled, ()

        given = Later(lambda: (set_states, (states,)))
        # What libraries have made: the fields of a dataclass are asked for when one gets its state.
        made = {name: part for name, part in state[0].items() if name[:2] == "__" and name not in first}
        noted = Later(lambda: (self._set_first, (kind, made, {})))
        steps = Later(functions), Later(names), given, noted, Later(rest)
        parts = Later(lambda: (settled, steps))
        return make, arguments, parts, None, None, settled


def set_states(states: Iterable[tuple[Any, Any, Callable[..., Any]]]) -> None:
    """Give functions all that they have."""
    for func, state, setter in states:
        setter(func, state)


_OF_C = {"_io", "_socket", "socket", "_ssl", "ssl", "mmap", "select"}
_OF_PROCESS = {("threading", "Thread"), ("subprocess", "Popen"), ("concurrent.futures._base", "Executor")}
_OF_PROCESS |= {("multiprocessing.process", "BaseProcess"), ("asyncio.events", "AbstractEventLoop")}


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


def _first(kind: type, members: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the members that are made of no object of the class, and what stands for others meanwhile."""
    first = {n: part for n, part in members.items() if type(part) in _CODE or type(part) in _SCALARS}
    left = [name for name in members if name not in first and name[:2] != "__" and name != "_abc_impl"]
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
        return type(value) in (*_KNOWN, *_SCALARS) or issubclass(type(value), type)

    cells = {}
    for at, cell in enumerate(slots["__closure__"] or ()):
        with contextlib.suppress(ValueError):  # it is empty
            if is_known(cell.cell_contents):
                cells[at] = cell.cell_contents
    names = {name: value for name, value in slots["__globals__"].items() if is_known(value)}
    defaults, keywords = slots["__defaults__"], slots["__kwdefaults__"]
    defaults = defaults if all(map(is_known, defaults or ())) else None
    return names, cells, defaults, keywords if all(map(is_known, (keywords or {}).values())) else None


# Objects that their own class has ------------------------------------------------------------------

Path = tuple[Any, ...]  # an attribute of a class, and a key or position in what that is

DEPTH = 4
MOST_HELD = 1000  # parts of classes and their tables, which are looked through for each pickle
MOST_PARTS = 100


class Known(NamedTuple):
    """What is known of a class whose objects are pickled."""

    held: dict[int, Path]  # which of them it has itself, by their ids
    is_hashed: bool  # whether they have a hash of their own
    is_bare: bool  # whether one without attributes has nothing but its identity

    @classmethod
    def of(cls, kind: Any) -> Known:
        """Look at a class."""
        default = is_by_default(kind) and not hasattr(kind, "__setstate__")
        has_slots = any("__slots__" in vars(base) for base in kind.__mro__[:-1])
        is_bare = default and not has_slots and not is_of_python(kind)
        return cls(held_by(kind), default and type(kind.__hash__) is FunctionType, is_bare)

    def reduced(self, value: Any, elsewhere: dict[int, Path], named: Callable[[str], Any]) -> Any:
        """Return the reduction of an object that a class has, or that is a key; else NotImplemented."""
        path = self.held.get(id(value)) or elsewhere.get(id(value))
        if path is not None:
            held = reduced_held(type(value), path, value, named)
            if held is not NotImplemented:
                return held
        return reduced_hashed(value) if self.is_hashed and leads_to_keys(value) else NotImplemented


def is_of_python(kind: type) -> bool:
    """Tell whether objects of a class are lists, numbers or the like, too."""
    return any(base.__module__ == "builtins" for base in kind.__mro__[:-1])


def held_by(kind: type) -> dict[int, Path]:
    """Return where a class has objects of its own, by their ids: `Color.RED`, or one of a table."""
    bases = [((name,), value) for base in kind.__mro__[:-1] for name, value in vars(base).copy().items()]
    return {at: path for at, (path, found) in _looked_through(bases).items() if type(found) is kind}


def held_by_others(names: dict[str, Any]) -> dict[int, Path]:
    """Return the same of all objects of the script's that its classes have, whose names these are."""
    kinds = [(name, found) for name, found in names.copy().items() if issubclass(type(found), type)]
    classes = [(name, kind) for name, kind in kinds if kind.__module__ == "__main__"]
    parts = [((None, name, at), part) for name, kind in classes for at, part in vars(kind).copy().items()]
    found = _looked_through(parts)
    return {at: path for at, (path, _) in found.items()}


def _looked_through(left: list[tuple[Path, Any]]) -> dict[int, tuple[Path, Any]]:
    """Return what has a name in classes, and what their tables have, by ids."""
    found: dict[int, tuple[Path, Any]] = {}
    for path, value in left:  # which grows
        of_script = type(value).__module__ == "__main__"
        if not of_script and isinstance(value, (dict, list, tuple)) and len(path) < DEPTH:
            if str(path[-1])[:2] == "__":
                continue
            pairs = dict.copy(value).items() if isinstance(value, dict) else enumerate(value)
            if len(value) + len(left) <= MOST_HELD:
                left += [((*path, at), part) for at, part in pairs if type(at) in (int, str)]
        elif of_script and not issubclass(type(value), Enum):  # its members have names
            found.setdefault(id(value), (path, value))
    return found


def behind_class(kind: type, value: Any) -> Any:
    """Return an object of a class that goes first."""
    return value


def reduced_held(kind: type, path: Path, value: Any, named: Callable[[str], Any]) -> Any:
    """Reduce an object that its class has, so that it is that one again where that one is like it."""
    reduction = value.__reduce_ex__(5)
    if isinstance(reduction, str) or any(reduction[3:]) or not _is_plain(reduction[:3], [0]):
        return NotImplemented
    return held, (kind, path, _Copy(reduction[:3]), *([named] if path[0] is None else ()))


class _Copy:
    def __init__(self, reduction: tuple[Any, ...]) -> None:
        self._reduction = reduction

    def __reduce__(self) -> Any:
        make, *rest = self._reduction
        return (_new if make is copyreg.__newobj__ else make), *rest  # type: ignore[attr-defined]


def _new(kind: Any, *arguments: Any) -> Any:
    return kind.__new__(kind, *arguments)


def held(kind: Any, path: Path, value: Any, named: Callable[[str], Any] | None = None) -> Any:
    """Return what the class has, or another one of the script's, if it is like this copy; else the copy."""
    with contextlib.suppress(Exception):
        owner, (name, *keys) = (kind, path) if named is None else (named(path[1]), path[2:])
        found = next(vars(base)[name] for base in owner.__mro__ if name in vars(base))
        for at in keys:
            found = found[at]
        if type(found) is kind and _are_alike(found.__reduce_ex__(5)[:3], value.__reduce_ex__(5)[:3]):
            return found
    return value


def _is_plain(value: Any, seen: list[int]) -> bool:
    seen[0] += 1
    kind = type(value)
    if kind in (tuple, list, dict):
        parts = [*value, *value.values()] if kind is dict else value
        return seen[0] + len(parts) <= MOST_PARTS and all(_is_plain(part, seen) for part in parts)
    return (
        kind in _SCALARS or kind in (types.FunctionType, types.BuiltinFunctionType) or issubclass(kind, type)
    )


def _are_alike(one: Any, other: Any) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return [*one] == [*other] and _are_alike([*one.values()], [*other.values()])
    if kind in (tuple, list):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    if kind is types.FunctionType:
        given = (one.__defaults__, one.__kwdefaults__), (other.__defaults__, other.__kwdefaults__)
        return one.__code__ == other.__code__ and not one.__closure__ and given[0] == given[1]
    if kind in (float, complex):
        return repr(one) == repr(other)
    return one is other or (kind in _SCALARS and bool(one == other))


# Objects that are keys ------------------------------------------------------------------------------


def reduced_hashed(value: Any) -> Any:
    """Reduce what has a hash of its own: numbers and texts are set first, then objects, containers last.

    A table that it leads to may have it as a key, whose hash is made of these.
    """
    make, arguments, state, *items = value.__reduce_ex__(5)
    names, slots = state if type(state) is tuple and len(state) == 2 else (state, {})
    if type(names) not in (dict, type(None)) or type(slots) is not dict:
        return NotImplemented
    parts: tuple[dict[str, Any], ...] = {}, {}, {}
    for name, part in {**(names or {}), **slots}.items():
        parts[0 if _is_plain(part, [0]) else 2 if type(part) in _CONTAINERS else 1][name] = part
    steps = tuple(Later(functools.partial(_setting, value, part)) for part in parts if part)
    return make, arguments, Later(lambda: (settled, steps)), *items, settled


_CONTAINERS = (dict, set, frozenset, list, tuple)


def is_by_default(kind: Any) -> bool:
    """Tell whether objects of a class are pickled as Python does where nobody says how."""
    return kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__


def leads_to_keys(value: Any, depth: int = 3) -> bool:
    """Tell whether an object of the script's leads to a table whose keys have a hash of their own."""
    parts = getattr(value, "__dict__", None)
    if parts is None:
        slots = (vars(base).get("__slots__", ()) for base in type(value).__mro__[:-1])
        names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
        parts = {name: getattr(value, name, None) for name in names if name[:2] != "__"}
    for part in parts.values():
        kind = type(part)
        if kind in _ATOMS:
            continue
        if kind in _CONTAINERS:
            first = next(iter(part), None)
            is_key = type(first).__module__ == "__main__" and kind not in (list, tuple)
            if is_key and type(type(first).__hash__) is FunctionType:
                return True
            part = next(iter(part.values()), None) if kind is dict else first
        if type(part).__module__ == "__main__" and depth > 1 and leads_to_keys(part, depth - 1):
            return True
    return False


def _setting(value: Any, parts: dict[str, Any]) -> Any:
    return _set_parts, (value, parts)


def _set_parts(value: Any, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        object.__setattr__(value, name, part)
