"""Sinks: what takes the elements that leave the last step, and makes of them what goes back.

Most are here, `Fold` is in `worker.fold`. A sink travels with its program. For each partition, `begin` makes
a copy of it. The copy `take`s the elements, in as many streams as the partition is run in, and then
`finish`es with what goes back. A new sink is a class like these.
"""

from __future__ import annotations

import bisect
import copy
import inspect
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from parcoll.chain.failures import FailedPart, of_none, own_frames, pack_parts, stands_between
from parcoll.chain.place import Place
from parcoll.chain.steps import Step
from parcoll.chain.tally import Tally
from parcoll.errors import SerializationError
from parcoll.text import line_of, short_repr
from parcoll.wire.anatomy import first_unpicklable
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Payload

Pack = Callable[[Any], Payload]
TOGETHER = 2048  # elements that a part takes in at once


class Sink:
    """Takes the elements of one partition, once `begin` has made it for that partition."""

    label: str | None = None  # how a user knows it, if it calls a user's functions: ``fold(add)``
    limit: int | None = None  # elements after which a partition may stop
    timeout: float | None = None  # seconds for one call of its functions
    in_order: ClassVar[bool] = True  # the order of partitions matters
    # It has to take all elements of a partition itself. So if a partition is run in slices beside its worker,
    # the results of all slices are collected for it. Otherwise `of_slice` takes each slice, and they add up.
    whole: ClassVar[bool] = True
    # Whether a checkpoint serves it: it needs no more than the elements, or how many there are.
    resumes: ClassVar[bool] = False
    condenses = False  # what goes back grows less than the elements do: partitions may be larger

    def begin(self, tally: Tally, place: Place) -> Self:
        """Return the sink for the partition at `place`, whose steps are counted in `tally`."""
        begun = copy.copy(self)
        begun.taken = 0
        begun.failure = None
        begun._tally = tally
        begun._place = place
        begun.start()
        return begun

    taken: int  # elements, so far
    failure: Failure | None  # what ended it, other than a step
    _tally: Tally
    _place: Place

    def start(self) -> None:
        """Make ready for the first element of a partition."""

    def take(self, elements: Iterator[Any]) -> None:
        """Draw the elements, and count them in `taken`. May be called several times."""
        raise NotImplementedError

    takes_together: bool = False  # has `take_together`

    def take_together(self, columns: Iterator[tuple[list[Any], list[Any]]]) -> None:
        """Draw lists of keys and of elements, which are one list where each element is its own key."""
        raise NotImplementedError

    def finish(self, pack: Pack) -> Payload | None:
        """Return, packed, what goes back of the partition; None for nothing."""
        raise NotImplementedError

    alone: bool = False  # each element of a partition goes through the chain in a run of its own

    def ran(self, drawn: int) -> None:
        """Note that the elements of one run of the chain have been taken, which had drawn so many."""

    def failed_parts(self) -> bytes:
        """Return, packed, what came of each element that failed, where that is known."""
        return b""

    @property
    def full(self) -> bool:
        """Whether it wants no more elements."""
        return self.limit is not None and self.taken >= self.limit

    @property
    def current(self) -> Any:
        """The element that is being taken, for the note of an exception."""
        return None

    def fails(self, error: BaseException) -> None:
        """Note that `take` or `finish` raised."""
        note = f"in {self.label or type(self).__name__}, at {self._tally.where()}: {short_repr(self.current)}"
        self.failure = Failure.of(error, note, own_frames(error))

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The functions of the user that it calls, by the names of its attributes."""
        return {}

    def with_functions(self, functions: Mapping[str, Callable[..., Any]]) -> Self:
        """Return a copy that calls these instead."""
        changed = copy.copy(self)
        for name, func in functions.items():
            setattr(changed, name, func)
        return changed

    def name_call(self, function: int, number: int, place: Place, in_place: bool) -> tuple[str, str]:
        """Return names for a call of one of its functions that had to be stopped, and for its element.

        `function` is an index into `functions`, `number` counts the calls. `in_place` if results stand where
        their elements do.
        """
        if not self.functions:  # a method of an element's class: which calls there are is not counted
            at = "one of the elements of its partition"
        elif in_place:
            at = place.element(number)
        else:
            at = f"element {number} of those of its partition that reached it"
        return self.label or type(self).__name__, at

    def of_slice(self, limit: int | None) -> Sink:
        """Return the sink for a slice of a partition that is run in slices."""
        return Results(limit)


class Results(Sink):
    """The elements themselves, as a list."""

    whole = False
    resumes = True

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def start(self) -> None:
        """Begin with no results."""
        self._results: list[Any] = []

    def take(self, elements: Iterator[Any]) -> None:
        """Keep the elements."""
        results = self._results
        results += elements if self.limit is None else itertools.islice(elements, self.limit - len(results))
        self.taken = len(results)

    def finish(self, pack: Pack) -> Payload | None:
        """Pack the results; if one cannot be packed, those before it."""
        try:
            return pack(self._results)
        except BaseException as error:
            bad = first_unpicklable(self._results)
            position, cause = bad if bad is not None else (0, error)
        tally = self._tally
        whose = f"the result of {self._place.element(position)}"
        if not tally.in_place:
            whose = f"result {position} of the partition from {self._place.element(0)} to {tally.where()}"
        if inspect.isgenerator(self._results[position]):
            instead = "return a list, or write flatmap(func) for what it gives"
        else:
            instead = "return plain data, or have the same function do what needs it"
        refusal = SerializationError(
            f"{whose} cannot be sent back from the worker: {short_repr(self._results[position])} "
            f"({line_of(cause)}): {instead}"
        )
        del bad, cause  # whose traceback refers to this frame
        if inspect.iscoroutine(self._results[position]):
            refusal = SerializationError(
                f"{whose} is a coroutine, which nobody has run: pass the `async def` function itself, as in "
                "map(fetch), or functools.partial(fetch, ...)"
            )
            for result in filter(inspect.iscoroutine, self._results):
                result.close()  # or Python would warn that it was never awaited
        last = f"in {tally.steps[-1].label}" if tally.steps else "in a chain without steps"
        self.failure = Failure.of(refusal, last)
        self.taken = position
        return pack(self._results[:position])


class Traced(Results):
    """The elements, and what each source element has given that failed: a checkpoint may run it again.

    Where each element gives one, what came of one that failed follows from where it did. Where there are
    filters, the place of each result is noted too (0.5 µs). Where there are flatmaps, each element goes
    through the chain alone (10 µs more), and the counts before and after it tell; but a step that holds
    elements cannot do so, and then it is not known.
    """

    def start(self) -> None:
        """Begin with no results, and have failures noted."""
        super().start()
        self._spots = self._tally.spots = []
        steps = self._tally.steps
        holds = any(step.holds for step in steps)
        self._one_for_one = all(step.one_for_one for step in steps)
        placed = all(step.one_for_one or step.filters for step in steps)
        # Of one that was replaced before several filters, nobody knows which has left it out.
        unclear = any(
            callable(step.policy.on_error) and sum(later.filters for later in steps[i + 1 :]) > 1
            for i, step in enumerate(steps)
        )
        self.alone = not holds and (unclear or not placed)
        placed = placed and not self.alone
        # The index in the source behind the element that each result was made from, if that is noted.
        self._places: list[int] | None = [] if placed and not self._one_for_one else None
        self._parts: list[FailedPart] = []
        self._before = 0
        self._retries = any(step.policy.retries for step in steps)
        self._passed, self._faults = tuple(self._tally.passed.values()), self._tally.faults()

    def take(self, elements: Iterator[Any]) -> None:
        """Keep the elements."""
        if self._places is None:
            super().take(elements)
            return
        left = None if self.limit is None else self.limit - len(self._results)
        try:
            for element in itertools.islice(elements, left):
                self._results.append(element)
                self._places.append(self._tally.position)
        finally:
            self.taken = len(self._results)

    def ran(self, drawn: int) -> None:
        """Compare the counts with those before, if the chain ran with one element."""
        if not self.alone:
            return
        passed = tuple(self._tally.passed.values())
        if self._spots or self._retries:
            faults = self._tally.faults()
            if self._spots:
                self._parts.append(self._part(drawn, passed, faults))
                self._spots.clear()
            self._faults = faults
        self._passed, self._before = passed, self.taken

    def _part(self, drawn: int, passed: Sequence[int], faults: list[tuple[int, int, int]]) -> FailedPart:
        """Say what came of the element that ran last."""
        pairs = zip(faults, self._faults, strict=True)
        found = [(one - a, other - b, retries - c) for (one, other, retries), (a, b, c) in pairs]
        left_of = iter([after - before for after, before in zip(passed, self._passed, strict=True)])
        flows, entered = [], drawn
        for step, (failed, replaced, _) in zip(self._tally.steps, found, strict=True):
            left = next(left_of) if step.counts else entered - failed + replaced
            flows.append((entered, left))
            entered = left
        return FailedPart(self._spots[0][0], self._before, self.taken, flows, found)

    def failed_parts(self) -> bytes:
        """Return what was found."""
        if not self.alone:
            self._parts = self._from_spots() if self._one_for_one or self._places is not None else []
        return pack_parts(self._parts)

    def _from_spots(self) -> list[FailedPart]:
        """Say what came of each element that failed: it went on as one where it was replaced."""
        steps, found, skipped = self._tally.steps, [], 0
        in_order = sorted(self._spots)  # a step that holds elements may have drawn ahead
        for index, spots in itertools.groupby(in_order, operator.itemgetter(0)):
            faults, ended = [(0, 0, 0)] * len(steps), None
            for _, position, attempts in spots:
                replaced = callable(steps[position].policy.on_error)
                faults[position] = (1, int(replaced), attempts - 1)
                ended = None if replaced else position
            start, given = index - self._place.base - skipped, int(ended is None)
            if self._places is not None:
                start = bisect.bisect_left(self._places, index + 1)
                given = bisect.bisect_right(self._places, index + 1) - start
                if ended is None and not given:  # a filter has left it out that came behind
                    filters = [i for i, step in enumerate(steps) if i > position and step.filters]
                    if len(filters) != 1:
                        return []  # nobody knows which
                    (ended,) = filters
            skipped += ended is not None
            flows = [(1, 1)] * len(steps)
            if ended is not None:
                flows[ended:] = [(1, 0)] + [(0, 0)] * (len(steps) - ended - 1)
            found.append(FailedPart(index, start, start + given, flows, faults))
        return found

    def of_slice(self, limit: int | None) -> Sink:
        """Return the same for a slice."""
        return Traced(limit)


def saving(steps: Sequence[Step], limit: int | None) -> Sink:
    """Return the sink whose results a checkpoint saves."""
    return Traced(limit) if any(step.policy.on_error != "raise" for step in steps) else Results(limit)


class Count(Sink):
    """The number of elements, which is `taken`. None of them goes back."""

    in_order = False
    whole = False
    resumes = True

    def take(self, elements: Iterator[Any]) -> None:
        """Count the elements."""
        self.taken += sum(1 for _ in elements)

    def finish(self, pack: Pack) -> None:
        """Return nothing."""

    def of_slice(self, limit: int | None) -> Sink:
        """Return this sink: counts add up."""
        return self


class Part(Protocol):
    """What there is of the elements of one part of a chain."""

    def add(self, elements: list[Any], /) -> None:
        """Take in more elements of this part."""

    def settle(self) -> None:
        """Make ready to travel."""


class Parts(Sink):
    """What a part makes of the elements. The parts are merged where they come together."""

    resumes = True

    def __init__(self, empty: Part, label: str) -> None:
        self.empty = empty
        self.label = label

    def start(self) -> None:
        """Begin with an empty part."""
        self._part = copy.deepcopy(self.empty)

    def take(self, elements: Iterator[Any]) -> None:
        """Add the elements, many at once."""
        while taken := list(itertools.islice(elements, TOGETHER)):
            self.taken += len(taken)
            self._part.add(taken)

    def fails(self, error: BaseException) -> None:
        """Note that a comparison, or a sum, raised."""
        self.failure = Failure.of(error, f"in {self.label}{of_none(error)}", own_frames(error))

    def finish(self, pack: Pack) -> Payload | None:
        """Pack it."""
        self._part.settle()
        return pack([self._part])


stands_between(Results.take.__code__.co_filename)
