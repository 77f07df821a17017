"""Moments of keyed operations: in each phase, while a worker cuts, merges, cuts again, or delivers."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from moments import HALF, Evaluated, Moment, Reached

from parcoll import ParallelGen, parallel
from parcoll.keys import exchange

NUMBERS = 600
KEYS = 37


class Travelling:
    """A number that is there once it has come to a process for the `trips`-th time."""

    def __init__(self, number: int, here: Reached | None, trips: int) -> None:
        self.number = number
        self.here = here
        self.trips = trips

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, (self.number, self.here, self.trips - 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Travelling) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __lt__(self, other: Travelling) -> bool:
        return self.number < other.number


def arrived(number: int, here: Reached | None, trips: int) -> Travelling:
    if here is not None and trips == 0:
        here()
    return Travelling(number, here, trips)


def number_of(x: Travelling) -> int:
    return x.number


def key_of(x: Travelling) -> int:
    return x.number * 7 % KEYS


def made_at(here: Reached, trips: int, x: int) -> Travelling:
    """Make an element; without trips, it is there where it is made."""
    if x == HALF and not trips:
        here()
    return Travelling(x, here if x == HALF and trips else None, trips)


def grouped(chain: ParallelGen[Travelling]) -> list[Any]:
    return [(key, list(map(number_of, found))) for key, found in chain.group_by(key_of)]


def folded(chain: ParallelGen[Travelling]) -> list[Any]:
    return list(chain.fold_by(key_of, lambda found, x: [*found, x.number], []))


def combined(chain: ParallelGen[Travelling]) -> list[Any]:
    func = lambda found, x: [*found, x]
    made = chain.fold_by(key_of, func, [], operator.add)
    return [(key, list(map(number_of, found))) for key, found in made]


def counted(chain: ParallelGen[Travelling]) -> list[Any]:
    return list(chain.count_by(lambda x: Travelling(key_of(x), x.here, x.trips)).items())


def without_repeats(chain: ParallelGen[Travelling]) -> list[Any]:
    return list(map(number_of, chain.distinct(key_of)))


def in_order(chain: ParallelGen[Travelling]) -> list[Any]:
    return list(map(number_of, chain.sorted(key_of, reverse=True)))


GROUPS: dict[int, list[int]] = {}
for number in range(NUMBERS):
    GROUPS.setdefault(number * 7 % KEYS, []).append(number)
EXPECTED: dict[Callable[..., list[Any]], list[Any]] = {
    grouped: list(GROUPS.items()),
    folded: list(GROUPS.items()),
    combined: list(GROUPS.items()),
    counted: [
        (Travelling(key, None, 0), count)
        for key, count in Counter(at * 7 % KEYS for at in range(NUMBERS)).items()
    ],
    without_repeats: [found[0] for found in GROUPS.values()],
    in_order: sorted(range(NUMBERS), key=lambda x: x * 7 % KEYS, reverse=True),
}


@contextmanager
def small_tasks() -> Iterator[None]:
    """Have slots be cut again, by the workers."""
    with patch.object(exchange, "MOST_COST", 2000), patch.object(exchange, "LEAST_COST", 2000):
        yield


def keyed(answer: Callable[..., list[Any]], trips: int, small: bool, here: Reached) -> Evaluated:
    """Be there while partitions are cut (0 trips), while they are merged (1), or cut again (1, small)."""
    chain = parallel(range(NUMBERS), partition_size=50).map(functools.partial(made_at, here, trips))
    if not small:
        return Evaluated(answer(chain), EXPECTED[answer], None, [])
    with small_tasks():
        return Evaluated(answer(chain), EXPECTED[answer], None, [])


def passed_on(here: Reached, x: Any) -> Any:
    if x == HALF:
        here()
    return x


def delivering(here: Reached) -> Evaluated:
    """Behind a sort, and behind groups: what comes of ranges and of groups goes on to workers."""
    numbers = parallel(range(NUMBERS), partition_size=50)
    ranged = numbers.sorted(reverse=True).map(functools.partial(passed_on, here))
    lengths = numbers.group_by(lambda x: x % KEYS).map(lambda group: len(group[1])).sum()
    return Evaluated((list(ranged), lengths), (list(range(NUMBERS))[::-1], NUMBERS), None, [])


KEYED = [
    *(
        Moment(f"{answer.__name__}, cutting", functools.partial(keyed, answer, 0, False))
        for answer in EXPECTED
    ),
    *(
        Moment(f"{answer.__name__}, merging", functools.partial(keyed, answer, 1, False))
        for answer in (grouped, folded, combined, counted, in_order)
    ),
    *(
        Moment(f"{answer.__name__}, merged when cut again", functools.partial(keyed, answer, trips, True))
        for answer, trips in ((grouped, 1), (grouped, 2), (folded, 1), (combined, 2), (in_order, 1))
    ),
    Moment("what is sorted goes on", delivering),
]
OFTEN_ENOUGH = [("grouped, merging", "a worker, kill -9"), ("counted, cutting", "the host, kill -9")]
