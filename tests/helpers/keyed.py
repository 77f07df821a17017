"""What keyed operations are to give: the answers of plain Python."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from operator import add, itemgetter
from typing import Any

import pytest

from parcoll import parallel
from parcoll.keys import exchange, store

first = itemgetter(0)


def pairs(number: int, keys: int, seed: int = 1) -> list[tuple[int, int]]:
    """Return elements whose keys repeat."""
    chosen = random.Random(seed)
    return [(chosen.randrange(keys), at) for at in range(number)]


def grouped(elements: Any, key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Group as plain Python does."""
    groups: dict[Any, list[Any]] = {}
    for element in elements:
        groups.setdefault(key(element), []).append(element)
    return groups


def answers(elements: list[tuple[int, int]], **settings: Any) -> dict[str, list[Any]]:
    """Return what all operations give."""
    chain = parallel(elements, **settings)
    return {
        "count_by key": [*chain.count_by(first).items()],
        "count_by": [*chain.count_by().items()],
        "group_by": list(chain.group_by(first)),
        "fold_by": list(chain.fold_by(first, lambda found, element: [*found, element[1]], [])),
        "combined": list(chain.fold_by(first, lambda total, element: total + element[1], 0, add)),
        "distinct key": list(chain.distinct(first)),
        "distinct": list(chain.map(first).distinct()),
        "sorted key": [list(chain.sorted(first, reverse)) for reverse in (False, True)],
        "sorted": [list(chain.sorted(reverse=reverse)) for reverse in (False, True)],
    }


def of_python(elements: list[tuple[int, int]]) -> dict[str, list[Any]]:
    """Return what plain Python gives for the same."""
    groups = grouped(elements, first)
    return {
        "count_by key": [*Counter(map(first, elements)).items()],
        "count_by": [*Counter(elements).items()],
        "group_by": list(groups.items()),
        "fold_by": [(key, [at for _, at in found]) for key, found in groups.items()],
        "combined": [(key, sum(at for _, at in found)) for key, found in groups.items()],
        "distinct key": [found[0] for found in groups.values()],
        "distinct": list(groups),
        "sorted key": [sorted(elements, key=first, reverse=reverse) for reverse in (False, True)],
        "sorted": [sorted(elements, reverse=reverse) for reverse in (False, True)],
    }


def make_tasks_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have little data be much: many tasks on workers, slots that are cut again, and a file for memory."""
    monkeypatch.setattr(exchange, "FEW_THREADS", 0)
    monkeypatch.setattr(exchange, "MOST_COST", 2000)
    monkeypatch.setattr(exchange, "LEAST_COST", 2000)
    monkeypatch.setattr(store, "MEMORY_BYTES", 1000)
