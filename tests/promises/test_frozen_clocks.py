"""A test has put other clocks into `time`: functions go by them on workers; no evaluation waits by them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bare import bare_cluster
from scripts import Scripts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

MOCKED = """
import sys, time
from contextlib import ExitStack
from unittest import mock
from parcoll import connect, parallel

names, warm = sys.argv[1].split("+"), sys.argv[2] == "warm"
if warm:
    assert parallel(range(4)).map(abs).count() == 4

def clocks(x):
    return [x, *(getattr(time, name)() for name in names if name != "sleep")]

def slept(x):
    if "sleep" in names:
        time.sleep(600)
    return x

async def awaited(x):
    import asyncio
    await asyncio.sleep(0.01)
    return x

with ExitStack() as stack:
    for name in names:
        stack.enter_context(mock.patch(f"time.{name}", return_value=1000.5))
    want = list(map(clocks, range(6)))
    for _ in range(2):
        for settings in ({}, {"timeout": 60}):
            chain = parallel(range(6), **settings).map(clocks).map(lambda row: [slept(row[0]), *row[1:]])
            assert list(chain) == want
    assert parallel(range(1000)).map(lambda x: -x).sorted().take(2) == [-999, -998]
    assert parallel(range(20)).map(abs, rate=(100, 1)).count() == 20
    assert parallel(range(20)).map(abs, concurrency=4).sum() == 190
    assert list(parallel(range(6)).map(awaited)) == [*range(6)]
    chain = parallel(range(10), on_error="skip", retries=1).map(lambda x: 1 // x)
    assert chain.sum() == 1 and len(chain.errors) == 1 and chain.stats.seconds > 0
assert parallel(range(6)).map(lambda x: x + 1).sum() == 21
import distributed
assert type(distributed.metrics.time()) is type(distributed.metrics.monotonic()) is float
assert distributed.metrics.time() != 1000.5 != distributed.metrics.monotonic()
print("done")
"""


@pytest.mark.parametrize(
    ("names", "first"), [("monotonic", "cold"), ("time+monotonic+perf_counter+sleep", "warm")]
)
def test_a_mock_for_a_clock(scripts: Scripts, names: str, first: str) -> None:
    script = scripts.write("script.py", MOCKED)
    out, err = scripts.run_with(script, names, first, env={})
    assert out == "done\n"
    assert "Traceback" not in err


def test_a_mock_that_tells_no_number(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        import time
        from unittest import mock
        from parcoll import connect, parallel
        parallel([1]).count()
        with mock.patch("time.time"), mock.patch("time.perf_counter"), mock.patch("time.monotonic"):
            chain = parallel(range(100)).map(lambda x: x + 1)
            assert chain.sum() == 5050
            assert chain.stats.seconds < 600
        print("done")
        """
    )
    assert out == "done\n"


FROZEN = """
import datetime, os, sys, time
from datetime import date, datetime as moment
from parcoll import connect, parallel

library, first, address = sys.argv[1:]
if library == "freezegun":
    from freezegun import freeze_time
    def stopped(to, tick=False):
        return freeze_time(to, tick=tick)
else:
    import time_machine
    def stopped(to, tick=False):
        return time_machine.travel(moment.fromisoformat(to), tick=tick)

def now(x):
    here = datetime.datetime.now().isoformat(), moment.now().isoformat(), moment.today(), date.today()
    return x, *here, time.time(), time.gmtime()[:6], time.strftime("%Y-%m-%d")

async def later(x):
    import asyncio
    await asyncio.sleep(0.01)
    return now(x)

ways = ({}, {"timeout": 60})
with connect(address if address != "local" else None, **({"n_workers": 2} if address == "local" else {})):
    if first == "warm":
        assert parallel(range(4)).map(abs).count() == 4
    for to in ("2024-02-29", "2031-05-05 10:00"):
        with stopped(to) as control:
            want = list(map(now, range(6)))
            for settings in ways:
                assert list(parallel(range(6), **settings).map(now)) == want, "map"
            assert list(parallel(range(6)).map(later)) == want, "async def"
            assert list(parallel(range(6)).map(now, concurrency=3)) == want, "concurrency"
            days = [date.today() + datetime.timedelta(days=x % 3) for x in range(30)]
            assert {str(day): n for day, n in parallel(days).count_by().items()} == {
                str(day): 10 for day in days[:3]
            }, "count_by"
            control.shift(3600) if library != "freezegun" else control.tick(3600)
            want = list(map(now, range(3)))
            assert list(parallel(range(3)).map(now)) == want, "moved"
    with stopped("2024-02-29", tick=True):
        before = moment.now()
        for settings in ways:
            times = list(parallel(range(6), **settings).map(lambda x: moment.now()))
            assert all(before <= at <= moment.now() for at in times), (before, times)
    for settings in ways:
        before = time.time()
        times = list(parallel(range(6), **settings).map(lambda x: (time.time(), moment.now().timestamp())))
        assert all(before - 1 <= at <= time.time() + 1 for pair in times for at in pair), (before, times)
print("done")
"""


@pytest.mark.parametrize(("library", "first"), [("freezegun", "cold"), ("time_machine", "warm")])
def test_frozen_time(scripts: Scripts, library: str, first: str) -> None:
    script = scripts.write("script.py", FROZEN)
    out, err = scripts.run_with(script, library, first, "local", env={})
    assert out == "done\n"
    assert "Traceback" not in err


def test_frozen_time_and_workers_that_somebody_has_started(scripts: Scripts, tmp_path: Path) -> None:
    script = scripts.write("script.py", FROZEN)
    with bare_cluster(tmp_path / "bare", 2) as cluster:
        for library in ("freezegun", "time_machine"):
            out, err = scripts.run_with(script, library, "warm", cluster.address, env={})
            assert out == "done\n"
            assert "Traceback" not in err
