"""Objects: of the script's classes: those that a class has, and keys of tables to which they lead.

The first are that very object where they arrive. Of the others, what their hash is made of is there first.
Those whose class says how they are made and filled (`__new__`, `__getattr__`) are not made by what it says,
which was done in the script. And objects of Python's own, where it does not pickle them.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import functools
import random
import struct
import tempfile
import types
from collections.abc import Callable, Mapping
from enum import Enum
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary


class Later:
    """What is reduced when a pickler comes to it."""

    def __init__(self, reduced: Callable[[], Any]) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced()


def settled(*_: Any) -> None:
    """Do nothing: all has been done where the arguments were unpickled."""


SCALARS = (int, float, complex, str, bytes, bool, type(None))
ATOMS = frozenset(SCALARS)
CONTAINERS = (dict, set, frozenset, list, tuple)


def is_by_default(kind: Any) -> bool:
    """Tell whether objects of a class are pickled as Python does where nobody says how."""
    return kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__


# Objects that their own class has ------------------------------------------------------------------

Path = tuple[Any, ...]  # an attribute of a class, and a key or position in what that is

DEPTH = 4
MOST_HELD = 1000  # parts of classes and their tables, which are looked through for each pickle
MOST_PARTS = 100


# Which objects of a class are pickled as Python does: all, those with attributes, or with numbers and texts.
ALWAYS, FILLED, OF_ATOMS = range(3)


class Known(NamedTuple):
    """What is known of a class whose objects are pickled."""

    held: dict[int, Path]  # which of them it has itself, by their ids
    is_hashed: bool  # whether they have a hash of their own
    is_bare: bool  # whether one without attributes has nothing but its identity
    usual: int | None  # which of them are pickled as Python does
    maker: Any  # what makes them past the script's own code: a class of a library's; None where pickle does

    @classmethod
    def of(cls, kind: Any, elsewhere: Mapping[int, tuple[Path, Any]]) -> Known:
        """Look at a class, and at what other classes have."""
        default = is_by_default(kind) and not hasattr(kind, "__setstate__")
        has_slots = any("__slots__" in vars(base) for base in kind.__mro__[:-1])
        is_bare = default and not has_slots and not is_of_python(kind)
        is_hashed = default and type(kind.__hash__) is FunctionType
        held = {at: path for at, (path, found) in elsewhere.items() if found is kind} | held_by(kind)
        usual = OF_ATOMS if is_hashed else FILLED if is_bare else ALWAYS
        maker = maker_of(kind) if default else None
        is_unusual = held or not default or maker or (is_hashed and not is_bare)
        return cls(held, is_hashed, is_bare, None if is_unusual else usual, maker)

    def reduced(self, value: Any, named: Callable[[str], Any]) -> Any:
        """Return the reduction of an object that a class has, or that is a key; else NotImplemented."""
        path = self.held.get(id(value))
        if path is not None:
            held = reduced_held(type(value), path, value, named, self.maker)
            if held is not NotImplemented:
                return held
        return (
            reduced_hashed(value, self.maker) if self.is_hashed and leads_to_keys(value) else NotImplemented
        )


class Objects:
    """What is known of objects of the script's, for as long as an evaluation, or a program on a worker.

    By then an object may be gone, and another one have its id: that one is a copy, since it is not alike.
    """

    def __init__(self) -> None:
        self.marks: set[int] = set()  # see `named.reduced_mark`
        self._kinds: WeakKeyDictionary[type, Known] = WeakKeyDictionary()
        self._elsewhere: dict[int, tuple[Path, Any]] | None = None

    def of(self, kind: type, names: dict[str, Any]) -> Known:
        """Return what is known of those of a class; `names` are those of the script."""
        known = self._kinds.get(kind)
        if known is None:
            if self._elsewhere is None:
                self._elsewhere = held_by_others(names)
            known = self._kinds[kind] = Known.of(kind, self._elsewhere)
        return known


def is_of_python(kind: type) -> bool:
    """Tell whether objects of a class are lists, numbers or the like, too."""
    return any(base.__module__ == "builtins" for base in kind.__mro__[:-1])


def held_by(kind: type) -> dict[int, Path]:
    """Return where a class has objects of its own, by their ids: `Color.RED`, or one of a table."""
    bases = [((name,), value) for base in kind.__mro__[:-1] for name, value in vars(base).copy().items()]
    return {at: path for at, (path, found) in _looked_through(bases).items() if type(found) is kind}


def held_by_others(names: dict[str, Any]) -> dict[int, tuple[Path, Any]]:
    """Return the same of all objects of the script's that its classes have, and what they are.

    `names` are those of the script.
    """
    kinds = [(name, found) for name, found in names.copy().items() if issubclass(type(found), type)]
    classes = [(name, kind) for name, kind in kinds if kind.__module__ == "__main__"]
    parts = [((None, name, at), part) for name, kind in classes for at, part in vars(kind).copy().items()]
    return {at: (path, type(found)) for at, (path, found) in _looked_through(parts).items()}


def _looked_through(left: list[tuple[Path, Any]]) -> dict[int, tuple[Path, Any]]:
    """Return what has a name in classes, and what their tables have, by ids."""
    found: dict[int, tuple[Path, Any]] = {}
    for path, value in left:  # which grows
        of_script = type(value).__module__ == "__main__"
        if not of_script and isinstance(value, (dict, list, tuple)) and len(path) < DEPTH:
            if str(path[-1])[:2] == "__":
                continue
            pairs = dict.copy(value).items() if isinstance(value, dict) else enumerate(value)
            if len(value) + len(left) <= MOST_HELD:
                known = [
                    pair for pair in pairs if type(pair[0]) in (int, str) or issubclass(type(pair[0]), type)
                ]
                left += [((*path, at), part) for at, part in known]
        elif of_script and not issubclass(type(value), Enum):  # its members have names
            found.setdefault(id(value), (path, value))
    return found


def behind_class(kind: type, value: Any) -> Any:
    """Return an object of a class that goes first."""
    return value


def reduced_held(kind: type, path: Path, value: Any, named: Callable[[str], Any], maker: Any) -> Any:
    """Reduce an object that its class has, so that it is that one again where that one is like it."""
    reduction = value.__reduce_ex__(5) if maker is None else parts_past(value, maker)
    if isinstance(reduction, str) or any(reduction[3:]) or not _is_plain(reduction[:3], [0]):
        return NotImplemented
    return held, (kind, path, _Copy(reduction[:3]), *([named] if path[0] is None else ()))


class _Copy:
    def __init__(self, reduction: tuple[Any, ...]) -> None:
        self._reduction = reduction

    def __reduce__(self) -> Any:
        make, *rest = self._reduction
        if make is make_past:
            return make, *rest, None, None, fill_past
        return (_new if make is copyreg.__newobj__ else make), *rest  # type: ignore[attr-defined]


def _new(kind: Any, *arguments: Any) -> Any:
    return kind.__new__(kind, *arguments)


def held(kind: Any, path: Path, value: Any, named: Callable[[str], Any] | None = None) -> Any:
    """Return what the class has, or another one of the script's, if it is like this copy; else the copy."""
    with contextlib.suppress(Exception):
        owner, (name, *keys) = (kind, path) if named is None else (named(path[1]), path[2:])
        found = next(vars(base)[name] for base in owner.__mro__ if name in vars(base))
        for at in keys:
            found = found[at]
        if type(found) is kind and _are_alike(found.__reduce_ex__(5)[:3], value.__reduce_ex__(5)[:3]):
            return found
    return value


def _is_plain(value: Any, seen: list[int]) -> bool:
    seen[0] += 1
    kind = type(value)
    if kind in (tuple, list, dict):
        parts = [*value, *value.values()] if kind is dict else value
        return seen[0] + len(parts) <= MOST_PARTS and all(_is_plain(part, seen) for part in parts)
    return (
        kind in SCALARS or kind in (types.FunctionType, types.BuiltinFunctionType) or issubclass(kind, type)
    )


def _are_alike(one: Any, other: Any) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return [*one] == [*other] and _are_alike([*one.values()], [*other.values()])
    if kind in (tuple, list):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    if kind is types.FunctionType:
        given = (one.__defaults__, one.__kwdefaults__), (other.__defaults__, other.__kwdefaults__)
        return one.__code__ == other.__code__ and not one.__closure__ and given[0] == given[1]
    if kind in (float, complex):
        return repr(one) == repr(other)
    return one is other or (kind in SCALARS and bool(one == other))


# Objects that are keys ------------------------------------------------------------------------------


def reduced_hashed(value: Any, maker: Any = None) -> Any:
    """Reduce what has a hash of its own: numbers and texts are set first, then objects, containers last.

    A table that it leads to may have it as a key, whose hash is made of these.
    """
    if maker is None:
        make, arguments, state, *items = value.__reduce_ex__(5)
    else:
        make, arguments, (state, *content) = parts_past(value, maker)
    names, slots = state if type(state) is tuple and len(state) == 2 else (state, {})
    if type(names) not in (dict, type(None)) or type(slots) is not dict:
        return NotImplemented
    given = [_by_rank(names or {}), _by_rank(slots)]
    parts = [part for part in zip(*given, strict=True) if any(part)]
    steps = tuple(Later(functools.partial(_setting, value, *part)) for part in parts)
    if maker is not None:
        steps, items = (*steps, Later(lambda: (fill_past, (value, (None, *content))))), [None, None]
    return make, arguments, Later(lambda: (settled, steps)), *items, settled


def _by_rank(parts: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    ranks: tuple[dict[str, Any], ...] = {}, {}, {}
    for name, part in parts.items():
        ranks[0 if _is_plain(part, [0]) else 2 if type(part) in CONTAINERS else 1][name] = part
    return ranks


def leads_to_keys(value: Any, depth: int = 3) -> bool:
    """Tell whether an object of the script's leads to a table whose keys have a hash of their own."""
    parts = getattr(value, "__dict__", None)
    if parts is None:
        slots = (vars(base).get("__slots__", ()) for base in type(value).__mro__[:-1])
        names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
        parts = {name: getattr(value, name, None) for name in names if name[:2] != "__"}
    for part in parts.values():
        kind = type(part)
        if kind in ATOMS:
            continue
        if kind in CONTAINERS:
            first = next(iter(part), None)
            is_key = type(first).__module__ == "__main__" and kind not in (list, tuple)
            if is_key and type(type(first).__hash__) is FunctionType:
                return True
            part = next(iter(part.values()), None) if kind is dict else first
        if type(part).__module__ == "__main__" and depth > 1 and leads_to_keys(part, depth - 1):
            return True
    return False


def _setting(value: Any, names: dict[str, Any], slots: dict[str, Any]) -> Any:
    return _set_parts, (value, names, slots)


def _set_parts(value: Any, names: Mapping[str, Any], slots: Mapping[str, Any]) -> None:
    if names:  # past descriptors, as pickle does
        value.__dict__.update(names)
    for name, part in slots.items():
        object.__setattr__(value, name, part)


# Objects that pickle would make and fill by code of the script's -------------------------------------


def maker_of(kind: Any) -> Any:
    """Return what makes objects of a class without the script's own code; None where pickle does without it.

    A `__new__` wants other arguments than pickle has, or counts, or changes them once more. A `__getattr__`
    asks for what is not there yet, and so do an `append` and a `__setitem__`. What can be made by
    `__getnewargs__` is.
    """
    of_script = [base for base in kind.__mro__ if base.__module__ == "__main__"]
    own = {name for base in of_script for name in vars(base)}
    at = next(at for at, base in enumerate(kind.__mro__) if "__new__" in vars(base))
    before = {name for base in kind.__mro__[: at + 1] for name in vars(base)}
    is_made = kind.__mro__[at] in of_script and not before & _ARGUMENTS
    if hasattr(kind, "__getnewargs_ex__") or not (is_made or own & _ASKED or _is_filled_by(kind, own)):
        return None
    if not is_made and own & _ARGUMENTS:
        return None
    return next(base for base in kind.__mro__[at:] if "__new__" in vars(base) and base not in of_script)


_ARGUMENTS = {"__getnewargs__", "__getnewargs_ex__"}
_ASKED = {"__getattr__", "__getattribute__"}


def _is_filled_by(kind: Any, own: set[str]) -> bool:
    """Tell whether pickle would call one of these methods to fill an object."""
    fills = {dict: {"__setitem__"}, list: {"append", "extend"}}
    of_items = set().union(*(names for base, names in fills.items() if issubclass(kind, base)))
    has_slots = any("__slots__" in vars(base) for base in kind.__mro__[:-1])
    return bool(own & of_items) or (has_slots and "__setattr__" in own)


def reduced_past(value: Any, maker: Any) -> Any:
    """Reduce an object so that it is made and filled without the code of its class."""
    return *parts_past(value, maker), None, None, fill_past


def parts_past(value: Any, maker: Any) -> tuple[Any, Any, Any]:
    """Return what makes it, from which arguments, and what it is filled with: attributes, items, pairs."""
    kind: Any = type(value)
    arguments = maker.__getnewargs__(value) if hasattr(maker, "__getnewargs__") else ()
    items = list.copy(value) if isinstance(value, list) else None
    pairs = list(dict.items(value)) if isinstance(value, dict) else None
    state: Any = kind.__getstate__(value)
    return make_past, (maker, kind, *arguments), (state, items, pairs)


def make_past(maker: Any, kind: Any, *arguments: Any) -> Any:
    """Make an object of a class as a base of it does."""
    return maker.__new__(kind, *arguments)


def fill_past(value: Any, state: tuple[Any, Any, Any]) -> None:
    """Give an object what it has."""
    given, items, pairs = state
    names, slots = given if type(given) is tuple and len(given) == 2 else (given, None)
    if names:
        object.__getattribute__(value, "__dict__").update(names)
    for name, part in (slots or {}).items():
        object.__setattr__(value, name, part)
    if items:
        list.extend(value, items)
    if pairs:
        dict.update(value, pairs)


# Of Python's library ---------------------------------------------------------------------------------


def _reduced_closer(value: Any) -> Any:
    """Refuse a temporary file: its copy would remove it when it goes, while the script still has it."""
    if value.delete:  # not what an `HTTPError` reads from
        raise TypeError("cannot pickle a temporary file, pass its name instead")
    made: Any = object.__reduce_ex__(value, 5)
    ended = {**made[2], "cleanup_called": True, "close_called": True}  # a copy has nothing to close
    return *made[:2], ended, *made[3:]


OF_PYTHON: dict[Any, Callable[[Any], Any]] = {
    struct.Struct: lambda value: (struct.Struct, (value.format,)),
    random.SystemRandom: lambda _: (random.SystemRandom, ()),
}
if (closer := getattr(tempfile, "_TemporaryFileCloser", None)) is not None:
    OF_PYTHON[closer] = _reduced_closer


def with_builtins(func: Any, reduction: Any) -> Any:
    """Return the reduction of a function, with built-in names of its own: `{"__builtins__": {}}`."""
    given, usual = func.__builtins__, vars(builtins)
    if given is usual:
        return reduction
    same = tuple(name for name, value in given.items() if name in usual and usual[name] is value)
    own = {name: value for name, value in given.items() if name not in same}
    _, *parts, setter = reduction
    make = functools.partial(_with_builtins, same, own)
    return make, *parts, functools.partial(_set_but_builtins, setter)


def _with_builtins(same: tuple[str, ...], own: dict[str, Any], code: Any, names: Any, *others: Any) -> Any:
    if "__builtins__" not in names:  # those that share their globals share these
        usual = vars(builtins)  # where `quit` and its like may be missing
        names["__builtins__"] = {name: usual[name] for name in same if name in usual} | own
    return FunctionType(code, names, *others)


def _set_but_builtins(setter: Callable[..., Any], func: Any, state: Any) -> None:
    given = func.__builtins__
    setter(func, state)  # which gives the globals Python's own names
    func.__globals__["__builtins__"] = given
