"""What parcoll says of exceptions and elements ends, though what these say of themselves never does.

Whoever prints an `ElementError`, or any other message of parcoll's, is told within seconds; and nothing that
a signal's handler raises meanwhile is lost.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, ElementError, SerializationError, broadcast, parallel, text

over = threading.Event()
TOO_LONG = "<its str() takes longer than 1 s>"


@pytest.fixture(scope="module", autouse=True)
def ends(leaves_no_trace: None) -> Iterator[None]:
    """Let the threads end that nothing else can end."""
    yield
    over.set()


class Asleep(Exception):
    """As one that waits for a lock, or for an answer from the network."""

    def __str__(self) -> str:
        over.wait(3600)
        return ""

    __repr__ = __str__


class AsleepAtTheEnd(StopIteration):
    __str__ = __repr__ = Asleep.__str__


class Endless(Exception):
    def __str__(self) -> str:
        while True:
            pass

    __repr__ = __str__


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")

    __repr__ = __str__


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Deep(Exception):
    def __str__(self) -> str:
        return str(self)

    __repr__ = __str__


class Huge(Exception):
    def __str__(self) -> str:
        return "x" * 10**7

    __repr__ = __str__


def raises_asleep(*_: Any) -> Any:
    raise Asleep


class Unsendable:
    def __reduce__(self) -> Any:
        raise Asleep


class Unloadable:
    def __reduce__(self) -> Any:
        return raises_asleep, ()


class AtHomeWhereMade:
    """It can be unpickled in the process that made it, and in no other."""

    def __reduce__(self) -> Any:
        return at_home, (os.getpid(),)


def at_home(process: int) -> AtHomeWhereMade:
    return AtHomeWhereMade() if process == os.getpid() else raises_asleep()


class Unreadable(Exception):
    def __getattribute__(self, name: str) -> Any:
        return raises_asleep() if name == "__dict__" else super().__getattribute__(name)


# An error in the hands of the script ----------------------------------------------------------------

KINDS: list[tuple[type[Exception], str, str]] = [
    (Asleep, TOO_LONG, "<Asleep object, whose repr takes longer than 1 s>"),
    (Endless, TOO_LONG, "<Endless object, whose repr takes longer than 1 s>"),
    (Mute, "<its str() failed>", "<Mute object, whose repr raised KeyError>"),
    (Exits, "<its str() failed>", "<Exits object, whose repr raised SystemExit>"),
    (Deep, "<its str() failed>", "<Deep object, whose repr raised RecursionError>"),
    (Huge, "x" * 10_000 + "... (10,000,000 characters)", "x" * 197 + "..."),
]


@pytest.mark.parametrize(("kind", "said", "shown"), KINDS)
def test_an_element_error_can_be_printed_whatever_it_holds(
    kind: type[Exception], said: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ElementError("map(f)", 0, 3, kind(), kind())
    line = f"map(f) failed at element 3: {kind.__name__}: {said}"
    assert str(error) == line
    assert repr(error) == (
        f"ElementError(step='map(f)', step_index=0, index=3, element={shown}, exception={shown}, "
        "attempts=1, partition=None)"
    )
    assert repr([error]) == f"[{error!r}]"
    assert traceback.format_exception_only(error)[-1] == f"parcoll.errors.ElementError: {line}\n"
    sys.__excepthook__(ElementError, error, None)
    print(error)
    logging.getLogger("test.texts").error("%s", error, exc_info=(ElementError, error, None))
    found = capsys.readouterr()
    assert line in found.err
    assert found.out == f"{line}\n"


def test_an_element_error_within_itself() -> None:
    error = ElementError("map(f)", 0, 3, None, ValueError("that"))
    error.element = {"error": error}
    assert "element={'error': ElementError(step='map(f)', " in repr(error)
    error.exception = error
    assert "map(f) failed at element 3: ElementError: <its str() failed>" in str(error)


def test_an_element_error_of_plain_values_is_shown_in_full() -> None:
    error = ElementError("map(f)", 1, 3, "x", ValueError("that", 5), 2, 7)
    assert str(error) == "map(f) failed at element 3 of partition 7, 2 times: ValueError: ('that', 5)"
    assert repr(error) == (
        "ElementError(step='map(f)', step_index=1, index=3, element='x', exception=ValueError('that', 5), "
        "attempts=2, partition=7)"
    )


class Alarm(Exception):
    """What the handler raises."""


@pytest.mark.parametrize("ask", [str, repr, text.short_repr, text.message_of, text.line_of])
@pytest.mark.parametrize("kind", [Asleep, Exits, ValueError])
def test_what_a_signal_s_handler_raises_meanwhile_arrives(
    ask: Callable[[Any], str], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At many moments of the second that it may take, and of the microseconds that it takes as a rule.

    Python itself drops what is raised in a callback of a weak reference, of which a thread that ends has one.
    """
    raised: list[Alarm] = []
    dropped: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: dropped.append(told.exc_value))

    def ring(*_: object) -> None:
        raised.append(Alarm())
        raise raised[-1]

    value: Exception = kind("that")
    if ask in (str, repr):
        value = ElementError("map(f)", 0, 3, kind("that"), kind("that"))

    def ask_until_it_rings(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while not raised:
            ask(value)
        assert dropped == raised, "nobody has got it"
        raise raised[0]

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for number in range(1, 40):
            text._slow.clear()
            raised.clear()
            dropped.clear()
            with pytest.raises(Alarm) as caught:
                ask_until_it_rings(number * (1e-3 if kind is Asleep else 1e-5))
            assert raised == [caught.value]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_s_error_that_looks_like_a_missing_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, what is asked answers here; another RuntimeError is the handler's."""

    class NoThread(RuntimeError):
        pass

    def start(func: object, arguments: object) -> int:
        raise failure

    monkeypatch.setattr(_thread, "start_new_thread", start)
    failure = RuntimeError("can't start new thread")
    assert text.short_repr(Mute()) == "<Mute object, whose repr raised KeyError>"
    failure = NoThread("can't start new thread")
    with pytest.raises(NoThread):
        text.short_repr(Mute())


# What an evaluation says -----------------------------------------------------------------------------


def fail(x: Any) -> Any:
    raise Asleep


def fail_at_the_end(x: Any) -> Any:
    raise AsleepAtTheEnd


def fail_unread(x: Any) -> Any:
    raise Unreadable


def fail_with_a_number(x: Any) -> Any:
    raise ValueError(10**5000)


def log_what_cannot_be_sent(x: Any) -> Any:
    class Silent:
        def __reduce__(self) -> Any:
            raise TypeError

        def __repr__(self) -> str:
            return str(Asleep())

    logging.getLogger("test.texts").warning("hello", extra={"silent": Silent()})
    return x


def listed(chain: Any) -> list[Any]:
    return list(chain)


def capturing(value: Any) -> Any:
    return parallel([1]).map(lambda x: (x, value))


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "an element that cannot be sent": (
        lambda: listed(parallel([Unsendable()]).map(str)),
        "element 0 of the source cannot be sent to the workers: <",
    ),
    "one that cannot be loaded": (
        lambda: listed(parallel([Unloadable()]).map(str)),
        "the worker could not load the partition at element 0: ",
    ),
    "the same beside the worker": (
        lambda: listed(parallel([Unloadable()], timeout=20).map(str)),
        "the worker could not load the partition at element 0: ",
    ),
    "a result that cannot be sent": (
        lambda: listed(parallel([1]).map(lambda x: Unsendable())),
        "the result of element 0 cannot be sent back from the worker: <",
    ),
    "the same beside the worker's": (
        lambda: listed(parallel([1], timeout=20).map(lambda x: Unsendable())),
        "the result of element 0 cannot be sent back from the worker: <",
    ),
    "a result that cannot be loaded": (
        lambda: listed(parallel([1]).map(lambda x: AtHomeWhereMade())),
        "the results of the partition at element 0 came back from the worker but cannot be unpickled here: ",
    ),
    "what is captured and cannot be sent": (
        lambda: listed(capturing(Unsendable())),
        "the function of map(lambda) cannot be sent to the workers: it uses value, <",
    ),
    "what is captured and cannot be loaded": (
        lambda: listed(capturing(Unloadable())),
        "the worker could not load the chain: ",
    ),
    "a value that cannot be folded": (
        lambda: parallel([1, 2]).reduce(lambda a, b: Unsendable()),
        "the value of reduce(lambda) cannot be sent between workers: <",
    ),
    "what cannot be broadcast": (lambda: broadcast(Unsendable()), "<"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_for_which_an_exception_that_never_speaks_is_the_reason(
    cluster: Connection, name: str
) -> None:
    evaluate, start = REFUSALS[name]
    with pytest.raises(SerializationError) as raised:
        evaluate()
    assert str(raised.value).startswith(start)
    assert f"Asleep: {TOO_LONG}" in str(raised.value)


def test_an_evaluation_that_fails_with_one(
    cluster: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The bar, the log, the table, the pages of a notebook, the checkpoint."""
    caplog.set_level(logging.INFO, "parcoll")
    with pytest.raises(Asleep):
        listed(parallel([1], progress=True).map(fail))
    chain = parallel([1], on_error="skip", checkpoint=str(tmp_path / "saved")).map(fail)
    assert listed(chain) == []
    assert listed(parallel([1], on_error="skip", checkpoint=str(tmp_path / "saved")).map(fail)) == []
    (failure,) = chain.stats.failures
    assert failure.message.endswith("Asleep: <its str() failed>")
    for shown in (
        repr(chain.errors),
        str(chain.stats),
        chain._repr_html_(),
        repr(chain),
        str(chain.explain()),
    ):
        assert shown
    said = parallel([1], on_error=lambda error: (str(error), repr(error))).map(fail)
    assert TOO_LONG in said.first()[0]
    assert "whose repr takes longer" in said.first()[1]
    with pytest.raises(Asleep):
        listed(parallel([1], on_error=raises_asleep).map(fail))
    with pytest.raises(Asleep):
        listed(parallel([1], retries=1, retry_on=raises_asleep).map(fail))
    assert "1 failed" in capsys.readouterr().err
    assert "1 failed" in caplog.text


def halfway() -> Iterator[int]:
    yield 1
    raise Asleep


def test_a_source_that_fails_with_one(cluster: Connection) -> None:
    chain = parallel(halfway).map(str)
    with pytest.raises(Asleep):
        listed(chain)
    assert chain.stats.failures[0].message == f"Asleep: {TOO_LONG}"


def test_what_is_told_of_others(cluster: Connection) -> None:
    with pytest.raises(
        RuntimeError, match=r"raised <AsleepAtTheEnd object, whose repr takes longer than 1 s>"
    ):
        listed(parallel([1]).map(fail_at_the_end))
    with pytest.raises(Exception, match=r"reading it raised <Asleep object, whose repr takes longer"):
        listed(parallel([1]).map(fail_unread))
    with pytest.raises(ValueError) as raised:
        listed(parallel([1]).map(fail_with_a_number))
    assert raised.value.args == (10**5000,)
    chain = parallel([AtHomeWhereMade()], on_error="skip").map(fail)
    with pytest.raises(SerializationError, match="could not load the partition"):
        listed(chain)


def test_a_record_of_the_log_with_one(cluster: Connection, caplog: pytest.LogCaptureFixture) -> None:
    assert listed(parallel([1]).map(log_what_cannot_be_sent)) == [1]
    (record,) = [record for record in caplog.records if record.name == "test.texts"]
    assert record.silent == "<Silent object, whose repr takes longer than 1 s>"  # type: ignore[attr-defined]


def test_an_element_that_is_loaded_only_when_somebody_looks(inline: Connection) -> None:
    """It travelled as a pickle, in the `ElementError`."""
    from parcoll.wire.exceptions import decoded_part

    content = b"\x80\x05c" + f"{__name__}\nraises_asleep\n".encode() + b")R."
    assert decoded_part((True, content)) == f"<could not be unpickled: {TOO_LONG}>"
