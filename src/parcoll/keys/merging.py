"""Merging: what workers do with slots of all pieces: values of one key become one."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parcoll.chain.failures import stands_between
from parcoll.chain.steps import FlatMap, Map
from parcoll.keys.gathering import Merged, Piece, Values, cut
from parcoll.keys.slots import one_nan
from parcoll.keys.store import collector_paused, framed, unframed
from parcoll.text import short_repr

BLOCK_BYTES = 64 * 1024  # of keys and values that go back together, about
FIRST_BLOCK = 64  # keys
SHIFT = 32  # bits for the position of a key in its piece


class Part(NamedTuple):
    """Neighbouring slots of one piece, or of several that were put together."""

    number: int | None  # of the piece; None if its positions are among all already
    data: bytes
    values: int


@dataclass
class Slots:
    """What one task is to merge: the same slots of all pieces, in order."""

    number: int
    parts: Sequence[Part]
    state: bytes = b""  # of folds that go on, framed
    label: str = ""
    level: int = 0  # at which a task cuts again
    written: bool = False
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(len(part.data) for part in self.parts) + len(self.state)

    def __repr__(self) -> str:
        values = sum(part.values for part in self.parts)
        return f"<{values:,} elements or parts of values for {self.label}>"


class Block(NamedTuple):
    """Some keys with their values, in the order of their positions."""

    number: int  # of the task
    last: int  # the position of the last key
    data: bytes  # framed: positions, keys, values


def merged(kind: Values, slots: Slots) -> Merged:
    """Join the values of each key, in the order of the pieces."""
    firsts: list[int] = []
    values: dict[Any, Any] = {}
    with collector_paused():
        for base, positions, keys, given in _unpickled(slots):
            kind.join_all(values, firsts, base, positions, keys, given)
    order = sorted(range(len(firsts)), key=firsts.__getitem__)  # each slot has an order of its own
    found, given = list(values), list(values.values())
    return Merged([firsts[at] for at in order], [found[at] for at in order], [given[at] for at in order])


def _unpickled(slots: Slots) -> Iterator[tuple[int, Sequence[int], Sequence[Any], Sequence[Any]]]:
    for part in slots.parts:
        base = 0 if part.number is None else part.number << SHIFT
        for positions, keys, given in unframed(part.data):
            yield base, positions, one_nan(keys), given


class Merging(FlatMap):
    """Joins the values of each key, and gives them in blocks."""

    kind = "merge"
    by_user = False

    def __init__(self, name: str, kind: Values) -> None:
        super().__init__(Merger(kind))
        self.name = name

    @property
    def label(self) -> str:
        """The operation that it belongs to."""
        return "merge()"

    title = label

    @property
    def words(self) -> str:
        """The same in letters."""
        return f"{self.name}-merged"


class Merger:
    """The function of that."""

    __name__ = "merge"

    def __init__(self, kind: Values) -> None:
        self.kind = kind

    def __call__(self, slots: Slots) -> Iterator[Block]:
        """Give the blocks."""
        if slots.state:
            ((firsts, keys, values),) = unframed(slots.state)
            final = list(values)
        else:
            firsts, keys, final = merged(self.kind, slots)
            if self.kind.in_order:
                final = list(map(self._final, keys, final))
        at, size = 0, FIRST_BLOCK
        while at < len(keys):
            to = min(at + size, len(keys))
            data = framed((array("Q", firsts[at:to]), keys[at:to], final[at:to]))
            yield Block(slots.number, firsts[to - 1], data)
            final[at:to] = [None] * (to - at)
            size = max(1, min(size * 4, size * BLOCK_BYTES // len(data)))
            at = to

    def _final(self, key: Any, value: Any) -> Any:
        try:
            return self.kind.final(value)
        except Exception as error:
            error.add_note(f"for the key {short_repr(key)}")
            raise


class Regrouping(Map):
    """Cuts slots that are too large again, by other digits."""

    kind = "regroup"

    def __init__(self, kind: Values) -> None:
        super().__init__(Regrouper(kind))


class Regrouper:
    """The function of that."""

    __name__ = "regroup"

    def __init__(self, kind: Values) -> None:
        self.kind = kind

    def __call__(self, slots: Slots) -> Piece:
        """Join what belongs together here, and cut."""
        parts = (
            Merged([base + position for position in positions], list(keys), list(values))
            for base, positions, keys, values in _unpickled(slots)
        )
        found = self.kind.rejoined(lambda: merged(self.kind, slots), parts)
        return cut(found.firsts, found.keys, found.values, slots.level, slots.written)


class FoldingOn(Map):
    """Folds the elements of a few keys into the values that they have so far."""

    kind = "fold_on"

    def __init__(self, kind: Any) -> None:
        super().__init__(OnFolder(kind))


class OnFolder:
    """The function of that."""

    __name__ = "fold_on"

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __call__(self, slots: Slots) -> bytes:
        """Return the new values, framed."""
        firsts: list[int] = []
        values: dict[Any, Any] = {}
        if slots.state:
            ((known, keys, folded),) = unframed(slots.state)
            firsts, values = list(known), dict(zip(one_nan(keys), folded, strict=True))
        found, keys, groups = merged(self.kind, slots)
        fresh = self.kind.begins.maker()
        for first, key, elements in zip(found, keys, groups, strict=True):
            if key not in values:
                values[key] = fresh()
                firsts.append(first)
            try:
                values[key] = self.kind.fold_on(values[key], elements)
            except Exception as error:
                error.add_note(f"for the key {short_repr(key)}")
                raise
        return framed((array("Q", firsts), list(values), list(values.values())))


class FirstKey(Map):
    """Names the first key of slots."""

    kind = "first_key"

    def __init__(self) -> None:
        super().__init__(first_key)


def first_key(slots: Slots) -> str:
    """Return the first key, for a message."""
    for _, keys, _ in unframed(slots.parts[0].data):
        return short_repr(keys[0])
    return "?"


stands_between(merged.__code__.co_filename)
