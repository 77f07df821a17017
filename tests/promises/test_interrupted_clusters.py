"""A cluster ends, whatever a signal's handler raises while it starts and ends, and whenever it does so.

Also while somebody keeps the exception, and with it the variables of all functions that it came through.
A handler runs where a function is entered, and where one that is written in C returns. So the first run notes
all such places in parcoll that the main thread comes to. In each of the others a signal arrives at one.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import psutil
import pytest
from scripts import eventually

import parcoll
from parcoll import connect, parallel
from parcoll.cluster import clients
from parcoll.cluster.renewing import is_at_work
from parcoll.connecting import current

FOLDER = os.path.dirname(parcoll.__file__)
PARTS = 60  # of all places, of which one part is for every run, and the others are for `nox -s slow`

Place = tuple[str, str, int, str]

# Before the first line of these a handler runs that no code of parcoll's can be around: where a block is not
# entered yet, or is left already. Python's documentation of `signal` says so of all context managers.
BEYOND = {"connect", "_whole.<locals>.call", "Connection.__enter__", "Connection.__exit__"}


class Alarm(Exception):
    """What the handler raises: a class of its own."""


raised: list[BaseException] = []


def on_signal(number: int, frame: object) -> None:
    raised.append(Alarm() if number == signal.SIGALRM else KeyboardInterrupt())
    raise raised[-1]


@pytest.fixture(autouse=True)
def handling() -> Iterator[None]:
    """Have alarms raise an error, and Ctrl-C what it always does."""
    raised.clear()
    before = signal.signal(signal.SIGALRM, on_signal)
    yield
    raised.clear()
    assert signal.signal(signal.SIGALRM, before) is on_signal


def use_a_cluster() -> None:
    with connect(n_workers=1):
        pass


def place_of(frame: FrameType, event: str) -> Place | None:
    """Return where the main thread is, if a handler may run there."""
    code = frame.f_code
    if not code.co_filename.startswith(FOLDER) or event not in ("call", "c_return"):
        return None
    if event == "call" and (code.co_flags & inspect.CO_GENERATOR or code.co_qualname in BEYOND):
        return None  # a profiler cannot tell a generator that begins from one that goes on
    return code.co_filename, code.co_qualname, frame.f_lineno, event


@pytest.fixture(scope="module")
def places(leaves_no_trace: None) -> list[Place]:
    """Return all places, in the order in which they were come to first."""
    found: dict[Place, None] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        if (place := place_of(frame, event)) is not None:
            found[place] = None

    def noted() -> dict[Place, None]:
        found.clear()
        sys.setprofile(note)
        try:
            use_a_cluster()
        finally:
            sys.setprofile(None)
        return found.copy()

    use_a_cluster()  # imports are another story: no handler comes between
    first, second = noted(), noted()
    return [place for place in first if place in second]


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGINT], ids=["an alarm", "Ctrl-C"])
@pytest.mark.parametrize(
    "part", [pytest.param(n, marks=() if n in (7, 31, 41) else pytest.mark.slow) for n in range(PARTS)]
)
def test_a_cluster_ends_wherever_a_signal_comes(places: list[Place], part: int, number: int) -> None:
    before = set(psutil.Process().children(recursive=True))
    threads = set(threading.enumerate())
    reached = 0
    for place in places[part::PARTS]:
        come = False

        def ring(frame: FrameType, event: str, argument: object, place: Place = place) -> None:
            nonlocal come
            if place_of(frame, event) == place:
                sys.setprofile(None)
                come = True
                signal.raise_signal(number)

        kept: BaseException | None = None
        sys.setprofile(ring)
        try:
            use_a_cluster()
        except (Alarm, KeyboardInterrupt) as error:
            kept = error
        finally:
            sys.setprofile(None)
        assert (kept is not None) == come, place
        reached += come
        gone = eventually(lambda: not set(psutil.Process().children(recursive=True)) - before, 20)
        assert gone, (place, kept)
        assert eventually(lambda: not set(threading.enumerate()) - threads, 20), (place, kept)
        assert current.current_connection() is None, place
        assert not is_at_work(), place
    assert reached > len(places) // PARTS // 2


def test_an_alarm_while_a_cluster_says_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    close = clients.close_lost

    def rings_and_closes(client: object) -> None:
        signal.raise_signal(signal.SIGALRM)
        close(client)

    before = set(psutil.Process().children(recursive=True))
    connection = connect(n_workers=1)
    assert parallel(range(50)).count() == 50
    monkeypatch.setattr(clients, "close_lost", rings_and_closes)
    with pytest.raises(Alarm) as caught:
        connection.close()
    assert caught.value is raised[-1]
    assert eventually(lambda: not set(psutil.Process().children(recursive=True)) - before, 20), caught
