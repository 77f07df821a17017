"""Whose tasks go first of evaluations that run at once: numbers alone."""

from __future__ import annotations

from parcoll.cluster.sending import KEPT, OwnTurns, Turns


def sent(flow: OwnTurns, *orders: int) -> list[int]:
    return list(map(flow.of, orders))


def through(flow: OwnTurns, *orders: int) -> None:
    """Send jobs, of which each comes back before the next one is sent."""
    for order in orders:
        flow.of(order)
        flow.came(order)


def test_tasks_count_and_not_their_elements() -> None:
    turns = Turns()
    assert sent(turns.begin(), 0, 1_000, 2_000) == sent(turns.begin(), 0, 1, 2) == [1, 2, 3]


def test_one_that_begins_later_does_not_go_past_the_others() -> None:
    turns = Turns()
    long = turns.begin()
    through(long, *range(9))
    assert sent(long, *range(9, 12)) == [10, 11, 12]
    assert sent(turns.begin(), *range(4)) == [9, 10, 11, 12]


def test_one_whose_first_task_takes_for_ever_holds_up_nobody() -> None:
    turns = Turns()
    stuck, goes_on = turns.begin(), turns.begin()
    assert sent(stuck, 0) == [1]
    through(goes_on, *range(50))
    assert sent(turns.begin(), 0) == [50]


def test_one_that_had_nothing_under_way_has_not_saved_its_turns() -> None:
    turns = Turns()
    stays, goes_on = turns.begin(), turns.begin()
    through(stays, 0)
    through(goes_on, *range(50))
    assert sent(stays, 1, 2) == [50, 51]


def test_what_is_cut_or_sent_again_goes_where_it_was() -> None:
    turns = Turns()
    flow = turns.begin()
    assert sent(flow, 0, 10, 20) == [1, 2, 3]
    through(turns.begin(), *range(9))
    assert sent(flow, 0, 3, 10, 14, 20) == [1, 1, 2, 2, 3]
    assert sent(flow, 30) == [9]


def test_behind_the_last_one_turns_begin_again() -> None:
    turns = Turns()
    first, second = turns.begin(), turns.begin()
    through(first, *range(9))
    turns.end(first)
    assert sent(second, 0) == [9]
    turns.end(second)
    assert sent(turns.begin(), 0) == [1]


def test_a_long_one_remembers_few() -> None:
    flow = Turns().begin()
    assert sent(flow, *range(10 * KEPT)) == list(range(1, 10 * KEPT + 1))
    assert len(flow._orders) <= 2 * KEPT
    assert sent(flow, 10 * KEPT - 5) == [10 * KEPT - 4]
    assert sent(flow, 0) == [flow._numbers[1]]
