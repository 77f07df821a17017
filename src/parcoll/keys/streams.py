"""Streams: what is made of the elements of chains in order, one after the other, where they come together."""

from __future__ import annotations

import copy
import hashlib
import itertools
import operator
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from parcoll.text import function_name, short_repr
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed

ATOMS = (int, float, complex, bool, str, bytes, type(None))  # nobody can write into them
NOTHING: Any = object()  # stands for an element that does not come
BLOCK = 512  # numbers that are made at once


class Done:
    """Elements that the only step behind an operation would make, which has no more to do."""

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements


class Operation:
    """What makes elements of the elements of one chain, or of several. It pickles, and holds no state."""

    name: ClassVar[str]  # the method of the collection that makes it
    filters: ClassVar[bool] = False  # leaves elements out
    unopened: ClassVar[bool] = False  # may give elements as workers have packed them
    asks: ClassVar[bool] = False  # has a step of its own before it, which calls the function
    skips = 0  # elements of the first chain, from the first on, that it does not look at

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Give the elements; draw from the streams as they are needed, in order."""
        raise NotImplementedError

    def skipped(self, number: int) -> Operation:
        """Return the operation for a chain without so many of those."""
        return self

    def within(self, around: Any) -> Operation:
        """Return the operation for one evaluation, of which it may ask more than the streams (`exchange`)."""
        return self

    def may_be_done(self, limit: int | None) -> bool:
        """Tell whether it may give `Done`, where so many results are wanted."""
        return False

    def may_refer(self, is_last: bool, threads: int) -> bool:
        """Tell whether it knows what to do with positions of elements that lie in this process.

        `is_last` if what the only step behind it makes comes here.
        """
        return False

    def length(self, *lengths: int) -> int | None:
        """Return how many elements are made of streams of these lengths; None if nobody knows."""
        return None

    @property
    def label(self) -> str:
        """The operation for tables: ``batched(3)``."""
        return f"{self.name}()"

    def describe(self, others: Sequence[str]) -> str:
        """Return it as a user wrote it; `others` are the chains behind the first."""
        return self.label


class Batches(Operation):
    """Tuples of `size` elements; the last may be shorter."""

    name = "batched"

    def __init__(self, size: int) -> None:
        self.size = size

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Cut the elements."""
        (elements,) = streams
        while batch := tuple(itertools.islice(elements, self.size)):
            yield batch

    def length(self, *lengths: int) -> int | None:
        """Divide, and count what is left over."""
        return -(-lengths[0] // self.size)

    @property
    def label(self) -> str:
        """With the size."""
        return f"batched({self.size})"


class Enumerated(Operation):
    """Each element with its number."""

    name = "enumerate"

    def __init__(self, start: int) -> None:
        self.start = start

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Count them."""
        return enumerate(streams[0], self.start)

    def length(self, *lengths: int) -> int | None:
        """Return that of the chain."""
        return lengths[0]

    @property
    def label(self) -> str:
        """With the first number, unless that is 0."""
        return f"enumerate({self.start or ''})"


class Several(Operation):
    """What is made of one chain and of others behind it."""

    def __init__(self, others: int) -> None:
        self.others = others

    @property
    def label(self) -> str:
        """With the number of the others."""
        return f"{self.name}({self.others} other{'s' * (self.others != 1)})"

    def describe(self, others: Sequence[str]) -> str:
        """Name the others."""
        return f"{self.name}({', '.join(others)})"


class Zipped(Several):
    """Tuples of an element of each chain."""

    name = "zip"

    def __init__(self, others: int, strict: bool) -> None:
        super().__init__(others)
        self.strict = strict

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Zip them."""
        return zip(*streams, strict=self.strict)

    def length(self, *lengths: int) -> int | None:
        """Return the least."""
        return min(lengths)


class Chained(Several):
    """The elements of each chain, one chain after the other."""

    name = "chain"

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Begin with each stream when the one before it has ended."""
        return itertools.chain(*streams)

    def length(self, *lengths: int) -> int | None:
        """Return the sum."""
        return sum(lengths)


class Pairs(Operation):
    """Each element with the one behind it."""

    name = "pairwise"

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Pair them."""
        return itertools.pairwise(streams[0])

    def length(self, *lengths: int) -> int | None:
        """Return one less."""
        return max(lengths[0] - 1, 0)


class Scanned(Operation):
    """The values of a fold, one for each element, and before them the one that it starts from, if it does."""

    name = "scan"

    def __init__(self, func: Callable[[Any, Any], Any], initial: Packed | None) -> None:
        self.func = func
        self.initial = initial  # packed, so that every evaluation starts from a copy of its own

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Fold. A value that the function has written into goes on as a copy: it may write again."""
        (elements,), func = streams, self.func
        value = next(elements, NOTHING) if self.initial is None else self.initial.load()
        if value is NOTHING:
            return
        yield value if type(value) in ATOMS else copy.deepcopy(value)
        for index, element in enumerate(elements, self.initial is None):
            before = value
            try:
                value = func(value, element)
            except Exception as error:
                at = f"element {index} of those that reached it: {short_repr(element)}"
                error.add_note(f"in {self.label}, at {at}")
                raise
            yield value if value is not before or type(value) in ATOMS else copy.deepcopy(value)

    def length(self, *lengths: int) -> int | None:
        """Count the start."""
        return lengths[0] + (self.initial is not None)

    @property
    def label(self) -> str:
        """With the function."""
        return f"scan({function_name(self.func)})"


class Skipped(Operation):
    """What comes behind the first elements."""

    name = "skip"
    filters = True

    def __init__(self, number: int) -> None:
        self.number = self.skips = number

    def skipped(self, number: int) -> Operation:
        """Drop fewer."""
        return Skipped(self.number - number)

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Drop the first ones."""
        return itertools.islice(streams[0], self.number, None)

    def length(self, *lengths: int) -> int | None:
        """Return what is left."""
        return max(lengths[0] - self.number, 0)

    @property
    def label(self) -> str:
        """With the number."""
        return f"skip({self.number})"


class Sampled(Operation):
    """Each element with a probability; a digest of the seed and the element's index decides."""

    name = "sample"
    filters = True

    def __init__(self, probability: float, seed: Any) -> None:
        self.probability = probability
        self.seed = seed

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Compare with a number from 0 to 2**64 for each element, of which a digest makes a block at once."""
        (elements,), least = streams, int(self.probability * 2**64)
        text = f"{type(self.seed).__name__} {self.seed!r}"
        seed = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16)
        for block in itertools.count():
            digest = hashlib.shake_128(seed.digest() + block.to_bytes(16, "little"))
            numbers = struct.unpack(f"<{BLOCK}Q", digest.digest(8 * BLOCK))
            index = -1
            for index, element in enumerate(itertools.islice(elements, BLOCK)):
                if numbers[index] < least:
                    yield element
            if index + 1 < BLOCK:
                return

    @property
    def label(self) -> str:
        """With the probability."""
        return f"sample({self.probability:g})"


class Cut(Operation):
    """What a predicate's answers leave of the elements, with which they come; a step has asked for them."""

    filters = True
    asks = True

    @property
    def label(self) -> str:
        """What it does: the step before has the name."""
        return "cut"

    def describe(self, others: Sequence[str]) -> str:
        """Return nothing: the step before says it."""
        return ""


class TakenWhile(Cut):
    """The elements before the first one of which the answer is false."""

    name = "take_while"

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """End at that."""
        for ends, element in streams[0]:
            if ends:
                return
            yield element


class DroppedWhile(Cut):
    """The elements from the first one on of which the answer is false."""

    name = "drop_while"

    def made(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """Begin with that. What a call raised for an element behind it is nobody's concern."""
        (elements,) = streams
        for stays, made, _ in elements:
            if isinstance(made, Failure):
                raise made.rebuild()
            if stays is None:  # left out
                continue
            if stays:
                yield made
                break
        yield from map(operator.itemgetter(2), elements)
