"""Keys and values that travel packed in another way than pickle's come back as they were."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import pytest

from parcoll import Connection, parallel
from parcoll.keys import exchange

first = itemgetter(0)


def grouped(elements: Any) -> dict[Any, list[Any]]:
    """Group as plain Python does."""
    groups: dict[Any, list[Any]] = {}
    for element in elements:
        groups.setdefault(element[0], []).append(element)
    return groups


def test_keys_and_values_that_are_packed_as_one_text(
    inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts with any character, numbers of any size and lists within themselves come back as they were."""
    monkeypatch.setattr(exchange, "MOST_COST", 2000)
    monkeypatch.setattr(exchange, "LEAST_COST", 2000)
    texts = ["", "\0", "a\0b", "é\ud800", "a", "b" * 300, "\n"]
    values = [
        *texts,
        0,
        255,
        256,
        -1,
        2**80,
        True,
        1.5,
        None,
        b"\0",
        (1, "x"),
        ("", None),
        ((1,), 2),
        [3],
        [[]],
    ]
    around: list[Any] = [1]
    around.append(around)
    for size in (1, 4, 100):
        chain = parallel([(at % 3, value) for at, value in enumerate(values * 2)], partition_size=size)
        expected = grouped([(at % 3, value) for at, value in enumerate(values * 2)])
        assert repr(list(chain.group_by(first))) == repr(list(expected.items()))
        assert list(parallel(texts * 3, partition_size=size).count_by().items()) == [(x, 3) for x in texts]
        last = parallel([*chain, (0, around)], partition_size=size).fold_by(
            first, lambda _, x: x[1], None, max
        )
        assert repr(dict(last)[0]) == repr(around)
        assert list(parallel(texts * 2, partition_size=size).sorted()) == sorted(texts * 2)
        assert list(parallel(texts * 2, partition_size=size).distinct(lambda x: x + "\0")) == texts
