"""Ordering: what the tasks have merged, as keys with their values, in the order of first appearance."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import chain, starmap
from typing import Any, NamedTuple

from parcoll.keys.exchange import Collective
from parcoll.keys.merging import Block
from parcoll.keys.store import Spot, Store, unframed


class _Waiting(NamedTuple):
    """A block, whose bytes are in the store."""

    last: int
    spot: Spot


class InOrder(Collective):
    """The keys with their values. Unless `ordered`, as they come."""

    def __init__(self, name: str, ordered: bool = True, together: bool = False) -> None:
        super().__init__(name)
        self.ordered = ordered
        self.together = together  # many keys and their values as two lists, which takes less time

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "in_order()"

    def made(self, *streams: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """Give pairs of keys and values."""
        columns = self._columns(streams[0])
        return columns if self.together else chain.from_iterable(starmap(zip, columns))

    def _columns(self, blocks: Iterator[Block]) -> Iterator[tuple[list[Any], list[Any]]]:
        if not self.ordered:
            for block in blocks:
                for _, keys, values in unframed(block.data):
                    yield keys, values
            return
        with Store(self.name, self.around.folder) as store:
            waiting: defaultdict[int, deque[_Waiting]] = defaultdict(deque)
            for block in blocks:
                waiting[block.number].append(_Waiting(block.last, store.add(block.data)))
            for _, keys, values in _rounds(store, list(waiting.values())):
                yield keys, values


_Columns = tuple[list[int], list[Any], list[Any]]  # positions, keys and values


def _rounds(store: Store, streams: list[deque[_Waiting]]) -> Iterator[_Columns]:
    """Give the entries of streams that are in order, in one order: so many at a time as are known to be next.

    Of each stream one block is open. What stands before the end of all blocks that are not the last of their
    stream comes next.
    """
    opened: list[_Columns] = [([], [], []) for _ in streams]
    ends = [-1] * len(streams)  # the position of the last key of each open block
    while streams:
        for at, stream in enumerate(streams):
            if not opened[at][0] and stream:
                ends[at], spot = stream.popleft()
                ((positions, keys, values),) = unframed(store.read(spot))
                opened[at] = list(positions), keys, values
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
