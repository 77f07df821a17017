"""Totals: sums that do not show how their elements were parted."""

from __future__ import annotations

import importlib
import itertools
import math
import operator
import sys
from fractions import Fraction
from typing import Any

from parcoll.chain.failures import stands_between

WHOLE = frozenset((int, bool))
PLAIN = WHOLE | {float}


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


stands_between(Total.add.__code__.co_filename)
