"""Functions on this machine read and write the file of a memory map; elsewhere they have a copy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare import BareCluster, bare_cluster
from scripts import Scripts

from parcoll import Connection, connect, parallel

numpy = pytest.importorskip("numpy")

WAYS: dict[str, dict[str, Any]] = {"in the worker": {}, "beside it": {"timeout": 60}}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, cluster: Connection) -> dict[str, Any]:
    return WAYS[request.param]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """Give a cluster of one worker that has numpy."""
    with bare_cluster(tmp_path_factory.mktemp("remote"), 1, lacking=("parcoll",)) as cluster:
        yield cluster


@pytest.fixture
def results(tmp_path: Path) -> Any:
    return numpy.memmap(tmp_path / "results", float, "w+", shape=(100, 10))


def test_what_functions_write_is_in_the_file(way: dict[str, Any], results: Any) -> None:
    def write(x: int) -> None:
        results[x] = x

    parallel(range(100), **way).foreach(write)
    assert (results == numpy.arange(100.0)[:, None]).all()


def test_views_as_elements_are_written_through(way: dict[str, Any], results: Any) -> None:
    def fill(pair: Any) -> float:
        number, row = pair
        row[:] = number
        return float(row.sum())

    assert list(parallel(enumerate(results), **way).map(fill)) == [10.0 * x for x in range(100)]
    assert (results == numpy.arange(100.0)[:, None]).all()


def test_inner_functions_write_through_too(cluster: Connection, results: Any) -> None:
    def outer(x: int) -> None:
        row = results[x]

        def inner(y: int) -> None:
            row[y] = x * y

        parallel(range(10)).foreach(inner)

    parallel(range(8), partition_size=2).foreach(outer)
    assert results[:8].tolist() == [[x * y for y in range(10)] for x in range(8)]


def test_a_large_file_travels_as_a_name(cluster: Connection, tmp_path: Path) -> None:
    large = numpy.memmap(tmp_path / "large", "u1", "w+", shape=(2**28,))
    large[:: 2**20] = 1
    numbers = parallel(range(256)).map(lambda x: int(large[x << 20 : (x + 1) << 20].sum()))
    assert list(numbers) == [1] * 256


def test_what_is_copied_on_write_stays_the_function_s(
    way: dict[str, Any], results: Any, tmp_path: Path
) -> None:
    results[:] = 1
    private = numpy.memmap(tmp_path / "results", float, "c", shape=(100, 10))

    def write(x: int) -> float:
        private[x] += x
        return float(private[x].sum())

    assert list(parallel(range(100), **way).map(write)) == [10.0 + 10 * x for x in range(100)]
    assert (results == 1).all()
    assert (private == 1).all()


def test_a_map_that_a_function_opens_comes_back_as_one(way: dict[str, Any], tmp_path: Path) -> None:
    def make(x: int) -> Any:
        made = numpy.memmap(tmp_path / f"made{x}", "i8", "w+", shape=(50_000,))
        made[:] = x
        return made

    found = list(parallel(range(4), **way).map(make))
    for x, made in enumerate(found):
        assert made.mode == "r+"
        assert (made == x).all()
        made[7] = -7
        made.flush()
        assert numpy.fromfile(tmp_path / f"made{x}", "i8")[7] == -7


def test_a_result_whose_file_the_function_has_removed(way: dict[str, Any], tmp_path: Path) -> None:
    def make(x: int) -> Any:
        path = tmp_path / f"gone{x}"
        made = numpy.memmap(path, "i8", "w+", shape=(50_000,))
        made[:] = x
        path.unlink()
        return made

    assert [made[-1] for made in parallel(range(4), **way).map(make)] == [0, 1, 2, 3]


def test_a_checkpoint_has_the_content(cluster: Connection, results: Any, tmp_path: Path) -> None:
    results[:] = 1
    rows = parallel(range(3), checkpoint=tmp_path / "saved").map(lambda x: results[x])
    assert [row.sum() for row in rows] == [10, 10, 10]
    results[:] = 2
    again = list(parallel(range(3), checkpoint=tmp_path / "saved").map(lambda x: results[x]))
    assert [row.sum() for row in again] == [10, 10, 10]


def test_inline_it_is_the_file_too(results: Any) -> None:
    def write(x: int) -> Any:
        results[x] = x
        return results[x]

    with connect("inline"):
        rows = list(parallel(range(5)).map(write))
    assert results[:5, 0].tolist() == [0, 1, 2, 3, 4]
    rows[0][0] = -1
    assert results[0, 0] == -1


def test_a_module_s_map_is_the_file(scripts: Scripts) -> None:
    """One is opened where the module is imported, one is put there by the script, one in a container."""
    numpy.zeros(2000, "i8").tofile(scripts.folder / "one")
    scripts.write(
        "tables.py",
        """
        import numpy
        one = numpy.memmap("one", "i8", "r+")
        others = {}
        two = None
        """,
    )
    script = scripts.write(
        "script.py",
        """
        import numpy
        import tables
        from parcoll import parallel

        def write(x):
            tables.one[x] = tables.two[x] = tables.others["three"][x] = -x

        tables.two = numpy.memmap("two", "i8", "w+", shape=(300_000,))
        tables.others["three"] = numpy.memmap("three", "i8", "w+", shape=(300_000,))
        parallel(range(100)).foreach(write)
        for table in (tables.one, tables.two, tables.others["three"]):
            print(table[:100].sum())
        """,
    )
    assert scripts.run(script)[0].split() == ["-4950"] * 3


def test_on_another_cluster_functions_have_a_copy_that_says_so(
    remote: BareCluster, results: Any, caplog: pytest.LogCaptureFixture
) -> None:
    results[:] = 1

    def write(x: int) -> tuple[float, str]:
        results[x] += x
        return float(results[x].sum()), results.mode

    caplog.set_level(logging.WARNING, "parcoll")
    with connect(remote.file):
        assert list(parallel(range(5)).map(write)) == [(10.0 + 10 * x, "c") for x in range(5)]
        elements = list(parallel(results[:3]).map(lambda row: (row, row.mode)))
        assert [(row.sum(), mode, row.mode) for row, mode in elements] == [(10, "c", "c")] * 3
    assert (results == 1).all()
    (said,) = caplog.messages
    assert "as a copy (mode 'c')" in said


def test_a_map_that_another_cluster_s_function_opens_comes_back_as_a_copy(
    remote: BareCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "there")

    def make(x: int) -> Any:
        made = numpy.memmap(path, "i8", "w+", shape=(50_000,))
        made[:] = x
        return made

    with connect(remote.file):
        (made,) = parallel([7]).map(make)
    assert (made.mode, made.filename, made.sum()) == ("c", path, 350_000)
    made[:] = 1
    assert numpy.fromfile(path, "i8")[0] == 7
