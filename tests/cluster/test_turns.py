"""Whose tasks go first of evaluations that run at once: numbers alone."""

from __future__ import annotations

from typing import Any

from parcoll.chain.place import Place
from parcoll.cluster.sending import KEPT, OwnTurns, Turns
from parcoll.evaluation.engine import Job


class Flow:
    """An evaluation: sends jobs, which begin at some element, and takes them back."""

    def __init__(self, turns: Turns) -> None:
        self.pending: dict[Any, Job] = {}
        self.own: OwnTurns = turns.begin(self.pending)

    def send(self, base: int) -> int:
        turn = self.own.of(base)
        self.pending[base] = Job(place=Place(base))
        return turn


def test_tasks_count_and_not_their_elements() -> None:
    turns = Turns()
    wide, narrow = Flow(turns), Flow(turns)
    assert [wide.send(1_000 * n) for n in range(4)] == [narrow.send(n) for n in range(4)] == [1, 2, 3, 4]


def test_one_that_begins_later_goes_on_where_the_one_is_that_has_got_on_least() -> None:
    turns = Turns()
    long, longer = Flow(turns), Flow(turns)
    for base in range(9):
        long.send(base)
    for base in range(20):
        longer.send(base)
    for base in range(7):
        del long.pending[base], longer.pending[base]
    del longer.pending[7]
    later = Flow(turns)
    assert later.send(0) == 8  # the eighth of `long` is under way
    turns.end(long.own)
    later.pending.clear()
    assert Flow(turns).send(0) == 9


def test_one_that_had_nothing_under_way_has_not_saved_its_turns() -> None:
    turns = Turns()
    stays, goes_on = Flow(turns), Flow(turns)
    assert stays.send(0) == 1
    stays.pending.clear()
    for base in range(50):
        goes_on.send(base)
        goes_on.pending.pop(base - 1, None)
    assert [stays.send(1), stays.send(2)] == [50, 51]


def test_what_is_cut_or_sent_again_goes_where_it_was() -> None:
    turns = Turns()
    flow = Flow(turns)
    assert [flow.send(base) for base in (0, 10, 20)] == [1, 2, 3]
    assert [flow.own.of(base) for base in (0, 3, 10, 14, 20)] == [1, 1, 2, 2, 3]
    assert flow.send(30) == 4


def test_a_long_one_remembers_few() -> None:
    turns = Turns()
    flow = Flow(turns)
    for base in range(10 * KEPT):
        assert flow.own.of(base) == base + 1
    assert len(flow.own._orders) <= 2 * KEPT
    assert flow.own.of(10 * KEPT - 5) == 10 * KEPT - 4
    assert flow.own.of(0) == flow.own._numbers[0]
