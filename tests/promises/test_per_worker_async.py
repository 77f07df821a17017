"""Objects of `per_worker` that have to be awaited: made once in each worker's event loop, and ended there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripts import append, lines

from parcoll import Connection, ElementError, connect, parallel, per_worker


class Session:
    """Something that belongs to an event loop, as an HTTP session does."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()

    async def get(self, x: int) -> tuple[int, int]:
        assert self.loop is asyncio.get_running_loop()
        await asyncio.sleep(0.001)
        return x, self.pid


def sessions(told: Path, seconds: float = 0.0) -> Any:
    """Return a `PerWorker` that tells of its beginning and its end."""

    @per_worker
    async def session() -> AsyncIterator[Session]:
        append(told, f"made {os.getpid()}")
        await asyncio.sleep(seconds)
        yield Session()
        await asyncio.sleep(0)  # what follows may wait too
        append(told, f"ended {os.getpid()}")

    return session


@pytest.mark.parametrize("workers", [2, "inline"])
def test_it_is_made_once_in_each_loop_over_evaluations(tmp_path: Path, workers: Any) -> None:
    session = sessions(tmp_path / "told")

    async def fetch(x: int) -> tuple[int, int]:
        return await (await session()).get(x)

    with connect("inline") if workers == "inline" else connect(n_workers=2):
        chain = parallel(range(200)).map(fetch)
        found = [list(chain), list(chain), chain.take(3)]
        assert [[x for x, _ in part] for part in found] == [list(range(200)), list(range(200)), [0, 1, 2]]
        pids = {str(pid) for part in found for _, pid in part}
    told = [line.split() for line in lines(tmp_path / "told")]
    made = [pid for what, pid in told if what == "made"]
    assert len(made) == len(set(made)), "once in each"
    assert pids <= set(made), "take() may have had another worker begin"
    assert sorted(made) == sorted(pid for what, pid in told if what == "ended")


def test_a_coroutine_function_makes_one_too(inline: Connection) -> None:
    @per_worker
    async def number() -> int:
        await asyncio.sleep(0)
        return 7

    async def add(x: int) -> int:
        return x + await number()

    assert list(parallel(range(30)).map(add)) == list(range(7, 37))
    number.close()


def test_its_seconds_are_not_those_of_the_call(cluster: Connection, tmp_path: Path) -> None:
    session = sessions(tmp_path / "told", seconds=1.5)

    async def fetch(x: int) -> int:
        return (await (await session()).get(x))[0]

    chain = parallel(range(40), timeout=0.5, on_error="skip").map(fetch)
    assert list(chain) == list(range(40))
    assert (chain.stats.failed, chain.stats.retries) == (0, 0)
    session.close()
    told = lines(tmp_path / "told")
    assert len([line for line in told if line.startswith("made")]) <= 2
    assert len(told) % 2 == 0


def test_a_call_that_is_late_by_itself_is_still_stopped(cluster: Connection, tmp_path: Path) -> None:
    session = sessions(tmp_path / "told", seconds=0.3)

    async def fetch(x: int) -> int:
        found = await session()
        await asyncio.sleep(60 if x == 3 else 0)
        return (await found.get(x))[0]

    chain = parallel(range(6), timeout=0.5, on_error="skip").map(fetch)
    assert list(chain) == [0, 1, 2, 4, 5]
    assert [error.index for error in chain.errors] == [3]
    session.close()


def test_a_factory_that_fails_ends_the_evaluation_after_the_retries(
    cluster: Connection, tmp_path: Path
) -> None:
    def failing(times: int, name: str) -> Any:
        @per_worker
        async def session() -> int:
            append(tmp_path / name, "")
            if len(lines(tmp_path / name)) <= times:
                raise ConnectionError("no route")
            return 1

        async def fetch(x: int) -> int:
            return x + await session()

        return fetch

    seen: list[ElementError] = []
    with pytest.raises(ConnectionError, match="no route") as raised:
        list(parallel([1, 2, 3], partition_size=3).map(failing(99, "a"), on_error=seen.append))
    note = "raised by the factory of per_worker(session), and not for one element: on_error does not apply"
    assert raised.value.__notes__.count(note) == 1
    chain = parallel([1], retries=2).map(failing(2, "b"))
    assert list(chain) == [2]
    assert len(lines(tmp_path / "b")) == 3


def test_in_the_script_each_loop_has_its_own() -> None:
    @per_worker
    async def session() -> AsyncIterator[Session]:
        yield Session()

    async def two() -> tuple[Session, Session]:
        one, other = await asyncio.gather(session(), session())
        assert one is other is await session()
        return one, other

    first, second = asyncio.run(two()), asyncio.run(two())
    assert first[0] is not second[0]
    session.close()


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "in another task"])
def test_a_factory_that_needs_what_it_makes_says_so(place: Connection, apart: bool) -> None:
    """Directly or through another one: it would wait for itself for ever."""

    @per_worker
    async def one() -> Any:
        return await (asyncio.gather(other()) if apart else other())

    @per_worker
    async def other() -> Any:
        return await one()

    async def ask(x: int) -> Any:
        return await one()

    with pytest.raises(RuntimeError, match=r"per_worker\(one\) needs the object that it is to make"):
        list(parallel([1], on_error="skip").map(ask))


def test_what_cannot_be_meant_is_refused() -> None:
    async def make() -> int:
        return 1

    with pytest.raises(ValueError, match='scope="thread" is for plain functions'):
        per_worker(scope="thread")(make)

    @per_worker
    async def empty() -> AsyncIterator[int]:
        if False:
            yield 1

    async def ask() -> Any:
        return await empty()

    with pytest.raises(RuntimeError, match="has not yielded anything"):
        asyncio.run(ask())
    empty.close()
