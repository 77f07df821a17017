"""Loop: a row of steps at work. An element goes through all of them before the next one starts.

The loop is written as source text and compiled, because Python has no cheaper way: two steps cost two calls,
and no generator between them (1,000,000 elements through `x + 1`: 0.05 s, as `list(map(...))`). The line that
an exception came from tells which step failed, which costs nothing while none does.

A second variant of the loop reads the clock between the steps, 0.1 µs each time; `timing` says which elements
go through it. In both, a step with `on_error` or `retries` has a `try` of its own, which costs nothing while
nothing fails; `guard` has what happens then.

A step that holds elements from one draw to the next ends one loop, and the steps behind it begin another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from parcoll.chain import apart
from parcoll.chain.codegen import Part, loop_factory
from parcoll.chain.failures import stands_between
from parcoll.chain.guard import Guard, Stopped, attempts_of
from parcoll.chain.marks import Marked
from parcoll.chain.place import START, Place
from parcoll.chain.steps import SKIP, Step
from parcoll.chain.tally import Tally
from parcoll.clock import time

# CPython allows 20 statically nested blocks, of which a loop that gives lists has some more than others. A
# longer row of flatmaps is cut into several loops.
NESTED_LOOPS = 9

Loop = Callable[[Iterable[Any]], Generator[Any, None, None]]


class Chain:
    """The compiled steps, and the tally of what goes through them."""

    def __init__(self, steps: Sequence[Step], tally: Tally | None = None) -> None:
        self.steps = steps
        self.tally = tally or Tally(steps)
        self.seconds = [0.0] * (len(steps) + 1)  # of timed elements: in each step, and in the consumer
        self._streams: list[Generator[Any, None, None]] = []
        self._clock = apart.clock if apart.used else time.perf_counter
        self._loops = self._compiled(timed=False)
        self._timed_loops: list[Loop] = []  # compiled when first needed
        self._last_together: Loop | None = None  # the last loop, if it gives lists

    @property
    def holds(self) -> bool:
        """Whether a step keeps elements, so that a partition has to go through in one run."""
        return any(step.holds for step in self.steps)

    def run(
        self,
        elements: Sequence[Any],
        place: Place = START,
        timed: bool = False,
        draw: Callable[[Iterator[Any]], Iterator[Any]] = lambda iterator: iterator,
    ) -> Iterator[Any]:
        """Draw `elements` through all steps, and give the results as they are made.

        The first element stands at `place` in the source. An exception of a user's function ends the iterator
        and is kept in the tally. With `timed`, the time of each step is added to `seconds`. `draw` wraps the
        iterator of the elements, and may end it early.
        """
        if timed and not self._timed_loops:
            self._timed_loops = self._compiled(timed=True)
        stream = self.tally.begin(elements, place, draw)
        self._streams = []
        for loop in self._timed_loops if timed else self._loops:
            stream = generator = loop(stream)
            self._streams.append(generator)
        return stream

    @property
    def gathers(self) -> bool:
        """Whether `run_together` is possible."""
        return bool(self.steps) and self.steps[-1].gathers

    def run_together(self, elements: Sequence[Any], place: Place) -> Iterator[tuple[list[Any], list[Any]]]:
        """Do as `run` does without timing, and give lists of keys and of elements."""
        if self._last_together is None:
            start, stop = list(_stretches(self.steps))[-1]
            self._last_together = self._compile(start, stop, timed=False, together=True)
        stream = self.tally.begin(elements, place)
        self._streams = []
        for loop in (*self._loops[:-1], self._last_together):
            stream = generator = loop(stream)
            self._streams.append(generator)
        return stream

    def close(self) -> None:
        """End the loops, the last one first. Each then adds to the counts what has passed through it."""
        for stream in reversed(self._streams):
            stream.close()

    def run_all(self, elements: Iterable[Any]) -> list[Any]:
        """Return all results, or raise what a user's function raised."""
        results = list(self.run(elements if isinstance(elements, list) else list(elements)))
        if self.tally.failure is not None:
            raise self.tally.failure.rebuild()
        return results

    def _compiled(self, timed: bool) -> list[Loop]:
        return [
            self._holding(start, timed) if self.steps[start].holds else self._compile(start, stop, timed)
            for start, stop in _stretches(self.steps)
        ]

    def _compile(self, start: int, stop: int, timed: bool, together: bool = False) -> Loop:
        steps, tally = self.steps[start:stop], self.tally
        factory, step_of_line = loop_factory(tuple(map(Part.of, steps)), timed, together)

        def record(error: BaseException, variables: tuple[Any, ...], since: float) -> bool:
            frames = error.__traceback__
            line = frames.tb_lineno if frames is not None else -1
            if isinstance(error, Stopped):
                position = error.position
            elif line in step_of_line:
                local, variable = step_of_line[line]
                position = start + local
                tally.stopped(error, position, variables[variable], attempts_of(self.steps[position].func))
            else:
                return False  # the consumer closed the loop, or the loop before this one has failed
            if timed:
                self.seconds[position] += self._clock() - since
            return True

        def count(*passed: int) -> None:
            positions = (i for i in range(start, stop) if i in tally.passed)
            for position, number in zip(positions, passed, strict=True):
                tally.passed[position] += number

        def spend(*seconds: float) -> None:
            for position, spent in zip(range(start, stop), seconds[:-1], strict=True):
                self.seconds[position] += spent
            if stop == len(self.steps):  # else the next loop took the elements
                self.seconds[-1] += seconds[-1]

        guards = {i: Guard(step, start + i, tally) for i, step in enumerate(steps) if step.policy.guards}
        functions = [guards[i].draw if i in guards and s.multiplies else s.func for i, s in enumerate(steps)]
        handlers = {i: guard.handle for i, guard in guards.items()}
        more = (self._clock, spend) if timed else ()
        return factory(functions, handlers, SKIP, record, count, *more)  # type: ignore[no-any-return]

    def _holding(self, position: int, timed: bool) -> Loop:
        """Return the loop of a step that holds elements: its own stream, counted and timed."""
        step, tally = self.steps[position], self.tally
        guard = Guard(step, position, tally)
        call: Callable[[Any], Any] = step.call
        if step.policy.guards or step.waits:
            call = guard.draw if step.multiplies else guard.call
        flows = step.waits and not isinstance(step.func, Marked)  # which knows one call at a time
        before = self.steps[:position]
        one_for_one = not any(step.counts or step.policy.on_error == "skip" for step in before)
        clock = self._clock if timed else float  # float() is 0.0, and costs nothing

        def loop(stream: Iterable[Any]) -> Generator[Any, None, None]:
            last_step = position == len(self.steps) - 1
            asked = not last_step or tally.spots is not None
            drawn = _Draws(iter(stream), tally, clock, one_for_one, not flows, not asked)
            made: Iterator[Any] = iter(())
            passed, pause = 0, 0.0
            started = clock()
            try:
                made = iter(step.flow(drawn, guard) if flows else step.stream(drawn, call))
                for element in made:
                    passed += 1
                    paused = clock()
                    yield element
                    pause += clock() - paused
            except (Stopped, _EndedError):
                pass  # noted already; the elements that were held are dropped
            except GeneratorExit:  # the consumer has enough
                raise
            except BaseException as error:
                tally.stopped(error, position, drawn.last, attempts_of(step.func))
            finally:
                tally.stand_at(None)
                if isinstance(made, Generator):
                    made.close()
                tally.passed[position] += passed
                self.seconds[position] += clock() - started - pause - drawn.seconds
                if last_step:
                    self.seconds[-1] += pause

        return loop


class _EndedError(BaseException):
    """Ends a step that holds elements, and drops them: the chain before it has failed."""


class _Draws:
    """The elements that a step draws.

    It knows the one drawn last, and the seconds that the steps before took.
    """

    def __init__(
        self,
        stream: Iterator[Any],
        tally: Tally,
        clock: Callable[[], float],
        one_for_one: bool,
        drops: bool,
        last_step: bool,
    ) -> None:
        self.last_step = last_step  # nothing behind it asks which element is under way
        self._one_for_one = one_for_one  # each source element gives one
        self.last: Any = None
        self.seconds = 0.0
        self._stream = stream
        self._tally = tally
        self._clock = clock
        self._drops = drops  # what is held, where the chain before has failed

    def __iter__(self) -> _Draws:
        return self

    def __next__(self) -> Any:
        started = self._clock()
        try:
            self.last = next(self._stream)
        except StopIteration:
            if self._tally.failure is not None and self._drops:
                raise _EndedError from None
            raise
        finally:
            self.seconds += self._clock() - started
        return self.last

    def take(self, size: int) -> tuple[list[Any], Sequence[int]]:
        """Draw up to `size` elements at once; return them, and how many source elements each has taken."""
        taken: list[Any] = []
        positions: Sequence[int]
        if self._one_for_one:
            started = self._clock()
            taken = list(itertools.islice(self._stream, size))
            self.seconds += self._clock() - started
            if len(taken) < size and self._tally.failure is not None:
                raise _EndedError
            drawn = self._tally.drawn
            positions = range(drawn - len(taken) + 1, drawn + 1)
        else:
            found: list[int] = []
            for element in itertools.islice(self, size):
                taken.append(element)
                found.append(self._tally.drawn)
            positions = found
        if taken:
            self.last = taken[-1]
        return taken, positions

    def back_to(self, position: int | None, element: Any = None) -> None:
        """Have an element that was drawn earlier be the one under way; with None, the one drawn last."""
        self._tally.stand_at(position)
        self.last = element


def _stretches(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Cut a row of steps into those that share a loop."""
    start = nested = 0
    for position, step in enumerate(steps):
        nested += step.multiplies
        if step.holds or nested > NESTED_LOOPS:
            if start < position:
                yield start, position
            start, nested = position, int(step.multiplies)
        if step.holds:
            yield position, position + 1
            start, nested = position + 1, 0
    if start < len(steps):
        yield start, len(steps)


stands_between(Chain.run_all.__code__.co_filename)
