"""Runs: elements in order of their keys: sorted by workers, in runs first and then in ranges of all runs.

A run is the elements of a partition, in blocks. The first key of each block comes here, with the number of
the run and of the block: that is unique, so a range may begin between equal keys.
"""

from __future__ import annotations

import functools
import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, NamedTuple

from parcoll.chain.failures import noting, stands_between
from parcoll.chain.steps import FlatMap
from parcoll.keys.exchange import BYTE_COST, ELEMENT_COST, Collective
from parcoll.keys.gathering import Gatherer
from parcoll.keys.pieces import TOGETHER, BlockKeys, Run, picked
from parcoll.keys.store import Framer, Spot, Store, fetched, is_flat, unframed
from parcoll.keys.streams import Done
from parcoll.system import without_collections
from parcoll.wire.reducers import ROWS, of_atoms

BLOCK_BYTES = 16 * 1024  # of a block, about: a range has up to two of each run that it does not need whole
SMALL = 128  # bytes of an element with its key: the keys of blocks are next to nothing of all then
SMALL_PART = 64  # one of so many bytes: less than that need not wait in the store either


class Runs(Gatherer):
    """Sorts the elements of a partition; without keys, each element is its own."""

    goes_on = True

    def __init__(self, keyed: bool, reverse: bool) -> None:
        self.keyed = keyed
        self.reverse = reverse

    takes_together = True

    def start(self) -> None:
        """Begin with none."""
        self._keys: list[Any] = []
        self._elements: list[Any] = []

    def take(self, elements: Iterator[Any]) -> int:
        """Keep the elements, or what the pairs with their keys have."""
        before = len(self._elements)
        if not self.keyed:
            self._elements += elements
        for key, element in elements:
            self._keys.append(key)
            self._elements.append(element)
        return len(self._elements) - before

    def add(self, keys: Sequence[Any], elements: Sequence[Any]) -> None:
        """Keep them."""
        self._elements += elements
        if self.keyed:
            self._keys += keys

    def piece(self) -> Run:
        """Sort, and cut into blocks."""
        keys: list[Any] | None = None
        elements: Sequence[Any] = self._elements
        refers = self.refers and self.keyed and of_atoms(elements)
        plain = refers or of_atoms(elements, ROWS)
        if self.keyed:
            order = sorted(range(len(elements)), key=self._keys.__getitem__, reverse=self.reverse)
            keys = list(picked(self._keys, order))
            elements = array("Q", order) if refers else picked(elements, order)
            plain = plain and of_atoms(keys)
        else:
            elements = sorted(elements, reverse=self.reverse)
        firsts: list[Any] = []
        run = Run(firsts, array("Q"), array("Q"), b"", plain, not refers)
        parts, at, size, end, framer = [], 0, 1, 0, Framer()  # the first may be large
        while at < len(elements):
            block = elements[at : at + size]
            some = None if keys is None else keys[at : at + size]
            flat = (refers or is_flat(block)) and (some is None or is_flat(some))
            parts.append(framer.framed((some, block), flat))
            end += len(parts[-1])
            firsts.append((elements if keys is None else keys)[at])
            run.ends.append(end)
            run.sizes.append(len(block))
            at += size
            size = max(1, min(size * 4, size * BLOCK_BYTES // len(parts[-1])))
        run.data = b"".join(parts)
        if len(run.data) > SMALL * len(elements):
            packed = [framer.framed(([key],)) for key in firsts]
            ends = array("Q", accumulate(map(len, packed)))
            if SMALL_PART * ends[-1] > len(run.data):
                run.firsts = BlockKeys(b"".join(packed), ends)
        return run


class Cut(NamedTuple):
    """Where a range begins in a run: in a block, at the furthest of some keys; without any, at its start.

    A key comes with whether elements with equal keys are before the cut. They are several where several
    ranges begin in one block: so a cut is never before that of an earlier range, whatever `<` says.
    """

    block: int
    keys: tuple[tuple[Any, bool], ...] = ()


class Segment(NamedTuple):
    """The blocks of one run that a range has something of, and the cuts in the first and in the last one."""

    data: Any  # bytes, or where they lie
    begin: Cut
    end: Cut


@dataclass
class Range:
    """What one task is to sort: its part of each run, in order."""

    segments: Sequence[Segment]
    reverse: bool
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(len(segment.data) for segment in self.segments)

    def __repr__(self) -> str:
        return f"<a range of {len(self.segments)} sorted parts>"


class Ranges(Collective):
    """Tasks that sort ranges of all runs."""

    def __init__(self, reverse: bool) -> None:
        super().__init__("sorted")
        self.reverse = reverse

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "exchange()"

    def may_be_done(self, limit: int | None) -> bool:
        """Say so where all are wanted: of few, no more is sorted than these need."""
        return limit is None

    def made(self, *streams: Iterator[Any]) -> Iterator[Range | Done]:
        """Give the tasks, in order; or what is sorted, some after the other."""
        (runs,) = streams
        with self.store() as store:
            kept: list[tuple[Run, Spot]] = []
            for run in runs:
                spot, run.data = store.add(run.data), b""
                if isinstance(run.firsts, BlockKeys):
                    run.firsts.put(store)
                kept.append((run, spot))
            if self._is_sorted_here([run for run, _ in kept]):
                yield from self._sorted(kept, store)
                return
            for number, (run, spot) in enumerate(kept):
                if not run.carries:
                    run.data = store.read(spot)
                    run.filled()
                    kept[number], run.data = (run, store.add(run.data)), b""
            with noting("sorted()"):
                before, starts = _before(self.reverse), self._starts(kept, store)
                cuts = [_cuts_of(number, run, store, starts, before) for number, (run, _) in enumerate(kept)]
            for at in range(max(map(len, cuts), default=1) - 1):
                segments = [
                    _segment(store, run, spot, own[at], own[at + 1])
                    for (run, spot), own in zip(kept, cuts, strict=True)
                ]
                if found := [segment for segment in segments if segment.data]:
                    yield Range(found, self.reverse)

    def _is_sorted_here(self, runs: list[Run]) -> bool:
        """Tell whether this process sorts the runs as one. Comparisons of users' classes run on workers."""
        if not all(run.plain for run in runs):
            return False
        cost = sum(map(sum, map(_costs, runs)))
        return self.ends_here(cost, not any(run.carries for run in runs))

    def _sorted(self, kept: list[tuple[Run, Spot]], store: Store) -> Iterator[Done]:
        all_keys: list[Any] = []
        elements: list[Any] = []
        places = array("Q")  # instead, among all that were read: an element that is far away is touched once
        listed = kept[0][0].listed if kept and not any(run.carries for run, _ in kept) else None
        with without_collections():
            for run, spot in kept:
                run.data = store.read(spot)
                for keys, those in run.blocks() if listed is None else unframed(run.data):
                    if listed is None:
                        elements += those
                    else:
                        assert run.listed is not None
                        places.extend(map(run.listed.start.__add__, those))
                    all_keys += keys or ()
                run.data = b""
            with noting("sorted()"):
                if all_keys:
                    order = sorted(range(len(all_keys)), key=all_keys.__getitem__, reverse=self.reverse)
                    elements = list(picked(elements if listed is None else places, order))
                else:
                    elements.sort(reverse=self.reverse)
        for at in range(0, len(elements), TOGETHER):
            some = elements[at : at + TOGETHER]
            yield Done(some if listed is None else list(picked(listed.elements, some)))

    def _starts(self, kept: list[tuple[Run, Spot]], store: Store) -> list[tuple[Any, int, int]]:
        """Return where all ranges but the first begin: a key, the number of a run, and a block of it."""
        runs, comparable = [run for run, _ in kept], _Comparable.of(self.reverse)
        found = [_numbered(_firsts_of(run, store), number) for number, run in enumerate(runs)]
        blocks: Iterable[tuple[Any, int, int]]
        if any(isinstance(run.firsts, BlockKeys) for run in runs):
            blocks = heapq.merge(*found, key=comparable)  # one large key of each run is here
        else:
            blocks = sorted(chain.from_iterable(found), key=comparable)
        costs = [_costs(run) for run in runs]
        target = self.target(sum(map(sum, costs)))
        starts, cost = [], 0
        for block in blocks:
            _, number, at = block
            more = costs[number][at]
            if cost and cost + more > target:
                starts.append(block)
                cost = 0
            cost += more
        return starts


def _firsts_of(run: Run, store: Store) -> Iterable[Any]:
    return run.firsts.read(store) if isinstance(run.firsts, BlockKeys) else run.firsts


def _numbered(firsts: Iterable[Any], number: int) -> Iterator[tuple[Any, int, int]]:
    return ((key, number, at) for at, key in enumerate(firsts))


def _costs(run: Run) -> list[int]:
    costs, before = [], 0
    for end, size in zip(run.ends, run.sizes, strict=True):
        costs.append(BYTE_COST * (end - before) + ELEMENT_COST * size)
        before = end
    return costs


def _before(reverse: bool) -> Callable[[Any, Any], bool]:
    """Return what tells whether a key has to come before another one."""
    return (lambda one, other: bool(other < one)) if reverse else (lambda one, other: bool(one < other))


class _Comparable:
    """A start as Python sorts it, by `<` of the keys alone."""

    @staticmethod
    def of(reverse: bool) -> Callable[[tuple[Any, int, int]], Any]:
        """Return the key for `sort`."""
        before = _before(reverse)

        def compare(one: tuple[Any, int, int], other: tuple[Any, int, int]) -> int:
            if before(one[0], other[0]):
                return -1
            if before(other[0], one[0]):
                return 1
            return -1 if one[1:] < other[1:] else 1

        return functools.cmp_to_key(compare)


def _position(keys: Sequence[Any], key: Any, after: bool, before: Callable[[Any, Any], bool]) -> int:
    """Return how many keys are before a key, or with `after` not behind it."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if (not before(key, keys[middle])) if after else before(keys[middle], key):
            low = middle + 1
        else:
            high = middle
    return low


def _cuts_of(
    number: int,
    run: Run,
    store: Store,
    starts: list[tuple[Any, int, int]],
    before: Callable[[Any, Any], bool],
) -> list[Cut]:
    """Return where each range begins in a run, and where the last one ends."""
    cuts, firsts = [Cut(0)], list(_firsts_of(run, store))
    for key, other, at in starts:
        if other == number:
            cut = Cut(at)
        else:
            block = _position(firsts, key, number < other, before) - 1
            if block < 0:
                cut = Cut(0)
            elif run.sizes[block] == 1:  # it is before the range: of large elements, none goes to two of them
                cut = Cut(block + 1)
            else:
                cut = Cut(block, ((key, number < other),))
        last = cuts[-1]
        if cut.block < last.block:
            cut = last
        elif cut.block == last.block:
            cut = Cut(cut.block, last.keys + cut.keys)
        cuts.append(cut)
    return [*cuts, Cut(len(firsts))]


def _segment(store: Store, run: Run, spot: Spot, begin: Cut, end: Cut) -> Segment:
    """Read the blocks from one cut to another one; none if there is nothing between them."""
    last = end.block + bool(end.keys)  # behind the last one
    if begin == end or begin.block >= last:
        return Segment(b"", begin, end)
    start = run.ends[begin.block - 1] if begin.block else 0
    return Segment(store.read(spot, start, run.ends[last - 1]), begin, end)


class Sorting(FlatMap):
    """Sorts a range."""

    kind = "sort"
    name = "sorted"  # of the collection's method
    by_user = False
    is_phase = True

    def __init__(self) -> None:
        super().__init__(in_range)

    @property
    def label(self) -> str:
        """The operation that it belongs to."""
        return "sort()"

    title = label

    @property
    def words(self) -> str:
        """The same in letters."""
        return "sorted-merged"


def in_range(given: Range) -> list[Any]:
    """Return the elements of a range, sorted; equal ones in the order of the runs."""
    before = _before(given.reverse)
    all_keys: list[Any] = []
    elements: list[Any] = []
    datas = fetched([segment.data for segment in given.segments])
    for data, (_, begin, end) in zip(datas, given.segments, strict=True):
        blocks = list(unframed(data))
        start, stop = 0, sum(len(block) for _, block in blocks)
        if begin.keys:
            start = _offset(blocks[0], begin, before)
        if end.keys:
            last = blocks[-1]
            stop -= len(last[1]) - _offset(last, end, before)
        found = [element for _, block in blocks for element in block][start:stop]
        keys = found if blocks[0][0] is None else [key for keys, _ in blocks for key in keys][start:stop]
        elements += found
        if keys is not found:
            all_keys += keys
    if not all_keys:
        return sorted(elements, reverse=given.reverse)
    order = sorted(range(len(elements)), key=all_keys.__getitem__, reverse=given.reverse)
    return list(picked(elements, order))


def _offset(block: tuple[list[Any] | None, list[Any]], cut: Cut, before: Callable[[Any, Any], bool]) -> int:
    keys, elements = block
    return max(_position(elements if keys is None else keys, key, after, before) for key, after in cut.keys)


stands_between(in_range.__code__.co_filename)
