"""`retry_failed=True` runs what had failed again, and only that; all else is as it was."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import pieces, stopped_after
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripts import append, lines

from parcoll import CheckpointError, Connection, ParallelGen, parallel
from parcoll.checkpoint import storage
from parcoll.checkpoint.records import decoded, encoded

Chain = Callable[[Path, dict[str, Any]], ParallelGen[Any]]


def account(chain: ParallelGen[Any]) -> tuple[Any, ...]:
    """Run a chain; return its results, its counts, and its errors in words."""
    results = list(chain)
    steps = [dataclasses.replace(step, seconds=0) for step in chain.stats.steps]
    return results, steps, [str(error) for error in chain.errors], chain.stats.failed


def failing(tmp_path: Path) -> Callable[[int], int]:
    """Return a function that raises for the numbers in the file `broken`, and notes each call in `log`."""
    broken, log = tmp_path / "broken", tmp_path / "log"

    def risky(x: int) -> int:
        append(log, x)
        if str(x) in broken.read_text().split():
            raise ValueError(f"no {x}")
        return x

    return risky


def broken(tmp_path: Path, numbers: Any) -> None:
    (tmp_path / "broken").write_text(" ".join(map(str, numbers)))
    (tmp_path / "log").unlink(missing_ok=True)


def called(tmp_path: Path) -> list[int]:
    """Return for which elements the function was called since `broken` was called."""
    return sorted(map(int, lines(tmp_path / "log")))


def failed_in(chain: ParallelGen[Any]) -> list[int]:
    """Return for which elements a run tells a failure."""
    list(chain)
    return [error.index for error in chain.errors]


def minus(error: Any) -> Any:
    return -1000 - error.index


CHAINS: dict[str, Callable[[ParallelGen[int], Callable[[int], int]], ParallelGen[Any]]] = {
    "map": lambda c, f: c.map(f),
    "two maps": lambda c, f: c.map(lambda x: x).map(f).map(str),
    "in place": lambda c, f: c.map(f, on_error=minus).map(lambda x: x * 2),
    "a filter before and behind": lambda c, f: c.filter(lambda x: x % 4).map(f).filter(lambda x: x % 7),
    "replaced, and filtered": lambda c, f: (
        c.map(f, on_error=minus).filter(lambda x: x % 3).filter(lambda x: x % 2)
    ),
    "the filter": lambda c, f: c.filter(f).map(lambda x: x + 1),
    "a flatmap behind": lambda c, f: c.map(f, on_error=minus).flatmap(lambda x: [x] * (x % 4)),
    "a flatmap before": lambda c, f: (
        c.flatmap(lambda x: [x, 1000 + x]).map(lambda x: f(x) if x < 1000 else x).filter(lambda x: x % 5)
    ),
    "the flatmap": lambda c, f: c.flatmap(lambda x: (f(y) for y in (x, x))).map(str),
    "batches": lambda c, f: c.map(f).map_batches(lambda xs: [x + 1 for x in xs], 4),
    "in threads": lambda c, f: c.map(lambda x: x).map(f, concurrency=3).map(str),
    "batches and filters": lambda c, f: (
        c.filter(lambda x: x % 4)
        .map(f)
        .map_batches(lambda xs: [x + 1 for x in xs], 4)
        .filter(lambda x: x % 5)
    ),
    "filters and batches at the end": lambda c, f: (
        c.map(f).filter(lambda x: x % 4).map_batches(lambda xs: [x + 1 for x in xs], 4)
    ),
    "in threads, and filtered": lambda c, f: (
        c.filter(lambda x: x % 4)
        .map(f, concurrency=3, on_error=minus)
        .map(lambda x: x)
        .filter(lambda x: x % 3)
    ),
    "a filter in threads": lambda c, f: c.map(lambda x: x).filter(f, concurrency=3).filter(lambda x: x % 3),
    "twice": lambda c, f: c.map(f, on_error=minus).map(lambda x: 1 // max(x + 1004, 0) or x),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_had_failed_runs_again_and_only_that(inline: Connection, tmp_path: Path, name: str):
    """Results, counts and errors are those of a run without trouble, and the folder's too."""
    risky = failing(tmp_path)

    def chain(**settings: Any) -> ParallelGen[Any]:
        return CHAINS[name](parallel(range(60), partition_size=13, on_error="skip", **settings), risky)

    saved = {"checkpoint": tmp_path / "run"}
    broken(tmp_path, [0, 1, 9, 13, 14, 15, 30, 59])
    whole = account(chain())
    assert account(chain(**saved)) == whole
    failed = set(failed_in(chain(**saved)))
    broken(tmp_path, [9, 14])
    assert account(chain(**saved)) == whole  # without it, old failures are told as ever
    assert called(tmp_path) == []
    expected = account(chain())
    broken(tmp_path, [9, 14])
    assert account(chain(**saved, retry_failed=True)) == expected
    assert set(called(tmp_path)) <= failed
    assert set(called(tmp_path)) >= {0, 1, 13, 15, 30, 59} & failed
    broken(tmp_path, [])
    assert account(chain(**saved)) == expected
    assert called(tmp_path) == []
    expected = account(chain())
    broken(tmp_path, [])
    assert account(chain(**saved, retry_failed=True)) == expected
    assert set(called(tmp_path)) <= {9, 14} or name == "twice"
    broken(tmp_path, range(60))
    assert account(chain(**saved)) == account(chain(**saved, retry_failed=True)) == expected
    assert called(tmp_path) == [] or name == "twice"


@pytest.mark.parametrize("settings", [{}, {"timeout": 60.0}])
def test_on_a_cluster(cluster: Connection, tmp_path: Path, settings: dict[str, Any]):
    risky = failing(tmp_path)

    def chain(**more: Any) -> ParallelGen[Any]:
        found = parallel(range(300), on_error="skip", checkpoint=tmp_path / "run", **settings, **more)
        return found.filter(lambda x: x % 2).map(risky).flatmap(lambda x: [x] * (x % 3))

    def expected(but: Any) -> list[int]:
        return [x for x in range(1, 300, 2) if x not in but for _ in range(x % 3)]

    bad = range(7, 300, 10)
    broken(tmp_path, bad)
    assert list(chain()) == expected(bad)
    broken(tmp_path, [17, 297])
    retried = chain(retry_failed=True)
    assert list(retried) == expected([17, 297])
    assert called(tmp_path) == list(bad)
    assert [error.index for error in retried.errors] == [17, 297]
    assert (retried.stats.failed, retried.stats.resumed) == (2, 300 - len(bad))
    broken(tmp_path, [])
    assert sorted(chain(retry_failed=True).unordered()) == sorted(expected([]))
    assert called(tmp_path) == [17, 297]
    assert chain(retry_failed=True).count() == len(expected([]))
    assert called(tmp_path) == [17, 297]


def test_what_raises_now_ends_the_run_and_stays_failed(inline: Connection, tmp_path: Path):
    risky = failing(tmp_path)

    def chain(**settings: Any) -> ParallelGen[Any]:
        return parallel(range(40), partition_size=10, checkpoint=tmp_path / "run", **settings).map(risky)

    broken(tmp_path, [3, 12, 13, 30])
    assert list(chain(on_error="skip")) == [x for x in range(40) if x not in (3, 12, 13, 30)]
    broken(tmp_path, [13])
    seen: list[int] = []
    with pytest.raises(ValueError, match="no 13"):
        seen += chain(retry_failed=True)
    assert called(tmp_path) == [3, 12, 13]
    old = chain(on_error="skip")
    assert list(old) == [x for x in range(40) if x not in (13, 30)]
    assert [error.index for error in old.errors] == [13, 30]
    broken(tmp_path, [])
    assert list(chain(retry_failed=True)) == list(range(40))
    assert called(tmp_path) == [13, 30]


def test_what_is_yielded_is_on_the_disk_and_a_run_may_be_left(inline: Connection, tmp_path: Path):
    """Each piece has the old results or the new ones; none is left beside it."""
    risky = failing(tmp_path)

    def chain(**settings: Any) -> ParallelGen[Any]:
        found = parallel(
            range(50), partition_size=10, checkpoint=tmp_path / "run", on_error="skip", **settings
        )
        return found.map(risky)

    bad = set(range(0, 50, 3))
    broken(tmp_path, bad)
    assert list(chain()) == [x for x in range(50) if x not in bad]
    names = [path.name for path in pieces(tmp_path / "run")]
    broken(tmp_path, [])
    for results in (1, 8, 9, 30):
        assert stopped_after(chain(retry_failed=True), results) == list(range(results))
        assert [path.name for path in pieces(tmp_path / "run")] == names
        left = failed_in(chain())
        assert not set(range(results)) & set(left)
        assert left == sorted(bad - set(called(tmp_path)))
    assert list(chain(retry_failed=True)) == list(range(50))
    assert Counter(called(tmp_path)) == Counter(bad)  # each once


def test_a_piece_that_cannot_be_written_anew_stays(
    inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    risky = failing(tmp_path)

    def chain(**settings: Any) -> ParallelGen[Any]:
        found = parallel(
            range(30), partition_size=10, checkpoint=tmp_path / "run", on_error="skip", **settings
        )
        return found.map(risky)

    broken(tmp_path, [3, 25])
    assert list(chain()) == [x for x in range(30) if x not in (3, 25)]
    before = {path: path.read_bytes() for path in pieces(tmp_path / "run")}
    broken(tmp_path, [])

    def full(self: storage.LocalFolder, name: str, parts: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage.LocalFolder, "write", full)
        with pytest.raises(CheckpointError, match=r"No space left .* of 30 elements are saved and whole"):
            list(chain(retry_failed=True))
    assert {path: path.read_bytes() for path in pieces(tmp_path / "run")} == before
    assert list(chain(retry_failed=True)) == list(range(30))
    assert failed_in(chain()) == []


@pytest.mark.parametrize("url", ["memory://{}/run", "file://{}/run"])
def test_in_a_folder_elsewhere(inline: Connection, tmp_path: Path, url: str):
    risky = failing(tmp_path)

    def chain(**settings: Any) -> ParallelGen[Any]:
        found = parallel(
            range(30), partition_size=4, checkpoint=url.format(tmp_path), on_error="skip", **settings
        )
        return found.map(risky)

    broken(tmp_path, [3, 4, 25])
    assert failed_in(chain()) == [3, 4, 25]
    broken(tmp_path, [4])
    assert failed_in(chain(retry_failed=True)) == [4]
    assert list(chain()) == [x for x in range(30) if x != 4]
    assert called(tmp_path) == [3, 4, 25]


def test_a_source_that_has_grown_meanwhile(inline: Connection, tmp_path: Path):
    risky = failing(tmp_path)

    def chain(length: int, **settings: Any) -> ParallelGen[Any]:
        source = iter(range(length))
        return parallel(
            source, partition_size=8, checkpoint=tmp_path / "run", on_error="skip", **settings
        ).map(risky)

    broken(tmp_path, [5, 19])
    assert list(chain(20)) == [x for x in range(20) if x not in (5, 19)]
    broken(tmp_path, [25])
    assert list(chain(30, retry_failed=True)) == [x for x in range(30) if x != 25]
    assert called(tmp_path) == [5, *range(19, 30)]


def without_places(folder: Path) -> None:
    """Take out of a folder what format 3 does not have."""
    for path in pieces(folder):
        records = decoded(path.read_bytes())
        assert records
        for record in records:
            record.failed_parts = b""
        path.write_bytes(b"".join(encoded(records)))


def test_a_folder_that_does_not_say_which_results_are_whose(inline: Connection, tmp_path: Path):
    """The partitions run again in which something had failed, and no others; wherever it is left."""
    risky = failing(tmp_path)

    def chain(size: int = 10, **settings: Any) -> ParallelGen[Any]:
        found = parallel(
            range(50), partition_size=size, checkpoint=tmp_path / "run", on_error="skip", **settings
        )
        return found.map(risky).flatmap(lambda x: [x] * (x % 3))

    def expected(but: Any) -> list[int]:
        return [x for x in range(50) if x not in but for _ in range(x % 3)]

    broken(tmp_path, [13, 14, 38])
    assert list(chain()) == expected([13, 14, 38])
    without_places(tmp_path / "run")
    broken(tmp_path, [14])
    assert stopped_after(chain(3, retry_failed=True), 14) == expected([14])[:14]
    ran = called(tmp_path)
    assert ran[:2] == [10, 11]
    assert set(ran) <= set(range(10, 20))
    assert list(chain(3, retry_failed=True)) == expected([14])
    broken(tmp_path, [])
    assert list(chain()) == expected([14])
    assert called(tmp_path) == []
    assert list(chain(retry_failed=True)) == expected([])
    assert called(tmp_path) == [14]


@pytest.mark.parametrize("name", ["flat batches", "a flatmap in threads", "two filters behind"])
def test_partitions_of_which_it_is_not_known(inline: Connection, tmp_path: Path, name: str):
    """They run again as a whole."""
    risky = failing(tmp_path)

    def chain(**more: Any) -> ParallelGen[Any]:
        found = parallel(range(60), partition_size=10, on_error="skip", **more)
        if name == "flat batches":
            return found.map(risky).map_batches(
                lambda xs: [y for x in xs for y in [x] * (x % 3)], 4, flat=True
            )
        if name == "two filters behind":
            found = found.map(risky, concurrency=2, on_error=minus)
            return found.filter(lambda x: x % 3).filter(lambda x: x % 2)
        return found.flatmap(lambda x: [risky(x)] * (x % 3), concurrency=2).filter(lambda x: x % 4)

    saved = {"checkpoint": tmp_path / "run"}
    broken(tmp_path, [13, 14, 38])
    assert account(chain(**saved)) == account(chain())
    broken(tmp_path, [14])
    expected = account(chain())
    broken(tmp_path, [14])
    assert account(chain(**saved, retry_failed=True)) == expected
    assert set(called(tmp_path)) == {*range(10, 20), *range(30, 40)}
    assert account(chain(**saved)) == expected


def test_elements_that_had_ended_their_process(cluster: Connection, tmp_path: Path):
    risky = failing(tmp_path)

    def deadly(x: int) -> int:
        if x == 5 and (tmp_path / "broken").read_text():
            os._exit(3)
        return risky(x)

    def chain(**more: Any) -> ParallelGen[int]:
        found = parallel(range(12), partition_size=6, checkpoint=tmp_path / "run", on_error="skip", **more)
        return found.map(deadly).filter(lambda x: x % 4)

    broken(tmp_path, [9])
    assert list(chain()) == [1, 2, 3, 6, 7, 10, 11]
    broken(tmp_path, [])
    assert list(chain()) == [1, 2, 3, 6, 7, 10, 11]
    found = chain(retry_failed=True)
    assert list(found) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert called(tmp_path) == [5, 9]
    assert found.errors == []


def test_coroutines(cluster: Connection, tmp_path: Path):
    risky = failing(tmp_path)

    async def fetch(x: int) -> int:
        await asyncio.sleep(0)
        return risky(x)

    def chain(**settings: Any) -> ParallelGen[Any]:
        return (
            parallel(range(90), checkpoint=tmp_path / "run", on_error="skip", **settings).map(fetch).map(str)
        )

    broken(tmp_path, [0, 44, 45, 89])
    assert list(chain()) == [str(x) for x in range(90) if x not in (0, 44, 45, 89)]
    broken(tmp_path, [44])
    assert list(chain(retry_failed=True)) == [str(x) for x in range(90) if x != 44]
    assert called(tmp_path) == [0, 44, 45, 89]


SOURCES: list[Any] = [
    range(30),
    tuple(range(30)),
    np.arange(30),
    np.arange(30.0).reshape(30, 1),
    np.array([*range(30)], dtype=object),
    "".join(map(chr, range(30))),
    {x: x for x in range(30)},
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("size", [1, 4, "auto"])
def test_any_source(inline: Connection, tmp_path: Path, source: Any, size: Any):
    """What runs again is compared with the elements as they are read."""
    risky = failing(tmp_path)

    def number(x: Any) -> int:
        return risky(ord(x) if isinstance(x, str) else int(np.ravel(x)[0]))

    def chain(**more: Any) -> ParallelGen[Any]:
        found = parallel(source, partition_size=size, checkpoint=tmp_path / "run", on_error="skip", **more)
        return found.map(number)

    broken(tmp_path, [0, 7, 8, 9, 10, 29])
    assert failed_in(chain()) == [0, 7, 8, 9, 10, 29]
    broken(tmp_path, [8])
    assert failed_in(chain(retry_failed=True)) == [8]
    assert failed_in(chain()) == [8]
    assert called(tmp_path) == [0, 7, 8, 9, 10, 29]
    broken(tmp_path, [])
    assert list(chain(retry_failed=True)) == list(chain()) == list(range(30))


def test_with_a_buffersize(cluster: Connection, tmp_path: Path):
    risky = failing(tmp_path)

    def chain(**more: Any) -> ParallelGen[Any]:
        found = parallel(iter(range(99)), buffersize=5, checkpoint=tmp_path / "run", on_error="skip", **more)
        return found.map(risky)

    broken(tmp_path, range(0, 99, 2))
    assert list(chain()) == list(range(1, 99, 2))
    broken(tmp_path, [])
    assert list(chain(retry_failed=True)) == list(range(99))
    assert called(tmp_path) == list(range(0, 99, 2))


def test_retries_within_a_run_are_counted(inline: Connection, tmp_path: Path):
    risky = failing(tmp_path)

    def chain(**settings: Any) -> ParallelGen[Any]:
        found = parallel(range(6), partition_size=3, on_error="skip", retries=1, **settings)
        return found.map(risky)

    saved = {"checkpoint": tmp_path / "run"}
    broken(tmp_path, [1, 4])
    assert list(chain(**saved)) == [0, 2, 3, 5]
    broken(tmp_path, [4])
    expected = account(chain())
    broken(tmp_path, [4])
    assert account(chain(**saved, retry_failed=True)) == expected
    assert called(tmp_path) == [1, 4, 4]


# What ran again is saved before the reader comes to the next record of that piece whose elements run again.
@example(runs=[({13, 15, 17, 19}, False, 30, 10), ({13}, True, 17, 1)], name="map")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(st.sets(st.integers(0, 29)), st.booleans(), st.integers(0, 40), st.integers(1, 12)),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(sorted(CHAINS)),
)
def test_any_runs(inline: Connection, tmp_path_factory: pytest.TempPathFactory, runs: Any, name: str):
    """Runs that are left anywhere, with and without it: each element counts as it ran last."""
    folder = tmp_path_factory.mktemp("again")
    risky = failing(folder)

    def chain(size: int, **settings: Any) -> ParallelGen[Any]:
        return CHAINS[name](parallel(range(30), partition_size=size, on_error="skip", **settings), risky)

    for numbers, again, results, size in runs:
        broken(folder, numbers)
        stopped_after(chain(size, checkpoint=folder / "run", retry_failed=again), results)
    broken(folder, [])
    expected = account(chain(5))
    found = chain(4, checkpoint=folder / "run", retry_failed=True)
    assert account(found) == expected
    assert account(chain(4, checkpoint=folder / "run")) == expected


def test_it_needs_a_checkpoint():
    with pytest.raises(ValueError, match=r"retry_failed=True .* pass checkpoint=, or leave retry_failed out"):
        parallel([1], retry_failed=True)
    with pytest.raises(TypeError, match="retry_failed must be True or False, got"):
        parallel([1], checkpoint="run", retry_failed=1)  # type: ignore[arg-type]
    assert parallel([1], retry_failed=False)


def test_a_changed_chain_is_refused_before_anything_runs(inline: Connection, tmp_path: Path):
    assert parallel(["1", "x"], checkpoint=tmp_path, on_error="skip").map(int).count() == 1
    with pytest.raises(CheckpointError, match="has the results of another chain"):
        parallel(["1", "x"], checkpoint=tmp_path, on_error="skip", retry_failed=True).map(float).count()
