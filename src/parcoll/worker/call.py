"""A call as one value: what a worker runs, when the values of other tasks have taken their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Awaited(NamedTuple):
    """Stands for an argument that another task makes."""

    position: int


class Call:
    """A function and its arguments, some of which are not there yet."""

    __slots__ = ("arguments", "func")

    def __init__(self, func: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.func = func
        self.arguments = arguments

    def __call__(self, *values: Any) -> Any:
        """Call the function with these values in their places."""
        return self.func(*(values[a.position] if type(a) is Awaited else a for a in self.arguments))

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.func, self.arguments)
