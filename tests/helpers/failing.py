"""A step that fails for some elements, and what takes their place."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from parcoll import ElementError


class Failing:
    """A step that fails for some elements: for good, or so many times before it works."""

    def __init__(
        self, kind: str, bad: int, given_first: int, fails: int, retries: int, on_error: Any, known: bool
    ) -> None:
        self.kind = kind
        self.bad = bad  # the elements of this remainder fail
        self.given_first = given_first if kind == "flatmap" else 0  # before it raises
        self.retries = retries
        self.on_error = on_error
        self.known = known  # the exception is one of those to retry on
        self.fails = fails  # times in a row
        self.calls: Counter[int] = Counter()  # by thread, which makes all calls for an element

    @property
    def for_good(self) -> bool:
        return self.fails > self.retries or not self.known or self.given_first > 0

    def __repr__(self) -> str:
        return f"Failing{tuple(vars(self).values())}"

    def raises(self, x: int) -> bool:
        if x % 5 != self.bad:
            return False
        if self.for_good:
            return True
        thread = threading.get_ident()
        self.calls[thread] = (self.calls[thread] + 1) % (self.fails + 1)  # works at last, and starts again
        return self.calls[thread] > 0

    def right(self, x: int) -> Any:
        """Return what the step makes of an element that does not fail."""
        return {"map": x + 3, "filter": x % 3 != 0, "flatmap": [x + i for i in range(x % 4)]}[self.kind]

    def __call__(self, x: int) -> Any:
        if self.kind == "flatmap":
            return self.draw(x)
        if self.raises(x):
            raise ValueError(x)
        return self.right(x)

    def draw(self, x: int) -> Iterator[int]:
        if self.raises(x):
            yield from range(self.given_first)
            raise ValueError(x)
        yield from self.right(x)

    def extend(self, collection: Any, **more: Any) -> Any:
        retry_on = {} if not self.retries else {"retry_on": ValueError if self.known else KeyError}
        method = getattr(collection, self.kind)
        return method(self, on_error=self.on_error, retries=self.retries, **retry_on, **more)


def stand_in(error: ElementError) -> int:
    return 100 + error.element
