"""Guard: what runs when the function of a step with `on_error` or `retries` raises.

It calls the function again with the element, or puts a value in the element's place, or leaves it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from parcoll.chain.failures import Broken, is_apart, late, stands_between
from parcoll.chain.marks import Marked
from parcoll.chain.policy import pause
from parcoll.chain.steps import SKIP, Step
from parcoll.chain.tally import Tally
from parcoll.clock import time
from parcoll.errors import ElementTimeoutError
from parcoll.text import function_name, short_repr

MAX_CONTEXTS = 100  # exceptions that are followed: a user may have linked them in a circle


class Stopped(BaseException):
    """Ends the loop at this step; the failure has been noted. The loop sees it before a user's code does."""

    def __init__(self, position: int) -> None:
        self.position = position


def attempts_of(func: Any) -> int:
    """Return the number of the call made last with its element; calls that ended their process count."""
    return func.attempts if isinstance(func, Marked) else 1


class Guard:
    """The policy of one step at work in one partition."""

    def __init__(self, step: Step, position: int, tally: Tally) -> None:
        self._step = step
        self._policy = step.policy
        self._func: Callable[[Any], Any] = step.call
        # A function that notes its calls counts another attempt apart from the first.
        self._again: Callable[[Any], Any] = self._func.again if isinstance(self._func, Marked) else self._func
        self._position = position
        self._counts = tally.counts[position]
        self._tally = tally
        self._before: int | None = None  # what is under way in the steps before, by the number of its draw

    def call(self, element: Any) -> Any:
        """Return what goes on for an element, `SKIP` for nothing, whether its call raises or not."""
        try:
            made = self._func(element)
        except BaseException as error:
            return self.handle(error, element)
        return self._step.result(made, element)

    def handle(self, error: BaseException, element: Any) -> Any:
        """Return what goes on in place of a call that raised, `SKIP` for nothing."""
        first, attempts = error, attempts_of(self._func)
        while self._tries_again(error, element, attempts):
            attempts += 1
            try:
                return self._step.result(self._again(element), element)
            except BaseException as later:
                _forget(later, first)
                error = later
        return self._give_up(error, element, attempts)

    def draw(self, element: Any) -> Iterator[Any]:
        """Give what a flatmap makes of an element.

        A call that raised is made again only if it had not given anything yet, or gives the same again: then
        what was given is passed by.
        """
        attempts = given = 0
        resumes = self._step.resumes
        while True:
            try:
                # `chain` asks for the iterator once: one may lack `__iter__`, or begin anew there.
                made = itertools.chain(self._again(element) if attempts else self._func(element))
                for one in itertools.islice(made, given, None) if given else made:
                    given += 1
                    if type(one) is Broken:
                        one = self._give_up(one.error, element, 1)
                        if one is SKIP:
                            continue
                    yield one
                return
            except Stopped:
                raise
            except GeneratorExit:  # the consumer has enough
                raise
            except BaseException as later:
                error = later
            attempts = attempts + 1 if attempts else attempts_of(self._func)
            if (given and not resumes) or not self._tries_again(error, element, attempts):
                break
        value = self._give_up(error, element, attempts)
        if value is not SKIP:
            yield value

    # For a step that makes several calls at the same time. Its calls ask `is_worth_it` in their own threads,
    # and all else is told in the order of the elements, in the thread of the task.

    def draw_next(self, elements: Iterator[Any]) -> tuple[Any, int]:
        """Draw an element; return it with the offset of the source element that it was made from."""
        tally = self._tally
        tally.stand_at(self._before)
        element = next(elements)
        self._before = tally.standing
        return element, tally.under_way

    def at(self, offset: int | None) -> None:
        """Note which source element is under way; None for the one that was drawn last."""
        self._tally.stand_at(None if offset is None else offset + 1)

    def ends(self, end: Callable[[], object]) -> None:
        """Have `end` be called, by another thread, if nobody waits for the elements any more."""
        self._tally.ends.append(end)

    def late(self, offset: int, timeout: float) -> ElementTimeoutError:
        """Return the error of a call that was stopped."""
        return late(self._step.label, timeout, self._tally.name(offset))

    def tried(self, attempts: int, timeouts: int) -> None:
        """Count the calls for an element."""
        self._counts.retries += max(attempts - 1, 0)
        self._tally.timeouts += timeouts

    def failed(self, error: BaseException, element: Any, attempts: int, own: BaseException | None) -> Any:
        """Return what goes on in the place of an element for which all attempts failed, `SKIP` for nothing.

        `own` is what `retry_on` raised when it was asked.
        """
        if own is None:
            return self._give_up(error, element, attempts)
        raise self._not_asked(own, error, element, attempts)

    def is_worth_it(self, error: BaseException, attempts: int) -> bool:
        """Tell whether an element gets another attempt. Raises what `retry_on` raises."""
        retry_on = self._policy.retry_on
        if attempts > self._policy.retries or not isinstance(error, Exception):
            return False
        return isinstance(error, retry_on) if isinstance(retry_on, tuple) else bool(retry_on(error))

    def _not_asked(self, own: BaseException, error: BaseException, element: Any, attempts: int) -> Stopped:
        self._tally.failed(error, self._position, element, attempts)  # type: ignore[arg-type]
        return self._broken(own, element, "retry_on", self._policy.retry_on, error)

    def _tries_again(self, error: BaseException, element: Any, attempts: int) -> bool:
        """Tell whether the element gets another attempt; if so, wait until it is time for it."""
        try:
            worth_it = self.is_worth_it(error, attempts)
        except BaseException as own:
            raise self._not_asked(own, error, element, attempts) from None
        if worth_it:
            time.sleep(pause(attempts))
            self._counts.retries += 1
        return worth_it

    def _give_up(self, error: BaseException, element: Any, attempts: int) -> Any:
        on_error = self._policy.on_error
        if on_error == "raise" or not isinstance(error, Exception) or is_apart(error):
            self._tally.stopped(error, self._position, element, attempts)
            raise Stopped(self._position)
        self._tally.failed(error, self._position, element, attempts)
        if not callable(on_error):
            return SKIP
        try:
            value = on_error(self._tally.describe(error, self._position, element, attempts))
            value = self._step.replacement(value, element)
        except BaseException as own:
            raise self._broken(own, element, "on_error", on_error, error) from None
        self._counts.replaced += 1
        return value

    def _broken(
        self, own: BaseException, element: Any, name: str, func: Any, error: BaseException
    ) -> Stopped:
        if own is not error and own.__context__ is None:
            own.__context__ = error
        whose = f"in {name}={function_name(func)}, called for {short_repr(error)}"
        self._tally.broken(own, self._position, element, whose)
        return Stopped(self._position)


def _forget(error: BaseException | None, first: BaseException) -> None:
    """Take the first attempt's exception out of the contexts of a later one.

    Retries are made while the first one is handled, so Python links them.
    """
    for _ in range(MAX_CONTEXTS):
        if error is None:
            return
        if error.__context__ is first:
            error.__context__ = None
        error = error.__context__


stands_between(Guard.handle.__code__.co_filename)
