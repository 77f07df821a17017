"""The dask bag of a collection, computed by dask where nobody has ever heard of parcoll."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.bag
import distributed
import pytest
from bare import BareCluster, bare_cluster
from scripts import Scripts

from parcoll import SerializationError, connect, parallel, read_text


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """Give a cluster of two one-thread workers, which have pandas."""
    with bare_cluster(tmp_path_factory.mktemp("bare"), 2, lacking=("parcoll",)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(bare: BareCluster) -> Iterator[distributed.Client]:
    """Give dask's current client."""
    with distributed.Client(scheduler_file=str(bare.file)) as client:
        yield client


def test_it_needs_nothing_there(client: distributed.Client, bare: BareCluster) -> None:
    assert parallel(range(5)).map(lambda x: x + 1).bag.compute() == [1, 2, 3, 4, 5]
    assert client.run_on_scheduler(lambda: "parcoll" in __import__("sys").modules) is False
    assert "parcoll" not in str(client.run(lambda dask_worker: [*dask_worker.plugins]))


def words() -> Iterator[str]:
    yield from ("a b", "c", "")


class Table:
    def __getitem__(self, i: int) -> int:
        return [1, 2, 3][i]


SOURCES: dict[str, Callable[[], Any]] = {
    "a list": lambda: ["a b", "c", ""],
    "a tuple": lambda: ("x", "y z"),
    "a range": lambda: range(7),
    "a set": lambda: {3},
    "a dict": lambda: {"a": 1},
    "a text": lambda: "text",
    "a generator function": lambda: words,
    "a function": lambda: lambda: iter([1, 2]),
    "what has items": Table,
    "a bag": lambda: dask.bag.from_sequence(range(10), npartitions=3),
    "a bag's step": lambda: dask.bag.from_sequence(range(10), npartitions=3).map(lambda x: x * 2),
    "nothing": list,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_of_all_kinds(client: distributed.Client, kind: str) -> None:
    source = SOURCES[kind]()
    p = parallel(source).map(str).flatmap(str.split).filter(lambda word: word != "c")
    expected = p.bag.compute(scheduler="synchronous")
    assert p.bag.compute() == expected
    assert client.compute(p.bag).result(timeout=30) == expected
    assert list(client.gather(client.persist(p.bag)).compute()) == expected


def test_lines_of_files(client: distributed.Client, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"{i}\nand\n")
    lines = read_text(str(tmp_path / "*.txt")).map(str.strip).filter(str.isdigit).map(int)
    assert lines.bag.compute() == [0, 1, 2, 3, 4]
    assert lines.bag.sum().compute() == 10


def test_several_at_once_and_what_dask_does_with_them(client: distributed.Client) -> None:
    p = parallel(range(10)).map(lambda x: x + 1)
    q = p.filter(lambda x: x % 2)
    assert dask.compute(p.bag, q.bag) == ([*range(1, 11)], [1, 3, 5, 7, 9])
    assert p.bag.map(lambda x: -x).sum().compute() == -55
    assert q.bag.repartition(2).frequencies().compute() == [(x, 1) for x in (1, 3, 5, 7, 9)]
    assert dask.delayed(sum)(p.bag).compute() == 55
    assert p.bag.take(2) == (1, 2)
    assert dask.bag.concat([p.bag, q.bag]).count().compute() == 15


def test_a_data_frame(client: distributed.Client) -> None:
    pytest.importorskip("dask.dataframe")
    rows = parallel(range(4)).map(lambda x: {"x": x, "y": str(x)})
    frame = rows.bag.to_dataframe()
    assert frame.compute().to_dict("list") == {"x": [0, 1, 2, 3], "y": ["0", "1", "2", "3"]}
    assert frame.x.sum().compute() == 6


def test_settings_of_steps_hold(client: distributed.Client) -> None:
    p = parallel(["1", "x", "2"], on_error="skip").map(int)
    assert p.bag.compute() == [1, 2]
    with pytest.raises(ValueError, match="invalid literal") as raised:
        parallel(["x"]).map(int).bag.compute()
    assert "in step 1 of 1, map(int)" in str(raised.value.__notes__)


def test_results_that_are_kept(client: distributed.Client) -> None:
    p = parallel(range(20), partition_size=5)
    p.foreach(lambda x: x + 1)
    assert p.bag.npartitions == 4
    assert p.map(str).bag.compute() == [str(x) for x in range(1, 21)]


def test_modules_of_the_user_s_own(
    client: distributed.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_of_a_bag.py").write_text(
        "import other_of_a_bag\ndef add(x):\n    return x + other_of_a_bag.N\n"
    )
    (tmp_path / "other_of_a_bag.py").write_text("N = 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_of_a_bag

    assert parallel([1, 2]).map(own_of_a_bag.add).map(lambda x: own_of_a_bag.add(x)).bag.compute() == [11, 12]


def test_a_script_s_own_functions(bare: BareCluster, scripts: Scripts) -> None:
    script = scripts.write(
        "script.py",
        f"""
        import distributed
        from parcoll import parallel

        class Point:
            def __init__(self, x):
                self.x = x

        def double(point):
            return Point(factor * point.x)

        factor = 2
        client = distributed.Client(scheduler_file={str(bare.file)!r})
        (a, b) = parallel([Point(1), Point(2)]).map(double).bag.compute()
        print(a.x, b.x, isinstance(a, Point))
        client.close()
        """,
    )
    assert scripts.run(script)[0].split() == ["2", "4", "True"]


def test_what_cannot_be_sent_is_named(client: distributed.Client) -> None:
    with pytest.raises(SerializationError, match="iterate the ParallelGen instead of its bag"):
        parallel(iter([1])).map(str).bag.compute()
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"the function of map\(lambda\).*lock"):
        parallel([1]).map(lambda x: (x, lock)).bag.compute()


def test_an_evaluation_on_what_dask_has_computed(client: distributed.Client) -> None:
    p = parallel(range(5)).map(lambda x: x + 1)
    assert list(parallel(p.bag.map(lambda x: x * 2)).map(str)) == ["2", "4", "6", "8", "10"]
    assert list(parallel(client.persist(p.bag)).map(str)) == ["1", "2", "3", "4", "5"]
    assert p.bag.compute() == list(p)


def test_a_pickle_of_a_bag_is_a_bag() -> None:
    bag = cloudpickle.loads(cloudpickle.dumps(parallel(range(5)).map(lambda x: x + 1).bag))
    assert bag.compute(scheduler="synchronous") == [1, 2, 3, 4, 5]
    with connect("inline"):
        assert list(parallel(bag).map(str)) == ["1", "2", "3", "4", "5"]


def test_another_python_is_told() -> None:
    from parcoll.wire import modules

    carried = modules.Carried("", b"", b"", b"", (3, 1), "map(f)")
    with pytest.raises(RuntimeError, match=r"map\(f\) comes from Python 3.1: use the same"):
        carried([1])
