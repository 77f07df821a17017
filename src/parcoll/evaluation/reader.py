"""Reader: any source as a stream that is read one partition at a time, in the consumer's thread."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from parcoll.clock import time
from parcoll.keys.streams import Operation

SLICED = (list, tuple, range, str, bytes)  # exact types: a subclass may iterate as it likes
FLUSH_SECONDS = 0.05  # a partition waits no longer than this for a slow source to fill it
FIRST_SECONDS = 0.002  # and no longer than this at the start, while all workers are idle
MAX_READ_BYTES = 32 * 2**20  # a partition ends here, whatever size it should have
STEP = 64  # elements between two looks at the clock and at one element's size
SEVERAL = 8  # elements of a tuple whose sizes are looked at; of a longer one, only the first's
SAMPLES = 128  # elements of a partition whose sizes are looked at, 1 µs each


class Reader:
    """The elements of one evaluation, in partitions. `error` is what the source raised, if it did."""

    ends: Sequence[int] | None = None  # of each element's bytes among those of all, where they are files
    at_hand = 0  # elements that were read ahead, which `read` gives first
    listed: list[Any] | None = None  # is to have all elements that were read, where they are in memory

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.ended = False  # nothing is left, not even of what was read ahead
        self.position = 0

    def read_on_while(self, busy: Callable[[], bool]) -> None:
        """Have a slow source fill partitions as long as that tells that nobody could begin with them."""

    def take_error(self) -> Exception | None:
        """Return what the source raised, and let go of it: its traceback refers to the reader."""
        error, self.error = self.error, None
        return error

    def remaining(self) -> int | None:
        """Return how many elements are left; None if the source does not know."""
        return None

    def look_ahead(self, size: int, max_bytes: int = MAX_READ_BYTES) -> bool:
        """Read until `size` elements are at hand; tell whether they are, or as many as hold `max_bytes`.

        They are fewer where the source is slow, or ends. If there is none yet, waits for one. Where
        the source knows how many are left, there is nothing to look for.
        """
        return True

    def read(self, size: int, max_bytes: int = MAX_READ_BYTES, exact: bool = False) -> Sequence[Any]:
        """Return up to `size` elements; none only at the end.

        They are fewer than `size` if the source is slow, or if they look larger than `max_bytes`, unless
        `exact`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it reads from, which may be another evaluation."""

    def stream(self) -> Iterator[Any]:
        """Give the elements one by one, for who does not call `read`."""
        raise NotImplementedError

    def skip(self, number: int) -> int:
        """Leave out so many elements at most, if that need not read them; return how many."""
        return 0

    def read_all(self) -> list[Any]:
        """Return the rest, or raise what the source raises."""
        elements: list[Any] = []
        while not self.ended:
            elements += self.read(MAX_READ_BYTES)
        if self.error is not None:
            raise self.take_error()  # type: ignore[misc]
        return elements


def reader_of(stream: Iterable[Any]) -> Reader:
    """Return the reader for a stream; it takes slices if these give the same elements."""
    numpy = sys.modules.get("numpy")
    if type(stream) in SLICED or (numpy is not None and type(stream) is numpy.ndarray):
        return SliceReader(stream)  # type: ignore[arg-type]
    return StreamReader(stream)


class SliceReader(Reader):
    """A sequence. A slice costs nothing for each element."""

    def __init__(self, sequence: Sequence[Any]) -> None:
        super().__init__()
        self._sequence = sequence

    def stream(self) -> Iterator[Any]:
        """Iterate over it."""
        return iter(self._sequence[self.position :] if self.position else self._sequence)

    def skip(self, number: int) -> int:
        """Begin further on, where that copies nothing."""
        if isinstance(self._sequence, range):
            self.position += number
            return number
        return 0

    def remaining(self) -> int | None:
        """Return the length that is left; None for a range too long for `len`."""
        try:
            return max(len(self._sequence) - self.position, 0)
        except OverflowError:
            return None

    def read(self, size: int, max_bytes: int = MAX_READ_BYTES, exact: bool = False) -> Sequence[Any]:
        """Return a slice, a shorter one if its elements look large."""
        elements = self._sequence[self.position : self.position + size]
        if not exact and len(elements) > 1:
            elements = elements[: _fitting(elements, max_bytes)]
        self.position += len(elements)
        self.ended = not len(elements)
        if self.listed is not None:
            self.listed += elements
        return elements


def _fitting(elements: Sequence[Any], max_bytes: int) -> int:
    """Return how many elements fit in a partition, judged by one in `STEP`, or by `SAMPLES` of them."""
    if isinstance(elements, (range, str, bytes)):
        return len(elements)
    if not isinstance(elements, (list, tuple)):  # an array: its rows are of one size
        return max(max_bytes * len(elements) // max(_size(elements), 1), 1)
    total = 0
    step = max(STEP, len(elements) // SAMPLES)
    for position in range(0, len(elements), step):
        size = max(_size(elements[position]), 1)
        total += size * step
        if total > max_bytes:  # inside this run
            return max(position, position + (max_bytes - total + size * step) // size, 1)
    return len(elements)


class StreamReader(Reader):
    """Any iterable. It is read in small runs, with a look at the clock and at the bytes between them."""

    def __init__(self, stream: Iterable[Any]) -> None:
        super().__init__()
        self._stream: Iterator[Any] | None = None
        self._iterable = stream
        self._exhausted = False
        self._ahead: list[Any] = []
        self._busy: Callable[[], bool] = bool

    def read_on_while(self, busy: Callable[[], bool]) -> None:
        """Ask that when it has become late."""
        self._busy = busy

    @property
    def at_hand(self) -> int:  # type: ignore[override]
        """How many elements were read ahead."""
        return len(self._ahead)

    def stream(self) -> Iterator[Any]:
        """Iterate over it. What cannot be iterated raises when it is drawn from."""
        yield from self._iterable

    def first(self) -> Any:
        """Return what `read` gives next, and leave it there; None if there is nothing."""
        if not self._ahead:
            self._draw(self._ahead, 1, MAX_READ_BYTES, exact=True)
        return self._ahead[0] if self._ahead else None

    def remaining(self) -> int | None:
        """Return what is left once the source has ended, or if it has a length (a set, a dict's items)."""
        if self._exhausted:
            return len(self._ahead)
        if isinstance(self._iterable, Iterator):
            return None
        try:
            return max(len(self._iterable) - self.position, 0)  # type: ignore[arg-type]
        except Exception:
            return None

    def look_ahead(self, size: int, max_bytes: int = MAX_READ_BYTES) -> bool:
        """Read what the source gives in a moment, at least one element if none is at hand."""
        if self.remaining() is not None:
            return True
        held = self._bytes_of(self._ahead[-1]) * len(self._ahead) if self._ahead else 0
        seconds = FLUSH_SECONDS if self.position else FIRST_SECONDS
        return self._draw(self._ahead, size, max_bytes - held, exact=False, seconds=seconds)

    def read(self, size: int, max_bytes: int = MAX_READ_BYTES, exact: bool = False) -> Sequence[Any]:
        """Return what is at hand, and if that is too little what the source gives within `FLUSH_SECONDS`."""
        elements = self._ahead[:size]
        del self._ahead[:size]
        if not elements or (exact and len(elements) < size):
            self._draw(elements, size, max_bytes, exact)
        self.position += len(elements)
        self.ended = self._exhausted and not self._ahead
        return elements

    def _bytes_of(self, element: Any) -> int:
        return _size(element)

    def _draw(
        self,
        elements: list[Any],
        size: int,
        max_bytes: int,
        exact: bool,
        seconds: float = FLUSH_SECONDS,
    ) -> bool:
        """Draw until there are `size` elements; returns whether there are, or as many as hold `max_bytes`."""
        started = clock = time.perf_counter()
        run, quick, nbytes = 1, 0, 0
        try:
            if self._stream is None:
                self._stream = iter(self._iterable)
            while len(elements) < size and not self._exhausted:
                if not exact and nbytes > max_bytes:
                    return True
                wanted = min(run, size - len(elements))
                before = len(elements)
                elements.extend(itertools.islice(self._stream, wanted))
                if len(elements) - before < wanted:
                    self._exhausted = True
                    break
                nbytes += self._bytes_of(elements[-1]) * wanted
                now = time.perf_counter()
                if not exact and now - started > seconds and not self._busy():
                    break
                # One by one at first: a source may give some at once and then wait for each of the next.
                quick = quick + wanted if now - clock < FLUSH_SECONDS / 100 else 0
                run = min(run * 2, STEP) if quick >= STEP else 1
                clock = now
        except Exception as error:  # not Ctrl-C: that stops the evaluation at once
            self.error = error
            self._exhausted = True
        return len(elements) >= size


class DerivedReader(StreamReader):
    """What an operation makes of streams, of which `lengths` are known or not. At the end it closes them."""

    def __init__(
        self,
        operation: Operation,
        streams: Sequence[Iterator[Any]],
        lengths: Sequence[int] | None = None,
        closed: Callable[[], object] | None = None,
    ) -> None:
        """`closed` is called when nobody needs what was read any more."""
        self._closed = closed
        self._made = self._elements(operation, streams)
        super().__init__(self._made)
        self._length = None if lengths is None else operation.length(*lengths)

    @staticmethod
    def _elements(operation: Operation, streams: Sequence[Iterator[Any]]) -> Generator[Any, None, None]:
        made = operation.made(*streams)
        try:
            yield from made
        finally:
            for stream in (made, *streams):
                if isinstance(stream, Generator):
                    stream.close()

    def remaining(self) -> int | None:
        """Return how many are left, where that is known."""
        if self._exhausted or self._length is None:
            return super().remaining()
        return max(self._length - self.position, 0)

    def close(self) -> None:
        """End what gives the elements."""
        try:
            self._made.close()
        finally:
            if self._closed is not None:
                self._closed()

    def _bytes_of(self, element: Any) -> int:
        """Look into tuples, which operations make of elements that may be large."""
        nbytes = _size(element)
        if type(element) is tuple and element:
            if len(element) > SEVERAL:
                return nbytes + len(element) * self._bytes_of(element[0])
            nbytes += sum(map(self._bytes_of, element))
        return nbytes


def _size(element: Any) -> int:
    """Return about how many bytes an element holds: itself, not what it refers to."""
    try:
        return int(getattr(element, "nbytes", 0)) or sys.getsizeof(element)
    except Exception:
        return 64
