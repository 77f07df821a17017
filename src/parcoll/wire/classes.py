"""Classes: what cloudpickle's reduction of a class leaves out, and how one that travelled is made.

And what `typing` makes beside classes, which pickle knows by name alone: that means nothing where it is the
script's. And context variables, which it does not know at all.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import FunctionType, MemberDescriptorType
from typing import Any

from parcoll.wire import script
from parcoll.wire.reducers import (
    WITHOUT_NAME,
    has_number,
    is_made,
    is_named,
    make_skeleton_class,
    make_type_var,
    parts_of_type_var,
    reduced_type_var,
    sentinels,
    set_class_state,
    track_class,
)


class _Typed(typing.TypedDict): ...


def reduced_class(kind: type, reduction: Any, at: str | None = None) -> Any:
    """Return cloudpickle's reduction of a class, with what it leaves out; `at` is its name in the script."""
    make, arguments, (members, slots), *rest = reduction
    if make is not make_skeleton_class:
        return make, (*arguments[:-1], {"at": at}), (members, slots), *rest
    metaclass, name, bases, first, number, _ = arguments
    first = dict(first)
    if metaclass is type(_Typed) and "__orig_bases__" not in vars(kind):  # of a call, `TypedDict("T", {...})`
        bases = (typing.TypedDict,)
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
# Has those modules keep what they took over of the script's (`world.takeover`): theirs were told already.
keeping: Callable[[Iterable[str]], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


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
    told = {kind.__module__ for kind in (*owners, metaclass) if not has_number(kind)}
    with keeping(told), _making:  # its locks first, always: what it takes over may have classes to be made
        try:
            with _passing_on([owner for owner in owners if has_number(owner)]):
                made = make(**keywords)
        except TypeError:
            if not owners:
                raise
            with _passing_on(owners, on=False):
                made = make()
    return track_class(number, made)


_brought: weakref.WeakKeyDictionary[script.Script, set[str]] = weakref.WeakKeyDictionary()  # their numbers


def is_news(number: str) -> bool:
    """Tell whether the program that runs here has brought a class for the first time, and note it."""
    program = script.current()
    if program is None or not program.travelled:
        return False
    numbers = _brought.setdefault(program, set())
    news = number not in numbers
    numbers.add(number)
    return news


_names: weakref.WeakKeyDictionary[Any, tuple[set[str], set[str]]] = weakref.WeakKeyDictionary()


def become(kind: Any, state: tuple[dict[str, Any], Any]) -> Any:
    """Have a class be what the script has: what it has no more goes, and what functions have added."""
    came, had = _names.get(kind, (set(), set(vars(kind))))
    members = set(state[0])
    for name in ((came | set(vars(kind)) - had) - members) & set(vars(kind)):
        with contextlib.suppress(AttributeError, TypeError):
            if name[:2] != "__":
                delattr(kind, name)
    set_class_state(kind, state)
    _names[kind] = members, set(vars(kind))
    return kind


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


# Objects that stand for themselves ----------------------------------------------------------------


def one_object(value: object, make: Callable[..., Any], *arguments: Any, state: Any = None) -> Any:
    """Reduce an object that is one everywhere, as a class is: each process but its own makes it once.

    `state` is what it has beside that, which may refer to the object itself.
    """
    return _one, (sentinels.key_of(value), make, arguments), (state,), None, None, _complete


_incomplete: dict[int, Any] = {}  # objects that were just made, until they have their state


def _one(key: tuple[str, Any], make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    def make_and_note() -> Any:
        made = make(*arguments)
        _incomplete[id(made)] = made
        return made

    return sentinels.of_key(*key, make_and_note)


def _complete(value: Any, state: tuple[Any]) -> None:
    if _incomplete.pop(id(value), None) is None or state[0] is None:
        return
    names, slots = state[0] if isinstance(state[0], tuple) else (state[0], {})
    for name, part in {**(names or {}), **slots}.items():
        object.__setattr__(value, name, part)


def reduced_by_name(value: Any) -> Any:
    """Return the reduction of an object of a class of the script's, which may say that a name is all of it.

    That is a global name of the script's: `MISSING`, say, whose `__reduce__` returns "MISSING".
    """
    kind: Any = type(value)
    if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
        return NotImplemented
    reduction = value.__reduce_ex__(5)
    if not isinstance(reduction, str):
        return reduction
    if isinstance(value, Enum):
        return getattr, (kind, value.name)
    if any(base.__module__ == "builtins" for base in kind.__mro__[:-1]):
        return NotImplemented
    return one_object(value, object.__new__, kind, state=object.__getstate__(value))


# Of `typing` --------------------------------------------------------------------------------------


def _is_there(value: Any) -> bool:
    """Tell whether a module that can be imported has what `typing` made, under its name."""
    module = getattr(value, "__module__", None)
    return not is_made(module) and getattr(sys.modules.get(module or ""), value.__name__, None) is value


def _reduced_new_type(value: Any) -> Any:
    if is_named(value):
        return value.__qualname__
    names = {name: getattr(value, name) for name in ("__name__", "__qualname__", "__module__")}
    return one_object(value, _new_type, names, state={"__supertype__": value.__supertype__})


def _new_type(names: Mapping[str, str]) -> Any:
    made: Any = vars(typing)["NewType"](names["__name__"], object)
    made.__dict__.update(names)
    return made


def _reduced_parameters(value: Any) -> Any:
    """Reduce a `ParamSpec` or a `TypeVarTuple`."""
    if _is_there(value):
        return value.__name__
    settings = ("bound", "covariant", "contravariant", "infer_variance", "default")
    given = {name: getattr(value, f"__{name}__", None) for name in settings}
    given = {name: setting for name, setting in given.items() if setting not in (None, False)}
    if not getattr(value, "has_default", lambda: False)():
        given.pop("default", None)
    return one_object(value, _parameters, type(value), value.__name__, value.__module__, given)


def _parameters(kind: Any, name: str, module: str, given: Mapping[str, Any]) -> Any:
    made = kind(name, **given)
    with contextlib.suppress(AttributeError):
        made.__module__ = module
    return made


def _reduced_type_var(value: Any) -> Any:
    if is_made(value.__module__):
        return make_type_var, parts_of_type_var(value)
    return reduced_type_var(value)


def _reduced_alias(value: Any) -> Any:
    """Reduce what a `type` statement makes."""
    if _is_there(value):
        return value.__name__
    means = types.SimpleNamespace(value=value.__value__)
    return one_object(value, _alias, value.__name__, value.__module__, value.__type_params__, means)


def _alias(name: str, module: str, parameters: tuple[Any, ...], means: Any) -> Any:
    if parameters or not name.isidentifier():
        return typing.TypeAliasType(name, means.value, type_params=parameters)  # type: ignore[attr-defined]
    names = {"__name__": module, "means": means}
    exec(f"type {name} = means.value", names)  # it may refer to itself: then its value is not here yet
    return names[name]


WITH_NAME: dict[type, Callable[[Any], Any]] = {
    typing.NewType: _reduced_new_type,
    typing.TypeVar: _reduced_type_var,
    typing.ParamSpec: _reduced_parameters,
    typing.TypeVarTuple: _reduced_parameters,
}
if sys.version_info >= (3, 12):
    WITH_NAME[typing.TypeAliasType] = _reduced_alias


# Context variables --------------------------------------------------------------------------------

Value = tuple[()] | tuple[Any]  # what a variable has in a context: nothing, or one value

# Of each program, the variables that came with it, by their keys. They are others for each program: what its
# functions set does not last to the next evaluation.
_variables: weakref.WeakKeyDictionary[script.Script, dict[Any, tuple[Any, Value]]]
_variables = weakref.WeakKeyDictionary()
of_modules: dict[Any, Value] = {}  # those of modules of the user's own, on a worker


def value_of(variable: contextvars.ContextVar[Any]) -> Value:
    """Return what a variable has in this context, without its default."""
    return (contextvars.copy_context()[variable],) if variable in contextvars.copy_context() else ()


def set_variables(program: script.Script | None) -> None:
    """Have the script's variables be in this context what they are in the script's."""
    found = [*of_modules.items(), *(_variables.get(program, {}).values() if program is not None else ())]
    for variable, value in found:
        if value:
            variable.set(value[0])


def _reduced_variable(value: contextvars.ContextVar[Any]) -> Any:
    default: Value = ()
    with contextlib.suppress(LookupError):
        default = (contextvars.Context().run(value.get),)
    return _variable, (sentinels.key_of(value), value.name, default, value_of(value))


def _variable(key: tuple[str, Any], name: str, default: Value, value: Value) -> Any:
    settings = {"default": default[0]} if default else {}
    make: Callable[[], Any] = functools.partial(contextvars.ContextVar, name, **settings)
    program = script.current()
    if key[0] == sentinels.process or program is None or not program.travelled:
        return sentinels.of_key(*key, make)
    known = _variables.setdefault(program, {})
    if key not in known:
        in_module = isinstance(key[1], str) and key[0] != "__main__"
        known[key] = sentinels.of_key(*key, make) if in_module else make(), value
        sentinels.keep(key, known[key][0])
    return known[key][0]


WITHOUT_NAME[contextvars.ContextVar] = _reduced_variable
