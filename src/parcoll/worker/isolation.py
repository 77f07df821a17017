"""Isolation: partitions that run beside their worker, where an element can be stopped or crash alone.

Programs whose steps have a `timeout` run so, and partitions that lost two workers. A process beside the
worker (`subworker`) loads the partition, runs it in slices and sends the results of each slice.

When that process dies, its marks show at which call of which step. Another process runs the elements of the
slice before that one again, and then the element alone. After a second death at the same call, or at once if
it was a timeout, the call fails with an error instead of the function. So `on_error`, `retries` and
`retry_on` hold for it as for an exception. Then the rest of the partition goes on.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from parcoll.calls.held import UnsentError
from parcoll.chain.failures import FailedPart, late, moved_parts, pack_parts, unpacked
from parcoll.chain.failures import packed as pack_failed
from parcoll.chain.marks import LOADING, NOWHERE, PACKING, RUNNING, SEVERAL, Call, Precedent
from parcoll.chain.place import Place
from parcoll.chain.sinks import Sink
from parcoll.chain.steps import WHOLE, Share
from parcoll.errors import SerializationError, WorkerLostError
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed, Payload, Several
from parcoll.worker.outcome import Kept, Outcome, Ticket, broken, lost, unloadable_chain
from parcoll.worker.process import Died
from parcoll.worker.program import Program, SharedProgram
from parcoll.worker.subworker import Lent, Subworker, pool
from parcoll.worker.subworker_main import JoinParts, LoadPartition, RunSlice, TakeResults
from parcoll.worker.tasks import JOINING, as_sequence, finished
from parcoll.worker.this_worker import memory_left, memory_limit, task_key

RESULT_BYTES = 32 * 2**20  # of results; then elements that have not begun are handed back, if they may be
DEATHS = 2  # at one call, before it fails: the first may have another cause, as a signal from outside
MOST_RESULT = 0.3  # of what a worker may hold: to send a result takes its bytes three times


def run_isolated(
    shared: SharedProgram,
    place: Place,
    keep: bool,
    elements: Payload | Kept | Iterable[Any],
    budget: float | None = None,
    ticket: Ticket | None = None,
    share: Share = WHOLE,
) -> Outcome | Kept:
    """Do as `run_partition` does, beside the worker."""

    def run() -> Outcome:
        with pool.lend() as lent:
            return _Partition(lent, shared, place, budget, share).run(elements)

    return finished(run, f"the partition at {place.element(0)} could not be finished", keep, ticket)


def join_isolated(
    shared: SharedProgram,
    ticket: Ticket | None,
    before: int,
    stays: bool,
    previous: Kept | None,
    *parts: Kept,
) -> Kept:
    """Do as `join_kept` does, beside the worker: from there the value comes packed."""
    work = functools.partial(_join, shared, previous, parts, before)
    return finished(work, JOINING, True, ticket)  # type: ignore[return-value]


def _join(shared: SharedProgram, previous: Kept | None, parts: Sequence[Kept], before: int) -> Kept:
    taken = previous.folded if previous is not None else before
    try:
        fold = shared.load().fold
    except BaseException as error:
        return Kept(unloadable_chain(error), None, taken)
    least_timeout = math.inf if fold.timeout is None else fold.timeout
    deaths = SinkDeaths()
    try:
        previous, parts = previous and previous.packed(), [part.packed() for part in parts]
    except UnsentError as error:
        return Kept(Outcome(failure=error.failure), None, taken)
    with pool.lend(shared.owner) as lent:
        while True:
            try:
                request = JoinParts(shared.beside(), previous, parts, before, task_key())
                kept: Kept = lent.get().ask(request, least_timeout, memory_left())
                if shared.is_unread_beside(kept.outcome):
                    continue
            except Died as death:
                if death.mark.is_apart or deaths.may_be_chance(death):
                    continue
                # If there is no value yet, the first call gets the first two elements.
                empty = previous.content is None if previous is not None else fold.initial is None
                number = taken + death.mark.call.number + empty
                at = f"element {number} of those that reached it"
                kept = Kept(sink_ended(fold, fold.label, at, death), None, taken)
            kept.outcome.deaths = deaths.found.total()
            return kept


class _Partition:
    """One partition under way."""

    def __init__(
        self, lent: Lent, shared: SharedProgram, place: Place, budget: float | None, share: Share
    ) -> None:
        self._lent = lent
        self._share = share
        self._shared = shared
        self._place = place
        self._budget = budget
        self._program: Program = Program(())
        self._least_timeout = math.inf
        self._payload: Payload = Packed(b"")
        self._total = 0
        self._loaded: Subworker | None = None  # the process that has the partition
        self._merged = Outcome()
        self._parts: list[Packed] = []
        self._failed: list[bytes] = []
        self._failed_parts: list[FailedPart] = []
        self._precedents: dict[Call, Precedent] = {}
        self._deaths: Counter[object] = Counter()  # by what the process was doing
        self._ends: Counter[Call] = Counter()  # deaths and timeouts
        self._stopped: defaultdict[int, float] = defaultdict(float)  # seconds of calls, by step
        self._cuts: set[int] = set()  # where a slice has to end
        self._alone = -1  # elements before this are run one by one

    def run(self, given: Any) -> Outcome:
        """Return the outcome with its results."""
        try:
            self._program = self._shared.load()
        except BaseException as error:
            return unloadable_chain(error)
        self._least_timeout = self._program.least_timeout
        self._lent.owner = self._shared.owner
        self._lent.alone = not self._program.stops  # then it is here since it has ended workers
        packed = self._pack(given)
        if isinstance(packed, Outcome):
            return packed
        self._payload = packed
        ended = self._run_slices()
        if ended is None and self._program.sink.whole:
            ended = self._take()
        return ended or self._finish()

    def _pack(self, given: Any) -> Payload | Outcome:
        if isinstance(given, Payload):
            return given
        if isinstance(given, Kept):
            return given.content if given.content is not None else Packed.pack([])
        try:
            return Packed.pack(as_sequence(given))  # a bag's
        except BaseException as error:
            return broken(
                f"the partition at {self._place.element(0)} could not be packed for a process", error
            )

    def _run_slices(self) -> Outcome | None:
        merged, most = self._merged, self._program.sink.limit
        position = 0
        while self._loaded is None or position < self._total:
            if self._loaded is not self._lent.get():
                if (outcome := self._load()) is not None:
                    if not position:
                        return outcome
                    merged.complete = outcome.complete
                    self._merge(outcome)
                    break
                continue
            limit = None if most is None else most - merged.produced
            stop = self._end_of_slice(position)
            try:
                outcome = self._ask(RunSlice(position, stop, limit, self._precedents))
            except Died as death:
                ended = self._blame(death, position)
                if ended is not None:
                    self._merge(ended)
                    break
                continue
            if outcome.nbytes > MOST_RESULT * memory_limit():
                if outcome.read > 1:
                    self._alone = max(self._alone, position + outcome.read)
                    continue
                outcome.failure = self._too_large(outcome, position)
                outcome.results, outcome.produced = None, 0
            self._merge(outcome)
            position += outcome.read
            if outcome.failure is not None or (most is not None and merged.produced >= most):
                break
            if self._budget is not None and position < self._total:
                expected = outcome.seconds * (self._total - position) / max(outcome.read, 1)
                late = merged.seconds > self._budget and expected > self._budget
                if late or merged.nbytes > RESULT_BYTES:
                    merged.complete = False
                    break
        merged.read = position
        return None

    def _too_large(self, outcome: Outcome, position: int) -> Failure:
        whose = f"the result of {self._place.element(position)}"
        error = SerializationError(
            f"{whose} takes {outcome.nbytes >> 20:,} MiB packed, and its worker, which may hold "
            f"{memory_limit() / 2**20:,.0f} MiB, needs several times that to send it: make it smaller, or "
            "raise memory_limit"
        )
        return Failure.of(error, f"in {self._program.steps[-1].label}")

    def _end_of_slice(self, position: int) -> int:
        """Return where the next slice ends at the latest. It ends by itself after long enough."""
        if position < self._alone:
            return position + 1
        return min([self._total, *(cut for cut in self._cuts if cut > position)])

    def _load(self) -> Outcome | None:
        """Have the process on loan load the partition; return an outcome if that cannot be done."""
        subworker = self._lent.get()
        shared = None if subworker.token == self._shared.token else self._shared.beside()
        try:
            found = self._ask(LoadPartition(shared, self._payload, self._place, task_key(), self._share))
        except Died as death:
            self._merged.deaths += death.counts
            if death.mark.is_apart:
                return None
            self._deaths[LOADING] += 1
            if self._deaths[LOADING] < DEATHS:
                return None
            where = f"the partition at {self._place.element(0)}"
            outcome = lost(f"{where} ends the process that loads it: it {death.how}", where)
            outcome.deaths = self._merged.deaths
            return outcome
        if isinstance(found, Outcome):
            return None if self._shared.is_unread_beside(found) else found
        subworker.token, self._total, self._loaded = self._shared.token, found, subworker
        if self._program.waits and not self._program.stops:
            self._alone = self._total
        self._deaths[LOADING], self._share = 0, self._share._replace(fresh=False)  # those in a row count
        return None

    def _ask(self, request: Any) -> Any:
        assert self._lent.current is not None  # not another one, which has not loaded the partition
        return self._lent.current.ask(request, self._least_timeout, memory_left())

    def _blame(self, death: Died, position: int) -> Outcome | None:
        """Decide how to go on after a death; return an outcome if the partition cannot."""
        phase, call, attempt, drawn, _ = death.mark
        if death.timed_out:
            self._merged.timeouts += 1
            self._stopped[call.step] += self._program.steps[call.step].policy.timeout or 0.0
        else:
            self._merged.deaths += death.counts
        if death.mark.is_apart:
            return None
        if call.number == SEVERAL and call.base != NOWHERE and phase == RUNNING:
            if call.base - self._place.base > position:  # first one source element after the other
                self._alone = max(self._alone, call.base - self._place.base + 1)
            else:  # then what was made of one
                self._precedents[call] = Precedent(attempt, None)
            return None
        if self._program.waits and not death.timed_out and self._alone < self._total:
            self._alone = self._total  # any of the calls that were under way may have been it
            return None
        if phase == PACKING or call.base == NOWHERE:
            end = max(drawn - self._place.base, position + 1)
            if end > position + 1:  # one by one, to see which of them it was
                self._alone = max(self._alone, end)
                return None
            self._deaths[phase, position] += 1
            if self._deaths[phase, position] < DEATHS:
                return None
            whose = f"the result of {self._place.element(position)}"
            return lost(f"{whose} ends the process that packs it: it {death.how}", whose)
        step = self._program.steps[call.step]
        at = call.base - self._place.base
        self._cuts |= {at, at + 1}
        self._ends[call] += 1
        self._deaths[call] += not death.timed_out
        if self._ends[call] > step.policy.retries + DEATHS + 1:  # it cannot even be described
            return ended_by(step.label, self._place.element(at), death)
        earlier = self._precedents.get(call)
        error = earlier.error if earlier is not None else None  # describing it may have ended the process
        if death.timed_out:
            error = late(step.label, step.policy.timeout, self._place.element(at))
        elif self._deaths[call] >= DEATHS:
            message = f"{step.label} ends the process that runs it, at {self._place.element(at)}"
            error = WorkerLostError(f"{message}: it {death.how}")
        self._precedents[call] = Precedent(attempt, error)
        return None

    def _take(self) -> Outcome | None:
        """Have the sink take the results of the slices; return an outcome if it cannot."""
        program, merged = self._program, self._merged
        parts, self._parts = self._parts, []
        deaths = SinkDeaths()
        while True:
            if self._loaded is not self._lent.get():
                if (outcome := self._load()) is not None:
                    return outcome
                continue
            try:
                outcome = self._ask(TakeResults(parts, self._place, self._in_place))
            except Died as death:
                merged.deaths += not death.timed_out
                if death.mark.is_apart or deaths.may_be_chance(death):
                    continue
                call = death.mark.call
                function = call.step - len(program.steps)
                label, at = program.sink.name_call(function, call.number, self._place, self._in_place)
                outcome = sink_ended(program.sink, label, at, death)
                merged.timeouts += outcome.timeouts
            self._parts = [outcome.results] if isinstance(outcome.results, Packed) else []
            if merged.step_seconds:
                merged.step_seconds[-1] += sum(outcome.step_seconds)
            merged.seconds += outcome.seconds
            merged.made += outcome.made
            # `produced` stays: all results were made.
            merged.nbytes = outcome.nbytes
            if outcome.failure is not None:  # at a result before the element that ended the chain, if any did
                merged.failure, merged.complete = outcome.failure, True
                merged.failed_step = len(program.steps)
            return None

    @property
    def _in_place(self) -> bool:
        """Whether each result stands where its element does: none was left out, and none made several."""
        skipped = any(failed > replaced for failed, replaced, _ in self._merged.faults)
        return not skipped and not any(step.counts for step in self._program.steps)

    def _merge(self, part: Outcome) -> None:
        merged = self._merged
        if not merged.flows:
            merged.flows, merged.faults = part.flows, part.faults
            merged.step_seconds = part.step_seconds
        elif part.flows:
            merged.flows = [(a + c, b + d) for (a, b), (c, d) in zip(merged.flows, part.flows, strict=True)]
            pairs = zip(merged.faults, part.faults, strict=True)
            merged.faults = [tuple(map(sum, zip(*pair, strict=True))) for pair in pairs]  # type: ignore[misc]
            seconds = zip(merged.step_seconds, part.step_seconds, strict=True)
            merged.step_seconds = list(map(sum, seconds))
        if part.failed_elements:
            self._failed.append(part.failed_elements)
        self._failed_parts += moved_parts(part.failed_parts, merged.produced)
        merged.seconds += part.seconds
        merged.busy_seconds += part.busy_seconds
        merged.produced += part.produced
        merged.nbytes += part.nbytes
        merged.timeouts += part.timeouts
        if isinstance(part.results, Packed) and part.produced:
            self._parts.append(part.results)
        merged.failure, merged.failed_step, merged.raised = part.failure, part.failed_step, part.raised
        merged.ended_at, merged.ended_apart = part.ended_at, part.ended_apart
        merged.made += part.made

    def _finish(self) -> Outcome:
        merged = self._merged
        if not merged.step_seconds:
            merged.step_seconds = [0.0] * (len(self._program.steps) + 1)
        for step, seconds in self._stopped.items():
            merged.step_seconds[step] += seconds
            merged.seconds += seconds
            merged.busy_seconds += seconds  # nobody can tell whether a call that was stopped had waited
        if self._failed:
            merged.failed_elements = pack_failed([one for part in self._failed for one in unpacked(part)])
        merged.failed_parts = pack_parts(self._failed_parts)
        if self._parts:
            merged.results = self._parts[0] if len(self._parts) == 1 else Several(self._parts)
        return merged


def ended_by(label: str, at: str, death: Died) -> Outcome:
    """Return the outcome of work whose process was ended by a call."""
    return lost(f"{label} ends the process that runs it, at {at}: it {death.how}", label)


def sink_ended(sink: Sink, label: str, at: str, death: Died) -> Outcome:
    """Return the outcome of a partition whose sink ended its process with a call, or had to be stopped."""
    if not death.timed_out:
        return ended_by(label, at, death)
    seconds = sink.timeout or 0.0
    failure = Failure.of(late(label, sink.timeout, at), f"in {label}")
    return Outcome(failure=failure, seconds=seconds, step_seconds=[seconds], timeouts=1)


class SinkDeaths:
    """The deaths of processes at the calls of one partition's sink."""

    def __init__(self) -> None:
        self.found: Counter[Call] = Counter()

    def may_be_chance(self, death: Died) -> bool:
        """Count a death; tell whether the sink may be tried again."""
        if death.timed_out:
            return False
        self.found[death.mark.call] += 1
        return self.found[death.mark.call] < DEATHS and self.found.total() < 2 * DEATHS
