"""Exchange: pieces from all partitions become tasks that merge: P + N tasks, whatever the keys are.

The bytes of the pieces wait in a `Store`, and are not unpickled here. A slot that is too large for a task is
cut again, by workers.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from parcoll.chain.steps import Step
from parcoll.keys.gathering import Values
from parcoll.keys.merging import FirstKey, FoldingOn, Part, Regrouping, Slots
from parcoll.keys.pieces import Piece
from parcoll.keys.slots import LEVELS, SLOTS, SeedError
from parcoll.keys.store import Scratch, Spot, Store
from parcoll.keys.streams import Done, Operation

# What a task costs in memory, about: three times the packed bytes, and so much for each element.
BYTE_COST, ELEMENT_COST = 3, 64
MOST_COST = 96 * 2**20  # of a task
LEAST_COST = 4 * 2**20  # a smaller task is not worth it
WINDOW_COST = 2**30  # of all tasks that are under way, and are held here too
SLOTS_LATER = 16  # of a task that is not merged by a worker
PART_OF_MEMORY = 32  # of a worker's memory, for a task; with 16, one of 300 MiB took 318
TASKS_A_THREAD = 3
FEW_THREADS, FEW_TASKS = 4, 4  # where elements are so few tasks' worth, this process merges them itself
HOLDS = 0.6  # of a worker's memory, for a group that must be in one task


class Around(NamedTuple):
    """What an operation may ask of the evaluation that reads it."""

    threads: Callable[[], int]
    memory_limit: Callable[[], float]
    evaluate: Callable[[Iterable[Any], Step], Iterator[Any]]  # a step on each element, on the workers
    folder: str | None = None  # for files
    spilled: Callable[[int], object] = int  # is told how many bytes go into one
    scratch: Scratch | None = None  # where workers put what they send to each other
    is_last: bool = False  # what the only step behind it makes comes here


def _evaluate_here(elements: Iterable[Any], step: Step) -> Iterator[Any]:
    return map(step.call, elements)


HERE = Around(lambda: 1, lambda: math.inf, _evaluate_here)


class Collective(Operation):
    """An operation that may ask for more than the streams."""

    around = HERE

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def describe(self, others: Any) -> str:
        """Return nothing: the step before is what a user wrote."""
        return ""

    def within(self, around: Around) -> Operation:
        """Return the operation for one evaluation."""
        made = copy.copy(self)
        made.around = around
        return made

    def store(self) -> Store:
        """Return where bytes of one evaluation wait."""
        return Store(self.name, self.around.folder, self.around.spilled, self.around.scratch)

    def may_refer(self, is_last: bool, threads: int) -> bool:
        """Say so where this process may have to do the rest."""
        return is_last and threads <= FEW_THREADS

    def ends_here(self, cost: int, refers: bool) -> bool:
        """Tell whether this process does the rest: what comes here is opened here, and workers are few.

        They would unpickle and pickle all once more. Of what `refers`, little but the keys comes here, and
        these may be large. What lies in a scratch is gone when this process wants it.
        """
        around = self.around
        here = around.is_last and around.scratch is None and around.threads() <= FEW_THREADS
        return here and cost <= (WINDOW_COST if refers else FEW_TASKS * self.most)

    @property
    def most(self) -> int:
        """What a task may cost at most."""
        most = min(WINDOW_COST / (4 * self.around.threads() + 2), MOST_COST)
        return int(max(min(self.around.memory_limit() / PART_OF_MEMORY, most), LEAST_COST))

    def target(self, total: int) -> int:
        """Return what a task should cost if all cost so much."""
        threads = max(self.around.threads(), 1)  # all workers may be lost just now
        return min(self.most, max(total // (TASKS_A_THREAD * threads), LEAST_COST))


class _Row(NamedTuple):
    """A piece, whose bytes are in the store."""

    number: int | None
    spot: Spot
    piece: Piece  # without its bytes

    def part(self, start: int, stop: int) -> tuple[int, int]:
        """Return where the bytes of neighbouring slots are."""
        ends = self.piece.ends
        return (ends[start - 1] if start else 0), ends[stop - 1]


class _Shelf:
    """Pieces that were cut at one level, in order."""

    def __init__(self, store: Store, level: int) -> None:
        self.level = level
        self.rows: list[_Row] = []
        self.plain = True  # keys and values are of no class of users'
        self.mixed = False  # they come from processes with several hash seeds
        self.costs = [0] * SLOTS
        self.single = [True] * SLOTS  # whether no piece has more than one key there
        self._store = store
        self._others = self._other_nones = False
        self.carries = False  # some values have come with a piece

    def add(self, number: int | None, piece: Piece) -> None:
        """Take a piece."""
        spot, piece.data = self._store.add(piece.data), b""
        self.rows.append(_Row(number, spot, piece))
        first, self.plain = self.rows[0].piece, self.plain and piece.plain
        self.carries = self.carries or piece.carries
        self._others = self._others or bool(piece.other)
        self._other_nones = self._other_nones or piece.none != first.none
        self.mixed = self.mixed or piece.seed != first.seed or (self._others and self._other_nones)
        before = 0
        columns = zip(piece.ends, piece.values, piece.single, strict=True)
        for slot, (end, values, single) in enumerate(columns):
            if values:
                self.costs[slot] += BYTE_COST * (end - before) + ELEMENT_COST * values
                self.single[slot] = self.single[slot] and bool(single)
            before = end

    def parts(self, start: int, stop: int) -> Iterator[tuple[Part, int]]:
        """Give the bytes of neighbouring slots, of one piece after the other, with what each costs."""
        for row in self.rows:
            begin, end = row.part(start, stop)
            if begin < end:
                values = sum(row.piece.values[start:stop])
                part = Part(row.number, self._store.read(row.spot, begin, end), values, row.piece.listed)
                yield part, BYTE_COST * (end - begin) + ELEMENT_COST * values

    def chunks(self, start: int, stop: int, most: int) -> Iterator[list[Part]]:
        """Give them in rows that cost no more than that, or are one part."""
        chunk: list[Part] = []
        cost = 0
        for part, costs in self.parts(start, stop):
            if chunk and cost + costs > most:
                yield chunk
                chunk, cost = [], 0
            chunk.append(part)
            cost += costs
        if chunk:
            yield chunk


class Exchange(Collective):
    """Tasks that merge slots of all pieces."""

    def __init__(self, name: str, kind: Values) -> None:
        super().__init__(name)
        self.kind = kind
        self._written = False

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "exchange()"

    def may_be_done(self, limit: int | None) -> bool:
        """Say so where who wants the values can join them."""
        return self.kind.later

    def may_refer(self, is_last: bool, threads: int) -> bool:
        """Say so where values are the elements."""
        return self.kind.later and super().may_refer(is_last, threads)

    def made(self, *streams: Iterator[Any]) -> Iterator[Slots | Done]:
        """Give the tasks; or all at once, for who joins their values."""
        (pieces,) = streams
        with self.store() as store:
            shelf = _Shelf(store, 0)
            for number, piece in enumerate(pieces):
                shelf.add(number, piece)
            if shelf.mixed:
                shelf = self._cut_alike(self._filled(shelf, store), store)
            if self._is_joined_here(shelf):
                for start in range(0, SLOTS, SLOTS_LATER):
                    if found := list(self._task(shelf, start, min(start + SLOTS_LATER, SLOTS))):
                        yield Done(found)
            else:
                yield from self._tasks(self._filled(shelf, store), store)

    def _is_joined_here(self, shelf: _Shelf) -> bool:
        """Tell whether this process joins the values. Code of users, as that of keys, runs on workers."""
        joins = self.kind.later and shelf.plain
        return joins and self.ends_here(sum(shelf.costs), not shelf.carries)

    def _filled(self, shelf: _Shelf, store: Store) -> _Shelf:
        """Return the pieces with the values that did not come back: they go to workers after all."""
        if not any(row.piece.lacks for row in shelf.rows):
            return shelf
        found = _Shelf(store, shelf.level)
        for number, spot, piece in shelf.rows:
            piece.data = store.read(spot)
            found.add(number, piece.filled() if piece.lacks else piece)
            piece.data = b""  # else they would be held here, all of them
        return found

    def _cut_alike(self, shelf: _Shelf, store: Store) -> _Shelf:
        """Have pieces of processes with several hash seeds cut again, by what is written in the keys.

        If nobody can say that of a class, the workers cut by their own hashes. They may be alike: before
        Python 3.12, processes beside workers, which functions with a timeout run in, are not.
        """
        self._written = True
        try:
            return self._again(shelf, store, 0, SLOTS, 0)
        except SeedError:
            self._written = False
            found = self._again(shelf, store, 0, SLOTS, 0)
            if found.mixed:
                raise
            return found

    def _tasks(self, shelf: _Shelf, store: Store) -> Iterator[Slots]:
        target, start, cost = self.target(sum(shelf.costs)), 0, 0
        most = self.most  # asks the engine, which takes 10 µs
        for slot, costs in enumerate(shelf.costs):
            if costs > 2 * most:
                yield from self._task(shelf, start, slot)
                yield from self._large(shelf, store, slot)
                start, cost = slot + 1, 0
                continue
            if cost and cost + costs > target:
                yield from self._task(shelf, start, slot)
                start, cost = slot, 0
            cost += costs
        yield from self._task(shelf, start, SLOTS)

    def _task(self, shelf: _Shelf, start: int, stop: int) -> Iterator[Slots]:
        parts = [part for part, _ in shelf.parts(start, stop)] if start < stop else []
        if parts:
            yield Slots(parts, label=self.name, level=shelf.level, plain=shelf.plain)

    def _large(self, shelf: _Shelf, store: Store, slot: int) -> Iterator[Slots]:
        """Give the tasks of a slot that is too large for one."""
        last, single = shelf.level + 1 == len(LEVELS), shelf.single[slot]
        if self.kind.in_order and (last or (single and shelf.level)):
            yield from self._folded_on(shelf, slot)
        elif last or (single and shelf.level and shelf.costs[slot] <= self._holds):
            self._refuse_more_than_fits(shelf, slot)
            yield from self._task(shelf, slot, slot + 1)
        else:
            yield from self._tasks(self._again(shelf, store, slot, slot + 1, shelf.level + 1), store)

    def _again(self, shelf: _Shelf, store: Store, start: int, stop: int, level: int) -> _Shelf:
        """Have workers cut slots again, by digits of this level."""
        tasks = (
            Slots(parts, label=self.name, level=level, written=self._written)
            for parts in shelf.chunks(start, stop, self.most)
        )
        found = _Shelf(store, level)
        for piece in self.around.evaluate(tasks, Regrouping(self.kind, self.around.scratch)):
            found.add(None, piece)
        return found

    def _folded_on(self, shelf: _Shelf, slot: int) -> Iterator[Slots]:
        """Fold the elements of one key, a part of them after the other."""
        state = b""
        for parts in shelf.chunks(slot, slot + 1, self.most):
            (state,) = self.around.evaluate([Slots(parts, state, self.name)], FoldingOn(self.kind))
        yield Slots([], state, self.name)

    @functools.cached_property
    def _holds(self) -> float:
        return HOLDS * self.around.memory_limit()

    def _refuse_more_than_fits(self, shelf: _Shelf, slot: int) -> None:
        """Raise an error for what no worker could hold."""
        if shelf.costs[slot] <= self._holds:
            return
        parts = shelf.parts(slot, slot + 1)
        part, _ = next(parts)
        (key,) = self.around.evaluate([Slots([part], label=self.name)], FirstKey())
        values = sum(row.piece.values[slot] for row in shelf.rows)
        size = sum(end - begin for row in shelf.rows for begin, end in [row.part(slot, slot + 1)])
        limit = self.around.memory_limit()
        if self.name != "group_by":
            raise MemoryError(
                f"the values of {self.name} for the key {key} take {size >> 20:,} MiB packed, more than a "
                f"worker may take in, which may hold {limit / 2**20:,.0f} MiB: make them smaller, or raise "
                "memory_limit"
            )
        raise MemoryError(
            f"the group of the key {key} has {values:,} elements, {size >> 20:,} MiB packed, more than a "
            f"worker may take in, which may hold {limit / 2**20:,.0f} MiB: use fold_by(), which holds one "
            "value of each key, or a key that makes smaller groups, or raise memory_limit"
        )
