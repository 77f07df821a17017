"""The evaluating calls: a bag read back as a plan, run through the window, and what is made of it."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from parcoll.chain.place import Place
from parcoll.chain.policy import PLAIN, Policy
from parcoll.current import engine_for
from parcoll.errors import ClusterLostError, SerializationError
from parcoll.evaluation.again import once_more
from parcoll.evaluation.engine import Engine, Follower, Job
from parcoll.evaluation.feed import Feed, PartitionFeed, StreamFeed
from parcoll.evaluation.plan import BagPartitions, Node
from parcoll.evaluation.reader import Source
from parcoll.evaluation.sizing import Sizer, sizer_for
from parcoll.evaluation.window import Evaluation, Saver
from parcoll.local.imports import import_whole
from parcoll.watch.around import Watch
from parcoll.watch.stats import Stats, StepStats
from parcoll.wire.payload import Payload
from parcoll.worker.outcome import Outcome
from parcoll.worker.program import Program
from parcoll.worker.sinks import Count, Results, Sink

UNSET: Any = object()


@dataclass(frozen=True)
class Options:
    """The settings a chain was made with."""

    partition_size: int | str = "auto"
    client: Any = None
    name: str | None = None
    ordered: bool = True
    progress: bool | str | None = None
    policy: Policy = PLAIN  # of steps that say nothing else
    checkpoint: str | None = None


@dataclass
class Run:
    """One evaluation being set up: its engine, its plan and where the counts go."""

    node: Node
    options: Options
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self.reads = False  # the source was read
        self._follower = _Follower(self.stats)
        if self.options.checkpoint is None:  # else there may be nothing to run
            # The engine comes first: a local cluster's processes import while this process does.
            self.engine  # noqa: B018
        import_whole("parcoll.evaluation.bag")
        from parcoll.evaluation.bag import bag_of, plan_of

        self.plan = plan_of(bag_of(self.node))
        self.stats.steps[:] = [StepStats(step.title, filters=step.filters) for step in self.plan.steps]
        self.label = self.options.name or "-".join(step.words for step in self.plan.steps)
        steps = [step.label for step in self.plan.steps]
        self.stats.name = self.options.name or ".".join(steps) or "parallel"

    @functools.cached_property
    def engine(self) -> Engine:
        """What evaluates; a local cluster is started when it is first asked for."""
        return engine_for(self.options.client)

    def watched(self, fold: str | None = None) -> Watch:
        """Return the context to evaluate in; `fold` is what takes the results on the workers."""
        self.stats.fold = fold
        if self.options.checkpoint is None:
            self._follower.follow(self.engine)
        return Watch(self.stats, self._follower, self.options.progress)

    def outcomes(self, sink: Sink) -> Iterator[tuple[Job, Outcome]]:
        """Give each partition's outcome: of all that a checkpoint has, and then of what ran."""
        if self.options.checkpoint is None:
            return self.evaluation(sink).outcomes()
        from parcoll.evaluation import resuming

        assert isinstance(self.plan.origin, Source)

        def rest(reader: Any, saver: Saver) -> Iterator[tuple[Job, Outcome]]:
            self._follower.follow(self.engine)
            self._reader = reader
            return self.evaluation(Results(sink.limit), saver=saver).outcomes()

        steps = self.plan.steps
        return resuming.outcomes(self.options.checkpoint, self.plan.origin, steps, self.stats, rest)

    def evaluation(self, sink: Sink, *, keep: bool = False, saver: Saver | None = None) -> Evaluation:
        """Return the window over this run's partitions, whose elements the sink takes."""
        self.limit = sink.limit
        ordered = self.options.ordered and sink.in_order
        self.sizer: Sizer = sizer_for(self.options.partition_size, sink.limit, lasting=keep)
        self.lasting = keep
        return Evaluation(
            self.engine,
            Program(self.plan.steps, sink),
            self._feed,
            self.sizer,
            self.stats,
            label=self.label,
            ordered=ordered or keep,
            keep=keep,
            saver=saver,
        )

    def _feed(self) -> Feed:
        from parcoll.evaluation.bag import bag_partitions

        origin = self.plan.origin
        self.reads = True
        if isinstance(origin, Source):
            pack = functools.partial(self.engine.pack, lasting=self.lasting)
            if self.options.checkpoint is not None:
                from parcoll.evaluation.resuming import ResumingFeed

                settings = (self.sizer, pack, self.engine.memory_limit)
                return ResumingFeed(self._reader, self.plan.steps, self.limit, *settings)
            return StreamFeed(origin.open(), self.sizer, pack, self.engine.memory_limit)
        renewed = None
        if isinstance(origin, BagPartitions):
            if origin.share_tasks:
                bag = origin.bag

                def persisted(jobs: list[Job]) -> BagPartitions:
                    found = bag_partitions(self.engine.persist(bag))
                    for job, graph in zip(jobs, found.graphs, strict=True):
                        job.graph = graph
                    return found

                renewed = persisted
            jobs = [Job(graph=graph) for graph in origin.graphs]
        else:
            jobs = [Job(reference=reference) for reference in origin.references]
        for number, job in enumerate(jobs):
            job.order, job.place = number, Place(0, number)
        if renewed is not None:
            origin = renewed(jobs)
        return PartitionFeed(jobs, origin, renewed)

    def spent(self) -> object | None:
        """Return the source where it was read, and gives its elements only once."""
        origin = self.plan.origin
        return origin if self.reads and isinstance(origin, Source) and origin.one_pass else None


class _Follower:
    """Whoever tells others of an evaluation, once there is an engine."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._follower: Follower | None = None

    def follow(self, engine: Engine) -> None:
        self._follower = engine.follow(self._stats)

    def end(self) -> None:
        if self._follower is not None:
            self._follower.end()


class ResultIterator(itertools.chain[Any]):
    """The results one by one, as from a generator, at a quarter of its cost (10 ns each)."""

    _parts: Generator[list[Any], None, None]

    @classmethod
    def of(cls, parts: Generator[list[Any], None, None]) -> ResultIterator:
        """Chain the parts, each of which is asked for when those before it are taken."""
        results: ResultIterator = cls.from_iterable(_OneAtATime(parts))  # type: ignore[assignment]
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


def iterate(start: Callable[[], Run], limit: int | None = None) -> ResultIterator:
    """Give the results one by one; starts the run when the first is asked for."""
    return ResultIterator.of(_parts(start, limit))


def _parts(start: Callable[[], Run], limit: int | None) -> Generator[list[Any], None, None]:
    yielded = 0
    try:
        run = start()
        with run.watched(), closing(run.outcomes(Results(limit))) as outcomes:  # type: ignore[type-var]
            for job, outcome in outcomes:
                results = _results(job, outcome)
                yielded += len(results)
                yield results
                if outcome.failure is not None:
                    raise outcome.failure.rebuild()
    except ClusterLostError as error:
        if limit is None:
            error.tell(f"{yielded:,} element{'s' * (yielded != 1)} had been yielded", yielded)
        else:
            error.tell(f"{yielded:,} of the first {limit:,} had come, and take() gives all or none")
        raise


def _results(job: Job, outcome: Outcome) -> list[Any]:
    if outcome.results is None:
        return []
    return loaded(outcome.results, f"the results of the partition at {job.place.element(0)}")


def loaded(payload: Payload, what: str) -> list[Any]:
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
    try:
        with run.watched(), closing(run.outcomes(Count())) as outcomes:  # type: ignore[type-var]
            for _, outcome in outcomes:
                if outcome.failure is not None:
                    raise outcome.failure.rebuild()
                total += outcome.produced
    except ClusterLostError as error:
        error.tell(f"count() had come to {total:,}")
        raise
    return total


def keep_results(run: Run) -> list[Any]:
    """Run everything, and return references to the results, which stay where they were made."""
    with run.watched():
        return once_more(run, "foreach", "kept nothing: its results were on that cluster", lambda: _keep(run))


def _keep(run: Run) -> list[Any]:
    references = []
    with closing(run.evaluation(Results(), keep=True).outcomes()) as outcomes:  # type: ignore[type-var]
        for job, outcome in outcomes:
            if outcome.failure is not None:
                raise outcome.failure.rebuild()
            references.append(job.handle)
    return references
