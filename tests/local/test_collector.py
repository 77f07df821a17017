"""The collector of cycles waits for blocks of all threads, and is left as it was found."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from parcoll import Connection, parallel
from parcoll.keys import ordering
from parcoll.system import without_collections
from parcoll.wire.reducers import PART, in_parts


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


@pytest.fixture
def cycles() -> Iterator[list[weakref.ref[Any]]]:
    """Garbage that refers to itself, and that the young generation has."""
    gc.collect()
    gc.disable()
    found = []
    for _ in range(3):
        one = _One()
        one.itself = one
        found.append(weakref.ref(one))
    del one
    yield found
    gc.enable()


def _groups(many: int) -> int:
    return len(dict(parallel(range(many)).group_by(abs)))


def test_very_many_groups_are_looked_at_by_full_collections_alone(
    cycles: list[weakref.ref[Any]], inline: Connection
) -> None:
    assert _groups(ordering.VERY_MANY) == ordering.VERY_MANY
    gc.collect(1)
    assert all(there() is not None for there in cycles)
    gc.collect()
    assert all(there() is None for there in cycles)


def test_few_groups_stay_with_the_young_objects(cycles: list[weakref.ref[Any]], inline: Connection) -> None:
    assert _groups(100) == 100
    gc.collect(1)
    assert all(there() is None for there in cycles)


def test_what_a_program_has_frozen_stays_frozen(inline: Connection) -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        assert _groups(ordering.VERY_MANY) == ordering.VERY_MANY
        assert gc.get_freeze_count() > frozen // 2  # some of them are not needed any more, and gone
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("is_on", "looks"), [(True, 3), (False, 0)])
def test_each_part_of_a_long_list_is_looked_at_unless_the_program_forbids_that(
    is_on: bool, looks: int
) -> None:
    rows = [(number, str(number)) for number in range(3 * PART)]
    packed = pickle.dumps(in_parts(rows))
    seen: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        seen.append(phase)

    if not is_on:
        gc.disable()
    with without_collections():
        gc.callbacks.append(note)
        try:
            assert pickle.loads(packed) == rows
        finally:
            gc.callbacks.remove(note)
    assert seen == ["start", "stop"] * looks


class _One:
    itself: Any = None
