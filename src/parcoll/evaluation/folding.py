"""Folding: `reduce` and `fold`. Partitions stay on the workers, and are joined there to one value."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from parcoll.evaluation.engine import Join, Session
from parcoll.evaluation.run import UNSET, Run, loaded
from parcoll.text import function_name, function_words
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Packed
from parcoll.wire.unpicklable import cannot_send
from parcoll.worker.fold import Fold, same
from parcoll.worker.outcome import Handle, Kept, Outcome
from parcoll.worker.program import Program, with_culprit
from parcoll.worker.sinks import Results, Sink

LOST_VALUE = "has no value: what it had folded was on that cluster"


def reduce(run: Run, func: Callable[[Any, Any], Any], initial: Any) -> Any:
    """Fold the results from left to right on the workers. Only the value comes back."""
    timeout = run.options.policy.timeout
    fold = Fold(func, f"reduce({function_name(func)})", _packed_initial(initial), timeout=timeout)
    with run.watched(fold.label):
        return run.restarting("reduce", LOST_VALUE, lambda: _join(run, Results(), fold, initial, "reduce"))


def fold(
    run: Run,
    func: Callable[[Any, Any], Any],
    initial: Any,
    combine: Callable[[Any, Any], Any] | None,
) -> Any:
    """Fold each partition on the worker that has its results, then combine the values in source order."""
    start = _packed_initial(initial)
    label = f"fold({function_name(func)})"
    timeout = run.options.policy.timeout
    sink: Sink = Results()
    if combine is not None and not _is_neutral(combine, start):
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


def _packed_initial(initial: Any) -> Packed | None:
    if initial is UNSET:
        return None
    try:
        return Packed.pack(initial)
    except Exception as error:
        raise cannot_send(initial, "the initial value", error) from error


def _is_neutral(combine: Callable[[Any, Any], Any], start: Packed | None) -> bool:
    """Tell whether partitions may start from `initial` without changing the answer.

    The workers ask again with the values that they get (`Fold.finish`).
    """
    assert start is not None
    try:
        return same(combine(start.load(), start.load()), start.load())
    except Exception:
        return False


def _join(run: Run, sink: Sink, fold: Fold, initial: Any, name: str) -> Any:
    """Evaluate into the sink, keep what it makes of each partition, and fold these values."""
    window = run.window(sink, keep=True)
    label = " ".join([run.options.name or "", name, function_words(fold.func)])
    program = Program((), fold)
    session = run.engine.open(program, label, keep=True)
    joining = _Joining(session, program, run.stats)
    try:
        with closing(window.outcomes()) as outcomes:  # type: ignore[type-var]
            while True:
                try:
                    job, outcome = next(outcomes)
                except StopIteration:
                    break
                except Exception:
                    joining.finish()  # an error of `func` on the elements before the source's comes first
                    raise
                if not outcome.lost and job.handle is not None:
                    joining.add(job.handle)
                if outcome.failure is not None:
                    joining.finish()
                    raise outcome.failure.rebuild()
            handle = joining.finish()
        payload = handle.fetch().content if handle is not None else None
    finally:
        session.close()
    if payload is not None:
        return loaded(payload, f"the value of {name}()")[0]
    if initial is UNSET:
        raise TypeError(f"{name}() of empty iterable with no initial value")
    packed = _packed_initial(initial)
    assert packed is not None
    return packed.load()


class _Joining:
    """The chain of joins. Each join takes the value so far and all partitions that are ready by then.

    One join runs at a time, since each needs the one before. Up to `WAITING` partitions gather behind it;
    then reading waits.

    The scheduler remembers all tasks that the value was made of, and their data, so that it can make the
    value again if its worker dies. So every `MEMORY` partitions the value is brought here and sent on as
    data.
    """

    WAITING = 16
    MEMORY = 64

    def __init__(self, session: Session, program: Program, stats: Stats) -> None:
        self._session = session
        self._program = program
        self._stats = stats
        self._recorder = Recorder(stats)
        self._joined = 0
        self._value: Handle | None = None
        self._parts: list[Handle] = []
        self._busy = False
        self._numbers = itertools.count()

    def add(self, part: Handle) -> None:
        """Take one more kept partition."""
        self._parts.append(part)
        self._settle(block=len(self._parts) >= self.WAITING)
        self._start()

    def finish(self) -> Handle | None:
        """Join what is left, and return the handle of the last value; None if nothing was joined."""
        self._settle(block=True)
        self._start()
        self._settle(block=True)
        return self._value

    def _start(self) -> None:
        if self._parts and not self._busy:
            job = Join(previous=self._value, parts=self._parts, number=next(self._numbers))
            self._joined += len(self._parts)
            self._session.submit([job])
            self._parts, self._busy = [], True

    def _settle(self, block: bool) -> None:
        if not self._busy:
            return
        started = time.perf_counter()
        joined = self._session.completed(block)
        self._stats.waited.workers += time.perf_counter() - started
        for job, outcome in joined:
            self._busy = False
            self._value = job.handle
            self._recorder.add_join(outcome)
            if job.lost_workers:
                self._recorder.recover(job.lost_workers)
            if outcome.failure is not None:
                raise with_culprit(self._program, outcome).rebuild()
            assert isinstance(job, Join)
            job.previous, job.parts = None, ()
            if self._joined >= self.MEMORY and self._value is not None:
                self._joined = 0
                self._value = Kept(Outcome(), self._value.fetch().content, folded=outcome.produced)
