"""Outlines: what a module's text says of what an import of it gives, and which objects a value is made of."""

from __future__ import annotations

import ast
import dis
import functools
import sys
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire.codec import prefers_value
from parcoll.wire.own_modules import stamp_of, text_of

ATOMS = (type(None), bool, int, float, complex, str, bytes)
CONTAINERS = (dict, list, set, frozenset, tuple)
CACHED: type = functools._lru_cache_wrapper
HEAP = 1 << 9  # a flag that C's own classes lack (Py_TPFLAGS_HEAPTYPE): nothing can be set there


class Outline(NamedTuple):
    """What the text of a module says of what an import gives."""

    literals: frozenset[str]  # names to which it gives plain values, and no others
    computed: frozenset[str]  # names to which it gives what it makes
    undecorated: frozenset[str]  # functions and methods that are what their `def` makes


@functools.lru_cache(maxsize=256)
def _outline(text: str) -> Outline:
    literals: dict[str, bool] = {}
    undecorated: set[str] = set()
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                value = getattr(node, "value", None)
                is_literal = isinstance(value, ast.Constant) or not any(
                    ast.iter_child_nodes(value) if value is not None else ()
                )
                literals[target.id] = is_literal and literals.get(target.id, True)
        inside = [(f"{node.name}.", inner) for inner in node.body] if isinstance(node, ast.ClassDef) else []
        for prefix, inner in [("", node), *inside]:
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inner.decorator_list:
                undecorated.add(prefix + inner.name)
    plain = frozenset(name for name, is_one in literals.items() if is_one)
    return Outline(plain, frozenset(literals.keys() - plain), frozenset(undecorated))


def outline_of(module: ModuleType) -> Outline:
    """Return what the text of a module says; nothing where there is no text."""
    try:
        path = Path(module.__file__ or "")
        return _outline(text_of(path, stamp_of(path)))
    except (OSError, SyntaxError, ValueError, AttributeError):
        return Outline(frozenset(), frozenset(), frozenset())


def walked(module: Any, name: str) -> Any:
    """Return what a module has at the end of a dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


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
    if kind in ATOMS or kind is ModuleType or id(value) in seen:
        return True
    seen.add(id(value))
    if kind in CONTAINERS:
        inner = [*value, *value.values()] if kind is dict else value
    elif kind is functools.partial:
        inner = value.__reduce__()[2]  # to ask for its `__dict__` makes one, which changes the pickle
    elif kind is BuiltinFunctionType:
        inner = [value.__self__]
    elif kind is CACHED:  # what it has kept is not pickled
        return _is_by_name(value)
    elif kind is FunctionType or kind is type:
        by_name = _is_by_name(value) or (kind is type and not value.__flags__ & HEAP)
        parts.append(by_name)
        if not by_name and (kind is type or value.__module__ == "__main__"):
            return False
        inner = [] if by_name else _inside(value, parts)
    else:
        return False
    return all(_add(part, parts, seen) for part in inner)


def _is_by_name(value: Any) -> bool:
    """Tell whether a function or class is where its name says: then that is all that is pickled."""
    module = value.__module__
    if module == "__main__" or module not in sys.modules:
        return False
    try:
        return walked(sys.modules[module], value.__qualname__) is value
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
