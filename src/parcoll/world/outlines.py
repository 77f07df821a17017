"""Outlines: what a module's text says of an import of it, what a value is made of, what is told of others.

Told is, of objects in modules that cannot travel themselves: of a mock of `unittest.mock` what it does, of a
function of `functools.singledispatch` which classes others have registered with it, and of a context variable
what it has.
"""

from __future__ import annotations

import ast
import dis
import functools
import os
import sys
from contextvars import ContextVar
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire.codec import by_value, loads, modules_in, prefers_value
from parcoll.wire.named import of_modules, value_of
from parcoll.wire.own_modules import stamp_of, text_of
from parcoll.wire.reducers import is_dispatching, is_made

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
                literals[target.id] = _is_plain(value) and literals.get(target.id, True)
        inside = [(f"{node.name}.", inner) for inner in node.body] if isinstance(node, ast.ClassDef) else []
        for prefix, inner in [("", node), *inside]:
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inner.decorator_list:
                undecorated.add(prefix + inner.name)
    plain = frozenset(name for name, is_one in literals.items() if is_one)
    return Outline(plain, frozenset(literals.keys() - plain), frozenset(undecorated))


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
        return Outline(frozenset(), frozenset(), frozenset())


def names_folder(folder: str, data: bytes, value: Any) -> bool:
    """Tell whether the data of a value has all parts of a folder's path."""
    parts = [part.encode(errors="surrogateescape") for part in folder.split(os.sep)]
    if not all(part in data for part in parts):
        return False
    # The code of a function that travels by value names its file, which may stand in the same folder.
    for file in {code.co_filename.encode(errors="surrogateescape") for code in modules_in(value)[1]}:
        data = data.replace(file, b"")
    return all(part in data for part in parts)


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


class Mock(NamedTuple):
    """What a mock does, of `unittest.mock`, which cannot be pickled; the calls that it has had stay here."""

    number: int  # in the order in which they are met: one may return itself
    kind: str  # of its class; none where it has been met
    returns: Any
    effect: Any
    attributes: dict[str, Any]
    wraps: Any = None

    @staticmethod
    def is_one(value: Any) -> bool:
        """Tell whether a value is a mock."""
        mock = sys.modules.get("unittest.mock")
        return mock is not None and isinstance(value, mock.NonCallableMock)

    @classmethod
    def of(cls, value: Any, met: dict[int, int] | None = None) -> Mock:
        """Describe a mock."""
        met = {} if met is None else met
        if id(value) in met:
            return cls(met[id(value)], "", None, None, {})
        number = met[id(value)] = len(met)
        mock = sys.modules["unittest.mock"]
        state = vars(value)
        found = {n: part for n, part in state["_mock_children"].items() if n[:2] != "__" or cls.is_one(part)}
        found |= {
            k: v for k, v in state.items() if not k.startswith(("_mock", "_spec")) and k != "method_calls"
        }
        attributes = {name: cls.of(part, met) if cls.is_one(part) else part for name, part in found.items()}
        func = state.get("_mock_delegate")  # that `create_autospec` has made: what is set is set there
        returns = state.get("_mock_return_value", mock.DEFAULT) if func is None else func.return_value
        returns = (
            cls.of(returns, met) if cls.is_one(returns) else None if returns is mock.DEFAULT else (returns,)
        )
        effect = state.get("_mock_side_effect") if func is None else func.side_effect
        if getattr(effect, "__module__", None) == mock.__name__:  # a mock's own of `__iter__`, say
            effect = None
        name = type(value).__mro__[1].__name__
        return cls(number, name, returns, effect, attributes, state.get("_mock_wraps"))

    def make(self, made_ones: dict[int, Any] | None = None) -> Any:
        """Make a mock that does the same."""
        from unittest import mock

        ones = {} if made_ones is None else made_ones
        if not self.kind:
            return ones[self.number]
        made = ones[self.number] = getattr(mock, self.kind)(wraps=self.wraps)
        for name, part in self.attributes.items():
            setattr(made, name, part.make(ones) if isinstance(part, Mock) else part)
        if self.returns is not None:
            made.return_value = self.returns.make(ones) if isinstance(self.returns, Mock) else self.returns[0]
        if self.effect is not None:
            made.side_effect = self.effect
        return made


def mock_of(value: Any) -> Mock | None:
    """Describe a mock, or a function that `create_autospec` has made; None for anything else."""
    found = value.__dict__.get("mock") if type(value) is FunctionType else value
    return Mock.of(found) if Mock.is_one(found) else None
