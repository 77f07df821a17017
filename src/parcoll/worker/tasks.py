"""Tasks: the functions that run on the workers, one call for each dask task. They never raise."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from parcoll.calls.held import UsedError
from parcoll.chain import apart
from parcoll.chain.failures import packed, stands_between
from parcoll.chain.loop import Chain
from parcoll.chain.place import Place
from parcoll.chain.sinks import Pack, Sink
from parcoll.chain.steps import WHOLE, Share, within
from parcoll.chain.tally import Tally
from parcoll.chain.timing import Timing
from parcoll.system import alarm_is_set, begin_busy, busy_lately, unset_alarm, without_collections
from parcoll.wire.payload import Packed, Payload, Space
from parcoll.wire.script import running
from parcoll.worker.fold import join
from parcoll.worker.outcome import (
    Home,
    Kept,
    Outcome,
    Ticket,
    UnderWay,
    broken,
    elements_of,
    events_of,
    given_up,
    kept_of,
    mailbox,
    report,
    run_again_after,
    under_way,
    unloadable_chain,
    unloadable_partition,
)
from parcoll.worker.program import Program, SharedProgram
from parcoll.worker.this_worker import Room
from parcoll.world.records import collecting
from parcoll.world.world import borrowed, in_own_context

SLICED = (list, tuple, range, str, bytes)  # exact types: a subclass may iterate as it likes

# The clock is read between chunks of elements, since between elements it would cost 60 ns each. Chunks double
# as long as they take less than this, so the budget is overrun by about as much.
CHUNK_SECONDS = 0.01
MAX_CHUNK = 2048  # elements: slow ones may follow cheap ones; a chunk costs 10 µs


def run_partition(
    shared: SharedProgram,
    place: Place,
    keep: bool,
    elements: Payload | Kept | Iterable[Any],
    budget: float | None = None,
    space: Space | None = None,
    ticket: Ticket | None = None,
    share: Share = WHOLE,
    joining: SharedProgram | None = None,
) -> Outcome | Kept:
    """Run the program on one partition. With `keep` the results stay in the worker.

    After `budget` seconds, the elements that have not begun are handed back, unless as much time again should
    be enough for them. Large results go into `space`. With a `ticket` the outcome is left in the mailbox too.
    Steps that make several calls at the same time make so many as the `share` says. If there is a program
    that is `joining`, it folds the results, and only their value goes back.
    """
    pack = space.pack if space is not None else Packed.pack
    what = f"the partition at {place.element(0)} could not be finished"
    watched = ticket if not keep else None
    of_run = pack if joining is None else Packed.pack
    work = functools.partial(run, shared, place, elements, budget, of_run, watched, share)
    if joining is not None:
        work = functools.partial(joined, work, joining, pack)
    return finished(work, what, keep, ticket, space)


def join_kept(
    shared: SharedProgram,
    ticket: Ticket | None,
    before: int,
    stays: bool,
    previous: Kept | None,
    *parts: Kept,
) -> Kept:
    """Fold the elements of `parts`, in order, into the value that `previous` holds, if there is one.

    If the value `stays`, it is packed only where it travels all the same.
    """
    home = Home.of(ticket) if stays else None
    work = functools.partial(join_here, shared, previous, parts, before, home=home)
    return finished(work, JOINING, True, ticket)  # type: ignore[return-value]


def joined(work: Callable[[], Outcome], joining: SharedProgram, pack: Pack) -> Outcome:
    """Run a partition that is all there is, and have the value of its results take their place."""
    outcome = work()
    if outcome.results is not None:
        value = join_here(joining, None, [kept_of(outcome)], 0, pack)
        outcome.joined, outcome.results, value.outcome.results = value.outcome, value.content, None
        outcome.nbytes = 0 if value.content is None else value.content.nbytes
    return outcome


def with_buffers(func: Callable[..., Any], count: int, shared: SharedProgram, *arguments: Any) -> Any:
    """Call one of these functions with a program of which the first `count` arguments are large buffers."""
    return func(shared.whole(arguments[:count]), *arguments[count:])


JOINING = "the value folded so far could not be finished"


def finished(
    work: Callable[[], Outcome | Kept],
    what: str,
    keep: bool,
    ticket: Ticket | None,
    space: Space | None = None,
) -> Outcome | Kept:
    """Do a task's work and return its result, or an outcome that describes what went wrong.

    `what` begins the message if the work raises outside of the user's functions.
    """
    used: UsedError | None = None
    if ticket is not None:
        under_way[ticket.key] = UnderWay(ticket)
    with collecting(events_of(ticket)) as collected, borrowed():
        try:
            result = work()
        except UsedError as error:
            used = error
        except BaseException as error:  # SystemExit, say, while a result is pickled: it would end the worker
            result = broken(what, error)
    if used is not None:
        run_again_after(used, ticket)
    if keep and isinstance(result, Outcome):
        result = kept_of(result)
    outcome = report(result)
    outcome.records = collected.remaining()
    if space is not None and space.failure is not None:
        outcome.unshared = space.failure
    if ticket is not None:
        under_way.pop(ticket.key, None)
        given_up.discard(ticket.key)
        if ticket.topic is not None:
            mailbox[ticket.key] = ticket.topic, outcome
    return result


def join_here(
    shared: SharedProgram,
    previous: Kept | None,
    parts: Sequence[Kept],
    before: int,
    pack: Pack = Packed.pack,
    home: Home | None = None,
) -> Kept:
    """Join partitions in this process."""
    try:
        fold = shared.load().fold
    except BaseException as error:
        return Kept(unloadable_chain(error), None, previous.folded if previous is not None else 0)
    with running(shared.main):
        return in_own_context(join, fold, previous, parts, before, _within(shared, pack), home)  # type: ignore[no-any-return]


def _within(shared: SharedProgram, pack: Pack) -> Pack:
    """Return `pack` for any thread: what it packs belongs to the program's script."""

    def packs(value: Any) -> Payload:
        with running(shared.main):
            return pack(value)

    return packs


def run(
    shared: SharedProgram,
    place: Place,
    given: Any,
    budget: float | None,
    pack: Pack,
    ticket: Ticket | None = None,
    share: Share = WHOLE,
) -> Outcome:
    """Load the program and the partition, and run one on the other, in this process.

    With a `ticket`, another thread may take away what has not been begun, or all of it.
    """
    try:
        program = shared.load()
    except BaseException as error:
        return unloadable_chain(error)
    started = apart.clock()
    with running(shared.main):
        try:
            elements = as_sequence(given)
        except BaseException as error:
            return unloadable_partition(place.element(0), given, error)
        tally = Tally(program.steps, program.ledger)
        if ticket is not None:
            watched = under_way[ticket.key]
            watched.running = tally
            if ticket.key in given_up:
                tally.abandon()
            if budget is not None:
                watched.base, watched.end, watched.tally = place.base, place.base + len(elements), tally
        chain = Chain(within(program.steps, share), tally)
        outcome = run_elements(chain, program, elements, place, budget, pack)
    if tally.abandoned:  # should anybody wait for it after all, all elements go back
        return Outcome(complete=False)
    outcome.seconds = apart.clock() - started
    outcome.made = apart.taken()
    return outcome


def run_elements(
    chain: Chain, program: Program, elements: Sequence[Any], place: Place, budget: float | None, pack: Pack
) -> Outcome:
    """Run the program's chain on elements that are loaded, and finish with its sink."""
    return in_own_context(_run_elements, chain, program, elements, place, budget, pack)  # type: ignore[no-any-return]


def _run_elements(
    chain: Chain, program: Program, elements: Sequence[Any], place: Place, budget: float | None, pack: Pack
) -> Outcome:
    outcome, tally = Outcome(), chain.tally
    begin_busy()
    sink = program.sink.begin(tally, place)
    run_all = _run_in_one if chain.holds else _run_in_chunks
    alarmed = alarm_is_set()  # by a function that waits for this one
    run_all(chain, program, sink, elements, place, outcome, budget)
    if not alarmed:  # one that a function has left is not to come while others run
        unset_alarm()
    outcome.flows = tally.flows(outcome.read)
    outcome.faults = tally.faults()
    outcome.failed_elements, outcome.raised = packed(tally.failed_elements), tally.raised
    outcome.failure, outcome.failed_step, outcome.ended_at = tally.failure, tally.failed_step, tally.ended_at
    outcome.ended_apart = tally.ended_apart
    outcome.timeouts = tally.timeouts
    if sink.failure is None:
        try:
            outcome.results = sink.finish(pack)
        except BaseException as error:
            sink.fails(error)
    if outcome.results is not None:
        outcome.nbytes = outcome.results.nbytes
    outcome.failed_parts = sink.failed_parts()
    outcome.produced = sink.taken
    outcome.busy_seconds = busy_lately()
    if sink.failure is not None:  # at a result before the element that ended the chain
        outcome.failure, outcome.failed_step = sink.failure, len(program.steps)
    return outcome


def _run_in_chunks(
    chain: Chain,
    program: Program,
    sink: Sink,
    elements: Sequence[Any],
    place: Place,
    outcome: Outcome,
    budget: float | None,
) -> None:
    """Run the chain over the elements, chunk by chunk, until elements, sink or budget end."""
    tally, timing = chain.tally, Timing(chain, program.pace)
    position, size, total = 0, 1, len(elements)
    together = sink.takes_together and chain.gathers
    most = MAX_CHUNK if together else total  # without a budget the rest may be one chunk
    room = Room() if budget is not None and total > 1 else None
    started = clock = apart.clock()
    while position < total and not (tally.cut or _ended(chain, sink)):
        taken, timed = timing.begin(1 if sink.alone else size if budget is not None else most)
        chunk, at = elements[position : position + taken], place.after(position)
        if together and not timed:
            _take(sink, sink.take_together, chain.run_together(chunk, at))
        else:
            _take(sink, sink.take, chain.run(chunk, at, timed))
        chain.close()
        position += tally.drawn
        timing.end(tally.drawn)
        sink.ran(tally.drawn)
        if budget is not None:
            now = apart.clock()
            # The rest is finished here if, at the pace of the last chunk, it should take no longer than the
            # budget: to hand it back costs as much as 10 ms of work.
            if now - started > budget and (now - clock) * (total - position) > budget * tally.drawn:
                break
            if room is not None and room.is_full():
                break
            size = min(size * 2, MAX_CHUNK) if now - clock < CHUNK_SECONDS else max(size // 2, 1)
            clock = now
    outcome.read = position
    outcome.step_seconds = timing.seconds()
    outcome.complete = position >= total or _ended(chain, sink)


def _run_in_one(
    chain: Chain,
    program: Program,
    sink: Sink,
    elements: Sequence[Any],
    place: Place,
    outcome: Outcome,
    budget: float | None,
) -> None:
    """Run a chain that holds elements, in a single run.

    The end of a run is where such a chain lets go of the elements that it holds.
    """

    def draw(iterator: Iterator[Any]) -> Iterator[Any]:
        return iterator if budget is None else _WithinBudget(iterator, len(elements), budget)

    _take(sink, sink.take, chain.run(elements, place, timed=True, draw=draw))
    chain.close()
    outcome.read = chain.tally.drawn
    outcome.step_seconds = chain.seconds
    outcome.complete = outcome.read >= len(elements) or _ended(chain, sink)


class _WithinBudget:
    """The elements of a partition as long as there is time for them. Then they end."""

    def __init__(self, iterator: Iterator[Any], total: int, budget: float) -> None:
        self._iterator = iterator
        self._total = total
        self._budget = budget
        self._drawn = 0
        self._started = apart.clock()

    def __iter__(self) -> _WithinBudget:
        return self

    def __next__(self) -> Any:
        spent = apart.clock() - self._started
        if spent > self._budget and spent * (self._total - self._drawn) > self._budget * self._drawn:
            raise StopIteration
        element = next(self._iterator)
        self._drawn += 1
        return element

    def __length_hint__(self) -> int:
        return self._total - self._drawn


class Awaited(NamedTuple):
    """Stands for an argument that another task makes."""

    position: int


class Body:
    """A function and its arguments, as one value; some of them other tasks make."""

    __slots__ = ("arguments", "func")

    def __init__(self, func: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.func = func
        self.arguments = arguments

    def __call__(self, *values: Any) -> Any:
        """Call the function with these values in the places of those awaited."""
        return self.func(*(values[a.position] if type(a) is Awaited else a for a in self.arguments))

    def __reduce__(self) -> tuple[Any, ...]:
        return Body, (self.func, self.arguments)


def _take(sink: Sink, take: Callable[[Iterator[Any]], None], stream: Iterator[Any]) -> None:
    try:
        take(stream)
    except BaseException as error:
        sink.fails(error)


def _ended(chain: Chain, sink: Sink) -> bool:
    return chain.tally.failure is not None or sink.failure is not None or sink.full


def as_sequence(given: Any) -> Sequence[Any]:
    """Return what a partition came as (packed, kept by an earlier task, or a bag's) as a sequence."""
    if isinstance(given, Kept):
        return elements_of(given)
    if isinstance(given, Payload):
        with without_collections():
            given = given.load()
    numpy = sys.modules.get("numpy")
    sliced = type(given) in SLICED or (numpy is not None and type(given) is numpy.ndarray)
    return given if sliced else list(given)


stands_between(run.__code__.co_filename)
