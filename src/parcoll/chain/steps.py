"""Steps: the operations of a chain, one class each.

A step knows itself. Its attributes say what the loop, the guard, the marks, the numbers and the checkpoint
have to know of it, so that none of them asks which class it is. A new step is a class here, and a method of
the collection. `loop` turns a row of steps into the loop that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from parcoll.chain.policy import PLAIN, Policy
from parcoll.text import function_name, function_title, function_words

SKIP: Any = object()  # in the place of an element that leaves the chain


class Step:
    """A function, and the way it is applied to each element."""

    kind: ClassVar[str]  # the method of the collection that makes it
    filters: ClassVar[bool] = False  # leaves elements out: its function gives a verdict
    multiplies: ClassVar[bool] = False  # its function gives an iterable, whose elements go on one by one
    holds: ClassVar[bool] = False  # keeps elements from one draw to the next: it has `stream`, and no line

    # What `codegen` writes into the loop: {func} and {x} are the function and the element it gets, {new} the
    # variable for what it makes. The timed line of a filter is its verdict alone, as {new}, since the clock
    # is read before an element is left out.
    line: ClassVar[str] = ""
    timed_line: ClassVar[str] = ""

    def __init__(self, func: Callable[..., Any] | None, policy: Policy = PLAIN) -> None:
        self.func = func
        self.policy = policy

    @property
    def counts(self) -> bool:
        """Whether those that leave have to be counted: they may be more or fewer than those that enter."""
        return self.filters or self.multiplies or self.holds

    @property
    def call(self) -> Callable[..., Any]:
        """The function that is called with an element; a step that holds them may have none."""
        return _itself if self.func is None else self.func

    def result(self, made: Any, element: Any) -> Any:
        """Return what goes on where a call with `element` returned `made`, `SKIP` for nothing."""
        return made

    def stream(self, elements: Iterator[Any], call: Callable[[Any], Any]) -> Iterator[Any]:
        """Give what goes on, drawing the elements as they are needed; for a step that `holds`.

        `call` is the step's function with its policy: it returns `SKIP` for an element that is left out. An
        end of `elements` is the end of the partition, or of the part of it that a worker hands back.
        """
        raise NotImplementedError(f"{self.kind} holds elements and has no stream()")

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


def _itself(element: Any) -> Any:
    return element


class Map(Step):
    """One result for each element."""

    kind = "map"
    line = timed_line = "{new} = {func}({x})"


class Filter(Step):
    """The elements for which the predicate is true; with None, the true elements."""

    kind = "filter"
    filters = True

    @property
    def line(self) -> str:  # type: ignore[override]
        """The verdict, and what follows from it."""
        return "if not {x}: continue" if self.func is None else "if not {func}({x}): continue"

    @property
    def timed_line(self) -> str:  # type: ignore[override]
        """The verdict alone."""
        return "{new} = not {x}" if self.func is None else "{new} = not {func}({x})"

    @property
    def call(self) -> Callable[..., Any]:
        """The predicate; for None the truth of an element, which may be a method of the user's."""
        return bool if self.func is None else self.func

    def result(self, made: Any, element: Any) -> Any:
        """Return the element where the verdict is true."""
        return element if made else SKIP


class FlatMap(Step):
    """The elements of each result, one level deep, drawn one by one."""

    kind = "flatmap"
    multiplies = True
    line = timed_line = "for {new} in {func}({x}):"


class Foreach(Map):
    """A map called for its effect; what it returns replaces the elements."""

    kind = "foreach"
