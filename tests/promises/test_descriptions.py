"""Elements and exceptions whose descriptions would never end, or be far too large: each is told in a line.

What a user's own `__repr__` or `__str__` says has a deadline, and so has all that travels of an exception.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from parcoll import Connection, ElementError, parallel
from parcoll.text import LIMIT, short_repr

MANY = 100_000
over = threading.Event()


@pytest.fixture(scope="module", autouse=True)
def ends(leaves_no_trace: None) -> Iterator[None]:
    """Let the threads end that nothing else can end."""
    yield
    over.set()


class Endless:
    def __repr__(self) -> str:
        while True:
            pass


class Asleep:
    """That no exception can wake, as code in C."""

    def __repr__(self) -> str:
        over.wait(3600)
        return ""


class Stubborn:
    def __repr__(self) -> str:
        while not over.is_set():
            try:
                time.sleep(0.1)
            except BaseException:
                continue
        return ""


class Huge:
    def __repr__(self) -> str:
        return "x" * 10**8


class Says:
    def __init__(self, said: Any) -> None:
        self.said = said

    def __repr__(self) -> str:
        if isinstance(self.said, type):
            raise self.said
        return self.said  # type: ignore[no-any-return]


class OwnList(list[Any]):
    pass


class Frozen(bytes):
    pass


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def slow(kind: type) -> str:
    return f"<{kind.__name__} object, whose repr takes longer than 1 s>"


REPRS: list[tuple[Callable[[], Any], str]] = [
    (Endless, slow(Endless)),
    (lambda: {"key": [Asleep()]}, slow(Asleep)),
    (Stubborn, slow(Stubborn)),
    (Huge, "x" * (LIMIT - 3) + "..."),
    (lambda: Says(KeyError), "<Says object, whose repr raised KeyError>"),
    (lambda: [Says(ZeroDivisionError)], "[<Says object, whose repr raised ZeroDivisionError>]"),
    (lambda: Says(SystemExit), "<Says object, whose repr raised SystemExit>"),
    (lambda: Says(3), "<Says object, whose repr raised TypeError>"),
    (lambda: Says("two\n  lines \x1b[1m"), "two lines \\x1b[1m"),
    (lambda: nested(MANY), "[[[[[...]]]]]"),
    (lambda: "y" * 10**8, "'yyy"),
    (lambda: bytes(10**8), "b'\\x00\\x00"),
    (lambda: Frozen(10**8), "b'\\x00\\x00"),
    (lambda: bytearray(10**8), "bytearray(b'\\x00\\x00"),
    (lambda: OwnList(range(10**7)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]"),
    (lambda: dict.fromkeys(range(10**6)), "{0: None, 1: None"),
    (lambda: OrderedDict.fromkeys(range(10**6)), "OrderedDict({0: None, 1: None"),
    (lambda: set(range(10**6)), "{0, 1, 2"),
    (lambda: 10**10_000, "<int object, whose repr raised ValueError>"),
]


@pytest.mark.parametrize(("make", "text"), REPRS)
def test_a_description_of_any_value(make: Callable[[], Any], text: str) -> None:
    value = make()
    for _ in range(2):  # a class that has taken too long is not asked again soon
        found = short_repr(value)
        assert text in found
        assert len(found) <= LIMIT
        assert found.isprintable()


@pytest.mark.parametrize("value", [1, "a'b", b"a", None, [1, (2, {3: {4}})], {"a": 1.5}, ValueError("a", 1)])
def test_what_is_short_is_told_in_full(value: Any) -> None:
    assert short_repr(value) == repr(value)


def fail(x: Any) -> Any:
    raise ValueError("that")


@pytest.mark.parametrize("kind", [Endless, Asleep])
@pytest.mark.parametrize("settings", [{}, {"timeout": 2}], ids=["plain", "timeout"])
def test_an_element_with_an_endless_repr(cluster: Connection, kind: type, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="that") as raised:
        list(parallel([kind()], **settings).map(fail))
    assert raised.value.__notes__ == [f"in step 1 of 1, map(fail), at element 0: {slow(kind)}"]
    chain = parallel([kind(), 1, kind()], on_error="skip", **settings).map(lambda x: x + 1)
    assert list(chain) == [2]
    assert [error.index for error in chain.errors] == [0, 2]


# Exceptions ---------------------------------------------------------------------------------------


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


class EndlessText(Exception):
    def __str__(self) -> str:
        while True:
            pass


class NoText(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class Own(Exception):
    def __init__(self, number: int, more: str) -> None:
        super().__init__(f"{number} {more}")
        self.number = number


class Fat(Exception):
    def __init__(self, data: Any = None) -> None:
        super().__init__("too much")
        self.data = data


def caused(times: int) -> Exception:
    error = ValueError("the first")
    for number in range(times):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    return error


def while_handling(times: int) -> Exception:
    error = ValueError("the first")
    for number in range(times):
        following = ValueError(number)
        following.__context__ = error
        error = following
    return error


def noted(times: int) -> Exception:
    error = ValueError("noted")
    for number in range(times):
        error.add_note(f"note {number}")
    return error


def groups_in_groups(depth: int) -> Exception:
    error: Exception = ValueError("the innermost")
    for _ in range(depth):
        error = ExceptionGroup("one more", [error])
    return error


def missing(group: BaseException) -> int:
    (note,) = [note for note in group.__notes__ if "more exceptions" in note]
    (number,) = re.findall("^[0-9,]+", note)
    assert note == f"{number} more exceptions of this group could not be sent from the worker"
    return int(number.replace(",", ""))


Check = Callable[[BaseException], object]
ERRORS: dict[str, tuple[Callable[[], Exception], str, Check]] = {
    "mute": (Mute, "Mute: <its str() failed>", lambda error: True),
    "endless text": (EndlessText, "EndlessText: <its str() takes longer than 1 s>", lambda error: True),
    "no text": (NoText, "NoText: <its str() failed>", lambda error: True),
    "group": (
        lambda: ExceptionGroup("many", [KeyError(number) for number in range(MANY)]),
        "ExceptionGroup: many (100000 sub-exceptions)",
        lambda error: [e.args for e in error.exceptions] == [(n,) for n in range(MANY)],  # type: ignore[attr-defined]
    ),
    "group of the script's own": (
        lambda: ExceptionGroup("many", [Own(number, "!") for number in range(MANY // 10)]),
        "ExceptionGroup: many (10000 sub-exceptions)",
        lambda error: {str(e) for e in error.exceptions} == {f"{n} !" for n in range(MANY // 10)},  # type: ignore[attr-defined]
    ),
    "groups in a group": (
        lambda: ExceptionGroup("a", [ExceptionGroup("b", [OSError(n) for n in range(300)])] * 300),
        "ExceptionGroup: a (300 sub-exceptions)",
        lambda error: {len(e.exceptions) for e in error.exceptions} == {300},  # type: ignore[attr-defined]
    ),
    "groups in groups": (lambda: groups_in_groups(5000), "ExceptionGroup: one more", lambda error: True),
    "a group that cannot travel": (
        lambda: ExceptionGroup("locks", [ValueError(lambda: 1, iter([])) for _ in range(5000)]),
        "ExceptionGroup: locks",
        lambda error: len(error.exceptions) + missing(error) == 5000,  # type: ignore[attr-defined]
    ),
    "causes": (lambda: caused(MANY), "ValueError: 99999", lambda error: error.__cause__.args == (99998,)),  # type: ignore[union-attr]
    "contexts": (
        lambda: while_handling(MANY),
        "ValueError: 99999",
        lambda error: error.__context__.args == (99998,),  # type: ignore[union-attr]
    ),
    "attribute": (lambda: Fat(bytes(10**8)), "Fat: too much", lambda error: len(error.data) <= LIMIT),  # type: ignore[attr-defined]
    "attribute of many": (
        lambda: Fat([*range(6 * 10**6)]),
        "Fat: too much",
        lambda error: error.data == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]",  # type: ignore[attr-defined]
    ),
    "attribute in another": (lambda: Fat(Fat(bytes(10**8))), "Fat: too much", lambda error: True),
    "message": (
        lambda: ValueError("z" * 10**8),
        "ValueError: " + "z" * 10_000 + "... (100,000,000 characters)",
        lambda error: type(error) is ValueError,
    ),
    "message of bytes": (lambda: ValueError(bytes(10**8)), "ValueError: b'\\x00", lambda error: True),
    "notes": (lambda: noted(MANY), "ValueError: noted", lambda error: "note 0" in error.__notes__),
    "deep": (lambda: Fat(nested(MANY)), "Fat: too much", lambda error: error.data == "[[[[[...]]]]]"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_that_is_too_much(cluster: Connection, name: str) -> None:
    make, text, check = ERRORS[name]

    def fail_so(x: int) -> int:
        raise make()

    skipping = parallel([5], on_error="skip").map(fail_so)
    assert list(skipping) == []
    (error,) = skipping.errors
    assert str(error).startswith(f"map(fail_so) failed at element 0: {text}")
    assert type(error.exception).__name__ == type(make()).__name__
    assert check(error.exception)
    assert error.exception.__notes__[-1] == "in step 1 of 1, map(fail_so), at element 0: 5"
    with pytest.raises(Exception) as raised:
        parallel([5]).map(fail_so).count()
    assert check(raised.value)
    if name != "endless text":
        assert "in step 1 of 1, map(fail_so), at element 0: 5" in "".join(
            traceback.format_exception(raised.value)
        )
    assert len(skipping.stats.failures[0].message) <= 500 if skipping.stats.failures else True


def test_the_error_of_an_element_says_so_too() -> None:
    for kind, why in [(Mute, "<its str() failed>"), (EndlessText, "<its str() takes longer than 1 s>")]:
        error = ElementError("map(f)", 0, 3, "x", kind(), 2)
        assert str(error) == f"map(f) failed at element 3, 2 times: {kind.__name__}: {why}"
