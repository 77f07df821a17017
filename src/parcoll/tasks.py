"""The functions that run on the workers, one call a dask task. They never raise."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from parcoll.chain import Chain
from parcoll.equality import differs
from parcoll.errors import SerializationError
from parcoll.failure import Failure
from parcoll.outcome import Kept, Outcome
from parcoll.pickling import Packed, Payload, Plain, Shared, Space, first_unpicklable
from parcoll.place import Place
from parcoll.program import Fold, Program, SharedProgram
from parcoll.text import function_name, short_repr

SLICED = (list, tuple, range, str, bytes)  # exact types: a subclass may iterate as it likes
Pack = Callable[[Any], Payload]

# The clock is read between chunks of elements, not between elements (60 ns each): a chunk doubles
# while it takes less than this, so that the budget is overrun by about as much.
CHUNK_SECONDS = 0.01
MAX_CHUNK = 2048  # elements, since slow ones may follow cheap ones; a chunk costs 10 µs


class Ticket(NamedTuple):
    """What a task needs to have its outcome sent: its own key, and the topic that its client reads."""

    topic: str
    key: str


# The outcomes of tasks that ended in this worker, by key and with their topic, until
# `engine.reports` sends them.
reports: dict[str, tuple[str, Outcome]] = {}


def run_partition(
    shared: SharedProgram,
    place: Place,
    keep: bool,
    elements: Payload | Kept | Iterable[Any],
    budget: float | None = None,
    space: Space | None = None,
    ticket: Ticket | None = None,
) -> Outcome | Kept:
    """Run the program on one partition; with `keep` the results stay in the worker.

    After `budget` seconds what has not begun is handed back, unless as much time again should be
    enough for it. Large results go into `space`. With a `ticket` the outcome is left in `reports` too.
    """
    try:
        result = _run(shared, place, keep, elements, budget, space.pack if space is not None else Packed.pack)
    except BaseException as error:  # SystemExit, say, while a result is pickled: it would end the worker
        outcome = _broken(f"the partition at {place.element(0)} could not be finished", error)
        result = Kept(outcome, None) if keep else outcome
    outcome = report(result)
    if space is not None and space.failure is not None:
        outcome.unshared = space.failure
    if ticket is not None:
        reports[ticket.key] = ticket.topic, outcome
    return result


def run_here(
    shared: SharedProgram,
    place: Place,
    keep: bool,
    elements: Payload | Kept | Iterable[Any],
    budget: float | None = None,
) -> Outcome | Kept:
    """Do as `run_partition` does, in the user's own process: nothing is pickled."""
    return _run(shared, place, keep, elements, budget, Plain)


def join_kept(shared: SharedProgram, ticket: Ticket | None, previous: Kept | None, *parts: Kept) -> Kept:
    """Fold the elements of `parts`, in order, into the value that `previous` holds."""
    try:
        result = _join(shared, previous, parts, Packed.pack)
    except BaseException as error:
        result = Kept(_broken("the value folded so far could not be finished", error), None)
    if ticket is not None:
        reports[ticket.key] = ticket.topic, result.outcome
    return result


def join_here(shared: SharedProgram, previous: Kept | None, *parts: Kept) -> Kept:
    """Do as `join_kept` does, in the user's own process."""
    return _join(shared, previous, parts, Plain)


def report(result: Kept | Outcome) -> Outcome:
    """Return what there is to know of a result, without the result where it is kept."""
    return result.outcome if isinstance(result, Kept) else result


def content(kept: Kept) -> Payload | None:
    """Return a kept result itself."""
    return kept.content


def elements_of(kept: Kept) -> list[Any]:
    """Return the elements of a kept result: what dask's own engines read of it."""
    return list(kept.content.load()) if kept.content is not None else []


def _run(
    shared: SharedProgram, place: Place, keep: bool, given: Any, budget: float | None, pack: Pack
) -> Outcome | Kept:
    try:
        program = shared.load()
    except BaseException as error:
        outcome = _broken("the worker could not load the chain", error)
        return Kept(outcome, None) if keep else outcome
    started = time.perf_counter()
    try:
        elements = _elements(given)
    except OSError as error:
        if not isinstance(given, Shared) or keep:
            raise
        # Not the elements' fault: they are sent once more, in the message itself.
        return Outcome(complete=False, unshared=str(error))
    except BaseException as error:
        where = f"the worker could not load the partition at {place.element(0)}"
        outcome = _broken(where, error)
        return Kept(outcome, None) if keep else outcome
    chain = Chain(program.steps)
    outcome = Outcome()
    results = _drive(chain, program, elements, place, outcome, budget)
    outcome.flows = chain.flows(outcome.read)
    if outcome.failure is None:
        outcome.failure, outcome.failed_step = chain.failure, chain.failed_step
    packed = _pack_results(results, outcome, chain, place, pack) if program.sink != "count" else None
    if program.fold is not None and program.fold.combine is not None and results and not outcome.failure:
        # A copy, since `combine` may write into its arguments.
        copied = packed if isinstance(packed, Packed) else Packed.pack(results)
        outcome.failure = _check_neutral(program.fold, results[0], copied)
    outcome.seconds = time.perf_counter() - started
    if keep:
        return Kept(outcome, packed)
    outcome.results = packed
    return outcome


def _drive(
    chain: Chain,
    program: Program,
    elements: Sequence[Any],
    place: Place,
    outcome: Outcome,
    budget: float | None,
) -> list[Any]:
    """Run the chain over `elements` in chunks until they, the limit or the budget end."""
    results: list[Any] = []
    fold = _Folding(program, place) if program.sink == "fold" else None
    position, size, total = 0, 1, len(elements)
    started = clock = time.perf_counter()
    while position < total and chain.failure is None:
        # Without a budget nobody looks at the clock, and the rest is one chunk.
        size = size if budget is not None else total
        chunk = elements[position : position + size]
        stream = chain.run(chunk, place.after(position))
        if fold is not None:
            outcome.failure = fold.take(stream, chain)
        elif program.sink == "count":
            outcome.produced += sum(1 for _ in stream)
        elif program.limit is not None:
            results += itertools.islice(stream, program.limit - len(results))
        else:
            results += stream
        chain.close()
        position += chain.drawn
        if outcome.failure is not None:
            outcome.failed_step = len(program.steps)
            break
        if program.limit is not None and len(results) >= program.limit:
            break
        if budget is not None:
            now = time.perf_counter()
            # What is left is finished where it should take no longer, at the pace of the last chunk:
            # to hand it back costs as much as 10 ms of work.
            if now - started > budget and (now - clock) * (total - position) > budget * chain.drawn:
                break
            size = min(size * 2, MAX_CHUNK) if now - clock < CHUNK_SECONDS else max(size // 2, 1)
            clock = now
    outcome.read = position
    stopped = outcome.failure or chain.failure or (program.limit and len(results) >= program.limit)
    outcome.complete = position >= total or bool(stopped)
    if fold is not None:
        results = fold.value
        outcome.produced = fold.taken
    elif program.sink == "results":
        outcome.produced = len(results)
    return results


class _Folding:
    """The fold of one partition's elements: a list of one value, or of none where there is none."""

    def __init__(self, program: Program, place: Place) -> None:
        assert program.fold is not None
        self.fold: Fold = program.fold
        self.taken = 0
        self.value: list[Any] = []
        initial = self.fold.initial
        if initial is not None and (place.first or not program.start_once):
            self.value = [initial.load()]

    def take(self, stream: Iterable[Any], chain: Chain) -> Failure | None:
        element: Any = None
        func = self.fold.func
        iterator = iter(stream)
        try:
            if not self.value:
                for element in iterator:
                    self.taken += 1
                    self.value = [element]
                    break
                else:
                    return None
            value = self.value[0]
            for element in iterator:
                self.taken += 1
                value = func(value, element)
            self.value = [value]
        except BaseException as error:
            note = f"in {self.fold.label}, at {chain.where()}: {short_repr(element)}"
            return Failure.of(error, note, skip_frames=1)
        return None


def _join(shared: SharedProgram, previous: Kept | None, parts: tuple[Kept, ...], pack: Pack) -> Kept:
    started = time.perf_counter()
    taken = previous.folded if previous is not None else 0
    outcome = Outcome()
    element: Any = None
    value: list[Any] = []
    try:
        fold = shared.load().fold
        assert fold is not None
        if previous is not None and previous.content is not None:
            value = previous.content.load()
        elif previous is None and fold.initial is not None:
            value = [fold.initial.load()]
        label = fold.label
    except BaseException as error:
        return Kept(_broken("the worker could not load the value folded so far", error), None, taken)
    try:
        for part in parts:
            for element in elements_of(part):
                value = [fold.func(value[0], element)] if value else [element]
                taken += 1
    except BaseException as error:
        note = f"in {label}, at element {taken} of those that reached it: {short_repr(element)}"
        outcome.failure = Failure.of(error, note, skip_frames=1)
    outcome.produced = taken
    packed = None if outcome.failure or not value else _pack_value(value, outcome, label, pack)
    outcome.seconds = time.perf_counter() - started
    return Kept(outcome, packed, taken)


def _check_neutral(fold: Fold, value: Any, packed: Payload) -> Failure | None:
    """Fail where the value that every partition starts from changes the value of this one.

    `combine` may join {"depth": 0} to itself and still overwrite the depth of 5 that was found in
    another partition.
    """
    assert fold.combine is not None
    assert fold.initial is not None
    try:
        joined = fold.combine(packed.load()[0], fold.initial.load())
        if not differs(joined, value):
            return None
        raise ValueError(
            f"{fold.label}: the initial value {short_repr(fold.initial.load())} is not neutral, joined "
            f"to {short_repr(value)} it gives {short_repr(joined)}, so partitions cannot start from it: "
            "pass a neutral one, or use reduce()"
        )
    except BaseException as error:
        note = f"in {fold.label}, combining with {function_name(fold.combine)}"
        return Failure.of(error, note, skip_frames=1)


def _elements(given: Any) -> Sequence[Any]:
    """Return what a partition came as (packed, kept by an earlier task, or a bag's) as a sequence."""
    if isinstance(given, Kept):
        return elements_of(given)
    if isinstance(given, (Packed, Plain, Shared)):
        given = given.load()
    numpy = sys.modules.get("numpy")
    sliced = type(given) in SLICED or (numpy is not None and type(given) is numpy.ndarray)
    return given if sliced else list(given)


def _pack_results(
    results: list[Any], outcome: Outcome, chain: Chain, place: Place, pack: Pack
) -> Payload | None:
    try:
        packed = pack(results)
    except BaseException as error:
        bad = first_unpicklable(results)
        position, cause = bad if bad is not None else (0, error)
        whose = f"the result of {place.element(position)}"
        if chain.passed:  # a filter or a flatmap: results do not stand where their elements do
            whose = f"result {position} of the partition from {place.element(0)} to {chain.where()}"
        message = (
            f"{whose} cannot be sent back from the worker: {short_repr(results[position])} "
            f"({type(cause).__name__}: {cause})"
        )
        last = f"in {chain.steps[-1].label}" if chain.steps else "in a chain without steps"
        outcome.failure = Failure.of(SerializationError(message), last)
        outcome.failed_step = None
        outcome.produced = position
        packed = pack(results[:position])
    outcome.nbytes = packed.nbytes
    return packed


def _pack_value(value: list[Any], outcome: Outcome, label: str, pack: Pack) -> Payload | None:
    try:
        return pack(value)
    except BaseException as error:
        message = (
            f"the value of {label} cannot be sent between workers: {short_repr(value[0])} "
            f"({type(error).__name__}: {error})"
        )
        outcome.failure = Failure.of(SerializationError(message), f"in {label}")
        return None


def _broken(what: str, error: BaseException) -> Outcome:
    failure = SerializationError(f"{what}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return Outcome(failure=Failure.of(failure, what), complete=True)
