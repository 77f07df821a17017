"""The functions that run on the workers, one call a dask task. They never raise."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from parcoll.chain.failures import packed as pack_failed
from parcoll.chain.loop import Chain
from parcoll.chain.marks import Counting
from parcoll.chain.place import Place
from parcoll.chain.timing import Timing
from parcoll.errors import SerializationError
from parcoll.text import function_name, short_repr
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed, Payload, Plain, Shared, Space, first_unpicklable
from parcoll.worker.equality import differs
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Fold, Program, SharedProgram

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
    pack = space.pack if space is not None else Packed.pack

    def run() -> Outcome | Kept:
        return _run(shared, place, keep, elements, budget, pack)

    return finished(run, place, keep, space, ticket)


def finished(
    run: Callable[[], Outcome | Kept], place: Place, keep: bool, space: Space | None, ticket: Ticket | None
) -> Outcome | Kept:
    """Run a partition, whatever happens, and report what became of it."""
    try:
        result = run()
    except BaseException as error:  # SystemExit, say, while a result is pickled: it would end the worker
        outcome = broken(f"the partition at {place.element(0)} could not be finished", error)
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
    return joined(lambda: join(shared, previous, parts, Packed.pack), ticket)


def joined(run: Callable[[], Kept], ticket: Ticket | None) -> Kept:
    """Join partitions, whatever happens, and report what became of it."""
    try:
        result = run()
    except BaseException as error:
        result = Kept(broken("the value folded so far could not be finished", error), None)
    if ticket is not None:
        reports[ticket.key] = ticket.topic, result.outcome
    return result


def join_here(shared: SharedProgram, previous: Kept | None, *parts: Kept) -> Kept:
    """Do as `join_kept` does, in the user's own process."""
    return join(shared, previous, parts, Plain)


def report(result: Kept | Outcome) -> Outcome:
    """Return what there is to know of a result, without the result where it is kept."""
    return result.outcome if isinstance(result, Kept) else result


def elements_of(kept: Kept) -> list[Any]:
    """Return the elements of a kept result: what dask's own engines read of it."""
    return list(kept.content.load()) if kept.content is not None else []


def _run(
    shared: SharedProgram, place: Place, keep: bool, given: Any, budget: float | None, pack: Pack
) -> Outcome | Kept:
    try:
        program = shared.load()
    except BaseException as error:
        outcome = broken("the worker could not load the chain", error)
        return Kept(outcome, None) if keep else outcome
    started = time.perf_counter()
    try:
        elements = as_sequence(given)
    except OSError as error:
        if not isinstance(given, Shared) or keep:
            raise
        # Not the elements' fault: they are sent once more, in the message itself.
        return Outcome(complete=False, unshared=str(error))
    except BaseException as error:
        where = f"the worker could not load the partition at {place.element(0)}"
        outcome = broken(where, error)
        return Kept(outcome, None) if keep else outcome
    chain = Chain(program.steps, program.ledger)
    outcome = run_elements(chain, program, elements, place, budget, pack)
    outcome.seconds = time.perf_counter() - started
    if keep:
        content, outcome.results = outcome.results, None
        return Kept(outcome, content)
    return outcome


def run_elements(
    chain: Chain, program: Program, elements: Sequence[Any], place: Place, budget: float | None, pack: Pack
) -> Outcome:
    """Run the program's chain on elements that are there, and pack what it makes of them."""
    outcome = Outcome()
    results = _drive(chain, program, elements, place, outcome, budget)
    outcome.flows = chain.flows(outcome.read)
    outcome.faults = [(counts.failed, counts.replaced, counts.retries) for counts in chain.counts]
    outcome.failed_elements, outcome.raised = pack_failed(chain.failed_elements), chain.raised
    if outcome.failure is None:
        outcome.failure, outcome.failed_step = chain.failure, chain.failed_step
        outcome.ended_at = chain.ended_at
    packed = _pack_results(results, outcome, chain, place, pack) if program.sink != "count" else None
    if program.fold is not None and program.fold.combine is not None and results and not outcome.failure:
        # A copy, since `combine` may write into its arguments.
        copied = packed if isinstance(packed, Packed) else Packed.pack(results)
        outcome.failure = _check_neutral(program.fold, results[0], copied)
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
    timing = Timing(chain, program.pace)
    position, size, total = 0, 1, len(elements)
    started = clock = time.perf_counter()
    while position < total and chain.failure is None:
        # Without a budget the rest may be one chunk.
        taken, timed = timing.begin(size if budget is not None else total)
        chunk = elements[position : position + taken]
        stream = chain.run(chunk, place.after(position), timed)
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
        timing.end(chain.drawn)
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
    outcome.step_seconds = timing.seconds()
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
            return Failure.of(error, note, _own_frames(func))
        return None


def join(
    shared: SharedProgram, previous: Kept | None, parts: Sequence[Kept], pack: Pack, func: Any = None
) -> Kept:
    """Fold the elements of kept results; with `func` in the place of the fold's own."""
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
        label, func = fold.label, fold.func if func is None else func
    except BaseException as error:
        return Kept(broken("the worker could not load the value folded so far", error), None, taken)
    try:
        for part in parts:
            for element in elements_of(part):
                value = [func(value[0], element)] if value else [element]
                taken += 1
    except BaseException as error:
        note = f"in {label}, at element {taken} of those that reached it: {short_repr(element)}"
        outcome.failure = Failure.of(error, note, _own_frames(func))
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
        return Failure.of(error, note, _own_frames(fold.combine))


def _own_frames(func: Any) -> int:
    """Return how many frames of parcoll's a traceback has before the first of a fold's function."""
    return 1 + isinstance(func, Counting)


def as_sequence(given: Any) -> Sequence[Any]:
    """Return what a partition came as (packed, kept by an earlier task, or a bag's) as a sequence."""
    if isinstance(given, Kept):
        return elements_of(given)
    if isinstance(given, Payload):
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
        skipped = any(counts.failed > counts.replaced for counts in chain.counts)
        if chain.passed or skipped:  # by a filter or a flatmap: results do not stand where their elements do
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


def broken(what: str, error: BaseException) -> Outcome:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        failure = SerializationError(
            f"{_this_worker()} has no package `{package}`, so {what}: install it there, or, if it is pure "
            f'Python, send it with connect(..., ship=["{package}"])'
        )
    else:
        failure = SerializationError(f"{what}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return Outcome(failure=Failure.of(failure, what), complete=True)


def _this_worker() -> str:
    distributed = sys.modules.get("distributed")
    try:
        return f"worker {distributed.get_worker().address}" if distributed is not None else "this process"
    except ValueError:  # not in a task
        return "this process"
