"""Failures: exceptions as values that always survive the trip from a worker, and the exceptions made of them.

If a task raised, its exception would reach the user through dask's messages, the task would be retried by
dask's rules, and it would fail a second time if the exception could not be pickled. So workers return
failures as values.
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any

from parcoll.text import short_repr
from parcoll.wire.codec import dumps, loads

PLAIN = (str, bytes, int, float, bool, type(None))  # types whose repr says all
MAX_CHAIN = 8  # causes and contexts that travel with an exception, one behind the other


@dataclass
class Failure:
    """One exception as a value: its parts, and the note that tells the user where it was raised."""

    exception: EncodedException
    note: str

    @classmethod
    def of(cls, error: BaseException, note: str, skip_frames: int = 0) -> Failure:
        """Return `error` as a failure, without the outermost `skip_frames` frames, which are parcoll's."""
        try:
            return cls(_encode(error, skip_frames), note)
        except Exception as refusal:  # an attribute of the exception raised when it was read
            stand_in = Exception(f"{type(error).__name__}, which could not be described: {refusal!r}")
            return cls(_encode(stand_in), note)

    def rebuild(self) -> BaseException:
        """Return the exception: its own type, the worker's traceback, its causes, and the note.

        A `StopIteration` becomes the cause of a `RuntimeError`, as in a generator (PEP 479). Raised as it
        is, it would end the consumer's loop and lose the rest without a word.
        """
        error = _decode(self.exception)
        if isinstance(error, StopIteration):
            wrapper = RuntimeError(f"a function of the chain raised {error!r}")
            wrapper.__cause__ = error
            error = wrapper
        _add_note(error, self.note)
        return error

    def original(self) -> BaseException:
        """Return the exception for a caller that does not raise it: a `StopIteration` stays what it is."""
        error = _decode(self.exception)
        _add_note(error, self.note)
        return error


@dataclass
class EncodedException:
    """One exception, with each part pickled on its own, so that one bad part does not spoil the others."""

    whole: bytes | None  # the exception itself, where it can be pickled and unpickled
    kind: bytes | None  # its class
    bases: list[bytes]  # its class's bases, the nearest first
    name: str
    module: str
    args: list[tuple[bool, bytes | str]]  # (pickled?, pickle or repr)
    attributes: dict[str, tuple[bool, bytes | str]]
    notes: list[str]
    frames: Any  # tblib's dictionary
    text: str  # the traceback, as Python prints it
    summary: str  # the type and the message, in one line
    suppress_context: bool
    members: list[EncodedException]  # of an exception group
    cause: EncodedException | None = None
    context: EncodedException | None = None


def _encode(error: BaseException, skip_frames: int = 0, depth: int = 0) -> EncodedException:
    kind = type(error)
    frames = error.__traceback__
    for _ in range(skip_frames):
        frames = frames.tb_next if frames is not None else None
    attributes = _fields(error) | {
        name: value for name, value in getattr(error, "__dict__", {}).items() if name != "__notes__"
    }
    return EncodedException(
        whole=_round_trip(error),
        kind=_pickled(kind),
        bases=[p for base in kind.__mro__[1:] if (p := _pickled(base)) is not None],
        name=kind.__qualname__,
        module=kind.__module__,
        args=[encoded_part(value) for value in error.args],
        attributes={name: encoded_part(value) for name, value in attributes.items()},
        members=[_encode(member, depth=depth + 1) for member in _members(error)],
        notes=_notes(error),
        frames=_frames(frames),
        text="".join(traceback.format_exception(kind, error, frames)),
        summary=_summary(error),
        suppress_context=error.__suppress_context__,
        cause=_linked(error.__cause__, depth),
        # `raise ... from` makes the cause the context too. It is encoded once, not twice at each level.
        context=None if error.__context__ is error.__cause__ else _linked(error.__context__, depth),
    )


def _summary(error: BaseException) -> str:
    """Return ``ValueError: the message`` in one line; a validator's message may have many lines."""
    module, name = type(error).__module__, type(error).__qualname__
    if module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "<its str() failed>"
    return f"{name}: {message}" if message else name


def _linked(error: BaseException | None, depth: int) -> EncodedException | None:
    # Compared with None: an exception may have a length, and so be false.
    return None if error is None or depth >= MAX_CHAIN else _encode(error, depth=depth + 1)


def _decode(encoded: EncodedException) -> BaseException:
    error = _group(encoded)
    error = _whole(encoded) if error is None else error
    error = _from_parts(encoded) if error is None else error
    for note in encoded.notes:
        if note not in getattr(error, "__notes__", ()):
            _add_note(error, note)
    frames = _traceback(encoded.frames)
    if frames is None and encoded.frames is not None:
        _add_note(error, "Traceback in the worker:\n" + encoded.text)
    _set(error, "__traceback__", frames)
    if encoded.cause is not None:
        cause = _decode(encoded.cause)
        _set(error, "__cause__", cause)
        _set(error, "__context__", cause)
    if encoded.context is not None:
        _set(error, "__context__", _decode(encoded.context))
    _set(error, "__suppress_context__", encoded.suppress_context)
    return error


def _whole(encoded: EncodedException) -> BaseException | None:
    if encoded.whole is None:
        return None
    try:
        error = loads(encoded.whole)
    except Exception:
        return None
    if not isinstance(error, BaseException):
        return None
    for name, part in encoded.attributes.items():
        if getattr(error, name, None) is None:
            _set(error, name, decoded_part(part))
    return error


def _from_parts(encoded: EncodedException) -> BaseException:
    kind = _load_kind(encoded)
    args = [decoded_part(part) for part in encoded.args]
    try:
        error = kind.__new__(kind, *args)  # not __init__, which may take other arguments
    except Exception:
        error = type(encoded.name, (Exception,), {"__module__": encoded.module})()
    _set(error, "args", tuple(args))
    for name, part in encoded.attributes.items():
        _set(error, name, decoded_part(part))
    return error


def _group(encoded: EncodedException) -> BaseException | None:
    """Return an exception group of the members, each with its type and traceback; None without members."""
    if not encoded.members:
        return None
    members = [_decode(member) for member in encoded.members]
    message = str(decoded_part(encoded.args[0])) if encoded.args else ""
    for kind in (_load_kind(encoded), ExceptionGroup, BaseExceptionGroup):
        try:
            group: BaseException = kind(message, members)
        except Exception:
            continue
        return group
    return None


def _members(error: BaseException) -> tuple[BaseException, ...]:
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()  # a group is no member of itself


def _fields(error: BaseException) -> dict[str, Any]:
    """Return what an exception holds beside its `args` and its `__dict__`: `SystemExit.code`, slots.

    Classes with an `__init__` of their own, and some built-in ones, leave these out of their pickles.
    """
    fields: dict[str, Any] = {}
    for kind in type(error).__mro__:
        if kind is BaseException:
            break
        for name, field in vars(kind).items():
            if isinstance(field, (MemberDescriptorType, GetSetDescriptorType)) and name[:2] != "__":
                with contextlib.suppress(Exception):
                    fields.setdefault(name, getattr(error, name))
    # Without those that are None: an OSError whose `filename2` was set shows it, even if it is None.
    return {name: value for name, value in fields.items() if value is not None}


def _set(error: BaseException, name: str, value: Any) -> None:
    try:
        setattr(error, name, value)
    except Exception:
        with contextlib.suppress(Exception):  # a frozen dataclass refuses `setattr` only
            object.__setattr__(error, name, value)


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", None)
    return [str(note) for note in notes] if isinstance(notes, list) else []


def _add_note(error: BaseException, note: str) -> None:
    notes = getattr(error, "__notes__", None)
    if note:
        _set(error, "__notes__", [*notes, note] if isinstance(notes, list) else [note])


def _load_kind(encoded: EncodedException) -> type[BaseException]:
    for pickled in [encoded.kind, *encoded.bases]:
        try:
            kind = loads(pickled) if pickled is not None else None
        except Exception:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseException):
            if pickled is encoded.kind:
                return kind
            # The class itself could not travel: make one of the same name, derived from its nearest base.
            return type(encoded.name, (kind,), {"__module__": encoded.module})
    return Exception


def _pickled(value: Any) -> bytes | None:
    try:
        pickled = dumps(value)
    except Exception:
        return None
    return pickled


def _round_trip(error: BaseException) -> bytes | None:
    """Pickle the exception if it survives a round trip; many with an `__init__` of their own do not."""
    try:
        pickled = dumps(error)
        copy = loads(pickled)
    except BaseException:
        return None
    # A class that makes its message in `__init__` would make a second one, of the message.
    same_class = type(copy) is type(error)
    return pickled if same_class and _shown(copy.args) == _shown(error.args) else None


def _shown(args: tuple[Any, ...]) -> str:
    return " ".join(short_repr(value) if type(value) in PLAIN else type(value).__name__ for value in args)


def encoded_part(value: Any) -> tuple[bool, bytes | str]:
    """Return True and the value's pickle, or False and the `repr` of a value that cannot be pickled."""
    try:
        pickled = dumps(value)
        loads(pickled)
    except Exception:
        return False, short_repr(value)
    return True, pickled


def decoded_part(part: tuple[bool, bytes | str]) -> Any:
    """Return the value that was encoded, or its `repr`, or a text that says why it cannot be unpickled."""
    is_pickle, content = part
    if not is_pickle:
        return content
    try:
        return loads(content)  # type: ignore[arg-type]
    except Exception as error:
        return f"<could not be unpickled: {error}>"


def _frames(frames: TracebackType | None) -> Any:
    if frames is None:
        return None
    from tblib import Traceback  # lazy: only a failure needs it

    try:
        return Traceback(frames).to_dict()
    except Exception:
        return ()


def _traceback(frames: Any) -> TracebackType | None:
    if not frames:
        return None
    from tblib import Traceback

    try:
        return Traceback.from_dict(frames).as_traceback()  # type: ignore[no-any-return]
    except Exception:
        return None
