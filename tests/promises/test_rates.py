"""`rate=`: no more starts of calls than that, over the whole cluster, evenly spaced."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pages import most_within, starts_of
from scripts import append, lines

from parcoll import Connection, parallel
from parcoll.calls.rates import Pace, Rate, Shares
from parcoll.chain.steps import WHOLE, Share
from parcoll.evaluation.engine import Job

NAN = float("nan")


@pytest.fixture(params=["inline", "cluster"])
def place(request: pytest.FixtureRequest) -> Connection:
    connection: Connection = request.getfixturevalue(request.param)
    return connection


def test_starts_are_spaced(place: Connection, tmp_path: Path):
    def note(x: int) -> int:
        append(tmp_path / "starts", f"{time.monotonic()}")
        time.sleep(0.03)
        return x

    assert list(parallel(range(30)).map(note, concurrency=20, rate=(10, 0.5))) == list(range(30))
    starts = starts_of(tmp_path / "starts")
    assert most_within(starts, 0.5) <= 10
    assert starts[-1] - starts[0] > 0.9


def test_those_of_coroutines_and_of_retries_too(place: Connection, tmp_path: Path):
    folder = str(tmp_path)

    async def flaky(x: int) -> int:
        append(f"{folder}/starts", f"{time.monotonic()}")
        append(f"{folder}/{x}", "call")
        await asyncio.sleep(0.01)
        if x % 2 and len(lines(f"{folder}/{x}")) == 1:
            raise OSError(x)
        return x

    chain = parallel(range(20)).map(flaky, rate=(10, 0.5), retries=2)
    assert list(chain) == list(range(20))
    starts = starts_of(tmp_path / "starts")
    assert len(starts) == 30
    assert most_within(starts, 0.5) <= 10


def test_those_beside_a_worker_too(cluster: Connection, tmp_path: Path):
    """Where a step has a timeout, and a partition one element: its calls are made one by one."""

    def note(x: int) -> int:
        append(tmp_path / "starts", f"{time.monotonic()}")
        return x

    for many, size in ((4, 1), (1, "auto")):
        chain = parallel(range(3), partition_size=size).flatmap(lambda x, n=many: [x] * n, timeout=60)
        assert len(list(chain.map(note, rate=(4, 0.3)))) == 3 * many
    starts = starts_of(tmp_path / "starts")
    assert most_within(starts[:12], 0.3) <= 4


def test_a_rate_alone_makes_one_call_at_a_time_in_each_task(inline: Connection):
    def where(x: int) -> str:
        time.sleep(0.005)
        return threading.current_thread().name

    assert set(parallel(range(20)).map(where, rate=(1000, 1))) == {"parcoll-call-1"}


def test_shares_add_up_to_the_whole_however_many_workers_there_are():
    shares = Shares(10)
    assert shares.parts(3) == 3
    assert shares.parts(50) == 10
    held = [shares.give(2), shares.give(2)]
    assert [shares.left(2), shares.left(3)] == [0, 0]
    shares.take_back(held.pop())
    assert [shares.left(2), shares.left(3), shares.left(10)] == [1, 1, 5]
    held.append(shares.give(3))
    assert shares.left(3) == 0
    assert shares.left(6) == 1
    assert [share.fresh for share in held] == [True, False]
    for share in held:
        shares.take_back(share)
    assert shares.left(7) == 7
    assert Shares(None).left(5) > 10**9
    assert Shares(None).give(5) == WHOLE


def test_a_share_that_is_sent_again_is_not_fresh():
    """Its task may have begun a call just before its worker was lost: also where it has the whole rate."""
    for share in (WHOLE, Share(3)):
        assert Job(share=share).share_now == share
        assert Job(share=share, lost_workers=["tcp://one"]).share_now == Share(share.parts, fresh=False)


def test_a_pace_is_that_of_its_share():
    pace = Pace(Rate(10, 60.0), Share(5))  # two a minute
    assert pace.take() == 0
    assert 29 < pace.take() <= 30
    assert 29 < Pace(Rate(10, 60.0), Share(5, fresh=False)).take() <= 30


@pytest.mark.parametrize(
    ("given", "error"),
    [
        *(
            ((0, 1), ValueError),
            ((1, 0), ValueError),
            ((1, -1.0), ValueError),
            ((1, float("nan")), ValueError),
        ),
        *((5, TypeError), ((1.5, 1), TypeError), ((1, "s"), TypeError), ((1, 2, 3), TypeError)),
        *(("10", TypeError), ((True, 1), ValueError), ((1, True), TypeError)),
    ],
)
def test_a_rate_is_a_pair(given: Any, error: type[Exception]):
    with pytest.raises(error, match=r"rate must be \(calls, seconds\)"):
        parallel([1]).map(abs, rate=given)
