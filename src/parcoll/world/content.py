"""Content: the value of a name in a module, as bytes by which it is compared, and of which it is made again.

There are five kinds: plain data of built-in types, data of classes that hold data, what another module has,
functions and mocks that are put in the place of another, and what can only be told of (`outlines`). Anything
else has no content, and stays in each process what the import there gave.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import marshal
import sys
from collections import defaultdict, deque
from collections.abc import Set
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from parcoll.wire import memmaps
from parcoll.wire.codec import by_value, loads
from parcoll.wire.own_modules import is_own_module
from parcoll.wire.reducers import is_made, names_made
from parcoll.world.outlines import ATOMS, CONTAINERS, TOLD, Mock, mock_of, outline_of, take, told_of, walked

LOOKED_AT = 64 * 1024  # bytes of content that are compared before each evaluation; of more, the length
CARRIED = 2**20  # bytes that travel, whether the script has changed them or not
MOST = 16 * 2**20  # bytes that travel where it has

PLAIN = {*ATOMS, CodeType, type(...)}  # what marshal knows beside containers
WRAPPED = (staticmethod, classmethod, property)
# Whose instances are data, beside the user's own classes.
DATA_MODULES = {
    "argparse",
    "array",
    "collections",
    "configparser",
    "datetime",
    "decimal",
    "fractions",
    "uuid",
}
DATA_MODULES |= {"functools", "ipaddress", "numpy", "operator", "pandas", "pathlib", "re", "string", "types"}
DATA_MODULES |= {"unittest", "zoneinfo"}  # of mocks: sentinels
CODE = (FunctionType, BuiltinFunctionType, MethodType, functools.partial)


class Content:
    """What a name refers to. It travels without `value`."""

    __slots__ = ("data", "kind", "may_change", "travels", "value")

    def __init__(
        self, kind: str, data: bytes, may_change: bool = False, travels: bool = True, value: Any = None
    ) -> None:
        self.kind = kind
        self.data = data
        self.may_change = may_change  # without being another object
        self.travels = travels  # whether the script has changed it or not
        self.value = value  # where the data is too large to be kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and self.kind == other.kind and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Content, (self.kind, self.data)

    def is_of(self, value: Any) -> bool:
        """Tell whether a value that had this content, which is not plain or large, has it still."""
        try:
            if self.kind in TOLD:
                return told_of(value) == (self.kind, self.data)
            return self.data == (_pickled(value) if self.value is None else _tag(value))
        except Exception:
            return False

    def full(self) -> Content:
        """Return it with all that travels."""
        if self.value is None:
            return self
        try:
            data = marshal.dumps(self.value, 2)
        except ValueError:
            return _pickled_data(self.value, MOST)
        if len(data) > MOST:
            raise _TooLargeError
        return Content("plain", data)

    def load(self) -> Any:
        """Return a value of this content."""
        if self.kind == "plain":
            return marshal.loads(self.data)
        if self.kind == "module":
            return importlib.import_module(self.data.decode())
        if self.kind == "reference":
            return _referred(self.data.decode())
        found = loads(self.data)
        return found.make() if isinstance(found, Mock) else found


def content_of(value: Any, module: str, path: str) -> Content | None:
    """Return the content of what a module, or its class or function, has under a name; None without any.

    None as well for functions and classes that stand where their own module defines them.
    """
    in_class = "." in path
    try:
        kind = type(value)
        if kind in ATOMS:
            return Content("plain", marshal.dumps(value, 2))
        mocked = mock_of(value)  # which may say that it is of any class
        if mocked is not None:
            return Content("pickle", by_value(mocked), may_change=True)
        if isinstance(value, ModuleType):
            name = value.__name__
            return Content("module", name.encode()) if sys.modules.get(name) is value else None
        if kind is MethodType and path not in outline_of(sys.modules[module]).undecorated:
            return None  # of an object that the module has as well, perhaps: this one stays bound to that
        found = told_of(value)
        if found is not None and (kind is not FunctionType or is_own_function(value, module, path)):
            return Content(*found, may_change=True)
        if isinstance(value, (*CODE, type)):
            if not is_own_function(value, module, path):
                return _code(value)
            return _wrapped(value, path) if _is_patched(value, module, path) else None
        if kind in WRAPPED:
            inner = value.fget if isinstance(value, property) else value.__func__
            return None if is_own_function(inner, module, path) else Content("pickle", by_value(value))
        if (plain := _plain(value)) is not None:
            return plain
        if not _is_data(kind) or (in_class and _is_part_of_class(kind)):
            return None
        return _pickled_data(value, CARRIED)
    except Exception:  # it cannot be pickled, or raises when it is looked at
        return None


def is_own_function(value: Any, module: str, path: str) -> bool:
    """Tell whether a function or class stands where its own module defines it."""
    return getattr(value, "__module__", None) == module and getattr(value, "__qualname__", None) == path


# What an import gives each module, or Python notes there.
_OF_IMPORT = {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__"}
_OF_IMPORT |= {"__builtins__", "__path__", "__annotations__", "__warningregistry__", "__dict__"}


def is_set_by_users(name: str, value: Any, in_class: bool) -> bool:
    """Tell whether a name with two underscores may be what a program has set.

    In a module these are all but Python's own (`__getattr__`, `__version__`); in a class the methods that are
    of the user's own, and not what Python or a library has made.
    """
    if not in_class:
        return name not in _OF_IMPORT
    if type(value) is FunctionType:
        return is_made(value.__module__) or is_own_module(value.__module__, sys.modules.get(value.__module__))
    return Mock.is_one(value)


def _is_patched(value: Any, module: str, path: str) -> bool:
    """Tell whether a function that has the name and module of another was put in its place."""
    if type(value) is not FunctionType:
        return False
    found = sys.modules[module]
    elsewhere = value.__code__.co_filename != getattr(found, "__file__", None)
    return (elsewhere or hasattr(value, "__wrapped__")) and path in outline_of(found).undecorated


def _wrapped(value: Any, path: str) -> Content:
    copy = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, value.__closure__
    )
    copy.__qualname__ = f"<locals>.{path}"  # else it would travel by its name
    copy.__kwdefaults__ = value.__kwdefaults__
    return Content("pickle", by_value(copy))


def resolved(module: ModuleType, path: str) -> tuple[Any, str]:
    """Return what has the name at the end of a path, and the name; None for what where it is not there."""
    owner, _, name = path.rpartition(".")
    if not owner:
        return module, name
    found = vars(module).get(owner)
    return (found if isinstance(found, (type, FunctionType)) else None), name


def put(owner: Any, name: str, content: Content, anew: bool = False) -> bool:
    """Give a name this content; tells whether it refers to another object now.

    A container stays the object that it is, since other modules may have it as well; unless `anew`.
    """
    here = vars(owner).get(name)
    if content.kind in TOLD:
        take(here, content.kind, content.data)
        return False
    value = content.load()
    alone = object()
    in_cycle = sys.getrefcount(value) > sys.getrefcount(alone)
    may_fill = content.kind in ("plain", "pickle") and type(here) is type(value) and not anew
    if may_fill and _fill(here, value):
        if in_cycle and here is not value:  # a tree's root, say, to which its branches refer
            _turn(here, value, here)
        return False
    setattr(owner, name, value)
    return True


# Kinds --------------------------------------------------------------------------------------------


def _plain(value: Any) -> Content | None:
    try:
        data = marshal.dumps(value, 2)  # of exact built-in types; the quickest there is
    except ValueError:
        return None
    if not _is_built_in(value):  # an array: marshal makes bytes of all that has a buffer
        return None
    if len(data) > LOOKED_AT and hasattr(value, "__len__"):
        if len(data) > CARRIED:
            return Content("plain", _tag(value), True, False, value)
        return Content("plain", data, False)
    changes = True
    with contextlib.suppress(TypeError):
        hash(value)
        changes = False
    return Content("plain", data, changes)


def _is_built_in(value: Any) -> bool:
    kind = type(value)
    if kind not in CONTAINERS:
        return kind in PLAIN
    parts = [*value, *value.values()] if kind is dict else value
    kinds = set(map(type, parts))
    return kinds <= PLAIN or (kinds <= {*PLAIN, *CONTAINERS} and all(map(_is_built_in, parts)))


def _code(value: Any) -> Content:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module and name and not is_made(module) and "<" not in name:
        with contextlib.suppress(AttributeError, KeyError):
            if walked(sys.modules[module], name) is value:
                return Content("reference", f"{module}:{name}".encode())
    return Content("pickle", by_value(value), may_change=True)


def _referred(text: str) -> Any:
    module, _, name = text.partition(":")
    return walked(importlib.import_module(module), name)


def _is_data(kind: type) -> bool:
    if issubclass(kind, (Enum, BaseException)) or kind in CONTAINERS or kind in (bytearray, range, slice):
        return True
    module = kind.__module__
    return (
        module.partition(".")[0] in DATA_MODULES
        or module == "__main__"
        or is_own_module(module, sys.modules.get(module))
    )


def _is_part_of_class(kind: type) -> bool:
    """Tell whether objects of a class say how another one works, rather than being its data."""
    return issubclass(kind, (Enum, BaseException)) or any(
        hasattr(kind, name) for name in ("__get__", "__set__", "__set_name__")
    )


class _TooLargeError(Exception):
    """More bytes than may travel."""


class _Bounded(io.RawIOBase):
    """Takes so many bytes and no more."""

    def __init__(self, most: int) -> None:
        self.parts: list[bytes] = []
        self._left = most

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
        self.parts.append(bytes(data))
        return len(data)


def _pickled_data(value: Any, most: int) -> Content:
    file = _Bounded(most)
    try:
        memmaps.dump(value, file)
        data = b"".join(file.parts)
    except _TooLargeError:
        if most == MOST:
            raise
        return Content("pickle", _tag(value), True, False, value)
    except Exception:  # it holds a function that only pickling by value can send
        data = by_value(value)
    else:
        data = by_value(value) if names_made(data) else data
    if len(data) > most:
        return Content("pickle", _tag(value), True, False, value)
    return Content("pickle", data, len(data) <= LOOKED_AT)


def _pickled(value: Any) -> bytes:
    mocked = mock_of(value)
    if mocked is not None:
        return by_value(mocked)
    with contextlib.suppress(Exception):
        file = io.BytesIO()
        if not isinstance(value, CODE):
            memmaps.dump(value, file)
            if not names_made(file.getvalue()):
                return file.getvalue()
    return by_value(value)


def _tag(value: Any) -> bytes:
    length = len(value) if hasattr(value, "__len__") else 0
    return f"{type(value).__qualname__} {id(value)} {length}".encode()


def _fill(here: Any, value: Any) -> bool:
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
    elif not _is_record(here):
        return False
    if type(getattr(here, "__dict__", None)) is dict:
        vars(here).clear()
        vars(here).update(vars(value))
    return True


def _turn(holder: Any, old: Any, new: Any) -> None:
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


def _is_record(value: Any) -> bool:
    """Tell whether all that an object is stands in its `__dict__`, and may change."""
    kind = type(value)
    other = (type, *CODE, *WRAPPED, Set, tuple, Enum, BaseException)
    if isinstance(value, other) or hasattr(kind, "__setstate__"):
        return False
    own_pickle = any(name in vars(base) for base in kind.__mro__[:-1] for name in _PICKLE_METHODS)
    is_value = "__hash__" in vars(kind) and kind.__hash__ is not None
    return type(getattr(value, "__dict__", None)) is dict and not own_pickle and not is_value
