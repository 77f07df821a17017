"""The two walks that take values apart, of elements and of what functions hold, agree on data."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcoll.checkpoint import digest
from parcoll.checkpoint.fingerprint import of_function


def as_element(value: Any) -> str:
    return digest.of_value(value).hex()


def as_captured(value: Any) -> str:
    (found,) = [part for label, part in of_function(lambda: value).items() if "captured" in label]
    return found


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
)
hashable = st.recursive(
    scalars, lambda below: st.tuples(below, below) | st.frozensets(below, max_size=3), max_leaves=4
)
data = st.recursive(
    hashable,
    lambda below: (
        st.lists(below, max_size=3)
        | st.tuples(below)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, below, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(data, data)
def test_what_is_equal_for_one_is_equal_for_the_other(one: Any, other: Any):
    assert as_element(one) == as_element(copy.deepcopy(one))
    assert as_captured(one) == as_captured(copy.deepcopy(one))
    assert (as_element(one) == as_element(other)) == (as_captured(one) == as_captured(other))


SEEDS = """
import sys
from parcoll.checkpoint import digest
from parcoll.checkpoint.fingerprint import of_function

words = ["a", "b", "c", "dd", "eee", 1, 2.5, None, b"x", ("p", frozenset("qrs"))]
values = [set(words), frozenset(words), {word: {word} for word in set(words)}]
values += [[[set("abc")], {"x": set("de")}], dict.fromkeys(set("abcdef"), set("xyz"))]
values += [{(word, "k"): [word] for word in set("abcdef")}]
for value in values:
    print(digest.of_value(value).hex(), of_function(lambda: value))

def adding(number):
    return lambda x: x + number

several = {adding(1), adding(2), adding(3), lambda: 1, lambda: 2, len, max, digest.of_value}
print(of_function(lambda: several))
"""


def test_both_are_the_same_in_every_process():
    """The sets of functions too: of those of one name, what they hold gives the order."""
    found = set()
    for seed in range(5):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", f"junk = [object() for _ in range({97 * seed})]\n{SEEDS}"]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def lookalikes() -> list[Any]:
    """Return values that look like what stands for others in a walk."""
    return [
        {"a": 1},
        ("dict", [("a", 1)]),
        (..., "dict", [("a", 1)]),
        {"a"},
        frozenset({"a"}),
        ("set", ["a"]),
        (..., "set", ["a"]),
        int,
        (..., "class", "builtins.int"),
        (..., "of type", "builtins.int"),
        (..., "number", 0),
        ...,
        (...,),
    ]


@pytest.mark.parametrize("digest_of", [as_element, as_captured])
def test_no_value_is_taken_for_what_stands_for_another(digest_of: Any):
    found = [digest_of(value) for value in lookalikes()]
    assert found == [digest_of(value) for value in lookalikes()]
    assert len(set(found)) == len(found)


def linked(count: int, last: int, by: type) -> Any:
    """Return nodes in a row, each of which refers to the one before and the one behind it."""
    nodes: list[Any] = [{"number": number} if by is dict else [number] for number in range(count)]
    for i, node in enumerate(nodes):
        around = nodes[i - 1], nodes[(i + 1) % count]
        if by is dict:
            node["before"], node["behind"] = around
        else:
            node.extend(around)
    nodes[-1 - count // 2][0 if by is list else "number"] = last
    return nodes[0]


@pytest.mark.parametrize("by", [dict, list])
@pytest.mark.parametrize("count", [2, 10, 1000])
def test_data_in_circles_counts_to_its_last_part(by: type, count: int):
    """In a function; an element that refers to itself counts with its type."""
    assert as_captured(linked(count, 7, by)) == as_captured(linked(count, 7, by))
    assert as_captured(linked(count, 7, by)) != as_captured(linked(count, 8, by))
    assert as_element(linked(count, 7, by)) == as_element(linked(count, 8, by))


def test_what_many_places_refer_to_is_taken_apart_once():
    def shared(last: int) -> list[Any]:
        value: list[Any] = [last, [last]]
        for _ in range(50):
            value = [value, value]
        return value

    def apart(last: int, levels: int) -> list[Any]:
        return [apart(last, levels - 1), apart(last, levels - 1)] if levels else [last, [last]]

    assert as_captured(shared(1)) == as_captured(shared(1)) != as_captured(shared(2))
    value = [7, [7]]
    for _ in range(6):
        value = [value, value]
    assert as_captured(value) == as_captured(apart(7, 6))
    assert as_element(value) == as_element(apart(7, 6))


def nested(depth: int, last: int) -> list[Any]:
    value: list[Any] = [last]
    for _ in range(depth):
        value = [value]
    return value


def test_data_of_any_depth():
    """An element that is deeper than `MAX_DEPTH` counts with its type, what a function holds wholly."""
    for depth in (digest.MAX_DEPTH - 1, digest.MAX_DEPTH + 1, 5000):
        assert as_captured(nested(depth, 1)) == as_captured(nested(depth, 1)) != as_captured(nested(depth, 2))
        counts = depth < digest.MAX_DEPTH
        assert (as_element(nested(depth, 1)) != as_element(nested(depth, 2))) == counts


def test_many_parts():
    """A table of more than `MAX_NODES` parts counts with its type as an element, wholly in a function."""
    one = [(number, [number, (number,)]) for number in range(digest.MAX_NODES // 3)]
    other = [*one[:-1], (0, [0, (0,)])]
    assert as_captured(one) == as_captured(list(one)) != as_captured(other)
    assert as_element(one) != as_element(other)
    assert as_element(one * 2) == as_element(other * 2)
