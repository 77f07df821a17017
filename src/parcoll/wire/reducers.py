"""Reducers: how objects travel that pickle and cloudpickle lose, change or refuse.

A reducer returns what a pickle calls to make an object again. This is also the place for all that parcoll
knows of cloudpickle's private parts; test_codec.py fails where one of them changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import os
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

from cloudpickle import cloudpickle as _internals

NO_FILE = "<dynamic-code>"  # cloudpickle's word for any file
SENTINELS = 10_000  # bare objects that a process remembers, at 0.3 kB each

make_skeleton_class: Callable[..., Any] = _internals._make_skeleton_class
make_skeleton_enum: Callable[..., Any] = _internals._make_skeleton_enum
set_class_state: Callable[..., Any] = _internals._class_setstate
set_function_state: Callable[..., Any] = _internals._function_setstate
globals_named: Callable[[CodeType], Mapping[str, None]] = _internals._extract_code_globals


def class_of_number(number: str) -> Any:
    """Return the class of this process that cloudpickle knows by this number."""
    return _internals._DYNAMIC_CLASS_TRACKER_BY_ID.get(number)


def has_number(kind: type) -> bool:
    """Tell whether a class goes, or came, by value."""
    return kind in _internals._DYNAMIC_CLASS_TRACKER_BY_CLASS


def is_named(value: Any) -> bool:
    """Tell whether an importable module has this function or class under its own name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module == "__main__" or not isinstance(module, str) or not isinstance(name, str):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


# Nothing else needs more than pickle and a dispatch table: most objects are told apart by this alone.
REDUCED = (type, FunctionType, CodeType, functools.cached_property, functools._lru_cache_wrapper)


def reduced(value: Any) -> Any:
    """Return the reduction of a value that cloudpickle would lose; NotImplemented for any other."""
    if isinstance(value, functools.cached_property):
        return _cached_property(value)
    if isinstance(value, functools._lru_cache_wrapper):
        if is_named(value):
            return NotImplemented
        parameters = value.cache_parameters()
        return _cached, (value.__wrapped__, parameters["maxsize"], parameters["typed"])
    if isinstance(value, CodeType):
        return _with_filename(value)
    if isinstance(value, FunctionType) and value.__code__ is _DISPATCHES and not is_named(value):
        return _dispatching(value)
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


# Bare objects -------------------------------------------------------------------------------------


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

    def of_key(self, module: str, name: Any) -> object:
        """Return the object of this key: the module's, or the one that has it already, or a new one."""
        with self._lock:
            known = self._objects.get((module, name))
            if isinstance(name, str) and (module != "__main__" or known is None):
                with contextlib.suppress(Exception):
                    found = sys.modules.get(module) or importlib.import_module(module)
                    named = getattr(found, name, None)
                    known = named if type(named) is object else known
            if known is None:
                known = object()
            self._keep((module, name), known)
            return known

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
        modules: dict[str, ModuleType]
        modules = {name: module for name, module in list(sys.modules.items()) if type(module) is ModuleType}
        main: ModuleType = sys.modules["__main__"]
        seen = len(modules), main, len(names_of(main))
        if seen != self._looked_at:  # 10 ms
            self._looked_at = seen
            modules["__main__"] = main
            self._names = {
                id(found): (module, name)
                for module, members in modules.items()
                for name, found in list(names_of(members).items())
                if type(found) is object
            }
        return self._names.get(id(value))


def names_of(module: ModuleType) -> dict[str, Any]:
    """Return a module's names, without having it load those that it has for later (`script.Main`)."""
    found: dict[str, Any] = _names.__get__(module)
    return found


_names: Any = vars(ModuleType)["__dict__"]
sentinels = _Sentinels()


def _start_anew() -> None:
    global sentinels
    sentinels._lock = threading.RLock()
    sentinels.process = uuid.uuid4().hex


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def sentinel(value: object) -> Any:
    """Reduce a bare object, such as ``MISSING = object()``."""
    return _sentinel, sentinels.key_of(value)


def _sentinel(module: str, name: Any) -> object:
    return sentinels.of_key(module, name)


# Classes ------------------------------------------------------------------------------------------


def reduced_class(kind: type, reduction: Any, at: str | None = None) -> Any:
    """Return cloudpickle's reduction of a class, with what it leaves out; `at` is its name in the script."""
    make, arguments, (members, slots), *rest = reduction
    if make is not make_skeleton_class:
        return make, (*arguments[:-1], {"at": at}), (members, slots), *rest
    metaclass, name, bases, first, number, _ = arguments
    first = dict(first)
    extra: dict[str, Any] = {"at": at}
    own = [n for n, m in vars(kind).items() if isinstance(m, MemberDescriptorType) and m.__objclass__ is kind]
    # `typing.NamedTuple` and its like are functions, which make slots themselves.
    if "__slots__" in vars(kind) and not any(isinstance(base, FunctionType) for base in bases):
        given = kind.__slots__  # type: ignore[attr-defined]
        first["__slots__"] = given if isinstance(given, (str, tuple, list, dict)) else tuple(own)
        members = {name: part for name, part in members.items() if name not in {*own, "__slots__"}}
    if (struct := _struct(kind)) is not None:
        extra["keywords"], extra["fields"] = struct
        first.pop("__slots__", None)
        first["__annotations__"] = vars(kind).get("__annotations__", {})
    else:
        extra["keywords"] = _keywords(kind)
    return make, (metaclass, name, bases, first, number, extra), (members, slots), *rest


def _keywords(kind: type) -> dict[str, Any]:
    """Return what an importable base's `__init_subclass__` may have been called with.

    Python does not keep it. But most keep what they were given as an attribute of the same name.
    """
    owner = _owner(kind)
    if owner is None:
        return {}
    try:
        parameters = inspect.signature(owner.__init_subclass__).parameters.values()
    except (TypeError, ValueError):
        return {}
    found = {}
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            for attribute in (name, f"_{name}", f"__{name}__", f"_{owner.__name__}__{name}"):
                if attribute in vars(kind):
                    found[name] = vars(kind)[attribute]
                    break
    return found


def _owner(kind: type) -> Any:
    """Return the importable class whose `__init_subclass__` was called for a class; None without one."""
    owner = next(base for base in kind.__mro__[1:] if "__init_subclass__" in vars(base))
    return owner if owner is not object and is_named(owner) else None


def is_noted(kind: type) -> bool:
    """Tell whether a module that is not Python's own was told of a class when it was made."""
    owner = _owner(kind)
    told = [owner] if owner is not None else []
    told += [type(kind)] if type(kind) is not type and is_named(type(kind)) else []
    return any(by.__module__.partition(".")[0] not in sys.stdlib_module_names for by in told)


def _struct(kind: Any) -> tuple[dict[str, Any], list[tuple[Any, ...]]] | None:
    """Return the settings and the own fields of a `msgspec.Struct`, whose metaclass needs them at once."""
    if type(kind).__module__.partition(".")[0] != "msgspec" or not hasattr(kind, "__struct_config__"):
        return None
    config, names = kind.__struct_config__, kind.__struct_fields__
    settings = {n: getattr(config, n) for n in dir(config) if n[0] != "_"}
    keywords = {name: value for name, value in settings.items() if value is not None}
    defaults = dict(zip(names[::-1], kind.__struct_defaults__[::-1], strict=False))
    own = [name for name in names if name in vars(kind).get("__annotations__", {})]
    keywords["kw_only"] = bool(own) and not set(own) & set(kind.__match_args__)
    fields = []
    for name, encoded in zip(names, kind.__struct_encode_fields__, strict=True):
        if name in own:
            default = defaults.get(name, _absent())
            factory = (
                getattr(default, "factory", None) if type(default).__module__ == "msgspec._core" else None
            )
            given = {} if default is _absent() else {"default": default}
            fields.append((name, encoded, {"default_factory": factory} if factory is not None else given))
    return keywords, fields


def _absent() -> Any:
    return sys.modules["msgspec"].NODEFAULT


_making = threading.RLock()


def made_class(
    metaclass: Any, name: str, bases: tuple[Any, ...], first: Mapping[str, Any], number: str, extra: Any
) -> Any:
    """Make a class that travelled by value, and that this process does not have.

    What `__init_subclass__` and a metaclass did to it travels with it: with the class itself, and with those
    of its bases that go by value too. So these do not run again. Those of importable bases do, once in each
    process: they may note the class where nothing travels from.
    """
    extra = extra or {}
    first = {sys.intern(key): value for key, value in first.items()}
    keywords = extra.get("keywords", {})
    for field, encoded, given in extra.get("fields", ()):
        renamed = {"name": encoded} if encoded != field else {}
        if given or renamed:
            first[field] = sys.modules["msgspec"].field(**given, **renamed)

    def make(**keywords: Any) -> Any:
        if not has_number(metaclass):
            return types.new_class(
                name, bases, {"metaclass": metaclass, **keywords}, lambda ns: ns.update(first)
            )
        resolved = types.resolve_bases(bases)
        members = dict(first) if resolved is bases else {**first, "__orig_bases__": bases}
        base = next(kind for kind in metaclass.__mro__ if not has_number(kind))
        return base.__new__(metaclass, name, resolved, members)

    owners = _owners(types.resolve_bases(bases))
    with _making:
        try:
            with _passing_on([owner for owner in owners if has_number(owner)]):
                made = make(**keywords)
        except TypeError:
            if not owners:
                raise
            with _passing_on(owners, on=False):
                made = make()
    return _internals._lookup_class_or_track(number, made)


def _owners(bases: tuple[Any, ...]) -> list[Any]:
    """Return the classes, written in Python, whose `__init_subclass__` a class of these bases may call."""
    found = dict.fromkeys(kind for base in bases for kind in base.__mro__)
    return [kind for kind in found if isinstance(vars(kind).get("__init_subclass__"), classmethod)]


@contextlib.contextmanager
def _passing_on(owners: list[Any], on: bool = True) -> Iterator[None]:
    """Have these classes' `__init_subclass__` call the next one's and do nothing else, or nothing at all."""
    kept = [(owner, vars(owner)["__init_subclass__"]) for owner in owners]

    def instead(owner: Any) -> Any:
        def __init_subclass__(cls: Any, /, **keywords: Any) -> None:
            if on:
                super(owner, cls).__init_subclass__(**keywords)

        return classmethod(__init_subclass__)

    try:
        for owner, _ in kept:
            owner.__init_subclass__ = instead(owner)
        yield
    finally:
        for owner, method in kept:
            owner.__init_subclass__ = method
