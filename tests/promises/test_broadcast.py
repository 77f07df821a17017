"""`broadcast`: what is dear to pickle is pickled once, and loaded once in each worker process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import Scripts, append, lines
from ways import WAYS, One, connected

from parcoll import Broadcast, Connection, SerializationError, broadcast, connect, parallel

MODES = ["local", "bare"]


@pytest.fixture(scope="module", params=MODES)
def mode(
    request: pytest.FixtureRequest, leaves_no_trace: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with connected(request.param, tmp_path_factory.mktemp("cluster") / "bare"):
        yield request.param


class Model:
    """Notes where it is pickled, and where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = list(range(100_000))

    def __getstate__(self) -> dict[str, Any]:
        append(self.folder / "pickled", f"{os.getpid()}")
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        append(self.folder / "loaded", f"{os.getpid()}")


def test_it_is_pickled_once_and_loaded_once_in_each_worker(mode: str, tmp_path: Path) -> None:
    model = broadcast(Model(tmp_path))
    assert lines(tmp_path / "pickled") == [f"{os.getpid()}"]
    for _ in range(3):
        chain = parallel(range(20), partition_size=2).map(lambda i: model.value.numbers[i])
        assert list(chain) == list(range(20))
    assert parallel(range(20)).fold(lambda n, i: n + model.value.numbers[i], 0, combine=int.__add__) == 190
    assert lines(tmp_path / "pickled") == [f"{os.getpid()}"]
    loaded = lines(tmp_path / "loaded")
    assert len(loaded) == len(set(loaded)) <= 2
    assert f"{os.getpid()}" not in loaded


def test_processes_beside_workers_load_it_once_too(mode: str, tmp_path: Path) -> None:
    model = broadcast(Model(tmp_path))
    for _ in range(2):
        chain = parallel(range(20), partition_size=5, timeout=60).map(lambda i: model.value.numbers[i])
        assert list(chain) == list(range(20))
    loaded = lines(tmp_path / "loaded")
    assert len(loaded) == len(set(loaded)) <= 4  # the workers too, since they tell what a call was


def test_it_may_be_an_element_a_result_or_in_another(mode: str) -> None:
    outer = broadcast({"inner": broadcast([1, 2, 3])})
    (got,) = parallel([outer]).map(lambda given: (given, given.value["inner"], outer.value is given.value))
    given, inner, same = got
    assert isinstance(given, Broadcast)
    assert given.value["inner"].value == inner.value == [1, 2, 3]
    assert same


def test_functions_within_functions_have_it(mode: str) -> None:
    numbers = broadcast(list(range(1000)))

    def outer(n: int) -> int:
        return sum(parallel(range(n)).map(lambda i: numbers.value[i]))

    assert list(parallel([3, 5]).map(outer)) == [3, 10]


@pytest.mark.parametrize("way", [way for way in WAYS if "timeout" in way])
def test_what_a_call_with_a_timeout_finds(mode: str, way: str) -> None:
    one: One = WAYS[way]
    table = broadcast({n: str(n) for n in range(1000)})
    assert one(lambda _: table.value[999]) == "999"


def test_it_is_what_it_was_when_it_was_broadcast(cluster: Connection) -> None:
    numbers = [1, 2, 3]
    packed = broadcast(numbers)
    numbers.append(4)
    assert packed.value is numbers
    assert list(parallel([0]).map(lambda _: packed.value)) == [[1, 2, 3]]


def test_what_cannot_be_pickled_is_told_at_once() -> None:
    with pytest.raises(SerializationError, match=r"a generator\) cannot be broadcast: it cannot be pickled"):
        broadcast(n for n in range(3))


def test_inline_it_is_a_copy_as_on_a_cluster() -> None:
    numbers = [1, 2, 3]
    packed = broadcast(numbers)
    with connect("inline"):
        (got,) = parallel([0]).map(lambda _: packed.value is numbers)
    assert not got


def test_objects_of_the_script_s_classes_and_a_checkpoint(scripts: Scripts) -> None:
    """The classes are the functions' own in each evaluation, and an unchanged broadcast object resumes."""
    text = """
        from parcoll import broadcast, parallel

        class Point:
            def __init__(self, x):
                self.x = x

        points = broadcast([Point(x) for x in range(1000)])

        def of(i):
            found = points.value[i]
            assert isinstance(found, Point) and type(found) is Point
            return found.x

        for _ in range(2):
            print(list(parallel(range(3), checkpoint="saved").map(of)), sum(parallel(range(10)).map(of)))
    """
    for _ in range(2):
        assert scripts.run_file(text) == "[0, 1, 2] 45\n[0, 1, 2] 45\n"
