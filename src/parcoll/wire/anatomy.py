"""Anatomy: which part of an object cannot travel, and what an exception holds and says.

Of an exception (text, fields, notes, members) so much travels that telling of it costs no more than a second
or two: a text that a user's class makes has a deadline and a size.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    TracebackType,
)
from typing import Any

from parcoll.clock import time
from parcoll.errors import SerializationError
from parcoll.text import (
    describe,
    function_name,
    in_time,
    is_plain_error,
    line_of,
    short_repr,
    shortened,
)
from parcoll.wire.codec import LOCKS, PROTOCOL, Bounded, ByValue, TooLargeError, dump, dumps, loads
from parcoll.wire.named import reduced_by_name
from parcoll.wire.own_modules import is_own
from parcoll.wire.payload import Packed

PLAIN = (str, bytes, int, float, bool, type(None))  # types whose repr says all
MAX_NOTES = 1000
MAX_CHAIN = 8  # causes and contexts that travel with an exception, one behind the other
# Of one failure; what is beyond travels in fewer words, so that telling of it takes about a second at most.
MAX_MEMBERS = 1000  # exceptions of groups that travel whole, at 0.1 ms each; others with class and args only
MAX_SECONDS = 1.0  # that these may take; a class of the script's is dearer
MAX_BYTES = 16 * 2**20  # of pickles
MAX_NESTING = 50  # of groups in groups
MOST_OF_FINALIZED = 2**20  # bytes: an object with a finalizer that is larger is its `repr` in an exception


@dataclass
class Room:
    """How much of a failure may still travel."""

    exceptions: int = MAX_MEMBERS + 2 * MAX_CHAIN
    nbytes: int = MAX_BYTES
    until: float = dataclasses.field(default_factory=lambda: time.monotonic() + MAX_SECONDS)
    kinds: dict[type, bytes | None] = dataclasses.field(default_factory=dict)  # classes, pickled
    lacked: bool = False  # whether something did not fit

    def pickled(self, pickle: Callable[[Any, int], bytes], value: Any) -> bytes:
        """Return a pickle that fits; TooLargeError for one that does not."""
        try:
            if _is_longer(value, self.nbytes):
                raise TooLargeError
            content = pickle(value, self.nbytes)
        except TooLargeError:
            self.lacked = True
            raise
        self.nbytes -= len(content)
        return content

    def kind(self, kind: type) -> bytes | None:
        """Return a class, pickled once; None if it cannot be."""
        if kind not in self.kinds:
            try:
                self.kinds[kind] = dumps(kind)
            except Exception:
                self.kinds[kind] = None
        return self.kinds[kind]

    def has(self, depth: int) -> bool:
        """Tell whether one more exception of a group may travel whole."""
        return self.exceptions > 0 and depth < MAX_NESTING and time.monotonic() < self.until


def _is_longer(value: Any, limit: int) -> bool:
    """Tell whether a text or bytes, or one that an exception holds, has more bytes than that."""
    held = (value,)
    if isinstance(value, BaseException):
        held = (*value.args, *getattr(value, "__dict__", {}).values())
    return any(type(one) in (str, bytes, bytearray) and len(one) > limit for one in held)


def message_of(error: BaseException) -> str | None:
    """Return what its `str` says; None if that raises, or takes too long."""
    if is_plain_error(error):
        # The repr of bytes is four times as long.
        return short_repr(error.args[0]) if _holds_long_bytes(error) else str(error)
    try:
        return in_time(str, error)
    except Exception:
        return None


def _holds_long_bytes(error: BaseException) -> bool:
    return any(type(value) is bytes and len(value) > MAX_BYTES for value in error.args)


def summary_of(error: BaseException, message: str | None) -> str:
    """Return ``ValueError: the message`` in one line; a validator's message may have many lines."""
    module, name = type(error).__module__, type(error).__qualname__
    if module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    message = "<its str() failed>" if message is None else " ".join(shortened(message).split())
    return f"{name}: {message}" if message else name


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return the exceptions of a group."""
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()  # a group is no member of itself


def fields_of(error: BaseException) -> dict[str, Any]:
    """Return what an exception holds beside its `args` and its `__dict__`: `SystemExit.code`, slots.

    Classes with an `__init__` of their own, and some built-in ones, leave these out of their pickles.
    """
    fields: dict[str, Any] = {}
    for kind in type(error).__mro__:
        if kind is BaseException:
            break
        own = "__slots__" in vars(kind)
        for name, field in vars(kind).items():
            if isinstance(field, (MemberDescriptorType, GetSetDescriptorType)) and name[:2] != "__":
                with contextlib.suppress(Exception):
                    value = getattr(error, name)
                    # An OSError whose `filename2` was set shows it, even if it is None.
                    if own or value is not None:
                        fields.setdefault(name, value)
    return fields


def set_field(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute, whatever the class has against it."""
    try:
        setattr(error, name, value)
    except Exception:
        with contextlib.suppress(Exception):  # a frozen dataclass refuses `setattr` only
            object.__setattr__(error, name, value)


def notes_of(error: BaseException) -> list[str]:
    """Return its notes, as many as travel."""
    notes = getattr(error, "__notes__", None)
    if not isinstance(notes, list):
        return []
    texts = []
    for note in notes[:MAX_NOTES]:
        try:
            texts.append(shortened(note if type(note) is str else in_time(str, note)))
        except Exception:
            texts.append(f"<a note of type {type(note).__name__}, which cannot be read>")
    if len(notes) > MAX_NOTES:
        texts.append(f"... and {len(notes) - MAX_NOTES:,} more notes")
    return texts


def add_notes(error: BaseException, notes: Iterable[str]) -> None:
    """Add the notes that it does not have yet."""
    found = getattr(error, "__notes__", None)
    before = found if isinstance(found, list) else []
    known = {note for note in before if type(note) is str}
    missing = [note for note in notes if note not in known]
    if missing:
        set_field(error, "__notes__", [*before, *missing])


def frames_of(frames: TracebackType | None) -> Any:
    """Return a traceback as tblib's dictionary."""
    if frames is None:
        return None
    from tblib import Traceback  # lazy: only a failure needs it

    try:
        return Traceback(frames).to_dict()
    except Exception:
        return ()


def traceback_of(frames: Any) -> TracebackType | None:
    """Return the traceback of such a dictionary, None where it cannot be made."""
    if not frames:
        return None
    from tblib import Traceback

    try:
        return Traceback.from_dict(frames).as_traceback()  # type: ignore[no-any-return]
    except Exception:
        return None


# What cannot travel --------------------------------------------------------------------------------

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


# What cannot travel whole --------------------------------------------------------------------------


def dumps_in_part(value: object, limit: int | None = None) -> bytes:
    """Pickle by value; what cannot be pickled is a lock of its own there, or its `repr`."""
    return dump(_InPart, value, None, io.BytesIO() if limit is None else Bounded(limit))


class _InPart(ByValue):
    """A pickler of what is to be looked at rather than used: what an exception refers to."""

    _of_script = staticmethod(lambda value: NotImplemented)  # what it reduces to may raise: below

    def reducer_override(self, value: Any) -> Any:
        """Replace what cannot be pickled."""
        if issubclass(type(value), LOCKS):
            return type(value) if isinstance(value, type(threading.RLock())) else threading.Lock, ()
        reduced = super().reducer_override(value)
        if reduced is not NotImplemented or issubclass(type(value), (type, FunctionType)):
            return reduced
        if type(value) in self.dispatch_table:
            return NotImplemented
        try:
            # A finalizer would fail where a part is missing, as that of an HTTP response.
            if hasattr(type(value), "__del__") and not isinstance(value, BaseException):
                dumps(value, MOST_OF_FINALIZED)
            named = reduced_by_name(value) if type(value).__module__ == "__main__" else NotImplemented
            return value.__reduce_ex__(PROTOCOL) if named is NotImplemented else named
        except Exception:
            if isinstance(value, Mapping) and hasattr(value, "copy"):  # another's, that cannot be written to
                return copy.copy, (value.copy(),)
            return str, (short_repr(value),)
