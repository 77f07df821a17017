"""Where memory cannot be shared messages do; and nothing is left of what was shared."""

from __future__ import annotations

import gc
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare import bare_cluster
from leaks import shared_memory
from memory_files import memory_files
from scripts import append, eventually, lines

from parcoll import connect, parallel
from parcoll.evaluation.engine import Job
from parcoll.wire.payload import Packed
from parcoll.wire.segments import Segment

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


def test_a_program_that_workers_cannot_read_there_comes_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks begin nothing, and are sent once more; and so do processes beside the worker."""
    monkeypatch.setattr(Segment, "renew", renewed_as("self"))
    data = os.urandom(2**20)

    def evaluate(**settings: Any) -> list[int]:
        return list(parallel(range(20), partition_size=3, **settings).map(lambda n: data[n]))

    with connect(n_workers=2), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert evaluate() == list(data[:20])
        assert evaluate(timeout=60) == list(data[:20])
    assert ["shared memory" in str(warning.message) for warning in caught] == [True]


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
