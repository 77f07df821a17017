"""Fold: elements folded to one value, within a partition and from partition to partition."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parcoll.calls.held import LARGE_BYTES, Held, Home, UnsentError, UsedError, beside, is_own
from parcoll.chain import apart
from parcoll.chain.failures import own_frames, stands_between
from parcoll.chain.marks import Counting
from parcoll.chain.place import Place
from parcoll.chain.sinks import Pack, Sink
from parcoll.clock import time
from parcoll.errors import SerializationError
from parcoll.text import function_name, function_title, line_of, message_of, short_repr
from parcoll.wire.anatomy import cannot_send
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed, Payload
from parcoll.worker.outcome import Kept, Outcome, broken, elements_of

CHECKED = 3  # elements of each partition with which a fold without `combine` is checked
MOST_CHECK_SECONDS = 0.05  # a check that took longer is the last one of its process
MOST_CHECKED_BYTES = 64 * 1024  # of one element, packed
TOLD_BYTES = 16 * 1024  # of a value: a smaller one comes with the report of its join, too
JUDGED = (str, bytes, bool, set, frozenset, type(None))  # types whose `==` decides


HOW_CALLED = (
    " (fold() without combine= also calls its function with two values of partitions: if that is what "
    "failed, pass combine=, which joins these)"
)


@dataclass
class Grouping:
    """What this process has found out of whether a fold's function is associative."""

    seconds: float = 0.0  # that the last check took
    differ: bool = False  # what it has found
    values: list[Packed] = field(default_factory=list)  # of partitions, the first that this process joined
    packed_bytes: int = 0  # of the value that was packed last
    element_seconds: float = 0.0  # that checking a whole value took last, by element of its partition

    @property
    def worth_it(self) -> bool:
        """Whether to check once more: each check makes four calls."""
        return self.seconds < MOST_CHECK_SECONDS

    def see(self, func: Callable[[Any, Any], Any], value: Any) -> None:
        """Take in the value of a partition, and check with the first three."""
        if len(self.values) < CHECKED and (copied := _small_copy(value)) is not None:
            self.values.append(copied)
            if len(self.values) == CHECKED:
                self.check(func, self.values, None)

    def check(
        self, func: Callable[[Any, Any], Any], first: Sequence[Packed], initial: Payload | None
    ) -> None:
        """Compare `func(func(a, b), c)` with `func(a, func(b, c))` for copies of three elements.

        Raises ValueError where they visibly differ, and where the first of them raises though the calls from
        `initial` on do not. What these raise, the fold raises too, at its turn.
        """
        started = time.perf_counter()
        try:
            found = self._compared(func, first, initial)
        finally:
            self.seconds = time.perf_counter() - started
        if found is None:
            return
        self.differ = True
        shown = [short_repr(packed.load()) for packed in first]
        raise ValueError(
            f"fold() without combine= needs a function whose calls may be grouped in any way: of {shown[0]}, "
            f"{shown[1]} and {shown[2]}, {function_title(func)} makes {found}; pass combine=, a function "
            "that joins the values of two partitions, or use reduce()"
        )

    def _compared(
        self, func: Callable[[Any, Any], Any], first: Sequence[Packed], initial: Payload | None
    ) -> str | None:
        """Return what differs; None where nothing does, as far as can be seen."""
        try:
            left = functools.reduce(func, (packed.load() for packed in first))
        except Exception as error:
            if initial is None:
                return None
            try:
                right = functools.reduce(func, (packed.load() for packed in first), initial.load())
            except Exception:
                return None
            found = f"{_told(error)} and {short_repr(right)}"
            return f"{found}, as f(f(a, b), c) and as f(f(f(initial, a), b), c)"
        a, b, c = (packed.load() for packed in first)
        try:
            right = func(a, func(b, c))
            if not differs(left, right):
                return None
            found = short_repr(right)
        except Exception as error:
            found = _told(error)
        return f"{short_repr(left)} and {found}, as f(f(a, b), c) and as f(a, f(b, c))"


def _told(error: Exception) -> str:
    return f"a {type(error).__name__} ({message_of(error)})"


def _shallow_copy(value: Any) -> Any:
    try:
        return copy.copy(value)
    except Exception:
        return None


def _small_copy(element: Any) -> Packed | None:
    try:
        packed = Packed.pack(element)
    except Exception:
        return None
    return packed if packed.nbytes <= MOST_CHECKED_BYTES else None


@dataclass(eq=False)
class Fold(Sink):
    """A left fold. As a sink it makes a list of one value, or nothing if there was neither element nor start.

    `initial` is None if there is none, and otherwise holds the value, which may itself be None.
    """

    func: Callable[[Any, Any], Any]
    label: str = ""
    initial: Payload | None = None  # packed, so that every use starts from a copy of its own
    combine: Callable[[Any, Any], Any] | None = None  # `initial` must be neutral to it
    timeout: float | None = None
    start_once: bool = False  # only the partition at index 0 starts from `initial`
    associative: bool = False  # `func` gets values that it has returned as elements; it is checked
    grouping: Grouping = field(default_factory=Grouping)

    def start(self) -> None:
        """Begin with the initial value, if this partition starts from it."""
        self._value: list[Any] = []
        self._element: Any = None
        self._first: list[Packed] = []
        if self._starts(self._place):
            assert self.initial is not None
            self._value = [self.initial.load()]

    def _starts(self, place: Place) -> bool:
        return self.initial is not None and (place.first or not self.start_once)

    def take(self, elements: Iterator[Any]) -> None:
        """Fold the elements into the value."""
        element, taken, func = None, self.taken, self.func
        # Not where calls are counted: the number of a call names its element, and the check calls too.
        if self.associative and len(self._first) < CHECKED and not isinstance(func, Counting):
            elements = self._checking(elements)
        try:
            if not self._value:
                for element in elements:
                    taken += 1
                    self._value = [element]
                    break
                else:
                    return
            value = self._value[0]
            for element in elements:
                taken += 1
                value = func(value, element)
            self._value = [value]
        finally:
            self.taken, self._element = taken, element

    def _checking(self, elements: Iterator[Any]) -> Iterator[Any]:
        """Give the elements; once there are three, check with copies of them that `func` is associative."""
        for element in elements:
            if self.grouping.worth_it and (copied := _small_copy(element)) is not None:
                self._first.append(copied)
            else:
                self._first = [Packed(b"")] * CHECKED  # what is large or cannot be copied is not checked
            if len(self._first) >= CHECKED:
                if self._first[0].head:
                    self.grouping.check(self.func, self._first, self.initial)
                yield element
                break
            yield element
        yield from elements

    def fails(self, error: BaseException) -> None:
        """Note that a call raised, and what it may have been given that the user did not expect."""
        super().fails(error)
        if self.associative and self.failure is not None:
            self.failure.note = f"in {self.label}" if self.grouping.differ else self.failure.note + HOW_CALLED

    def finish(self, pack: Pack) -> Payload | None:
        """Pack the value. Fail if it changes when it is combined with `initial`, from which it started."""
        if not self._value:
            return None
        packed = _packed_value(self._value, self.label, pack)
        if isinstance(packed, Failure):
            self.failure = packed
            return None
        if self.combine is not None and self.failure is None and self._tally.failure is None:
            self.failure = self._check_neutral(packed)
        return beside(self._value, packed)

    def _check_neutral(self, packed: Payload) -> Failure | None:
        """Fail if the value that every partition starts from changes the value of this partition.

        `combine` may leave {"depth": 0} as it is when both its arguments are that, and still overwrite the
        depth of 5 that was found in another partition. It gets a copy, since it may write into its arguments.
        Where a whole copy would take long, it gets the value itself, which is packed already, and a shallow
        copy tells whether that has changed.
        """
        assert self.combine is not None
        assert self.initial is not None
        started, whole = time.perf_counter(), self.grouping.element_seconds * self.taken < MOST_CHECK_SECONDS
        value = self._value[0]
        shallow = None if whole or type(packed) is not Packed else _shallow_copy(value)
        try:
            if shallow is None:
                copied = packed if isinstance(packed, Packed) else Packed.pack(self._value)
                joined = self.combine(copied.load()[0], self.initial.load())
            else:
                value = shallow
                joined = self._value[0] = self.combine(self._value[0], self.initial.load())
            if not differs(joined, value):
                if shallow is None:
                    self.grouping.element_seconds = (time.perf_counter() - started) / max(self.taken, 1)
                return None
            raise ValueError(
                f"{self.label}: the initial value {short_repr(self.initial.load())} is not neutral: combined "
                f"with {short_repr(value)} it gives {short_repr(joined)}, so partitions cannot start from "
                "it: pass a neutral one, or use reduce()"
            )
        except BaseException as error:
            note = f"in {self.label}, combining with {function_name(self.combine)}"
            return Failure.of(error, note, own_frames(error))

    @property
    def current(self) -> Any:
        """The element that was folded last."""
        return self._element

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The function, and the one that combines."""
        return {"func": self.func} | ({} if self.combine is None else {"combine": self.combine})

    def name_call(self, function: int, number: int, place: Place, in_place: bool) -> tuple[str, str]:
        """Name a call by the element that is folded, or by the value that is combined."""
        if function and self.combine is not None:
            label = f"{self.label}, combining with {function_name(self.combine)}"
            return label, f"the value of the partition from {place.element(0)} on"
        # If the fold has no start, its first call gets the first two elements.
        return super().name_call(function, number + (not self._starts(place)), place, in_place)


def join(
    fold: Fold,
    previous: Kept | None,
    parts: Sequence[Kept],
    before: int,
    pack: Pack,
    home: Home | None = None,
) -> Kept:
    """Fold the elements of kept partitions, in order, into the value that `previous` holds.

    If there is none, `before` tells how many elements come before theirs. `home` is where the new value
    stays, and is wanted next: once values of this fold are large there, they are no longer packed.
    """
    started = apart.clock()
    taken = previous.folded if previous is not None else before
    outcome = Outcome()
    element: Any = None
    value: list[Any] = []
    try:
        if previous is not None and previous.content is not None:
            value = previous.content.load()
        elif previous is None and fold.initial is not None:
            value = [fold.initial.load()]
    except UsedError:
        raise
    except UnsentError as error:
        return Kept(Outcome(failure=error.failure), None, taken)
    except BaseException as error:
        return Kept(broken("the worker could not load the value folded so far", error), None, taken)
    try:
        for part in parts:
            for element in elements_of(part):
                if fold.associative and _is_small(part) and not isinstance(fold.func, Counting):
                    fold.grouping.see(fold.func, element)
                value = [fold.func(value[0], element)] if value else [element]
                taken += 1
    except UsedError:
        raise
    except UnsentError as error:
        outcome.failure = error.failure
    except BaseException as error:
        note = f"in {fold.label}, at element {taken} of those that reached it: {short_repr(element)}"
        if fold.associative:
            note = f"in {fold.label}" if fold.grouping.differ else note + HOW_CALLED
        outcome.failure = Failure.of(error, note, own_frames(error))
    outcome.produced, element = taken, None
    content: Payload | None = None
    if value and not outcome.failure:
        if home is not None and fold.grouping.packed_bytes >= LARGE_BYTES and is_own(value):
            how = functools.partial(_packed_value, label=fold.label, pack=pack)
            content, outcome.held_at = Held(value, pack=how, home=home), home.address
        else:
            content = _content(fold, value, pack, outcome)
        if type(content) is Packed and content.nbytes <= TOLD_BYTES:
            outcome.results = content
    outcome.seconds = apart.clock() - started
    outcome.made = apart.taken()
    return Kept(outcome, content, taken)


def _is_small(part: Kept) -> bool:
    """Tell whether the value of a partition may be copied to check the function with it."""
    content = part.content
    return not isinstance(content, Held) and (content is None or content.nbytes <= MOST_CHECKED_BYTES)


def _content(fold: Fold, value: list[Any], pack: Pack, outcome: Outcome) -> Payload | None:
    """Pack the value, and keep the object beside that; note in the outcome what is wrong."""
    packed = _packed_value(value, fold.label, pack)
    if isinstance(packed, Failure):
        outcome.failure = packed
        return None
    fold.grouping.packed_bytes = packed.nbytes
    return beside(value, packed)


def _packed_value(value: list[Any], label: str, pack: Pack) -> Payload | Failure:
    try:
        return pack(value)
    except BaseException as error:
        message = (
            f"the value of {label} cannot be sent between workers: {short_repr(value[0])} ({line_of(error)})"
        )
        return Failure.of(SerializationError(message), f"in {label}")


def packed_initial(initial: Any) -> Packed:
    """Pack the value from which a fold starts; the SerializationError says why it cannot be."""
    try:
        return Packed.pack(initial)
    except Exception as error:
        raise cannot_send(initial, "the initial value", error) from error


def is_neutral(combine: Callable[[Any, Any], Any], start: Packed) -> bool:
    """Tell whether partitions may start from `start` without changing the answer.

    The workers ask again with the values that they get (`Fold.finish`).
    """
    try:
        return same(combine(start.load(), start.load()), start.load())
    except Exception:
        return False


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are surely equal: by `==`, or by their pickles (arrays)."""
    try:
        if bool(one == other):
            return True
    except Exception:
        pass  # the truth of an array of several elements is an error
    first, second = Packed.pack(one), Packed.pack(other)
    return (first.head, first.buffers) == (second.head, second.buffers)


def differs(one: Any, other: Any) -> bool:
    """Tell whether two values surely differ; numbers, by more than a rounding error."""
    try:
        if bool(one == other):
            return False
    except Exception:
        return False
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return not math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) and one == one
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if type(one) is type(other) and isinstance(one, (list, tuple)):
        return len(one) != len(other) or any(map(differs, one, other))
    return type(one) is type(other) and isinstance(one, JUDGED)


stands_between(Fold.take.__code__.co_filename)
