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
import dis
import enum
import functools
import inspect
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

from parcoll.chain.steps import Step
from parcoll.checkpoint import digest
from parcoll.wire.own_modules import imported_sources, is_own, names_imported

# The flags of a code object that count: *args, **kwargs, generator, coroutine, asynchronous generator.
FLAGS = 0x04 | 0x08 | 0x20 | 0x80 | 0x200
MAX_DEPTH = 40  # of lists, dicts and the like within each other
CHANGING = ("random", "numpy.random")  # their random generators have another state in each process
# Attributes that Python adds to a class: they do not show what it does, or only show where it stands.
_INCIDENTAL = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__"),
        *("__static_attributes__", "__annotations__", "__annotate__", "__annotate_func__"),
        *("__annotations_cache__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
    }
)

Parts = dict[str, str]


def of_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return for each step its label, its kind, and the digests of its function's parts."""
    return [{"label": step.label, "kind": step.kind, "parts": of_function(step.func)} for step in steps]


def of_function(func: Any) -> Parts:
    """Return the digests of a function's parts, by the words for them in a message."""
    walk = _Walk()
    if isinstance(func, FunctionType) and _own(func.__module__):
        # One walk for all parts: what two parts use is taken apart with the first of them, so that a change
        # of it shows in the first part, which is the one that a refusal names.
        return {label: walk.whole(part).hex() for label, part in _parts_of(func)}
    return {"the function": walk.whole(func).hex()}


def difference(saved: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    """Return the first difference between two chains as a clause; None if there is none."""
    for number, (one, other) in enumerate(zip(saved, now, strict=False), 1):
        which = f"step {number}, {other['label']}"
        if one["kind"] != other["kind"]:
            return f"step {number} was {one['label']} and is {other['label']}"
        for label in [*one["parts"], *(label for label in other["parts"] if label not in one["parts"])]:
            if one["parts"].get(label) != other["parts"].get(label):
                was = "" if one["label"] == other["label"] else f" (it was {one['label']})"
                return f"{label} of {which}{was}, has changed"
    if len(saved) != len(now):
        return f"the chain had {len(saved)} step{'s' * (len(saved) != 1)} and has {len(now)}"
    return None


class _Walk:
    """Takes values apart: each function, class and object once, one after the other.

    They refer to each other, in circles and in long rows. So each gets a number when it is first met. The
    number stands for it wherever it is referred to, and it is taken apart when its turn comes.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # by id
        self._waiting: deque[Any] = deque()
        self._alive: list[Any] = []  # what has a number: the id of an object that is gone is used again
        self._depth = 0

    def whole(self, value: Any) -> bytes:
        """Return the digest of a value and of all that it leads to, unless that was met before."""
        found = [self.of(value)]
        while self._waiting:
            found.append(self._taken_apart(self._waiting.popleft()))
        return digest.of_parts(*found)

    def of(self, value: Any) -> bytes:
        """Return what stands for a value: the digest of data, the number of anything else."""
        if type(value) in digest.SCALARS:
            return digest.of_value(value)
        # Data gets no number: whether equal tuples are one object differs between runs of one script.
        if type(value) not in (list, tuple, dict, set, frozenset, CodeType, _Code):
            if id(value) not in self._numbers:
                self._numbers[id(value)] = len(self._numbers)
                self._alive.append(value)
                self._waiting.append(value)
            return b"number %d" % self._numbers[id(value)]
        if self._depth > MAX_DEPTH:
            return _named(type(value))
        self._depth += 1
        try:
            return self._taken_apart(value)
        finally:
            self._depth -= 1

    def _taken_apart(self, value: Any) -> bytes:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, _Code):
            return self._code(value.code, value.doc)
        if isinstance(value, CodeType):
            return self._code(value, None)
        if isinstance(value, ModuleType):
            return digest.of_parts(b"module", value.__name__.encode())
        if isinstance(value, type):
            return self._class(value) if _own(value.__module__) else _named(value)
        if isinstance(value, MethodType):
            return digest.of_parts(b"method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return digest.of_parts(
                b"partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
            )
        if isinstance(value, enum.Enum):
            return digest.of_parts(b"member", self.of(type(value)), value.name.encode(), self.of(value.value))
        if _own(type(value).__module__):
            return self._object(value)
        # What `functools.wraps` made. Not by `hasattr`: some classes answer to any name.
        if inspect.getattr_static(value, "__wrapped__", None) is not None:
            return digest.of_parts(_named(type(value)), self.of(value.__wrapped__))
        if isinstance(value, property):
            return digest.of_parts(b"property", *map(self.of, (value.fget, value.fset, value.fdel)))
        if isinstance(value, BuiltinFunctionType):
            bound = value.__self__
            of = b"" if bound is None or isinstance(bound, ModuleType) else self.of(bound)
            return digest.of_parts(b"builtin", f"{value.__module__}.{value.__qualname__}".encode(), of)
        return self._data(value)

    def _data(self, value: Any) -> bytes:
        kind = type(value)
        if digest.is_flat(value) or digest.is_plain_array(value):
            return digest.of_value(value)
        if kind in (list, tuple):
            return digest.of_parts(_named(kind), *map(self.of, value))
        if kind in (set, frozenset):
            return digest.of_parts(_named(kind), *sorted(map(self.of, sorted(value, key=_order))))
        if kind is dict:
            return digest.of_parts(_named(kind), *self._pairs(value))
        return _named(kind) if kind.__module__.startswith(CHANGING) else self._reduced(value)

    def _object(self, value: Any) -> bytes:
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
        installed = (base for base in kind.__mro__ if not _own(base.__module__))
        below = next(base for base in installed if base.__module__ not in ("abc", "typing"))
        return digest.of_parts(b"object", self.of(kind), *self._pairs(state), *self._content(value, below))

    def _content(self, value: Any, kind: type) -> list[bytes]:
        """Return what an object holds as an instance of `kind`, the installed class below its own."""
        if kind in (list, tuple):
            return [*map(self.of, kind.__iter__(value))]
        if kind in (set, frozenset):
            return sorted(map(self.of, sorted(kind.__iter__(value), key=_order)))
        if kind is dict:
            return self._pairs(dict(dict.items(value)))
        if kind in digest.SCALARS:
            return [self.of(kind.__getnewargs__(value))]  # type: ignore[attr-defined]
        if issubclass(kind, BaseException):
            return [self.of(value.args)]
        return [] if kind is object else [self._reduced(value)]

    def _reduced(self, value: Any) -> bytes:
        """Take apart an object of an installed class: `numpy.vectorize(f)` holds a function of the user's."""
        try:
            reduced = digest.reduced_to(value)
        except Exception:  # pickle refuses it
            return _named(type(value))
        if isinstance(reduced, str):
            return digest.of_parts(_named(type(value)), reduced.encode())
        make, arguments, state, items, pairs = reduced
        made_by = getattr(make, "__qualname__", "").encode()
        parts = (tuple(arguments), state, list(items or ()), dict(pairs or ()))
        return digest.of_parts(_named(type(value)), made_by, *map(self.of, parts))

    def _pairs(self, pairs: dict[Any, Any]) -> list[bytes]:
        in_order = sorted(pairs, key=_order)
        return sorted(digest.of_parts(self.of(key), self.of(pairs[key])) for key in in_order)

    def _class(self, kind: type) -> bytes:
        own = {name: value for name, value in vars(kind).items() if name not in _INCIDENTAL}
        if issubclass(kind, enum.Enum):
            # Beside its members Python keeps tables in an enum, to which it adds flags that are combined.
            own = {name: value for name, value in own.items() if not _enum_table(name)}
            own |= {name: member.value for name, member in kind.__members__.items()}
        if _own(type(kind).__module__):
            own["metaclass"] = type(kind)
        members = [digest.of_parts(name.encode(), self.of(value)) for name, value in sorted(own.items())]
        return digest.of_parts(b"class", kind.__name__.encode(), *map(self.of, kind.__bases__), *members)

    def _function(self, func: FunctionType) -> bytes:
        if not _own(func.__module__):
            return digest.of_parts(b"function", f"{func.__module__}.{func.__qualname__}".encode())
        parts = [digest.of_parts(label.encode(), self.of(part)) for label, part in _parts_of(func)]
        return digest.of_parts(b"function", *parts)

    def _code(self, code: CodeType, doc: str | None) -> bytes:
        arguments = code.co_argcount + code.co_kwonlyargcount
        constants = list(code.co_consts)
        if constants and doc is not None and constants[0] == doc and not _loads_first_constant(code):
            constants[0] = None
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & FLAGS)
        return digest.of_parts(
            code.co_code,
            getattr(code, "co_exceptiontable", b""),
            self.of((*shape, code.co_names, code.co_varnames[:arguments], code.co_freevars)),
            *map(self.of, constants),
        )


class _Code(NamedTuple):
    """A function's code with its docstring, which stands among the code's constants."""

    code: CodeType
    doc: str | None


def _parts_of(func: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a function, each with the words for it in a message."""
    code = func.__code__
    yield "the code", _Code(code, func.__doc__)
    if func.__defaults__:
        yield "a default argument", func.__defaults__
    if func.__kwdefaults__:
        yield "a default argument given by name", func.__kwdefaults__
    for name, cell in zip(code.co_freevars, func.__closure__ or (), strict=False):
        try:
            yield f"the captured variable {name!r}", cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
    names = {name for inner in _codes(code) for name in inner.co_names}
    for name in sorted(set(_global_names(code)).intersection(func.__globals__)):
        value = func.__globals__[name]
        if isinstance(value, ModuleType) and _own(value.__name__):
            yield from _members_of(value, name, names)
        else:
            yield f"the global {name!r}", value
    for name, text in sorted(imported_sources(_imports(func)).items()):
        with contextlib.suppress(SyntaxError, ValueError):  # not for this Python: importing it fails too
            yield f"the module {name!r}, which it imports,", compile(text, "", "exec", dont_inherit=True)


def _members_of(module: ModuleType, label: str, names: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the members of a module that are among `names`, and those of its submodules."""
    for name in sorted(names.intersection(vars(module))):
        value = vars(module)[name]
        if isinstance(value, ModuleType) and value.__name__.startswith(f"{module.__name__}."):
            yield from _members_of(value, f"{label}.{name}", names)
        elif isinstance(value, ModuleType) and value is not module and _own(value.__name__):
            below = names.intersection(vars(value))
            yield from ((f"{label}.{name}.{member}", vars(value)[member]) for member in sorted(below))
        else:
            yield f"{label}.{name}", value


def _imports(func: FunctionType) -> Iterator[str]:
    """Yield the modules that a function imports when it runs, and imported names that may be modules."""
    package = func.__globals__.get("__package__") or ""
    for code in _codes(func.__code__):
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, members = steps[i - 2].argval, steps[i - 1].argval
                yield from names_imported(step.argval, level, members or (), package)


def _order(value: Any) -> tuple[str, str]:
    """Return a key to sort a set by: a scalar's value, a function's or a class's name, or the content."""
    if type(value) in digest.SCALARS:
        return type(value).__qualname__, repr(value)
    name = inspect.getattr_static(value, "__qualname__", None)
    return type(value).__qualname__, name if isinstance(name, str) else digest.of_value(value).hex()


def _loads_first_constant(code: CodeType) -> bool:
    """Tell whether the code uses its first constant, so that it is not a docstring only."""
    return any("CONST" in step.opname and step.arg == 0 for step in dis.get_instructions(code))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code, and the code of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _global_names(code: CodeType) -> Iterator[str]:
    for inner in _codes(code):
        for step in dis.get_instructions(inner):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield step.argval


def _enum_table(name: str) -> bool:
    return name.startswith("_") and name.endswith("_") and not name.startswith("__")


def _named(kind: type) -> bytes:
    return digest.of_parts(b"type", f"{kind.__module__}.{kind.__qualname__}".encode())


@functools.lru_cache(maxsize=4096)
def _own(module: str | None) -> bool:
    """Tell whether a module is the user's own, so that its functions may change between two runs."""
    if module is None or module == "__main__":
        return True
    if module.partition(".")[0] in {"parcoll", *sys.builtin_module_names}:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return is_own(Path(file)) if isinstance(file, str) else module in sys.modules
