"""`join`: elements with those of another side that have the same key."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from scripts import append, lines

from parcoll import CheckpointError, SerializationError, connect, parallel


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Key:
    name: str
    more: Any


USERS = [(1, "ann"), (2, "bob"), (1, "amy")]
EVENTS = [(2, "in"), (3, "in"), (1, "out"), (2, "out")]
EXPECTED: dict[str, list[Any]] = {
    "inner": [
        ((2, "in"), (2, "bob")),
        ((1, "out"), (1, "ann")),
        ((1, "out"), (1, "amy")),
        ((2, "out"), (2, "bob")),
    ],
    "semi": [(2, "in"), (1, "out"), (2, "out")],
    "anti": [(3, "in")],
}
EXPECTED["left"] = [EXPECTED["inner"][0], ((3, "in"), None), *EXPECTED["inner"][1:]]


def first(pair: Any) -> Any:
    return pair[0]


@pytest.mark.parametrize("place", ["inline", "cluster", "timeout"])
def test_how_they_are_joined(place: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("inline" if place == "inline" else "cluster")
    how: dict[str, Any] = {"timeout": 60} if place == "timeout" else {}
    events = parallel(EVENTS, partition_size=2, **how).filter(None)
    others: list[Any] = [USERS, parallel(USERS, partition_size=1, **how).map(tuple), lambda: iter(USERS)]
    others = others if place == "inline" else others[1:2]
    for kind, expected in EXPECTED.items():
        for other in others:
            joined: Any = events.join(other, first, how=kind)  # type: ignore[call-overload]
            assert list(joined) == expected
        assert list(joined.enumerate().map(first)) == [*range(len(expected))]
        assert joined.count() == len(expected)
    users = parallel(USERS, **how).map(tuple)
    joined = events.join(users, lambda e: e[0] - 1, lambda u: u[0] - 1)
    assert list(joined) == joined.bag.compute(scheduler="sync") == EXPECTED["inner"]
    assert [(s.label.partition("(")[0], s.entered, s.left) for s in joined.stats.steps][1:] == [
        ("join", 4, 4)
    ]
    assert users.stats.elements_in == 3
    joined.foreach(len)
    assert list(joined) == [2] * 4
    assert list(events.join([], first, how="left")) == [(e, None) for e in EVENTS]


@pytest.mark.usefixtures("cluster")
def test_keys_are_those_of_a_dict() -> None:
    keys = [1, 1.0, True, Decimal(1), None, (1, None), Colour.RED, Key("a", None), "1", b"1"]
    keys += [float("nan"), (1, ("a", float("nan")))]
    ones = parallel(keys, partition_size=3).join(keys, lambda x: x)
    assert [repr(x) for x, _ in ones] == [repr(x) for x in keys[:4] for _ in range(4)] + [
        *map(repr, keys[4:])
    ]
    assert parallel([Decimal("NaN"), complex("nan")]).join([float("nan")], lambda x: x).count() == 2
    assert list(parallel(keys[4:]).join([*keys[:4], Colour.BLUE], lambda x: x)) == []


class Named(NamedTuple):
    name: str
    more: Any


class Row(tuple[Any, ...]):
    """A tuple of a user's class."""


@pytest.mark.usefixtures("cluster")
def test_keys_within_others_are_those_of_a_dict() -> None:
    """What holds them finds what is equal, and is refused where a dict would tell it by identity."""
    nan = float("nan")
    keys = [Named("a", nan), Row(["b", nan]), frozenset(["c", nan]), Key("d", nan), Key("e", (1, nan))]
    keys += [np.datetime64("NaT", "s"), Key("f", first), frozenset([first]), Named("g", len), Key("h", None)]
    keys += [Named("i", Key("j", frozenset([nan])))]
    numbered = list(enumerate(keys))
    found = parallel(numbered, partition_size=1).join(numbered, lambda pair: pair[1])
    assert list(found.map(lambda both: [at for at, _ in both])) == [[at, at] for at, _ in numbered]
    for key in (Named("a", Alone()), frozenset([Alone()]), Key("a", (1, Alone()))):
        with pytest.raises(TypeError, match="keys of Alone are told apart by identity"):
            parallel([key]).join([key], lambda x: x).count()


class Alone:
    """What is equal to itself alone."""


MISSING = object()


class Missing:
    """What there is one of: pickle knows it by its name."""

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = Missing()


@pytest.mark.usefixtures("cluster")
def test_keys_of_which_there_is_one_everywhere() -> None:
    zones = [ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")]
    keys = [first, len, Colour, MISSING, ABSENT, *zones, ..., (MISSING, 1), (Key, zones[0])]
    twice = [*keys, *keys[::-1]]
    for size in (1, 3, 100):
        chain = parallel(twice, partition_size=size)
        assert list(chain.join(keys[:4], lambda x: x, how="semi")) == [x for x in twice if x in keys[:4]]
        assert list(chain.join(keys[4:], lambda x: x)) == [(x, x) for x in twice if x in keys[4:]]
        assert list(chain.group_by(lambda x: x)) == [(key, [key, key]) for key in keys]
        assert chain.count_by() == dict.fromkeys(keys, 2)
        assert list(chain.distinct()) == keys


@pytest.mark.usefixtures("cluster")
def test_what_is_equal_to_itself_alone_is_refused() -> None:
    """Rather than finding nothing."""

    class Thing:
        pass

    def local() -> None: ...

    for thing in (Thing(), local, (1, Thing())):
        for one, other in (([thing], [1]), ([1], [thing]), ([thing], [thing])):
            with pytest.raises(TypeError, match="told apart by identity"):
                list(parallel(one).join(other, lambda x: x))


@pytest.mark.usefixtures("cluster")
def test_this_side_streams_and_the_other_is_read_once(tmp_path: Path) -> None:
    def noted(x: int) -> int:
        append(tmp_path / "calls", x)
        return x

    numbers = parallel(lambda: itertools.count()).join(parallel([3, 5]).map(noted), lambda x: x % 7)
    assert not (tmp_path / "calls").exists()
    assert numbers.take(3) == [(3, 3), (5, 5), (10, 3)]
    assert sorted(lines(tmp_path / "calls")) == ["3", "5"]


@pytest.mark.usefixtures("inline")
def test_failures_are_those_of_elements() -> None:
    numbers = parallel([1, [2], 3])
    with pytest.raises(TypeError, match="unhashable type: 'list'") as raised:
        list(numbers.join([1, 3], lambda x: x))
    assert "in step 1 of 1, join(lambda), at element 1: [2]" in raised.value.__notes__[0]
    with pytest.raises(TypeError, match="unhashable type: 'list'") as of_other:
        list(parallel([1]).join([1, [3]], lambda x: x))
    assert "at element 1: [3]" in of_other.value.__notes__[0]
    found = numbers.join([1, 3, [4]], lambda x: x, on_error="skip")
    assert list(found) == [(1, 1), (3, 3)]
    assert [(e.index, e.element) for e in found.errors] == [(1, [2]), (2, [4])], "of both sides"
    assert found.stats.failed == 2
    replaced = numbers.join([[4], 3], lambda x: x, on_error=lambda error: error.index)
    assert list(replaced) == [1, (3, 3)]
    once: list[bool] = []

    def flaky(x: int) -> int:
        once.append(True)
        if len(once) == 1:
            raise OSError
        return x

    with connect("inline"):
        assert list(parallel([1]).join([1], abs, retries=1)) == [(1, 1)]
        assert list(parallel([1]).join([1], flaky, abs, retries=1)) == [(1, 1)]


@pytest.mark.usefixtures("cluster")
def test_a_side_that_is_too_large_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parcoll.evaluation.run.TABLE", 1e-6)
    large = parallel(range(800)).map(lambda x: bytes(100_000))
    sizes = r"[\d,]+ elements of it take more than [\d.]+ MiB, and a quarter .* is 0\.0 MiB: make it smaller"
    whose = r"join\(\) sends its other side, parallel\(range\(0, 800\)\)\.map.*, whole to each worker: "
    with pytest.raises(SerializationError, match=whose + sizes):
        list(parallel([1]).join(large, len))
    monkeypatch.setattr("parcoll.evaluation.run.TABLE", 1e-7)
    with pytest.raises(SerializationError, match="elements of it take"):
        list(parallel([1]).join(range(800), lambda x: x, how="semi"))


@pytest.mark.usefixtures("inline")
def test_a_checkpoint_knows_the_other_side(tmp_path: Path) -> None:
    def joined(users: list[Any]) -> list[Any]:
        return list(parallel(EVENTS, checkpoint=tmp_path / "saved").join(users, first))

    assert joined(USERS) == joined(USERS) == EXPECTED["inner"]
    with pytest.raises(CheckpointError, match=r"the function of step 1, join\(first\), has changed"):
        joined(USERS[1:])


def test_what_is_refused() -> None:
    numbers: Any = parallel([1])
    refused: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: numbers.join([1], 3), TypeError, r"join\(\) needs a function, got 3"),
        (lambda: numbers.join([1], abs, 3), TypeError, r"join\(\) needs a function, got 3"),
        (lambda: numbers.join(3, abs), TypeError, r"join\(\) needs an iterable"),
        (
            lambda: numbers.join([1], abs, how="outer"),
            ValueError,
            'how must be "inner", "left", "semi", "anti"',
        ),
        (lambda: numbers.join([1], abs, retires=1), TypeError, r"join\(\) has no setting 'retires'"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("place", ["inline", "cluster", "timeout"])
def test_what_fails_for_the_other_side_says_whose_element_it_is(
    place: str, request: pytest.FixtureRequest
) -> None:
    """Without `other_key` the function is called with elements of both sides."""
    request.getfixturevalue("inline" if place == "inline" else "cluster")
    how: dict[str, Any] = {"timeout": 60} if place == "timeout" else {}
    said = "this is an element of the other side: other_key is called with it, or key where that is not given"
    events = parallel(EVENTS, retries=1, **how)
    with pytest.raises(KeyError) as raised:
        list(events.join([{"id": 1}], first))
    assert raised.value.__notes__[:-1] == [said]
    assert "join(first), at element 0: {'id': 1}" in raised.value.__notes__[-1]
    with pytest.raises(KeyError) as raised:
        list(events.join(USERS, lambda event: {}[event], first))
    assert said not in raised.value.__notes__
