"""The collector of cycles waits for blocks of all threads, and is left as it was found."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Iterator

import pytest

from parcoll.system import without_collections


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_it_waits_until_the_last_block_of_any_thread_ends() -> None:
    began, end, ended = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with without_collections():
            began.set()
            end.wait(20)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert began.wait(20)
    with without_collections():
        with without_collections():
            end.set()
            assert ended.wait(20)
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    thread.join()


def test_where_it_is_off_it_stays_off() -> None:
    gc.disable()
    with without_collections():
        pass
    assert not gc.isenabled()


def test_an_exception_ends_the_wait() -> None:
    with pytest.raises(ZeroDivisionError), without_collections():
        1 // 0  # noqa: B018
    assert gc.isenabled()


def test_a_fork_does_not_wait_for_threads_that_it_lacks() -> None:
    with without_collections():
        process = multiprocessing.get_context("fork").Process(target=_is_on)
        process.start()
    process.join(20)
    assert process.exitcode == 0


def _is_on() -> None:
    assert gc.isenabled()
    with without_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
