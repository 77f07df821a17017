"""Around: functions of an element that call a function of the user's, and the steps that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from parcoll.chain.failures import own_frames, stands_between
from parcoll.chain.marks import Marked
from parcoll.chain.place import Place
from parcoll.chain.policy import Policy
from parcoll.chain.steps import SKIP, Around, Map, Step
from parcoll.errors import ElementError
from parcoll.text import function_name, short_repr
from parcoll.wire.exceptions import Failure


class WithKey(Around):
    """The key of an element, and the element."""

    def __call__(self, element: Any) -> tuple[Any, Any]:
        """Ask for the key."""
        return self.func(element), element


class Ends(Around):
    """Whether the predicate is false, and the element."""

    def __call__(self, element: Any) -> tuple[bool, Any]:
        """Ask the predicate."""
        return not self.func(element), element


class Begins(Around):
    """The same, with what goes on if it is false, and with the element as it was."""

    def __call__(self, element: Any) -> tuple[bool, Any, Any]:
        """Ask the predicate."""
        return not self.func(element), element, element


class Stands(Around):
    """An `on_error` function, as what asks a predicate: what it returns stays."""

    def __call__(self, error: ElementError) -> tuple[bool, Any]:
        """Ask it."""
        return False, self.func(error)


class StandsForKey(Around):
    """An `on_error` function that returns the key of an element."""

    def __call__(self, error: ElementError) -> tuple[Any, Any]:
        """Ask it."""
        return self.func(error), error.element


class Deferred:
    """An `on_error` for elements of which nobody knows yet whether they are asked for."""

    def __init__(self, on_error: Any) -> None:
        self.on_error = on_error

    @property
    def __name__(self) -> str:
        return function_name(self.on_error)

    def __call__(self, error: ElementError) -> tuple[bool | None, Any, Any]:
        """Return what becomes of the element if it is, and the element."""
        if callable(self.on_error):
            return True, self.on_error(error), error.element
        if self.on_error == "skip":
            return None, None, error.element
        at = Place(error.index, error.partition).element(0)
        note = f"in {error.step}, at {at}: {short_repr(error.element)}"
        return None, Failure.of(error.exception, note, own_frames(error.exception)), error.element


class StarMap(Map):
    """One result for each element, which has the arguments."""

    kind = "starmap"

    @property
    def line(self) -> str:  # type: ignore[override]
        """The call. A function that notes its calls is called with the element."""
        return super().line if isinstance(self.func, Marked) else "{new} = {func}(*{x})"

    timed_line = line

    @property
    def call(self) -> Callable[..., Any]:
        """The function of an element."""
        return super().call if isinstance(self.func, Marked) else self._spread

    def _spread(self, element: Any) -> Any:
        assert self.func is not None
        return self.func(*element)


class TakeWhile(Map):
    """Each element with the predicate's answer. `keys.streams` makes the cut, where elements are in order."""

    kind = "take_while"

    @classmethod
    def of(cls, predicate: Callable[..., Any], policy: Policy) -> Step:
        """Return the step."""
        if callable(policy.on_error):
            policy = replace(policy, on_error=Stands(policy.on_error))
        return cls(Ends(predicate), policy)


class DropWhile(Map):
    """The same, but once the answer is false, nobody asks for those behind it in the partition.

    The cut may be in an earlier partition. So what the predicate raises is decided upon there, too.
    """

    kind = "drop_while"
    holds = True

    @classmethod
    def of(cls, predicate: Callable[..., Any], policy: Policy) -> Step:
        """Return the step."""
        return cls(Begins(predicate), replace(policy, on_error=Deferred(policy.on_error)))

    def stream(self, elements: Iterator[Any], call: Callable[[Any], Any]) -> Iterator[Any]:
        """Ask until the answer is false."""
        for element in elements:
            made = call(element)
            if made is SKIP:
                continue
            yield made
            if made[0]:
                break
        for element in elements:
            yield True, element, element


class KeyOf(Map):
    """Each element behind its key."""

    @classmethod
    def of(cls, key: Callable[..., Any], policy: Policy) -> Step:
        """Return the step."""
        if callable(policy.on_error):
            policy = replace(policy, on_error=StandsForKey(policy.on_error))
        return cls(WithKey(key), policy)


class KeyOfMin(KeyOf):
    """The key by which `min` compares."""

    kind = "min"


class KeyOfMax(KeyOf):
    """The key by which `max` compares."""

    kind = "max"


class KeyOfLargest(KeyOf):
    """The key by which `nlargest` compares."""

    kind = "nlargest"


class KeyOfSmallest(KeyOf):
    """The key by which `nsmallest` compares."""

    kind = "nsmallest"


stands_between(WithKey.__call__.__code__.co_filename)
