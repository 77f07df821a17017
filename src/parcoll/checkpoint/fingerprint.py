"""Fingerprint: what a chain consists of, in a form that two processes can compare.

It holds the steps, and for each step digests of the parts of its function. The parts of a function of the
user's own are its bytecode and constants, its defaults, its captured variables, and the global variables
that it names. Functions and classes among these are taken apart in the same way. Of a global module of the
user's own, the members count that the function names. Of a module that the function imports when it runs,
the whole text counts, and that of the own modules which it imports. A function or class that belongs to
Python or to an installed package counts with its name only. What changes nothing is left out: where a
function stands (file, line, its own name), the names of its local variables, its docstring.

Each part has a name, so that a refusal can say which part has changed. Sets are sorted, so that the digests
do not depend on PYTHONHASHSEED. What cannot be compared (an open file, a lock) counts with its type only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, TypeGuard

from parcoll.calls.broadcasts import Broadcast
from parcoll.calls.per_workers import PerWorker
from parcoll.chain.steps import Step
from parcoll.checkpoint import digest
from parcoll.checkpoint.functions import IMPORTED, Code, is_own_module, loads_first_constant, parts_of
from parcoll.wire import memmaps

# The flags of a code object that count: *args, **kwargs, generator, coroutine, asynchronous generator.
FLAGS = 0x04 | 0x08 | 0x20 | 0x80 | 0x200
CHANGING = ("random", "numpy.random")  # their random generators have another state in each process
_CONTAINERS = (list, tuple, dict, set, frozenset)
# Attributes that Python adds to a class: they do not show what it does, or only show where it stands.
_INCIDENTAL = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__"),
        *("__static_attributes__", "__annotations__", "__annotate__", "__annotate_func__"),
        *("__annotations_cache__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
        *("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__", "__signature__"),
        "__slotnames__",  # which Python notes when an object of the class is pickled
    }
)

Parts = dict[str, str]


def of_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return for each step its label, its kind, and the digests of its function's parts and its arguments."""
    return [{"label": step.label, "kind": step.kind, "parts": _parts_of_step(step)} for step in steps]


def _parts_of_step(step: Step) -> Parts:
    arguments = {f"the argument {name!r}": _Walk().whole(value) for name, value in step.arguments.items()}
    return of_function(step.compared) | {label: found.hex() for label, found in arguments.items()}


def of_function(func: Any) -> Parts:
    """Return the digests of a function's parts, by the words for them in a message."""
    walk = _Walk()
    if isinstance(func, FunctionType) and is_own_module(func.__module__):
        # One walk for all parts: what two parts use is taken apart with the first of them, so that a change
        # of it shows in the first part, which is the one that a refusal names.
        return {label: walk.whole(part).hex() for label, part in parts_of(func)}
    return {"the function": walk.whole(func).hex()}


def is_chain(found: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Tell whether this has the shape of what `of_steps` returns."""
    return isinstance(found, list) and all(isinstance(step, dict) and _is_step(step) for step in found)


def _is_step(found: dict[str, Any]) -> bool:
    parts = found.get("parts")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        return False
    return isinstance(found.get("label"), str) and isinstance(found.get("kind"), str)


def difference(saved: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str | None:
    """Return the first difference between two chains as a clause; None if there is none."""
    for number, (one, other) in enumerate(zip(saved, now, strict=False), 1):
        if one["kind"] != other["kind"]:
            return f"step {number} was {one['label']} and is {other['label']}"
        for label in [*one["parts"], *(label for label in other["parts"] if label not in one["parts"])]:
            if one["parts"].get(label) != other["parts"].get(label):
                which = f"step {number}, {other['label']}"
                which += "" if one["label"] == other["label"] else f" (it was {one['label']})"
                if label.startswith(IMPORTED):
                    return f"{label}, which the function of {which}, imports, has changed"
                return f"{label} of {which}, has changed"
    if len(saved) != len(now):
        more = max(saved, now, key=len)[min(len(saved), len(now)) :]
        told = f"{more[0]['label']} {'is not there any more' if len(saved) > len(now) else 'was not there'}"
        return f"the chain had {len(saved)} step{'s' * (len(saved) != 1)} and has {len(now)}: {told}"
    return None


class _Walk(digest.Walk):
    """Takes values apart: each function, class and object once, one after the other.

    They refer to each other, in circles and in long rows. So each gets a number when it is first met. The
    number stands for it wherever it is referred to, and it is taken apart when its turn comes.

    Data gets no number, unless it is too deep within other data: whether equal tuples are one object differs
    between runs of one script. A container's digest is kept, so that it is taken apart once, wherever it is
    referred to.
    """

    max_nodes = sys.maxsize  # a table of the user's counts to its last part

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[int, int] = {}  # by id
        self._containers: dict[int, Any] = {}  # by id: the digest, or how deep it is while taken apart
        self._waiting: deque[Any] = deque()
        self._alive: list[Any] = []  # what has an entry: the id of an object that is gone is used again

    def whole(self, value: Any) -> bytes:
        """Return the digest of a value and of all that it leads to, unless that was met before."""
        found = [digest.of_stand_in(self.apart(value))]
        while self._waiting:
            found.append(digest.of_stand_in(self._taken_apart(self._waiting.popleft())))
        return digest.of_parts(*found)

    def apart(self, value: Any, depth: int = 0) -> Any:
        """Return what stands for a value: of a container that leads back to itself, how deep that began."""
        if type(value) not in _CONTAINERS or digest.is_flat(value):
            return super().apart(value, depth)
        if id(value) not in self._containers:
            if depth > digest.MAX_DEPTH:
                return self._number(value)
            self._alive.append(value)
            self._containers[id(value)] = (..., "circle", depth)
            self._containers[id(value)] = (..., "digest", digest.of_stand_in(super().apart(value, depth)))
        return self._containers[id(value)]

    def in_order(self, parts: Iterable[Any], key: Callable[[Any], Any] | None = None) -> Iterable[Any]:
        """Sort parts, so that they get their numbers in the same order in each process."""
        return sorted(parts, key=_order if key is None else lambda part: _order(key(part)))

    def other(self, value: Any, depth: int) -> Any:
        """Return the number of a function, a class, an object; code counts as data."""
        if isinstance(value, CodeType):
            return self._code(value, None, depth)
        if isinstance(value, Code):
            return self._code(value.code, value.doc, depth)
        return self._number(value)

    def too_much(self, value: Any) -> Any:
        """Return a number: that of what is too deep within others, and is taken apart when its turn comes."""
        return self._number(value)

    def _number(self, value: Any) -> Any:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._numbers)
            self._alive.append(value)
            self._waiting.append(value)
        return (..., "number", self._numbers[id(value)])

    def _taken_apart(self, value: Any) -> Any:
        """Return what stands for the content of what has a number."""
        if type(value) in (*_CONTAINERS, CodeType):  # it was too deep within others
            return self.apart(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, ModuleType):
            return (..., "module", value.__name__)
        if isinstance(value, type):
            return self._class(value) if is_own_module(value.__module__) else digest.of_type(value)
        if isinstance(value, MethodType):
            return (..., "method", self.apart(value.__func__), self.apart(value.__self__))
        if isinstance(value, functools.partial):
            return (..., "partial", *map(self.apart, (value.func, value.args, value.keywords)))
        if isinstance(value, Broadcast):
            return (..., "broadcast", self.apart(value.value))
        if isinstance(value, PerWorker):
            return (..., "per worker", value._scope, self.apart(value._factory))
        if isinstance(value, enum.Enum):
            return (..., "member", self.apart(type(value)), value.name, self.apart(value.value))
        if is_own_module(type(value).__module__):
            return self._object(value)
        # What `functools.wraps` made. Not by `hasattr`: some classes answer to any name.
        if inspect.getattr_static(value, "__wrapped__", None) is not None:
            return (..., "wrapper", digest.class_name(type(value)), self.apart(value.__wrapped__))
        if isinstance(value, property):
            return (..., "property", *map(self.apart, (value.fget, value.fset, value.fdel)))
        if isinstance(value, BuiltinFunctionType):
            bound = None if isinstance(value.__self__, ModuleType) else value.__self__
            return (..., "builtin", f"{value.__module__}.{value.__qualname__}", self.apart(bound))
        if (file := memmaps.file_of(value)) is not None:
            return (..., "memory map", *file)  # not what is in it, which the chain may write
        if digest.is_plain_array(value):
            return digest.array(value)
        if type(value).__module__.startswith(CHANGING):
            return digest.of_type(type(value))
        return self.reduced(value, 0)  # `numpy.vectorize(f)` holds a function of the user's

    def _object(self, value: Any) -> Any:
        """Take apart an object of one of the user's classes: its attributes, and its content.

        The content is what the object holds as an instance of the installed class that its own derives from.
        """
        kind = type(value)
        state = dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            for name, member in vars(base).items():
                if isinstance(member, MemberDescriptorType):  # a slot
                    with contextlib.suppress(AttributeError):  # the slot is empty
                        state[name] = member.__get__(value)
        # Without `Generic` and `ABC`, which hold nothing and may stand before a class that does.
        installed = (base for base in kind.__mro__ if not is_own_module(base.__module__))
        below = next(base for base in installed if base.__module__ not in ("abc", "typing"))
        state = digest.lasting(kind, state)
        return (..., "own", self.apart(kind), self.pairs(state.items(), 0), self._content(value, below))

    def _content(self, value: Any, kind: type) -> Any:
        """Return what an object holds as an instance of `kind`, the installed class below its own."""
        if kind in (list, tuple):
            return [*map(self.apart, kind.__iter__(value))]
        if kind in (set, frozenset):
            return self.members([*kind.__iter__(value)], 0)
        if kind is dict:
            return self.pairs(dict.items(value), 0)
        if kind in digest.SCALARS:
            return self.apart(kind.__getnewargs__(value))  # type: ignore[attr-defined]
        if issubclass(kind, BaseException):
            return self.apart(value.args)
        return None if kind is object else self.reduced(value, 0)

    def _class(self, kind: type) -> Any:
        own = {name: value for name, value in vars(kind).items() if name not in _INCIDENTAL}
        if issubclass(kind, enum.Enum):
            # Beside its members Python keeps tables in an enum, to which it adds flags that are combined.
            own = {name: value for name, value in own.items() if not _enum_table(name)}
            own |= {name: member.value for name, member in kind.__members__.items()}
        if is_own_module(type(kind).__module__):
            own["metaclass"] = type(kind)
        own |= _of_pydantic(own)
        bases = [self.apart(base) for base in kind.__bases__]
        return (..., "own class", kind.__name__, bases, self.pairs(own.items(), 0))

    def _function(self, func: FunctionType) -> Any:
        if not is_own_module(func.__module__):
            return (..., "function", f"{func.__module__}.{func.__qualname__}")
        return (..., "own function", [(label, self.apart(part)) for label, part in parts_of(func)])

    def _code(self, code: CodeType, doc: str | None, depth: int) -> Any:
        arguments = code.co_argcount + code.co_kwonlyargcount
        constants = list(code.co_consts)
        if constants and doc is not None and constants[0] == doc and not loads_first_constant(code):
            constants[0] = None
        return (
            *(..., "code", code.co_code, code.co_exceptiontable),
            (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & FLAGS),
            (code.co_names, code.co_varnames[:arguments], code.co_freevars),
            [self.apart(constant, depth) for constant in constants],
        )


def _order(value: Any) -> tuple[str, str, str]:
    """Return a key to sort a set by: a scalar's value, a function's or a class's name, or the content."""
    kind = type(value).__qualname__
    if type(value) in digest.SCALARS:
        return kind, repr(value), ""
    if isinstance(value, FunctionType):
        return kind, value.__qualname__, _held(value)
    if isinstance(value, (type, BuiltinFunctionType)):
        return kind, f"{value.__module__}.{value.__qualname__}", ""
    return kind, digest.of_value(value).hex(), ""


def _held(func: FunctionType) -> str:
    """Return a digest that differs for most functions of one name, such as lambdas."""
    code, cells = func.__code__, []
    for cell in func.__closure__ or ():
        with contextlib.suppress(ValueError):  # the cell is still empty
            cells.append(cell.cell_contents)
    return digest.of_value([code.co_code, code.co_names, code.co_consts, func.__defaults__, cells]).hex()


def _of_pydantic(own: dict[str, Any]) -> dict[str, Any]:
    """Return what pydantic keeps of a model's validators and serializers, without the addresses of classes.

    What it derives of that and of the fields is left out (`_INCIDENTAL`).
    """
    decorators = own.get("__pydantic_decorators__")
    if not dataclasses.is_dataclass(decorators):
        return {}
    kinds = {field.name: getattr(decorators, field.name) for field in dataclasses.fields(decorators)}
    found = {kind: by_name for kind, by_name in kinds.items() if isinstance(by_name, dict)}
    settings = {
        f"{kind}.{name}": getattr(decorator, "info", None)
        for kind, by_name in found.items()
        for name, decorator in by_name.items()
    }
    return {"__pydantic_decorators__": settings}


def _enum_table(name: str) -> bool:
    return name.startswith("_") and name.endswith("_") and not name.startswith("__")
