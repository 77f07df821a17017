"""What a user's signal handler raises reaches the caller, as from the builtin `map`.

No exception of the handler's is lost, renamed or blamed on an element, and the next evaluation is right.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, connect, parallel
from parcoll.world import handlers


class Alarm(Exception):
    """What the handler raises: a class of its own."""


raised: list[Alarm] = []


def on_alarm(number: int, frame: object) -> None:
    raised.append(Alarm(f"number {len(raised)}"))
    raise raised[-1]


@pytest.fixture(autouse=True)
def alarms() -> Iterator[None]:
    """Have alarms raise."""
    raised.clear()
    # Python drops what is raised in a callback of its collector, and hypothesis has one in this process.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    before = signal.signal(signal.SIGALRM, on_alarm)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.callbacks[:] = callbacks
    assert signal.signal(signal.SIGALRM, before) is on_alarm


def ring() -> None:
    signal.raise_signal(signal.SIGALRM)


class RingsWhenPickled:
    def __getstate__(self) -> Any:
        ring()
        return {}


class RingsWhenReduced:
    def __reduce__(self) -> Any:
        ring()
        return int, ()


class RingsWhenShown:
    def __repr__(self) -> str:
        ring()
        return "shown"


class RingsWhenIterated:
    def __iter__(self) -> Iterator[int]:
        ring()
        return iter([1])


class RingsWhenMeasured:
    def __len__(self) -> int:
        ring()
        return 1

    def __iter__(self) -> Iterator[int]:
        return iter([1])


class RingsWhenHashed:
    def __hash__(self) -> int:
        ring()
        return 1

    def __reduce__(self) -> Any:
        return dict, ({self: 1},)


class RingsWhenNamed:
    """A callable whose name is asked for, for labels."""

    def __call__(self, x: Any) -> Any:
        return x

    @property
    def __name__(self) -> str:
        ring()
        return "named"


class RingsAndCatches:
    def __reduce__(self) -> Any:
        with contextlib.suppress(Alarm):
            ring()
        return int, ()


def halfway() -> Iterator[int]:
    yield 1
    ring()
    yield 2


def refuses_what_it_shows() -> Any:
    """An element that cannot be sent, whose repr is in the message."""

    class Bad(RingsWhenShown):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    return Bad()


EVALUATIONS: dict[str, Callable[[], object]] = {
    "an element is pickled": lambda: list(parallel([RingsWhenPickled()]).map(id)),
    "an element is reduced": lambda: list(parallel([1, RingsWhenReduced()]).map(str)),
    "a list of them is taken": lambda: parallel([RingsWhenPickled()]).take(1),
    "they are counted": lambda: parallel([RingsWhenPickled()]).count(),
    "they are kept": lambda: parallel([RingsWhenPickled()]).foreach(id),
    "they are folded": lambda: parallel([RingsWhenPickled()]).fold(max, 0),
    "what a function holds is pickled": lambda: list(
        parallel([1]).map(functools.partial(max, RingsWhenPickled()))
    ),
    "an initial value is pickled": lambda: parallel([1]).reduce(min, RingsWhenReduced()),
    "a source is iterated": lambda: list(parallel(RingsWhenIterated()).map(str)),
    "a source is measured": lambda: list(parallel(RingsWhenMeasured()).map(str)),
    "a source gives": lambda: list(parallel(halfway).map(str)),
    "an element is hashed": lambda: list(parallel([RingsWhenHashed()]).map(str)),
    "a function is named": lambda: repr(parallel([1]).map(RingsWhenNamed())),
    "an argument is quoted": lambda: parallel([1], partition_size=RingsWhenShown()),  # type: ignore[arg-type]
    "a culprit is quoted": lambda: list(parallel([refuses_what_it_shows()]).map(str)),
}


@pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS)
def test_a_signal_while_parcoll_asks_an_object_raises_what_the_handler_raised(
    cluster: Connection, evaluate: Callable[[], object]
) -> None:
    with pytest.raises(Alarm) as caught:
        evaluate()
    assert caught.value is raised[-1]
    assert list(parallel([1, 2]).map(str)) == ["1", "2"]


def test_a_checkpoint_that_rings(cluster: Connection, tmp_path: Path) -> None:
    with pytest.raises(Alarm):
        list(parallel([RingsWhenPickled()], checkpoint=str(tmp_path)).map(id))
    assert list(parallel([1], checkpoint=str(tmp_path / "other")).map(str)) == ["1"]


def test_what_an_object_catches_itself_is_its_own_business(cluster: Connection) -> None:
    assert list(parallel([RingsAndCatches()]).map(str)) == ["0"]
    assert len(raised) == 1


def test_an_alarm_is_no_failed_element(inline: Connection) -> None:
    with pytest.raises(Alarm) as caught:
        list(parallel([1, 2, 3], on_error="skip").map(lambda x: ring()))
    assert caught.value is raised[-1]
    assert not getattr(caught.value, "__notes__", [])


def test_a_function_s_own_alarm_is_a_failed_element(inline: Connection) -> None:
    def limited(x: int) -> int:
        before = signal.signal(signal.SIGALRM, lambda *_: exec("raise TimeoutError"))
        try:
            if x == 2:
                ring()
            return x
        finally:
            signal.signal(signal.SIGALRM, before)

    assert list(parallel([1, 2, 3], on_error="skip").map(limited)) == [1, 3]


def test_a_handler_that_raises_what_is_no_exception(cluster: Connection) -> None:
    class End(BaseException):
        """As SystemExit."""

    def end(*_: object) -> None:
        raise End

    with _handling(signal.SIGUSR1, end), pytest.raises(End):
        list(parallel([_Sends(signal.SIGUSR1)]).map(str))


class _Sends:
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        signal.raise_signal(self.number)
        return int, ()


@contextlib.contextmanager
def _handling(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_handler_of_the_log_that_rings(cluster: Connection) -> None:
    """`logging` takes what is raised there for a fault of the handler's."""

    class Rings(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ring()

    logger, handler = logging.getLogger("parcoll"), Rings()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(Alarm):
            list(parallel([1]).map(str))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_handlers_that_the_source_sets_stay(cluster: Connection) -> None:
    calls: list[int] = []

    def other(number: int, frame: object) -> None:
        calls.append(number)

    def source() -> Iterator[int]:
        yield 1
        before = signal.signal(signal.SIGALRM, other)
        ring()
        yield 2
        signal.signal(signal.SIGALRM, before)
        yield 3

    assert list(parallel(source, partition_size=1).map(str)) == ["1", "2", "3"]
    assert calls == [signal.SIGALRM]


# Alarms at random moments --------------------------------------------------------------------------

NUMBERS = list(range(50))


def _inc(x: int) -> int:
    return x + 1


class _Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __reduce__(self) -> Any:
        return _Point, (self.x,)


def _kept() -> int:
    numbers = parallel(NUMBERS)
    numbers.foreach(_inc)
    return sum(numbers)


def _stream() -> Iterator[int]:
    yield from NUMBERS


def _works(folder: Path) -> dict[str, tuple[Callable[[], object], object]]:
    number = iter(range(10**6))

    def saved() -> int:
        return sum(parallel(NUMBERS, checkpoint=str(folder / str(next(number)))).map(_inc))

    return {
        "map": (lambda: sum(parallel(NUMBERS).map(_inc)), 1275),
        "objects": (lambda: sum(parallel([_Point(x) for x in NUMBERS]).map(lambda p: p.x)), 1225),
        "a stream": (lambda: sum(parallel(_stream).map(_inc)), 1275),
        "reduce": (lambda: parallel(NUMBERS).reduce(max), 49),
        "foreach": (_kept, 1275),
        "take": (lambda: parallel(_stream).map(_inc).take(2), [1, 2]),
        "a checkpoint": (saved, 1275),
        "progress": (lambda: sum(parallel(NUMBERS, progress=True).map(_inc)), 1275),
        "bag": (lambda: parallel(NUMBERS).map(_inc).bag.npartitions, 1),
        "explain": (lambda: str(parallel(NUMBERS).map(_inc).explain())[:6], "chain:"),
    }


@pytest.mark.parametrize("alarms_each", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_alarms_at_random_moments_all_arrive(
    cluster: Connection, tmp_path: Path, capfd: pytest.CaptureFixture[str], alarms_each: int
) -> None:
    for name, (work, right) in _works(tmp_path).items():
        assert work() == right
        started = time.perf_counter()
        assert work() == right
        took = time.perf_counter() - started
        for _ in range(alarms_each):
            raised.clear()
            found: BaseException | None = None
            result: object = None
            try:
                signal.setitimer(signal.ITIMER_REAL, max(random.random() * took, 1e-6))
                try:
                    result = work()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except BaseException as error:
                found = error
            assert found is (raised[-1] if raised else None), (name, found)
            assert found is not None or result == right
            found = None
        assert work() == right
    assert "Exception ignored" not in capfd.readouterr().err


def test_alarms_while_a_cluster_starts_and_ends() -> None:
    for seconds in (0.05, 0.4):
        raised.clear()
        found: BaseException | None = None
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                with connect(n_workers=1):
                    assert parallel(NUMBERS).count() == 50
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm as error:
            found = error
        assert found is (raised[-1] if raised else None)
        found = None
    with connect(n_workers=1):
        assert parallel(NUMBERS).count() == 50


def test_the_parts_of_python_that_are_leant_on() -> None:
    """`_signal.getsignal` returns handlers as they are, and a traceback begins where it was caught."""
    import _signal  # type: ignore[import-not-found]

    assert _signal.getsignal(signal.SIGALRM) is on_alarm
    assert set(handlers.LEFT_ALONE) == {signal.default_int_handler.__name__, "_sighandler_noop"}
    found: Any = None
    try:
        ring()
    except Alarm as error:
        found = error.__traceback__
    assert found.tb_frame.f_code.co_name == "test_the_parts_of_python_that_are_leant_on"
