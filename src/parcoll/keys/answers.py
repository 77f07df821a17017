"""Answers: one value about all elements: the largest and smallest ones, and sums.

Each part of a chain gives what may be the answer, or is needed for it. A sum does not show how its elements
were parted.
"""

from __future__ import annotations

import heapq
import importlib
import itertools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from parcoll.chain.failures import stands_between

TOTAL = frozenset((int, bool, str, bytes))  # of any two of one of these, one is less, or they are equal
SETS = (set, frozenset)
LEAST_SORTED = 4096  # elements that are sorted at once
WHOLE = frozenset((int, bool))
PLAIN = WHOLE | {float}


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


class Total:
    """The sum of one part of a chain: exact for plain numbers; others are kept, to be added in order."""

    def __init__(self) -> None:
        self.plain = False  # there are plain numbers
        self.whole = 0
        self.floats = False  # there are floats
        self.of_numpy = False  # and numpy's among them
        self.partials: list[float] = []  # whose exact sum is that of the floats
        self.fraction = Fraction(0)  # and of those that were too large to be added
        self.special: float | None = None  # what infinite and NaN ones make
        self.others: list[Any] = []

    def add(self, elements: list[Any]) -> None:
        """Take in elements of this part."""
        kinds = set(map(type, elements))
        if not kinds <= PLAIN and (numpy := sys.modules.get("numpy")) is not None:
            if kinds == {numpy.int64}:  # whose sums may be grouped in any way
                self.others.append(sum(elements[1:], elements[0]))
                return
            if numpy.float64 in kinds:
                self.of_numpy = True
                elements = [float(x) if type(x) is numpy.float64 else x for x in elements]
                kinds = set(map(type, elements))
        if not kinds <= PLAIN:
            self.others += [element for element in elements if type(element) not in PLAIN]
            elements = [element for element in elements if type(element) in PLAIN]
            kinds &= PLAIN
        self.plain = self.plain or bool(kinds)
        if float in kinds:
            floats = [x for x in elements if type(x) is float] if len(kinds) > 1 else elements
            elements = [x for x in elements if type(x) is not float] if len(kinds) > 1 else []
            self._add_floats(floats)
        self.whole += sum(elements)

    def settle(self) -> None:
        """Make ready to travel."""

    def _merge(self, later: Total) -> None:
        self.plain = self.plain or later.plain
        self.of_numpy = self.of_numpy or later.of_numpy
        self.whole += later.whole
        self.fraction += later.fraction
        if later.floats:
            self._add_floats(later.partials)
        if later.special is not None:
            self._add_special([later.special])

    def _add_floats(self, floats: list[float]) -> None:
        self.floats = True
        try:
            self.partials = _partials(self.partials + floats)
        except (OverflowError, ValueError):
            finite = list(filter(math.isfinite, self.partials + floats))
            if len(finite) < len(self.partials) + len(floats):
                self._add_special(list(itertools.filterfalse(math.isfinite, floats)))
                self.partials = []
                self._add_floats(finite)
            else:
                self.partials = []
                self.fraction += sum(map(Fraction, finite))

    def _add_special(self, special: list[float]) -> None:
        self.special = sum(special, self.special or 0.0)

    def _number(self) -> Any:
        """Return the sum of the plain numbers: a float if there was one, the nearest to the exact sum."""
        if not self.floats:
            return self.whole
        if self.of_numpy:
            return importlib.import_module("numpy").float64(self._float())
        return self._float()

    def _float(self) -> float:
        if self.special is not None:
            return self.special
        exact = self.fraction + self.whole + sum(map(Fraction, self.partials))
        try:
            return float(exact)
        except OverflowError:
            float(self.whole)  # or that is too large
            return math.inf if exact > 0 else -math.inf


class Sum(Total):
    """The sum of all parts, and of what it starts from."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self._value = start
        self._others = False  # others have been added to it

    def merge(self, later: Total) -> None:
        """Take in the part behind those before."""
        self._merge(later)
        if later.others:
            self._others = True
            self._value = sum(later.others, self._value)

    def answer(self) -> Any:
        """Return it."""
        if not self.plain:
            return self._value
        if type(self._value) in PLAIN and not self._others:
            self.add([self._value])
            return self._number()
        return self._value + self._number()


def _partials(floats: list[float]) -> list[float]:
    """Return few floats with the same exact sum.

    Raises OverflowError or ValueError where there is none, or where it is too large on the way.
    """
    found: list[float] = []
    while rest := math.fsum(itertools.chain(floats, map(operator.neg, found))):
        if not math.isfinite(rest):
            raise ValueError(rest)
        found.append(rest)
    return found


stands_between(Extreme.add.__code__.co_filename)
