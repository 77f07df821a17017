"""Place: where a partition stands in its source."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """The index of a partition's first element: in the whole source, or in a partition of a bag."""

    base: int = 0
    partition: int | None = None  # of a bag, whose partitions have lengths that nobody knows here

    @property
    def first(self) -> bool:
        """Whether the source starts here."""
        return self.base == 0 and not self.partition

    @property
    def order(self) -> int:
        """What the partitions of one source are sorted by."""
        return self.base if self.partition is None else self.partition

    def after(self, elements: int) -> Place:
        """Return the place so many elements further on."""
        return self._replace(base=self.base + elements)

    def __dask_tokenize__(self) -> object:
        return self.order  # dask hashes what it submits, but our keys do not depend on the hash

    def element(self, offset: int) -> str:
        """Name the element at this offset, for messages."""
        of = "" if self.partition is None else f" of partition {self.partition}"
        return f"element {self.base + offset}{of}"


def reached(place: Place) -> Place:
    """Return the place of elements that do not stand where those of the source do."""

    class Reached(Place):
        def element(self, offset: int) -> str:
            return f"element {self.base - place.base + offset} of those of its partition that reached it"

    return Reached(*place)


START = Place()
