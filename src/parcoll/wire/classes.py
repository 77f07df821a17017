"""Classes: what cloudpickle's reduction of a class leaves out, and how one that travelled is made.

A class of the script's is one object in a worker, whatever programs have it. So it becomes what a program's
script has when that program brings it, and again when another program has run in between.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import EnumMeta
from types import FunctionType, MemberDescriptorType
from typing import Any, NamedTuple

from parcoll.wire import script
from parcoll.wire.memmaps import is_of_c
from parcoll.wire.named import made_enum, of_member, reduced_enum
from parcoll.wire.reducers import (
    class_of_number,
    has_number,
    is_named,
    make_skeleton_class,
    make_skeleton_enum,
    names_of,
    set_class_state,
    track_class,
)


class _Typed(typing.TypedDict): ...


def reduced_class(kind: type, reduction: Any, at: str | None = None) -> Any:
    """Return cloudpickle's reduction of a class, with what it leaves out; `at` is its name in the script."""
    make, arguments, (members, slots), *rest = reduction
    if make is not make_skeleton_class:
        return make, *reduced_enum(kind, arguments, members, at), *rest
    metaclass, name, bases, first, number, _ = arguments
    first = dict(first)
    if metaclass is type(_Typed) and "__orig_bases__" not in vars(kind):  # of a call, `TypedDict("T", {...})`
        bases = (typing.TypedDict,)
    extra: dict[str, Any] = {"at": at}
    if is_of_c(kind):
        members = {name: part for name, part in members.items() if type(part).__name__ != "CField"}
        first |= {name: members.pop(name) for name in BEFORE_FIELDS & members.keys()}
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
        first.setdefault("__qualname__", kind.__qualname__)
    members = {**members, "__name__": name, "__qualname__": kind.__qualname__}  # the script may change them
    return make, (metaclass, name, bases, first, number, extra), (members, slots), *rest


# What the fields of a structure are made by, and what other classes have to have from the start.
BEFORE_FIELDS = {"_pack_", "_align_", "_anonymous_", "_layout_", "_type_", "_length_", "_flags_"}


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


# Which a class gets first ----------------------------------------------------------------------


def set_first(kind: Any, first: Mapping[str, Any], blank: Mapping[str, Any]) -> None:
    """Give a class its functions and numbers, and an empty one in the place of what is filled later."""
    _set_members(kind, {**{name: made() for name, made in blank.items() if not hasattr(kind, name)}, **first})


def set_names(known: Iterable[tuple[Any, ...]]) -> None:
    """Give functions what they name, as far as it is here."""
    for func, names, cells, defaults, keywords in known:
        if func.__module__ == "__main__" and not script.is_bare(func):
            continue  # it is the function that this process has
        script.give_names(func, names)
        for at, value in cells.items():
            with contextlib.suppress(ValueError):
                func.__closure__[at].cell_contents  # noqa: B018
                continue
            func.__closure__[at].cell_contents = value
        func.__defaults__, func.__kwdefaults__ = (
            func.__defaults__ or defaults,
            func.__kwdefaults__ or keywords,
        )


def _set_members(kind: Any, members: Mapping[str, Any]) -> None:
    """Set members, which a metaclass of the script's has seen when the script set them."""
    put = type.__setattr__ if has_number(type(kind)) else setattr
    for name, value in members.items():
        if name != "_abc_impl":
            put(kind, name, value)
    if "__firstlineno__" in members:  # which goes when others are set
        put(kind, "__firstlineno__", members["__firstlineno__"])
    for registered in members.get("_abc_impl", ()):
        kind.register(registered)


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
        # Within: what a module keeps may have this class, and would make another one of that number.
        return track_class(number, made)


class _Brought(NamedTuple):
    """What a program has brought: the numbers of classes, and what they are in its script."""

    numbers: set[str]
    states: dict[Any, Any]


def _brought_by(program: script.Script) -> _Brought:
    found: _Brought = program.kept.setdefault("classes", _Brought(set(), {}))
    return found


_shown: weakref.ref[script.Script] | None = None  # the program whose classes these are now
# Of each class, the names that came with it, and those that it had then.
_names: weakref.WeakKeyDictionary[Any, tuple[set[str], set[str]]] = weakref.WeakKeyDictionary()


def is_brought(number: str) -> bool:
    """Tell whether the program that runs here has brought a class, or is in the process that has the class.

    What the program has of the script comes first: an element may have been pickled later, when the script
    had changed its class.
    """
    program = script.current()
    if program is None or not program.travelled:
        return True
    numbers = _brought_by(program).numbers
    if number not in numbers:
        program.find_class(number, lambda: number in numbers)
    return number in numbers


def is_news(number: str) -> bool:
    """Tell whether the program that runs here has brought a class for the first time, and note it."""
    if is_brought(number):
        return False
    program = script.current()
    assert program is not None
    _brought_by(program).numbers.add(number)
    return True


def has_come(kind: Any) -> bool:
    """Tell whether a class has travelled to this process: one that was made here stays as it is."""
    return kind in _names


def become(kind: Any, state: tuple[dict[str, Any], Any]) -> Any:
    """Have a class be what the script has: what it has no more goes, and what functions have added."""
    program = script.current()
    if program is not None and program.travelled:
        _brought_by(program).states[kind] = state
    came, had = _names.get(kind, (set(), set(vars(kind))))
    members = set(state[0])
    for name in ((came | set(vars(kind)) - had) - members) & set(vars(kind)):
        with contextlib.suppress(AttributeError, TypeError):
            if name[:2] != "__":
                delattr(kind, name)
    if "_fields_" in vars(kind) and is_of_c(kind):  # which are final
        state = {name: part for name, part in state[0].items() if name != "_fields_"}, state[1]
    _set_members(kind, state[0])
    if isinstance(kind, EnumMeta):
        for name, attributes in state[1].items():
            found = vars(kind._member_map_[name])
            for attribute in of_member(kind._member_map_[name]).keys() - attributes.keys():
                del found[attribute]
            found.update(attributes)
    _names[kind] = members, set(vars(kind))
    return kind


def rebase(kind: Any, arguments: Sequence[Any]) -> None:
    """Have a class that was made here have the bases that it has in the script now."""
    bases = types.resolve_bases(arguments[2])
    if not isinstance(kind, EnumMeta) and kind.__bases__ != bases:
        with contextlib.suppress(TypeError):  # `Generic` and the like stand for others
            kind.__bases__ = bases


def show() -> None:
    """Have the classes be those of the program that runs here, where another one's were shown last.

    So is the `__main__` of modules that have imported it: each program has one of its own.
    """
    global _shown
    program = script.current()
    if program is None or not program.travelled or (_shown is not None and _shown() is program):
        return
    _shown = weakref.ref(program)
    for kind, state in list(_brought_by(program).states.items()):
        become(kind, state)
    for module in list(sys.modules.values()):
        names = names_of(module) if type(module) is types.ModuleType else {}
        if script.script_of(names.get("__main__")) not in (None, program):
            names["__main__"] = program.module


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


class Loader(pickle.Unpickler):
    """An unpickler that makes no class again which this process has, and leaves it alone unless `refresh`."""

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[Any], refresh: bool = False) -> None:
        super().__init__(file, buffers=buffers)
        self._refresh = refresh
        self._here_before: set[Any] = set()
        self._made: set[str] = set()  # the numbers of classes that were made here

    def load(self) -> Any:
        """Return the object, and let go of all that it consists of."""
        try:
            return super().load()
        finally:
            self.memo = {}  # where methods of this loader are too: a cycle

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found is set_class_state:
            return self._set_state
        if found is set_first:
            return self._set_first
        if found in (make_skeleton_class, make_skeleton_enum):
            return functools.partial(self._make_class, found)
        return found

    def _make_class(self, make: Callable[..., Any], *arguments: Any) -> Any:
        *_, number, extra = arguments
        news, made = is_news(number), class_of_number(number)
        if made is None:
            made = (made_class if make is make_skeleton_class else made_enum)(*arguments)
            self._made.add(number)
        elif number in self._made:
            return made
        elif not self._refresh and not (news and has_come(made)):
            self._here_before.add(made)
        elif has_come(made):
            rebase(made, arguments)
        script.add_class(made, (extra or {}).get("at"))
        return made

    def _set_first(self, kind: Any, first: Any, blank: Any) -> None:
        if kind not in self._here_before:
            set_first(kind, first, blank)

    def _set_state(self, kind: Any, state: Any) -> Any:
        return kind if kind in self._here_before else become(kind, state)
