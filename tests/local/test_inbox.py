"""An inbox: what comes from any thread is there once and in order, and a wait for it ends in time."""

from __future__ import annotations

import queue
import signal
import threading
import time

import pytest

from parcoll.system import Inbox


def test_what_several_threads_put_comes_once_and_in_the_order_of_each() -> None:
    inbox: Inbox[tuple[int, int]] = Inbox()

    def put(number: int) -> None:
        for item in range(2000):
            inbox.put((number, item))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found = [inbox.get(20.0) for _ in range(8000)]
    for thread in threads:
        thread.join()
    assert [[item for of, item in found if of == number] for number in range(4)] == [list(range(2000))] * 4
    assert inbox.empty()


def test_none_came() -> None:
    inbox: Inbox[int] = Inbox()
    for seconds in (0.0, 0.05):
        with pytest.raises(queue.Empty):
            inbox.get(seconds)
    with pytest.raises(queue.Empty):
        inbox.get_nowait()


def test_a_handler_that_takes_longer_than_the_wait_does_not_prolong_it() -> None:
    """Before Python 3.13 the `get` of a `SimpleQueue` waits for ever then."""
    inbox: Inbox[int] = Inbox()
    late = threading.Timer(10.0, inbox.put, (1,))  # so that this test ends, whatever it finds
    before = signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.3))
    late.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(queue.Empty):
            inbox.get(0.2)
    finally:
        late.cancel()
        signal.signal(signal.SIGALRM, before)


def test_what_a_handler_puts_ends_the_wait() -> None:
    inbox: Inbox[int] = Inbox()
    before = signal.signal(signal.SIGALRM, lambda *_: inbox.put(7))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert inbox.get(20.0) == 7
    finally:
        signal.signal(signal.SIGALRM, before)
