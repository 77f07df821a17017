"""Extremes: the largest and smallest elements. Each part of a chain gives those that may be the answer."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Sequence
from typing import Any

from parcoll.chain.failures import stands_between

TOTAL = frozenset((int, bool, str, bytes))  # of any two of one of these, one is less, or they are equal
SETS = (set, frozenset)
LEAST_SORTED = 4096  # elements that are sorted at once


def is_nan(key: Any) -> bool:
    """Tell whether this is a number that is neither less nor greater than any other."""
    return isinstance(key, float) and key != key


def is_odd(key: Any) -> bool:
    """Tell whether this may be neither less, nor equal, nor greater than another one."""
    if isinstance(key, (tuple, list)):
        return any(map(is_odd, key))
    try:
        return isinstance(key, SETS) or bool(key != key)
    except Exception:  # an array: comparing it will tell
        return False


class Candidates:
    """What there is of one part of a chain. Parts are merged in the order of the source."""

    def __init__(self, keyed: bool, largest: bool) -> None:
        self.keyed = keyed  # the elements are pairs of a key and an element
        self.largest = largest

    def keys(self, elements: Sequence[Any]) -> Sequence[Any]:
        """Return what the elements are compared by."""
        return [element[0] for element in elements] if self.keyed else elements

    def settle(self) -> None:
        """Make ready to travel."""

    @property
    def key(self) -> Callable[[Any], Any] | None:
        """The function for that."""
        return operator.itemgetter(0) if self.keyed else None

    def shown(self, found: Any) -> Any:
        """Return an element without its key."""
        return found[1] if self.keyed else found


class Extreme(Candidates):
    """What `min` or `max` gives, which go from left to right, whatever the order of the elements is.

    NaN counts where it is the first of all: nothing is less or greater. From an element on whose order is odd
    in another way, as that of sets is, all are kept: no other can stand for them.
    """

    def __init__(self, keyed: bool, largest: bool) -> None:
        super().__init__(keyed, largest)
        self.some = False
        self.head: list[Any] = []  # the first element, if it is NaN
        self.best: list[Any] = []  # at most one, of those up to an odd one
        self.rest: list[Any] = []  # those from there on

    def add(self, elements: list[Any]) -> None:
        """Take in the elements of this part, some behind the others."""
        keys = self.keys(elements)
        odd = [] if TOTAL.issuperset(map(type, keys)) else list(map(is_odd, keys))
        if any(odd):
            nan = list(map(is_nan, keys))
            self.head = elements[:1] if not self.some and nan[0] else self.head
            elements = [element for element, is_nan in zip(elements, nan, strict=True) if not is_nan]
            odd = [is_odd for is_odd, is_nan in zip(odd, nan, strict=True) if not is_nan]
        self.some = True
        position = 0 if self.rest else odd.index(True) if any(odd) else len(elements)
        self.best = self._of([*self.best, *elements[:position]])
        self.rest += elements[position:]

    def merge(self, later: Extreme) -> None:
        """Take in the part behind this one, with which the chain begins."""
        self.head = self.head if self.some else later.head
        self.some = self.some or later.some
        self.best = self._of([*self.best, *later.best, *later.rest])

    def _of(self, elements: list[Any]) -> list[Any]:
        if len(elements) < 2:
            return elements
        return [max(elements, key=self.key) if self.largest else min(elements, key=self.key)]

    def answer(self) -> list[Any]:
        """Return the element, if there is any."""
        return list(map(self.shown, self.head or self.best))


class Ranked(Candidates):
    """What `heapq.nlargest` or `nsmallest` gives: of equal ones the first. NaN comes behind all others."""

    def __init__(self, keyed: bool, largest: bool, number: int) -> None:
        super().__init__(keyed, largest)
        self.number = number
        self.best: list[Any] = []  # in order
        self.behind: list[Any] = []  # of those, NaN
        self._more: list[Any] = []  # not sorted yet

    def add(self, elements: list[Any]) -> None:
        """Take in the elements of this part, some behind the others."""
        keys = self.keys(elements)
        if not TOTAL.issuperset(map(type, keys)) and any(map(is_nan, keys)):
            nan = list(map(is_nan, keys))
            self.behind += [element for element, is_nan in zip(elements, nan, strict=True) if is_nan]
            del self.behind[self.number :]
            elements = [element for element, is_nan in zip(elements, nan, strict=True) if not is_nan]
            keys = self.keys(elements)
        if self.best and len(self.best) == self.number:  # most are none of the best, which takes no sorting
            (last,), before = self.keys(self.best[-1:]), operator.gt if self.largest else operator.lt
            elements = [element for element, key in zip(elements, keys, strict=True) if before(key, last)]
        self._more += elements
        if len(self._more) > max(self.number, LEAST_SORTED):
            self._rank()

    def merge(self, later: Ranked) -> None:
        """Take in the part behind this one."""
        later.settle()
        self._more += later.best
        if len(self._more) > max(self.number, LEAST_SORTED):
            self._rank()
        self.behind = [*self.behind, *later.behind][: self.number]

    def _rank(self) -> None:
        best = heapq.nlargest if self.largest else heapq.nsmallest
        self.best, self._more = best(self.number, self.best + self._more, self.key), []

    def settle(self) -> None:
        """Let go of what is none of the best."""
        self._rank()

    def answer(self) -> list[Any]:
        """Return the elements."""
        self._rank()
        return list(map(self.shown, (self.best + self.behind)[: self.number]))


stands_between(Extreme.add.__code__.co_filename)
