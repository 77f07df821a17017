"""Ordering: what comes back in order of first appearance: keys with values, elements without repeats."""

from __future__ import annotations

import gc
import operator
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice
from operator import itemgetter
from typing import Any, NamedTuple

from parcoll.keys.exchange import Collective
from parcoll.keys.gathering import Gatherer, Values
from parcoll.keys.merging import BLOCK_KEYS, Block, Merged, Slots, in_order, merged
from parcoll.keys.pieces import Listed
from parcoll.keys.slots import PLAINEST, one_nan, slots_of
from parcoll.keys.store import Spot, Store, Unopened, framed, is_flat, unframed
from parcoll.keys.streams import Operation
from parcoll.system import without_collections
from parcoll.wire.reducers import of_atoms


class _Waiting(NamedTuple):
    """A block, whose bytes are in the store."""

    first: int  # the position of its first key
    spot: Spot


class InOrder(Collective):
    """The keys with their values. Unless `ordered`, as they come."""

    unopened = True

    def __init__(
        self, name: str, ordered: bool = True, together: bool = False, kind: Values | None = None
    ) -> None:
        super().__init__(name)
        self.kind = kind  # joins what no worker has joined
        self.ordered = ordered
        self.together = together  # many keys and their values as two lists, which takes less time

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "in_order()"

    def made(self, *streams: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """Give pairs of keys and values."""
        if self.together:
            return iter([self._all(streams[0])])
        return chain.from_iterable(self._pairs(streams[0]))

    def _all(self, blocks: Iterator[Block]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return all keys and values."""
        found: _Columns = [], [], []
        for block in blocks:
            for columns in unframed(block.data):
                for column, more in zip(found, columns, strict=True):
                    column += more
        firsts, keys, values = found
        if not self.ordered or len(keys) < 2:
            return keys, values
        with without_collections():
            pick = itemgetter(*sorted(range(len(firsts)), key=firsts.__getitem__))
            return pick(keys), pick(values)

    def _pairs(self, blocks: Iterator[Any]) -> Iterator[list[tuple[Any, Any]]]:
        """Give some pairs after the other; the collector waits while they are made, not between them."""
        first = next(blocks, None)
        if isinstance(first, Slots):
            yield from self._merged(chain([first], blocks))
            return
        blocks = chain([] if first is None else [first], blocks)
        if not self.ordered:
            for block in blocks:
                yield from (_entries(*columns[1:]) for columns in unframed(block.data))
            return
        with self.store() as store:
            rounds = _rounds(store, [_Waiting(block.first, store.add(block.data)) for block in blocks])
            while True:
                with without_collections():
                    found = next(rounds, None)
                if found is None:
                    return
                yield found

    def _merged(self, tasks: Iterator[Slots]) -> Iterator[list[tuple[Any, Any]]]:
        assert self.kind is not None
        found = (found for slots in list(tasks) for found in merged(self.kind, slots))
        if not self.ordered:
            while some := _some(found):
                yield from (list(zip(keys, values, strict=True)) for _, keys, values in some)
            return
        with without_collections():
            _, keys, values = in_order(found)
            _settle(len(keys))
        for at in range(0, len(keys), PAIRS):
            to = at + PAIRS
            with without_collections():
                pairs = list(zip(keys[at:to], values[at:to], strict=True))
                keys[at:to] = values[at:to] = [None] * len(pairs)
            yield pairs


def _some(found: Iterator[Merged]) -> list[Merged]:
    """Draw what a few slots have; then the collector looks at that, while it is in the cache."""
    with without_collections():
        return list(islice(found, 4))


def _settle(made: int) -> None:
    """Put what was just made, if it is very much, where only a full collection of cycles looks.

    It is to live: a look at it among the young objects, and another one a generation later, take 0.4 s for
    200,000 groups of 10, each of whose elements is elsewhere in memory. `gc.freeze` and `gc.unfreeze` move
    all objects without a look, in one call of C, between whose parts no thread runs. What a program has
    frozen stays so; then nothing is moved.
    """
    if made >= VERY_MANY and not gc.get_freeze_count():
        deque(map(operator.call, (gc.freeze, gc.unfreeze)), 0)


def _entries(*columns: list[Any]) -> list[Any]:
    """Return pairs of keys and values, or what was packed as pairs."""
    return list(zip(*columns, strict=True)) if len(columns) > 1 else list(map(Unopened, columns[0]))


_Columns = tuple[list[int], list[Any], list[Any]]  # positions, keys and values


VERY_MANY = 2**16  # groups: to look at them takes 10 ms and more
PAIRS = 2**16  # of keys and values that are made at once
OPEN_BYTES = 2**22  # of blocks that are opened together: some of each slot, where groups are small


def _rounds(store: Store, waiting: list[_Waiting]) -> Iterator[list[Any]]:
    """Give the entries of all blocks in one order, so many at a time as are known to be next.

    Blocks are opened by the positions of their first keys. What stands before the first key of those that are
    not open yet comes next: so of large groups, few are here at a time.
    """
    blocks = deque(sorted(waiting, key=itemgetter(0)))
    firsts: list[int] = []
    entries: list[Any] = []
    while blocks:
        opened = 0
        while blocks and opened < OPEN_BYTES:
            _, spot = blocks.popleft()
            opened += spot.size
            more, *columns = next(unframed(store.read(spot)))
            firsts += more
            entries += _entries(*columns)
        order = sorted(range(len(firsts)), key=firsts.__getitem__)
        firsts, entries = [firsts[at] for at in order], [entries[at] for at in order]
        to = bisect_left(firsts, blocks[0].first) if blocks else len(firsts)
        found = entries[:to]
        del firsts[:to], entries[:to]
        yield found


@dataclass
class Found:
    """Keys in frames, each with its element unless that is the key, or with where these stand."""

    data: bytes
    listed: Listed | None = None  # where the elements are that did not come back


class Firsts(Gatherer):
    """The first element of each key in a partition; without keys, each element is its own.

    Workers leave out repeats within partitions, and the user's process the rest.
    """

    takes_together = True

    def __init__(self, keyed: bool) -> None:
        self.keyed = keyed

    def start(self) -> None:
        """Begin with none."""
        self._firsts: dict[Any, Any] = {}  # by key; of elements that may stay where they lie, the positions
        self._elements: list[Any] = []  # all of those
        self._taken = 0
        self.refers = self.refers and self.keyed

    def take(self, elements: Iterator[Any]) -> int:
        """Keep those whose keys are new."""
        if not self.keyed:
            self._taken = 0
            self._firsts |= dict.fromkeys(self._counted(elements))
            return self._taken
        firsts, taken = self._firsts, 0
        for key, element in elements:
            taken += 1
            if self.refers:
                self.add((key,), (element,))
            elif key not in firsts:
                firsts[key] = element
        return taken

    def add(self, keys: Sequence[Any], elements: Sequence[Any]) -> None:
        """Keep those whose keys are new."""
        if self.refers:
            positions = range(len(self._elements), len(self._elements) + len(elements))
            self._elements += elements
            elements = positions
        deque(map(self._firsts.setdefault, keys, elements), 0)

    def _counted(self, elements: Iterator[Any]) -> Iterator[Any]:
        taken = 0
        try:
            for element in elements:
                taken += 1
                yield element
        finally:
            self._taken = taken

    def piece(self) -> Found:
        """Return the keys, and their elements if these are others."""
        keys, found = list(self._firsts), list(self._firsts.values())
        slots_of(keys)  # raises for keys that would never be equal to others
        frames = []
        for at in range(0, len(keys), BLOCK_KEYS):
            some, those = keys[at : at + BLOCK_KEYS], found[at : at + BLOCK_KEYS]
            flat = is_flat(some)
            if self.refers:
                elements = [self._elements[position] for position in those]
                if of_atoms(elements):
                    frames.append(framed((some, array("Q", those)), flat))
                    continue
                those = elements
            frames.append(framed((some, those if self.keyed else None), flat and is_flat(those)))
        return Found(b"".join(frames))


class Saved(Operation):
    """The elements as they are; a checkpoint has them."""

    name = "saved"

    def describe(self, others: Any) -> str:
        """Return nothing: the step before is what a user wrote."""
        return ""

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Give them."""
        return streams[0]


class Distinct(Operation):
    """The elements whose keys no element before has."""

    name = "distinct"

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "in_order()"

    def describe(self, others: Any) -> str:
        """Return nothing: the step before is what a user wrote."""
        return ""

    def may_refer(self, is_last: bool, threads: int) -> bool:
        """Say so."""
        return True

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Give them as they come."""
        (pieces,) = streams
        seen: set[Any] = set()
        add = seen.add
        for piece in pieces:
            for keys, those in unframed(piece.data):
                new: Iterable[bool]
                if PLAINEST.issuperset(map(type, keys)):  # those of a piece are distinct
                    fresh = set(keys).difference(seen)  # in half of the time that a look at each takes
                    seen |= fresh
                    new = map(fresh.__contains__, keys)
                else:
                    new = [key not in seen and add(key) is None for key in one_nan(keys)]
                found = compress(keys if those is None else those, new)
                yield from piece.listed.at(0, found) if isinstance(those, array) else found
