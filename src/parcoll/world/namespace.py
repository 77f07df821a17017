"""Namespace: what the script has beside what a program's functions name, packed in small for the workers.

A function may reach it by text (`globals()["parse_" + kind]`), pickle by its name, a type hint by what it
says. So the script's functions and classes travel with each program, and its plain data, as far as it is
small and can be pickled. Each name has a pickle of its own, which is loaded where somebody looks for it, and
made again only where the function or class has changed.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire import script
from parcoll.wire.classes import is_noted
from parcoll.wire.codec import ByValue, Naming, loads
from parcoll.wire.own_modules import is_own_module
from parcoll.wire.payload import Packed, pickled
from parcoll.wire.reducers import class_numbers, globals_named, has_number, is_named, names_of, sentinels
from parcoll.wire.script import Brought, Codec, Entry, script_of
from parcoll.world import handlers
from parcoll.world.patches import pickled_module

ENTRY_BYTES = 64 * 1024  # larger data that no function names stays where it is
ALL_BYTES = 2**20
PLAIN_BYTES = 16 * 1024  # what is larger is compressed
PARTS = 1000  # of one piece of plain data, which is looked at part by part

_HEAD = ("__name__", "__file__", "__package__", "__doc__")
# Whose code has one of these may look for any name.
_BY_TEXT = {"globals", "eval", "exec", "vars", "currentframe", "_getframe", "stack", "__subclasses__"}
_SCALARS = (int, float, complex, str, bytes, bool, type(None))
# The types of these modules of Python's own are plain data, or say what data is.
_PLAIN = {
    *("_contextvars",),
    *(
        "_decimal",
        "datetime",
        "decimal",
        "fractions",
        "ipaddress",
        "pathlib",
        "re",
        "types",
        "typing",
        "uuid",
    ),
    *("zoneinfo", "operator"),
}
_BY_NAME = "parcoll.front.sources"  # whose object is `parallel`: a function, but for what it says of methods
_WORD = re.compile(r"[^\W\d]\w*")


def pack_program(value: object, copies: bool = True) -> tuple[Packed, bytes]:
    """Pickle a program, and what else the script has; without `copies`, large buffers stay the script's."""
    naming = Naming()
    parts = pickled(value, naming.by_value)
    packed = Packed.copy_of(*parts) if copies else Packed(*parts)
    return packed, of_main(naming.names, naming.funcs)


def of_main(without: Collection[str] = (), funcs: Iterable[FunctionType] = ()) -> bytes:
    """Pack what `__main__` has, except for those names; the functions may look for it by text."""
    main = sys.modules["__main__"]
    names = names_of(main)
    entries = dict(_entries(main, without))
    looked_for = {name for func in funcs for name in _looked_for(func, entries)}
    head = {name: names[name] for name in _HEAD if isinstance(names.get(name, 0), str | None)}
    global _last
    brought_here = script.current()  # within a task
    process = sentinels.process
    owner = brought_here.owner if brought_here is not None else process
    brought = Brought(process, owner, head, entries, tuple(sorted(looked_for)))
    if _last is None or _last[0] != brought:
        content = pickle.dumps(brought)
        _last = brought, zlib.compress(content, 1) if len(content) > PLAIN_BYTES else content
    return _last[1]


_last: tuple[Brought, bytes] | None = None
CODEC = Codec(loads, of_main)


def _entries(main: ModuleType, without: Collection[str]) -> Iterator[tuple[str, Entry]]:
    hidden = _hidden()
    names = names_of(main)
    room = ALL_BYTES
    brought = script_of(main)
    if brought is not None:  # within a task: what it has not looked for goes on as it came
        yield from ((name, entry) for name, entry in brought.waiting.copy().items() if name not in without)
    for name, value in names.copy().items():
        if name in without or name in hidden or (name[:2] == "__" == name[-2:] and name in _DUNDERS):
            continue
        try:
            entry = _entry(name, value, names)
        except Exception:  # a stand-in for an object that is not there yet, whose class cannot be asked for
            continue
        if entry is not None and len(entry.content) <= min(ENTRY_BYTES, room):
            room -= len(entry.content)
            yield name, entry


_DUNDERS = {*_HEAD, "__builtins__", "__loader__", "__spec__", "__annotations__", "__cached__", "__dict__"}


def _hidden() -> Collection[str]:
    """Return the names that IPython has put there itself."""
    if "IPython" not in sys.modules:
        return ()
    shell = getattr(sys.modules["IPython"], "get_ipython", lambda: None)()
    return {*getattr(shell, "user_ns_hidden", ())} - {"_", "__", "___"}


class _Kept(NamedTuple):
    value: Any  # so that no other object gets its id
    stamp: Any
    entry: Entry | None


_kept: dict[str, _Kept] = {}


def _entry(name: str, value: Any, names: dict[str, Any]) -> Entry | None:
    """Return the entry of one name; None where it does not travel."""
    if issubclass(type(value), ModuleType):
        return _entry_of_module(value)
    stamp = _stamp(value, names)
    kept = _kept.get(name)
    if kept is not None and stamp is not None and kept.value is value and kept.stamp == stamp:
        return kept.entry
    entry = None
    if _travels(value, names):
        pickler = _Pickler(name, value)
        try:
            pickler.dump(value)
        except Exception:  # of a value that no function names: nobody asked for it
            handlers.look()  # unless a signal's handler raised it: the value would be left out for good
        else:
            needs = pickler.needs - {"builtins", "__main__"}
            uses = {
                used
                for func in pickler.funcs
                for used in (*globals_named(func.__code__), *_words_of_annotations(func))
                if used in names
            }
            content = pickler.file.getvalue()
            noted = issubclass(type(value), type) and (is_noted(value) or _has_own_base(value))
            classes = tuple(class_numbers[kind] for kind in pickler.kinds)
            entry = Entry(content, tuple(sorted(uses - {name})), tuple(sorted(needs)), noted, classes)
    if stamp is not None:
        _kept[name] = _Kept(value, stamp, entry)
    return entry


def _has_own_base(kind: type) -> bool:
    """Tell whether a base is of a module of the user's own, which may ask for its `__subclasses__`."""
    return any(is_own_module(base.__module__, sys.modules.get(base.__module__)) for base in kind.__mro__)


@functools.lru_cache(maxsize=1000)
def _entry_of_name(name: str) -> Entry:
    return Entry(pickled_module(name))


def _entry_of_module(module: ModuleType) -> Entry | None:
    name = module.__name__
    return _entry_of_name(name) if isinstance(name, str) and name in sys.modules else None


class _Same:
    """An object that equals itself alone. It is held: another one could get its id."""

    __slots__ = ("_held",)

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and self._held is other._held

    __hash__ = None  # type: ignore[assignment]


def _same_items(mapping: Mapping[str, Any] | None) -> Any:
    return mapping and tuple((name, _Same(part)) for name, part in mapping.items())


# What these have is not changed in place: Python and these libraries have noted it of a class.
_NOTED = {"__module__", "__doc__", "__slots__", "__match_args__", "__orig_bases__", "__parameters__"}
_NOTED |= {"__abstractmethods__", "__dataclass_params__", "__type_params__", "__static_attributes__"}
_NOTED_BY = ("__attrs_", "__pydantic_", "__struct_")
_MAKERS = {"attr", "attrs", "pydantic", "msgspec", "enum"}  # whose objects are named by functions they make


def _stamp(value: Any, names: dict[str, Any], within: tuple[int, ...] = ()) -> Any:
    """Return what tells whether a function or class has changed; None where only a new pickle tells."""
    kind = type(value)
    if kind in _SCALARS or kind is BuiltinFunctionType or kind.__module__ == _BY_NAME:
        return _Same(value)
    if kind is FunctionType:
        return _stamp_of_function(value, names, within)
    if kind in (staticmethod, classmethod):
        return _stamp(value.__func__, names, within)
    if kind is property:
        stamps = [_stamp(part, names, within) for part in (value.fget, value.fset, value.fdel) if part]
        return tuple(stamps) if stamps and None not in stamps else None
    return _stamp_of_class(value, names, within) if issubclass(type(value), type) else None


def _stamp_of_function(func: FunctionType, names: dict[str, Any], within: tuple[int, ...]) -> Any:
    of_script = func.__globals__ is names
    keywords = func.__kwdefaults__ or {}
    given = (*(func.__defaults__ or ()), *keywords.values())
    if of_script and (func.__closure__ or vars(func) or not _are_scalars(given)):
        return None
    parts = func, func.__code__, func.__defaults__, func.__doc__
    try:
        annotations = _same_items(func.__annotations__)
    except Exception:  # they may be evaluated as late as here, and name what is not there yet
        annotations = None
    current = of_script and names.get(func.__name__) is func
    found = () if of_script or is_named(func) else _stamp_of_held(func, names, (*within, id(func)))
    if found is None:
        return None
    return tuple(map(_Same, parts)), _same_items(keywords), annotations, current, found


def _stamp_of_held(func: FunctionType, names: dict[str, Any], within: tuple[int, ...]) -> Any:
    """Return that of what goes with a function that is not the script's and that no module has by its name.

    That is what another module has, under a name of another's by now, or what `exec` or a decorator made.
    """
    try:
        held = [cell.cell_contents for cell in func.__closure__ or ()]
    except ValueError:  # which has nothing yet
        return None
    held += [func.__globals__.get(name) for name in globals_named(func.__code__)]
    held += [*(func.__defaults__ or ()), *(func.__kwdefaults__ or {}).values()]
    stamps = [_same_items(dict.fromkeys(vars(func)))]
    for value in [*held, *vars(func).values()]:
        kind = type(value)
        is_code = issubclass(kind, (FunctionType, type))
        of_script = is_code and value.__module__ == "__main__" and names.get(value.__name__) is value
        fixed = of_script or kind in _SCALARS or issubclass(kind, (ModuleType, BuiltinFunctionType))
        fixed = fixed or kind.__module__.partition(".")[0] in _MAKERS or id(value) in within
        stamp = _Same(value) if fixed or (is_code and is_named(value)) else None
        if stamp is None and kind is FunctionType:
            stamp = _stamp_of_function(value, names, within)
        if stamp is None:
            return None
        stamps.append(stamp)
    return tuple(stamps)


def _stamp_of_class(kind: type, names: dict[str, Any], within: tuple[int, ...]) -> Any:
    """Return that of a class, with those of the classes that its pickle has: its bases may have no names."""
    has_entry = kind.__module__ == "__main__" and names.get(kind.__name__) is kind
    if is_named(kind) or id(kind) in within or (within and has_entry):
        return _Same(kind)
    within = (*within, id(kind))
    stamps: list[Any] = [_Same(kind), kind.__name__, kind.__qualname__, tuple(map(_Same, kind.__bases__))]
    parts: dict[str, Any] = {f"base {at}": base for at, base in enumerate((type(kind), *kind.__bases__))}
    for name, part in {**parts, **vars(kind)}.items():
        if name not in ("__dict__", "__weakref__", "__slotnames__"):
            stamp = _stamp_of_member(name, part) or _stamp(part, names, within)
            if stamp is None:
                return None
            stamps.append((name, stamp))
    return tuple(stamps)


def _stamp_of_member(name: str, part: Any) -> Any:
    """Return that of what Python itself, or a library, has made in a class; None of what the script has."""
    kind = type(part)
    if name in ("__annotations__", "__dataclass_fields__") and kind is dict:
        return _Same(part), _same_items(part)
    of_python = kind.__name__.endswith("_descriptor") and kind.__module__ == "builtins"
    return _Same(part) if of_python or name in _NOTED or name.startswith(_NOTED_BY) else None


def _are_scalars(values: Any) -> bool:
    return all(type(value) in _SCALARS for value in values)


def _travels(value: Any, names: dict[str, Any]) -> bool:
    """Tell whether this is a function, a class, or plain data that is small."""
    return _Look(names).is_plain(value)


class _Look:
    """One look at a value, which ends where it has too many parts."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._seen: set[int] = set()  # parts, by their ids: they may lead to each other

    def is_plain(self, value: Any) -> bool:
        kind = type(value)
        if kind in (str, bytes, bytearray):
            return len(value) <= ENTRY_BYTES
        if kind in _SCALARS or kind is object or kind in (FunctionType, BuiltinFunctionType, range, slice):
            return True
        if issubclass(type(value), type) or kind.__module__ == _BY_NAME:
            return True
        if id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if len(self._seen) > PARTS:
            return False
        if kind in (list, tuple, set, frozenset) or kind.__module__ == "collections" or kind is dict:
            return self._are_plain(value) and (
                not issubclass(type(value), dict) or self._are_plain(value.values())
            )
        if issubclass(type(value), functools.partial):
            return self._are_plain((value.func, *value.args, *value.keywords.values()))
        if kind.__module__ in ("functools", "logging"):
            return kind.__name__ in ("_lru_cache_wrapper", "Logger")
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind in (numpy.ndarray, getattr(numpy, "dtype", None)):
            return not getattr(value, "dtype", value).hasobject and getattr(value, "nbytes", 0) <= ENTRY_BYTES
        return kind.__module__ in _PLAIN or self._is_own(value)

    def _are_plain(self, values: Any) -> bool:
        return len(values) <= PARTS and all(map(self.is_plain, list(values)))

    def _is_own(self, value: Any) -> bool:
        """Tell whether this is an object of a class of the script's that holds nothing but plain data."""
        kind = type(value)
        if kind.__module__ != "__main__":
            return False
        own = {name for base in kind.__mro__ if base.__module__ == "__main__" for name in vars(base)}
        if own & {"__reduce__", "__reduce_ex__", "__getstate__", "__getattr__", "__getattribute__"}:
            return False  # code of the user's would run that nobody has asked for
        if issubclass(type(value), (tuple, list, set, frozenset, dict)) and not self._are_plain(value):
            return False
        return self._are_plain(tuple(getattr(value, "__dict__", {}).values()))


class _Pickler(ByValue):
    """A pickler of one name's value: what else the script has under a name of its own, it names."""

    def __init__(self, name: str, value: Any) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, None)
        self._value = value
        self._script = names_of(sys.modules["__main__"])
        self.needs: set[str] = set()
        self.kinds: list[type] = []  # that go by value
        self.funcs: list[FunctionType] = []

    def reducer_override(self, value: Any) -> Any:
        """Name what has a name, in the script or in another module."""
        if issubclass(type(value), (FunctionType, type)) and value is not self._value:
            name = value.__name__
            if value.__module__ == "__main__" and self._script.get(name) is value:
                return script.named, (name,)
        reduced = super().reducer_override(value)
        if reduced is NotImplemented and issubclass(type(value), (FunctionType, BuiltinFunctionType, type)):
            self.needs.add(str(value.__module__))
        elif issubclass(type(value), type) and has_number(value):
            self.kinds.append(value)
        return reduced

    def met(self, func: FunctionType, state: dict[str, Any]) -> None:
        """Have a function find what it names among the script's names, where that is."""
        self.funcs.append(func)
        state["__globals__"] = {}
        state["_cloudpickle_submodules"] = []


def _looked_for(func: FunctionType, entries: Collection[str]) -> Collection[str]:
    """Return those of these names that a function may look for by text."""
    words = _words_of_annotations(func)
    codes = [func.__code__]
    for code in codes:
        if not _BY_TEXT.isdisjoint(code.co_names):
            return entries
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                codes.append(constant)
            elif isinstance(constant, str):
                words |= _words(constant)
    return words.intersection(entries)


def _words_of_annotations(func: FunctionType) -> set[str]:
    texts = [text for text in func.__annotations__.values() if isinstance(text, str)]
    return set().union(*map(_words, texts))


@functools.lru_cache(maxsize=1000)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text[:10_000]))
