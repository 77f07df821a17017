"""Paces: which functions are taken for the same, and what is forgotten."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest

from parcoll.chain import timing as paces
from parcoll.chain.steps import Filter, Map


class Adds:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n

    def add(self, x: int) -> int:
        return x + self.n


def made() -> Callable[[int], int]:
    return lambda x: x + 1


def made_with(n: Any) -> Callable[[int], int]:
    return lambda x: x + n


@pytest.mark.parametrize(
    ("func", "again"),
    [
        *((made(), made()), (abs, abs), (math.sqrt, math.sqrt), (str, str)),
        *((made_with(2), made_with(2)), (functools.partial(made(), 2), functools.partial(made(), 2))),
        (functools.partial(int, base=16), functools.partial(int, base=16)),
        (functools.partial(made_with("a"), None), functools.partial(made_with("a"), None)),
    ],
)
def test_what_is_the_same_function_has_the_pace_that_it_had(func: Any, again: Any) -> None:
    paces.remember([Map(func)], 0.25)
    assert paces.remembered([Map(again)]) == 0.25
    assert paces.remembered([Filter(again)]) is None
    assert paces.remembered([Map(again), Map(again)]) is None


@pytest.mark.parametrize(
    "func",
    [
        made_with([1]),
        made_with("x" * 1000),
        made_with(made()),
        functools.partial(made(), (3,)),
        functools.partial(made_with(Adds(1)), 3),
        functools.partial(Adds(1), 3),
        functools.partial(made(), *range(20)),
        Adds(1),
        Adds(1).add,
        "a".join,
        lambda x, n=[1]: x + n,
        operator.itemgetter(1),
    ],
)
def test_what_holds_data_has_none(func: Any) -> None:
    """The next time it may hold other data, and take a thousand times as long."""
    paces.remember([Map(func)], 0.25)
    assert paces.remembered([Map(func)]) is None


def test_small_data_tells_functions_apart() -> None:
    paces.remember([Map(made_with(7))], 0.25)
    paces.remember([Map(functools.partial(made(), 7))], 0.5)
    assert paces.remembered([Map(made_with(8))]) is None
    assert paces.remembered([Map(functools.partial(made(), 8))]) is None
    assert paces.remembered([Map(functools.partial(made(), x=7))]) is None
    assert paces.remembered([Map(made_with(7))]) == 0.25


def test_the_oldest_are_forgotten() -> None:
    def of(number: int) -> list[Map]:
        return [Map(eval(f"lambda x: {number}"))]

    paces.remember(of(-1), 0.5)
    for number in range(paces.MOST):
        paces.remember(of(number), 0.25)
    assert paces.remembered(of(-1)) is None
    assert paces.remembered(of(0)) == 0.25
