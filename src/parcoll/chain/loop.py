"""A row of steps compiled to one Python loop: an element goes through all of it before the next starts.

The loop is written as source text and compiled, because that is the cheapest way Python has: two
steps cost two calls and no generator between them (1,000,000 elements through `x + 1`: 0.05 s, as
`list(map(...))`). The line an exception came from tells which step failed, at no cost while none does.

A second variant of the loop reads the clock between the steps, 0.1 µs each time; `timing` says which
elements go through it. Steps with `on_error` or `retries` have a `try` of their own in it, which costs
nothing while nothing fails; what happens when something does is in `guard`.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from parcoll.chain.codegen import FILE_NAME, Part, plain_factory, timed_factory
from parcoll.chain.failures import KEPT, FailedElement, Ledger
from parcoll.chain.guard import SKIP, Counts, Guard, Stopped, attempts_of
from parcoll.chain.marks import Marked
from parcoll.chain.place import START, Place
from parcoll.chain.steps import FlatMap, Step
from parcoll.errors import ElementError
from parcoll.text import short_repr
from parcoll.wire.exceptions import Failure

# CPython allows 20 statically nested blocks; a longer row of flatmaps is cut into several loops.
NESTED_LOOPS = 15

_OWN_FILES = {FILE_NAME, Guard.handle.__code__.co_filename, Marked.again.__code__.co_filename}

Loop = Callable[[Iterable[Any]], Generator[Any, None, None]]


class Chain:
    """The compiled steps, with the counts of what went through, failed elements, and what ended the loop."""

    def __init__(self, steps: Sequence[Step], ledger: Ledger | None = None) -> None:
        self.steps = steps
        self.passed: dict[int, int] = {i: 0 for i, step in enumerate(steps) if step.counts}
        self.failure: Failure | None = None
        self.failed_step: int | None = None
        self.counts = [Counts() for _ in steps]
        self.failed_elements: list[FailedElement] = []  # as many as the ledger has room for
        self.raised: FailedElement | None = None  # whose failure `failure` is
        self.ended_at: int | None = None  # the index of the source element that ended the loop
        self._ledger = ledger or Ledger()
        self.seconds = [0.0] * (len(steps) + 1)  # of elements run timed: each step, then what took them
        self._place = START
        self._source: Sequence[Any] = ()
        self.iterator: Iterator[Any] = iter(())  # that the source elements are drawn from
        self.after = 0  # the index of the source element behind the last of them
        self._streams: list[Generator[Any, None, None]] = []
        self._loops = self._compiled(timed=False)
        self._timed_loops: list[Loop] = []  # compiled when first needed

    def run(self, elements: Sequence[Any], place: Place = START, timed: bool = False) -> Iterator[Any]:
        """Draw `elements`, the first of which stands at `place` in the source, through all steps.

        Results come as they are made. An exception of a user's function ends the iterator and is
        kept in `failure`. With `timed` the time of each step is added to `seconds`.
        """
        if timed and not self._timed_loops:
            self._timed_loops = self._compiled(timed=True)
        self._source, self._place = elements, place
        self.iterator = stream = iter(elements)
        self.after = place.base + len(elements)
        self._streams = []
        for loop in self._timed_loops if timed else self._loops:
            stream = generator = loop(stream)
            self._streams.append(generator)
        return stream

    def close(self) -> None:
        """End the loops, the last first: each adds what passed it to the counts then."""
        for stream in reversed(self._streams):
            stream.close()

    def run_all(self, elements: Iterable[Any]) -> list[Any]:
        """Return all results; a user's exception is raised here."""
        results = list(self.run(elements if isinstance(elements, list) else list(elements)))
        if self.failure is not None:
            raise self.failure.rebuild()
        return results

    def flows(self, entered: int) -> list[tuple[int, int]]:
        """Return (elements in, elements out) for each step when `entered` came from the source.

        To be asked when the loops have ended.
        """
        flows = []
        for position, step in enumerate(self.steps):
            counts = self.counts[position]
            left = self.passed[position] if step.counts else entered - counts.failed + counts.replaced
            flows.append((entered, left))
            entered = left
        return flows

    def _compiled(self, timed: bool) -> list[Loop]:
        return [self._compile(start, stop, timed) for start, stop in _segments(self.steps)]

    def _compile(self, start: int, stop: int, timed: bool) -> Loop:
        steps = self.steps[start:stop]
        shape = tuple(map(Part.of, steps))
        factory, step_of_line = (timed_factory if timed else plain_factory)(shape)

        def record(error: BaseException, variables: dict[str, Any]) -> bool:
            frames = error.__traceback__
            line = frames.tb_lineno if frames is not None else -1
            if isinstance(error, Stopped):
                position = error.position
            elif line in step_of_line:
                local, variable = step_of_line[line]
                position = start + local
                attempts = attempts_of(self.steps[position].func)
                self.stopped(error, position, variables.get(variable), attempts)
            else:
                return False  # the consumer closed the loop, or the stream before it broke
            if timed:
                self.seconds[position] += time.perf_counter() - variables["t"]
            return True

        def count(*passed: int) -> None:
            positions = (i for i in range(start, stop) if i in self.passed)
            for position, number in zip(positions, passed, strict=True):
                self.passed[position] += number

        def spend(*seconds: float) -> None:
            for position, spent in zip(range(start, stop), seconds[:-1], strict=True):
                self.seconds[position] += spent
            if stop == len(self.steps):  # else the next loop took the elements
                self.seconds[-1] += seconds[-1]

        guards = {
            position: Guard(step, start + position, self.counts[start + position], self)
            for position, step in enumerate(steps)
            if step.policy.guards
        }
        functions: list[Any] = [step.func for step in steps]
        for position, guard in guards.items():
            if isinstance(steps[position], FlatMap):
                functions[position] = guard.draw
        handlers = {position: guard.handle for position, guard in guards.items()}
        more = (time.perf_counter, spend) if timed else ()
        return factory(functions, handlers, SKIP, record, count, *more)  # type: ignore[no-any-return]

    @property
    def drawn(self) -> int:
        """How many of the elements given to `run` were drawn so far."""
        return len(self._source) - operator.length_hint(self.iterator)

    def tried_before(self, position: int, times: int) -> None:
        """Count attempts of a step with an element that ended the processes that made them."""
        self.counts[position].retries += times

    def where(self) -> str:
        """Name the source element drawn last."""
        return self._place.element(self.drawn - 1)

    def failed(self, error: Exception, position: int, element: Any, attempts: int) -> None:
        """Count an element that the evaluation goes on without, and describe it if there is room."""
        self.counts[position].failed += 1
        if self._ledger.elements < KEPT:
            self._ledger.elements += 1
            failure = Failure.of(error, self._note(position, element, attempts), _own_frames(error))
            self.failed_elements.append(self._failed_element(failure, position, element, attempts))

    def stopped(self, error: BaseException, position: int, element: Any, attempts: int = 1) -> None:
        """Count and note the element that ends the evaluation."""
        self.counts[position].failed += 1
        self._fail(error, position, self._note(position, element, attempts))
        if isinstance(error, Exception) and self.failure is not None:
            self.raised = self._failed_element(self.failure, position, element, attempts)

    def broken(self, error: BaseException, position: int, element: Any, whose: str) -> None:
        """Note that a function raised which was asked about an element that had failed."""
        self._fail(error, position, f"{whose}, {self._note(position, element)}")

    def describe(self, error: Exception, position: int, element: Any, attempts: int) -> ElementError:
        """Return what an `on_error` function gets."""
        label, place = self.steps[position].label, self._here()
        return ElementError(label, position, place.base, element, error, attempts, place.partition)

    def _fail(self, error: BaseException, position: int, note: str) -> None:
        self.failed_step, self.ended_at = position, self._here().base
        self.failure = Failure.of(error, note, _own_frames(error))

    def _failed_element(self, failure: Failure, position: int, element: Any, attempts: int) -> FailedElement:
        encoded, label = self._ledger.encoded(element), self.steps[position].label
        return FailedElement(failure, label, position, self._here(), encoded, attempts)

    def _here(self) -> Place:
        return self._place.after(self.drawn - 1)

    def _note(self, position: int, element: Any, attempts: int = 1) -> str:
        drawn = self.drawn - 1
        note = (
            f"in step {position + 1} of {len(self.steps)}, {self.steps[position].label}, "
            f"at {self.where()}: {short_repr(element)}"
        )
        if position > 0 and 0 <= drawn < len(self._source):
            note += f" (made from source element {short_repr(self._source[drawn])})"
        return note if attempts == 1 else f"{note}, {attempts} times"


def _own_frames(error: BaseException) -> int:
    """Return how many of the outermost frames are ours: the loop, what guards a step and what marks it."""
    frames, own = error.__traceback__, 0
    while frames is not None and frames.tb_frame.f_code.co_filename in _OWN_FILES:
        frames, own = frames.tb_next, own + 1
    return own


def _segments(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    start = nested = 0
    for position, step in enumerate(steps):
        nested += step.nests
        if nested > NESTED_LOOPS:
            yield start, position
            start, nested = position, 1
    if start < len(steps):
        yield start, len(steps)
