"""Merging: what workers do with slots of all pieces: values of one key become one."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from parcoll.chain.failures import stands_between
from parcoll.chain.steps import FlatMap, Map
from parcoll.keys.gathering import Columns, Values
from parcoll.keys.pieces import Cutter, Listed, Piece, positions_of
from parcoll.keys.slots import one_nan
from parcoll.keys.store import Framer, Scratch, fetched, framed, is_flat, unframed
from parcoll.system import without_collections
from parcoll.text import short_repr

BLOCK_BYTES = 16 * 1024  # of keys and values that go back together, about
BLOCK_KEYS = 4096  # of all keys that go back at once
MOST_BYTES = 2**20  # of a block with more than one key
ELEMENTS_EACH = 6  # of a group, on average, for each to be packed by itself
EACH = 16  # groups that are packed one by one between two looks at how many bytes they are
SHIFT = 32  # bits for the position of a key in its piece


class Part(NamedTuple):
    """Neighbouring slots of one piece, or of several that were put together."""

    number: int | None  # of the piece; None if its positions are among all already
    data: Any  # bytes, or where they lie
    values: int
    listed: Listed | None = None  # where the values are that did not come back


@dataclass
class Slots:
    """What one task is to merge: the same slots of all pieces, in order."""

    parts: Sequence[Part]
    state: bytes = b""  # of folds that go on, framed
    label: str = ""
    level: int = 0  # at which they were cut, or are to be cut again
    written: bool = False
    plain: bool = False  # keys and values are of no class of users'
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(len(part.data) for part in self.parts) + len(self.state)

    def __repr__(self) -> str:
        values = sum(part.values for part in self.parts)
        return f"<{values:,} elements or parts of values for {self.label}>"


class Merged(NamedTuple):
    """Keys in the order of their positions, with these and their values."""

    firsts: list[int]
    keys: list[Any]
    values: list[Any]


class Block(NamedTuple):
    """Some keys with their values, in the order of their positions."""

    first: int  # the position of the first key
    data: bytes  # framed: positions, keys, values; or positions, and keys with values, each packed


def merged(kind: Values, slots: Slots) -> Iterator[Merged]:
    """Give the joined values of each slot's keys, in the order of the pieces.

    One slot after the other: its keys are few enough for the processor's cache. What stands first in a piece,
    and in the first piece, comes first, so the positions of a slot's keys rise.
    """
    parts = [_Frames(part) for part in _here(slots)]
    while parts := [part for part in parts if part.frame is not None]:
        slot = min(part.slot for part in parts)
        firsts: list[int] = []
        values: defaultdict[Any, Any] = defaultdict()
        with without_collections():
            for part in parts:
                while part.slot == slot:
                    kind.join_all(values, firsts, part.taken())
        yield Merged(firsts, list(values), list(values.values()))


def _here(slots: Slots) -> Iterator[Part]:
    """Give the parts, with bytes that were in a scratch until now."""
    for part, data in zip(slots.parts, fetched([part.data for part in slots.parts]), strict=True):
        yield part._replace(data=data)


class _Frames:
    """The slots of a part, of which one is open."""

    def __init__(self, part: Part) -> None:
        self.base = 0 if part.number is None else part.number << SHIFT
        self.listed = part.listed
        self._frames = unframed(part.data)
        self.frame = next(self._frames, None)

    @property
    def slot(self) -> int:
        """The number of the slot that is open; -1 behind the last."""
        return -1 if self.frame is None else self.frame[0]

    def taken(self) -> Columns:
        """Return what this slot has, and open what comes next."""
        start, *_ = found = _columns(self.frame, self.listed)
        self.frame = next(self._frames, None)
        return (self.base + start, *found[1:])


def _columns(frame: Any, listed: Listed | None = None) -> Columns:
    _, plain, where, keys, values = frame
    base, positions = positions_of(where)
    if values is None:
        assert listed is not None
        values = listed.at(base, positions)
    return base, positions, keys if plain else one_nan(keys), values


def in_order(slots: Iterator[Merged]) -> Merged:
    """Return the keys of all slots in the order of their positions."""
    firsts: list[int] = []
    keys: list[Any] = []
    values: list[Any] = []
    for found in slots:
        firsts += found.firsts
        keys += found.keys
        values += found.values
    if len(firsts) < 2:
        return Merged(firsts, keys, values)
    with without_collections():
        pick = itemgetter(*sorted(range(len(firsts)), key=firsts.__getitem__))
        return Merged(list(pick(firsts)), list(pick(keys)), list(pick(values)))


class Merging(FlatMap):
    """Joins the values of each key, and gives them in blocks."""

    kind = "merge"
    by_user = False
    is_phase = True

    def __init__(self, name: str, kind: Values, together: bool = False, unopened: bool = False) -> None:
        super().__init__(Merger(kind, together, unopened))
        self.name = name

    def prepared(self, evaluation: Any) -> Merging:
        """Return the step for what goes out to workers again, or comes to the user."""
        func: Any = self.func
        return Merging(self.name, func.kind, func.together, evaluation.unopened)

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

    def __init__(self, kind: Values, together: bool = False, unopened: bool = False) -> None:
        self.kind = kind
        self.together = together  # all keys of a task are wanted at once
        self.unopened = unopened  # groups go on to other workers as they are packed here

    def __call__(self, slots: Slots) -> Iterator[Block]:
        """Give the blocks."""
        if slots.state:
            yield from self._blocks(Merged(*map(list, next(unframed(slots.state)))))
        elif self.together:
            found = self._final(in_order(merged(self.kind, slots)))
            yield Block(found.firsts[0], b"".join(_frames_of(found)))
        else:
            parts = merged(self.kind, slots)
            for found in [in_order(parts)] if slots.level else parts:
                if self.unopened and self.kind.later and _are_many(found.values):
                    yield from _each_packed(found, slots.plain)
                else:
                    yield from self._blocks(self._final(found))

    def _blocks(self, found: Merged) -> Iterator[Block]:
        (firsts, keys, values), at, size, framer = found, 0, 1, Framer()
        while at < len(keys):
            to = min(at + size, len(keys))
            flat = is_flat(keys[at:to]) and is_flat(values[at:to])
            data = framer.framed((array("Q", firsts[at:to]), keys[at:to], values[at:to]), flat)
            if len(data) > MOST_BYTES and to - at > 1:
                size = max(1, (to - at) * MOST_BYTES // (2 * len(data)))
                continue
            yield Block(firsts[at], data)
            values[at:to] = [None] * (to - at)
            size = max(1, min(size * 4, size * BLOCK_BYTES // len(data)))
            at = to

    def _final(self, found: Merged) -> Merged:
        if not self.kind.in_order:
            return found
        key: Any = None
        try:
            for at, key in enumerate(found.keys):  # noqa: B007 - for the note
                found.values[at] = self.kind.final(found.values[at])
        except Exception as error:
            error.add_note(f"for the key {short_repr(key)}")
            raise
        return found


def _are_many(groups: Sequence[Sequence[Any]]) -> bool:
    """Tell whether groups have so many elements that to pack each of them by itself costs little more."""
    return sum(map(len, groups)) >= ELEMENTS_EACH * len(groups)


def _each_packed(found: Merged, plain: bool) -> Iterator[Block]:
    """Give blocks of keys with their groups, each of which is packed by itself."""
    (firsts, keys, groups), framer, at = found, Framer(), 0
    while at < len(keys):
        to, packed, nbytes = at, [], 0
        while to < len(keys) and nbytes < BLOCK_BYTES:
            more = slice(to, to + (EACH if nbytes else 1))  # the first may be large
            packed += framer.each(list(zip(keys[more], groups[more], strict=True)), plain)
            groups[more] = [None] * len(groups[more])
            to, nbytes = at + len(packed), sum(map(len, packed))
        yield Block(firsts[at], framed((array("Q", firsts[at:to]), packed), True))
        at = to


def _frames_of(found: Merged) -> Iterator[bytes]:
    """Give keys and values some thousand at a time: a pickler that knows few objects finds them soon."""
    for at in range(0, len(found.keys), BLOCK_KEYS):
        firsts, keys, values = (column[at : at + BLOCK_KEYS] for column in found)
        yield framed((array("Q", firsts), keys, values), is_flat(keys) and is_flat(values))


class Regrouping(Map):
    """Cuts slots that are too large again, by other digits."""

    kind = "regroup"

    def __init__(self, kind: Values, scratch: Scratch | None = None) -> None:
        super().__init__(Regrouper(kind, scratch))


class Regrouper:
    """The function of that."""

    __name__ = "regroup"

    def __init__(self, kind: Values, scratch: Scratch | None = None) -> None:
        self.kind = kind
        self.scratch = scratch

    def __call__(self, slots: Slots) -> Piece:
        """Join what belongs together here, and cut.

        Values from processes with several hash seeds (level 0) are not joined yet: those of one key are in
        several slots then, and would be joined out of their order.
        """
        parts = merged(self.kind, slots) if slots.level and not self.kind.flat else _as_they_are(slots)
        found, cutter = in_order(parts), Cutter(slots.level, slots.written)
        cutter.add(found.firsts, found.keys, found.values)
        piece = cutter.piece()
        if self.scratch is not None:
            piece.data = self.scratch.put(piece.data, slots.label)
        return piece


def _as_they_are(slots: Slots) -> Iterator[Merged]:
    for part in _here(slots):
        base = 0 if part.number is None else part.number << SHIFT
        for frame in unframed(part.data):
            start, positions, keys, values = _columns(frame)
            yield Merged([base + start + position for position in positions], list(keys), list(values))


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
        found, keys, groups = in_order(merged(self.kind, slots))
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
    for frame in unframed(next(_here(slots)).data):
        return short_repr(_columns(frame)[2][0])
    return "?"


stands_between(merged.__code__.co_filename)
