"""`map_batches`: functions that get many elements in one call; what fails is an element all the same."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import append, lines

from parcoll import CheckpointError, Connection, parallel, per_worker
from parcoll.evaluation.sizing import Adaptive

numpy = pytest.importorskip("numpy")
KINDS: dict[str, dict[str, Any]] = {"inline": {}, "cluster": {}, "timeout": {"timeout": 60}}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    request.getfixturevalue("inline" if request.param == "inline" else "cluster")
    return KINDS[request.param]


def squares(batch: list[int]) -> list[int]:
    return [x * x for x in batch]


def inverse(batch: list[int]) -> list[int]:
    return [100 // x for x in batch]


@pytest.mark.usefixtures("inline")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-3, 3)), st.integers(1, 9) | st.just("auto"), st.integers(1, 12), st.booleans())
def test_it_is_map_whatever_the_borders_are(elements: list[int], size: Any, cut: int, replaces: bool) -> None:
    on_error: Any = (lambda error: (error.index, error.element)) if replaces else "skip"
    chain = parallel(elements, partition_size=cut, on_error=on_error).filter(lambda x: x != 2)
    batches, ones = chain.map_batches(inverse, size), chain.map(lambda x: 100 // x)
    assert list(batches) == list(ones)
    found = [(e.index, e.element, type(e.exception)) for e in batches.errors]
    assert found == [(e.index, e.element, type(e.exception)) for e in ones.errors]
    assert batches.stats.failed == ones.stats.failed
    for step in batches.stats.steps:
        assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed


@pytest.mark.usefixtures("inline")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-3, 3)), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_a_step_behind_it_names_its_own_element(elements: list[int], size: int, cut: int, skip: bool) -> None:
    chain = parallel(elements, partition_size=cut, on_error="skip" if skip else "raise")
    kept = chain.filter(lambda x: x != 2)
    found: list[Any] = []
    for collection in (
        kept.map_batches(squares, size).map(lambda x: 12 // (x - 1)),
        kept.map(lambda x: x * x).map(lambda x: 12 // (x - 1)),
    ):
        results, note = [], []
        try:
            results.extend(collection)
        except ZeroDivisionError as error:
            note = [line.rpartition(", at ")[2] for line in error.__notes__]
        found.append((results, note, [(e.index, e.element, e.step_index) for e in collection.errors]))
    assert found[0] == found[1]


def test_elements_go_in_batches_that_end_with_their_partition(kind: dict[str, Any], tmp_path: Path) -> None:
    def noting(batch: list[int]) -> list[int]:
        append(tmp_path / "sizes", len(batch))
        return squares(batch)

    chain = parallel(range(25), partition_size=10, **kind).map_batches(noting, size=4)
    assert list(chain) == squares([*range(25)])
    assert sorted(map(int, lines(tmp_path / "sizes"))) == [1, 2, 2, 4, 4, 4, 4, 4]
    assert list(parallel([], **kind).map_batches(noting)) == []
    assert parallel(range(3), partition_size=3, **kind).map_batches(noting, size=10**6).count() == 3


def test_partitions_are_as_large_as_batches_where_that_pays(cluster: Connection, tmp_path: Path) -> None:
    """A call takes as long whatever it gets, as that of a model does."""

    def model(batch: list[int]) -> list[int]:
        append(tmp_path / "sizes", len(batch))
        time.sleep(0.1)
        return batch

    assert parallel(range(1000)).map_batches(model, size=64).count() == 1000
    sizes = sorted(map(int, lines(tmp_path / "sizes")))
    assert sizes[-1] == 64
    assert len(sizes) < 60


def test_one_bad_row_costs_no_other(kind: dict[str, Any]) -> None:
    rows = parallel(range(10_000), on_error="skip", **kind).map(lambda x: x - 4321)
    chain = rows.map_batches(lambda batch: [1000 // x for x in batch], size=500)
    assert chain.count() == 9_999
    (error,) = chain.errors
    assert (error.index, error.element, error.step, error.attempts) == (4321, 0, "map_batches(lambda)", 1)


def test_retries_are_those_of_elements(kind: dict[str, Any], tmp_path: Path) -> None:
    def flaky(batch: list[int]) -> list[int]:
        append(tmp_path / "calls", batch)
        if 5 in batch and len([line for line in lines(tmp_path / "calls") if "5" in line]) < 3:
            raise OSError("again")
        return batch

    chain = parallel(range(8), partition_size=8, retries=2, **kind).map_batches(flaky, size=4)
    assert list(chain) == [*range(8)]
    assert (chain.stats.retries, chain.stats.failed) == (1, 0)
    with pytest.raises(ZeroDivisionError) as raised:
        list(parallel([3, 2, 1, 0, 5], partition_size=5, **kind).map(abs).map_batches(inverse, size=4))
    assert "in step 2 of 2, map_batches(inverse), at element 3: 0" in raised.value.__notes__[0]


def test_results_before_the_element_that_ends_it_come_first(kind: dict[str, Any]) -> None:
    stream = iter(parallel([4, 2, 0, 1], partition_size=4, **kind).map_batches(inverse, size=3))
    assert [next(stream), next(stream)] == [25, 50]
    with pytest.raises(ZeroDivisionError):
        next(stream)


@pytest.mark.usefixtures("cluster")
def test_a_call_that_is_late_or_deadly_costs_one_element() -> None:
    def odd(batch: list[int]) -> list[int]:
        if 13 in batch:
            time.sleep(60)
        if 27 in batch:
            os._exit(3)
        return squares(batch)

    chain = parallel(range(40), partition_size=20, timeout=0.5, on_error="skip").map_batches(odd, size=8)
    assert list(chain) == squares([x for x in range(40) if x not in (13, 27)])
    assert [(error.index, type(error.exception).__name__) for error in chain.errors] == [
        (13, "ElementTimeoutError"),
        (27, "WorkerLostError"),
    ]
    of_one = parallel([0], timeout=0.5, on_error="skip").flatmap(lambda x: range(10, 16)).map_batches(odd)
    assert list(of_one) == squares([10, 11, 12, 14, 15])


def test_another_number_of_results_names_both(kind: dict[str, Any]) -> None:
    tens = parallel(range(10), partition_size=10, on_error="skip", retries=1, **kind)
    for func, message in (
        (
            lambda batch: batch[1:],
            "returned 9 results for a batch of 10 elements: it must return one for each, unless flat=True; "
            r"the batch begins with 0\n",
        ),
        (lambda batch: [*batch, 1], "returned 11 results for a batch of 10 elements"),
        (
            lambda batch: None,
            "returned None .* for a batch of 10 elements: it must return one result for each, .*flat=True",
        ),
        (lambda batch: {"a": 1}, "returned {'a': 1} .* for a batch of 10 elements"),
        (lambda batch: set(batch), "returned {0, 1.* for a batch of 10 elements: it must return one"),
    ):
        chain = tens.map_batches(func)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            list(chain)
        assert chain.errors == []


def test_flat_gives_any_number(kind: dict[str, Any]) -> None:
    def several(batch: list[int]) -> Iterator[int]:
        for x in batch:
            yield from range(1 // (x - 5) + x)

    chain = parallel(range(8), partition_size=8, on_error=lambda error: "?", **kind)
    expected = [y for x in range(8) for y in (["?"] if x == 5 else range(1 // (x - 5) + x))]
    assert list(chain.map_batches(several, size=3, flat=True)) == expected
    assert list(parallel(range(8), **kind).map_batches(lambda batch: [sum(batch)], 8, flat=True).map(abs))
    assert sorted(parallel([1, 1, 2], **kind).map_batches(lambda batch: set(batch), flat=True))[-1] == 2


def test_arrays(kind: dict[str, Any]) -> None:
    buffer = numpy.zeros((100, 2))

    def rows(batch: Any) -> Any:
        out = buffer[: len(batch)]  # the same memory for each batch
        out[:, 0], out[:, 1] = batch, batch * 2
        return out

    found = list(parallel(range(20), partition_size=20, **kind).map_batches(rows, 3, format="numpy"))
    assert [row.tolist() for row in found] == [[x, 2 * x] for x in range(20)]
    arrays = parallel([numpy.full(3, x) for x in range(6)], partition_size=6, **kind)
    same = arrays.map_batches(lambda batch: batch, 4, format="numpy")
    assert [row.tolist() for row in same] == [[x] * 3 for x in range(6)]
    for elements in (
        [1, 2, 3],
        [1.5, 2, 2**60],
        ["a", "bc"],
        [b"a", b"bc"],
        [b"a\0", b"\0\0", b""],  # an array of bytes, or of texts, would lose what zeros they end with
        ["a\0", "b"],
        [True, False],
        ["a", 1, None],
        [2**70, -1],
        [2**63, -1],
        [2**53 + 1, 1.5],
        [numpy.uint64(2**63 + 1), numpy.int64(-1)],
        [1, numpy.float64(0.5)],
        [1, numpy.str_("a")],
        [numpy.timedelta64(1, "D"), 5],
        ["a\0", "b"],
        [b"a\0\0", b"b\0"],
        [("a", 1), ("b", 2)],
        [{"a": 1}, {}],
        [numpy.array(3), numpy.array(4)],
    ):
        whole = parallel(elements, partition_size=9, **kind).map_batches(lambda batch: batch, format="numpy")
        assert list(whole) == elements


def test_tables(kind: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    rows = [{"a": x, "b": str(x)} for x in range(5)] + [{"a": 9, "c": 1}]
    source = parallel(rows, partition_size=6, **kind)
    whole = [{"a": x["a"], "b": x.get("b"), "c": x.get("c")} for x in rows]
    assert list(source.map_batches(lambda table: table, 6, format="arrow")) == whole
    assert list(source.map_batches(lambda table: table["a"], 4, format="arrow")) == [x["a"] for x in rows]
    assert list(source.map_batches(lambda frame: frame["a"] + 1, 4, format="pandas")) == [1, 2, 3, 4, 5, 10]
    doubled = source.map_batches(lambda frame: frame.assign(d=frame.a * 2)[["d"]], 4, format="pandas")
    assert list(doubled) == [{"d": 2 * x["a"]} for x in rows]
    numbers = parallel([3, 4], partition_size=2, **kind)
    assert list(numbers.map_batches(lambda series: series * 2, format="pandas")) == [6, 8]
    assert list(numbers.map_batches(lambda array: array, format="arrow")) == [3, 4]
    empty: Any = parallel([{}, {}], partition_size=2, **kind)
    assert list(empty.map_batches(lambda table: [table.num_rows] * 2, format="arrow")) == [2, 2]


@pytest.mark.usefixtures("inline")
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    chain = parallel([1, 2], on_error="skip").map_batches(list, format="arrow")
    with pytest.raises(ModuleNotFoundError, match=r'map_batches\(..., format="arrow"\) needs pyarrow'):
        list(chain)
    assert chain.errors == []


@pytest.mark.usefixtures("cluster")
def test_rows_into_a_database(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    sqlite3.connect(path).execute("create table rows (x unique)").connection.close()

    @per_worker(scope="thread")
    def database() -> Iterator[sqlite3.Connection]:
        made = sqlite3.connect(path, timeout=30)
        yield made
        made.close()

    def insert(batch: list[int]) -> list[int]:
        with database() as connection:
            connection.executemany("insert into rows values (?)", [(x,) for x in batch])
        return batch

    rows = parallel([*range(3000), 7], on_error="skip").map_batches(insert, size=1000)
    assert rows.count() == 3000
    assert len(rows.errors) == 1
    database.close()
    with sqlite3.connect(path) as here:
        assert here.execute("select count(*) from rows").fetchone() == (3000,)
    here.close()


@pytest.mark.usefixtures("inline")
def test_a_checkpoint_resumes_it_and_compares_its_settings(tmp_path: Path) -> None:
    def chain(**how: Any) -> list[int]:
        numbers = parallel(range(10), checkpoint=tmp_path / "saved", partition_size=4)
        return list(numbers.map_batches(squares, 3, **how))

    assert chain() == chain() == squares([*range(10)])
    with pytest.raises(CheckpointError, match=r"the argument 'flat' of step 1, map_batches\(squares\), has"):
        chain(flat=True)


def test_what_is_refused() -> None:
    numbers: Any = parallel(range(3))
    with pytest.raises(ValueError, match='size must be "auto" or a whole number from 1 up, got 0'):
        numbers.map_batches(squares, size=0)
    with pytest.raises(ValueError, match='format must be "list", "numpy", "arrow", "pandas", got "csv"'):
        numbers.map_batches(squares, format="csv")
    with pytest.raises(TypeError, match="flat must be True or False, got 1"):
        numbers.map_batches(squares, flat=1)
    with pytest.raises(TypeError, match=r"map_batches\(\) has no setting 'chunk'"):
        numbers.map_batches(squares, chunk=1)
    assert repr(numbers.map_batches(squares)) == "<ParallelGen: parallel(range(0, 3)).map_batches(squares)>"


def test_whether_batches_pay_is_remembered() -> None:
    """A call took 0.4 s, whatever its size: single elements would take as long."""
    sizer = Adaptive(pace=0.4 / 64, batch=64, of_few=0.4)
    assert [sizer.next_size(remaining, 2) for remaining in (10_000, 9_936, None)] == [64, 64, 64]
