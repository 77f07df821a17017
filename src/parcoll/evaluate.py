"""The evaluating calls: a bag read back as a plan, run through the window, and what is made of it."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from parcoll.engine.base import Engine, Job, Session
from parcoll.engine.choose import engine_for
from parcoll.equality import same
from parcoll.errors import SerializationError
from parcoll.outcome import Kept, Outcome
from parcoll.pickling import Packed, Payload, cannot_send
from parcoll.place import Place
from parcoll.program import Fold, Program, Sink
from parcoll.run import Evaluation, Feed, PartitionFeed, StreamFeed
from parcoll.sizing import Sizer, sizer_for
from parcoll.source import Source
from parcoll.stats import Stats, StepStats
from parcoll.text import function_name

UNSET: Any = object()


@dataclass(frozen=True)
class Options:
    """The settings a chain was made with."""

    partition_size: int | str = "auto"
    client: Any = None
    name: str | None = None
    ordered: bool = True


@dataclass
class Run:
    """One evaluation being set up: its engine, its plan and where the counts go."""

    make_bag: Callable[[], Any]
    options: Options
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        # The engine comes first: a local cluster's processes import while this process does.
        self.engine: Engine = engine_for(self.options.client)
        from parcoll.graph import plan_of

        self.plan = plan_of(self.make_bag())
        self.stats.steps[:] = [StepStats(step.label) for step in self.plan.steps]
        self.label = self.options.name or "-".join(step.label for step in self.plan.steps)

    def evaluation(self, keep: bool = False, sink: Sink = "results", **program: Any) -> Evaluation:
        """Return the window over this run's partitions."""
        ordered = self.options.ordered and sink != "count"
        self.sizer: Sizer = sizer_for(self.options.partition_size, program.get("limit"), lasting=keep)
        self.lasting = keep
        return Evaluation(
            self.engine,
            Program(self.plan.steps, sink=sink, **program),
            self._feed,
            self.sizer,
            self.stats,
            label=self.label,
            ordered=ordered or keep,
            keep=keep,
        )

    def _feed(self) -> Feed:
        from parcoll.graph import BagPartitions, bag_partitions

        origin = self.plan.origin
        if isinstance(origin, Source):
            pack = functools.partial(self.engine.pack, lasting=self.lasting)
            return StreamFeed(origin.open(), self.sizer, pack)
        if isinstance(origin, BagPartitions):
            if origin.share_tasks:
                origin = bag_partitions(self.engine.persist(origin.bag))
            jobs = [Job(graph=graph) for graph in origin.graphs]
        else:
            jobs = [Job(reference=reference) for reference in origin.references]
        for number, job in enumerate(jobs):
            job.order, job.place = number, Place(0, number)
        return PartitionFeed(jobs, origin)


class Results(itertools.chain[Any]):
    """The results one by one, as from a generator, at a quarter of its cost (10 ns each)."""

    _parts: Generator[list[Any], None, None]

    @classmethod
    def of(cls, parts: Generator[list[Any], None, None]) -> Results:
        """Chain the parts, each of which is asked for when those before it are taken."""
        results: Results = cls.from_iterable(_OneAtATime(parts))  # type: ignore[assignment]
        results._parts = parts
        return results

    def close(self) -> None:
        """End the evaluation: no more results come."""
        self._parts.close()
        deque(self, maxlen=0)  # what is left of the part that was begun


class _OneAtATime:
    """An iterator that several threads may share: chain ends for good when its source raises.

    A generator that one thread is in raises in another.
    """

    def __init__(self, parts: Generator[list[Any], None, None]) -> None:
        self._parts = parts
        self._lock = threading.Lock()

    def __iter__(self) -> _OneAtATime:
        return self

    def __next__(self) -> list[Any]:
        with self._lock:
            return next(self._parts)


def iterate(start: Callable[[], Run], limit: int | None = None) -> Results:
    """Give the results one by one; starts the run when the first is asked for."""
    return Results.of(_parts(start, limit))


def _parts(start: Callable[[], Run], limit: int | None) -> Generator[list[Any], None, None]:
    run = start()
    with closing(run.evaluation(limit=limit).outcomes()) as outcomes:  # type: ignore[type-var]
        for job, outcome in outcomes:
            yield _results(job, outcome)
            if outcome.failure is not None:
                raise outcome.failure.rebuild()


def _results(job: Job, outcome: Outcome) -> list[Any]:
    if outcome.results is None:
        return []
    return _load(outcome.results, f"the results of the partition at {job.place.element(0)}")


def _load(payload: Payload, what: str) -> list[Any]:
    try:
        values: list[Any] = payload.load()
    except Exception as error:
        raise SerializationError(
            f"{what} came back from the worker but cannot be unpickled here: {type(error).__name__}: {error}"
        ) from error
    return values


def count(run: Run) -> int:
    """Return how many results there are; none of them travels."""
    total = 0
    with closing(run.evaluation(sink="count").outcomes()) as outcomes:  # type: ignore[type-var]
        for _, outcome in outcomes:
            if outcome.failure is not None:
                raise outcome.failure.rebuild()
            total += outcome.produced
    return total


def keep_results(run: Run) -> list[Any]:
    """Run everything, and return references to the results, which stay where they were made."""
    references = []
    with closing(run.evaluation(keep=True).outcomes()) as outcomes:  # type: ignore[type-var]
        for job, outcome in outcomes:
            if outcome.failure is not None:
                raise outcome.failure.rebuild()
            references.append(job.handle)
    return references


def reduce(run: Run, func: Callable[[Any, Any], Any], initial: Any) -> Any:
    """Fold the results from left to right on the workers; only the value comes back."""
    fold = Fold(func, f"reduce({function_name(func)})", _packed_initial(initial))
    return _join(run, run.evaluation(keep=True), fold, initial, "reduce")


def fold(
    run: Run,
    func: Callable[[Any, Any], Any],
    initial: Any,
    combine: Callable[[Any, Any], Any] | None,
) -> Any:
    """Fold each partition where its results are, then combine the values in source order."""
    start = _packed_initial(initial)
    label = f"fold({function_name(func)})"
    if combine is not None and not _is_neutral(combine, start):
        # Partitions cannot start from a value that counts each time: one exact fold instead.
        return _join(run, run.evaluation(keep=True), Fold(func, label, start), initial, "fold")
    parts = run.evaluation(
        keep=True, sink="fold", fold=Fold(func, label, start, combine), start_once=combine is None
    )
    joined = Fold(
        combine or func,
        f"{label}, combining with {function_name(combine or func)}",
    )
    return _join(run, parts, joined, initial, "fold")


def _packed_initial(initial: Any) -> Packed | None:
    if initial is UNSET:
        return None
    try:
        return Packed.pack(initial)
    except Exception as error:
        raise cannot_send(initial, "the initial value", error) from error


def _is_neutral(combine: Callable[[Any, Any], Any], start: Packed | None) -> bool:
    """Tell whether `initial` may stand at the start of each partition without changing the answer.

    The workers ask again with the values they get (`tasks._check_neutral`).
    """
    assert start is not None
    try:
        return same(combine(start.load(), start.load()), start.load())
    except Exception:
        return False


def _join(run: Run, evaluation: Evaluation, fold: Fold, initial: Any, name: str) -> Any:
    session = run.engine.open(Program((), fold=fold), name, keep=True)
    joining = _Joining(session, run.stats, run.engine.fetch)
    try:
        with closing(evaluation.outcomes()) as outcomes:  # type: ignore[type-var]
            while True:
                try:
                    job, outcome = next(outcomes)
                except StopIteration:
                    break
                except Exception:
                    joining.finish()  # an error of `func` on the elements before the source's comes first
                    raise
                if not outcome.lost:
                    joining.add(job.handle)
                if outcome.failure is not None:
                    joining.finish()
                    raise outcome.failure.rebuild()
            handle = joining.finish()
        payload = run.engine.fetch(handle) if handle is not None else None
    finally:
        session.close()
    if payload is not None:
        return _load(payload, f"the value of {name}()")[0]
    if initial is UNSET:
        raise TypeError(f"{name}() of empty iterable with no initial value")
    packed = _packed_initial(initial)
    assert packed is not None
    return packed.load()


class _Joining:
    """The chain of joins: each takes the value so far and all the partitions ready by then.

    One join runs at a time, since each needs the one before; up to `WAITING` partitions gather
    behind it, and then the reading waits.

    The scheduler remembers all tasks, and their data, that the value was made of, to make it again
    if its worker dies. So every `MEMORY` partitions the value is brought here and sent on as data.
    """

    WAITING = 16
    MEMORY = 64

    def __init__(self, session: Session, stats: Stats, fetch: Callable[[Any], Payload | None]) -> None:
        self._session = session
        self._stats = stats
        self._fetch = fetch
        self._joined = 0
        self._value: Any = None
        self._parts: list[Any] = []
        self._busy = False
        self._numbers = itertools.count()

    def add(self, part: Any) -> None:
        """Take one more kept partition."""
        self._parts.append(part)
        self._settle(block=len(self._parts) >= self.WAITING)
        self._start()

    def finish(self) -> Any:
        """Join what is left and return the last value's handle, None where nothing was joined."""
        self._settle(block=True)
        self._start()
        self._settle(block=True)
        return self._value

    def _start(self) -> None:
        if self._parts and not self._busy:
            job = Job("join", parts=[self._value, *self._parts], order=next(self._numbers))
            self._joined += len(self._parts)
            self._session.submit([job])
            self._parts, self._busy = [], True

    def _settle(self, block: bool) -> None:
        if not self._busy:
            return
        for job, outcome in self._session.completed(block):
            self._busy = False
            self._value = job.handle
            if outcome.failure is not None:
                self._stats.failed += 1
                raise outcome.failure.rebuild()
            job.parts = ()
            if self._joined >= self.MEMORY:
                self._joined = 0
                self._value = Kept(Outcome(), self._fetch(self._value), folded=outcome.produced)
