"""Anatomy: what an exception holds and says (text, fields, notes, members), and how much of it travels.

A text that a user's class makes has a deadline and a size, so that no exception costs more than a second or
two to be told of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any

from parcoll.text import in_time, is_plain_error, short_repr, shortened
from parcoll.wire.codec import TooLargeError, dumps

PLAIN = (str, bytes, int, float, bool, type(None))  # types whose repr says all
MAX_NOTES = 1000
MAX_CHAIN = 8  # causes and contexts that travel with an exception, one behind the other
# Of one failure; what is beyond travels in fewer words, so that telling of it takes about a second at most.
MAX_MEMBERS = 1000  # exceptions of groups that travel whole, at 0.1 ms each; others with class and args only
MAX_SECONDS = 1.0  # that these may take; a class of the script's is dearer
MAX_BYTES = 16 * 2**20  # of pickles
MAX_NESTING = 50  # of groups in groups


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
