"""Waiting: steps of which several calls run at the same time, since they wait for somebody else.

A task draws elements as long as it may make more calls, and gives their results in the order of the elements.
Plain functions are called in threads, `async def` functions in the loop of `coroutines`. What becomes of an
element that fails is told in the task's own thread, when its turn comes, as if the calls had been made one by
one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from parcoll.calls.around import StarMap
from parcoll.calls.rates import Pace, Rate
from parcoll.chain.failures import stands_between
from parcoll.chain.guard import Guard
from parcoll.chain.marks import Marked
from parcoll.chain.policy import Policy
from parcoll.chain.steps import SKIP, WHOLE, Filter, FlatMap, Foreach, Map, Share, Step
from parcoll.clock import time
from parcoll.ending import ProcessEnds

COROUTINES = 64  # calls that each task makes at the same time, where a step was not told otherwise
MAX_CONTEXTS = 10  # exceptions that are followed


def is_async(func: Any) -> bool:
    """Tell whether a call of this makes a coroutine, or an asynchronous generator."""
    return is_generator(func) or any(map(inspect.iscoroutinefunction, _called(func)))


def is_generator(func: Any) -> bool:
    """Tell whether a call of this makes an asynchronous generator."""
    return any(map(inspect.isasyncgenfunction, _called(func)))


def _called(func: Any) -> tuple[Any, Any]:
    """Return what a call of this may run: itself, or the method of its class."""
    while isinstance(func, functools.partial):
        func = func.func
    return func, type(func).__call__


class Waiting(Step):
    """A step that makes several calls at the same time, as many as its task's share of `concurrency` says."""

    holds = True
    waits = True

    def __init__(
        self, func: Callable[..., Any] | None, policy: Policy, concurrency: int | None, rate: Rate | None
    ) -> None:
        super().__init__(func, replace(policy, timeout=None))
        self.seconds = policy.timeout  # for a coroutine, which can be cancelled: no process has to be stopped
        self.is_async = is_async(func)
        self.concurrency = concurrency
        self.rate = rate
        self.share = WHOLE
        self.pace: Pace | None = None  # of a task whose calls are begun in several runs, or one by one

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Nothing that a checkpoint compares: the results are those of calls one by one."""
        return {}

    @property
    def one_for_one(self) -> bool:
        """Whether it is a map."""
        return not (self.filters or self.multiplies)

    @property
    def limit(self) -> int | None:
        """The concurrency, or the calls of the rate if those are fewer."""
        limits = (self.concurrency, None if self.rate is None else self.rate.calls)
        return min((limit for limit in limits if limit is not None), default=None)

    def at_once(self, parts: int) -> int:
        """Return that part of the concurrency."""
        if self.concurrency is None:
            return COROUTINES if self.is_async else 1
        return max(self.concurrency // parts, 1)

    def interval(self, parts: int) -> float:
        """Return that of the rate."""
        return 0.0 if self.rate is None else self.rate.interval(parts)

    def within(self, share: Share) -> Step:
        """Return the step for a task that has this share."""
        within = copy.copy(self)
        within.share = share
        within.pace = None if self.rate is None else Pace(self.rate, share)
        return within

    def stream(self, elements: Iterator[Any], call: Callable[[Any], Any]) -> Iterator[Any]:
        """Make one call after the other."""
        for element in elements:
            if self.multiplies:
                yield from call(element)
            elif (made := call(element)) is not SKIP:
                yield made

    def flow(self, elements: Iterator[Any], guard: Guard) -> Iterator[Any]:
        """Make several calls at the same time."""
        from parcoll.calls import several  # lazy: asyncio, 0.04 s of the script's start

        calls: several.Calls = (several.InLoop if self.is_async else several.InThreads)(self, guard)
        try:
            yield from calls.results(elements)
        except BaseException as error:
            calls.end(waits=not _is_interrupted(error))
            raise
        else:
            calls.end()
        finally:
            guard.at(None)

    @property
    def call(self) -> Callable[..., Any]:
        """The function, which returns when it is done, also if it is `async`."""
        if isinstance(self.func, Marked):  # it is what this returns
            return super().call
        call = self._in_loop if self.is_async else super().call
        return call if self.pace is None else functools.partial(_in_turn, self.pace, call)

    def _in_loop(self, element: Any) -> Any:
        from parcoll.calls import several  # lazy: asyncio

        return several.one(self, element)

    def make(self, element: Any, given: list[Any]) -> None:
        """Call the function, and add what goes on to `given`."""
        made = super().call(element)
        if self.multiplies:
            for one in made:
                given.append(one)  # what came before an exception stays
        else:
            self._add(made, element, given)

    async def await_one(self, element: Any, given: list[Any]) -> Any:
        """Await the function, and return the result; add the elements of what multiplies to `given`."""
        made = super().call(element)
        if not self.multiplies:
            return await made
        if not inspect.isasyncgen(made):
            given += await made
            return given
        async with contextlib.aclosing(made):
            async for one in made:
                given.append(one)
        return given

    async def make_async(self, element: Any, given: list[Any]) -> None:
        """Await the function, and add what goes on to `given`."""
        made = await self.await_one(element, given)
        if not self.multiplies:
            self._add(made, element, given)

    def _add(self, made: Any, element: Any, given: list[Any]) -> None:
        result = self.result(made, element)
        if result is not SKIP:
            given.append(result)


def _in_turn(pace: Pace, call: Callable[[Any], Any], element: Any) -> Any:
    """Make one call, when the rate allows it."""
    while seconds := pace.take():
        time.sleep(seconds)
    return call(element)


class WaitingMap(Waiting, Map):
    """One result for each element."""


class WaitingFilter(Waiting, Filter):
    """The elements for which the predicate is true."""


class WaitingFlatMap(Waiting, FlatMap):
    """The elements of each result. All that is made of an element is held until its turn comes."""


class WaitingForeach(Waiting, Foreach):
    """A map called for its effect."""


class WaitingStarMap(Waiting, StarMap):
    """One result for each element, which has the arguments."""


_WAITING: dict[type[Step], type[Waiting]] = {
    Map: WaitingMap,
    Filter: WaitingFilter,
    FlatMap: WaitingFlatMap,
    Foreach: WaitingForeach,
    StarMap: WaitingStarMap,
}


def step(
    kind: type[Step], func: Any, policy: Policy, concurrency: int | None = None, rate: Rate | None = None
) -> Step:
    """Return a step of this kind, which makes several calls at a time if told to, or if `func` is async."""
    if concurrency is None and rate is None and not is_async(func):
        return kind(func, policy)
    return _WAITING[kind](func, policy, concurrency, rate)


def _is_interrupted(error: BaseException | None) -> bool:
    """Tell whether this, or what is handled while it comes, is to end the task at once."""
    for _ in range(MAX_CONTEXTS):
        if error is None or isinstance(error, (KeyboardInterrupt, ProcessEnds)):
            break
        error = error.__context__
    return error is not None


stands_between(Waiting.make.__code__.co_filename)
