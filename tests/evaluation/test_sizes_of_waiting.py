"""The sizes of partitions whose tasks make several calls at the same time."""

from __future__ import annotations

from parcoll.evaluation.sizing import Sizer, sizer_for
from parcoll.worker.outcome import Outcome


class Calls:
    """Fifty calls at a time, and perhaps a rate."""

    def __init__(self, interval: float = 0.0) -> None:
        self._interval = interval

    def at_once(self, parts: int) -> int:
        return 50 // parts

    def interval(self, parts: int) -> float:
        return self._interval * parts


def see(sizer: Sizer, read: int, seconds: float) -> None:
    sizer.observe(Outcome(read=read, seconds=seconds), 0)


def test_tasks_that_wait_get_several_elements_for_each_call_at_a_time():
    sizer = sizer_for("auto", calls=Calls())
    assert [sizer.next_size(300, 2), sizer.next_size(150, 2)] == [150, 150], "equal parts"
    sizer = sizer_for("auto", calls=Calls())
    assert sizer.next_size(None, 2) == 8 * 25
    see(sizer, 200, 80.0)  # ten seconds a call
    assert sizer.next_size(None, 2) == 4 * 25
    assert sizer.budget() > 2 * 40 - 1, "the partition is not cut short for its calls being slow"
    assert [sizer.next_size(60, 2), sizer.next_size(10, 2)] == [30, 10]
    see(sizer, 100, 0.1)
    see(sizer, 100, 0.1)
    assert sizer.next_size(None, 2) >= 4 * 25


def test_few_results_are_wanted_of_calls_that_wait():
    assert sizer_for("auto", 3, calls=Calls()).next_size(None, 2) == 3
    assert sizer_for("auto", 1, calls=Calls()).next_size(None, 2) == 1
    assert sizer_for("auto", 1000, calls=Calls()).next_size(None, 2) == 25


def test_a_rate_bounds_a_partition_by_seconds():
    sizer = sizer_for("auto", calls=Calls(interval=0.5))  # one a second, for each of two tasks
    assert sizer.next_size(None, 2) == 2
    see(sizer, 2, 2.1)
    assert sizer.next_size(None, 2) == 2
    see(sizer, 2, 12.0)  # a call takes ten seconds
    assert sizer.next_size(None, 2) == 40
    assert sizer.budget() == 2 * 40 * 6, "as long as these two have taken, twice"
    slow = sizer_for("auto", calls=Calls(interval=5.0))
    assert slow.next_size(None, 2) == 1, "ten seconds each, for each of two tasks"
