"""A row of steps compiled to one Python loop: an element goes through all of it before the next starts.

The loop is written as source text and compiled, because that is the cheapest way Python has: two
steps cost two calls and no generator between them (1,000,000 elements through `x + 1`: 0.05 s, as
`list(map(...))`). The line an exception came from tells which step failed, at no cost while none does.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from parcoll.failure import Failure
from parcoll.place import START, Place
from parcoll.steps import Step
from parcoll.text import short_repr

# CPython allows 20 statically nested blocks; a longer row of flatmaps is cut into several loops.
NESTED_LOOPS = 15

Loop = Callable[[Iterable[Any]], Generator[Any, None, None]]


class Chain:
    """The compiled steps, with the counts of what went through and the first failure."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.passed: dict[int, int] = {i: 0 for i, step in enumerate(steps) if step.counts}
        self.failure: Failure | None = None
        self.failed_step: int | None = None
        self._place = START
        self._source: Sequence[Any] = ()
        self._iterator: Iterator[Any] = iter(())
        self._streams: list[Generator[Any, None, None]] = []
        self._loops = [self._compile(start, stop) for start, stop in _segments(steps)]

    def run(self, elements: Sequence[Any], place: Place = START) -> Iterator[Any]:
        """Draw `elements`, the first of which stands at `place` in the source, through all steps.

        Results come as they are made. An exception of a user's function ends the iterator and is
        kept in `failure`.
        """
        self._source, self._place = elements, place
        self._iterator = stream = iter(elements)
        self._streams = []
        for loop in self._loops:
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
            left = self.passed[position] if step.counts else entered
            if position == self.failed_step and not step.counts:
                left -= 1
            flows.append((entered, left))
            entered = left
        return flows

    def _compile(self, start: int, stop: int) -> Loop:
        steps = self.steps[start:stop]
        factory, step_of_line = _factory(tuple((step.line, step.counts, step.nests) for step in steps))

        def record(error: BaseException, variables: dict[str, Any]) -> bool:
            frames = error.__traceback__
            line = frames.tb_lineno if frames is not None else -1
            if line not in step_of_line:
                return False  # the consumer closed the loop, or the stream before it broke
            position, variable = step_of_line[line]
            self._fail(error, start + position, variables.get(variable))
            return True

        def count(*passed: int) -> None:
            positions = (i for i in range(start, stop) if i in self.passed)
            for position, number in zip(positions, passed, strict=True):
                self.passed[position] += number

        return factory([step.func for step in steps], record, count)  # type: ignore[no-any-return]

    @property
    def drawn(self) -> int:
        """How many of the elements given to `run` were drawn so far."""
        return len(self._source) - operator.length_hint(self._iterator)

    def where(self) -> str:
        """Name the source element drawn last."""
        return self._place.element(self.drawn - 1)

    def _fail(self, error: BaseException, position: int, element: Any) -> None:
        drawn = self.drawn - 1
        note = (
            f"in step {position + 1} of {len(self.steps)}, {self.steps[position].label}, "
            f"at {self.where()}: {short_repr(element)}"
        )
        if position > 0 and 0 <= drawn < len(self._source):
            note += f" (made from source element {short_repr(self._source[drawn])})"
        self.failed_step = position
        self.failure = Failure.of(error, note, skip_frames=1)


def _segments(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    start = nested = 0
    for position, step in enumerate(steps):
        nested += step.nests
        if nested > NESTED_LOOPS:
            yield start, position
            start, nested = position, 1
    if start < len(steps):
        yield start, len(steps)


@functools.lru_cache(maxsize=256)
def _factory(shape: tuple[tuple[str, bool, bool], ...]) -> tuple[Any, dict[int, tuple[int, str]]]:
    """Compile the loop for steps of this shape.

    Returns a function of (functions, record, count) that makes the loop, and which step and which
    variable stand in each line that calls a user's code.
    """
    counted = [f"n{i}" for i, (_, counts, _) in enumerate(shape) if counts]
    lines = ["def factory(functions, record, count):"]
    lines += [f" f{i} = functions[{i}]" for i in range(len(shape))]
    lines += [" def loop(stream):"]
    lines += [f"  {name} = 0" for name in counted]
    lines += ["  try:", "   for x in stream:"]
    step_of_line: dict[int, tuple[int, str]] = {}
    indent, element = " " * 4, "x"
    for i, (line, counts, nests) in enumerate(shape):
        made = f"x{i}"
        lines.append(indent + line.format(func=f"f{i}", x=element, new=made))
        step_of_line[len(lines)] = (i, element)
        if "{new}" in line:
            element = made
        if nests:
            indent += " "
        if counts:
            lines.append(f"{indent}n{i} += 1")
    lines += [
        f"{indent}yield {element}",
        "  except BaseException as error:",
        "   if not record(error, locals()): raise",
    ]
    if counted:
        lines += ["  finally:", f"   count({', '.join(counted)})"]
    lines.append(" return loop")
    namespace: dict[str, Any] = {}
    exec(compile("\n".join(lines), "<parcoll chain>", "exec"), namespace)
    return namespace["factory"], step_of_line
