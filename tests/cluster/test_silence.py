"""How long a scheduler's silence is counted, with a client that stands in for dask's: no time has to pass.

With real schedulers that hang: test_lost_cluster.py and test_lost_scheduler.py.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from parcoll.cluster import clients

ALLOWED = 0.05


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(clients, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(clients, "seconds_allowed", lambda: ALLOWED)


class Client:
    """What the watch uses of a client: the answers to its questions are given."""

    def __init__(self, answer: Callable[[int], Awaitable[Any]]) -> None:
        self.status = "running"
        self.silent_seconds: float | None = None
        self.asked = 0
        self.removed: list[str] = []
        self.aborted = False
        self.scheduler_comm = self.scheduler = self.rpc = self
        self.address = "tcp://10.0.0.1:8786"
        self._answer = answer

    async def ncores(self, workers: list[str]) -> Any:
        assert workers == []
        self.asked += 1
        return await self._answer(self.asked)

    def closed(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def remove(self, address: str) -> None:
        self.removed.append(address)


async def at_once(_: int) -> dict[str, int]:
    return {}


async def never(_: int) -> None:
    await asyncio.sleep(1000)


async def refused(_: int) -> None:
    raise OSError("timed out while connecting")


def watched(client: Client, questions: float = math.inf) -> bool:
    """Watch a client until it was asked so often; tell whether the watch has ended by itself before."""

    async def watch() -> bool:
        task = asyncio.ensure_future(clients._watch_silence(client))
        for _ in range(2_000):
            await asyncio.wait([task], timeout=0.01)
            if task.done() or client.asked >= questions:
                break
        if ended := task.done():
            task.result()
        task.cancel()
        return ended

    return asyncio.run(watch())


def test_one_that_answers_is_kept() -> None:
    client = Client(at_once)
    assert not watched(client, 10)
    assert client.asked >= 10
    assert not client.aborted


@pytest.mark.parametrize("answer", [never, refused])
def test_one_that_does_not_answer_is_given_up(answer: Any) -> None:
    """A question that cannot even be sent has no answer either."""
    client = Client(answer)
    assert watched(client)
    assert client.aborted
    assert client.silent_seconds is not None
    assert ALLOWED < client.silent_seconds <= ALLOWED + 2 * clients.LOOK_SECONDS
    assert client.removed == [client.address]


def test_an_answer_is_the_end_of_a_silence() -> None:
    """However long that was: what counts is that it has ended."""

    async def late(number: int) -> None:
        if number % 6:
            raise OSError

    client = Client(late)
    assert not watched(client, 15)
    assert client.asked >= 15
    assert not client.aborted


def test_a_client_that_is_closed_meanwhile_is_left_alone() -> None:
    """dask takes its scheduler away before its event loop ends."""

    async def closing(_: int) -> None:
        client.status, client.scheduler = "closing", None  # type: ignore[assignment]

    client = Client(closing)
    assert watched(client)
    assert not client.aborted
    client = Client(at_once)
    client.status, client.scheduler = "closed", None  # type: ignore[assignment]
    assert watched(client)


def test_a_connection_that_was_lost_is_left_alone() -> None:
    client = Client(never)
    client.aborted = True
    assert watched(client)
    assert client.silent_seconds is None
