"""Firsts: the first element of each key.

Workers leave out repeats within partitions, and the user's process the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parcoll.keys.gathering import Gatherer
from parcoll.keys.slots import one_nan, slots_of
from parcoll.keys.streams import Operation


class Firsts(Gatherer):
    """The first element of each key in a partition; without keys, each element is its own."""

    def __init__(self, keyed: bool) -> None:
        self.keyed = keyed

    def start(self) -> None:
        """Begin with none."""
        self._firsts: dict[Any, Any] = {}
        self._taken = 0

    def take(self, elements: Iterator[Any]) -> int:
        """Keep those whose keys are new."""
        if not self.keyed:
            self._taken = 0
            self._firsts |= dict.fromkeys(self._counted(elements))
            return self._taken
        firsts, taken = self._firsts, 0
        for key, element in elements:
            taken += 1
            if key not in firsts:
                firsts[key] = element
        return taken

    def _counted(self, elements: Iterator[Any]) -> Iterator[Any]:
        taken = 0
        try:
            for element in elements:
                taken += 1
                yield element
        finally:
            self._taken = taken

    def piece(self) -> tuple[list[Any], list[Any] | None]:
        """Return the keys, and their elements if these are others."""
        keys = list(self._firsts)
        slots_of(keys)  # raises for keys that would never be equal to others
        return keys, list(self._firsts.values()) if self.keyed else None


class Distinct(Operation):
    """The elements whose keys no element before has."""

    name = "distinct"

    @property
    def label(self) -> str:
        """What it does, for tables."""
        return "in_order()"

    def describe(self, others: Any) -> str:
        """Return nothing: the step before is what a user wrote."""
        return ""

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Give them as they come."""
        (pieces,) = streams
        seen: set[Any] = set()
        add = seen.add
        for keys, elements in pieces:
            for key, element in zip(one_nan(keys), keys if elements is None else elements, strict=True):
                if key not in seen:
                    add(key)
                    yield element
