"""Joins: which runs of partitions are joined when, whichever join ends first."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from parcoll.evaluation.engine import Join
from parcoll.evaluation.folding import _Chain, _Run, _Tree
from parcoll.watch.stats import Stats
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed
from parcoll.worker.fold import TOLD_BYTES, Fold, join
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Program

THREADS = 4


@dataclass(eq=False)
class There:
    """A result on a cluster: what is fetched is counted."""

    kept: Kept
    fetched: list[Kept]

    def fetch(self) -> Kept:
        self.fetched.append(self.kept)
        return self.kept

    recall = fetch


class Shuffled:
    """A session that ends joins in random order, and may hold them back."""

    program_bytes = 0
    waiting_for = None

    def __init__(self, func: Any, seed: int) -> None:
        self.random = random.Random(seed)
        self.fold = Fold(func, "fold(func)")
        self.jobs: list[Join] = []
        self.widths: list[int] = []
        self.packed: list[int] = []  # bytes of the values that were made
        self.fetched: list[Kept] = []
        self.most = 0  # joins under way at the same time

    def submit(self, jobs: Sequence[Any]) -> None:
        self.jobs += jobs
        self.widths += [len(job.parts) for job in jobs]
        self.most = max(self.most, len(self.jobs))

    def completed(self, block: bool, seconds: float = 0.0) -> list[Any]:
        if not self.jobs or not (block or self.random.random() < 0.3):
            return []
        if self.random.random() < 0.2:
            return []  # what it waits for has changed
        job = self.jobs.pop(self.random.randrange(len(self.jobs)))
        parts = [part.kept if isinstance(part, There) else part for part in job.parts]
        previous = job.previous.kept if isinstance(job.previous, There) else job.previous
        made = join(self.fold, previous, parts, job.before, Packed.pack)
        if job.stays:
            made.outcome.held_at = "a worker"
        elif made.content is not None:
            self.packed.append(made.content.nbytes)
        job.handle = There(made, self.fetched)
        return [(job, made.outcome)]

    def close(self) -> None:
        """Nothing is left."""


def stats() -> Stats:
    found = Stats()
    found.threads = THREADS
    return found


def joins_of(kind: Any, session: Shuffled, numbers: Stats | None = None) -> Any:
    return kind(lambda: session, Program((), session.fold), numbers or stats())


def joined(kind: Any, session: Shuffled, values: Sequence[Any], numbers: Stats | None = None) -> Any:
    joins = joins_of(kind, session, numbers)
    for value in values:
        content = None if value is None else Packed.pack([value])
        outcome = Outcome(produced=1, nbytes=content.nbytes if content is not None else 0)
        joins.add(There(Kept(outcome, content), session.fetched), outcome)
    handle = joins.finish()
    return None if handle is None else handle.fetch().content.load()[0]


def nest(left: str, right: str) -> str:
    return f"({left}{right})"


@pytest.mark.parametrize("kind", [_Tree, _Chain])
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 63, 64, 65, 300, 1000])
def test_all_values_are_joined_in_order(kind: Any, count: int) -> None:
    for seed in range(3):
        session = Shuffled(operator.add, seed)
        expected = [[x] for x in range(count)]
        assert joined(kind, session, expected) == (list(range(count)) if count else None)


@pytest.mark.parametrize("count", [2, 33, 130, 517])
def test_which_values_are_joined_does_not_depend_on_which_join_ends_first(count: int) -> None:
    """If joins are fast, a sum of floats is the same each time, though its rounding depends on the order."""
    found = {joined(_Tree, Shuffled(nest, seed), list("abcdefg" * count)[:count]) for seed in range(8)}
    assert len(found) == 1


@pytest.mark.parametrize("count", [40, 64, 150, 300])
def test_where_joins_are_slow_values_that_wait_are_joined_elsewhere(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Tree, "LATE_SECONDS", -1.0)
    found, widths = set(), set()
    for seed in range(5):
        session = Shuffled(operator.add, seed)
        found.add(tuple(joined(_Tree, session, [[x] for x in range(count)])))
        widths.add(session.most)
    assert found == {tuple(range(count))}
    assert max(widths) > 1


@pytest.mark.parametrize("count", [4, 8, 12, 16])
def test_the_last_values_are_shared_out_where_joins_are_slow(count: int) -> None:
    """As many as there are threads, each with two values at least; then what these make."""
    for seed in range(5):
        session = Shuffled(operator.add, seed)
        joins = joins_of(_Tree, session)
        for x in range(count):
            content = Packed.pack([[x]])
            outcome = Outcome(nbytes=content.nbytes)
            joins._runs.append(_Run(0, 0, x, 1, There(Kept(outcome, content), session.fetched)))
            joins._values += 1
        joins._value_seconds.append(1.0)
        assert joins.finish().fetch().content.load() == [list(range(count))]
        assert session.most == min(THREADS, count // 2)


def test_a_chain_folds_from_left_to_right() -> None:
    expected = "a"
    for letter in "bcdefghij" * 10:
        expected = nest(expected, letter)
    assert joined(_Chain, Shuffled(nest, 1), ["a", *("bcdefghij" * 10)]) == expected


def test_partitions_without_a_value_are_left_out() -> None:
    values = [None, "a", *[None] * 40, "b", None]
    assert joined(_Tree, Shuffled(nest, 2), values) == "(ab)"
    assert joined(_Tree, Shuffled(nest, 2), [None] * 40) is None


@pytest.mark.parametrize("count", [100, 1000, 4000])
def test_a_value_is_packed_once_for_each_level_and_few_are_under_way(count: int) -> None:
    """Of values that grow with what they are made of: the bytes show how often each was packed."""
    session = Shuffled(operator.add, 3)
    joined(_Tree, session, [[x] * 50 for x in range(count)])
    whole = len(Packed.pack([x for x in range(count) for _ in range(50)]).head)
    levels = 2 + (count // 64).bit_length() + 1
    assert sum(session.packed) <= levels * whole
    assert max(session.widths) <= _Tree.WIDTH + 1
    assert session.most <= THREADS + 1 + levels  # where one carry starts others


def test_the_scheduler_forgets_what_a_value_of_many_partitions_was_made_of() -> None:
    """So these come here, and none else but the last."""
    for kind, fetched in ((_Tree, 15 + 7 + 3 + 1), (_Chain, 15)):
        session, large = Shuffled(max, 4), bytes(TOLD_BYTES)  # a small one comes by itself
        assert joined(kind, session, [large] * (15 * 64 + 1)) == large
        assert 10 <= len(session.fetched) <= fetched + 1, kind


def test_blocks_are_joined_as_digits_carry() -> None:
    """So few values are held, however many there are: here, of eight blocks, of two, and of one."""
    session = Shuffled(operator.add, 4)
    joins = joins_of(_Tree, session)
    for x in range(11 * 64):
        content = Packed.pack([[x]])
        outcome = Outcome(nbytes=content.nbytes)
        joins.add(There(Kept(outcome, content), session.fetched), outcome)
    while joins._under_way:
        joins._settle_all()
        joins._start()
    assert [(run.level, run.values // 64) for run in joins._runs] == [(5, 8), (3, 2), (2, 1)]
    assert joins.finish().fetch().content.load() == [list(range(11 * 64))]


def test_a_small_value_comes_with_the_report_of_its_join() -> None:
    for kind in (_Tree, _Chain):
        session = Shuffled(operator.add, 4)
        assert joined(kind, session, [1] * 200) == 200
        assert session.fetched == [], kind


def test_quick_joins_of_a_function_that_ran_before_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Chain, "QUICK_SECONDS", 60.0)  # however busy the machine is

    def func(a: int, b: int) -> int:
        return a + b

    for widths in ([1], [16, 16, 8]):
        session = Shuffled(func, 4)
        assert joined(_Chain, session, [1] * 40) == 40
        assert session.widths[: len(widths)] == widths


def test_of_joins_that_fail_the_first_in_the_order_of_the_source_raises() -> None:
    """Whichever fails first; and those that are under way are waited for."""

    def refuse(left: str, right: str) -> str:
        if right in ("20", "40"):
            raise ValueError(right)
        return right

    for seed in range(10):
        session = Shuffled(refuse, seed)
        numbers = stats()
        with pytest.raises(ValueError, match="20") as caught:
            joined(_Tree, session, [str(x) for x in range(64)], numbers)
        assert "at element 20 of those that reached it: '20'" in caught.value.__notes__[-1]
        assert numbers.failed == 1
        assert not session.jobs


def test_what_came_before_the_element_that_failed_is_joined_first() -> None:
    """So the error of the fold's function on an earlier element is the one that raises."""

    def refuse(left: str, right: str) -> str:
        raise ValueError(right)

    session = Shuffled(refuse, 5)
    joins = joins_of(_Tree, session)
    failed = Outcome(nbytes=9, failure=Failure.of(TypeError(), ""))
    for value, outcome in ("x", Outcome(produced=1, nbytes=9)), ("y", failed):
        joins.add(There(Kept(outcome, Packed.pack([value])), session.fetched), outcome)
    with pytest.raises(ValueError, match="y"):
        joins.finish()
