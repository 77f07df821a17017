"""Failures: exceptions as values that always survive the trip from a worker, and the exceptions made of them.

If a task raised, its exception would reach the user through dask's messages, the task would be retried by
dask's rules, and it would fail a second time if the exception could not be pickled. So workers return
failures as values.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from parcoll import text
from parcoll.errors import SerializationError
from parcoll.text import short_repr, shortened
from parcoll.wire.anatomy import (
    MAX_CHAIN,
    PLAIN,
    Room,
    add_notes,
    dumps_in_part,
    fields_of,
    frames_of,
    members_of,
    message_of,
    notes_of,
    set_field,
    summary_of,
    traceback_of,
)
from parcoll.wire.codec import TooLargeError, by_reference, dumps, loads

# A value that belongs to an exception: True with its pickle, or with what it is encoded as where it is an
# exception itself; False with its `repr`.
Part = tuple[bool, "bytes | str | EncodedException"]
MAX_DEPTH = MAX_CHAIN + 4  # of exceptions that are args or attributes of one another, without their causes


@dataclass
class Failure:
    """One exception as a value: its parts, and the note that tells the user where it was raised."""

    exception: EncodedException
    note: str

    @classmethod
    def of(cls, error: BaseException, note: str, skip_frames: int = 0) -> Failure:
        """Return `error` as a failure, without the outermost `skip_frames` frames, which are parcoll's."""
        try:
            return cls(_encode(error, Room(), skip_frames), note)
        except Exception as refusal:  # an attribute of the exception raised when it was read
            stand_in = Exception(
                f"an exception of type {type(error).__name__}, which could not be sent from the worker: "
                f"reading it raised {short_repr(refusal)}"
            )
            return cls(_encode(stand_in, Room()), note)

    def rebuild(self) -> BaseException:
        """Return the exception: its own type, the worker's traceback, its causes, and the note.

        A `StopIteration` becomes the cause of a `RuntimeError`, as in a generator (PEP 479). Raised as it
        is, it would end the consumer's loop and lose the rest without a word.
        """
        return _noted(_raisable(_decoded(self.exception)), self.note)

    def original(self) -> BaseException:
        """Return the exception for a caller that does not raise it: a `StopIteration` stays what it is."""
        return _noted(_decoded(self.exception), self.note)


@dataclass
class EncodedException:
    """One exception, with each part pickled on its own, so that one bad part does not spoil the others."""

    whole: bytes | None  # the exception itself, where it can be pickled and unpickled
    exact: bool  # whether that has the same text and args
    kind: bytes | None  # its class
    bases: list[bytes]  # its class's bases, the nearest first
    name: str
    module: str
    args: list[Part]
    attributes: dict[str, Part]
    notes: list[str]
    frames: Any  # tblib's dictionary
    text: str  # the traceback, as Python prints it
    summary: str  # the type and the message, in one line
    message: str | None  # its str(), where that does not raise
    suppress_context: bool
    members: list[EncodedException]  # of an exception group
    others: bytes = b""  # further ones: the class and the args of each, pickled
    missing: int = 0  # how many cannot travel even so
    cut: bool = False  # whether a part did not fit
    cause: EncodedException | None = None
    context: EncodedException | None = None


def _encode(error: BaseException, room: Room, skip_frames: int = 0, depth: int = 0) -> EncodedException:
    kind = type(error)
    room.exceptions -= 1
    frames = error.__traceback__
    for _ in range(skip_frames):
        frames = frames.tb_next if frames is not None else None
    attributes = fields_of(error) | {
        name: value for name, value in getattr(error, "__dict__", {}).items() if name != "__notes__"
    }
    members, args = members_of(error), error.args
    if members:  # which are encoded one by one, and not as parts of the group too
        args = args[:1]
        attributes.pop("exceptions", None)
    message = message_of(error)
    summary = summary_of(error, message)
    before, room.lacked = room.lacked, False
    whole, exact = (None, False) if members else _round_trip(error, message, room)
    encoded = EncodedException(
        whole=whole,
        exact=exact,
        kind=room.kind(kind),
        bases=[p for base in kind.__mro__[1:] if (p := room.kind(base)) is not None],
        name=kind.__qualname__,
        module=kind.__module__,
        args=[_part(value, depth, room) for value in args],
        attributes={name: _part(value, depth, room) for name, value in attributes.items()},
        members=[],
        notes=notes_of(error),
        frames=frames_of(frames),
        # Without its causes and members, which have texts of their own; there may be any number of them.
        text="".join([*traceback.format_tb(frames), summary]),
        summary=summary,
        message=None if message is None else shortened(message) if room.lacked else message,
        suppress_context=error.__suppress_context__,
        cut=room.lacked,
        cause=_linked(error.__cause__, depth, room),
        # `raise ... from` makes the cause the context too. It is encoded once, not twice at each level.
        context=None if error.__context__ is error.__cause__ else _linked(error.__context__, depth, room),
    )
    room.lacked |= before
    _encode_members(members, encoded, room, depth + 1)
    return encoded


def _encode_members(
    members: Sequence[BaseException], encoded: EncodedException, room: Room, depth: int
) -> None:
    while len(encoded.members) < len(members) and room.has(depth):
        encoded.members.append(_encode(members[len(encoded.members)], room, depth=depth))
    others = members[len(encoded.members) :]
    if others:
        try:
            encoded.others = room.pickled(_by_reference, [(type(other), other.args) for other in others])
        except Exception:
            encoded.missing = len(others)


def _by_reference(value: Any, limit: int) -> bytes:
    content = by_reference(value)
    if len(content) > limit:
        raise TooLargeError
    return content


def _linked(error: BaseException | None, depth: int, room: Room) -> EncodedException | None:
    # Compared with None: an exception may have a length, and so be false.
    return None if error is None or depth >= MAX_CHAIN else _encode(error, room, depth=depth + 1)


def _noted(error: BaseException, note: str) -> BaseException:
    add_notes(error, [note])
    return error


def _raisable(error: BaseException) -> BaseException:
    if not isinstance(error, StopIteration):
        return error
    wrapper = RuntimeError(
        f"a function of the chain raised {short_repr(error)}, which would end the loop over the "
        "results: raise another exception, or return"
    )
    wrapper.__cause__ = error
    return wrapper


def _decoded(encoded: EncodedException) -> BaseException:
    try:
        return _decode(encoded)
    except Exception as error:  # as from a worker that has another parcoll
        return SerializationError(f"a worker's exception cannot be put together here: {text.line_of(error)}")


def _decode(encoded: EncodedException) -> BaseException:
    # The frames of a traceback know this one and its callers: none of these has an exception in a variable.
    return _put_together(
        *(encoded, traceback_of(encoded.frames)),
        _group(encoded, [_decode(member) for member in encoded.members]),
        *(None if linked is None else _decode(linked) for linked in (encoded.cause, encoded.context)),
    )


def _put_together(
    encoded: EncodedException, frames: TracebackType | None, *found: BaseException | None
) -> BaseException:
    error, cause, context = found
    error = _whole(encoded) if error is None else error
    error = _from_parts(encoded) if error is None else error
    add_notes(error, encoded.notes)
    if frames is None and encoded.frames is not None:
        add_notes(error, ["Traceback in the worker:\n" + encoded.text])
    set_field(error, "__traceback__", frames)
    if cause is not None:
        set_field(error, "__cause__", cause)
    if (context := cause if context is None else context) is not None:
        set_field(error, "__context__", context)
    set_field(error, "__suppress_context__", encoded.suppress_context)
    return error


def _whole(encoded: EncodedException) -> BaseException | None:
    error = _loaded(encoded.whole) if encoded.exact else None
    if not isinstance(error, BaseException) or encoded.cut:
        return error if isinstance(error, BaseException) else None
    args = [decoded_part(part) for part in encoded.args]
    if _shown(error.args) != _shown(args):  # made by a `__reduce__` that calls with other ones
        set_field(error, "args", tuple(args))
    for name, part in encoded.attributes.items():
        value, here = decoded_part(part), getattr(error, name, None)
        if here is None or (part[0] and type(value) in PLAIN and value != here):
            set_field(error, name, value)
    return error


def _loaded(whole: bytes | None) -> Any:
    try:
        return loads(whole) if whole is not None else None
    except (Exception, SystemExit):  # a user's `__setstate__` may call sys.exit()
        return None


def _from_parts(encoded: EncodedException) -> BaseException:
    error = _with_parts(_load_kind(encoded), encoded)
    if error is None and isinstance(near := _loaded(encoded.whole), BaseException):
        return near
    if error is None:
        named = type(encoded.name, (Exception,), {"__module__": encoded.module})
        error = _with_parts(named, encoded)
        assert error is not None  # an exception of Python's own
    if encoded.message is not None and message_of(error) != encoded.message:
        # Its text was made of what did not travel: it has the text, and is still caught as what it is.
        members = {"__module__": encoded.module, "__str__": lambda _: encoded.message}
        with contextlib.suppress(Exception):  # a class that cannot have subclasses
            error = _with_parts(type(encoded.name, (type(error),), members), encoded) or error
    return error


def _with_parts(kind: type[BaseException], encoded: EncodedException) -> BaseException | None:
    """Return an exception of this class with the args and attributes that travelled; None if none is made."""
    args = [decoded_part(part) for part in encoded.args]
    error = _blank(kind, args)
    if error is not None:
        set_field(error, "args", tuple(args))
        for name, part in encoded.attributes.items():
            set_field(error, name, decoded_part(part))
    return error


def _blank(kind: type[BaseException], args: list[Any]) -> BaseException | None:
    """Return an exception whose `__init__` was not called, since that may take other arguments.

    Some compiled classes can be made by `__new__` of a base only.
    """
    for base in kind.__mro__:
        for given in (args, []):
            try:
                error = base.__new__(kind, *given)
            except Exception:
                continue
            if type(error) is kind:
                return error
    return None


def _group(encoded: EncodedException, members: list[BaseException]) -> BaseException | None:
    """Return an exception group of the members, each with its type and traceback; None without members."""
    if not (encoded.members or encoded.others):
        return None
    missing = encoded.missing
    try:
        members += [_bare(*other) for other in loads(encoded.others)] if encoded.others else []
    except Exception:  # a class that this process does not have
        missing = -1
    message = str(decoded_part(encoded.args[0])) if encoded.args else ""
    for kind in (_load_kind(encoded), ExceptionGroup, BaseExceptionGroup):
        try:
            group: BaseException = kind(message, members)
        except Exception:
            continue
        for name, part in encoded.attributes.items():
            set_field(group, name, decoded_part(part))
        if missing:
            more = f"{missing:,} more" if missing > 0 else "More"
            add_notes(group, [f"{more} exceptions of this group could not be sent from the worker"])
        return group
    return None


def _bare(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error = _blank(kind, list(args)) or Exception(kind.__qualname__)
    if not isinstance(error, BaseExceptionGroup):
        set_field(error, "args", args)
    return error


def _load_kind(encoded: EncodedException) -> type[BaseException]:
    for pickled in [encoded.kind, *encoded.bases]:
        try:
            kind = loads(pickled) if pickled is not None else None
        except (Exception, SystemExit):
            continue
        if isinstance(kind, type) and issubclass(kind, BaseException):
            if pickled is encoded.kind:
                return kind
            # The class itself could not travel: make one of the same name, derived from its nearest base.
            return type(encoded.name, (kind,), {"__module__": encoded.module})
    return Exception


def _round_trip(error: BaseException, message: str | None, room: Room) -> tuple[bytes | None, bool]:
    """Pickle the exception, and tell whether it survives a round trip as it is.

    Many with an `__init__` of their own do not. One that makes its message there would make a second one, of
    the message: another text, or other args. But a class that says itself how it is pickled may mean args.
    """
    near = None
    for pickle in (dumps, dumps_in_part):
        try:
            pickled = room.pickled(pickle, error)
            copy = loads(pickled)
        except TooLargeError:
            break
        except BaseException:
            continue
        if type(copy) is type(error):
            near = near or pickled
            same_args = _shown(copy.args) == _shown(error.args) or _reduces_itself(type(error))
            if same_args and message_of(copy) == message:
                return pickled, True
    return near, False


def _reduces_itself(kind: type[BaseException]) -> bool:
    return kind.__reduce__ is not BaseException.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__


def _shown(args: Sequence[Any]) -> str:
    return " ".join(short_repr(value) if type(value) in PLAIN else type(value).__name__ for value in args)


def _part(value: Any, depth: int, room: Room) -> Part:
    """Return a value of an exception's as it travels: what it holds and cannot be pickled is replaced."""
    if isinstance(value, BaseException):
        pickled, exact = _round_trip(value, message_of(value), room)
        if not exact and depth < MAX_DEPTH:
            return True, _encode(value, room, depth=max(depth, MAX_CHAIN) + 1)
        return (False, short_repr(value)) if pickled is None else (True, pickled)
    is_pickle, content = encoded_part(value, room)
    if is_pickle:
        return True, content
    if type(value) is str:  # too long; its beginning says more than its repr
        return True, dumps(shortened(value))
    return encoded_part(value, room, dumps_in_part)


def encoded_part(
    value: Any, room: Room, pickle: Callable[[Any, int], bytes] = dumps
) -> tuple[bool, bytes | str]:
    """Return True and the value's pickle, or False and the `repr` of one that has none, or a large one."""
    try:
        pickled = room.pickled(pickle, value)
        loads(pickled)
    except Exception:
        return False, short_repr(value)
    return True, pickled


def decoded_part(part: Part) -> Any:
    """Return the value that was encoded, or its `repr`, or a text that says why it cannot be unpickled."""
    is_pickle, content = part
    if not is_pickle:
        return content
    try:
        return _decode(content) if isinstance(content, EncodedException) else loads(content)  # type: ignore[arg-type]
    except (Exception, SystemExit) as error:
        return f"<could not be unpickled: {text.message_of(error)}>"
