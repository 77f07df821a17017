"""Ordering: what the tasks have merged, as keys with their values, in the order of first appearance."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from operator import itemgetter
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

    def __init__(self, name: str, ordered: bool = True) -> None:
        super().__init__(name)
        self.ordered = ordered

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "in_order()"

    def made(self, *streams: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """Give pairs of keys and values."""
        blocks: Iterator[Block] = streams[0]
        if not self.ordered:
            for block in blocks:
                for _, keys, values in unframed(block.data):
                    yield from zip(keys, values, strict=True)
            return
        with Store(self.name, self.around.folder) as store:
            waiting: defaultdict[int, deque[_Waiting]] = defaultdict(deque)
            for block in blocks:
                waiting[block.number].append(_Waiting(block.last, store.add(block.data)))
            for entries in _rounds(store, list(waiting.values())):
                yield from map(itemgetter(1, 2), entries)


def _rounds(store: Store, streams: list[deque[_Waiting]]) -> Iterator[list[tuple[int, Any, Any]]]:
    """Give the entries of streams that are in order, in one order: so many at a time as are known to be next.

    Of each stream one block is open. What stands before the end of all blocks that are not the last of their
    stream comes next.
    """
    opened: list[tuple[list[int], list[tuple[int, Any, Any]]]] = [([], []) for _ in streams]
    ends = [-1] * len(streams)  # the position of the last key of each open block
    while streams:
        for at, stream in enumerate(streams):
            if not opened[at][0] and stream:
                ends[at], spot = stream.popleft()
                ((positions, keys, values),) = unframed(store.read(spot))
                opened[at] = list(positions), list(zip(positions, keys, values, strict=True))
        left = [end for end, stream in zip(ends, streams, strict=True) if stream]
        bound = min(left) if left else max(ends)
        entries: list[tuple[int, Any, Any]] = []
        for positions, found in opened:
            to = bisect_right(positions, bound)
            if to:
                entries += found[:to]
                del positions[:to], found[:to]
        entries.sort(key=itemgetter(0))
        yield entries
        if not left:
            return
