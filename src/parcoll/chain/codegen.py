"""The source text of a chain's loop: plain, with the clock read between steps, and with guarded steps.

A loop is compiled once for a row of steps of the same shape, whatever their functions are.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from parcoll.chain.steps import FlatMap, Step

FILE_NAME = "<parcoll chain>"  # in tracebacks


class Part(NamedTuple):
    """What a loop has to know of one step."""

    line: str
    timed_line: str
    counts: bool  # elements may vanish or multiply here
    nests: bool
    guarded: bool  # an exception is handed to the step's guard

    @classmethod
    def of(cls, step: Step) -> Part:
        """Take the lines from the step. A flatmap's guard draws in the place of its function."""
        guarded = step.policy.guards and not isinstance(step, FlatMap)
        return cls(step.line, step.timed_line, step.counts, step.nests, guarded)


Shape = tuple[Part, ...]
StepOfLine = dict[int, tuple[int, str]]  # which step and which variable stand in a line of user's code


@functools.lru_cache(maxsize=256)
def plain_factory(shape: Shape) -> tuple[Any, StepOfLine]:
    """Compile the loop for steps of this shape.

    Returns a function of (functions, handlers, skip, record, count) that makes the loop, and which
    step and which variable stand in each line that calls a user's code.
    """
    counted = [f"n{i}" for i, part in enumerate(shape) if part.counts]
    lines = ["def factory(functions, handlers, skip, record, count):"]
    lines += _names(shape)
    lines += [" def loop(stream):"]
    lines += [f"  {name} = 0" for name in counted]
    lines += ["  try:", "   for x in stream:"]
    step_of_line: StepOfLine = {}
    indent, element = " " * 4, "x"
    for i, part in enumerate(shape):
        made = f"x{i}"
        line = part.line.format(func=f"f{i}", x=element, new=made)
        target = made if "{new}" in part.line else element
        if part.guarded:
            lines += [f"{indent}try:", f"{indent} {line}", f"{indent}except BaseException as error:"]
            lines += [
                f"{indent} {target} = h{i}(error, {element})",
                f"{indent} if {target} is skip: continue",
            ]
        else:
            lines.append(indent + line)
            step_of_line[len(lines)] = (i, element)
        element = target
        if part.nests:
            indent += " "
        if part.counts:
            lines.append(f"{indent}n{i} += 1")
    lines += [
        f"{indent}yield {element}",
        "  except BaseException as error:",
        "   if not record(error, locals()): raise",
    ]
    if counted:
        lines += ["  finally:", f"   count({', '.join(counted)})"]
    lines.append(" return loop")
    return _executed(lines), step_of_line


@functools.lru_cache(maxsize=256)
def timed_factory(shape: Shape) -> tuple[Any, StepOfLine]:
    """Compile the loop that adds up the seconds of each step: `t` is when the last one ended.

    Returns the same, for a function of (functions, handlers, skip, record, count, clock, spend).
    """
    counted = [f"n{i}" for i, part in enumerate(shape) if part.counts]
    spent = [f"s{i}" for i in range(len(shape) + 1)]
    lines = ["def factory(functions, handlers, skip, record, count, clock, spend):"]
    lines += _names(shape)
    lines += [" def loop(stream):"]
    lines += [f"  {name} = 0" for name in counted]
    lines += [f"  {name} = 0.0" for name in spent]
    lines += ["  t = clock()", "  try:", "   for x in stream:", "    t = clock()"]
    step_of_line: StepOfLine = {}
    indent, element = " " * 4, "x"
    nested: list[tuple[str, int]] = []  # indentation of each inner loop, and its step

    def tick(indent: str, step: int) -> str:
        return f"{indent}now = clock(); s{step} += now - t; t = now"

    for i, part in enumerate(shape):
        made = f"x{i}"
        line = part.timed_line.format(func=f"f{i}", x=element, new=made)
        drops = part.counts and not part.nests  # the line makes the verdict; the element stays what it was
        target = element if drops else made
        if part.guarded:
            lines += [f"{indent}try:", f"{indent} {line}", f"{indent}except BaseException as error:"]
            lines += [f"{indent} {target} = h{i}(error, {element})"]
            lines += [f"{indent} {made} = False"] if drops else []
            lines += [f"{indent} if {target} is skip:", tick(f"{indent}  ", i) + "; continue"]
        else:
            lines.append(indent + line)
            step_of_line[len(lines)] = (i, element)
        element = target
        if part.nests:
            nested.append((indent, i))
            indent += " "
        lines.append(tick(indent, i))
        if drops:
            lines.append(f"{indent}if {made}: continue")
        if part.counts:
            lines.append(f"{indent}n{i} += 1")
    lines += [f"{indent}yield {element}", tick(indent, len(shape))]
    lines += [tick(*loop) for loop in reversed(nested)]  # the draw that found the end
    lines += ["  except BaseException as error:", "   if not record(error, locals()): raise"]
    lines += ["  finally:"]
    lines += [f"   count({', '.join(counted)})"] if counted else []
    lines += [f"   spend({', '.join(spent)})", " return loop"]
    return _executed(lines), step_of_line


def _names(shape: Shape) -> list[str]:
    functions = [f" f{i} = functions[{i}]" for i in range(len(shape))]
    return functions + [f" h{i} = handlers[{i}]" for i, part in enumerate(shape) if part.guarded]


def _executed(lines: list[str]) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile("\n".join(lines), FILE_NAME, "exec"), namespace)
    return namespace["factory"]
