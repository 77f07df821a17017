"""Code generation: the source text of loops, plain or with the clock read between the steps.

A loop is compiled once for all rows of steps that have the same shape, whatever their functions are.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from parcoll.chain.failures import stands_between
from parcoll.chain.steps import Step

FILE_NAME = "<parcoll chain>"  # in tracebacks
stands_between(FILE_NAME)


class Part(NamedTuple):
    """What a loop needs to know of one step."""

    line: str
    timed_line: str
    filters: bool
    multiplies: bool
    guarded: bool  # an exception is handed to the step's guard

    @classmethod
    def of(cls, step: Step) -> Part:
        """Ask the step. For a step that multiplies, the guard draws in place of the function."""
        guarded = step.policy.guards and not step.multiplies
        return cls(step.line, step.timed_line, step.filters, step.multiplies, guarded)

    @property
    def counts(self) -> bool:
        """Whether elements may vanish or multiply here."""
        return self.filters or self.multiplies


Shape = tuple[Part, ...]
StepOfLine = dict[
    int, tuple[int, int]
]  # for a line that calls code of the user: the step, and which variable


@functools.lru_cache(maxsize=512)
def loop_factory(shape: Shape, timed: bool) -> tuple[Any, StepOfLine]:
    """Compile the loop for steps of this shape; a `timed` one adds up the seconds of each step.

    Returns a function that makes the loop, and for each line that calls code of the user which step and which
    variable stand in it. The function takes (functions, handlers, skip, record, count), and (clock, spend) if
    timed. In the loop, `t` is the time at which the step before ended.
    """
    counted = [f"n{i}" for i, part in enumerate(shape) if part.counts]
    spent = [f"s{i}" for i in range(len(shape) + 1)]

    def tick(indent: str, step: int) -> list[str]:
        return [f"{indent}now = clock(); s{step} += now - t; t = now"] if timed else []

    lines = [f"def factory(functions, handlers, skip, record, count{', clock, spend' if timed else ''}):"]
    lines += [f" f{i} = functions[{i}]" for i in range(len(shape))]
    lines += [f" h{i} = handlers[{i}]" for i, part in enumerate(shape) if part.guarded]
    # The variables for elements: not `locals()`, which would hold the exception that they are asked for.
    variables = ["x", *(f"x{i}" for i, part in enumerate(shape) if part.multiplies)]
    lines += [" def loop(stream):", f"  {' = '.join(variables)} = None"]
    lines += [f"  {name} = 0" for name in counted]
    lines += [f"  {name} = 0.0" for name in spent] + ["  t = clock()"] if timed else []
    lines += ["  try:", "   for x in stream:"] + (["    t = clock()"] if timed else [])
    step_of_line: StepOfLine = {}
    indent, element = " " * 4, "x"
    inner: list[tuple[str, int]] = []  # the indentation of each inner loop, and its step
    for i, part in enumerate(shape):
        # What a step makes takes the place of its element, so that nothing is held of elements before.
        made = f"v{i}" if part.filters else f"x{i}" if part.multiplies else element
        line = (part.timed_line if timed else part.line).format(func=f"f{i}", x=element, new=made)
        if part.guarded:
            lines += [f"{indent}try:", f"{indent} {line}", f"{indent}except BaseException as error:"]
            lines += [f"{indent} {element} = h{i}(error, {element})"]
            lines += [f"{indent} {made} = False"] if timed and part.filters else []
            lines += [f"{indent} if {element} is skip:", *tick(f"{indent}  ", i), f"{indent}  continue"]
        else:
            lines.append(indent + line)
            step_of_line[len(lines)] = (i, variables.index(element))
        if part.multiplies:
            inner.append((indent, i))
            indent += " "
            element = made
        lines += tick(indent, i)
        lines += [f"{indent}if {made}: continue"] if timed and part.filters else []
        lines += [f"{indent}n{i} += 1"] if part.counts else []
    lines += [f"{indent}yield {element}", *tick(indent, len(shape))]
    lines += [f"{indent}{element} = None"] if inner else []  # while the next one is drawn
    for before, i in reversed(inner):  # the time of the draw that found the end
        lines += tick(before, i)
    given = f"({', '.join(variables)},), {'t' if timed else '0.0'}"
    lines += ["  except BaseException as error:", f"   if not record(error, {given}): raise"]
    at_end = [f"   count({', '.join(counted)})"] if counted else []
    at_end += [f"   spend({', '.join(spent)})"] if timed else []
    lines += ["  finally:", *at_end] if at_end else []
    lines.append(" return loop")
    namespace: dict[str, Any] = {}
    exec(compile("\n".join(lines), FILE_NAME, "exec"), namespace)
    return namespace["factory"], step_of_line
