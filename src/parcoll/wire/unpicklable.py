"""Unpicklable: which of a user's objects cannot travel, and what to call it."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from parcoll.errors import SerializationError
from parcoll.text import describe, function_name, line_of, short_repr
from parcoll.wire.codec import dumps, loads
from parcoll.wire.own_modules import is_own
from parcoll.wire.payload import Packed

MAX_DEPTH = 8  # attributes, members and captured variables within each other


def first_unpicklable(elements: Sequence[Any]) -> tuple[int, BaseException] | None:
    """Return the position of the first element that cannot be pickled, and why; None if each can."""
    for position, element in enumerate(elements):
        try:
            Packed.pack(element)
        except (Exception, SystemExit) as error:
            return position, error
    return None


def cannot_send(func: Any, role: str, cause: BaseException) -> SerializationError:
    """Return the error for a function that cannot be pickled, which names the captured object at fault."""
    culprit = _culprit(func, "", _can_be_pickled)
    blame = f": {culprit}" if culprit else ""
    advice = ": make it within the function, or once in each worker with @per_worker" if culprit else ""
    return SerializationError(f"{role} cannot be sent to the workers{blame} ({line_of(cause)}){advice}")


def unloadable(value: Any, loader: str) -> str | None:
    """Say which part of `value` a worker could not load, where a function named `loader` failed there.

    The load may fail here as well. If it does not, the part is the one that this function makes: it depends
    on the machine, as a device or a file does.
    """
    return _culprit(value, "", _can_be_loaded) or _culprit(value, "", lambda part: not _made_by(part, loader))


def _culprit(value: Any, name: str, can_travel: Callable[[Any], bool], depth: int = 0) -> str | None:
    """Say which part of `value` cannot travel, by the name that the script has for it: ``self.cluster``.

    The path leads through functions, containers and objects of the user's own classes. It ends at an object
    of another class: the user does not know what such an object consists of.
    """
    if depth < MAX_DEPTH:
        for part, shown in _parts(value, name):
            if not can_travel(part):
                return _culprit(part, shown, can_travel, depth + 1) or f"it uses {shown}, {describe(part)}"
            if can_travel is not _can_be_pickled and (found := _culprit(part, shown, can_travel, depth + 1)):
                return found
    return None


def _can_be_pickled(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:
        return False
    return True


def _can_be_loaded(value: Any) -> bool:
    try:
        loads(dumps(value))
    except Exception:
        return False
    return True


def _made_by(value: Any, loader: str) -> bool:
    """Tell whether a function of that qualified name makes the copy of `value`, or gives it its state."""
    kind = type(value)
    names = {
        f"{owner.__qualname__}.{name}" for owner in kind.__mro__ for name in _LOADING if name in vars(owner)
    }
    with contextlib.suppress(Exception):
        names.add(value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[0].__qualname__)
    return loader in names


_LOADING = ("__setstate__", "__new__", "__init__", "__setitem__", "append", "extend", "add")


def _parts(value: Any, name: str) -> Iterator[tuple[Any, str]]:
    """Give what a function, a container or an object of a class of the user's own holds, by name."""
    if isinstance(value, functools.partial):
        yield value.func, _function_called(value.func)
        yield from ((part, f"the argument {i} of its partial") for i, part in enumerate(value.args, 1))
        yield from ((part, f"the argument {key} of its partial") for key, part in value.keywords.items())
    elif isinstance(value, MethodType):
        yield value.__self__, "self" if name in ("", "self") else name
    elif isinstance(value, FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, Mapping):
        yield from ((part, f"{name}[{short_repr(key)}]") for key, part in list(value.items()))
        yield from ((key, f"a key of {name}") for key in list(value))
    elif isinstance(value, (list, tuple)):
        yield from ((part, f"{name}[{i}]") for i, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((part, f"a member of {name}") for part in value)
    elif is_own_class(type(value)):
        yield from ((part, f"{name or 'self'}.{key}") for key, part in _attributes(value))


def _parts_of_function(func: FunctionType) -> Iterator[tuple[Any, str]]:
    code = func.__code__
    for name, cell in zip(code.co_freevars, func.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # the cell is still empty
            yield cell.cell_contents, name
    for name in dict.fromkeys(name for inner in _codes(code) for name in inner.co_names):
        if name in func.__globals__:
            yield func.__globals__[name], name
    arguments = code.co_varnames[: code.co_argcount]
    defaults = func.__defaults__ or ()
    yield from ((value, f"the default of {name}") for name, value in _last_pairs(arguments, defaults))
    yield from ((value, f"the default of {name}") for name, value in (func.__kwdefaults__ or {}).items())


def _last_pairs(names: Sequence[str], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return zip(names[len(names) - len(values) :], values, strict=True)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from dict(getattr(value, "__dict__", {})).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):
                yield name, getattr(value, name)


def _function_called(func: Any) -> str:
    return f"the function {function_name(func)} of its partial"


def is_own_class(kind: type) -> bool:
    """Tell whether a class is of the script, or of a module that no package installs."""
    if kind.__module__ == "__main__":
        return True
    if kind.__module__.partition(".")[0] in {"parcoll", "builtins", *sys.stdlib_module_names}:
        return False
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return isinstance(file, str) and is_own(Path(file))
