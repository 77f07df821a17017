"""Which clock dask's messages and tornado's loops wait by: `local/imports.py` puts another in its place."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import distributed
import distributed.batched
import pytest
from tornado.ioloop import IOLoop, PeriodicCallback

from parcoll import Connection, clock, connect, parallel
from parcoll.local import imports


def test_batches_go_by_a_function_of_their_module() -> None:
    send: Any = distributed.batched.BatchedSend._background_send
    names = send.__wrapped__.__code__.co_names
    assert "time" in names
    assert "next_deadline" in names
    assert callable(distributed.batched.time)


def test_all_that_a_loop_does_later_goes_by_its_own_clock() -> None:
    async def run() -> list[str]:
        loop, done, said = IOLoop.current(), asyncio.Event(), []
        before = loop.time()
        assert abs(before - time.time()) < 60  # the wall clock's, where nobody has changed it
        loop.time = lambda: 1000.0 + time.monotonic()  # type: ignore[method-assign]
        loop.call_at(loop.time() + 0.01, lambda: said.append("once"))
        again = PeriodicCallback(lambda: (said.append("again"), done.set()), 20)  # type: ignore[func-returns-value]
        again.start()
        await asyncio.wait_for(done.wait(), 30)
        again.stop()
        return said

    assert asyncio.run(run()) == ["once", "again"]


def test_the_clock_of_a_loop_that_is_not_ours_stays() -> None:
    async def both() -> tuple[float, float]:
        theirs = imports.time_of_loop()
        IOLoop.current().time = lambda: 1000.0  # type: ignore[method-assign]
        return theirs, imports.time_of_loop()

    theirs, ours = asyncio.run(both())
    assert theirs == pytest.approx(time.time(), abs=60)
    assert ours == 1000.0


def test_the_processes_of_a_local_cluster_go_by_a_steady_clock() -> None:
    def wall_clocks() -> list[str]:
        import sys
        import time

        from tornado.ioloop import IOLoop

        names = ("batched", "client", "core", "comm.core", "scheduler", "worker", "metrics")
        found = [name for name in names if sys.modules[f"distributed.{name}"].time is time.time]
        return found if "steady" in IOLoop.time.__code__.co_freevars else [*found, "the loop"]

    with connect(n_workers=1) as cluster:
        assert isinstance(cluster, Connection)
        assert parallel(range(10)).map(abs).count() == 10
        client = cluster.engine.client
        assert client.run_on_scheduler(wall_clocks) == []
        assert list(client.run(wall_clocks).values()) == [[]]
        assert client.loop.time() == pytest.approx(time.time(), abs=60)
        assert "time" in vars(client.loop)
        assert client.loop.asyncio_loop.time is clock.time.monotonic
        assert distributed.batched.time is imports.time_of_loop  # type: ignore[comparison-overlap]
