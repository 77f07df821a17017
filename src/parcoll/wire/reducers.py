"""Reducers: how objects travel that pickle and cloudpickle lose, change or refuse.

A reducer returns what a pickle calls to make an object again. This is also the place for all that parcoll
knows of cloudpickle's private parts; test_codec.py fails where one of them changes.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import importlib
import itertools
import operator
import os
import pickle
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from cloudpickle import cloudpickle as _internals

from parcoll.system import collections_wait

NO_FILE = "<dynamic-code>"  # cloudpickle's word for any file
SENTINELS = 10_000  # bare objects that a process remembers, at 0.3 kB each

make_skeleton_class: Callable[..., Any] = _internals._make_skeleton_class
make_skeleton_enum: Callable[..., Any] = _internals._make_skeleton_enum
set_class_state: Callable[..., Any] = _internals._class_setstate
set_function_state: Callable[..., Any] = _internals._function_setstate
track_class: Callable[..., Any] = _internals._lookup_class_or_track
class_numbers: Mapping[type, str] = _internals._DYNAMIC_CLASS_TRACKER_BY_CLASS
make_type_var: Callable[..., Any] = _internals._make_typevar
parts_of_type_var: Callable[..., Any] = _internals._decompose_typevar
reduced_type_var: Callable[..., Any] = _internals._typevar_reduce
globals_named: Callable[[CodeType], Mapping[str, None]] = _internals._extract_code_globals


# A pickler notes each object that it has met, and an object of a long list is met where all that are noted no
# longer fit in the processor's cache: in parts of so many elements, packing takes half of the time.
PART = 2048
PART_BYTES = 2**19  # of a part, at most: text that all elements share is packed once for each part
ROWS = frozenset((tuple, list, dict))
ATOMS = frozenset((str, bytes, int, float, complex, bool, type(None)))


class InParts:
    """A list that is pickled in parts; what is loaded is a list."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return list_of, (self._parts,)


def in_parts(value: list[Any]) -> Any:
    """Return what stands for a long list; the list if it is short, or may have one object in two elements.

    Numbers and texts, and tuples of them, are told apart by their values alone.
    """
    parts: list[bytes] = []
    for at in range(0, len(value) if len(value) >= 2 * PART else 0, PART):
        part = value[at : at + PART]
        if not of_atoms(part):  # a part, which is then in the cache when it is packed
            return value
        parts.append(pickle.dumps(part, 5))
        if len(parts[-1]) > PART_BYTES:
            return value
    return InParts(parts) if parts else value


def of_atoms(values: Sequence[Any], containers: frozenset[type] = frozenset((tuple,))) -> bool:
    """Tell whether values are numbers and texts, or all of them a container with such values."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and kinds <= containers:
        inner = itertools.chain.from_iterable
        if kinds == {dict}:
            return ATOMS.issuperset(map(type, inner(map(dict.values, values)))) and of_atoms([*inner(values)])
        return ATOMS.issuperset(map(type, inner(values)))
    return kinds <= ATOMS


def list_of(parts: list[bytes]) -> list[Any]:
    """Return the list."""
    found: list[Any] = []
    for part in parts:
        found += pickle.loads(part)
        if collections_wait():  # a look at all of them takes longer, when they are not in the cache any more
            gc.collect(0)
    return found


def class_of_number(number: str) -> Any:
    """Return the class of this process that cloudpickle knows by this number."""
    return _internals._DYNAMIC_CLASS_TRACKER_BY_ID.get(number)


def has_number(kind: type) -> bool:
    """Tell whether a class goes, or came, by value."""
    return kind in class_numbers


def is_made(module: str | None) -> bool:
    """Tell whether what a module has means nothing to other processes by its name."""
    return module == "__main__" or module in made_modules


def is_named(value: Any) -> bool:
    """Tell whether an importable module has this function or class under its own name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or is_made(module):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


# Modules that only this process has, made by hand or by a finder of the user's own (`world.own_state`): what
# is of them goes by value. And the names, as pickles have them, of those that have code of the user's.
made_modules: set[str] = set()
made_code: set[bytes] = set()


def names_made(pickled: bytes) -> bool:
    """Tell whether a pickle may name what means nothing to other processes, and is to be made by value.

    The name may also be a user's text: by value is slower then, but still right.
    """
    return b"_main__" in pickled or any(map(pickled.__contains__, made_code))  # also `__mp_main__`


def reduced_of_made(pickler: Any, value: Any) -> Any:
    """Return the reduction of a function, class or module of such a module; NotImplemented for any other."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    if name not in made_modules:
        return NotImplemented
    if isinstance(value, ModuleType):
        state = {name: part for name, part in names_of(value).items() if name != "__builtins__"}
        return _internals.dynamic_subimport, (value.__name__, state)
    if isinstance(value, type):
        return _internals._dynamic_class_reduce(value)
    return pickler._dynamic_function_reduce(value) if isinstance(value, FunctionType) else NotImplemented


# Nothing else needs more than pickle and a dispatch table: most objects are told apart by this alone.
REDUCED = (
    *(type, FunctionType, CodeType, ModuleType, functools.cached_property, functools._lru_cache_wrapper),
    *(functools.singledispatchmethod, types.BuiltinFunctionType),
)


def reduced(value: Any) -> Any:
    """Return the reduction of a value that cloudpickle would lose; NotImplemented for any other."""
    if isinstance(value, functools.cached_property):
        return _cached_property(value)
    if isinstance(value, functools._lru_cache_wrapper):
        if is_named(value):
            return NotImplemented
        return _cached, (value.__wrapped__, *value.cache_parameters().values())  # maxsize, typed
    if isinstance(value, functools.singledispatchmethod):
        return _dispatching_method(value)
    if isinstance(value, CodeType):
        return _with_filename(value)
    if isinstance(value, FunctionType) and is_dispatching(value) and not is_named(value):
        return _dispatching(value)
    if isinstance(value, FunctionType) and value.__code__ is _DISPATCH:
        names = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        return _dispatch_by, (dict(names["registry"].cell_contents),)
    return NotImplemented


def _with_filename(code: CodeType) -> Any:
    """Return what cloudpickle makes of `code`, with the file name that it leaves out and tracebacks show."""
    make, arguments = _internals._code_reduce(code)
    return make, tuple(
        code.co_filename if type(part) is str and part == NO_FILE else part for part in arguments
    )


# functools ----------------------------------------------------------------------------------------


def _cached(func: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(func)


def _cached_property(value: functools.cached_property[Any]) -> Any:
    """Until Python 3.12 it has a lock."""
    state = {name: part for name, part in vars(value).items() if name != "lock"}
    return _new_cached_property, (type(value),), state, None, None, _set_attributes


def _new_cached_property(kind: type[functools.cached_property[Any]]) -> Any:
    made = kind.__new__(kind)
    if sys.version_info < (3, 12):
        made.lock = threading.RLock()  # type: ignore[attr-defined]
    return made


def _set_attributes(value: Any, state: Mapping[str, Any]) -> None:
    vars(value).update(state)


def _nothing(*_: Any) -> None:
    """Stand for the function that a dispatching one calls first of all, until that is there."""


_DISPATCHES = functools.singledispatch(_nothing).__code__  # type: ignore[attr-defined]
_DISPATCH = functools.singledispatch(_nothing).dispatch.__code__


def is_dispatching(func: FunctionType) -> bool:
    """Tell whether a function was made by `functools.singledispatch`."""
    return func.__code__ is _DISPATCHES


def _dispatching(func: Any) -> Any:
    """Reduce a function made by `functools.singledispatch`, which holds weak references."""
    own = {name: value for name, value in vars(func).items() if name not in vars(_new_dispatching())}
    state = dict(func.registry), own, func.__doc__
    return _new_dispatching, (), state, None, None, _set_dispatching


def _new_dispatching() -> Any:
    return functools.singledispatch(_nothing)


def _set_dispatching(func: Any, state: tuple[dict[type, Any], dict[str, Any], str | None]) -> None:
    registry, own, doc = state
    for kind, called in registry.items():
        func.register(kind, called)
    functools.update_wrapper(func, registry[object])
    vars(func).update(own)
    func.__doc__ = doc
    names = dict(zip(func.__code__.co_freevars, func.__closure__, strict=True))
    if "funcname" in names:  # for the message where it is called without arguments
        names["funcname"].cell_contents = getattr(registry[object], "__name__", "singledispatch function")


def _dispatch_by(registry: dict[type, Any]) -> Any:
    """Return what finds the function for a class; bound dispatching methods hold it since Python 3.13."""
    made = functools.singledispatch(registry.pop(object))
    for kind, called in registry.items():
        made.register(kind, called)
    return made.dispatch


def _reduced_comparison(value: Any) -> Any:
    """Reduce the key function that `functools.cmp_to_key` makes, or a key.

    Neither tells what compares; the collector of cycles knows.
    """
    compares, *of = (part for part in gc.get_referents(value) if part is not type(value))
    return (_key_of if of else functools.cmp_to_key), (compares, *of)


def _key_of(compares: Any, value: Any) -> Any:
    return functools.cmp_to_key(compares)(value)


def _reduced_method(value: types.MethodType) -> Any:
    """Reduce a bound method: by its name, as Python does, where its object has that very method there."""
    func, of = value.__func__, value.__self__
    name = getattr(func, "__name__", "")
    with contextlib.suppress(Exception):
        found = getattr(of, name)
        if type(found) is types.MethodType and found.__func__ is func and found.__self__ is of:
            return getattr, (of, name)
    return types.MethodType, (func, of)


# Reducers of types that have no name, wherever their objects come from.
WITHOUT_NAME: dict[type, Callable[[Any], Any]] = {
    type(functools.cmp_to_key(operator.sub)): _reduced_comparison
}
BY_REFERENCE: dict[type, Callable[[Any], Any]] = {types.MethodType: _reduced_method}


def _dispatching_method(value: functools.singledispatchmethod[Any]) -> Any:
    """Since Python 3.13 it keeps bound methods, by weak references to their objects."""
    state = {name: part for name, part in vars(value).items() if name != "_method_cache"}
    return _new_dispatching_method, (type(value),), state, None, None, _set_attributes


def _new_dispatching_method(kind: type[functools.singledispatchmethod[Any]]) -> Any:
    made: Any = kind.__new__(kind)
    if sys.version_info >= (3, 13):
        made._method_cache = weakref.WeakKeyDictionary()
    return made


# Bare objects -------------------------------------------------------------------------------------

NAMED = (object, contextvars.ContextVar)  # of which a module has one under a name, that is its key


class _Sentinels:
    """The bare objects that have left or reached this process, so that each is one object everywhere.

    An object that a module has is known by its name there, any other by a number.
    """

    def __init__(self) -> None:
        self._objects: dict[Any, object] = {}
        self._keys: dict[int, Any] = {}
        self._names: dict[int, tuple[str, str]] = {}
        self._looked_at: Any = None
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self.process = uuid.uuid4().hex

    def key_of(self, value: object) -> Any:
        """Return what is known of an object: its name, or a number that it gets here."""
        with self._lock:
            key = self._keys.get(id(value))
            if key is None:
                key = self._name_of(value) or (self.process, next(self._numbers))
                self._keep(key, value)
            return key

    def of_key(self, module: str, name: Any, make: Callable[[], Any] = object) -> Any:
        """Return the object of this key: the module's, or the one that has it already, or a new one."""
        with self._lock:
            known = self._objects.get((module, name))
            if isinstance(name, str) and (module != "__main__" or known is None):
                with contextlib.suppress(Exception):
                    found = sys.modules.get(module) or importlib.import_module(module)
                    named = getattr(found, name, None)
                    known = named if type(named) in NAMED else known
            if known is None:
                known = make()
            self._keep((module, name), known)
            return known

    def keep(self, key: Any, value: object) -> None:
        """Have an object be the one of this key."""
        with self._lock:
            self._keep(key, value)

    def _keep(self, key: Any, value: object) -> None:
        old = self._objects.pop(key, None)
        if old is not None:
            self._keys.pop(id(old), None)
        self._objects[key] = value
        self._keys[id(value)] = key
        if len(self._objects) > SENTINELS:
            oldest = next(iter(self._objects))
            self._keys.pop(id(self._objects.pop(oldest)), None)

    def _name_of(self, value: object) -> tuple[str, str] | None:
        """Return the module that has the object, and its name there."""
        modules = {name: module for name, module in sys.modules.copy().items() if type(module) is ModuleType}
        main: ModuleType = sys.modules["__main__"]
        seen = len(modules), main, len(names_of(main))
        if seen != self._looked_at:  # 10 ms
            self._looked_at = seen
            modules["__main__"] = main
            self._names = {
                id(found): (module, name)
                for module, members in modules.items()
                for name, found in list(names_of(members).items())
                if type(found) in NAMED
            }
        return self._names.get(id(value))


def names_of(module: ModuleType) -> dict[str, Any]:
    """Return a module's names, without having it load those that it has for later (`script.Main`)."""
    return _names.__get__(module)  # type: ignore[no-any-return]


_names: Any = vars(ModuleType)["__dict__"]
sentinels = _Sentinels()


def _start_anew() -> None:
    sentinels._lock = threading.RLock()
    sentinels.process = uuid.uuid4().hex


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def sentinel(value: object) -> Any:
    """Reduce a bare object, such as ``MISSING = object()``."""
    return _sentinel, sentinels.key_of(value)


def _sentinel(module: str, name: Any) -> object:
    return sentinels.of_key(module, name)
