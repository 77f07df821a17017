"""The operations of a chain, one class each: what a layer of the bag's graph calls.

A step only says what it is; `chain` turns a row of steps into the loop that runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from parcoll.chain.policy import PLAIN, Policy
from parcoll.text import function_name, function_title, function_words


class Step:
    """A function and the way it is applied to each element."""

    kind: ClassVar[str]
    # What `chain` writes for this step: {func} and {x} are the function and the element it gets,
    # {new} the variable for what it makes. `passes` tells that elements may vanish or multiply here,
    # so that they must be counted.
    line: ClassVar[str]
    counts: ClassVar[bool] = True
    nests: ClassVar[bool] = False

    def __init__(self, func: Callable[..., Any] | None, policy: Policy = PLAIN) -> None:
        self.func = func
        self.policy = policy

    @property
    def timed_line(self) -> str:
        """The line for the loop that times each step."""
        return self.line

    @property
    def label(self) -> str:
        """The step as a user wrote it: ``map(parse)``."""
        return f"{self.kind}({function_name(self.func)})"

    @property
    def title(self) -> str:
        """The same, for tables: a lambda in full, as far as it is found and short."""
        return f"{self.kind}({function_title(self.func)})"

    @property
    def words(self) -> str:
        """The step for the key of a task: ``map-parse``, and of a lambda what it does."""
        return f"{self.kind}-{function_words(self.func)}"

    def __repr__(self) -> str:
        return self.label


class Map(Step):
    """One result for each element."""

    kind = "map"
    line = "{new} = {func}({x})"
    counts = False


class Filter(Step):
    """The elements for which the predicate is true; with None, the true elements."""

    kind = "filter"

    @property
    def line(self) -> str:  # type: ignore[override]
        return "if not {x}: continue" if self.func is None else "if not {func}({x}): continue"

    @property
    def timed_line(self) -> str:
        """The verdict alone: the clock is read before an element is dropped."""
        return "{new} = not {x}" if self.func is None else "{new} = not {func}({x})"


class FlatMap(Step):
    """The elements of each result, one level deep, drawn one by one."""

    kind = "flatmap"
    line = "for {new} in {func}({x}):"
    nests = True


class Foreach(Map):
    """A map called for its effect; what it returns replaces the elements."""

    kind = "foreach"
