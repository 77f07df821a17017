"""Content: the value of a name in a module, as bytes by which it is compared, and of which it is made again.

There are five kinds: plain data of built-in types, data of classes that hold data, what another module has,
functions and mocks that are put in the place of another, and what can only be told of (`outlines`). Anything
else has no content, and stays in each process what the import there gave.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import marshal
import os
import sys
from collections.abc import Callable
from enum import Enum, EnumMeta
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire import memmaps
from parcoll.wire.codec import loads, modules_in
from parcoll.wire.named import home_of
from parcoll.wire.own_modules import is_own_module
from parcoll.wire.reducers import is_made, names_made
from parcoll.world import libraries
from parcoll.world.libraries import (
    CONTAINERS,
    Mock,
    belongs_to_process,
    is_data,
    is_part_of_class,
    mock_of,
    with_locks,
)
from parcoll.world.outlines import (
    ABSENT,
    ATOMS,
    CODE,
    TOLD,
    WRAPPED,
    fill,
    outline_of,
    reference_to,
    referred,
    renamed,
    take,
    told_of,
    turn,
)

LOOKED_AT = 64 * 1024  # bytes of content that are compared before each evaluation; of more, the length
CARRIED = 2**20  # bytes that travel, whether the script has changed them or not
MOST = 16 * 2**20  # bytes that travel where it has

PLAIN = {*ATOMS, CodeType, type(...)}  # what marshal knows beside containers

FILLED = ("plain", "pickle")  # kinds of content that an object can be filled with


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
            return referred(self.data.decode())
        if self.kind == "bases":
            return tuple(map(referred, self.data.decode().split("\n")))
        found = loads(self.data)
        return found.make() if isinstance(found, Mock) else found


def content_of(value: Any, module: str, path: str) -> Content | None:
    """Return the content of what a module, or its class or function, has under a name; None without any.

    None as well for functions and classes that stand where their own module defines them.
    """
    in_class = "." in path
    try:
        kind = type(value)
        if path.endswith(PARTS):
            return _part(value, module)
        if kind in ATOMS:
            return Content("plain", marshal.dumps(value, 2))
        mocked = mock_of(value)  # which may say that it is of any class
        if mocked is not None:
            return Content("pickle", with_locks(mocked), may_change=True)
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
            funcs = [value.fget, value.fset, value.fdel] if kind is property else [value.__func__]
            is_own = all(func is None or is_own_function(func, module, path) for func in funcs)
            return None if is_own else Content("pickle", with_locks(value))
        if (plain := _plain(value)) is not None:
            return plain
        if not is_data(kind) and (belongs_to_process(kind) or outline_of(sys.modules[module]).gives(path)):
            return None
        if in_class and is_part_of_class(kind):
            return None
        data = _pickled_data(value, CARRIED)
        if kind in libraries.generators() and path in outline_of(sys.modules[module]).unseeded:
            data.travels = False  # each process has numbers of its own
        return data
    except Exception:  # it cannot be pickled, or raises when it is looked at
        return None


def given_content(value: Any) -> Content | None:
    """Return the content of an object that the script has put in the place of another; None without any."""
    with contextlib.suppress(Exception):  # it cannot be pickled
        return None if belongs_to_process(type(value)) else _pickled_data(value, CARRIED)
    return None


def is_own_function(value: Any, module: str, path: str) -> bool:
    """Tell whether a function or class stands where its own module defines it."""
    home = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    home = home_of(value) or home if home[0] == "__main__" and issubclass(type(value), type) else home
    return home == (module, path)


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
    return Content("pickle", with_locks(renamed(value, path)))


# What a function or class has that does not stand in its `__dict__`.
PARTS = (".__defaults__", ".__kwdefaults__", ".__code__", ".__bases__")


class _Named(NamedTuple):
    """Stands for what a module has under a name: a sentinel, say, which is compared by `is`."""

    module: str
    name: str

    @staticmethod
    def of(value: Any, module: str) -> Any:
        """Return what stands for a value that has a name in a module, or in that of its class."""
        if not isinstance(value, ATOMS):
            for home in (module, type(value).__module__):
                for name, found in vars(sys.modules[home]).copy().items() if home in sys.modules else ():
                    if found is value:
                        return _Named(home, name)
        return value

    def found(self) -> Any:
        """Return what this process has there."""
        return vars(importlib.import_module(self.module))[self.name]


def _part(value: Any, module: str) -> Content | None:
    if type(value) is tuple and value and all(issubclass(type(base), type) for base in value):
        bases = [reference_to(base) for base in value]
        return Content("bases", "\n".join(filter(None, bases)).encode()) if all(bases) else None
    if (plain := _plain(value)) is not None:
        return plain
    # Only what the script has given a function since the first look travels.
    return Content("pickle", _pickled(_each(value, lambda one: _Named.of(one, module))), travels=False)


def _each(parts: Any, func: Callable[[Any], Any]) -> Any:
    is_dict = isinstance(parts, dict)
    return dict(zip(parts, map(func, parts.values()), strict=True)) if is_dict else tuple(map(func, parts))


def bare(value: Any) -> Any:
    """Return the function that a static method, a class method or a property is made of."""
    kind = type(value)
    return value.fget if kind is property else value.__func__ if kind in WRAPPED else value


def has_code_of_another(func: FunctionType) -> bool:
    """Tell whether the code of a function is that of another one, and not because a decorator made it."""
    code = func.__code__
    other = code.co_qualname != func.__qualname__ and code.co_filename[:1] != "<"
    return other and "__wrapped__" not in vars(func)


def resolved(module: ModuleType, path: str) -> tuple[Any, str]:
    """Return what has the name at the end of a path, and the name; None for what where it is not there."""
    owner: Any = module
    *parents, name = path.split(".")
    for parent in parents:
        names = owner._member_map_ if isinstance(owner, EnumMeta) else {}
        owner = bare(names.get(parent) or vars(owner).get(parent))
        if not isinstance(owner, (type, FunctionType, Enum)):
            return None, name
    return owner, name


def held(owner: Any, name: str) -> Any:
    """Return what an owner has itself under a name; ABSENT for nothing."""
    return getattr(owner, name) if f".{name}" in PARTS else vars(owner).get(name, ABSENT)


def put(owner: Any, name: str, content: Content, anew: bool = False) -> bool:
    """Give a name this content; tells whether it refers to another object now.

    A container stays the object that it is, since other modules may have it as well; unless `anew`.
    """
    here = held(owner, name)
    if content.kind in TOLD:
        take(here, content.kind, content.data)
        return False
    value = content.load()
    if f".{name}" in PARTS and content.kind == "pickle":
        value = _each(value, lambda one: one.found() if isinstance(one, _Named) else one)
    alone = object()
    in_cycle = sys.getrefcount(value) > sys.getrefcount(alone)
    may_fill = content.kind in FILLED and type(here) is type(value) and not anew and f".{name}" not in PARTS
    if may_fill and fill(here, value):
        if in_cycle and here is not value:  # a tree's root, say, to which its branches refer
            turn(here, value, here)
        return False
    setattr(owner, name, value)
    return True


def names_folder(folder: str, data: bytes, value: Any) -> bool:
    """Tell whether the data of a value has all parts of a folder's path."""
    parts = [part.encode(errors="surrogateescape") for part in folder.split(os.sep)]
    if not all(part in data for part in parts):
        return False
    # The code of a function that travels by value names its file, which may stand in the same folder.
    for file in {code.co_filename.encode(errors="surrogateescape") for code in modules_in(value)[1]}:
        data = data.replace(file, b"")
    return all(part in data for part in parts)


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
    name = reference_to(value)
    return Content("reference", name.encode()) if name else Content("pickle", with_locks(value), True)


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
        data = with_locks(value)
    else:
        data = with_locks(value) if names_made(data) else data
    if len(data) > most:
        return Content("pickle", _tag(value), True, False, value)
    return Content("pickle", data, len(data) <= LOOKED_AT)


def _pickled(value: Any) -> bytes:
    mocked = mock_of(value)
    if mocked is not None:
        return with_locks(mocked)
    with contextlib.suppress(Exception):
        file = io.BytesIO()
        if not isinstance(value, CODE):
            memmaps.dump(value, file)
            if not names_made(file.getvalue()):
                return file.getvalue()
    return with_locks(value)


def _tag(value: Any) -> bytes:
    length = len(value) if hasattr(value, "__len__") else 0
    return f"{type(value).__qualname__} {id(value)} {length}".encode()
