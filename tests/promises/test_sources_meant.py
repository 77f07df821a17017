"""Sources that cannot be meant: tables, what is not computed yet, a path. Each is told in a sentence."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from parcoll import Connection, SerializationError, parallel, read_text


@dask.delayed  # type: ignore[untyped-decorator]
def numbers() -> list[int]:
    return [1, 2, 3]


def test_what_is_not_computed_yet_is_refused():
    with pytest.raises(TypeError, match=r"a dask Delayed, which gives nothing that is computed.*compute\(\)"):
        parallel(numbers())
    future: Future[int] = Future()
    with pytest.raises(TypeError, match=r"a concurrent Future, .*result\(\)"):
        parallel(future)  # type: ignore[call-overload]
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(TypeError, match=r"a list of concurrent futures, .*gather"),
    ):
        parallel([pool.submit(int), pool.submit(int)])


def test_futures_of_dask_are_refused_and_what_they_hold_is_not(cluster: Connection):
    client: Client = cluster.engine.client
    futures = client.map(abs, [-1, 2, -3])
    with pytest.raises(TypeError, match=r"a list of distributed futures.*client\.gather\(futures\)"):
        parallel(futures)
    with pytest.raises(TypeError, match="a distributed Future"):
        parallel(futures[0])
    assert list(parallel(client.gather(futures)).map(str)) == ["1", "2", "3"]


def test_tables_are_refused():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1, 2], "b": [3, 4]})
    with pytest.raises(TypeError, match=r"a pandas DataFrame, which gives column names: .*to_dict"):
        parallel(table)
    assert list(parallel(table.to_dict("records"))) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert list(parallel(table["a"])) == [1, 2]


def test_a_class_of_that_name_of_the_user_s_own_is_no_table(inline: Connection):
    class DataFrame(list[int]):
        pass

    assert list(parallel(DataFrame([1, 2]))) == [1, 2]


def test_the_path_of_a_file_as_text_is_noticed(tmp_path: Path, inline: Connection):
    path = tmp_path / "x.csv"
    path.write_text("a\nb\n")
    with pytest.warns(UserWarning, match=r"is the path of a file: read_text\(\) gives the lines") as noticed:
        characters = parallel(str(path))
    assert noticed[0].filename == __file__
    assert "".join(characters) == str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_text(path)) == ["a\n", "b\n"]
        for text in ("", "abc", "a\0b", str(tmp_path), "x" * 10_000, f"{path}\n"):
            assert "".join(parallel(text)) == text


class Numbered:
    """Has no __iter__ and no __len__: iter() goes by the numbers."""

    def __getitem__(self, index: int) -> int:
        if index >= 4:
            raise IndexError(index)
        return index * index


def test_whatever_iter_takes_is_a_source(inline: Connection):
    assert list(parallel(Numbered())) == [0, 1, 4, 9]  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="parallel\\(\\) needs an iterable"):
        parallel(5)  # type: ignore[call-overload]


# Inline, as a cluster ----------------------------------------------------------------------------


def emptied(items: list[int]) -> int:
    total = sum(items)
    items.clear()
    return total


@pytest.mark.parametrize("kind", ["inline", "cluster"])
def test_functions_get_copies_so_that_a_second_evaluation_gives_the_same(
    kind: str, request: pytest.FixtureRequest
):
    request.getfixturevalue(kind)
    source = [[1, 2], [3]]
    seen: list[int] = []
    totals = parallel(source).map(emptied).map(lambda x: (seen.append(x), x)[1])
    assert list(totals) == list(totals) == [3, 3]
    assert source == [[1, 2], [3]]
    assert seen == []


@pytest.mark.parametrize("kind", ["inline", "cluster"])
def test_what_cannot_travel_fails_alike(kind: str, request: pytest.FixtureRequest):
    request.getfixturevalue(kind)
    with open(__file__, "rb") as file:
        with pytest.raises(SerializationError, match="it uses file, "):
            list(parallel([1]).map(lambda x: file.read(x)))
        with pytest.raises(SerializationError, match="element 1 of the source cannot be sent"):
            list(parallel([1, file]).map(str))
        with pytest.raises(SerializationError, match=r"\): pass what the function needs of it, as in "):
            list(parallel(re.finditer("a", "banana")).map(str))
        with pytest.raises(SerializationError, match=r"\): return plain data, or have the same function"):
            list(parallel(["banana"]).map(lambda text: re.search("a", text)))

    def generator(x: int) -> Iterator[int]:
        yield x

    with pytest.raises(SerializationError, match="result of element 0 cannot be sent back"):
        list(parallel([1]).map(generator))


def test_a_debugger_may_have_the_very_objects():
    from parcoll import connect

    source = [[1, 2], [3]]
    seen: list[int] = []
    with connect("inline", copies=False):
        totals = parallel(source).map(emptied).map(lambda x: (seen.append(x), x)[1])
        assert list(totals) == [3, 3]
    assert source == [[], []]
    assert seen == [3, 3]
    with pytest.raises(TypeError, match='copies=False is for "inline"'):
        connect("tcp://127.0.0.1:9", copies=False)
    bad: Any = 1
    with pytest.raises(TypeError, match="copies must be True or False, got 1"):
        connect("inline", copies=bad)


class Leaving:
    """Ends whatever process unpickles it in a script."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return _leave, (self.code,)


def _leave(code: int) -> None:
    if "parcoll.worker.tasks" in sys.modules and not hasattr(sys, "parcoll_worker"):
        sys.exit(code)


def test_a_result_whose_unpickling_ends_the_script_is_an_error(inline: Connection):
    with pytest.raises(SerializationError, match="cannot be unpickled here: SystemExit"):
        list(parallel([1]).map(Leaving))
