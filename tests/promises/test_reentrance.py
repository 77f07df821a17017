"""An evaluation in a handler: of a signal, of the log, of the collector, of a weak reference; in `__del__`.

Each while the first cluster starts, and while another evaluation runs in the same thread: no deadlock, and
right answers.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from scripts import Scripts

from parcoll import Connection, parallel

INNER = "sum(parallel(range(5)).map(lambda x: x + 1))"  # 15
OUTER = "sum(parallel(range(100), partition_size=5).map(lambda x: x + 1))"  # 5050

HANDLERS = {
    "a signal": """
        def handler(number, frame):
            evaluate()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        """,
    "parcoll's log": """
        class Handler(logging.Handler):
            def emit(self, record):
                evaluate()
        logging.getLogger("parcoll").addHandler(Handler())
        logging.getLogger("parcoll").setLevel(logging.DEBUG)
        """,
    "all logs": """
        class Handler(logging.Handler):
            def emit(self, record):
                evaluate()
        logging.getLogger().addHandler(Handler())
        logging.getLogger().setLevel(logging.DEBUG)
        """,
    "the garbage collector": """
        gc.callbacks.append(lambda phase, info: evaluate())
        gc.set_threshold(50, 5, 5)
        """,
    "a weak reference": """
        class Dropped:
            pass
        def handler(number, frame):
            kept.append(weakref.ref(Dropped(), lambda _: evaluate()))
        kept = []
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        """,
    "a finalizer": """
        class Dropped:
            def __del__(self):
                evaluate()
        signal.signal(signal.SIGALRM, lambda *_: Dropped())
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        """,
}

SCRIPT = """
import gc, logging, signal, threading, weakref
from parcoll import parallel

found, inside = [], set()

def evaluate():
    # Not within itself, and not for ever: the collector and dask's loop call often.
    here = threading.get_ident()
    if here in inside or len(found) >= 20:
        return
    inside.add(here)
    try:
        found.append({inner})
    except BaseException as error:
        found.append(error)
    finally:
        inside.discard(here)
{handler}
others = []
thread = threading.Thread(target=lambda: others.append({outer}))
thread.start()
first = {outer}
second = {outer}
thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
gc.callbacks.clear()
for logger in (logging.getLogger(), logging.getLogger("parcoll")):
    logger.handlers.clear()
print(first, second, others, {{*map(repr, found)}})
"""


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_a_handler_evaluates_while_the_first_cluster_starts_and_later(scripts: Scripts, handler: str) -> None:
    lines = handler.splitlines()
    text = SCRIPT.format(inner=INNER, outer=OUTER, handler="\n".join(line[8:] for line in lines))
    assert scripts.run_file(text) == "5050 5050 [5050] {'15'}\n"


NUMBERS = parallel(range(60), partition_size=5).map(lambda x: x + 1)


class Evaluates:
    """Counts what a handler's evaluations gave."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self._inside = threading.local()

    def __call__(self, *_: object) -> None:
        if getattr(self._inside, "there", False) or len(self.found) > 10:
            return
        self._inside.there = True
        try:
            self.found.append(NUMBERS.count())
        finally:
            self._inside.there = False


def test_a_signal_s_handler_evaluates_the_same_collection(cluster: Connection) -> None:
    evaluates = Evaluates()
    before = signal.signal(signal.SIGALRM, evaluates)
    try:
        for seconds in (0.0005, 0.002, 0.004, 0.008, 0.016):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            assert sum(NUMBERS) == 1830
            assert NUMBERS.stats.elements_out == 60
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        assert NUMBERS.reduce(max) == 60
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(evaluates.found) == {60}


def test_a_signal_s_handler_draws_from_the_iterator_that_it_interrupts(cluster: Connection) -> None:
    """As from a generator, which cannot be in two places. Nothing is lost in silence."""
    found: list[str] = []

    def source() -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGALRM)
        yield 2

    results = iter(parallel(source).map(lambda x: x + 1))

    def handler(*_: object) -> None:
        with pytest.raises(ValueError, match="while it was being made"):
            next(results)
        found.append("told")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(ValueError, match="while it was being made"):
            sum(results)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found == ["told"]


def test_the_collector_s_callback_evaluates_at_each_collection(cluster: Connection) -> None:
    evaluates = Evaluates()
    thresholds = gc.get_threshold()
    gc.callbacks.append(evaluates)
    gc.set_threshold(20, 5, 5)
    try:
        assert list(NUMBERS) == list(range(1, 61))
        assert NUMBERS.fold(max, 0) == 60
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(evaluates)
    assert set(evaluates.found) == {60}


def test_a_weak_reference_and_a_finalizer_evaluate_while_an_element_is_pickled(cluster: Connection) -> None:
    evaluates = Evaluates()

    class Dropped:
        def __del__(self) -> None:
            evaluates()

    class Drops:
        def __reduce__(self) -> Any:
            dropped = Dropped()
            kept = weakref.ref(dropped, evaluates)
            del dropped
            assert kept() is None
            return int, ()

    assert list(parallel([Drops(), Drops()], partition_size=1).map(str)) == ["0", "0"]
    assert set(evaluates.found) == {60}


def test_a_handler_of_the_log_evaluates_while_others_wait_for_it(cluster: Connection) -> None:
    evaluates = Evaluates()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            evaluates()

    logger, handler = logging.getLogger("parcoll"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(sum(NUMBERS))) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert results == [1830] * 3
    assert set(evaluates.found) == {60}


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_signal_s_handler_closes_the_cluster_that_its_thread_waits_for(
    scripts: Scripts, seconds: float
) -> None:
    """However long the handler takes: before Python 3.13, a `SimpleQueue` then waits for ever."""
    text = f"""
        import signal, time
        from parcoll import connect, parallel
        connection = connect(n_workers=1)
        signal.signal(signal.SIGALRM, lambda *_: (time.sleep({seconds}), connection.close()))
        def slowly(x):
            import time
            time.sleep(0.05)
            return x
        def source():
            signal.setitimer(signal.ITIMER_REAL, 0.4)
            yield from range(1000)
        try:
            list(parallel(source, partition_size=1).map(slowly))
        except ConnectionError as error:
            print(str(error).partition(";")[0])
        print(parallel(range(3)).count())
        """
    assert scripts.run_file(text) == "the local cluster is closed\n3\n"
