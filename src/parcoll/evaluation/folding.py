"""Folding: `reduce` and `fold`. Partitions stay on the workers, and are joined there to one value."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from parcoll.calls.held import Held
from parcoll.chain.sinks import Results, Sink
from parcoll.chain.steps import Step
from parcoll.chain.timing import remember, remembered
from parcoll.checkpoint import values
from parcoll.clock import time
from parcoll.evaluation.engine import Job, Join, Session, Sole
from parcoll.evaluation.run import Run
from parcoll.text import UNSET, function_name, function_words
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats
from parcoll.worker.fold import Fold, is_neutral, packed_initial
from parcoll.worker.outcome import Handle, Kept, Outcome, loaded
from parcoll.worker.program import Program, with_culprit

LOST_VALUE = "has no value: what it had folded was on that cluster"


def reduce(run: Run, func: Callable[[Any, Any], Any], initial: Any) -> Any:
    """Fold the results from left to right on the workers. Only the value comes back."""
    timeout = run.options.policy.timeout
    start = None if initial is UNSET else packed_initial(initial)
    fold = Fold(func, f"reduce({function_name(func)})", start, timeout=timeout)
    with run.watched(fold.label):
        return run.restarting("reduce", LOST_VALUE, lambda: _join(run, Results(), fold, initial, "reduce"))


def fold(
    run: Run,
    func: Callable[[Any, Any], Any],
    initial: Any,
    combine: Callable[[Any, Any], Any] | None,
) -> Any:
    """Fold each partition on the worker that has its results, then combine the values in source order."""
    start = packed_initial(initial)
    label = f"fold({function_name(func)})"
    timeout = run.options.policy.timeout
    sink: Sink = Results()
    if combine is not None and not is_neutral(combine, start):
        # `initial` would count once for each partition: fold all elements one after the other instead.
        joined = Fold(func, label, start, timeout=timeout)
    else:
        alone = combine is None  # then the function joins the values of partitions too
        sink = Fold(func, label, start, combine, timeout, start_once=alone, associative=alone)
        joining = func if combine is None else combine
        of_values = f"{label}, combining with {function_name(joining)}"
        joined = Fold(joining, of_values, timeout=timeout, associative=alone)
    with run.watched(label):
        return run.restarting("fold", LOST_VALUE, lambda: _join(run, sink, joined, initial, "fold"))


def _partitions(run: Run, sink: Sink, joins: _Joins) -> Iterator[tuple[Job, Outcome]]:
    """Give each partition's job, with the handle of what the sink makes of it, and its outcome.

    The results of one that has all elements are in its outcome, and the joins' program may have folded them.
    """
    if run.options.checkpoint is None:
        sole = Sole(lambda: None if isinstance(sink, Fold) else joins.session.shared, joins.renew)
        return run.window(sink, keep=True, sole=sole).outcomes()
    return values.kept(run.saved(*values.saved_as(sink, run.steps), ordered=True), sink, loaded)


def _join(run: Run, sink: Sink, fold: Fold, initial: Any, name: str) -> Any:
    """Evaluate into the sink, keep what it makes of each partition, and fold these values."""
    label = " ".join([run.options.name or "", name, function_words(fold.func)])
    program = Program((), fold, origins=run.origins)
    kind: type[_Joins] = _Tree if isinstance(sink, Fold) else _Chain
    joins = kind(lambda: run.engine.open(program, label, keep=True), program, run.stats)
    try:
        with closing(_partitions(run, sink, joins)) as outcomes:  # type: ignore[type-var]
            while True:
                try:
                    job, outcome = next(outcomes)
                except StopIteration:
                    break
                except Exception:
                    joins.finish()  # an error of `func` on the elements before the source's comes first
                    raise
                joins.isolated = job.sole is not None and job.isolated
                if not outcome.lost and job.handle is not None:
                    joins.add(job.handle, outcome)
                if outcome.failure is not None:
                    joins.finish()
                    raise outcome.failure.rebuild()
            handle = joins.finish()
        payload = None if handle is None else handle.fetch().content
        if isinstance(payload, Held):  # inline: the value comes as it would from a worker
            payload = payload.packed()
    finally:
        joins.session.close()
    if payload is not None:
        return loaded(payload, f"the values of {name}()", 1)[0]
    if initial is UNSET:
        raise TypeError(f"{name}() of empty iterable with no initial value")
    return packed_initial(initial).load()


class _Joining(Step):
    """The function of a fold, as `chain.timing` knows it."""

    kind = "join"


class _Joins:
    """The joins of one evaluation: what has been sent, and what came of it.

    The scheduler remembers all tasks that a value was made of, and their data, so that it can make the value
    again if its worker dies. So the value of `MEMORY` partitions is brought here, and sent on as data.
    """

    MEMORY = 64

    def __init__(self, opened: Callable[[], Session], program: Program, stats: Stats) -> None:
        self.session = opened()
        self._opened = opened
        self._program = program
        self._stats = stats
        self._recorder = Recorder(stats)
        self._under_way = 0
        self._numbers = itertools.count()
        self.isolated = False  # a worker was lost with a task that was to fold, too

    def renew(self) -> None:
        """Go to the cluster that is there now: the one before was lost with nothing that was to be joined."""
        self.session.close()
        self.session = self._opened()

    def add(self, part: Handle, outcome: Outcome) -> None:
        """Take one more kept partition, and what is known of it."""
        raise NotImplementedError

    def _ended_with(self, outcome: Outcome) -> None:
        """Count a join; raise what its function has raised."""
        self._recorder.add_join(outcome)
        if outcome.failure is not None:
            raise with_culprit(self._program, outcome).rebuild()

    def finish(self) -> Handle | None:
        """Join what is left, and return the handle of the last value; None if nothing was joined."""
        raise NotImplementedError

    def _joined(self, job: Join, outcome: Outcome) -> None:
        """Take the value that a join has made."""
        raise NotImplementedError

    def _submit(self, job: Join) -> None:
        job.number, job.isolated = next(self._numbers), self.isolated
        self._under_way += 1
        self.session.submit([job])

    def _settle(self, block: bool, seconds: float = math.inf) -> None:
        """Take in the joins that have ended; with `block`, wait for one if any is under way, or so long.

        Where several have failed, the first in the order of the source raises.
        """
        failed: list[tuple[Join, Outcome]] = []
        while self._under_way:
            for job, outcome in self._ended(block or bool(failed), seconds):
                if outcome.failure is not None:
                    failed.append((job, outcome))
                    continue
                self._recorder.add_join(outcome)
                if not failed:
                    self._joined(job, outcome)
                job.previous, job.parts = None, ()
            if not failed:
                return
        if failed:
            self._ended_with(min(failed, key=lambda found: found[0].before)[1])

    def _settle_all(self) -> None:
        while self._under_way:
            self._settle(block=True)

    def _ended(self, block: bool, seconds: float) -> list[tuple[Join, Outcome]]:
        started = time.perf_counter()
        ended = self.session.completed(block, seconds)
        self._stats.waited.workers += time.perf_counter() - started
        self._under_way -= len(ended)
        for job, _ in ended:
            if job.lost_workers:
                self._recorder.recover(job.lost_workers)
        return [(job, outcome) for job, outcome in ended if isinstance(job, Join)]


class _Chain(_Joins):
    """One join after the other: each takes the value so far and all partitions that are ready by then.

    Up to `WAITING` partitions gather behind the one that is under way; then reading waits. The value stays
    with the worker that has it as an object, and is packed when it is to come here.
    """

    WAITING = 16
    # What takes no longer than this, as it took last, waits for more: a join of its own takes 5 ms.
    QUICK_SECONDS = 0.001

    def __init__(self, opened: Callable[[], Session], program: Program, stats: Stats) -> None:
        super().__init__(opened, program, stats)
        self._steps = (_Joining(program.fold.func),)
        self._pace = remembered(self._steps) or math.inf
        self._elements = 0  # of the partitions that wait
        self._taken = 0  # elements that the value is made of
        self._partitions = 0  # that the scheduler remembers
        self._value: Handle | None = None
        self._held_at = ""  # the worker that has the value as an object, if it is not packed
        self._parts: list[Handle] = []

    def add(self, part: Handle, outcome: Outcome) -> None:
        """Take one more kept partition; of a first one there may be the value already."""
        if outcome.joined is not None:
            self._ended_with(outcome.joined)
            self._value = part
            self._learn(outcome.joined)
            return
        self._parts.append(part)
        self._elements += outcome.produced
        self._settle(block=len(self._parts) >= self.WAITING)
        if len(self._parts) >= self.WAITING or self._elements * self._pace > self.QUICK_SECONDS:
            self._start()

    def finish(self) -> Handle | None:
        """Join what is left."""
        self._settle_all()
        self._start(last=True)
        self._settle_all()
        return self._value

    def _start(self, last: bool = False) -> None:
        if self._under_way or not (self._parts or (last and self._held_at)):
            return
        self._partitions += len(self._parts)
        parts, self._parts, self._elements = self._parts, [], 0
        stays = not last and self._partitions < self.MEMORY
        self._submit(Join(previous=self._value, parts=parts, stays=stays, at=self._held_at))

    def _joined(self, job: Join, outcome: Outcome) -> None:
        self._value, self._held_at = _here(job.handle, outcome), outcome.held_at
        self._learn(outcome)
        if self._partitions >= self.MEMORY and self._value is not None:
            self._partitions = 0
            self._value = Kept(Outcome(), self._value.fetch().content, folded=outcome.produced)

    def _learn(self, outcome: Outcome) -> None:
        """See how long an element takes."""
        if taken := outcome.produced - self._taken:
            self._pace, self._taken = outcome.seconds / taken, outcome.produced
            remember(self._steps, self._pace)


@dataclass(eq=False)
class _Run:
    """The value of a run of neighbouring partitions: made already, or made by a join that is under way."""

    level: int  # of a block `_Tree.BLOCK`, of two blocks more; of less than a block, less
    index: int  # of the block, or of the two, four... blocks, in the order of the source
    before: int  # how many values come before it
    values: int  # how many it is made of
    handle: Handle | None = None  # None until it is made
    held_at: str = ""  # the worker that has the value as an object, if it is not packed
    begun: float = 0.0  # when the join that makes it was submitted


class _Tree(_Joins):
    """Joins of neighbours, several at the same time.

    Values stand in a row for each block of `MEMORY`. The head of a row takes in the values behind it as they
    come, and stays an object on its worker meanwhile. Where that is slow, `WIDTH` values that wait behind it
    become one, on another worker. The value of a whole block comes here. Two blocks are joined to one of
    twice the length, and so on, as digits carry. So a value is packed for each level, and few are held.
    """

    WIDTH = 16  # values that one join takes behind the first
    BLOCK = 2  # the level of a block
    SLOW_SECONDS = 0.1  # that a join of `WIDTH` values may take without being divided
    LATE_SECONDS = 1.0  # that any join may take
    LOOK_SECONDS = 0.25  # until a look at which join is late

    def __init__(self, opened: Callable[[], Session], program: Program, stats: Stats) -> None:
        super().__init__(opened, program, stats)
        self._runs: list[_Run] = []  # in order
        self._made_by: dict[Job, _Run] = {}
        self._values = 0
        self._complete = False  # no more values come
        self._value_seconds = deque([0.0] * 3, 3)  # that each of the last joins took for a value

    def add(self, part: Handle, outcome: Outcome) -> None:
        """Take one more kept partition, if it has a value; of one that failed, what came before counts."""
        if not outcome.nbytes:  # no element reached the fold, and it had no start
            return
        self._runs.append(_Run(0, self._values // self.MEMORY, self._values, 1, part))
        self._values += 1
        self._settle(block=False)
        self._start()
        while True:
            if self._under_way > max(self._stats.threads, 2):
                self._settle(block=True)
            elif self._waiting() >= self.WIDTH:
                self._settle(block=True, seconds=self.LOOK_SECONDS)
            else:
                break
            self._start()

    def finish(self) -> Handle | None:
        """Join what is left, and pack the last value."""
        self._complete = True
        self._start()
        while self._under_way:
            # The join that others wait for may turn out to be slow.
            self._settle(block=True, seconds=self.LOOK_SECONDS if self._waiting() > 1 else math.inf)
            self._start()
        while len(self._runs) > 1:
            self._replace(self._runs[-self.WIDTH :], stays=False)
            self._settle_all()
        return self._runs[0].handle if self._runs else None

    def _waiting(self) -> int:
        """Return how many values of partitions wait to be joined."""
        return sum(run.level == 0 for run in self._runs)

    def _start(self) -> None:
        """Submit the joins that may begin."""
        for _, row in itertools.groupby(list(self._runs), lambda run: (run.level < self.BLOCK, run.index)):
            self._start_row(list(row))
        for one, other in itertools.pairwise(list(self._runs)):
            pair = one.level == other.level >= self.BLOCK and one.index % 2 == 0
            if pair and one.handle is not None and other.handle is not None:
                self._replace([one, other], stays=False)

    def _start_row(self, row: list[_Run]) -> None:
        head = row[0]
        if head.level >= self.BLOCK:
            return
        whole = self._complete or head.index < self._values // self.MEMORY
        ready = list(itertools.takewhile(lambda run: run.handle is not None, row))[: self.WIDTH + 1]
        last = whole and len(ready) == len(row)
        if self._complete and len(ready) > 3 and self._takes_long(len(ready)):
            shares = max(1, min(self._stats.threads, len(ready) // 2))
            size = -(-len(ready) // shares)
            for share in (ready[start : start + size] for start in range(0, len(ready), size)):
                if len(share) > 1:
                    self._replace(share, stays=False)
        elif len(ready) > 1 or (last and head.held_at):
            self._replace(ready, stays=not last)
        elif head.handle is None and self._is_slow(head):
            for is_leaf, group in itertools.groupby(row[1:], lambda run: run.level == 0):
                leaves = list(group)[: self.WIDTH]
                if is_leaf and len(leaves) >= (2 if self._complete else self.WIDTH):
                    self._replace(leaves, stays=False)

    def _takes_long(self, values: int) -> bool:
        return values * self._value_seconds[-1] > self.LATE_SECONDS

    def _is_slow(self, head: _Run) -> bool:
        late = time.monotonic() - head.begun > self.LATE_SECONDS
        return late or min(self._value_seconds) * self.WIDTH > self.SLOW_SECONDS

    def _replace(self, shorter: Sequence[_Run], stays: bool) -> None:
        """Submit the join of these, and put what it makes into their place."""
        first, values = shorter[0], sum(run.values for run in shorter)
        level = first.level + 1 if first.level >= self.BLOCK else 1
        index = first.index if level == 1 else first.index // 2
        if level == 1 and values == self.MEMORY:
            level = self.BLOCK
        made = _Run(level, index, first.before, values, begun=time.monotonic())
        at = self._runs.index(first)
        self._runs[at : at + len(shorter)] = [made]
        parts = [run.handle for run in shorter if run.handle is not None]
        # The value of the first counts as one that was taken.
        job = Join(parts=parts, before=first.before + first.values - 1, stays=stays, at=first.held_at)
        self._made_by[job] = made
        self._submit(job)

    def _joined(self, job: Join, outcome: Outcome) -> None:
        run = self._made_by.pop(job)
        run.handle, run.held_at = _here(job.handle, outcome), outcome.held_at
        self._value_seconds.append(outcome.seconds / len(job.parts))
        assert run.handle is not None
        if run.level >= self.BLOCK:
            run.handle = Kept(Outcome(), run.handle.fetch().content)


def _here(handle: Handle | None, outcome: Outcome) -> Handle | None:
    """Return the value that a join has made: itself if it came along, and is the last or travels quickly."""
    return Kept(Outcome(), outcome.results, outcome.produced) if outcome.results is not None else handle
