"""Memory that this machine's processes share: copies that are right, fallbacks, and nothing left of it."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare import bare_cluster
from conftest import shared_memory
from scripts import append, clean_environment, eventually, lines

from parcoll import Connection, connect, parallel
from parcoll.evaluation.engine import Job
from parcoll.evaluation.feed import StreamFeed
from parcoll.wire import segments
from parcoll.wire.payload import Packed
from parcoll.wire.segments import Segment, Segments, Span, write

MB = 10**6


def memory_files() -> set[int]:
    """Return the memory files of ours that a descriptor of this process keeps alive."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:parcoll"):
                found.add(os.stat(f"/proc/self/fd/{name}").st_ino)
    return found


# One segment --------------------------------------------------------------------------------------

PARTS = {
    "a head alone": [b"head"],
    "nothing": [b""],
    "empty parts": [b"", b"", b"x", bytearray()],
    "odd sizes": [b"head", os.urandom(1), os.urandom(4095), os.urandom(4097), os.urandom(70_001)],
    "over 2 MiB": [os.urandom(77), os.urandom(2**21 + 1)],
    "large and small": [os.urandom(3 * MB), os.urandom(2**21), b"", os.urandom(5), os.urandom(2**20 - 1)],
    "one array of large parts": [b"head", *(os.urandom(524_288 + n) for n in range(5))],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_what_is_written_is_read(parts: list[Any]) -> None:
    """The first part as bytes, the others as buffers of the reader's own."""
    segment = Segments().take()
    span = segment.write([memoryview(part) for part in parts])
    head, *buffers = span.read()
    assert type(head) is bytes
    assert [head, *map(bytes, buffers)] == list(map(bytes, parts))
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))
    assert list(map(bytes, span.read())) == list(map(bytes, parts)), "a reader wrote into the segment"


def test_results_go_behind_the_elements() -> None:
    """Both are whole, also where the segment grows between them."""
    segment = Segments().take()
    elements = segment.write([b"e" * 5000, b"E" * 70_000])
    results = write(segment.address, elements.end, [b"r" * 10, b"R" * 3 * MB])
    assert results.offset >= elements.offset + 75_000
    assert elements.read() == [b"e" * 5000, b"E" * 70_000]
    assert results.read() == [b"r" * 10, b"R" * 3 * MB]


def test_a_segment_that_grew_is_used_again() -> None:
    pool = Segments()
    first = pool.take()
    first.write([bytes(3 * MB)])
    first.give_back()
    again = pool.take()
    assert again is first
    assert pool.take() is not first, "it is lent to one at a time"
    assert again.write([b"small"]).read() == [b"small"]
    assert again.write([b"x" * 9 * MB]).read() == [b"x" * 9 * MB]


def test_an_address_of_an_earlier_use_is_refused() -> None:
    """Neither read nor written: the memory belongs to another partition by then."""
    pool = Segments()
    segment = pool.take()
    old = segment.write([b"old"])
    segment.give_back()
    assert pool.take() is segment
    new = segment.write([b"new"])
    with pytest.raises(OSError):
        old.read()
    with pytest.raises(OSError):
        write(old.address, old.offset, [b"bad"])
    assert new.read() == [b"new"]


def test_a_segment_that_is_used_anew_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segments().take()
    span = segment.write([b"head", bytes(70_000)])
    allocate = segments._allocate

    def meanwhile(sizes: Any) -> Any:
        segment.renew()
        return allocate(sizes)

    monkeypatch.setattr(segments, "_allocate", meanwhile)
    with pytest.raises(OSError):
        span.read()


def test_a_segment_that_a_late_worker_writes_to_is_not_lent() -> None:
    """A task ran twice: its second run writes when the first one's results are here already."""
    pool = Segments()
    segment = pool.take()
    address = segment.address
    segment.give_back()
    writing = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR)
    fcntl.flock(writing, fcntl.LOCK_SH)
    try:
        other = pool.take()
        assert other is not segment
        assert other.write([b"right"]).read() == [b"right"]
    finally:
        os.close(writing)


def test_a_segment_with_the_descriptor_of_an_earlier_one_is_another() -> None:
    """A worker may have mapped the one that its owner has closed since."""
    first = Segments().take()
    first.write([b"first"])
    (key,) = [key for key in segments._mappings if key[1] == first.address.descriptor]
    mapping = segments._mappings[key]
    del first
    second = Segments().take()
    assert (second.address.pid, second.address.descriptor) == key
    segments._mappings[key] = mapping
    assert second.write([b"second"]).read() == [b"second"]


def test_what_is_kept_of_an_array_keeps_its_memory() -> None:
    """Private memory is used again when the last view of it is gone, and not before."""
    segment = Segments().take()

    def read(number: int) -> Any:
        span = segment.write([b"", bytes([number]) * 3 * MB, bytes([number + 1]) * 3 * MB])
        return span.read()[1:]

    kept = [np.frombuffer(read(10 * number)[number % 2], np.uint8)[5:9] for number in range(1, 8)]
    for _ in range(5):
        read(200)
    assert [array.tolist() for array in kept] == [[10 * n + n % 2] * 4 for n in range(1, 8)]


def test_a_segment_that_is_dropped_is_closed() -> None:
    before = memory_files()
    pool = Segments()
    lent = pool.take()
    lent.write([bytes(MB)])
    assert len(memory_files() - before) == 1
    del lent
    assert memory_files() <= before, "one that was lent and never came back"
    idle = pool.take()
    idle.write([bytes(MB)])
    idle.give_back()
    del idle
    assert len(memory_files() - before) == 1
    pool.close()
    assert memory_files() <= before, "one that was idle when its engine was closed"


def test_idle_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six that hold 1.5 MB each, two fit in 4 MiB, and the others are freed."""
    assert segments.IDLE_BYTES <= 256 * 2**20
    monkeypatch.setattr(segments, "IDLE_BYTES", 4 * 2**20)
    pool = Segments()
    lent = [pool.take() for _ in range(6)]
    for segment in lent:
        segment.write([bytes(1_500_000)])
    for segment in lent:
        segment.give_back()
    again = [pool.take() for _ in range(6)]
    assert sum(one is other for one in lent for other in again) == 2


def in_fork(call: Callable[[], object]) -> int:
    """Return how a fork of this process ended after `call`: 0 where it returned something true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of processes with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if call() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_gets_none_of_its_parent_s_segments() -> None:
    """Both would write into the same one, as each thinks that it is free."""
    pool = Segments()
    pool.take().give_back()

    def refused() -> bool:
        try:
            pool.take()
        except OSError as error:
            return "forked" in str(error)
        return False

    assert in_fork(refused) == 0
    assert pool.take().write([b"ours"]).read() == [b"ours"]


OTHER_PROCESS = """
import pickle, sys
from parcoll.wire.segments import write
span = pickle.load(sys.stdin.buffer)
head, buffer = span.read()
buffer[:1] = b"!"
pickle.dump(write(span.address, span.end, [head[::-1], bytes(buffer) * 4]), sys.stdout.buffer)
try:
    span._replace(address=span.address._replace(token=b"t" * 16)).read()
except OSError:
    sys.exit(0)
"""


def test_another_process_reads_and_writes_it_by_its_address() -> None:
    """And makes it longer where its results need that."""
    segment = Segments().take()
    span = segment.write([b"abc", b"z" * MB])
    ended = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        input=pickle.dumps(span),
        capture_output=True,
        env=clean_environment(),
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    result = pickle.loads(ended.stdout)
    assert isinstance(result, Span)
    assert result.read() == [b"cba", (b"!" + b"z" * (MB - 1)) * 4]
    assert span.read() == [b"abc", b"z" * MB]


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
        monkeypatch.setattr(cluster.engine._sharing, "_works", False)
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


# Where it does not work ---------------------------------------------------------------------------


def no_memory_file(*args: Any) -> int:
    raise OSError(28, "No space left on device")


def renewed_as(pid: Any) -> Callable[[Segment], None]:
    renew = Segment.renew

    def renewed(segment: Segment) -> None:
        renew(segment)
        segment.address = segment.address._replace(pid=pid)

    return renewed


FALLBACKS: dict[str, tuple[Any, str, Any, str]] = {
    "no memory file can be made": (os, "memfd_create", no_memory_file, "No space left"),
    "nobody can open one": (Segment, "renew", renewed_as(-1), "No such file"),
    # As in a container with process ids of its own: what is opened there is something else.
    "workers cannot open one": (Segment, "renew", renewed_as("self"), "parcoll cannot use shared memory"),
}


@pytest.mark.parametrize(("owner", "name", "value", "reason"), FALLBACKS.values(), ids=FALLBACKS)
def test_where_memory_cannot_be_shared_messages_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any, reason: str
) -> None:
    """Right answers, every element once, and one warning that says why it is slower."""
    monkeypatch.setattr(owner, name, value)
    trace = tmp_path / "trace"

    def noted(array: Any) -> Any:
        append(trace, int(array[0]))
        return array + 1

    arrays = [np.full(70_000, n) for n in range(40)]
    with connect(n_workers=1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chain = parallel(arrays).map(noted)
        assert [(int(a[0]), len(a)) for a in chain] == [(n + 1, 70_000) for n in range(40)]
        assert Counter(lines(trace)) == {str(n): 1 for n in range(40)}
        assert (chain.stats.elements_in, chain.stats.elements_out) == (40, 40)
        kept = parallel(arrays, partition_size=7)
        kept.foreach(noted)
        assert [int(a[-1]) for a in kept] == list(range(1, 41))
        assert int(kept.reduce(np.add)[0]) == 820
        assert Counter(lines(trace)) == {str(n): 2 for n in range(40)}
        assert [len(text) for text in parallel(range(5)).map(lambda n: "x" * 100_000)] == [100_000] * 5
    ours = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert len(ours) == 1
    assert reason in ours[0]


def test_where_only_results_are_large_they_come_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment that a worker cannot open was to hold nothing but them."""
    monkeypatch.setattr(Segment, "renew", renewed_as("self"))

    def evaluate() -> list[int]:
        with connect(n_workers=1):
            return [len(text) for text in parallel(range(50), partition_size=1).map(lambda n: "x" * 50_000)]

    with pytest.warns(RuntimeWarning, match="shared memory"):
        assert evaluate() == [50_000] * 50


# No trace -----------------------------------------------------------------------------------------


def test_nothing_is_left_of_it_when_the_cluster_is_closed() -> None:
    """Whole evaluations, iterators that were left, errors: no memory file, nothing in /dev/shm."""
    before, in_shm = memory_files(), shared_memory()
    arrays = [np.full(130_000, n) for n in range(40)]
    with connect(n_workers=2):
        left = iter(parallel(itertools.repeat(arrays[1])).map(np.negative))
        next(left)
        assert sum(1 for _ in parallel(arrays).map(np.negative)) == 40
        with closing(iter(parallel(itertools.repeat(arrays[1]), partition_size=1).map(abs))) as stream:
            next(stream)
        with pytest.raises(ZeroDivisionError):
            list(parallel(arrays).map(lambda a: 1 // int(a[0] - 5)))
        assert memory_files() - before, "the test must see what it is about"
        del left
    assert eventually(lambda: gc.collect() >= 0 and memory_files() <= before)
    assert shared_memory() <= in_shm


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the scheduler file of a cluster with a worker, which has numpy."""
    with bare_cluster(tmp_path_factory.mktemp("remote"), 1, lacking=("parcoll",)) as cluster:
        yield cluster.file


def test_workers_elsewhere_are_sent_everything(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that we did not start may have workers on any machine: no segment is made for them."""
    jobs: list[tuple[Job, type]] = []
    init = Job.__init__

    def noted(job: Job, *args: Any, **kwargs: Any) -> None:
        init(job, *args, **kwargs)
        jobs.append((job, type(job.elements)))

    def refuse(*args: Any) -> int:
        raise AssertionError("a memory file is made")

    monkeypatch.setattr(Job, "__init__", noted)
    monkeypatch.setattr(os, "memfd_create", refuse)
    arrays = [np.full(130_000, n) for n in range(20)]
    with connect(remote):
        results = list(parallel(arrays).map(np.negative))
    assert all((result == -n).all() for n, result in enumerate(results))
    assert jobs
    assert {kind for _, kind in jobs} == {Packed}
    assert {job.segment for job, _ in jobs} == {None}
