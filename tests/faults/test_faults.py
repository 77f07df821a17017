"""Any process of a local cluster, at any moment: the answer is exact, each element is accounted for.

A fault is a row of FAULTS, a moment one of MOMENTS (`moments.py`); every pair is a test, and what it raises
is what `expected_error` says: for most, nothing.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from keyed_moments import KEYED, OFTEN_ENOUGH
from leaks import KEPT_THREADS, new_remains, remains
from moments import ELEMENTS, MOMENTS, Evaluated, Moment, Reached, work_at
from scripts import eventually, meanwhile
from victims import Victims, stop_for_a_while, strike

from parcoll import ClusterLostError, Connection, connect, parallel
from parcoll.watch.stats import Stats

WORKERS = 2


@dataclass(frozen=True)
class Fault:
    """What happens: from outside, to the worker that has reached the moment, or from within it."""

    name: str
    whom: Callable[[Victims, psutil.Process], list[psutil.Process]] | None = None
    how: Callable[[psutil.Process], None] = strike
    die: Callable[[], None] | None = None  # within a worker's element
    times: int = 1  # in a row: when the element runs again, it is struck again
    ends_cluster: bool = False


def its_worker(_: Victims, worker: psutil.Process) -> list[psutil.Process]:
    return [worker]


def all_workers(victims: Victims, _: psutil.Process) -> list[psutil.Process]:
    return victims.workers()


def its_scheduler(victims: Victims, _: psutil.Process) -> list[psutil.Process]:
    scheduler = victims.scheduler()
    assert scheduler is not None
    return [scheduler]


def its_host(victims: Victims, _: psutil.Process) -> list[psutil.Process]:
    host = victims.host()
    assert host is not None
    return [host]


def terminate(process: psutil.Process) -> None:
    strike(process, signal.SIGTERM)


def exit_at_once() -> None:
    os._exit(3)


def read_address_zero() -> None:
    ctypes.string_at(0)


FAULTS = [
    Fault("a worker, kill -9", its_worker),
    Fault("a worker, SIGTERM", its_worker, terminate),
    Fault("a worker is stopped for a while", its_worker, stop_for_a_while),
    Fault("a worker, os._exit from within", die=exit_at_once),
    Fault("a worker, segmentation fault", die=read_address_zero),
    Fault("a worker, kill -9, three times in a row", its_worker, times=3),
    Fault("all workers at once, kill -9", all_workers),
    Fault("the scheduler, kill -9", its_scheduler, ends_cluster=True),
    Fault("the host, kill -9", its_host, ends_cluster=True),
]
# Each takes the time of three starts, so these are for the moments that everybody's script has.
OFTEN = [
    Fault("the scheduler, kill -9, three times in a row", its_scheduler, times=3, ends_cluster=True),
    Fault("the host, kill -9, three times in a row", its_host, times=3, ends_cluster=True),
]
# What others show too, at most moments.
SLOW = ("a worker, SIGTERM", "a worker, kill -9, three times in a row")
PAIRS: list[Any] = [
    pytest.param(fault, moment, marks=pytest.mark.slow) if fault.name in SLOW else (fault, moment)
    for fault in FAULTS
    for moment in MOMENTS
]
PAIRS += [
    (fault, moment)
    if (moment.name, fault.name) in OFTEN_ENOUGH
    else pytest.param(fault, moment, marks=pytest.mark.slow)
    for fault in FAULTS
    for moment in KEYED
]
PAIRS += [(fault, MOMENTS[number]) for fault, number in zip(OFTEN, (1, 0), strict=True)]


def expected_error(fault: Fault, moment: Moment) -> type[Exception] | None:
    """What the evaluating call raises; None: the exact answer."""
    if fault.ends_cluster and moment.keeps:
        return ClusterLostError
    return None


def is_told(reached: Path) -> bool:
    return reached.exists() and reached.read_text().endswith("\n")


def chosen(fault: Fault, victims: Victims, told: Path) -> list[psutil.Process]:
    """Return whom the fault befalls, given the file in which an element's process says that it is there."""
    assert fault.whom is not None
    worker = victims.worker_of(int(told.read_text()))
    return [] if worker is None else fault.whom(victims, worker)


def wait_for_end(processes: list[psutil.Process]) -> None:
    """Return when processes that were struck are gone: their kernel gets to each some time later."""

    def is_gone(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.status() == psutil.STATUS_ZOMBIE
        return True

    eventually(lambda: all(map(is_gone, processes)), 10)


@contextmanager
def struck(fault: Fault, cluster: Connection, folder: Path) -> Iterator[list[str]]:
    """Strike each time that an element says it is there; gives what went wrong with that."""
    wrong: list[str] = []

    def watch(ended: threading.Event) -> None:
        victims = Victims(cluster)
        for number in range(fault.times):
            reached = folder / f"reached-{number}"
            while not is_told(reached):
                if ended.wait(0.002):
                    return
            found = chosen(fault, victims, reached)
            if not found:
                wrong.append(f"no worker runs the element, time {number + 1}")
            for process in found:
                fault.how(process)
            if fault.how is not stop_for_a_while:
                wait_for_end(found)
            (folder / f"struck-{number}").touch()

    with meanwhile(watch) if fault.whom is not None else nullcontext():
        yield wrong


@pytest.fixture(scope="module")
def shared(leaves_no_trace: None) -> Iterator[Connection]:
    """One cluster for the whole table: what a fault has ended of it is there again for the next one."""
    with connect(n_workers=WORKERS) as connection:
        list(parallel(range(100)).map(abs))
        yield connection


@pytest.mark.parametrize(("fault", "moment"), PAIRS, ids=lambda row: row.name.replace(" ", "-"))
def test_fault(fault: Fault, moment: Moment, shared: Connection, tmp_path: Path) -> None:
    before = remains()
    error = expected_error(fault, moment)
    reached = Reached(tmp_path, fault.times, fault.die)
    times = 1 if moment.once else fault.times
    with struck(fault, shared, tmp_path) as wrong:
        if error is None:
            check(moment.run(reached))
        else:
            with pytest.raises(error) as raised:
                moment.run(reached)
            assert "\n" not in str(raised.value)
    assert not wrong
    assert (tmp_path / f"reached-{times - 1}").exists(), "the moment never came"
    assert list(parallel(range(50)).map(abs)) == list(range(50))  # whatever happened before
    assert eventually(lambda: is_whole(shared), 10), f"workers: {Victims(shared).workers()}"
    assert eventually(lambda: not left_behind(shared, before)), left_behind(shared, before)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.whom], ids=lambda row: row.name)
def test_fault_while_the_connection_is_closed(fault: Fault, tmp_path: Path) -> None:
    """It ends all the same, with what the cluster had under way, and leaves nothing."""
    before = remains()
    with connect(n_workers=WORKERS) as own:
        reached = Reached(tmp_path, 1)
        source = parallel(range(ELEMENTS), partition_size=1)
        results = iter(source.map(functools.partial(work_at, reached, 3)))
        found = [next(results)]
        assert eventually(lambda: is_told(tmp_path / "reached-0"))
        # Found before the end begins, which may end them first.
        found_victims = chosen(fault, Victims(own), tmp_path / "reached-0")
        assert found_victims
        with meanwhile(lambda ended: [fault.how(process) for process in found_victims]):
            own.close()
        with pytest.raises(ClusterLostError, match="closed"):
            found += results
    assert found == [3 * x for x in range(len(found))]
    left = new_remains(before)
    assert not {name for name in left.pop("threads", set()) if not name.startswith(KEPT_THREADS)}
    assert not left


def left_behind(cluster: Connection, before: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return what was not there before, and is not the cluster's: another host has other processes."""
    left = {kind: names - before[kind] for kind, names in remains().items()}
    host = psutil.Process(cluster.engine.way.host.pid)
    of_cluster = {str(process.pid) for process in (host, *host.children(recursive=True))}
    left["processes"] = {text for text in left["processes"] if text.split()[0] not in of_cluster}
    left["folders"] = left["folders"] if len(remains()["folders"]) > 1 else set()
    left["threads"] = {name for name in left["threads"] if not name.startswith(KEPT_THREADS)}
    return {kind: names for kind, names in left.items() if names}


def check(evaluated: Evaluated) -> None:
    assert evaluated.made == evaluated.expected
    if evaluated.stats is not None:
        check_sums(evaluated.stats, evaluated.flows)


def check_sums(stats: Stats, flows: list[tuple[int, int]]) -> None:
    """Each element went through each step once, whatever ran again."""
    assert [(step.entered, step.left) for step in stats.steps] == flows
    for step in stats.steps:
        assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed
        assert (step.failed, step.replaced, step.retries) == (0, 0, 0)
    assert stats.elements_in == flows[0][0]
    assert stats.state == "ended"


def is_whole(cluster: Connection) -> bool:
    """Tell whether there are as many workers as were asked for, and the scheduler knows them."""
    running = {process.pid for process in Victims(cluster).workers()}
    known = cluster.engine.client.run_on_scheduler(
        lambda dask_scheduler: {state.pid for state in dask_scheduler.workers.values()}
    )
    return running == known and len(running) == WORKERS
