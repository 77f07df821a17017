"""Named: objects that pickle knows by a global name alone, which means nothing where that is the script's.

Objects of which there is one, what `typing` makes beside classes, and context variables.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import importlib
import operator
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from parcoll.objects import OF_PYTHON, Later, is_of_python
from parcoll.wire import script
from parcoll.wire.reducers import (
    WITHOUT_NAME,
    is_made,
    is_named,
    make_skeleton_enum,
    make_type_var,
    parts_of_type_var,
    reduced_type_var,
    sentinels,
    track_class,
)

# Objects that stand for themselves ----------------------------------------------------------------


def one_object(value: object, make: Callable[..., Any], *arguments: Any, state: Any = None) -> Any:
    """Reduce an object that is one everywhere, as a class is: each process but its own makes it once.

    `state` is what it has beside that, which may refer to the object itself. Each program brings its own.
    """
    return _one, (sentinels.key_of(value), make, arguments), (state,), None, None, _complete


_incomplete: dict[int, Any] = {}  # objects that were just made or brought, until they have their state


def _one(key: tuple[str, Any], make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    def make_and_note() -> Any:
        made = make(*arguments)
        _incomplete[id(made)] = made
        return made

    found = sentinels.of_key(*key, make_and_note)
    program = script.current()
    if program is not None and program.travelled and key[0] != sentinels.process:
        brought: set[Any] = program.kept.setdefault("objects", set())
        if key not in brought:
            brought.add(key)
            _incomplete[id(found)] = found
    return found


def _complete(value: Any, state: tuple[Any]) -> None:
    if _incomplete.pop(id(value), None) is None or state[0] is None:
        return
    names, slots = state[0] if isinstance(state[0], tuple) else (state[0], {})
    given = {**(names or {}), **slots}
    for name in getattr(value, "__dict__", {}).keys() - given.keys():
        object.__delattr__(value, name)
    for name, part in given.items():
        object.__setattr__(value, name, part)


def reduced_by_name(value: Any) -> Any:
    """Return the reduction of an object of a class of the script's, which may say that a name is all of it.

    That is a global name of the script's: `MISSING`, say, whose `__reduce__` returns "MISSING".
    """
    kind: Any = type(value)
    if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
        return NotImplemented
    reduction = value.__reduce_ex__(5)
    if isinstance(value, Enum) and kind._member_map_.get(value._name_) is value:
        by_value = not isinstance(reduction, str) and reduction[:2] != (kind, (value._value_,))
        return reduction if by_value else (operator.getitem, (kind, value._name_))
    if not isinstance(reduction, str):
        return reduction
    if is_of_python(kind):
        return NotImplemented
    return one_object(value, object.__new__, kind, state=object.__getstate__(value))


def home_of(kind: type) -> tuple[str, str] | None:
    """Return the importable module that has a class which says that it is another one's, and its name there.

    It says that it is the script's; or one of the built-in ones, as pytest's exceptions do. Its methods tell:
    these are that module's; or what it is derived from.
    """
    of_parts = [part.__module__ for part in vars(kind).copy().values() if type(part) is types.FunctionType]
    for module in dict.fromkeys([*of_parts, *(base.__module__ for base in kind.__mro__[1:])]):
        if module not in ("__main__", kind.__module__):
            with contextlib.suppress(AttributeError):
                if operator.attrgetter(kind.__qualname__)(sys.modules.get(module)) is kind:
                    return None if is_made(module) else (module, kind.__qualname__)
    return None


def reduced_mark(value: Any, kind: Any, main: dict[str, Any], marks: set[int]) -> Any:
    """Reduce an object that has nothing but its identity, as a bare one, where the script has it by a name.

    That is a name of its own, or one in a class. `marks` are those objects, once they have been looked for.
    """
    if not marks:
        classes = [found for found in main.values() if issubclass(type(found), type)]
        held = [
            part for found in classes if is_made(found.__module__) for part in vars(found).copy().values()
        ]
        marks.update(map(id, [main, *main.values(), *held]))
    return one_object(value, object.__new__, kind, state=({}, {})) if id(value) in marks else NotImplemented


# Enums --------------------------------------------------------------------------------------------


def reduced_enum(kind: Any, arguments: Any, members: dict[str, Any], at: str | None) -> Any:
    """Return arguments and state of an enum, with other names of its members, and what these have."""
    bases, name, qualname, _, *of_class, _ = arguments
    values = {alias: member.value for alias, member in kind._member_map_.items()}
    state = {attribute: value for attribute, value in members.items() if attribute not in values}
    attributes = {member.name: of_member(member) for member in kind._member_map_.values()}
    extra = {"at": at, "members": _by_hand(kind, values)}
    return (bases, name, qualname, values, *of_class, extra), (state, attributes)


def _by_hand(kind: Any, values: dict[str, Any]) -> dict[str, Any] | None:
    """Return values and content of members that are not made of their values; None where they are."""
    made_by, content = kind._member_type_, getattr(kind._member_type_, "__getnewargs__", None)
    is_own = isinstance(getattr(kind, "_new_member_", None), types.FunctionType) or any(
        hasattr(type(value), "__get__") for value in values.values()
    )
    if not is_own or (made_by is not object and (content is None or made_by.__module__ != "builtins")):
        return None
    members = kind._member_map_.items()
    return {alias: (values[alias], content(member) if content else ()) for alias, member in members}


def made_enum(
    bases: tuple[Any, ...], name: str, qualname: str, values: Any, module: Any, number: str, extra: Any
) -> Any:
    """Make an enum that travelled by value: its members, with what they hold, as they are in the script."""
    if not (extra or {}).get("members"):
        return make_skeleton_enum(bases, name, qualname, values, module, number, extra)
    metaclass: Any = type(bases[-1])
    names = metaclass.__prepare__(name, bases)

    def __new__(cls: Any, value: Any, content: tuple[Any, ...]) -> Any:
        made = cls._member_type_.__new__(cls, *content)
        made._value_ = value
        return made

    names["__new__"] = __new__
    for alias, member in extra["members"].items():
        names[alias] = member
    made = metaclass.__new__(metaclass, name, bases, names)
    made.__module__, made.__qualname__ = module, qualname
    return track_class(number, made)


def of_member(member: Any) -> dict[str, Any]:
    """Return what a member of an enum has beside what Python gives it."""
    return {name: value for name, value in vars(member).items() if not name[0] == "_" == name[-1]}


# In classes of the script's -------------------------------------------------------------------------


def reduced_in_class(value: Any, kind: Any) -> Any:
    """Reduce what only a class of the script's may bring: a lock, as a new one, and what holds weakly."""
    if kind in NEW:
        return NEW[kind], ()
    parts = value if kind is weakref.WeakSet else value.items()
    return kind, (), Later(lambda: (list, ([*parts],))), None, None, _fill


NEW = {type(make()): make for make in (threading.Lock, threading.RLock)}
IN_CLASSES = (*NEW, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)


def _fill(value: Any, parts: list[Any]) -> None:
    """Fill what holds weakly, for as long as what came with it is here: the script has that, too."""
    if (program := script.current()) is not None:
        program.kept.setdefault("weakly", []).append(parts)
    value.update(parts)


def text_in_pickles(name: str) -> bytes:
    """Return how a pickle has the name of a module, which is not how it has a text that contains the name."""
    pickled = pickle.dumps(name, 4)
    return pickled[pickled.index(name.encode("utf-8", "surrogatepass")) - 2 : -2]  # with its length


# Of `typing` --------------------------------------------------------------------------------------


def _is_there(value: Any) -> bool:
    """Tell whether a module that can be imported has what `typing` made, under its name."""
    module = getattr(value, "__module__", None)
    return not is_made(module) and getattr(sys.modules.get(module or ""), value.__name__, None) is value


def _reduced_new_type(value: Any) -> Any:
    if is_named(value):
        return value.__qualname__
    names = {name: getattr(value, name) for name in ("__name__", "__qualname__", "__module__")}
    return one_object(value, _new_type, names, state=names | {"__supertype__": value.__supertype__})


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

of_modules: dict[Any, Value] = {}  # those of modules of the user's own, on a worker


def _variables_of(program: script.Script) -> dict[Any, tuple[Any, Value]]:
    """Return the variables that came with a program, by their keys.

    They are others for each program: what its functions set does not last to the next evaluation.
    """
    found: dict[Any, tuple[Any, Value]] = program.kept.setdefault("variables", {})
    return found


def value_of(variable: contextvars.ContextVar[Any]) -> Value:
    """Return what a variable has in this context, without its default."""
    return (contextvars.copy_context()[variable],) if variable in contextvars.copy_context() else ()


def set_variables(program: script.Script | None) -> None:
    """Have the script's variables be in this context what they are in the script's."""
    found = [*of_modules.items(), *(_variables_of(program).values() if program is not None else ())]
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
    known = _variables_of(program)
    if key not in known:
        in_module = isinstance(key[1], str) and key[0] != "__main__"
        known[key] = sentinels.of_key(*key, make) if in_module else make(), value
        sentinels.keep(key, known[key][0])
    return known[key][0]


WITHOUT_NAME |= OF_PYTHON | {contextvars.ContextVar: _reduced_variable}


# What `sys` tells of a process: the name of such a class means its only object, and no other can be made.


def _reduced_told(value: Any) -> Any:
    kind: Any = type(value)
    return told_by_sys, (kind.__name__, kind.__match_args__, tuple(value))


def told_by_sys(name: str, fields: tuple[str, ...], content: tuple[Any, ...]) -> Any:
    """Return what `sys` has here if it is the same, else a named tuple of what another process's has."""
    here = getattr(sys, name, None)
    same = isinstance(here, tuple) and tuple(here) == content
    return here if same else collections.namedtuple(name, fields)(*content)


for _name in ("version_info", "flags", "float_info", "hash_info", "int_info", "thread_info"):
    WITHOUT_NAME[type(getattr(sys, _name))] = _reduced_told


# What a program has replaced in libraries ---------------------------------------------------------

Place = tuple[str, str]  # a module, and the path of a name in it
replaced: set[Place] = set()  # where a program has put something of its own (`world.patches`)
looks: list[Callable[[], object]] = []  # called to know that
originals: dict[Place, Any] = {}  # in a worker that has it: what was there
_here: dict[Place, Any] = {}  # the same in the program's process, of what was pickled


def reduced_original(value: Any) -> Any:
    """Return the reduction of a library's function or class that was replaced there; None of others."""
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or is_made(module) or not isinstance(path, str) or "<" in path:
        return None
    if is_named(value) or claims(value):
        return None
    for look in looks:
        look()
    if (module, path) not in replaced:
        return None
    _here[module, path] = value
    return original, (module, path)


def claims(value: Any) -> bool:
    """Tell whether a function wraps another one, and says that it is that one."""
    return type(value) is types.FunctionType and value.__globals__.get("__name__") != value.__module__


def original(module: str, path: str) -> Any:
    """Return what a library has at a place, or had there."""
    for known in (originals, _here):
        if (module, path) in known:
            return known[module, path]
    return operator.attrgetter(path)(importlib.import_module(module))
