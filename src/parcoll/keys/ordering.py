"""Ordering: what comes back in order of first appearance: keys with values, elements without repeats."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import chain, compress, islice
from operator import itemgetter
from typing import Any, NamedTuple

from parcoll.keys.exchange import Collective
from parcoll.keys.gathering import Gatherer, Merged, Values
from parcoll.keys.merging import BLOCK_KEYS, Block, Slots, in_order, merged
from parcoll.keys.slots import PLAINEST, one_nan, slots_of
from parcoll.keys.store import Spot, Store, framed, is_flat, unframed
from parcoll.keys.streams import Operation
from parcoll.system import without_collections


class _Waiting(NamedTuple):
    """A block, whose bytes are in the store."""

    last: int
    spot: Spot


class InOrder(Collective):
    """The keys with their values. Unless `ordered`, as they come."""

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
                for _, keys, values in unframed(block.data):
                    yield list(zip(keys, values, strict=True))
            return
        with self.store() as store:
            waiting: defaultdict[int, deque[_Waiting]] = defaultdict(deque)
            for block in blocks:
                waiting[block.number].append(_Waiting(block.last, store.add(block.data)))
            rounds = _rounds(store, list(waiting.values()))
            while True:
                with without_collections():
                    found = next(rounds, None)
                    pairs = [] if found is None else list(zip(*found[1:], strict=True))
                if found is None:
                    return
                yield pairs

    def _merged(self, tasks: Iterator[Slots]) -> Iterator[list[tuple[Any, Any]]]:
        assert self.kind is not None
        found = (found for slots in list(tasks) for found in merged(self.kind, slots))
        waiting: list[Merged] = []
        while some := _some(found):
            waiting += some
            if not self.ordered:
                yield from (list(zip(keys, values, strict=True)) for _, keys, values in some)
                waiting.clear()
        _, keys, values = in_order(iter(waiting))
        waiting.clear()
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


_Columns = tuple[list[int], list[Any], list[Any]]  # positions, keys and values


PAIRS = 2**14  # of keys and values that are made at once
AHEAD = 4  # blocks of one stream that are open at most


def _rounds(store: Store, streams: list[deque[_Waiting]]) -> Iterator[_Columns]:
    """Give the entries of streams that are in order, in one order: so many at a time as are known to be next.

    Some blocks of each stream are open. What stands before the end of all open blocks, of streams that have
    more, comes next.
    """
    opened: list[_Columns] = [([], [], []) for _ in streams]
    ends = [-1] * len(streams)  # the position of the last key that is open
    while streams:
        middle = -1
        for blocks in range(AHEAD):
            for at, stream in enumerate(streams):
                if stream and (ends[at] < middle or not opened[at][0]):
                    ends[at], spot = stream.popleft()
                    for column, more in zip(opened[at], next(unframed(store.read(spot))), strict=True):
                        column += more
            if not blocks:  # then all streams are to be open up to where half of them are
                middle = sorted(ends)[len(ends) // 2]
        left = [end for end, stream in zip(ends, streams, strict=True) if stream]
        bound = min(left) if left else max(ends)
        entries: _Columns = [], [], []
        for columns in opened:
            if to := bisect_right(columns[0], bound):
                for column, found in zip(columns, entries, strict=True):
                    found += column[:to]
                    del column[:to]
        order = sorted(range(len(entries[0])), key=entries[0].__getitem__)
        yield entries[0], [entries[1][at] for at in order], [entries[2][at] for at in order]
        if not left:
            return


class Firsts(Gatherer):
    """The first element of each key in a partition; without keys, each element is its own.

    Workers leave out repeats within partitions, and the user's process the rest.
    """

    takes_together = True

    def __init__(self, keyed: bool) -> None:
        self.keyed = keyed

    def start(self) -> None:
        """Begin with none."""
        self._firsts: dict[Any, Any] = {}
        self._taken = 0

    def take(self, elements: Iterator[Any]) -> int:
        """Keep those whose keys are new."""
        if not self.keyed:
            self._taken = 0
            self._firsts |= dict.fromkeys(self._counted(elements))
            return self._taken
        firsts, taken = self._firsts, 0
        for key, element in elements:
            taken += 1
            if key not in firsts:
                firsts[key] = element
        return taken

    def add(self, keys: Sequence[Any], elements: Sequence[Any]) -> None:
        """Keep those whose keys are new."""
        deque(map(self._firsts.setdefault, keys, elements), 0)

    def _counted(self, elements: Iterator[Any]) -> Iterator[Any]:
        taken = 0
        try:
            for element in elements:
                taken += 1
                yield element
        finally:
            self._taken = taken

    def piece(self) -> bytes:
        """Return the keys, and their elements if these are others, in frames."""
        keys, elements = list(self._firsts), list(self._firsts.values())
        slots_of(keys)  # raises for keys that would never be equal to others
        frames = []
        for at in range(0, len(keys), BLOCK_KEYS):
            some, those = keys[at : at + BLOCK_KEYS], elements[at : at + BLOCK_KEYS] if self.keyed else None
            frames.append(framed((some, those), is_flat(some) and (those is None or is_flat(those))))
        return b"".join(frames)


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

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Give them as they come."""
        (pieces,) = streams
        seen: set[Any] = set()
        add = seen.add
        for keys, elements in chain.from_iterable(map(unframed, pieces)):
            those = keys if elements is None else elements
            if PLAINEST.issuperset(map(type, keys)):  # those of a piece are distinct
                new = [key not in seen for key in keys]
                seen.update(compress(keys, new))
                yield from compress(those, new)
                continue
            for key, element in zip(one_nan(keys), those, strict=True):
                if key not in seen:
                    add(key)
                    yield element
