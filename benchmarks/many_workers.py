"""The processes of a cluster with many simulated worker threads, and its one client.

python many_workers.py scheduler     python many_workers.py workers ADDRESS COUNT THREADS
python many_workers.py client ADDRESS SCHEDULER_PID

A real scheduler in a process of its own, with dask's settings; real `distributed.Worker`s, of which
many share a process, with simulated threads; a script that streams, as a user's would.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import time
from functools import partial
from typing import Any

import psutil
from children import Channel, serve

from parcoll import connect, parallel
from parcoll.watch.recorder import Recorder

LOOPBACK = "127.0.0.1"
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "5s",
    "distributed.admin.tick.limit": "30s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.memory.monitor-interval": "5s",
}


async def until_hung_up(channel: Channel) -> None:
    """Return when the benchmark has closed the pipe."""
    await asyncio.to_thread(list, channel.commands())


async def scheduler(channel: Channel) -> None:
    """Serve as a scheduler."""
    from distributed import Scheduler

    async with Scheduler(host=LOOPBACK, port=0, dashboard_address=f"{LOOPBACK}:0") as server:
        channel.answer(address=server.address)
        await until_hung_up(channel)


def sleep(seconds: float, x: int) -> int:
    """Do as if this took so long."""
    import simulated  # the worker's own: this function travels without it

    simulated.clock.slept += seconds
    return x


async def workers(channel: Channel, address: str, count: int, threads: int) -> None:
    """Serve as so many workers, each of which does as if it had so many threads.

    They do not look at themselves as workers do (a profile every 10 ms, for one): 64 of them would keep
    this machine busy with that. The scheduler notices nothing of it.
    """
    import dask
    from distributed import Worker
    from simulated import Sleeper, clock

    dask.config.set(QUIET)
    time.perf_counter = clock
    options = {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0", "memory_limit": 0}
    with tempfile.TemporaryDirectory() as folder:
        made = [
            Worker(address, nthreads=threads, executor=Sleeper(), local_directory=folder, **options)
            for _ in range(count)
        ]
        await asyncio.gather(*made)
        channel.answer(workers=count)
        await until_hung_up(channel)
        await asyncio.gather(*(worker.close() for worker in made))


def stream(scheduler_pid: int, pause: float, warm: float, measured: float) -> dict[str, Any]:
    """Stream elements that take `pause` each; after `warm` seconds, look for so many `measured` ones.

    Returns what was used and done in that time: processor time of the scheduler and of this process,
    tasks, and elements.
    """
    chain = parallel(itertools.count()).map(partial(sleep, pause))
    results = iter(chain)
    started = time.monotonic()
    expected = itertools.count()
    right = next(results) == next(expected)
    ended: list[int] = []  # the elements of each task
    add = Recorder.add

    def note(recorder: Recorder, outcome: Any, *others: Any) -> None:
        ended.append(outcome.read)
        add(recorder, outcome, *others)

    Recorder.add = note  # type: ignore[method-assign]
    marks = []
    for wanted in (warm, warm + measured):
        while time.monotonic() < started + wanted:
            right = right and next(results) == next(expected)
        done = (len(ended), sum(ended))
        marks.append((time.monotonic(), processor_time(scheduler_pid), processor_time(), *done))
    results.close()
    Recorder.add = add  # type: ignore[method-assign]
    names = ("seconds", "scheduler", "client", "tasks", "elements")
    used = {name: after - before for name, before, after in zip(names, *marks, strict=True)}
    return used | {"right": right}


def processor_time(pid: int | None = None) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    # Not each worker's start and end. dask reads this when it is first imported, which is not yet.
    os.environ["DASK_LOGGING__DISTRIBUTED"] = "error"
    channel = Channel()
    role, *arguments = sys.argv[1:]
    if role == "scheduler":
        asyncio.run(scheduler(channel))
    elif role == "workers":
        address, count, threads = arguments
        asyncio.run(workers(channel, address, int(count), int(threads)))
    else:
        address, scheduler_pid = arguments
        with connect(address):
            serve(channel, {"stream": partial(stream, int(scheduler_pid))})


if __name__ == "__main__":
    main()
