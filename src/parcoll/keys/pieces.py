"""Pieces: what comes of one partition: bytes that can be sent in parts, unopened.

These are keys with values, cut into slots; or a run, which is sorted, cut into blocks.

Values that are elements of a list of the user's process, and that nobody can write into, need not come back:
where they stand says what they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

from parcoll.keys.slots import NONE, PLAINEST, SEED, SLOTS, cut, one_nan, slots_of, written_slots
from parcoll.keys.store import FLAT, Framer, Spot, Store, joined, unframed
from parcoll.system import without_collections
from parcoll.wire.reducers import ROWS, of_atoms

# Keys, or elements, that are cut at once: so few that they stay in the processor's cache from one slot to the
# next, unless what is in a slot takes long to pack, however little it is.
TOGETHER, MANY_TOGETHER = 2**14, 2**16


@dataclass
class Piece:
    """Keys with values, cut into slots. Each has its number, positions, keys and values, in frames."""

    other: str  # a class of keys whose hash may depend on more than the seed
    ends: array[int]  # where each slot ends in the bytes
    values: array[int]  # how many values each slot has
    single: bytearray  # for each slot, whether all of them have one key
    data: Any  # bytes, or where they lie
    plain: bool = False  # keys and values are of no class of users'
    seed: int = SEED  # of the process that has cut it
    none: int = NONE
    carries: bool = True  # some values are in the bytes
    lacks: bool = False  # some are not
    listed: Listed | None = None  # where the elements are that are values here, and did not come back

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return len(self.data)

    def filled(self) -> Piece:
        """Return it with the values that did not come back."""
        assert self.listed is not None
        framer, parts, start = Framer(), [], 0
        for end in self.ends:
            frames = []
            for slot, plain, where, keys, values in unframed(self.data[start:end]):
                found = self.listed.at(*positions_of(where)) if values is None else values
                frames.append(framer.framed((slot, plain, where, keys, found)))
            parts.append(b"".join(frames))
            start = end
        ends = array("Q", accumulate(map(len, parts)))
        return replace(self, ends=ends, data=b"".join(parts), carries=True, lacks=False, listed=None)


class Listed(NamedTuple):
    """The elements that this process has read from a list, and where those of one partition begin."""

    elements: list[Any]
    start: int

    def at(self, base: int, positions: Iterable[int]) -> Sequence[Any]:
        """Return the elements at positions of the partition, which count from `base`."""
        return picked(self.elements, map((self.start + base).__add__, positions))


def positions_of(where: tuple[str, int, bytes]) -> tuple[int, array[int]]:
    """Return from where on the positions in a frame count, and these."""
    code, base, packed = where
    positions: array[int] = array(code)
    positions.frombytes(packed)
    return base, positions


class Cutter:
    """Cuts keys with values into slots, many at a time: of few, each slot would have next to nothing."""

    def __init__(self, level: int = 0, written: bool = False) -> None:
        self._level = level
        self._written = written
        self._frames: list[list[bytes]] = [[] for _ in range(SLOTS)]
        self._values = [0] * SLOTS
        self._keys: list[Any] = [None] * SLOTS  # the first one of each slot
        self._single = bytearray(SLOTS)
        self._other = ""
        self._plain = True
        self._carries = self._lacks = False
        self._framer = Framer()

    @property
    def together(self) -> int:
        """How many are to be cut at once."""
        return MANY_TOGETHER if self._framer.by_value else TOGETHER

    def add(self, firsts: Sequence[int], keys: Sequence[Any], values: Sequence[Any] | None) -> None:
        """Take keys in. `firsts` say where each stands among all; that is all of them without `values`."""
        at = 0
        with without_collections():
            while at < len(keys):
                left = len(keys) - at  # a little more at the end is cut with them
                most = self.together if values is not None else MANY_TOGETHER
                to = at + (left if left < 1.5 * most else most)
                self._add(firsts[at:to], keys[at:to], values and values[at:to])
                at = to

    def _add(self, firsts: Sequence[int], keys: Sequence[Any], values: Sequence[Any] | None) -> None:
        kinds, value_kinds = set(map(type, keys)), set(map(type, values or ()))
        plain = kinds <= PLAINEST and not self._written
        flat = plain and value_kinds <= FLAT
        self._plain = self._plain and plain and of_atoms(values or (), ROWS)
        self._carries, self._lacks = self._carries or values is not None, self._lacks or values is None
        if plain:
            slots = cut(map(hash, keys), self._level)
        elif self._written:
            slots = written_slots(keys, self._level)
        else:
            keys = one_nan(keys)
            slots, other = slots_of(keys, self._level)
            self._other = self._other or other
        found: list[list[int]] = [[] for _ in range(SLOTS)]
        add = [entries.append for entries in found]
        for at, slot in enumerate(slots):
            add[slot](at)
        base = firsts.start if isinstance(firsts, range) else None  # positions are small from there on
        for slot, entries in enumerate(found):
            if entries:
                those = picked(keys, entries)
                positions = array("Q", picked(firsts, entries)) if base is None else array("I", entries)
                where = positions.typecode, base or 0, positions.tobytes()
                columns = joined(those, kinds), values and joined(picked(values, entries), value_kinds)
                self._frames[slot].append(self._framer.packed((slot, plain, where, *columns), flat))
                self._note(slot, those)

    def _note(self, slot: int, keys: Sequence[Any]) -> None:
        if not self._values[slot]:
            self._keys[slot], self._single[slot] = keys[0], True
        if self._single[slot]:
            self._single[slot] = _are(keys, self._keys[slot])
        self._values[slot] += len(keys)

    def piece(self) -> Piece:
        """Return the piece."""
        parts = list(map(b"".join, self._frames))
        ends = array("Q", accumulate(map(len, parts)))
        what = array("Q", self._values), self._single, b"".join(parts), self._plain
        return Piece(self._other, ends, *what, carries=self._carries, lacks=self._lacks)


@dataclass
class BlockKeys:
    """The keys of blocks, each packed. They wait in the store: of large elements they are much of all."""

    data: bytes
    ends: array[int]  # of each in the bytes
    spot: Spot | None = None

    def put(self, store: Store) -> None:
        """Put them into the store."""
        self.spot, self.data = store.add(self.data), b""

    def read(self, store: Store) -> Iterator[Any]:
        """Give one after the other."""
        assert self.spot is not None
        start = 0
        for end in self.ends:
            (((key,),),) = unframed(store.read(self.spot, start, end))
            yield key
            start = end


@dataclass
class Run:
    """A sorted partition."""

    firsts: list[Any] | BlockKeys  # the key of the first element of each block
    ends: array[int]  # where each block ends in the bytes
    sizes: array[int]  # elements of each block
    data: Any  # bytes, or where they lie: for each block, keys and elements; or the positions of these
    plain: bool = False  # keys and elements are of no class of users'
    carries: bool = True  # the elements are in the bytes
    listed: Listed | None = None  # where they are that did not come back

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return len(self.data)

    def blocks(self) -> Iterator[tuple[Sequence[Any] | None, Sequence[Any]]]:
        """Give the keys and the elements of each block."""
        for keys, elements in unframed(self.data):
            if not self.carries:
                assert self.listed is not None
                elements = self.listed.at(0, elements)
            yield keys, elements

    def filled(self) -> None:
        """Put the elements in that did not come back."""
        if self.listed is not None and not self.carries:
            framer, parts = Framer(), []
            for keys, elements in self.blocks():
                parts.append(framer.framed((keys, elements)))
            self.ends, self.data = array("Q", accumulate(map(len, parts))), b"".join(parts)
            self.carries = True


def picked(given: Sequence[Any], entries: Iterable[int]) -> Sequence[Any]:
    """Return these entries of a sequence.

    Where they are far from each other in memory, one loop in C waits for several at once: 0.2 s for 2,000,000
    of a list of tuples, in no order; 0.9 s with `map`.
    """
    wanted = tuple(entries)
    return itemgetter(*wanted)(given) if len(wanted) > 1 else tuple(given[at] for at in wanted)


def _are(keys: Sequence[Any], key: Any) -> bool:
    """Tell whether all are this key. As a dict, asks `==` only where hashes are equal: it may raise."""
    is_it = {key}.__contains__
    return is_it(keys[0]) and is_it(keys[-1]) and all(map(is_it, keys))
