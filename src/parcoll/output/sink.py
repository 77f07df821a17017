"""Sink: what takes elements that are to be written, on the workers: rows are encoded as they come."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from parcoll.chain import apart
from parcoll.chain.failures import stands_between
from parcoll.chain.place import Place
from parcoll.chain.sinks import Pack, Sink
from parcoll.output.encoding import Encoded, Format, MisfitError
from parcoll.output.parked import Parking
from parcoll.text import short_repr
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Payload


class Encodes(Sink):
    """What stands for the elements in files, or in a table: an `Encoded`."""

    resumes = True
    parking: Parking | None = None  # where the rows are put, if they do not go back

    def __init__(self, label: str, format: Format, default: Any = None, timeout: float | None = None) -> None:
        self.label = label
        self.format = format
        self.default = default
        self.timeout = timeout

    def start(self) -> None:
        """Begin with no rows."""
        self._encoder = self.format.encoder(self.default, self._tally.where)

    def take(self, elements: Iterator[Any]) -> None:
        """Encode the elements."""
        try:
            self._encoder.take(elements)
        finally:
            self.taken = self._encoder.taken

    def finish(self, pack: Pack) -> Payload | None:
        """Pack the rows."""
        started = apart.clock()
        try:
            parts = self._encoder.parts()
            if self.parking is not None:
                parts = [self.parking.parked(part) for part in parts]
        except MisfitError as error:
            whose = self._place.element(error.position)
            if not self._tally.in_place:
                whose = f"result {error.position} of the partition from {self._place.element(0)} on"
            note = f"in {self.label}, at {whose}: {short_repr(error.row)}"
            self.failure = Failure.of(ValueError(error.message), note)
            return None
        return pack(Encoded(parts, apart.clock() - started)) if parts else None

    def parked_at(self, parking: Parking) -> Encodes:
        """Return it for rows that do not go back."""
        found = copy.copy(self)
        found.parking = parking
        return found

    @property
    def current(self) -> Any:
        """The element that was encoded last."""
        return self._encoder.element

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The function for what JSON does not know."""
        return {} if self.default is None else {"default": self.default}

    def name_call(self, function: int, number: int, place: Place, in_place: bool) -> tuple[str, str]:
        """Name a call by its number: an element may have several, or none."""
        return f"{self.label}, calling default=", f"call {number} for the partition from {place.element(0)}"


stands_between(Encodes.take.__code__.co_filename)
