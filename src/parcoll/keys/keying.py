"""Keying: the step that calls the key function of a keyed operation. Its policy is that of any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parcoll.chain.policy import PLAIN, Policy
from parcoll.chain.steps import Step
from parcoll.text import function_name, function_title, function_words


class Keyed(Step):
    """Pairs of each element's key and the element; without a function, the elements, which are their keys.

    A key that cannot be hashed is a failure of its element, if keys are to be `hashed`. With `alone`, the
    keys go on without their elements.
    """

    kind = "keyed"
    may_lack_function = True

    def __init__(
        self,
        name: str,
        func: Callable[[Any], Any] | None,
        policy: Policy = PLAIN,
        hashed: bool = True,
        alone: bool = False,
        settings: str = "",
    ) -> None:
        super().__init__(func, policy)
        self.name = name  # of the method of the collection
        self.settings = settings  # of the method, as written
        self.hashed = hashed
        self.alone = alone
        self.by_itself = func is None  # an element is its own key, also where that is noted as a call

    @property
    def line(self) -> str:  # type: ignore[override]
        """The key, then its hash, and then the pair in the element's place."""
        if self.by_itself:
            if self.func is not None:  # it notes the call of what `call` returned
                return "{new} = {func}({x})"
            return "hash({x}); {new} = {x}" if self.hashed else "{new} = {x}"
        check = "hash(key); " if self.hashed else ""
        return f"key = {{func}}({{x}}); {check}{{new}} = {'key' if self.alone else '(key, {x})'}"

    timed_line = line
    gathers = True

    @property
    def key_line(self) -> str:  # type: ignore[override]
        """The key, and its hash."""
        if self.by_itself or self.alone:
            return ""
        return "key = {func}({x}); hash(key)" if self.hashed else "key = {func}({x})"

    @property
    def passes(self) -> bool:  # type: ignore[override]
        """Whether elements are their own keys."""
        return self.func is None and self.hashed

    @property
    def call(self) -> Callable[..., Any]:
        """The function; without one, what gives an element that has a hash."""
        if self.func is not None:
            return self.func
        return _hashable if self.hashed else _itself

    def result(self, made: Any, element: Any) -> Any:
        """Return the pair, or the key alone."""
        if self.hashed:
            hash(made)
        return made if self.by_itself or self.alone else (made, element)

    def replacement(self, value: Any, element: Any) -> Any:
        """Return it for what `on_error` returned: that stands for the key."""
        return self.result(value, element)

    @property
    def label(self) -> str:
        """The operation as a user wrote it: ``group_by(user)``."""
        return self._written("" if self.by_itself else function_name(self.func))

    @property
    def title(self) -> str:
        """The same; a lambda with its source text."""
        return self._written("" if self.by_itself else function_title(self.func))

    def _written(self, func: str) -> str:
        return f"{self.name}({', '.join(filter(None, (func, self.settings)))})"

    @property
    def words(self) -> str:
        """The same in letters."""
        return self.name if self.by_itself else f"{self.name}-{function_words(self.func)}"


def _hashable(element: Any) -> Any:
    hash(element)
    return element


def _itself(element: Any) -> Any:
    return element
