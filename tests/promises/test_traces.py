"""What evaluations leave in a process and in its cluster: nothing. What a pause holds: the window."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
from leaks import POOL_THREADS
from scripts import Scripts, eventually

from parcoll import Connection, parallel

EVALUATIONS = 72  # each way to finish and to leave, as often as comes round
MIB = 2**20
# The allocator's leavings, on the user's side and in a worker: that many evaluations grow 1 to 4 MiB
# the first time round; one that kept its elements, or its program, would be 72 MiB.
MORE_MIB = 20
# dask's clients keep a connection for each request that they had under way at once; one evaluation that
# leaves one would be 72 of them.
POOLED = 8
LARGE = bytes(MIB)


class LeftError(Exception):
    """What a consumer raises in the middle."""


def slowly(x: Any) -> Any:
    time.sleep(0.0005)
    return x


def finish(number: int) -> None:
    kinds = number % 6
    numbers = parallel(range(200), partition_size=20).map(slowly)
    if kinds == 0:
        assert numbers.count() == 200
    elif kinds == 1:
        assert numbers.reduce(lambda a, b: a + b) == 19_900
    elif kinds == 2:
        assert numbers.fold(lambda a, b: a + b, 0) == 19_900
    elif kinds == 3:
        kept = parallel(range(200))
        kept.foreach(slowly)
        assert list(kept) == list(range(200))
    elif kinds == 4:
        assert sum(map(len, parallel([LARGE] * 8, partition_size=1).map(slowly))) == 8 * MIB
    else:
        text = LARGE.decode()  # in the program, which is a key of its own
        assert list(parallel(range(20)).map(lambda x: (x, len(text)))) == [(x, MIB) for x in range(20)]


def abandon(number: int) -> None:
    """Leave in the middle: drop, close, raise, take, an error of a function, of the source, of a reduce."""
    endless = parallel(itertools.count(), partition_size=10).map(slowly)
    kinds = number % 8
    if kinds == 0:
        results = iter(endless)
        next(results)
        del results
    elif kinds == 1:
        results = iter(endless)
        next(results)
        results.close()  # type: ignore[attr-defined]
    elif kinds == 2:
        with suppress(LeftError):
            for x in endless:
                if x == 30:
                    raise LeftError
    elif kinds == 3:
        assert endless.take(3) == [0, 1, 2]
    elif kinds == 4:
        with suppress(ZeroDivisionError):
            list(endless.map(lambda x: 1 // (x - 50)))
    elif kinds == 5:

        def broken() -> Iterator[bytes]:
            yield from [LARGE] * 5
            raise LeftError

        with suppress(LeftError):
            list(parallel(broken, partition_size=1).map(slowly))
    elif kinds == 6:
        with suppress(ZeroDivisionError):
            endless.reduce(lambda a, b: a + b // (b - 40))
    else:
        iter(endless)  # and never drawn from


def evaluate(number: int) -> None:
    (abandon if number % 3 == 0 else finish)(number // 3)


def held(cluster: Connection) -> dict[str, Any]:
    """Return what this process and the scheduler hold, in numbers and names."""
    gc.collect()
    process = psutil.Process()

    def of_scheduler(dask_scheduler: Any) -> dict[str, Any]:
        return {
            "tasks": len(dask_scheduler.tasks),
            "groups": len(dask_scheduler.task_groups),
            "clients": len(dask_scheduler.clients),
            "plugins": sorted(dask_scheduler.plugins),
            "wanted": sum(len(client.wants_what) for client in dask_scheduler.clients.values()),
            "topics": sorted(dask_scheduler.get_events()),
            "computations": len(dask_scheduler.computations),
            "replicas": sum(len(worker.has_what) for worker in dask_scheduler.workers.values()),
            "processing": sum(len(worker.processing) for worker in dask_scheduler.workers.values()),
        }

    def of_worker(dask_worker: Any) -> dict[str, int]:
        return {"tasks": len(dask_worker.state.tasks), "data": len(dask_worker.data)}

    client = cluster.engine.client
    return {
        "threads": sorted(t.name for t in threading.enumerate() if not t.name.startswith(POOL_THREADS)),
        "descriptors": process.num_fds(),
        "scheduler": client.run_on_scheduler(of_scheduler),
        "workers": sorted(client.run(of_worker).items()),
        "processes": sorted(child.pid for child in process.children(recursive=True)),
        "client": len(client.futures),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what differs, in full: pytest cuts long values."""
    return "\n".join(f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key])


def megabytes(cluster: Connection) -> dict[str, int]:
    """Return the memory of each process."""
    family = [psutil.Process(), psutil.Process(cluster.engine.way.host.pid)]
    family += family[1].children()
    return {str(process.pid): process.memory_info().rss // MIB for process in family}


def test_evaluations_a_third_of_them_abandoned_leave_what_was_there(cluster: Connection) -> None:
    for number in range(48):  # each kind, on each side
        evaluate(number)
    seen: list[dict[str, Any]] = []

    def is_as_before() -> bool:
        seen.append(held(cluster))
        more = seen[-1]["descriptors"] - before["descriptors"]
        return more <= POOLED and seen[-1] | {"descriptors": before["descriptors"]} == before

    def is_settled() -> bool:
        now = held(cluster)
        return not (now["scheduler"]["tasks"] or any(any(own.values()) for _, own in now["workers"]))

    # What was abandoned is finished by the workers, and released, some time later.
    assert eventually(is_settled, 20), held(cluster)
    time.sleep(1)
    before, memory = held(cluster), megabytes(cluster)
    for number in range(EVALUATIONS):
        evaluate(number)
    assert eventually(is_as_before, 20), differences(before, seen[-1])
    after = megabytes(cluster)
    assert after.keys() == memory.keys()
    assert all(after[pid] - memory[pid] < MORE_MIB for pid in memory), (memory, after)


def test_programs_that_refer_to_the_script_itself_do_not_stay_on_workers(scripts: Scripts) -> None:
    text = """
        import __main__, contextvars, gc
        from parcoll import connect, parallel
        class Kept:
            def itself(self): return __main__
        variable = contextvars.ContextVar("variable")
        variable.set(__main__)
        def look(_):
            gc.collect()
            return sum(type(one).__name__ == "Script" for one in gc.get_objects())
        with connect(n_workers=1):
            for number in range(25):
                list(parallel([1]).map(lambda x: (number, Kept().itself() and x, variable.get() and x)))
            print(*parallel([1]).map(look))
        """
    assert int(scripts.run_file(text)) < 10


def test_a_consumer_that_stops_reading_holds_the_window_and_no_more(cluster: Connection) -> None:
    """Not one element more is read while it does other things; workers hold what they have made."""
    drawn = 0

    def source() -> Iterator[bytes]:
        nonlocal drawn
        while True:
            drawn += 1
            yield LARGE[: MIB // 4]

    results = iter(parallel(source, partition_size=4).map(slowly))
    next(results)
    assert eventually(lambda: held(cluster)["scheduler"]["processing"] == 0, 20)
    before, memory = drawn, megabytes(cluster)
    time.sleep(3)
    assert drawn == before
    assert before <= 4 * 64  # partitions of the window
    after = megabytes(cluster)
    assert all(after[pid] - memory[pid] < MORE_MIB for pid in memory), (memory, after)
    next(results)
    for _ in range(40):
        next(results)
    assert drawn > before
    results.close()  # type: ignore[attr-defined]
