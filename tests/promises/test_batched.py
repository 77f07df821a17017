"""`batched`: tuples of exactly n elements, whatever the partitions are, as lazily as all else."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import append, lines

from parcoll import CheckpointError, parallel, read_text

KINDS: dict[str, dict[str, Any]] = {"inline": {}, "cluster": {}, "timeout": {"timeout": 60}}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    request.getfixturevalue("inline" if request.param == "inline" else "cluster")
    return KINDS[request.param]


def batches(elements: Iterable[Any], n: int) -> Iterator[tuple[Any, ...]]:
    """As `itertools.batched`, which Python 3.11 lacks."""
    iterator = iter(elements)
    while batch := tuple(itertools.islice(iterator, n)):
        yield batch


@pytest.mark.usefixtures("inline")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9)), st.integers(1, 7), st.integers(1, 12) | st.just("auto"), st.booleans())
def test_it_is_itertools_batched(elements: list[int], n: int, cut: Any, ordered: bool) -> None:
    source = parallel(elements, partition_size=cut)
    chain = source.filter(lambda x: x != 3).flatmap(lambda x: [x] * (x % 3))
    made = [x for x in elements if x != 3 for _ in range(x % 3)]
    if not ordered:
        source, chain = source.unordered(), chain.unordered()
    for collection, expected in ((source, elements), (chain, made)):
        assert list(collection.batched(n)) == [*batches(expected, n)]
        assert list(collection.batched(n).map(sum).batched(2)) == [
            *batches(map(sum, batches(expected, n)), 2)
        ]
        behind = collection.batched(n).batched(2).filter(lambda b: len(b) > 1)
        assert list(behind) == [b for b in batches(batches(expected, n), 2) if len(b) > 1]
        assert collection.batched(n).count() == -(-len(expected) // n)
        for step in behind.stats.steps:
            assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed


def test_batches_go_over_partitions(kind: dict[str, Any]) -> None:
    numbers = parallel(range(100), partition_size=7, **kind).filter(lambda x: x % 3).map(lambda x: x * 2)
    expected = [*batches((x * 2 for x in range(100) if x % 3), 10)]
    assert list(numbers.batched(10)) == expected
    summed = numbers.batched(10).map(sum)
    assert list(summed) == [*map(sum, expected)]
    assert numbers.batched(10).map(sum).reduce(max) == max(map(sum, expected))
    assert numbers.batched(10).fold(lambda n, b: n + len(b), 0, combine=int.__add__) == 66
    steps = summed.stats.steps
    assert [(s.entered, s.left) for s in steps] == [(100, 66), (66, 66), (66, 7), (7, 7)]
    assert [s.label for s in steps[2:]] == ["batched(10)", "map(sum)"]
    stats = summed.stats
    assert (stats.elements_in, stats.total, stats.elements_out, stats.state) == (100, 100, 7, "ended")
    kept = numbers.batched(33)
    kept.foreach(len)
    assert list(kept) == [33, 33]
    assert list(kept.batched(3)) == [(33, 33)]
    assert list(parallel([], **kind).map(abs).batched(3)) == []


@pytest.mark.usefixtures("cluster")
def test_it_is_lazy_and_streams(tmp_path: Path) -> None:
    drawn = []

    def source() -> Iterator[int]:
        for x in itertools.count():
            drawn.append(x)
            yield x

    def slow(x: int) -> int:
        append(tmp_path / "calls", x)
        time.sleep(0.005)
        return x

    numbers = parallel(source, buffersize=40).map(slow).batched(4)
    assert drawn == []
    assert numbers.map(sum).take(2) == [6, 22]
    assert len(drawn) <= 8 + 40 + 40, "the last batches, and two windows"
    calls = len(lines(tmp_path / "calls"))
    time.sleep(0.3)
    assert len(lines(tmp_path / "calls")) <= calls + 2 * 16, "the evaluation before it goes on"
    assert parallel(range(10**15)).batched(3).take(2) == [(0, 1, 2), (3, 4, 5)]
    assert repr(numbers.map(sum)).endswith("source()).map(slow).batched(4).map(sum)>")
    once = parallel(iter(range(5))).map(abs).batched(2)
    assert list(once) == [(0, 1), (2, 3), (4,)]


def test_failures_on_both_sides(kind: dict[str, Any]) -> None:
    numbers = parallel([1, 2, 0, 4, 5, 0, 7], on_error="skip", **kind).map(lambda x: 10 // x)
    chain = numbers.batched(2).map(lambda batch: 10 // (batch[0] - 2))
    assert list(chain) == [1, -10]
    assert sorted((e.step_index, e.index, e.element) for e in chain.errors) == [
        (0, 2, 0),
        (0, 5, 0),
        (2, 1, (2, 2)),
    ]
    assert (chain.stats.failed, len(numbers.errors)) == (3, 2)
    stream = iter(parallel(range(30), **kind).map(lambda x: 1 // (x - 20)).batched(4).map(len))
    assert [next(stream) for _ in range(5)] == [4] * 5
    with pytest.raises(ZeroDivisionError) as raised:
        next(stream)
    assert "in step 1 of 1, map(lambda), at element 20: 20" in raised.value.__notes__[0]


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_costs_nothing(tmp_path: Path) -> None:
    def deadly(x: int) -> int:
        if x == 33 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    chain = parallel(range(60), partition_size=10).map(deadly).batched(7).map(sum)
    assert list(chain) == [*map(sum, batches(range(60), 7))]
    assert chain.stats.deaths == 1


@pytest.mark.usefixtures("inline")
def test_lines_of_files_and_dask_s_own_engines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    (tmp_path / "b.txt").write_text("4\n")
    found = read_text(str(tmp_path / "*.txt")).map(int).batched(3)
    assert list(found) == list(read_text(str(tmp_path / "*.txt")).batched(3).map(lambda b: (*map(int, b),)))
    assert found.map(sum).bag.compute(scheduler="sync") == list(found.map(sum)) == [6, 4]


@pytest.mark.usefixtures("inline")
def test_a_checkpoint_saves_what_comes_behind_it_or_says_why_not(tmp_path: Path) -> None:
    def chain(n: int) -> list[int]:
        return list(parallel(range(10), checkpoint=tmp_path / "saved", partition_size=6).batched(n).map(sum))

    assert chain(3) == chain(3) == [3, 12, 21, 9]
    with pytest.raises(CheckpointError, match="has the results of another source"):
        chain(4)
    with pytest.raises(TypeError, match=r"batched\(3\) has the steps before it .* call batched\(\) first"):
        parallel(range(10), checkpoint=tmp_path).map(abs).batched(3)


def test_what_is_refused() -> None:
    numbers: Any = parallel(range(3))
    with pytest.raises(ValueError, match=r"batched\(\) needs a whole number from 1 up, got 0"):
        numbers.batched(0)
    with pytest.raises(TypeError, match=r"batched\(\) needs a whole number from 1 up, got 2.5"):
        numbers.batched(2.5)
