"""`fold` and `reduce` with a checkpoint: the values of partitions are saved, or the elements."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import noting, pieces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import append, lines

from parcoll import CheckpointError, Connection, ParallelGen, connect, parallel


def put(words: dict[str, int], word: str) -> dict[str, int]:
    words[word] = words.get(word, 0) + 1
    return words


def merge(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {word: one.get(word, 0) + other.get(word, 0) for word in {**one, **other}}


FOLDS: dict[str, tuple[Callable[[ParallelGen[Any]], Any], Callable[[list[int]], Any]]] = {
    "sum": (lambda c: c.fold(operator.add, 0, operator.add), sum),
    "without combine": (lambda c: c.fold(operator.add, 100), lambda xs: 100 + sum(xs)),
    "texts": (
        lambda c: c.map(str).fold(lambda text, x: text + x, "", operator.add),
        lambda xs: "".join(map(str, xs)),
    ),
    "a dict": (
        lambda c: c.map(lambda x: str(x % 7)).fold(put, {}, merge),
        lambda xs: dict(Counter(str(x % 7) for x in xs)),
    ),
    "an array": (
        lambda c: c.fold(lambda a, x: a + x, np.zeros(3), operator.add).tolist(),
        lambda xs: [float(sum(xs))] * 3,
    ),
    "not neutral": (
        lambda c: c.fold(lambda n, x: n + x, 5, operator.add),  # one element after the other
        lambda xs: 5 + sum(xs),
    ),
    "reduce": (
        lambda c: c.reduce(lambda a, b: (3 * a + b) % 1009),
        lambda xs: functools.reduce(lambda a, b: (3 * a + b) % 1009, xs),
    ),
    "reduce from": (
        lambda c: c.reduce(lambda text, x: text + str(x), ""),
        lambda xs: "".join(map(str, xs)),
    ),
}


def stops_once(log: Path, marker: Path, at: int) -> Callable[[int], int]:
    def step(x: int) -> int:
        if x == at and not marker.exists():
            raise KeyboardInterrupt
        append(log, x)
        return x

    return step


@pytest.mark.parametrize("kind", ["inline", "cluster"])
@pytest.mark.parametrize("name", FOLDS)
def test_goes_on_where_it_was_ended(kind: str, request: pytest.FixtureRequest, tmp_path: Path, name: str):
    request.getfixturevalue(kind)
    log, marker, (fold, expected) = tmp_path / "log", tmp_path / "repaired", FOLDS[name]

    def chain(length: int = 90) -> ParallelGen[int]:
        source = parallel(range(length), partition_size=7, checkpoint=tmp_path / "run")
        return source.map(stops_once(log, marker, 60)).filter(lambda x: x % 5)

    def right(length: int) -> Any:
        return expected([x for x in range(length) if x % 5])

    with pytest.raises(KeyboardInterrupt):
        fold(chain())
    saved = max(int(path.stem.rsplit("-", 1)[1]) for path in pieces(tmp_path / "run"))
    assert 0 < saved <= 60
    marker.touch()
    log.unlink()
    assert fold(again := chain()) == right(90)
    assert not set(range(saved)) & set(map(int, lines(log)))
    assert again.stats.resumed >= saved
    log.unlink()
    assert fold(chain()) == right(90)  # complete
    assert not log.exists()
    assert fold(chain(95)) == right(95)  # and grown
    assert sorted(map(int, lines(log))) == list(range(90, 95))
    with pytest.raises(CheckpointError, match="only grow"):
        fold(chain(90))


def test_a_sum_of_floats_is_grouped_as_before(inline: Connection, tmp_path: Path):
    """Values of partitions are saved as they are."""
    numbers = [0.1 * x for x in range(100)]

    def total(folder: Path | None) -> float:
        chain = parallel(numbers, partition_size=9, checkpoint=folder).map(lambda x: x / 3)
        return chain.fold(operator.add, 0.0, operator.add)

    whole = total(None)
    assert total(tmp_path / "run") == whole
    assert len(pieces(tmp_path / "run")) > 1
    for path in pieces(tmp_path / "run")[1:]:
        path.unlink()
    assert total(tmp_path / "run") == whole == total(tmp_path / "run")


def test_another_fold_is_refused(inline: Connection, tmp_path: Path):
    def chain(folder: str) -> ParallelGen[int]:
        return parallel(range(20), checkpoint=tmp_path / folder).map(abs)

    assert chain("fold").fold(lambda a, x: a + x, 0, operator.add) == 190
    with pytest.raises(CheckpointError, match=r"the code of step 2, fold\(lambda\), has changed"):
        chain("fold").fold(lambda a, x: a - x, 0, operator.add)
    with pytest.raises(CheckpointError, match=r"the argument 'combine' of step 2, fold\(lambda\), has ch"):
        chain("fold").fold(lambda a, x: a + x, 0, max)
    with pytest.raises(CheckpointError, match=r"the argument 'initial' of step 2, fold\(lambda\), has ch"):
        chain("fold").fold(lambda a, x: a + x, 0.0, operator.add)
    with pytest.raises(
        CheckpointError, match=r"had 2 steps and has 1: fold\(\w+\) is not there any more: restore"
    ):
        list(chain("fold"))
    assert list(chain("list")) == list(range(20))
    with pytest.raises(CheckpointError, match=r"had 1 step and has 2: fold\(\w+\) was not there: restore"):
        chain("list").fold(operator.add, 0, operator.add)
    assert chain("list").reduce(operator.add) == 190  # of the elements that are saved
    assert chain("list").count() == 20


def test_what_had_failed_runs_again_with_its_partition(inline: Connection, tmp_path: Path):
    marker, log = tmp_path / "repaired", tmp_path / "log"

    def risky(x: int) -> int:
        append(log, x)
        if x in (3, 17) and not marker.exists():
            raise ValueError(x)
        return x

    def total(**more: Any) -> tuple[int, int]:
        found = parallel(range(30), partition_size=5, checkpoint=tmp_path / "run", on_error="skip", **more)
        chain = found.map(risky)
        return chain.fold(operator.add, 0, operator.add), len(chain.errors)

    assert total() == (435 - 20, 2)
    marker.touch()
    log.unlink()
    assert total() == (415, 2)
    assert not log.exists()
    assert total(retry_failed=True) == (435, 0)
    assert sorted(map(int, lines(log))) == [*range(5), *range(15, 20)]
    assert total() == (435, 0)


def test_an_empty_source_and_one_that_gives_nothing(inline: Connection, tmp_path: Path):
    for _ in range(2):
        assert parallel([], checkpoint=tmp_path / "a").fold(operator.add, 7, operator.add) == 7
        nothing = parallel(range(9), partition_size=2, checkpoint=tmp_path / "b").filter(lambda x: x > 9)
        assert nothing.fold(operator.add, 0) == 0
        with pytest.raises(TypeError, match=r"reduce\(\) of empty iterable"):
            parallel(iter(()), checkpoint=tmp_path / "c").map(abs).reduce(operator.add)


def test_unordered_and_in_a_folder_elsewhere(cluster: Connection, tmp_path: Path):
    log = tmp_path / "log"
    for _ in range(2):
        words = parallel(range(200), checkpoint=f"memory://{tmp_path}").map(noting(log)).map(str).unordered()
        assert words.fold(operator.add, "", operator.add) == "".join(map(str, range(0, 400, 2)))
    assert len(lines(log)) == 200


def test_a_cluster_that_dies_meanwhile(tmp_path: Path):
    import psutil

    log = tmp_path / "log"

    def kills(x: int) -> int:
        append(log, x)
        if x == 150 and len(lines(log)) > 100 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            psutil.Process().parent().kill()
        return x

    with connect(n_workers=2):
        numbers = parallel(range(300), partition_size=5, checkpoint=tmp_path / "run").map(kills)
        assert numbers.fold(operator.add, 0, operator.add) == sum(range(300))
        assert numbers.fold(operator.add, 0, operator.add) == sum(range(300))
        assert numbers.stats.resumed == numbers.stats.elements_in == 300


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=4),
    name=st.sampled_from(sorted(FOLDS)),
)
def test_any_ends(inline: Connection, tmp_path_factory: pytest.TempPathFactory, runs: Any, name: str):
    """The function ends the run anywhere, several times."""
    folder, (fold, expected) = tmp_path_factory.mktemp("folded"), FOLDS[name]
    at = folder / "at"

    def step(x: int) -> int:
        if x == int(at.read_text()):
            raise ZeroDivisionError(x)
        return x

    for end, size in [*runs, (-1, 4)]:
        at.write_text(str(end))
        chain = parallel(range(40), partition_size=size, checkpoint=folder / "run").map(step)
        try:
            assert fold(chain) == expected(list(range(40)))
        except ZeroDivisionError:
            assert end in range(40)
    chain = parallel(range(40), checkpoint=folder / "run").map(step)
    assert fold(chain) == expected(list(range(40)))
    assert chain.stats.resumed == 40
