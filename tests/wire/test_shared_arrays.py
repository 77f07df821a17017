"""Arrays and buffers through shared memory: copies that are right, whatever happens to workers."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_files import memory_files
from scripts import append, eventually, lines

from parcoll import Connection, connect, parallel
from parcoll.evaluation.feed import StreamFeed

MB = 10**6


# On workers ---------------------------------------------------------------------------------------

ARRAYS = {
    "small": np.arange(10),
    "64 KiB": np.arange(8192.0),
    "1 MB": np.arange(125_000.0),
    "5 MB": np.arange(5 * MB, dtype=np.uint8),
    "2-D": np.arange(300_000).reshape(500, 600),
    "Fortran order": np.asfortranarray(np.arange(300_000.0).reshape(500, 600)),
    "every third row": np.arange(300_000.0).reshape(500, 600)[::3],
    "structured": np.array([(n, n / 7) for n in range(20_000)], dtype=[("a", "i4"), ("b", "f8")]),
    "zero-length": np.empty((0, 3)),
    "objects": np.array([None, "text", 10**30], dtype=object),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("size", ["auto", 2])
def test_arrays_travel_unchanged(cluster: Connection, array: Any, size: Any) -> None:
    """There and back, next to other objects, and whoever has one may write into it."""
    pairs = [(number, array.copy(order="K")) for number in range(5)]
    results = list(parallel(pairs, partition_size=size).map(lambda pair: (pair[1].flags.writeable, pair)))
    assert [number for _, (number, _) in results] == [0, 1, 2, 3, 4]
    for writable, (_, result) in results:
        assert writable, "the function may write into its argument"
        assert result.flags.writeable, "and the user into the result"
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
        assert result.flags.f_contiguous == pairs[0][1].flags.f_contiguous
        assert np.array_equal(result, array)


class Backed:
    """Has its bytes pickled beside it, as arrays do."""

    def __init__(self, buffer: Any) -> None:
        self.view = memoryview(buffer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Backed, (pickle.PickleBuffer(self.view),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backed) and (self.view, self.readonly) == (other.view, other.readonly)

    __hash__ = None  # type: ignore[assignment]

    @property
    def readonly(self) -> bool:
        return self.view.readonly


BYTES = os.urandom(3 * MB + 1)


BUFFERS = {
    "bytes": BYTES,
    "bytearray": bytearray(BYTES),
    "a view of bytes": Backed(BYTES),
    "a view of a bytearray": Backed(bytearray(BYTES)),
    "part of a view": Backed(memoryview(bytearray(BYTES))[7:200_000]),
    "a text": BYTES.hex(),
}


@pytest.mark.parametrize("value", BUFFERS.values(), ids=BUFFERS)
def test_buffers_travel_unchanged(cluster: Connection, value: Any) -> None:
    values = [value, b"", value, 1]
    assert list(parallel(values).map(lambda x: x)) == values
    assert list(parallel(values, partition_size=1).map(lambda x: [x])) == [[x] for x in values]


def add_one(array: Any) -> Any:
    array += 1
    return array


@pytest.mark.parametrize("size", ["auto", 1, 3])
def test_writing_into_an_array_changes_no_other(cluster: Connection, size: Any) -> None:
    """Not the user's, not that of another evaluation, not another result."""
    arrays = [np.full(200_000, number) for number in range(12)]
    chain = parallel(arrays, partition_size=size).map(add_one)
    for _ in range(2):
        results = list(chain)
        assert all((result == number + 1).all() for number, result in enumerate(results))
        results[0][:] = -1
        assert all((result == number + 1).all() for number, result in enumerate(results[1:], 1))
        assert all((array == number).all() for number, array in enumerate(arrays))


@pytest.mark.parametrize("length", [10_000, 200_000])
@pytest.mark.parametrize("shared", [True, False])
def test_a_source_and_a_function_may_use_an_array_again(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch, length: int, shared: bool
) -> None:
    """What is read, and what is returned, is copied at that moment; without shared memory too."""
    if not shared:
        monkeypatch.setattr(cluster.engine.way.sharing, "_works", False)
    one = np.zeros(length)

    def source() -> Iterator[Any]:
        for number in range(30):
            one[:] = number
            yield one

    def reusing(array: Any, kept: list[Any] = []) -> Any:  # noqa: B006
        kept[:] = kept or [np.zeros(length)]
        kept[0][:] = array + 1
        return kept[0]

    results = list(parallel(source, partition_size=1).map(reusing))
    assert [(result.min(), result.max()) for result in results] == [(n, n) for n in range(1, 31)]


def test_results_stay_right_while_segments_are_used_again_and_after_the_cluster(
    cluster: Connection,
) -> None:
    """The user's arrays are the user's own: hundreds of partitions later, and when all is closed."""

    def make(number: int) -> Any:
        return np.full(20_000 if number % 3 else 400_000, number)

    with connect(n_workers=1):
        early = list(parallel(range(20), partition_size=2).map(make))
        stream = iter(parallel(range(20, 420), partition_size=1).map(make))
        late = list(itertools.islice(stream, 5))
        assert all((array == number).all() for number, array in enumerate(stream, 25))
    for number, array in enumerate(early + late):
        assert (array == number).all()
        array += 1
        assert (array == number + 1).all()


def test_what_a_function_keeps_in_its_worker_stays_right(cluster: Connection) -> None:
    """Arguments and results that it holds on to, while segments are used by later partitions."""
    import builtins

    def keep(array: Any) -> Any:
        kept = builtins.__dict__.setdefault("kept_by_test_segments", [])
        kept.append((float(array[0]), array, array * 2))
        assert all((a == first).all() and (b == 2 * first).all() for first, a, b in kept)
        return kept[-1][2]

    arrays = [np.full(130_000, float(number)) for number in range(30)]
    results = list(parallel(arrays, partition_size=1).map(keep))
    assert list(parallel(range(100), partition_size=1).map(lambda n: np.full(MB // 8, n).sum())) == [
        n * MB // 8 for n in range(100)
    ]
    assert all((result == 2 * number).all() for number, result in enumerate(results))
    kept = cluster.engine.client.run(
        lambda: [(a == x).all() and (b == 2 * x).all() for x, a, b in builtins.kept_by_test_segments]
    )
    assert all(itertools.chain(*kept.values()))
    assert sum(map(len, kept.values())) == 30
    cluster.engine.client.run(lambda: builtins.kept_by_test_segments.clear())


def test_large_results_of_small_elements_and_the_reverse(cluster: Connection) -> None:
    """A segment is there for the results alone, and for elements whose results are small."""
    large = parallel(range(40)).map(lambda n: np.full(300_000, n))
    assert all((array == n).all() and len(array) == 300_000 for n, array in enumerate(large))
    arrays = [np.full(300_000, n) for n in range(20)]
    assert list(parallel(arrays).map(lambda a: int(a.sum()))) == [300_000 * n for n in range(20)]
    assert parallel(arrays).filter(lambda a: a[0] % 2).count() == 10
    assert parallel(arrays).reduce(np.add)[0] == 190
    kept = parallel(arrays)
    kept.foreach(lambda a: a + 1)
    assert [int(a[0]) for a in kept] == list(range(1, 21))


@pytest.mark.parametrize("length", [5000, 10_000])
def test_arrays_that_are_handed_back_are_what_they_were(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """A worker has put the results of those before them into their segment."""
    rests = []
    rest_of = StreamFeed.rest_of
    monkeypatch.setattr(
        StreamFeed,
        "rest_of",
        lambda *args: rests.append(args) or rest_of(*args),  # type: ignore[func-returns-value]
    )

    def slow(array: Any) -> Any:
        time.sleep(0.03)
        return np.full(2 * length, -array[0])

    chain = parallel(lambda: (np.full(length, float(n)) for n in range(60))).map(slow)
    assert [(array[0], array[-1], len(array)) for array in chain] == [(-n, -n, 2 * length) for n in range(60)]
    assert rests


def test_a_stream_of_arrays_uses_the_same_few_segments(cluster: Connection) -> None:
    """200 MB go through as many segments as the window has places: ten, and what was idle before."""
    with connect(n_workers=2):
        before, most = memory_files(), 0
        stream = parallel((np.full(125_000, float(n)) for n in range(200)), partition_size=1).map(np.negative)
        for number, array in enumerate(stream):
            assert len(array) == 125_000
            assert (array == -number).all()
            most = max(most, len(memory_files() - before))
        assert number == 199
    assert 1 <= most <= 12


# When workers die ---------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_no_array(cluster: Connection, tmp_path: Path) -> None:
    """Its segments are read again by the worker that runs its partitions next."""

    def kill_once(array: Any) -> Any:
        if array[0] == 25:
            with suppress(FileExistsError):
                os.close(os.open(tmp_path / "killed", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return array * 2

    arrays = [np.full(130_000, float(n)) for n in range(60)]
    results = list(parallel(arrays, partition_size=2).map(kill_once))
    assert (tmp_path / "killed").exists()
    assert len(results) == 60
    assert all((result == 2 * n).all() for n, result in enumerate(results))


def test_results_that_wait_for_the_consumer_survive_their_worker(cluster: Connection, tmp_path: Path) -> None:
    """dask runs their tasks again, with other results, while the first ones wait in the segment."""

    def another_each_time(array: Any) -> tuple[int, str]:
        number = int(array[0])
        append(tmp_path / "runs", number)
        runs = lines(tmp_path / "runs").count(str(number))
        return number, str(runs) * (100_000 * runs)

    client = cluster.engine.client
    arrays = [np.full(10_000, number) for number in range(10)]
    stream = iter(parallel(arrays, partition_size=1).map(another_each_time))
    with closing(stream):
        results = [next(stream)]
        assert eventually(lambda: len(lines(tmp_path / "runs")) >= 5)
        assert eventually(lambda: "processing" not in client.run_on_scheduler(states).values())
        before = len(lines(tmp_path / "runs"))
        for pid in client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        # Their tasks run again on new workers, where the scheduler wants that.
        eventually(lambda: len(lines(tmp_path / "runs")) > before, 3)
        eventually(lambda: "processing" not in client.run_on_scheduler(states).values())
        results += stream
    assert [number for number, _ in results] == list(range(10))
    for _, text in results:
        assert text in ("1" * 100_000, "2" * 200_000, "3" * 300_000), "results of two runs are mixed"


def states(dask_scheduler: Any) -> dict[str, str]:
    return {str(key): task.state for key, task in dask_scheduler.tasks.items()}
