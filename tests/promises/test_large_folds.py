"""Folds whose values are large or slow to join: in order, exact, on several workers, and packed seldom."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import eventually, wait_for_file

from parcoll import Connection, SerializationError, parallel
from parcoll.worker import fold as folds

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LARGE = 100_000  # bytes: a value that is worth keeping as an object


def append(values: list[Any], value: Any) -> list[Any]:
    values.append(value)
    return values


def count(counts: dict[Any, int], key: Any) -> dict[Any, int]:
    counts[key] = counts.get(key, 0) + 1
    return counts


def merge(left: dict[Any, int], right: dict[Any, int]) -> dict[Any, int]:
    for key, number in right.items():
        left[key] = left.get(key, 0) + number
    return left


def slowly(x: Any) -> Any:
    time.sleep(random.random() * 0.004)
    return x


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elements", "size"), [(17, 1), (90, 1), (210, 3), (5_000, 77)])
def test_values_are_combined_in_order_whichever_partition_ends_first(
    place: Connection, elements: int, size: int
) -> None:
    texts = [f"{x}," for x in range(elements)]
    source = parallel(texts, partition_size=size)
    chain = source.map(slowly) if elements < 100 else source
    assert chain.fold(operator.add, "") == "".join(texts)
    assert chain.fold(append, [], operator.iadd) == texts
    assert chain.reduce(append, []) == texts


def test_large_values_are_counted_once(place: Connection) -> None:
    keys = parallel(range(60_000), partition_size=1_500).map(lambda x: f"key {x * 7919 % 40_009}")
    expected = functools.reduce(count, (f"key {x * 7919 % 40_009}" for x in range(60_000)), {})
    assert keys.fold(count, {}, merge) == expected
    assert keys.reduce(count, {}) == expected


def test_joins_run_at_the_same_time(cluster: Connection, tmp_path: Path) -> None:
    """The first one waits until another one has begun, on the other worker: of values that wait behind it."""

    def meet(left: set[int], right: set[int]) -> set[int]:
        if left and right:
            (tmp_path / str(os.getpid())).touch()
            deadline = time.monotonic() + 30
            while len(list(tmp_path.iterdir())) < 2:
                if time.monotonic() > deadline:
                    raise TimeoutError("joins queue")
                time.sleep(0.01)
        return left | right

    chain = parallel(range(32), partition_size=1)
    assert chain.fold(lambda found, x: found | {x}, set(), meet) == set(range(32))


def test_what_functions_capture_stays_as_it_is(place: Connection) -> None:
    """A value may be an object that others see too: `combine` writes into a copy of it."""
    captured = [list(range(LARGE // 3)), list(range(LARGE // 2))]
    expected = [captured[x % 2][:] for x in range(20)]
    lists = parallel(range(20), partition_size=1).map(lambda x: captured[x % 2])
    whole = list(itertools.chain.from_iterable(expected))
    assert lists.fold(lambda _, found: found, [], operator.iadd) == whole
    assert lists.fold(operator.add, []) == whole


def test_slow_joins_within_tasks_on_all_workers(cluster: Connection) -> None:
    """Each waits for joins in the thread that these need."""

    def join(left: list[int], right: list[int]) -> list[int]:
        time.sleep(0.02 if left and right else 0.0)
        return left + right

    def within(x: int) -> list[int]:
        return parallel(range(40), partition_size=1).fold(append, [], join)

    assert list(parallel(range(3), partition_size=1).map(within)) == [list(range(40))] * 3


@pytest.mark.parametrize("timeout", [None, 60])
def test_folds_within_a_task_and_beside_a_worker(cluster: Connection, timeout: float | None) -> None:
    def within(x: int) -> tuple[Any, Any]:
        inner = parallel([LETTERS * x] * 20, partition_size=1)
        return inner.fold(operator.add, ""), inner.reduce(append, [])

    expected = [(LETTERS * x * 20, [LETTERS * x] * 20) for x in (1, 300)]
    if timeout is None:
        assert list(parallel([1, 300], partition_size=1).map(within)) == expected
    chain = parallel([LETTERS * 300] * 20, partition_size=1, timeout=timeout)
    assert (chain.fold(operator.add, ""), chain.reduce(append, [])) == expected[1]


# --- how often a value is packed -----------------------------------------------------------------


class State:
    """A value that notes in files each time that it is packed and unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[int] = []
        self.weight = os.urandom(LARGE)

    def __getstate__(self) -> Any:
        return self._note("packed")

    def __setstate__(self, state: Any) -> None:
        self.__dict__ = state
        self._note("unpacked")

    def _note(self, name: str) -> Any:
        with open(self.folder / name, "a") as file:
            file.write(".")
        return self.__dict__

    def __add__(self, other: Any) -> State:
        self.seen += other.seen if isinstance(other, State) else [other]
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.seen == other.seen

    __hash__ = None  # type: ignore[assignment]


def times(folder: Path, name: str) -> int:
    return len((folder / name).read_text())


def test_the_state_of_a_reduce_is_not_packed_from_partition_to_partition(
    cluster: Connection, tmp_path: Path
) -> None:
    """Here at the start, on each worker once, to be sure that it can be, and once at the end."""

    def add(state: State, x: int) -> State:
        time.sleep(0.02)  # so that each partition is a join of its own
        return state + x

    found = parallel(range(40), partition_size=1).reduce(add, State(tmp_path))
    assert found.seen == list(range(40))
    assert times(tmp_path, "packed") <= 5
    assert times(tmp_path, "unpacked") <= 5


def test_a_value_of_a_fold_is_packed_once_for_each_level(cluster: Connection, tmp_path: Path) -> None:
    """A partition's, a block's and the last one: 80 and 1 and 1. `initial` is packed to be checked, too."""
    found = parallel(range(80), partition_size=1).fold(operator.add, State(tmp_path), operator.add)
    assert found.seen == list(range(80))
    assert times(tmp_path, "packed") <= 80 + 5 + 1 + 4


# --- failures ------------------------------------------------------------------------------------


def test_the_first_value_that_cannot_be_combined_is_told(place: Connection) -> None:
    def refuse(left: list[int], right: list[int]) -> list[int]:
        if left and right and right[0] in (21, 40):
            raise ValueError(f"refused {right[0]}")
        return left + right

    with pytest.raises(ValueError, match="refused 21") as caught:
        parallel(range(60), partition_size=1).fold(append, [], refuse)
    [note] = caught.value.__notes__
    assert note == "in fold(append), combining with refuse, at element 21 of those that reached it: [21]"


def test_an_element_that_fails_comes_before_joins_behind_it(place: Connection) -> None:
    def fails(values: list[int], x: int) -> list[int]:
        if x == 38:
            raise KeyError(x)
        return append(values, x)

    def refuse(left: list[int], right: list[int]) -> list[int]:
        if 50 in right and len(right) < 50:
            raise ValueError("refused")
        return left + right

    with pytest.raises(KeyError) as caught:
        parallel(range(60), partition_size=1).fold(fails, [], refuse)
    assert "in fold(fails), at element 38: 38" in caught.value.__notes__[-1]


@pytest.mark.parametrize("size", [0, LARGE])
@pytest.mark.parametrize("at", [3, 30])
def test_a_value_that_cannot_be_sent_is_told(place: Connection, size: int, at: int) -> None:
    """At once, or when a state that has stayed an object is to come here."""

    def add(state: list[Any], x: Any) -> list[Any]:
        return append(state, threading.Lock() if x == at else bytes(size // 10))

    chain = parallel(range(40), partition_size=1)
    with pytest.raises(SerializationError, match=r"the value of reduce\(add\) cannot be sent.*lock"):
        chain.reduce(add, [])
    with pytest.raises(SerializationError, match=r"the value of fold\(add\) cannot be sent.*lock"):
        chain.fold(add, [], operator.add)


def test_an_initial_that_is_not_neutral_is_found_in_a_value_too_large_to_copy(
    inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "MOST_CHECK_SECONDS", 1e-9)
    pairs = [("name", "x"), *((str(x), x) for x in range(50)), ("depth", 5), ("size", 1)]
    chain = parallel(pairs, partition_size=10)
    with pytest.raises(ValueError, match=r"not neutral.*use reduce"):
        chain.fold(
            lambda found, pair: {**found, pair[0]: pair[1]},
            {"depth": 0},
            lambda left, right: {**left, **right},
        )
    with pytest.raises(ValueError, match=r"not neutral.*use reduce"):
        chain.fold(
            lambda found, pair: {**found, pair[0]: pair[1]},
            {"depth": 0},
            lambda left, right: left.update(right) or left,  # type: ignore[func-returns-value]
        )
    assert chain.fold(lambda n, _: n + 1, 0, operator.add) == len(pairs)
    assert parallel(range(50), partition_size=10).fold(append, [], operator.iadd) == list(range(50))


# --- lost workers --------------------------------------------------------------------------------


def dies(told: Path) -> None:
    """End this process, the first time."""
    try:
        told.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


# By the number of the first partition of the left value, and the lengths of both.
PHASES: dict[str, Callable[[int, int, int], bool]] = {
    "at the start": lambda first, left, right: (first, left) == (0, 3),
    "later": lambda first, left, right: (first, left) == (0, 40),
    "at the end of a block": lambda first, left, right: (first, left) == (0, 63),
    "of what waits": lambda first, left, right: 0 < first < 64 and left > 1,
    "at the end": lambda first, left, right: left >= 64,
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_fold_is_exact_when_a_worker_is_killed_in_a_join(
    cluster: Connection, tmp_path: Path, phase: str
) -> None:
    is_moment = PHASES[phase]

    def join(left: bytearray, right: bytearray) -> bytearray:
        if left and is_moment(left[0], len(left) // LARGE, len(right) // LARGE):
            dies(tmp_path / "told")
        if right and phase == "of what waits" and not left[0]:
            wait_for_file(tmp_path / "told")
        left += right
        return left

    def add(left: bytearray, x: int) -> bytearray:
        left += bytes([x]) * LARGE
        return left

    chain = parallel(range(70), partition_size=1)
    assert chain.fold(add, bytearray(), join) == b"".join(bytes([x]) * LARGE for x in range(70))
    assert (tmp_path / "told").exists()
    assert chain.stats.deaths == 1


@pytest.mark.parametrize("at", [5, 40, 66], ids=["in a join", "in a later one", "after 64 partitions"])
def test_a_reduce_is_exact_when_the_worker_that_has_its_state_is_killed(
    cluster: Connection, tmp_path: Path, at: int
) -> None:
    def add(state: list[bytes], x: int) -> list[bytes]:
        time.sleep(0.003)
        if x == at:
            dies(tmp_path / "told")
        return append(state, bytes([x]) * (LARGE // 4))

    chain = parallel(range(70), partition_size=1)
    assert chain.reduce(add, []) == [bytes([x]) * (LARGE // 4) for x in range(70)]
    assert (tmp_path / "told").exists()
    assert chain.stats.deaths == 1


def test_a_worker_that_is_killed_between_joins(cluster: Connection, tmp_path: Path) -> None:
    """It has the state as an object, and the last partition waits until it is dead."""
    folder = str(tmp_path)

    def add(state: list[Any], x: int) -> list[Any]:
        Path(folder, "holder").write_text(str(os.getpid()))
        return append(state, (x, bytes(LARGE)))

    def wait(x: int) -> int:
        if x == 11:
            wait_for_file(Path(folder, "killed"))
        return x

    def kill() -> None:
        chain_runs = eventually(lambda: Path(folder, "holder").exists() and chain.stats.partitions_done >= 11)
        time.sleep(0.2)
        if chain_runs:
            holders.append(int(Path(folder, "holder").read_text()))
            os.kill(holders[0], signal.SIGKILL)
        Path(folder, "killed").touch()

    holders: list[int] = []
    chain = parallel(range(12), partition_size=1).map(wait)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert [x for x, _ in chain.reduce(add, [])] == list(range(12))
    finally:
        killer.join()
    assert holders
