"""Keys of a list's elements: what lies in the script and nobody can write into need not come back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import pytest
from keyed import first, grouped

from parcoll import Connection, ParallelGen, connect, parallel
from parcoll.keys import exchange

COUNT = 6000
Answer = tuple[Callable[[Any], Any], Callable[[list[Any], Any], list[Any]]]


def distinct(elements: list[Any], key: Callable[[Any], Any]) -> list[Any]:
    return [group[0] for group in grouped(elements, key).values()]


# What a collection gives, and what plain Python does.
WAYS: dict[str, Answer] = {
    "group_by": (lambda chain: chain.group_by, lambda rows, key: list(grouped(rows, key).items())),
    "distinct": (lambda chain: chain.distinct, distinct),
    "sorted": (lambda chain: chain.sorted, lambda rows, key: sorted(rows, key=key)),
    "backwards": (
        lambda chain: lambda key, **settings: chain.sorted(key, reverse=True, **settings),
        lambda rows, key: sorted(rows, key=key, reverse=True),
    ),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Connection]:
    with connect(n_workers=2) as connection:
        yield connection


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Answer:
    return WAYS[request.param]


def rows_of(count: int) -> list[tuple[str, int, str]]:
    return [(f"key{at * 7919 % (count // 5)}", at, f"{at:0200}") for at in range(count)]


def flat(found: list[Any]) -> list[Any]:
    """Return the elements of what any way gives."""
    if isinstance(found[0], dict) or not isinstance(found[0][1], list):
        return found
    return [element for _, group in found for element in group]


def made_by(way: Answer, chain: ParallelGen[Any], key: Any = first, **settings: Any) -> ParallelGen[Any]:
    return way[0](chain)(key, **settings)  # type: ignore[no-any-return]


def plainly(way: Answer, rows: list[Any], key: Any = first) -> list[Any]:
    return way[1](rows, key)


@pytest.mark.parametrize("size", ["auto", 700])
def test_what_comes_back_are_the_elements_of_the_list(cluster: Connection, way: Answer, size: Any) -> None:
    """The very objects: their bytes go to the workers, and not back."""
    rows = rows_of(COUNT)
    call, plain = way
    made = call(parallel(rows, partition_size=size))(first)
    found = list(made)
    assert found == plain(rows, first)
    assert {id(element) for element in flat(found)} <= set(map(id, rows))
    assert made.stats.bytes_received < made.stats.bytes_sent / 2


def test_a_tuple_of_elements(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    assert list(made_by(way, parallel(tuple(rows)))) == plainly(way, rows)


@pytest.mark.parametrize(
    "key", [lambda row: row[1] % 7, lambda row: (row[1] % 3, row[0]), lambda row: row[1] / 9]
)
def test_keys_of_any_type(cluster: Connection, way: Answer, key: Any) -> None:
    made = made_by(way, parallel(rows_of(COUNT), partition_size=999), key)
    assert list(made) == plainly(way, rows_of(COUNT), key)


def note(row: dict[str, int]) -> int:
    row["seen"] = row.get("seen", 0) + 1
    return row["at"] % 5


def test_what_a_key_function_writes_into_an_element_comes_back(cluster: Connection, way: Answer) -> None:
    """As plain Python has it, but for the elements of the script, which a worker does not reach."""
    call, plain = way
    found = list(call(parallel([{"at": at} for at in range(100)], partition_size=9))(note))
    assert found == plain([{"at": at} for at in range(100)], note)
    assert flat(found)[0]["seen"] == 1


class Row:
    """A number of a class of users', which workers alone compare."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __eq__(self, other: object) -> bool:
        return self.at == getattr(other, "at", other)

    def __hash__(self) -> int:
        return hash(self.at)

    def __lt__(self, other: Any) -> bool:
        return bool(self.at < getattr(other, "at", other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.at > getattr(other, "at", other))

    def __getitem__(self, at: int) -> int:
        return self.at % 10


def mixed(kind: Callable[[int], Any]) -> list[Any]:
    """Return elements of which some partitions have tuples alone, and others something else too."""
    return [kind(at) if at // 50 % 3 == 1 and at % 7 == 0 else (at * 31 % 10, at) for at in range(600)]


@pytest.mark.parametrize(
    "kind", [Row, lambda at: [at % 10, at], lambda at: {0: at % 10}], ids=["class", "list", "dict"]
)
@pytest.mark.parametrize("threads", [4, 0], ids=["here", "workers"])
def test_elements_of_which_some_have_to_come_back(
    cluster: Connection, way: Answer, kind: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "FEW_THREADS", threads)
    rows = mixed(kind)
    assert list(made_by(way, parallel(rows, partition_size=50))) == plainly(way, rows)


def test_keys_of_which_some_are_compared_by_workers(cluster: Connection, way: Answer) -> None:
    """What has not come back goes to the workers after all."""
    rows = [(at * 31 % 10, at) for at in range(600)]
    key = lambda row: Row(row[0]) if row[1] // 50 % 3 == 1 else row[0]
    assert list(made_by(way, parallel(rows, partition_size=50), key)) == plainly(way, rows, key)


def test_workers_that_have_become_many(
    cluster: Connection, way: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the sending of partitions and the return: what workers merge is sent to them."""
    rows = rows_of(COUNT)
    monkeypatch.setattr(exchange.Collective, "ends_here", lambda self, cost, refers: False)
    assert list(made_by(way, parallel(rows, partition_size=700))) == plainly(way, rows)


class Counted:
    """An element of which the script counts how often it is made of bytes."""

    made = 0

    def __init__(self, at: int) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return Counted.again, (self.at,)

    @classmethod
    def again(cls, at: int) -> Counted:
        cls.made += 1
        return cls(at)


@pytest.mark.parametrize("name", ["group_by", "sorted"])
def test_elements_that_come_back_are_opened_once(cluster: Connection, name: str) -> None:
    """They go on to the workers as they came."""
    plain = [(at % 7, at) for at in range(600)]
    rows = [Counted(at) for _, at in plain]
    Counted.made = 0
    call, plainly = WAYS[name]
    found = list(call(parallel(rows, partition_size=50))(lambda row: row.at % 7))
    elements = [one for _, group in found for one in group] if isinstance(found[0], tuple) else found
    assert [one.at for one in elements] == [row[1] for row in flat(plainly(plain, first))]
    assert Counted.made == len(elements)


def test_bytes_are_not_held_beside_what_was_made_of_them(
    cluster: Connection, way: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange.Collective, "ends_here", lambda self, cost, refers: False)
    kept: list[Any] = []
    add = exchange._Shelf.add

    def noted(self: Any, number: Any, piece: Any) -> None:
        kept.append(piece)
        add(self, number, piece)

    monkeypatch.setattr(exchange._Shelf, "add", noted)
    made = made_by(way, parallel(rows_of(COUNT), partition_size=700))
    assert list(made) == plainly(way, rows_of(COUNT))
    assert not any(piece.data for piece in kept)


@pytest.mark.parametrize("name", ["group_by", "sorted"])
def test_large_keys_do_not_all_stay_here(
    cluster: Connection, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the elements are, of which the positions have come back."""
    answers = []
    ends = exchange.Collective.ends_here

    def noted(self: Any, cost: int, refers: bool) -> bool:
        answers.append(ends(self, cost, refers))
        return answers[-1]

    monkeypatch.setattr(exchange.Collective, "ends_here", noted)
    monkeypatch.setattr(exchange, "WINDOW_COST", 2**22)
    made = made_by(WAYS[name], parallel(list(range(600)), partition_size=50), long_key)
    assert list(made) == plainly(WAYS[name], list(range(600)), long_key)
    assert answers == [False]


def long_key(at: int) -> str:
    return f"{at * 31 % 599:05}" * 1000


def test_the_list_is_changed_when_it_was_read(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    call, plain = way
    expected, found = plain(list(rows), first), []
    for one in call(parallel(rows, partition_size=700))(first):
        rows.clear()
        found.append(one)
    assert found == expected


def test_the_list_is_changed_while_it_is_read(cluster: Connection, way: Answer) -> None:
    """An element is what it was when it was sent to a worker, and not what stands in its place later."""

    async def changing() -> list[Any]:
        rows = rows_of(COUNT)

        async def change() -> None:
            while True:
                rows[:] = [(f"other{at}", -at, "y") for at in range(COUNT)]
                await asyncio.sleep(0.01)

        found, changes = [], None
        async for one in way[0](parallel(rows, partition_size=200, buffersize=400))(slow_first):
            found.append(one)
            changes = changes or asyncio.create_task(change())
            await asyncio.sleep(0)
        if changes:
            changes.cancel()
        return found

    async def beside() -> list[Any]:
        rows = rows_of(COUNT)

        async def change() -> None:
            await asyncio.sleep(0.3)
            rows[:] = [(f"other{at}", -at, "y") for at in range(COUNT)]

        changes = asyncio.create_task(change())
        found = [one async for one in way[0](parallel(rows, partition_size=200, buffersize=400))(slow_first)]
        await changes
        return found

    for call in (changing, beside):
        for element in flat(asyncio.run(call())):
            assert element[0] == f"key{element[1] * 7919 % (COUNT // 5)}" or element == (
                f"other{-element[1]}",
                element[1],
                "y",
            )


def slow_first(row: Any) -> Any:
    if row[1] % 200 == 0:
        time.sleep(0.03)
    return row[0]


def uneven(row: Any) -> Any:
    if row[1] in (3, 41):
        time.sleep(0.6)
    return row[0]


def test_elements_that_a_worker_hands_back(cluster: Connection, way: Answer) -> None:
    """They stand where they stood, in whichever partition they come."""
    rows = [(f"key{at % 6}", at) for at in range(60)]
    assert list(made_by(way, parallel(rows), uneven)) == plainly(way, rows)


def failing(row: Any) -> Any:
    if row[1] % 50 == 7:
        raise ValueError(row)
    return row[0]


def test_elements_that_are_left_out(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    made = way[0](parallel(rows, partition_size=700))(failing, on_error="skip")
    assert list(made) == way[1]([row for row in rows if row[1] % 50 != 7], first)


def test_elements_that_a_filter_leaves_out(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    kept = parallel(rows, partition_size=700).filter(lambda row: row[1] % 3)
    assert list(made_by(way, kept)) == plainly(way, [row for row in rows if row[1] % 3])


def test_steps_behind_it(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    made = way[0](parallel(rows, partition_size=700))(first).map(itemgetter(1)).skip(5)
    assert list(made) == [one[1] for one in way[1](rows, first)][5:]


def test_with_a_timeout(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    made = made_by(way, parallel(rows, partition_size=700), timeout=60)
    assert list(made) == plainly(way, rows)


def test_the_first_ones(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    assert way[0](parallel(rows, partition_size=700))(first).take(3) == way[1](rows, first)[:3]


def test_no_elements(cluster: Connection, way: Answer) -> None:
    assert list(way[0](parallel([]))(first)) == []


def test_keys_that_cannot_be_compared(cluster: Connection) -> None:
    """Of partitions that can be sorted each, but not together."""
    rows = [(str(at) if at >= 50 else at, at) for at in range(100)]
    with pytest.raises(TypeError, match="not supported between") as caught:
        list(parallel(rows, partition_size=50).sorted(first))
    assert any("sorted()" in note for note in caught.value.__notes__)


def deadly(folder: str) -> Callable[[Any], Any]:
    def key(row: Any) -> Any:
        if row[1] == COUNT // 2:
            try:
                os.close(os.open(os.path.join(folder, "done"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return row[0]
            os.kill(os.getpid(), signal.SIGKILL)
        return row[0]

    return key


def test_a_worker_dies(way: Answer, tmp_path: Any) -> None:
    rows = rows_of(COUNT)
    with connect(n_workers=2):
        made = made_by(way, parallel(rows, partition_size=700), deadly(str(tmp_path)))
        assert list(made) == plainly(way, rows)
        assert made.stats.recovered >= 1


def test_no_element_is_held_afterwards(cluster: Connection, way: Answer) -> None:
    rows = rows_of(COUNT)
    before = sys.getrefcount(rows[7])
    found = list(way[0](parallel(rows))(first))
    assert found
    del found
    gc.collect()
    now = sys.getrefcount(rows[7])
    assert now == before
