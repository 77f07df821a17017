"""Run: one evaluating call. It reads the bag back as a plan, and runs the plan through a window into a sink.

The functions below it are the calls themselves that give results: all, one by one, or the first ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from parcoll.calls import looping
from parcoll.calls.broadcasts import Broadcast, broadcast, too_large
from parcoll.chain.place import Place
from parcoll.chain.sinks import Results, Sink, saving
from parcoll.chain.steps import Origins, Step
from parcoll.chain.timing import remembered, remembered_of_few
from parcoll.clock import time
from parcoll.errors import CheckpointError, ClusterLostError, logger
from parcoll.evaluation.engine import Engine, Job, Losses, Sizer, Sole
from parcoll.evaluation.feed import Feed, StreamFeed, partitions_of
from parcoll.evaluation.plan import Derived, Node, Read
from parcoll.evaluation.plan import Options as Options
from parcoll.evaluation.reader import DerivedReader, Reader
from parcoll.evaluation.sizing import sizer_for
from parcoll.evaluation.source import Source
from parcoll.evaluation.window import Window
from parcoll.keys.exchange import Around
from parcoll.keys.gathering import Gathering
from parcoll.keys.pieces import Listed
from parcoll.keys.store import Scratch
from parcoll.keys.streams import Done
from parcoll.local.imports import import_whole
from parcoll.watch.around import Watch
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats, StepStats
from parcoll.wire import script
from parcoll.wire.payload import Plain
from parcoll.worker.outcome import Outcome, loaded
from parcoll.worker.program import Program

if TYPE_CHECKING:
    from parcoll.evaluation.resuming import SavedReader, Saver

T = TypeVar("T")
TABLE = 0.25  # of what a worker may hold, at most, is a table of another chain
MOST_AT_ONCE = 2048  # elements that are made of other chains and go through no step


class Run:
    """One evaluation: its engine, its plan, and the numbers that it fills."""

    unopened = False  # its elements go out to workers again
    is_last = False  # what its only step makes of what an operation gives comes here
    listed: list[Any] | None = None  # has the elements that were read, of which workers send positions
    _reader: Reader | None = None  # of the source, if that was opened before the window

    def __init__(self, node: Node, options: Options, choose: Callable[[], Engine], stats: Stats) -> None:
        """`choose` returns the engine; its first call may start a local cluster."""
        self.options, self.stats = options, stats
        self._choose = choose
        self._losses = Losses()
        script.name_as_main()
        self._reads = False  # the source has been read
        self._watch = Watch(stats, options.progress)
        if options.checkpoint is None:  # with one there may be nothing to run
            # The engine comes first: a local cluster's processes import while this process does.
            self.engine  # noqa: B018
        import_whole("parcoll.evaluation.bag")
        from parcoll.evaluation.bag import bag_of, plan_of  # lazy: dask.bag

        self.plan = plan_of(bag_of(node))
        steps, origin = self.plan.steps, self.plan.origin
        before, calls = (origin.labels(), origin.calls()) if isinstance(origin, Derived) else ([], [])
        stats.steps[:] = [StepStats(title, filters=filters, waits=waits) for title, filters, waits in before]
        stats.steps += [StepStats(step.title, filters=step.filters, waits=step.waits) for step in steps]
        stats._first = len(before)
        calls += [step.label for step in steps if not step.is_phase]
        stats.name = options.name or ".".join(calls) or "parallel"
        self.words = options.name or "-".join(step.words for step in steps)

    @functools.cached_property
    def engine(self) -> Engine:
        """What evaluates."""
        return self._choose()

    def watched(self, fold: str | None = None) -> Watch:
        """Return the context to evaluate in; `fold` is what takes the results on the workers."""
        self.stats.fold = fold
        if self.options.checkpoint is None:
            self._watch.follower = self.engine.follow(self.stats)
        return self._watch

    def outcomes(self, sink: Sink) -> Iterator[tuple[Job, Outcome]]:
        """Give each partition's outcome: first those that a checkpoint has, then those that ran."""
        if self.options.checkpoint is None:
            origin = self.plan.origin
            if isinstance(origin, Derived) and self.gives_elements and sink.resumes:
                return self._given(self._opened(origin, here=True), sink.limit)
            if len(self.plan.steps) == 1 and isinstance(origin, Derived) and isinstance(sink, Results):
                self.is_last = origin.operation.may_be_done(sink.limit) and not self.unopened
                if self.is_last:
                    return self._done(origin, sink)
            return self.window(sink).outcomes()
        if not sink.resumes:
            name, given = sink.label or type(sink).__name__, self.options.checkpoint
            raise CheckpointError(f"checkpoint={given!r} saves elements, and {name} keeps none: leave it out")
        return self.saved(saving(self.steps, sink.limit))

    def saved(self, sink: Sink, *more: Any, ordered: bool = False) -> Iterator[tuple[Job, Outcome]]:
        """Do so with a checkpoint of what the sink makes; `more` is compared as the chain's steps are."""
        from parcoll.evaluation import resuming  # lazy: only with a checkpoint

        def missing(reader: SavedReader, saver: Saver) -> Iterator[tuple[Job, Outcome]]:
            self._watch.follower = self.engine.follow(self.stats)
            return self.window(sink, reader=reader, saver=saver, ordered=ordered).outcomes()

        steps = (*self.steps, *more)
        return resuming.outcomes(self.options, self.plan.origin, steps, self.stats, missing)

    @property
    def gives_elements(self) -> bool:
        """Whether the outcomes of a sink that resumes are the elements themselves: they come here anyway."""
        here = isinstance(self.plan.origin, Derived) and not self.plan.steps
        return here or self.options.checkpoint is not None

    def _given(
        self, reader: Reader, limit: int | None, are_done: bool = False
    ) -> Iterator[tuple[Job, Outcome]]:
        """Give what is made of other chains and goes through no step: it is here."""
        recorder, yielded = Recorder(self.stats), 0
        with closing(reader):
            while not reader.ended and (limit is None or yielded < limit):
                place, started = Place(reader.position), time.perf_counter()
                most = MOST_AT_ONCE if limit is None else limit - yielded
                results = read = reader.read(1 if are_done else most)
                self.stats.waited.source += time.perf_counter() - started
                if len(read):
                    outcome = Outcome(len(read))
                    if are_done:
                        results = read[0].elements
                        outcome.flows = [(1, len(results))]
                    yielded += len(results)
                    outcome.produced, outcome.results = len(results), Plain(results)
                    recorder.sent(1, 0)
                    recorder.add(outcome)
                    yield Job(place=place), outcome
            if reader.error is not None:
                raise reader.take_error()  # type: ignore[misc]

    def _done(self, origin: Derived, sink: Results) -> Iterator[tuple[Job, Outcome]]:
        """Give what the step behind an operation makes, unless that has done it already."""
        with closing(self._opened(origin)) as reader:
            assert isinstance(reader, DerivedReader)
            started = time.perf_counter()
            is_done = isinstance(reader.first(), Done)
            self.stats.waited.source += time.perf_counter() - started
            self._reader = None if is_done else reader
            yield from self._given(reader, None, True) if is_done else self.window(sink).outcomes()

    def _opened(self, source: Source, lasting: bool = False, here: bool = False) -> Reader:
        """Start reading a source; the chains that it is made of are evaluated while it is read."""
        if not isinstance(source, Derived) or source.is_alone:
            reader = Recorder(self.stats).opened(source.open())
            reader.listed = self.listed
            return reader
        self.stats._reads = len(source.reads)
        streams, row, operation = [], 0, source.operation
        unopened = operation.unopened and self.engine.in_background and not here
        # What is lasting may be needed again when the reader has been closed, which removes the scratch.
        scratch = self.engine.scratch() if source.goes_on and self.engine.scratch and not lasting else None
        for read in source.reads:
            streams.append(
                self._counted(read) if read.is_alone else self._evaluated(read, row, scratch, unopened)
            )
            row += len(read.labels())
        operation = operation.within(self._around(scratch))
        return DerivedReader(operation, streams, closed=None if scratch is None else scratch.remove)

    def _evaluated(
        self, read: Read, row: int, scratch: Scratch | None, unopened: bool
    ) -> Generator[Any, None, None]:
        """Evaluate a chain that the source is made of; its steps begin at `row` of the numbers."""
        below = Stats()
        below._above, below._row = self.stats, row
        self.stats._below.append(below)
        run = self._reading(read, below)
        run.unopened = unopened
        sink, engine, origin = read.sink, self.engine, self.plan.origin
        if sink is not None:
            if read.refers and scratch is None and engine.in_background and isinstance(origin, Derived):
                refers = origin.operation.may_refer(self.is_last, engine.threads())
                run.listed = [] if refers else None
            sink = sink.within(scratch, run.listed is not None)
        yield from run._elements(sink)

    def _around(self, scratch: Scratch | None) -> Around:
        """Return what the operation that makes the source may ask for."""
        import dask  # lazy: start-up

        folder, spill = dask.config.get("temporary-directory", None), Recorder(self.stats).spill
        known = self.engine.threads, self.engine.memory_limit, self.evaluate
        return Around(*known, folder, spill, scratch, self.is_last)

    def evaluate(self, elements: Iterable[Any], step: Step) -> Iterator[Any]:
        """Give what a step makes of each element, on the workers."""
        node = Node(before=Node(source=Source(lambda: elements, f"<{step.kind}>")), step=step)
        run = Run(node, Options(1), lambda: self.engine, Stats())
        run.origins, run._losses = self.origins, self._losses
        yield from run._elements()

    def _counted(self, read: Read) -> Generator[Any, None, None]:
        """Give the elements of a chain without steps, which nothing but this counts."""
        recorder = Recorder(self.stats)
        elements = read.node.source.open().stream()
        taken = 0
        try:
            for element in elements:
                taken += 1
                yield element
                if taken >= MOST_AT_ONCE:
                    taken = recorder.read(taken)
        finally:
            recorder.read(taken)

    @functools.cached_property
    def origins(self) -> Origins:
        """What the elements have gone through, if they are made of other chains, and what they go through."""
        origin = self.plan.origin
        return Origins((*self.steps, *origin.steps_before())) if isinstance(origin, Derived) else Origins()

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the plan, with what they need of other chains."""
        return tuple(step.prepared(self) for step in self.plan.steps)

    def table(self, other: Read, make: Callable[[list[Any]], Any]) -> Broadcast[Any]:
        """Evaluate a chain beside this one, and broadcast what is made of it, unless that is large."""
        beside, most, what = Stats(), self.engine.memory_limit() * TABLE, str(other)
        elements = []
        for element in self._reading(other, beside)._elements():
            elements.append(element)
            if beside.bytes_received > most:
                raise too_large(what, len(elements), beside.bytes_received, most, "more than ")
        Recorder(self.stats).add_beside(beside)
        found = broadcast(make(elements))
        if found.nbytes > most:
            raise too_large(what, len(elements), found.nbytes, most)
        return found

    def _reading(self, read: Read, stats: Stats) -> Run:
        """Return the run of a chain that this one reads."""
        for node in read.node.back():
            node.stats = stats
        run = Run(read.node, read.options, lambda: self.engine, stats)
        run._losses = self._losses
        return run

    def _elements(self, gathering: Gathering | None = None) -> Iterator[Any]:
        """Give the results one by one, or gathered, to an evaluation that reads from this one."""
        with closing(self.outcomes(gathering or Results())) as outcomes:  # type: ignore[type-var]
            for job, outcome in outcomes:
                if (above := self.stats._above) is not None:
                    above._add_up()
                    above.threads = max(above.threads, self.stats.threads)
                if outcome.results is not None:
                    what = f"the results of the partition at {job.place.element(0)}"
                    count = outcome.produced if gathering is None else 1
                    results, outcome.results = loaded(outcome.results, what, count), None
                    if self.listed is not None:
                        results[0].listed = Listed(self.listed, job.place.base)
                    yield from results
                if outcome.failure is not None:
                    raise outcome.failure.rebuild()

    def window(
        self,
        sink: Sink,
        *,
        keep: bool = False,
        reader: SavedReader | None = None,
        saver: Saver | None = None,
        ordered: bool = False,
        sole: Sole | None = None,
    ) -> Window:
        """Return the window over this run's partitions, whose elements the sink takes.

        With `keep`, what comes of partitions is kept, but of one that has all elements if there is a `sole`.
        """
        program = Program(self.steps, sink, origins=self.origins)
        calls, pace = (program, None) if program.waits else (None, remembered(self.steps))
        batch = max((step.least for step in self.steps), default=1)
        known = pace, batch, calls, self.engine.hands_back
        settings = (*known, sink.condenses, sole is not None, remembered_of_few(self.steps))
        sizer = sizer_for(self.options.partition_size, sink.limit, keep, *settings)
        return Window(
            self.engine,
            program,
            functools.partial(self._feed, sizer, sink.limit, keep, reader, sole),
            sizer,
            self.stats,
            self._losses,
            words=self.words,
            ordered=(self.options.ordered and sink.in_order) or keep or ordered,
            keep=keep,
            saver=saver,
        )

    def _feed(
        self, sizer: Sizer, limit: int | None, lasting: bool, reader: SavedReader | None, sole: Sole | None
    ) -> Feed:
        self._reads = True
        origin, engine = self.plan.origin, self.engine
        pack = functools.partial(engine.pack, lasting=lasting)
        settings = (sizer, pack, engine.memory_limit, self.options.buffersize, limit)
        if reader is not None:
            from parcoll.evaluation.resuming import ResumingFeed  # lazy: only with a checkpoint

            return ResumingFeed(reader, self.steps, *settings)
        if isinstance(origin, Source):
            return StreamFeed(self._reader or self._opened(origin, lasting), *settings, sole)
        return partitions_of(origin, engine.persist)

    def restarting(self, name: str, lost: str, attempt: Callable[[], T]) -> T:
        """Call `attempt`, and again from the source each time that its cluster was lost and replaced.

        For `reduce`, `fold` and `foreach`, which give all or nothing. `name` is the method that the user
        called. `lost` is for the message if that is not possible: it says what the method could not do.
        """
        while True:
            try:
                return attempt()
            except ClusterLostError as error:
                if error.yielded is not None:  # the error of another evaluation, in the source or a function
                    raise
                self._losses.add(error, Recorder(self.stats))
                if error._final or not (self.engine.renews or error._still_there):
                    error._tell(f"{name}() {lost}")
                    raise
                origin = self.plan.origin
                if self._reads and isinstance(origin, Source) and origin.one_pass:
                    error._tell(
                        f"{name}() {lost}, and cannot begin again, since {origin} gives its elements only "
                        "once: pass a list, or a function that returns a new iterator"
                    )
                    raise
                logger.warning("%s: %s; %s() begins again", self.stats.name, str(error), name)
            self._losses.begin_again()
            Recorder(self.stats).forget()


def iterate(start: Callable[[], Run], limit: int | None = None) -> looping.ResultIterator:
    """Give the results one by one. The run starts when the first is asked for."""
    return looping.ResultIterator.of(_parts(start, limit))


def iterate_async(start: Callable[[], Run]) -> AsyncGenerator[Any, None]:
    """Give the results one by one, to an event loop that goes on meanwhile."""
    return looping.drawn(_parts(start, None))


def take(start: Callable[[], Run], number: int) -> list[Any]:
    """Return the first results, and cancel what has not begun."""
    if not number:
        return []
    stream = iterate(start, number)
    try:
        return list(itertools.islice(stream, number))
    finally:
        stream.close()


def _parts(start: Callable[[], Run], limit: int | None) -> Generator[list[Any], None, None]:
    yielded = 0
    try:
        run = start()
        with run.watched(), closing(run.outcomes(Results(limit))) as outcomes:  # type: ignore[type-var]
            for job, outcome in outcomes:
                results: list[Any] = []
                if outcome.results is not None:
                    what = f"the results of the partition at {job.place.element(0)}"
                    results, outcome.results = loaded(outcome.results, what, outcome.produced), None
                yielded += len(results)
                yield results
                if outcome.failure is not None:
                    raise outcome.failure.rebuild()
    except ClusterLostError as error:
        if limit is None:
            error._tell(f"{yielded:,} element{'s' * (yielded != 1)} had been yielded", yielded)
        else:
            error._tell(f"{yielded:,} of the first {limit:,} had come, and take() gives all or none")
        raise
