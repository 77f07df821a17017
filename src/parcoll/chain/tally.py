"""Tally: what became of the elements that went through a chain, and which element is under way."""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parcoll.chain.failures import KEPT, FailedElement, Ledger, is_apart, misfit, of_none, own_frames
from parcoll.chain.place import START, Place
from parcoll.chain.steps import Step
from parcoll.errors import ElementError
from parcoll.text import short_repr
from parcoll.wire.exceptions import Failure


@dataclass
class Counts:
    """What happened to the elements of one step, beside passing it."""

    failed: int = 0
    replaced: int = 0
    retries: int = 0


class Tally:
    """The counts of one chain at work, its failed elements, and what ended it.

    It finds the element that is under way from the iterator that the source elements are drawn from.
    """

    def __init__(self, steps: Sequence[Step], ledger: Ledger | None = None) -> None:
        self.steps = steps
        self.passed: dict[int, int] = {i: 0 for i, step in enumerate(steps) if step.counts}
        self.counts = [Counts() for _ in steps]
        self.failed_elements: list[FailedElement] = []  # as many as the ledger has room for
        self.failure: Failure | None = None  # what ended the chain
        self.failed_step: int | None = None  # the position of the step that ended it
        self.raised: FailedElement | None = None  # the element whose failure `failure` is
        self.ended_at: int | None = None  # the index of the source element that ended it
        self.ended_apart = False  # by no fault of that element
        # That the source elements are drawn from, or what tells as many of them to be left.
        self.iterator: Iterator[Any] | _Left = iter(())
        self._drawing: Iterator[Any] = iter(())
        self.after = 0  # the index of the source element behind the last one of the iterator
        self.ends: list[Callable[[], object]] = []  # what has the calls of a step end that are under way
        self.timeouts = 0  # calls that took too long, and were stopped in this process
        self._ledger = ledger or Ledger()
        self._place = START
        self._source: Sequence[Any] = ()
        self._own: list[Any] = []  # the elements that are left, in a list that nobody else has
        self._draws: Iterator[Any] = iter(self._own)
        self._lock = threading.Lock()  # held while another thread takes elements away
        self._drawn: int | None = None  # by then
        self._standing: int | None = None  # where an element stands that was drawn earlier, and is under way
        self.abandoned = False
        self.cut = False  # what was not begun has been taken away
        # For each failure that does not end the evaluation, where somebody asks for them: the index in the
        # source, the step, the attempts.
        self.spots: list[tuple[int, int, int]] | None = None

    def begin(
        self,
        elements: Sequence[Any],
        place: Place,
        draw: Callable[[Iterator[Any]], Iterator[Any]] = lambda iterator: iterator,
    ) -> Iterator[Any]:
        """Return an iterator over elements, the first of which stands at `place`; `draw` wraps it."""
        with self._lock:
            cut = self.cut or self.abandoned
            self._own = [] if cut else list(elements)
            self._drawn = 0 if cut else None
            self._draws = iter(self._own)
            self._source, self._place = elements, place
            self.iterator = self._drawing = draw(self._draws)
            self._standing = None
            self.after = place.base + len(elements)
            return self._drawing

    @property
    def drawn(self) -> int:
        """How many of these elements have been drawn, up to the one that is under way."""
        with self._lock:
            if self._standing is not None:
                return self._standing
            if self._drawn is not None:
                return self._drawn
            return len(self._source) - operator.length_hint(self.iterator)

    @property
    def standing(self) -> int | None:
        """As what number the element was drawn that is under way; None if it is the last one."""
        return self._standing

    def stand_at(self, drawn: int | None) -> None:
        """Have the element that was drawn as number `drawn` be the one under way; None for the last one."""
        with self._lock:
            self._standing = drawn
            self.iterator = self._drawing if drawn is None else _Left(len(self._source) - drawn)

    @property
    def position(self) -> int:
        """The index in the source behind the element that was drawn last."""
        return self._place.base + self.drawn

    def hand_back(self, end: int) -> int | None:
        """Take away, from another thread, what has not been drawn of a partition that ends before `end`.

        Returns the index in the source of the first of these elements; None if there is none.
        """
        with self._lock:
            if self.cut or not len(self._source):
                return None
            # No bytecode runs between these two calls, so that no element is drawn meanwhile.
            left, _ = map(operator.call, (self._draws.__length_hint__, self._own.clear))  # type: ignore[attr-defined]
            self._drawn = len(self._source) - left
            self.cut = True
            begun = self._place.base + self._drawn
            return begun if begun < end else None

    def abandon(self) -> None:
        """Have nothing more begin, from another thread: nobody waits for what comes of it."""
        with self._lock:
            self.abandoned = True
        self.hand_back(sys.maxsize)
        self.cut = True  # also where none has begun
        for end in self.ends:
            end()

    @property
    def under_way(self) -> int:
        """The offset of the source element that is under way: the one drawn last, as a rule."""
        return self.drawn - 1

    def where(self) -> str:
        """Name the source element that is under way."""
        return self.name(self.under_way)

    def name(self, offset: int) -> str:
        """Name the source element at an offset."""
        return self._place.element(offset)

    def flows(self, entered: int) -> list[tuple[int, int]]:
        """Return (elements in, elements out) of each step, if `entered` elements came from the source.

        May be asked only when the loops have ended.
        """
        flows = []
        for position, step in enumerate(self.steps):
            counts = self.counts[position]
            entered -= self.ended_apart and position == self.failed_step
            left = self.passed[position] if step.counts else entered - counts.failed + counts.replaced
            flows.append((entered, left))
            entered = left
        return flows

    def faults(self) -> list[tuple[int, int, int]]:
        """Return (failed, replaced, retries) of each step."""
        return [(counts.failed, counts.replaced, counts.retries) for counts in self.counts]

    @property
    def in_place(self) -> bool:
        """Whether each result stands where its element does: none was left out or held, none made several."""
        return not self.passed and not any(counts.failed > counts.replaced for counts in self.counts)

    def tried_before(self, position: int, times: int) -> None:
        """Count attempts of a step with an element that ended the processes in which they were made."""
        self.counts[position].retries += times

    def failed(self, error: Exception, position: int, element: Any, attempts: int) -> None:
        """Count an element that failed and does not end the evaluation; describe it if there is room."""
        self.counts[position].failed += 1
        if self.spots is not None:
            self.spots.append((self._here().base, position, attempts))
        if self._ledger.elements < KEPT:
            self._ledger.elements += 1
            failure = Failure.of(error, self._note(position, element, attempts, error), own_frames(error))
            self.failed_elements.append(self._failed_element(failure, position, element, attempts))

    def stopped(self, error: BaseException, position: int, element: Any, attempts: int = 1) -> None:
        """Note the failure that ends the evaluation, and count its element, unless that has not failed.

        An element behind it may have failed before, in an earlier step, and no longer counts.
        """
        if self.raised is not None:
            self.counts[self.raised.step_index].failed -= 1
            self.raised = None
        self.ended_apart = is_apart(error)
        if self.ended_apart:
            self._fail(error, position, self._note(position, element, attempts))
            return
        self.counts[position].failed += 1
        self._fail(error, position, self._note(position, element, attempts, error))
        if isinstance(error, Exception) and self.failure is not None:
            self.raised = self._failed_element(self.failure, position, element, attempts)

    def broken(self, error: BaseException, position: int, element: Any, whose: str) -> None:
        """Note that `on_error` or `retry_on` itself raised when it got a failed element."""
        self._fail(error, position, f"{whose}, {self._note(position, element)}")

    def describe(self, error: Exception, position: int, element: Any, attempts: int) -> ElementError:
        """Return what an `on_error` function gets."""
        label, place = self.steps[position].label, self._here()
        return ElementError(label, position, place.base, element, error, attempts, place.partition)

    def _fail(self, error: BaseException, position: int, note: str) -> None:
        self.failed_step, self.ended_at = position, self._here().base
        self.failure = Failure.of(error, note, own_frames(error))

    def _failed_element(self, failure: Failure, position: int, element: Any, attempts: int) -> FailedElement:
        encoded, label = self._ledger.encoded(element), self.steps[position].label
        return FailedElement(failure, label, position, self._here(), encoded, attempts)

    def _here(self) -> Place:
        return self._place.after(self.under_way)

    def _note(
        self, position: int, element: Any, attempts: int = 1, error: BaseException | None = None
    ) -> str:
        drawn, step = self.under_way, self.steps[position]
        if step.is_phase:  # whose elements no user knows
            return f"in {getattr(step, 'name', step.kind)}()"
        note = (
            f"in step {position + 1} of {len(self.steps)}, {step.label}, "
            f"at {self.where()}: {short_repr(element)}"
        )
        if position > 0 and 0 <= drawn < len(self._source):
            note += f" (made from source element {short_repr(self._source[drawn])})"
        note += "" if attempts == 1 else f", {attempts} times"
        if error is None:
            return note
        if position > 0 and element is None and (said := of_none(error)):
            return note + said
        return note + misfit(error, step.label, element)


class _Left:
    """Tells that so many elements are left, as an iterator does that is drawn from."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __length_hint__(self) -> int:
        return self._number
