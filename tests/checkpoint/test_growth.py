"""A source that has grown at its end goes on; one that was changed otherwise is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import noting, pieces, stopped_after
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import append, lines

from parcoll import CheckpointError, Connection, ParallelGen, parallel
from parcoll.checkpoint.descriptions import CHAIN, END, chain_file_in


class Sized:
    """An iterable with a length that is no sequence."""

    def __init__(self, elements: Iterable[int]) -> None:
        self._elements = list(elements)

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self) -> Any:
        return iter(self._elements)


KINDS: list[Callable[[Iterable[int]], Any]] = [list, iter, Sized, lambda xs: lambda: iter(xs), tuple]


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_one_more_element_after_a_complete_run(
    inline: Connection, tmp_path: Path, first: Callable[[Any], Any], second: Callable[[Any], Any]
):
    """Whether the lengths are known, or only one of them, or none."""
    log = tmp_path / "log"

    def run(kind: Callable[[Any], Any], length: int) -> list[int]:
        source = kind(range(length))
        return list(parallel(source, partition_size=30, checkpoint=tmp_path / "run").map(noting(log)))

    assert run(first, 400) == list(range(0, 800, 2))
    log.unlink()
    assert run(second, 401) == list(range(0, 802, 2))
    assert lines(log) == ["400"]
    log.unlink()
    assert run(second, 401) == list(range(0, 802, 2))  # complete again
    assert run(first, 437) == list(range(0, 874, 2))  # and grown once more
    assert lines(log) == [str(x) for x in range(401, 437)]
    for kind in (first, second):
        with pytest.raises(CheckpointError, match=r"it had 43. elements.* only grow") as raised:
            run(kind, 401)
        assert "delete the folder" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_length_that_grew_is_noted_with_the_first_new_results(inline: Connection, tmp_path: Path):
    def run(length: int) -> ParallelGen[int]:
        return parallel(range(length), partition_size=10, checkpoint=tmp_path).map(abs)

    def noted() -> Any:
        return chain_file_in((tmp_path / CHAIN).read_bytes())

    assert run(40).count() == 40
    since = noted().since
    assert noted().length == 40
    assert since > 1e9
    assert run(60).take(30) == list(range(30))  # nothing new was saved
    assert noted().length == 40
    assert stopped_after(run(60), 45) == list(range(45))
    assert (noted().length, noted().since) == (60, since)
    with pytest.raises(CheckpointError, match=r"it had 60 elements and has 50, and a source may only grow"):
        run(50).count()
    assert run(70).count() == 70


@pytest.mark.parametrize("kind", KINDS)
def test_growth_after_a_run_that_was_left_early(
    inline: Connection, tmp_path: Path, kind: Callable[[Any], Any]
):
    log = tmp_path / "log"

    def run(length: int) -> ParallelGen[int]:
        return parallel(kind(range(length)), partition_size=7, checkpoint=tmp_path / "run").map(noting(log))

    assert run(50).take(10) == list(range(0, 20, 2))
    assert stopped_after(run(80), 30) == list(range(0, 60, 2))
    assert list(run(100)) == list(range(0, 200, 2))
    assert sorted(map(int, lines(log))) == list(range(100))


def test_growth_of_a_chain_with_filters_and_flatmaps(cluster: Connection, tmp_path: Path):
    log = tmp_path / "log"

    def run(length: int) -> ParallelGen[Any]:
        found = parallel(range(length), checkpoint=tmp_path / "run", on_error="skip").map(noting(log))
        return found.filter(lambda x: x % 3).flatmap(lambda x: [x] * (x % 5)).map(str)

    def expected(length: int) -> list[str]:
        return [str(x) for x in range(0, 2 * length, 2) if x % 3 for _ in range(x % 5)]

    assert list(run(100)) == expected(100)
    assert run(130).count() == len(expected(130))
    assert list(run(133).unordered()) == expected(133)
    assert sorted(map(int, lines(log))) == list(range(133))


def test_batches_of_a_step_end_with_their_partitions(inline: Connection, tmp_path: Path):
    def run(length: int) -> list[Any]:
        found = parallel(range(length), partition_size=10, checkpoint=tmp_path)
        return list(found.map_batches(lambda xs: [x + 1 for x in xs], 4))

    assert run(25) == list(range(1, 26))
    assert run(31) == list(range(1, 32))


@pytest.mark.parametrize("kind", [list, iter])
def test_a_last_batch_of_the_source_that_was_not_full(
    inline: Connection, tmp_path: Path, kind: Callable[[Any], Any]
):
    """It is another element by then; its partition runs again, and no other."""
    log = tmp_path / "log"

    def total(batch: tuple[int, ...]) -> tuple[int, ...]:
        append(log, batch[0])
        return batch

    def run(elements: Iterable[int], **more: Any) -> list[Any]:
        log.unlink(missing_ok=True)
        source = parallel(kind(list(elements)), partition_size=8, checkpoint=tmp_path / "run", **more)
        return list(source.batched(4).map(total))

    def batches(length: int) -> list[tuple[int, ...]]:
        return [tuple(range(start, min(start + 4, length))) for start in range(0, length, 4)]

    assert run(range(30)) == batches(30)
    for length, again in [(31, [24, 28]), (35, [24, 28, 32]), (36, [32]), (41, [36, 40])]:
        assert run(range(length)) == batches(length)
        assert list(map(int, lines(log))) == again
        assert run(range(length)) == batches(length)
        assert not log.exists()
    for changed in ([*range(40), 7], [*range(40), 7, 8], range(40), [*range(39), 7, 40, 41]):
        with pytest.raises(CheckpointError, match="has the results of another source"):
            run(changed)
    assert run(range(50)) == batches(50)


def test_a_run_out_of_order_that_was_killed_before_the_batch_that_has_grown_was_saved(
    inline: Connection, tmp_path: Path
):
    """What is behind that batch has its results, and it runs again all the same."""
    log, folder = tmp_path / "log", tmp_path / "run"

    def noted(batch: tuple[int, ...]) -> tuple[int, ...]:
        append(log, batch[0])
        return batch

    def run(length: int) -> list[tuple[int, ...]]:
        log.unlink(missing_ok=True)
        return list(parallel(range(length), partition_size=1, checkpoint=folder).batched(4).map(noted))

    run(10)
    (short,) = [path for path in folder.glob("*.piece") if path.name.startswith("parcoll-000000000002-")]
    before = short.read_bytes()
    run(20)
    short.write_bytes(before)
    (folder / END).unlink()
    for again in ([8], None):
        assert run(20) == [tuple(range(at, at + 4)) for at in range(0, 20, 4)]
        assert (list(map(int, lines(log))) if log.exists() else None) == again


def test_batches_that_are_longer_now_have_not_grown(inline: Connection, tmp_path: Path):
    """Each begins with what was one before. The first is refused already: it would run, and be saved."""

    def run(n: int) -> list[tuple[int, ...]]:
        numbers = parallel(lambda: iter(range(40)), partition_size=1, checkpoint=tmp_path / "run")
        return list(numbers.batched(n).map(lambda batch: batch))

    expected = run(4)
    with pytest.raises(CheckpointError, match="element 0 is another one"):
        run(5)
    assert run(4) == expected


ELEMENTS = list(range(40))
CHANGED = [
    ([*ELEMENTS[:25], 99, *ELEMENTS[26:], 40], "elements 20 to 29 are not all the same"),
    ([-1, *ELEMENTS], "elements 0 to 9 are not all the same"),
    ([*ELEMENTS[:39], 99, 39], "elements 30 to 39 are not all the same"),
    ([*ELEMENTS[1:], 40, 41], "elements 0 to 9 are not all the same"),
    ([*ELEMENTS[:12], *ELEMENTS[13:], 40], "elements 10 to 19 are not all the same"),
    ([1, 0, *ELEMENTS[2:], 40], "elements 0 to 9 are not all the same"),
    (ELEMENTS[:39], "only grow"),
    (ELEMENTS[:30], "only grow"),
    ([], "only grow"),
]


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize(("changed", "message"), CHANGED)
def test_a_source_that_changed_otherwise_is_refused(
    inline: Connection, tmp_path: Path, kind: Callable[[Any], Any], changed: list[int], message: str
):
    def run(source: Any) -> list[int]:
        return list(parallel(source, partition_size=10, checkpoint=tmp_path).map(lambda x: -x))

    assert run(kind(ELEMENTS)) == [-x for x in ELEMENTS]
    before = {path: path.read_bytes() for path in pieces(tmp_path)}
    with pytest.raises(CheckpointError, match=f"has the results of another source: .*{message}"):
        run(kind(changed))
    assert {path: path.read_bytes() for path in pieces(tmp_path)} == before
    assert run(kind([*ELEMENTS, 40])) == [-x for x in range(41)]


def test_a_shrunk_source_is_told_at_its_end_where_a_piece_is_missing(inline: Connection, tmp_path: Path):
    """The piece that would have told is gone, or stands behind the end."""

    def run(length: int) -> list[int]:
        return list(parallel(iter(range(length)), partition_size=10, checkpoint=tmp_path).map(abs))

    assert run(40) == ELEMENTS
    assert len(pieces(tmp_path)) > 1
    for path in pieces(tmp_path)[1:]:
        path.unlink()
    with pytest.raises(CheckpointError, match="it had 40 elements or more, and ends after 33"):
        run(33)
    assert run(41) == list(range(41))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.integers(0, 60)), min_size=1, max_size=5),
    size=st.integers(1, 9),
)
def test_any_growth(
    inline: Connection, tmp_path_factory: pytest.TempPathFactory, steps: list[Any], size: int
):
    """Runs that are left anywhere, over a source that grows between them: each element runs once."""
    folder = tmp_path_factory.mktemp("grown")
    log, length = folder / "log", 0
    for more, streams, results in steps:
        length += more
        source = iter(range(length)) if streams else range(length)
        found = parallel(source, partition_size=size, checkpoint=folder / "run").map(noting(log))
        chain = found.filter(lambda x: x % 3)
        expected = [2 * x for x in range(length) if 2 * x % 3]
        assert stopped_after(chain, results) == expected[:results]
    assert list(
        parallel(range(length), checkpoint=folder / "run").map(noting(log)).filter(lambda x: x % 3)
    ) == [2 * x for x in range(length) if 2 * x % 3]
    assert sorted(map(int, lines(log))) == list(range(length))


def test_an_endless_source_behind_one_that_had_ended(inline: Connection, tmp_path: Path):
    assert parallel(range(10), checkpoint=tmp_path).map(abs).count() == 10
    assert parallel(lambda: itertools.count(), checkpoint=tmp_path).map(abs).take(25) == list(range(25))
