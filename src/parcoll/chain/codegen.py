"""Code generation: the source text of loops, plain or with the clock read between the steps.

A loop is compiled once for all rows of steps that have the same shape, whatever their functions are.
"""

from __future__ import annotations

import functools
import itertools
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
    key_line: str = ""
    passes: bool = False  # gives its element, if that has a hash

    @classmethod
    def of(cls, step: Step) -> Part:
        """Ask the step. For a step that multiplies, the guard draws in place of the function."""
        guarded = step.policy.guards and not step.multiplies
        flags = step.filters, step.multiplies, guarded, step.key_line, step.passes
        return cls(step.line, step.timed_line, *flags)

    @property
    def counts(self) -> bool:
        """Whether elements may vanish or multiply here."""
        return self.filters or self.multiplies


Shape = tuple[Part, ...]
TOGETHER = 1024  # elements that flatmaps have made, after which a list goes on, and few more
StepOfLine = dict[
    int, tuple[int, int]
]  # for a line that calls code of the user: the step, and which variable


@functools.lru_cache(maxsize=512)
def loop_factory(shape: Shape, timed: bool, together: bool = False) -> tuple[Any, StepOfLine]:
    """Compile the loop for steps of this shape; a `timed` one adds up the seconds of each step.

    One whose elements go on `together` gives pairs of lists, of keys and of elements; it is never timed.
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
    row = _Row(shape) if together else None
    lines += [*(f"  {line}" for line in row.fresh), f"  due = {TOGETHER}"] if row else []
    lines += ["  try:", "   try:", "    for x in stream:"] + (["     t = clock()"] if timed else [])
    step_of_line: StepOfLine = {}
    indent, element = " " * 5, "x"
    inner: list[tuple[str, int]] = []  # the indentation of each inner loop, and its step
    for i, part in enumerate(shape):
        if row and row.is_drawn and i == len(shape) - 2:
            break
        # What a step makes takes the place of its element, so that nothing is held of elements before.
        made = f"v{i}" if part.filters else f"x{i}" if part.multiplies else element
        line = part.timed_line if timed else part.key_line if row and row.keyed and part is shape[-1] else ""
        line = (line or part.line).format(func=f"f{i}", x=element, new=made)
        if part.guarded:
            lines += [f"{indent}try:", f"{indent} {line}", f"{indent}except BaseException as error:"]
            lines += [f"{indent} {element} = h{i}(error, {element})"]
            lines += [f"{indent} {made} = False"] if timed and part.filters else []
            lines += [f"{indent} if {element} is skip:", *tick(f"{indent}  ", i), f"{indent}  continue"]
            if row and row.keyed and part is shape[-1]:
                lines += [f"{indent} key, {element} = {element}"]
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
        if row and part.multiplies and row.last_loop == i:
            lines += [
                f"{indent}if n{i} > due:",
                *row.given(f"{indent} "),
                f"{indent} due = n{i} + {TOGETHER}",
            ]
    if row is None:
        lines += [f"{indent}yield {element}", *tick(indent, len(shape))]
    elif row.is_drawn:
        lines += row.drawn(indent, element, len(lines), step_of_line, variables)
    else:
        lines += [f"{indent}{'add_key(key); ' if row.keyed else ''}add({element})"]
    lines += [f"{indent}{element} = None"] if inner else []  # while the next one is drawn
    for before, i in reversed(inner):  # the time of the draw that found the end
        lines += tick(before, i)
    given = f"({', '.join(variables)},), {'t' if timed else '0.0'}"
    lines += ["   except BaseException as error:", f"    if not record(error, {given}): raise"]
    lines += ["   if made:", *row.given("    ")] if row else []
    at_end = [f"   count({', '.join(counted)})"] if counted else []
    at_end += [f"   spend({', '.join(spent)})"] if timed else []
    lines += ["  finally:", *(at_end or ["   pass"])]
    lines.append(" return loop")
    namespace: dict[str, Any] = {"islice": itertools.islice, "chain": itertools.chain}
    exec(compile("\n".join(lines), FILE_NAME, "exec"), namespace)
    return namespace["factory"], step_of_line


class _Row:
    """The lines of a loop that gives lists: what it adds elements to, and how it gives that."""

    def __init__(self, shape: Shape) -> None:
        self.keyed = bool(shape[-1].key_line)  # keys are others than elements
        loops = [i for i, part in enumerate(shape) if part.multiplies]
        self.last_loop = loops[-1] if loops else None
        # Where nothing but a look at the hashes is behind a flatmap, its elements are drawn many at once.
        self.is_drawn = len(shape) > 1 and shape[-1].passes and shape[-2].multiplies
        self.last = shape[-1]
        self.number = len(shape) - 1
        self.fresh = ["made = []; add = made.append"]
        if self.keyed:
            self.fresh += ["keys = []; add_key = keys.append"]

    def given(self, indent: str) -> list[str]:
        """Give what there is, and begin anew."""
        lines = [f"yield {'keys' if self.keyed else 'made'}, made", *self.fresh]
        return [indent + line for line in lines]

    def drawn(
        self, indent: str, element: str, before: int, step_of_line: StepOfLine, variables: list[str]
    ) -> list[str]:
        """Draw what the flatmap makes of an element, and look at the hashes of many at once.

        Where one has none, they are looked at one by one. What was drawn before an exception goes on first.
        """
        i, last = self.number - 1, self.number
        one = f"x{i}"
        # `chain` asks for the iterator once: one may lack `__iter__`, or begin anew there.
        lines = [f"some = chain(f{i}({element}))", "while True:", " more, odd = [], None", " try:"]
        lines += [f"  more += islice(some, {TOGETHER})", " finally:", f"  n{i} += len(more)"]
        lines += ["  try:", "   hash(tuple(more))", "  except Exception as error:", "   odd = error"]
        lines += ["  if odd is None:", "   made += more", f"  for {one} in () if odd is None else more:"]
        if self.last.guarded:
            lines += ["   try:", f"    hash({one})", "   except BaseException as error:", "    odd = None"]
            lines += [f"    {one} = h{last}(error, {one})", f"    if {one} is skip: continue"]
        else:
            lines.append(f"   hash({one})")
            step_of_line[before + len(lines)] = last, variables.index(one)
        lines += [f"   add({one})", f"  {one} = None"]
        lines += ["  if odd is not None: raise odd"]  # of none of them: a signal's, say
        lines += [f" if len(made) >= {TOGETHER}:", *self.given("  ")]
        lines += [f" if len(more) < {TOGETHER}: break", "some = more = odd = None"]
        for line in (1, 5):
            step_of_line[before + line] = i, variables.index(element)
        step_of_line[before + 9] = last, variables.index(element)  # what is no `Exception`
        return [indent + line for line in lines]
