"""Outlines: what a module's text says of an import of it, what a value is made of, what is told of others.

Told is, of objects in modules that cannot travel themselves: of a mock of `unittest.mock` what it does, of a
function of `functools.singledispatch` which classes others have registered with it, and of a context variable
what it has. An object that can be filled stays the one that other modules have.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import operator
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Set
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire.codec import LOCKS, by_value, loads, prefers_value
from parcoll.wire.named import claims, of_modules, original, replaced, value_of
from parcoll.wire.own_modules import stamp_of, text_of
from parcoll.wire.reducers import is_dispatching, is_made
from parcoll.world import libraries
from parcoll.world.libraries import CONTAINERS

ATOMS = (type(None), bool, int, float, complex, str, bytes)
CODE = (FunctionType, BuiltinFunctionType, MethodType, functools.partial)
WRAPPED = (staticmethod, classmethod, property)
CACHED: type = functools._lru_cache_wrapper
HEAP = 1 << 9  # a flag that C's own classes lack (Py_TPFLAGS_HEAPTYPE): nothing can be set there


class Outline(NamedTuple):
    """What the text of a module says of what an import gives."""

    literals: frozenset[str]  # names to which it gives plain values, and no others
    computed: frozenset[str]  # names to which it gives what it makes
    undecorated: frozenset[str]  # functions and methods that are what their `def` makes
    unseeded: frozenset[str]  # names to which it gives what a call without arguments makes
    others: frozenset[str]  # names that it has but for plain values, and "*" where it may have any

    def gives(self, path: str) -> bool:
        """Tell whether an import gives a name more than a plain value; not, where only the script can."""
        return path not in self.literals if "." in path else not self.others.isdisjoint((path, "*"))


@functools.lru_cache(maxsize=256)
def _outline(text: str) -> Outline:
    literals: dict[str, bool] = {}
    undecorated: set[str] = set()
    unseeded: set[str] = set()
    others: set[str] = set()
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                value = getattr(node, "value", None)
                literals[target.id] = _is_plain(value) and literals.get(target.id, True)
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            others.update(_bound_by(node))
        inside = [(f"{node.name}.", inner) for inner in node.body] if isinstance(node, ast.ClassDef) else []
        for prefix, inner in [("", node), *inside]:
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inner.decorator_list:
                undecorated.add(prefix + inner.name)
            value = getattr(inner, "value", None)
            if prefix and isinstance(inner, (ast.Assign, ast.AnnAssign)) and isinstance(value, ast.Constant):
                literals.update((prefix + name, True) for name in _bound_by(inner))
            if isinstance(value, ast.Call) and not value.args and not value.keywords:
                of = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                unseeded.update(prefix + target.id for target in of if isinstance(target, ast.Name))
    plain = frozenset(name for name, is_one in literals.items() if is_one)
    computed = frozenset(literals.keys() - plain)
    return Outline(plain, computed, frozenset(undecorated), frozenset(unseeded), computed | others)


def _bound_by(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement gives something, but for what functions do in it."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    if isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for inner in ast.iter_child_nodes(node):
        yield from _bound_by(inner)


def _is_plain(value: ast.expr | None) -> bool:
    """Tell whether an expression is a constant, or makes an empty container."""
    if isinstance(value, ast.Call):
        makes = isinstance(value.func, ast.Name) and value.func.id in ("bytearray", "dict", "list", "set")
        return makes and not value.args and not value.keywords
    if isinstance(value, (ast.List, ast.Tuple)):
        return not value.elts
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Dict) and not value.values)


def outline_of(module: ModuleType) -> Outline:
    """Return what the text of a module says; nothing where there is no text."""
    try:
        path = Path(module.__file__ or "")
        return _outline(text_of(path, stamp_of(path)))
    except (OSError, SyntaxError, ValueError, AttributeError):
        none = frozenset[str]()
        return Outline(none, none, none, none, frozenset("*"))


ABSENT = object()  # stands for what no name has


def give_back(owner: Any, name: str, before: Any) -> None:
    """Have a name of an owner's refer to what it had before; to nothing if that is ABSENT."""
    if before is not ABSENT:
        setattr(owner, name, before)
    elif name in vars(owner):
        delattr(owner, name)


def reference_to(value: Any) -> str | None:
    """Return by which name every process has a function or class; None where it has none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module and name and not is_made(module) and "<" not in name:
        with contextlib.suppress(AttributeError, KeyError):
            if (module, name) in replaced:  # the name is the original's
                return None if claims(value) else f"{module}:{name}"
            if operator.attrgetter(name)(sys.modules[module]) is value:
                return f"{module}:{name}"
    return None


def referred(text: str) -> Any:
    """Return what has such a name."""
    module, _, name = text.partition(":")
    return original(module, name)


# Shapes -------------------------------------------------------------------------------------------


def shape_of(value: Any) -> list[Any] | None:
    """Return the objects that a value with functions is made of; None where only its pickle can tell.

    As long as they are the same objects the pickle is the same, and comparing them takes a third of its time
    for a table of some functions, a twentieth for one function (22 and 440 us).
    """
    parts: list[Any] = []
    try:
        return parts if not prefers_value() and _add(value, parts, set()) else None
    except Exception:  # a variable that is not set yet, too many levels, annotations that raise
        return None


def _add(value: Any, parts: list[Any], seen: set[int]) -> bool:
    """Add what a value is made of; tells whether that is all that its pickle depends on."""
    parts.append(value)
    kind = type(value)
    if kind in ATOMS or id(value) in seen:
        return True
    if kind is ModuleType:
        return not is_made(value.__name__)
    seen.add(id(value))
    if kind in CONTAINERS:
        inner = [*value, *value.values()] if kind is dict else value
    elif kind is functools.partial:
        inner = value.__reduce__()[2]  # to ask for its `__dict__` makes one, which changes the pickle
    elif kind is BuiltinFunctionType:
        inner = [value.__self__]
    elif kind is CACHED:  # what it has kept is not pickled
        return _is_by_name(value)
    elif kind in LOCKS:
        return True
    elif is_record(value) and not hasattr(kind, "__slots__"):
        parts.append(kind)
        inner = [*vars(value), *vars(value).values()]
    elif kind is FunctionType or kind is type:
        by_name = _is_by_name(value) or (kind is type and not value.__flags__ & HEAP)
        parts.append(by_name)
        if not by_name and (kind is type or is_made(value.__module__)):
            return False
        inner = [] if by_name else _inside(value, parts)
    else:
        return False
    return all(_add(part, parts, seen) for part in inner)


def _is_by_name(value: Any) -> bool:
    """Tell whether a function or class is where its name says: then that is all that is pickled."""
    module = value.__module__
    if is_made(module) or module not in sys.modules:
        return False
    try:
        return operator.attrgetter(value.__qualname__)(sys.modules[module]) is value
    except AttributeError:
        return False


def _inside(func: FunctionType, parts: list[Any]) -> list[Any]:
    """Return what a function has that is pickled with it; what nothing can be set in is only noted."""
    parts += (func.__code__, func.__name__, func.__qualname__, func.__module__, func.__doc__)
    parts += func.__annotations__.values()
    cells = [cell.cell_contents for cell in func.__closure__ or ()]
    names = _names_in(func.__code__)
    named = [func.__globals__[name] for name in names if name in func.__globals__]
    return [func.__defaults__, func.__kwdefaults__, vars(func), *cells, *named]


@functools.lru_cache(maxsize=1024)
def _names_in(code: CodeType) -> tuple[str, ...]:
    """Return the globals that a function's code names, and the code within it."""
    named = [one.argval for one in dis.get_instructions(code) if one.opname.endswith("_GLOBAL")]
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return (*named, *(name for part in inner for name in _names_in(part)))


# Objects that cannot travel -----------------------------------------------------------------------


TOLD = ("registry", "variable")


def told_of(value: Any) -> tuple[str, bytes] | None:
    """Return what is told of a function that dispatches, or of a context variable; None of anything else."""
    if type(value) is ContextVar:
        return "variable", by_value(value_of(value))
    if type(value) is FunctionType and is_dispatching(value):
        registry = getattr(value, "registry").items()  # noqa: B009 - which the type of functions lacks
        added = [(kind, func) for kind, func in registry if func.__module__ != value.__module__]
        return "registry", by_value(added)
    return None


def take(here: Any, kind: str, data: bytes) -> None:
    """Have an object of a worker's be as it was told."""
    found = loads(data)
    if kind == "variable" and type(here) is ContextVar:
        of_modules[here] = found
    elif kind == "registry" and type(here) is FunctionType and is_dispatching(here):
        for of, func in found:
            here.register(of, func)  # type: ignore[attr-defined]


def renamed(func: FunctionType, path: str) -> FunctionType:
    """Return a function that travels as it is, and not by the name of the one that it stands for."""
    made = FunctionType(func.__code__, func.__globals__, func.__name__, func.__defaults__, func.__closure__)
    made.__qualname__ = f"<locals>.{path}"
    made.__kwdefaults__ = func.__kwdefaults__
    return made


# Objects that are filled --------------------------------------------------------------------------


def fill(here: Any, value: Any) -> bool:
    """Give an object what another of its class holds; tells whether that can be done."""
    if here is value:  # of a class that makes one object and no more: it has what was unpickled
        return True
    if isinstance(here, dict):
        here.clear()
        here.update(value)
        if isinstance(here, defaultdict):
            here.default_factory = value.default_factory
    elif isinstance(here, (list, bytearray)):
        here[:] = value
    elif isinstance(here, set):
        here.clear()
        here |= value
    elif isinstance(here, deque) and here.maxlen == value.maxlen:
        here.clear()
        here.extend(value)
    elif type(here) in libraries.generators():
        return libraries.draw_as(here, value)
    elif not is_record(here):
        return False
    if type(getattr(here, "__dict__", None)) is dict:
        vars(here).clear()
        vars(here).update(vars(value))
    return True


def is_shared(value: Any) -> bool:
    """Tell whether it matters that two names have the same object."""
    kind = type(value)
    if kind is dict or kind is list or kind in _ATOMS:  # most are, and to ask `isinstance` takes 0.4 us
        return kind not in _ATOMS
    return not isinstance(value, (*ATOMS, *CODE, tuple, frozenset, type, ModuleType))


def inside(value: Any) -> Iterator[tuple[bool, Any, Any]]:
    """Yield what an object holds that may have another name: whether as an item, its key or name, and it."""
    if isinstance(value, (dict, list, deque)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        kinds = set(map(type, value.values() if isinstance(value, dict) else value))
        if not kinds <= _ATOMS:
            yield from (
                (True, key, part) for key, part in list(items) if is_shared(part) and type(key) in _ATOMS
            )
    if type(getattr(value, "__dict__", None)) is dict:
        yield from ((False, name, part) for name, part in list(vars(value).items()) if is_shared(part))


def put_inside(value: Any, route: Iterable[tuple[bool, Any]], part: Any) -> None:
    """Put an object at a place within another one."""
    *steps, (is_item, key) = route
    for by_item, name in steps:
        value = value[name] if by_item else vars(value)[name]
    holder = value if is_item else vars(value)
    if type(holder[key]) is type(part):
        holder[key] = part


_ATOMS = set(ATOMS)


class Link(NamedTuple):
    """A place in what one name has, where the object is that another name has: `STATE["tree"] is TREE`."""

    path: str
    route: tuple[tuple[bool, Any], ...]  # from that name's object: whether it is an item, and its key or name
    module: str
    target: str


MOST_PARTS = 1_000  # containers of one module that are looked through for links, which takes 2 ms


def links_of(values: dict[str, Any], targets: dict[int, tuple[str, str]], module: str) -> frozenset[Link]:
    """Return where values of a module, by path, hold objects that other names have; `targets` has these."""
    found: set[Link] = set()
    left, seen = deque[tuple[str, Any, Any]](), set[int]()
    for path, value in values.items():
        own = targets.get(id(value), (module, path))
        if own != (module, path):
            found.add(Link(path, (), *own))
        else:
            left.append((path, (), value))
    while left and len(seen) < MOST_PARTS:
        path, route, value = left.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for is_item, key, part in inside(value):
            target = targets.get(id(part))
            if target is None:
                if len(left) < MOST_PARTS:
                    left.append((path, (*route, (is_item, key)), part))
            elif target != (module, path):  # else it leads back to itself
                found.add(Link(path, (*route, (is_item, key)), *target))
    return frozenset(found)


def turn(holder: Any, old: Any, new: Any) -> None:
    """Have all that an object holds refer to another one, where it refers to the object itself."""
    left, seen = [holder], set()
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, (*ATOMS, *CODE, type, ModuleType)):
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            for key, value in list(part.items()):
                if value is old:
                    part[key] = new
            left += [*part, *part.values()]
        elif isinstance(part, (list, deque)):
            for at, value in enumerate(part):
                if value is old:
                    part[at] = new
            left += part
        elif isinstance(part, set) and any(value is old for value in part):
            part.remove(old)
            part.add(new)
        if isinstance(part, (tuple, set, frozenset)):
            left += part
        if type(getattr(part, "__dict__", None)) is dict:
            left.append(vars(part))


_PICKLE_METHODS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def is_record(value: Any) -> bool:
    """Tell whether all that an object is stands in its `__dict__`, and may change."""
    kind = type(value)
    other = (type, *CODE, *WRAPPED, Set, tuple, Enum, BaseException)
    if isinstance(value, other) or hasattr(kind, "__setstate__"):
        return False
    own_pickle = any(name in vars(base) for base in kind.__mro__[:-1] for name in _PICKLE_METHODS)
    is_value = "__hash__" in vars(kind) and kind.__hash__ is not None
    return type(getattr(value, "__dict__", None)) is dict and not own_pickle and not is_value
