"""Failed elements: the values that describe elements which failed.

They are encoded where the element failed, and become `ElementError`s again where somebody looks at them.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple

from parcoll.chain.place import Place
from parcoll.errors import ElementError, ElementTimeoutError, WorkerSetupError
from parcoll.text import line_of, message_of, short_repr
from parcoll.wire.anatomy import Room
from parcoll.wire.exceptions import Failure, decoded_part, encoded_part

KEPT = 1000  # failed elements, by an evaluation; a worker process sends no more either
ELEMENT_BYTES = 16 * 2**20  # that a worker process sends of such elements; of others it sends the `repr`

_files: set[str] = set()  # the source files between a worker's task and a user's function


def stands_between(file: str) -> None:
    """Leave the frames of a source file out of users' tracebacks, if they are the outermost ones."""
    _files.add(file)


def own_frames(error: BaseException) -> int:
    """Return how many of the outermost frames of a traceback are parcoll's own."""
    frames, own = error.__traceback__, 0
    while frames is not None and frames.tb_frame.f_code.co_filename in _files:
        frames, own = frames.tb_next, own + 1
    return own


_COUNTED = re.compile(
    r"missing \d+ required positional|takes .*argument.* given|takes no arguments|expected \d+ argument.* got"
)


def misfit(error: BaseException, label: str, element: Any) -> str:
    """Say how the step with this label calls its function, if that takes other arguments; "" if not.

    Such an error is of the call itself: no frame of the function is in its traceback.
    """
    if not isinstance(error, TypeError):
        return ""
    frames = error.__traceback__
    for _ in range(own_frames(error)):
        frames = frames.tb_next if frames is not None else None
    if frames is not None:
        return ""
    text, kind = message_of(error), label.partition("(")[0]
    if kind == "starmap" and "argument after * must be an iterable" in text:
        return "; starmap() is for elements that are tuples of arguments, map() for others"
    if kind == "flatmap" and text.endswith("is not iterable"):
        if text.startswith(("'async_generator'", "'coroutine'")):
            return "; pass the `async def` function itself, as in flatmap(pages)"
        return "; flatmap() is for functions that return several elements, as in a list, map() for others"
    if kind == "starmap" or not _COUNTED.search(text):
        return ""
    how = ", starmap() with the values of a tuple" if kind == "map" and isinstance(element, tuple) else ""
    return f"; {kind}() calls its function with one argument{how}"


def of_none(error: BaseException) -> str:
    """Say where a None may come from that has no place in what was done; "" if the error is of none."""
    if isinstance(error, (TypeError, AttributeError)) and "NoneType" in message_of(error):
        return "; a function without `return` gives None"
    return ""


@contextlib.contextmanager
def noting(label: str) -> Iterator[None]:
    """Have an error of the block say in which call it came."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {label}{of_none(error)}")
        raise


def late(label: str, timeout: float | None, at: str) -> ElementTimeoutError:
    """Return the error for a call that was stopped."""
    return ElementTimeoutError(f"{label} took longer than timeout={timeout:g} seconds, at {at}")


MAX_LINKED = 100  # exceptions that are followed: a user may have linked them in a circle
_making: set[CodeType] = set()


def makes_apart(code: CodeType) -> None:
    """Have what is raised below the frames of this code be the failure of no element."""
    _making.add(code)


def is_apart(error: BaseException | None) -> bool:
    """Tell whether an exception, or what it was raised for, is the failure of no element."""
    for _ in range(MAX_LINKED if _making else 0):
        if error is None:
            break
        frames = error.__traceback__
        while frames is not None:
            if frames.tb_frame.f_code in _making:
                return True
            frames = frames.tb_next
        error = error.__cause__ or error.__context__
    return False


class Broken(NamedTuple):
    """Stands where a flatmap could not make one of its elements, and goes on with the next one."""

    error: Exception


@dataclass
class FailedElement:
    """What an `ElementError` is made from, encoded so that each part survives the way to another process."""

    failure: Failure
    step: str
    step_index: int
    place: Place
    element: tuple[bool, bytes | str]
    attempts: int

    def rebuild(self) -> ElementError:
        """Return the `ElementError`, with the exception's type and traceback and a note that says where."""
        return ElementError(
            self.step,
            self.step_index,
            self.place.base,
            decoded_part(self.element),
            self.failure.original(),  # type: ignore[arg-type]
            self.attempts,
            self.place.partition,
        )


class FailedPart(NamedTuple):
    """What came of a source element that failed: which results of its partition, and what was counted."""

    at: int  # the index of the element in the source
    start: int  # its first result, among those of the partition
    end: int  # behind its last one
    flows: list[tuple[int, int]]
    faults: list[tuple[int, int, int]]


@dataclass
class Ledger:
    """How many failed elements of one program a worker process has sent, and how many bytes of them."""

    elements: int = 0
    nbytes: int = 0

    def encoded(self, element: Any) -> tuple[bool, bytes | str]:
        """Return an element pickled, or its `repr` if it cannot be pickled or there is no more room."""
        if self.nbytes >= ELEMENT_BYTES:
            return False, short_repr(element)
        part = encoded_part(element, Room(nbytes=ELEMENT_BYTES - self.nbytes))
        self.nbytes += len(part[1])
        return part


def packed(failed: list[FailedElement]) -> bytes:
    """Return failed elements as the bytes that are sent; b"" for none."""
    return pickle.dumps(failed) if failed else b""


def unpacked(content: bytes) -> list[FailedElement]:
    """Return the failed elements that were packed."""
    if not content:
        return []
    try:
        failed: list[FailedElement] = pickle.loads(content)
        if all(isinstance(one, FailedElement) for one in failed):
            return failed
        why = f"they are {short_repr(failed)}"
    except Exception as error:
        why = line_of(error)
    raise WorkerSetupError(f"what a worker says of failed elements cannot be read: {why}")


def pack_parts(parts: list[FailedPart]) -> bytes:
    """Return parts as the bytes that are sent, and saved: a pickle that names no class; b"" for none."""
    return pickle.dumps([tuple(part) for part in parts]) if parts else b""


def moved_parts(content: bytes, by: int) -> list[FailedPart]:
    """Return the parts that were packed, for results that stand behind so many others."""
    parts = [FailedPart(*part) for part in pickle.loads(content)] if content else []
    return [part._replace(start=part.start + by, end=part.end + by) for part in parts]


class FailedElements:
    """The failed elements of one evaluation that came back first, in the order of the source."""

    def __init__(self, kept: Iterable[FailedElement] = ()) -> None:
        self._kept = list(kept)
        self._rebuilt: dict[int, ElementError] = {}

    def add(self, failed: list[FailedElement]) -> None:
        """Keep as many as there is room for."""
        self._kept += failed[: max(KEPT - len(self._kept), 0)]

    @property
    def kept(self) -> list[FailedElement]:
        """Those that there was room for."""
        return self._kept[:]

    def rebuilt(self) -> list[ElementError]:
        """Return them as users get them, the same objects each time."""
        in_order = sorted(self._kept[:], key=lambda failed: (failed.place.partition or 0, failed.place.base))
        return [
            self._rebuilt.get(id(failed)) or self._rebuilt.setdefault(id(failed), failed.rebuild())
            for failed in in_order
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return FailedElements, (self._kept[:],)
