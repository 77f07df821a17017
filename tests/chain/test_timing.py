"""Which elements are timed: dear ones each, cheap ones a few, and none that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from parcoll.chain.loop import Chain
from parcoll.chain.steps import FlatMap, Map, Step
from parcoll.chain.timing import LOOK_EVERY, SAMPLE, SAMPLE_EVERY, Pace, Timing


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("parcoll.clock.time.perf_counter", made)
    return made


def taking(clock: Clock, seconds: Callable[[int], float]) -> Callable[[int], int]:
    def step(x: int) -> int:
        clock.now += seconds(x)
        return x

    return step


def drive(steps: list[Step], total: int, pace: Pace) -> tuple[list[float], list[tuple[int, bool]]]:
    """Run a partition as a worker does; return the seconds, and the chunks."""
    chain = Chain(steps)
    decided = Timing(chain, pace)
    position, chunks = 0, []
    while position < total:
        size, timed = decided.begin(total - position)
        for _ in chain.run(range(position, min(position + size, total)), timed=timed):
            pass
        chain.close()
        decided.end(chain.tally.drawn)
        chunks.append((chain.tally.drawn, timed))
        position += chain.tally.drawn
    return decided.seconds(), chunks


def test_each_dear_element_is_timed(clock: Clock) -> None:
    steps: list[Step] = [Map(taking(clock, lambda x: 0.001)), Map(taking(clock, lambda x: 0.003))]
    seconds, chunks = drive(steps, 500, Pace())
    assert chunks == [(1, True), (499, True)]
    assert seconds == pytest.approx([0.5, 1.5, 0.0])


def test_of_cheap_elements_a_few_stand_for_the_others(clock: Clock) -> None:
    steps: list[Step] = [Map(taking(clock, lambda x: 1e-7)), Map(taking(clock, lambda x: 3e-7))]
    seconds, chunks = drive(steps, 100_000, Pace())
    assert seconds == pytest.approx([0.01, 0.03, 0.0])
    timed = sum(size for size, was_timed in chunks if was_timed)
    assert timed <= (100_000 / SAMPLE_EVERY + 1) * (SAMPLE + 1)
    assert max(size for size, was_timed in chunks) <= LOOK_EVERY


def test_elements_that_become_dear_are_timed_from_then_on(clock: Clock) -> None:
    steps: list[Step] = [Map(taking(clock, lambda x: 1e-7 if x < 20_000 else 0.001)), Map(str)]
    seconds, chunks = drive(steps, 60_000, Pace())
    assert seconds[0] == pytest.approx(40.002)
    assert chunks[-1][1]


def test_an_interrupted_sample_does_not_count(clock: Clock) -> None:
    """Ten milliseconds in one element of a sample would be seconds of the whole partition."""
    steps: list[Step] = [Map(taking(clock, lambda x: 1e-7)), Map(taking(clock, lambda x: 1e-7))]
    pace = Pace()
    drive(steps, 100_000, pace)
    interrupted: list[Step] = [Map(taking(clock, lambda x: 0.01 if x == 40 else 1e-7)), steps[1]]
    seconds, _ = drive(interrupted, 100_000, pace)
    first, second, _ = seconds
    assert second == pytest.approx(first, rel=0.2)


def test_an_element_that_becomes_many_is_timed_once_in_a_while(clock: Clock) -> None:
    """Where a partition is one element, timing it would take twice its time."""
    steps: list[Step] = [FlatMap(lambda x: range(10_000)), Map(taking(clock, lambda x: 1e-7))]
    pace = Pace()
    timed: list[Any] = []
    for _ in range(200):
        seconds, chunks = drive(steps, 1, pace)
        timed += [was_timed for _, was_timed in chunks]
        assert seconds[1] == pytest.approx(0.001)  # by its share when last timed
    assert 1 <= sum(timed) <= 5
