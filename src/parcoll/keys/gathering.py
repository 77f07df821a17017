"""Gathering: what workers make of the elements of a partition for an operation that needs all partitions.

The elements of one partition become one piece, which goes to the user's process as its only result. A piece
of keys is cut into slots, so that what belongs together can be sent to one task without being unpickled.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import length_hint
from typing import Any, ClassVar, Self

from parcoll.chain.failures import stands_between
from parcoll.chain.sinks import Pack, Sink
from parcoll.errors import SerializationError
from parcoll.keys.pieces import MANY_TOGETHER, TOGETHER, Cutter, Piece
from parcoll.keys.slots import PLAINEST
from parcoll.keys.store import Scratch, UnsentError, unsent
from parcoll.text import short_repr
from parcoll.wire.payload import Packed, Payload
from parcoll.wire.reducers import of_atoms

# Where positions count from, the positions, keys and values.
Columns = tuple[int, Sequence[int], Sequence[Any], Sequence[Any]]

IMMUTABLE = (int, float, complex, bool, str, bytes, type(None))


class Gatherer:
    """Takes the elements of one partition, once it has been begun for that partition."""

    current: Any = None  # the element that is being taken, where a user's function gets it
    condenses = False  # it makes one value of all elements with one key
    refers = False  # elements that nobody can write into stay where they lie: their positions go back
    goes_on = False  # its piece has bytes that go on to other workers

    def begin(self) -> Self:
        """Return one for a partition."""
        begun = copy.copy(self)
        begun.start()
        return begun

    def start(self) -> None:
        """Make ready for the first element."""

    def take(self, elements: Iterator[Any]) -> int:
        """Draw the elements, and return how many they were."""
        raise NotImplementedError

    takes_together: ClassVar[bool] = False  # has `take_together`

    def take_together(self, columns: Iterator[tuple[list[Any], list[Any]]]) -> int:
        """Draw lists of keys and of elements, and return how many elements they have."""
        taken = 0
        for keys, elements in columns:
            self.add(keys, elements)
            taken += len(elements)
        return taken

    def add(self, keys: Sequence[Any], elements: Sequence[Any]) -> None:
        """Take many elements with their keys; one list where each element is its own key."""
        raise NotImplementedError

    def piece(self) -> Any:
        """Return what goes back of the partition."""
        raise NotImplementedError

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The functions of the user that it calls, by the names of its attributes."""
        return {}

    def with_functions(self, functions: Mapping[str, Callable[..., Any]]) -> Self:
        """Return a copy that calls these instead."""
        changed = copy.copy(self)
        for name, func in functions.items():
            setattr(changed, name, func)
        return changed


class Values(Gatherer):
    """A value for each key. The subclasses say what it is, and how two of them become one.

    What is gathered of a partition are keys with values, in order of appearance. A key may come again.
    """

    goes_on = True
    in_order = False  # the value can be gone on with, element by element, and not be joined with another
    flat = False  # what is gathered are elements, and no values yet
    later = False  # to join is so little work that it may be done where the values are wanted

    def start(self) -> None:
        """Begin with no keys."""
        self._values: dict[Any, Any] = {}

    def gathered(self) -> tuple[list[Any], list[Any]]:
        """Return the keys, and the values."""
        return list(self._values), list(self._values.values())

    def join(self, into: dict[Any, Any], key: Any, value: Any) -> None:
        """Join a value to that which the key has."""
        raise NotImplementedError

    def join_all(self, into: defaultdict[Any, Any], firsts: list[int], columns: Columns) -> None:
        """Join the values of many keys; note in `firsts` where each new one stands."""
        base, positions, keys, values = columns
        key: Any = None
        try:
            for position, key, value in zip(positions, keys, values, strict=True):
                if key in into:
                    self.join(into, key, value)
                else:
                    into[key] = value
                    firsts.append(base + position)
        except Exception as error:
            error.add_note(f"for the key {short_repr(key)}")
            raise

    def final(self, value: Any) -> Any:
        """Return what users get."""
        return value

    def piece(self) -> Piece:
        """Cut what was gathered into slots."""
        cutter, (keys, values) = Cutter(), self.gathered()
        cutter.add(range(len(keys)), keys, values)
        return cutter.piece()


class Counts(Values):
    """How many elements there are."""

    condenses = True
    takes_together = True

    def start(self) -> None:
        """Begin with no keys."""
        self._values: Counter[Any] = Counter()

    def take(self, elements: Iterator[Any]) -> int:
        """Count the elements, which are keys."""
        before = self._values.total()
        self._values.update(elements)
        return self._values.total() - before

    def add(self, keys: Sequence[Any], elements: Sequence[Any]) -> None:
        """Count the keys."""
        self._values.update(keys)

    def join(self, into: dict[Any, Any], key: Any, value: Any) -> None:
        """Add."""
        into[key] += value

    def join_all(self, into: defaultdict[Any, Any], firsts: list[int], columns: Columns) -> None:
        """Add without a call for each."""
        base, positions, keys, values = columns
        add_first = firsts.append
        for position, key, value in zip(positions, keys, values, strict=True):
            if key in into:
                into[key] += value
            else:
                into[key] = value
                add_first(base + position)


class Groups(Values):
    """A list of the elements. What is gathered are the elements, each with its key."""

    flat = True
    later = True
    takes_together = True

    def start(self) -> None:
        """Begin with no elements."""
        self._keys: list[Any] = []
        self._elements: list[Any] = []
        self._cutter = Cutter()
        self._cut = 0  # elements so far

    def take(self, elements: Iterator[Any]) -> int:
        """Cut the elements, some thousand at a time."""
        taken = 0
        while more := list(islice(elements, TOGETHER)):
            taken += len(more)
            keys, those = zip(*more, strict=True)
            self.add(keys, those)
        return taken

    def add(self, keys: Sequence[Any], elements: Sequence[Any]) -> None:
        """Keep them, and cut where they are some thousand."""
        self._keys += keys
        self._elements += elements
        if len(self._keys) >= (MANY_TOGETHER if self.refers else self._cutter.together):
            self._flush()

    def _flush(self) -> None:
        keys, elements = self._keys, self._elements
        self._keys, self._elements = [], []
        if not (is_plain := PLAINEST.issuperset(map(type, keys))):
            known: dict[Any, Any] = {}  # for equal keys one object, which is packed once
            keys = list(map(known.setdefault, keys, keys))
        positions = range(self._cut, self._cut + len(keys))
        self._cutter.add(
            positions, keys, None if self.refers and is_plain and of_atoms(elements) else elements
        )
        self._cut += len(keys)

    def piece(self) -> Piece:
        """Cut what is left."""
        self._flush()
        return self._cutter.piece()

    def join_all(self, into: defaultdict[Any, Any], firsts: list[int], columns: Columns) -> None:
        """Append the elements, in C: a loop in Python takes twice as long."""
        base, positions, keys, values = columns
        add_first, left, many = firsts.append, iter(values), len(values)

        def first_of_key() -> list[Any]:
            add_first(base + positions[many - length_hint(left)])
            return []

        into.default_factory = first_of_key
        try:
            deque(map(list.append, map(into.__getitem__, keys), left), 0)
        finally:
            into.default_factory = None


class Start:
    """The value that a fold starts from, as often as it is asked for: a copy each time."""

    def __init__(self, initial: Packed) -> None:
        self.initial = initial

    def maker(self) -> Callable[[], Any]:
        """Return what makes a copy."""
        value = self.initial.load()
        return (lambda: value) if type(value) in IMMUTABLE else self.initial.load


class Folds(Values):
    """A fold of the elements of each partition, from a copy of the initial value; `combine` joins two."""

    condenses = True

    def __init__(
        self, func: Callable[[Any, Any], Any], start: Start, combine: Callable[[Any, Any], Any]
    ) -> None:
        self.func = func
        self.begins = start
        self.combine = combine

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The function that folds."""
        return {"func": self.func}

    def take(self, elements: Iterator[Any]) -> int:
        """Fold each element into the value of its key."""
        values, func, fresh, taken = self._values, self.func, self.begins.maker(), 0
        for key, element in elements:
            taken += 1
            self.current = element
            values[key] = func(values[key] if key in values else fresh(), element)
        self.current = None
        return taken

    def join(self, into: dict[Any, Any], key: Any, value: Any) -> None:
        """Combine."""
        into[key] = self.combine(into[key], value)


class OrderedFolds(Groups):
    """A fold of all elements of a key, in their order, once they are together."""

    in_order = True
    later = False

    def __init__(self, func: Callable[[Any, Any], Any], start: Start) -> None:
        self.func = func
        self.begins = start

    def final(self, value: Any) -> Any:
        """Fold the elements."""
        return self.fold_on(self.begins.maker()(), value)

    def fold_on(self, value: Any, elements: list[Any]) -> Any:
        """Fold elements into a value."""
        func = self.func
        for element in elements:
            value = func(value, element)
        return value


stands_between(Folds.take.__code__.co_filename)


class Gathering(Sink):
    """What a gatherer makes of the elements: one piece of a partition."""

    scratch: Scratch | None = None  # where its bytes go, if they do not go back

    def __init__(self, gatherer: Gatherer, label: str, timeout: float | None = None) -> None:
        self.gatherer = gatherer
        self.label = label
        self.timeout = timeout if gatherer.functions else None
        self.condenses = gatherer.condenses

    def start(self) -> None:
        """Begin with no elements."""
        self.gatherer = self.gatherer.begin()

    def take(self, elements: Iterator[Any]) -> None:
        """Have the gatherer take them."""
        try:
            self.taken += self.gatherer.take(elements)
        except UnsentError as error:
            raise self._unsent(error) from error.__cause__

    @property
    def takes_together(self) -> bool:  # type: ignore[override]
        """Whether the gatherer does."""
        return self.gatherer.takes_together

    def take_together(self, columns: Iterator[tuple[list[Any], list[Any]]]) -> None:
        """Have the gatherer take many at once."""
        try:
            self.taken += self.gatherer.take_together(columns)
        except UnsentError as error:
            raise self._unsent(error) from error.__cause__

    def finish(self, pack: Pack) -> Payload | None:
        """Pack the piece. SerializationError for what cannot be."""
        try:
            piece = self.gatherer.piece()
        except UnsentError as error:
            raise self._unsent(error) from error.__cause__
        if self.scratch is not None and self.gatherer.goes_on:
            piece.data = self.scratch.put(piece.data, str(self.label))
        try:
            return pack([piece])
        except Exception as error:
            raise SerializationError(f"{self.label} cannot send {unsent(piece, error)}") from error

    def within(self, scratch: Scratch | None, refers: bool = False) -> Gathering:
        """Return it for a scratch; or for elements that lie in the user's process and may stay there."""
        found = copy.copy(self)
        found.scratch = scratch
        if refers:
            found.gatherer = copy.copy(self.gatherer)
            found.gatherer.refers = True
        return found

    def _unsent(self, error: UnsentError) -> SerializationError:
        return SerializationError(f"{self.label} cannot send {error}")

    def fails(self, error: BaseException) -> None:
        """Note that a function, a comparison or a pickle raised."""
        super().fails(error)
        if self.failure is not None and self.gatherer.current is None:  # at no element
            self.failure.note = f"in {self.label}"

    @property
    def current(self) -> Any:
        """The element that is being taken."""
        return self.gatherer.current

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Those of the gatherer."""
        return self.gatherer.functions

    def with_functions(self, functions: Mapping[str, Callable[..., Any]]) -> Self:
        """Return a copy whose gatherer calls these instead."""
        changed = copy.copy(self)
        changed.gatherer = self.gatherer.with_functions(functions)
        return changed

    def made_of(self, elements: list[Any]) -> list[Any]:
        """Return the piece of all elements, made here."""
        gatherer = self.gatherer.begin()
        gatherer.take(iter(elements))
        return [gatherer.piece()]
