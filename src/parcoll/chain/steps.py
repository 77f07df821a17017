"""Steps: the operations of a chain, one class each.

A step describes itself. Its attributes tell the loop, the guard, the marks, the numbers and the checkpoint
what they need to know, so none of them asks for its class. A new step is a class here, and a method of the
collection. `loop` turns a row of steps into the loop that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, ClassVar, NamedTuple

from parcoll.chain.policy import PLAIN, Policy
from parcoll.text import function_name, function_title, function_words

SKIP: Any = object()  # stands for an element that leaves the chain


class Share(NamedTuple):
    """The part that one task has of what the steps of an evaluation may do at the same time."""

    parts: int = 1  # into so many equal parts that is cut, of which the task has one
    fresh: bool = True  # no task had this part before


WHOLE = Share()


class Step:
    """A function, and the way it is applied to each element."""

    kind: ClassVar[str]  # the method of the collection that makes it
    by_user: ClassVar[bool] = True  # a user has written it: no phase of an operation, no part of the source
    is_phase: ClassVar[bool] = False  # of an operation, which has a name of its own
    filters: ClassVar[bool] = False  # leaves elements out: its function tells which
    multiplies: ClassVar[bool] = False  # its function returns an iterable, whose elements go on one by one
    may_lack_function: ClassVar[bool] = False  # None is allowed: it then has a function of its own
    holds: ClassVar[bool] = False  # keeps elements from one draw to the next: it has `stream`, and no line
    together: Callable[[list[Any]], Any] | None = None  # what it calls with several elements at once
    least: int = 1  # elements of a partition that it needs to do well
    waits: ClassVar[bool] = False  # holds elements of which several are in calls: it has `flow`, too
    resumes: ClassVar[bool] = False  # another call for an element gives what the call before has given

    # What `codegen` writes into the loop. {func} and {x} are the function and the element that it gets, {new}
    # is the variable for what it makes. The timed line of a filter is only its answer, as {new}, since the
    # clock is read before an element is left out.
    line: ClassVar[str] = ""
    timed_line: ClassVar[str] = ""
    key_line: ClassVar[str] = ""  # the key alone, as `key`, of a step that goes on with pairs of it and {x}
    passes: ClassVar[bool] = False  # gives its element, if that has a hash
    gathers: ClassVar[bool] = False  # the sink behind it may have its keys and elements in lists

    def __init__(self, func: Callable[..., Any] | None, policy: Policy = PLAIN) -> None:
        self.func = func
        self.policy = policy

    @property
    def counts(self) -> bool:
        """Whether elements that leave have to be counted: they may be more or fewer than those that enter."""
        return self.filters or self.multiplies or self.holds

    @property
    def one_for_one(self) -> bool:
        """Whether each element that enters and does not fail gives one, in order."""
        return not self.counts

    @property
    def call(self) -> Callable[..., Any]:
        """The function that is called with an element. A step that holds elements may have none."""
        return _itself if self.func is None else self.func

    def result(self, made: Any, element: Any) -> Any:
        """Return what goes on if a call with `element` has returned `made`; `SKIP` for nothing."""
        return made

    def replacement(self, value: Any, element: Any) -> Any:
        """Return what goes on if `on_error` has returned `value` for an element that failed."""
        return value

    def stream(self, elements: Iterator[Any], call: Callable[[Any], Any]) -> Iterator[Any]:
        """Give what goes on, and draw elements as they are needed. For a step that `holds` elements.

        `call` is the step's function with its policy; it returns `SKIP` for an element that is left out.
        `elements` end where the partition ends, or the part of it that a worker runs before it hands back the
        rest.
        """
        raise NotImplementedError(f"{self.kind} holds elements and has no stream()")

    def flow(self, elements: Iterator[Any], guard: Any) -> Iterator[Any]:
        """Do as `stream` does, with several calls at the same time. For a step that `waits`.

        `guard` is the step's `Guard`, which is told of which element each call was.
        """
        raise NotImplementedError(f"{self.kind} waits for calls and has no flow()")

    @property
    def limit(self) -> int | None:
        """Into how many parts its calls may be cut at most; None if each task makes calls of its own."""
        return None

    def at_once(self, parts: int) -> int:
        """Return how many calls a task makes at the same time that has one of so many parts."""
        return 1

    def interval(self, parts: int) -> float:
        """Return the least seconds between two calls of a task that has one of so many parts."""
        return 0.0

    def within(self, share: Share) -> Step:
        """Return the step for a task that has this share."""
        return self

    def prepared(self, evaluation: Any) -> Step:
        """Return the step for one evaluation, which may evaluate what it needs: a `Run`."""
        return self

    @property
    def compared(self) -> Any:
        """What a checkpoint compares of its function."""
        return self.func

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What it was given beside its function and policy: a checkpoint compares it."""
        return {name: value for name, value in vars(self).items() if name not in ("func", "policy")}

    @property
    def label(self) -> str:
        """The step as a user wrote it: ``map(parse)``."""
        return f"{self.kind}({function_name(self.func)})"

    @property
    def title(self) -> str:
        """The step for tables; a lambda with its source text, if that is found and short."""
        return f"{self.kind}({function_title(self.func)})"

    @property
    def words(self) -> str:
        """The step for the key of a task: ``map-parse``; for a lambda, what it does."""
        return f"{self.kind}-{function_words(self.func)}"

    def __repr__(self) -> str:
        return self.label


def within(steps: Sequence[Step], share: Share) -> Sequence[Step]:
    """Return the steps for a task that has this share."""
    return steps if share == WHOLE else [step.within(share) for step in steps]


def _itself(element: Any) -> Any:
    return element


class Around:
    """A function around one of the user's, by whose name it goes."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, element: Any) -> Any:
        """Call the function, and make something of what it returns."""
        raise NotImplementedError

    @property
    def __name__(self) -> str:
        return function_name(self.func)

    @property
    def __code__(self) -> CodeType:
        return self.func.__code__  # so that a lambda is shown as it was written


class Map(Step):
    """One result for each element."""

    kind = "map"
    line = timed_line = "{new} = {func}({x})"


class Filter(Step):
    """The elements for which the predicate is true; without a predicate, the elements that are true."""

    kind = "filter"
    filters = True
    may_lack_function = True

    @property
    def line(self) -> str:  # type: ignore[override]
        """The answer, and what follows from it."""
        return "if not {x}: continue" if self.func is None else "if not {func}({x}): continue"

    @property
    def timed_line(self) -> str:  # type: ignore[override]
        """The answer alone."""
        return "{new} = not {x}" if self.func is None else "{new} = not {func}({x})"

    @property
    def call(self) -> Callable[..., Any]:
        """The predicate; without one, the truth of an element, which a user's class may define."""
        return bool if self.func is None else self.func

    def result(self, made: Any, element: Any) -> Any:
        """Return the element if the answer is true."""
        return element if made else SKIP


class FlatMap(Step):
    """The elements of each result, one level deep, drawn one by one."""

    kind = "flatmap"
    multiplies = True
    line = timed_line = "for {new} in {func}({x}):"


class Foreach(Map):
    """A map called for its effect. What it returns replaces the elements."""

    kind = "foreach"


class Origins(tuple[Any, ...]):
    """Steps and sinks of the chains that elements come from, whose modules they may need. None travels."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Origins, ()
