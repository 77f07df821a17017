"""No element waits beside an idle worker: whatever its source, and however long others take.

Elements that have to run at the same time wait for each other, in files.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import append, eventually, lines, wait_for_file

from parcoll import Connection, parallel
from parcoll.chain import timing
from parcoll.chain.steps import Map

PATIENCE = 30.0  # seconds; who waits longer was alone


def meeting(folder: Path) -> Callable[[int], int]:
    """Return a function whose odd elements return once the even one before them has begun, and vice versa."""

    def meet(x: int) -> int:
        append(folder / "began", x)
        if not eventually(lambda: str(x ^ 1) in lines(folder / "began"), PATIENCE):
            raise TimeoutError(f"{x} ran alone")
        return x

    return meet


def from_queue() -> Iterator[int]:
    """Give numbers as another thread finds them."""
    found: queue.Queue[int | None] = queue.Queue()

    def find() -> None:
        for x in (0, 1, 2, 3):
            time.sleep(0.02)
            found.put(x)
        found.put(None)

    threading.Thread(target=find).start()
    return iter(found.get, None)


SOURCES: dict[str, Callable[[], Iterable[int]]] = {
    "list": lambda: [0, 1, 2, 3],
    "generator": lambda: (x for x in range(4)),
    "iterator of a list": lambda: iter([0, 1, 2, 3]),
    "islice": lambda: itertools.islice(itertools.count(), 4),
    "queue": from_queue,
    "map": lambda: map(int, "0123"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_long_elements_of_a_short_source_run_side_by_side(
    cluster: Connection, tmp_path: Path, name: str
) -> None:
    """Two pairs for two workers: no worker gets two elements while the other has none."""
    assert list(parallel(SOURCES[name]()).map(meeting(tmp_path))) == [0, 1, 2, 3]


def meet_in(place: tuple[str, int] | None) -> int | None:
    """Meet as those above do, in a folder; at once without one. It holds no data, so its pace is known."""
    return None if place is None else meeting(Path(place[0]))(place[1])


@pytest.mark.parametrize("call", ["list", "reduce", "fold", "fold, all one after the other"])
def test_a_function_that_was_quick_before_is_shared_out_too(
    cluster: Connection, tmp_path: Path, call: str
) -> None:
    """Also where one task was to fold them all: it goes on from the value of those that were begun."""
    calls: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "list": (list, [0, 1, 2, 3]),
        "reduce": (lambda chain: chain.reduce(paired), "(((0, 1), 2), 3)"),
        "fold": (lambda chain: chain.fold(joined, ""), "0123"),
        "fold, all one after the other": (lambda chain: chain.fold(joined, "-", joined), "-0123"),
    }
    evaluate, expected = calls[call]
    evaluate(parallel([None] * 10).map(meet_in))
    for functions in timing._seconds:
        timing._seconds[functions] = 1e-9, None  # however busy the machine is
    assert evaluate(parallel([(str(tmp_path), x) for x in range(4)]).map(meet_in)) == expected


def paired(one: Any, other: Any) -> str:
    return f"({one}, {other})"


def joined(one: Any, other: Any) -> str:
    return f"{one}{other}"


def test_pairs_and_lines_of_files_run_side_by_side(cluster: Connection, tmp_path: Path) -> None:
    meet = meeting(tmp_path)
    pairs = parallel(zip(range(4), "abcd", strict=True)).map(lambda pair: (meet(pair[0]), pair[1]))
    assert list(pairs) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    (tmp_path / "numbers").write_text("10\n11\n12\n13\n")
    with open(tmp_path / "numbers") as file:
        assert list(parallel(file).map(int).map(meet)) == [10, 11, 12, 13]


def test_the_first_elements_of_an_endless_source_run_side_by_side(
    cluster: Connection, tmp_path: Path
) -> None:
    meet = meeting(tmp_path)
    assert parallel(itertools.count()).map(lambda x: meet(x) if x < 2 else x).take(2) == [0, 1]


def test_a_stream_that_has_ended_is_shared_by_all_workers(cluster: Connection) -> None:
    """500 elements of 1 ms: no partition is so large that the other worker waits for it."""

    def busy(x: int) -> int:
        time.sleep(0.001)
        return os.getpid()

    for source in (iter(range(500)), (x for x in range(500))):
        pids = list(parallel(source).map(busy))
        assert len(pids) == 500
        shares = [pids.count(pid) for pid in set(pids)]
        assert len(shares) == 2
        assert min(shares) > 100, shares


# Slow elements among quick ones --------------------------------------------------------------------


def held_at(slow: set[int], gate: Path, trace: Path) -> Callable[[int], int]:
    """Return a function that holds some elements until the gate is open, and notes all that end."""

    def held(x: int) -> int:
        append(trace.with_suffix(".begun"), x)
        if x in slow and not eventually(gate.exists, PATIENCE):
            raise TimeoutError(f"{x} was waited for")
        append(trace, x)
        return x

    return held


@pytest.mark.parametrize("size", ["auto", 1, 2])
@pytest.mark.parametrize("slow", [{0}, {1}, {4}, {0, 7}], ids=str)
def test_quick_elements_do_not_wait_behind_a_slow_one(
    cluster: Connection, tmp_path: Path, size: Any, slow: set[int]
) -> None:
    """One worker is at a slow element, until all quick ones are given; two slow ones run at the same time."""
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    chain = parallel(range(8), partition_size=size).map(held_at(slow, gate, trace)).unordered()
    if len(slow) == 2:  # both workers are held
        assert eventually_given(chain, gate, trace, slow)
        return
    given = iter(chain)
    beside = {x for x in range(8) if size == 2 and x // 2 == next(iter(slow)) // 2}
    quick = [next(given) for _ in range(8 - len(slow | beside))]
    assert sorted(quick) == sorted(set(range(8)) - slow - beside)
    gate.touch()
    assert sorted([*quick, *given]) == list(range(8))
    assert Counter(lines(trace)) == Counter(map(str, range(8))), "each element ran once"


def eventually_given(chain: Any, gate: Path, trace: Path, slow: set[int]) -> bool:
    """Open the gate once all slow elements have begun, and return whether all come."""

    def open_gate() -> None:
        if eventually(lambda: set(map(str, slow)) <= set(lines(trace.with_suffix(".begun"))), PATIENCE):
            gate.touch()

    thread = threading.Thread(target=open_gate)
    thread.start()
    results = sorted(chain)
    thread.join()
    return results == list(range(8)) and Counter(lines(trace)) == Counter(map(str, range(8)))


@pytest.mark.parametrize("source", [range(300), lambda: iter(range(300))], ids=["sized", "unsized"])
@pytest.mark.parametrize("at", [20, 100])
def test_quick_elements_do_not_wait_within_a_partition(
    cluster: Connection, tmp_path: Path, source: Any, at: int
) -> None:
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    given = iter(parallel(source).map(held_at({at}, gate, trace)).unordered())
    quick: list[int] = []
    while not {*range(at + 1, 300)} <= set(quick):  # those before it in its partition come with it
        quick.append(next(given))
    assert at not in quick
    gate.touch()
    assert sorted([*quick, *given]) == list(range(300))
    assert Counter(lines(trace)) == Counter(map(str, range(300))), "each element ran once"


def test_order_stays_when_elements_are_handed_back(cluster: Connection, tmp_path: Path) -> None:
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    opened = meanwhile_open(gate, lambda: len(lines(trace)) >= 290)
    chain = parallel(range(300)).map(held_at({50}, gate, trace)).filter(lambda x: x % 3)
    assert list(chain) == [x for x in range(300) if x % 3]
    opened.join()
    assert chain.stats.elements_in == 300
    assert Counter(lines(trace)) == Counter(map(str, range(300)))


def meanwhile_open(gate: Path, condition: Callable[[], bool]) -> threading.Thread:
    def wait() -> None:
        if eventually(condition, 10):
            gate.touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_what_was_handed_back_is_not_made_again_when_its_worker_dies(
    cluster: Connection, tmp_path: Path
) -> None:
    """The job is sent again without it. dask may have run the lost task again by then, as it was."""
    gate, trace, victim = tmp_path / "gate", tmp_path / "trace", tmp_path / "victim"

    def held(x: int) -> int:
        append(trace, x)
        if x == 100 and not gate.exists():
            victim.write_text(str(os.getpid()))
            wait_for_file(gate)
        return x

    chain = parallel(lambda: iter(range(300))).map(held).unordered()
    given, quick = iter(chain), []
    while not {*range(101, 300)} <= set(quick):
        quick.append(next(given))
    os.kill(int(victim.read_text()), signal.SIGKILL)
    gate.touch()
    assert sorted([*quick, *given]) == list(range(300))
    assert chain.stats.elements_in == 300
    ran = Counter(map(int, lines(trace)))
    assert sorted(ran) == list(range(300))
    assert all(ran[x] <= 2 for x in range(101, 300))
    assert chain.stats.recovered >= 1
    assert eventually(lambda: cluster.engine.threads() == 2, PATIENCE), "the next test needs two workers"


def test_an_error_behind_what_was_handed_back_comes_in_its_place(cluster: Connection, tmp_path: Path) -> None:
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    held = held_at({50}, gate, trace)
    opened = meanwhile_open(gate, lambda: "200" in lines(trace))

    def failing(x: int) -> int:
        if held(x) == 200:
            raise ValueError(x)
        return x

    given: list[int] = []
    with pytest.raises(ValueError, match="200"):
        given.extend(parallel(range(300)).map(failing))
    opened.join()
    assert given in ([], list(range(200)))  # `extend` may drop what it has when its source raises


def last_first(pair: tuple[int, Path]) -> int:
    """Return, of the first element, when the last one has begun."""
    x, folder = pair
    if x == 0 and not eventually((folder / "last").exists, PATIENCE):
        raise TimeoutError("nothing went on")
    if x == 7:
        (folder / "last").touch()
    return x


@pytest.mark.parametrize("pace", [None, 1.0])
@pytest.mark.parametrize("source", [list, iter])
def test_elements_go_on_behind_a_slow_one(
    cluster: Connection, tmp_path: Path, source: Callable[[Any], Iterable[Any]], pace: float | None
) -> None:
    """On the other worker, and as far ahead as with quick elements."""
    timing._seconds.clear()
    if pace is not None:
        timing.remember([Map(last_first)], pace)
    pairs = [(x, tmp_path) for x in range(8)]
    assert list(parallel(source(pairs)).map(last_first)) == list(range(8))
