"""A failure of what parcoll itself sets up on a worker is never an element's: it ends the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import distributed
import pytest
from scripts import eventually

from parcoll import Connection, ParcollError, WorkerSetupError, parallel
from parcoll.errors import ElementError


@pytest.fixture
def broken(cluster: Connection) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Give what runs a function in the workers that breaks something; they are replaced afterwards."""
    client = cluster.engine.client
    client.wait_for_workers(2)
    yield client.run

    def end() -> None:
        import os

        os._exit(1)

    def pids(dask_scheduler: Any) -> list[int]:
        return [state.pid for state in dask_scheduler.workers.values()]

    before = set(client.run_on_scheduler(pids))
    client.run(end, on_error="ignore")
    assert eventually(
        lambda: len(after := set(client.run_on_scheduler(pids))) == 2 and not after & before, 60
    )


def no_processes() -> None:
    import errno
    import subprocess

    def refuse(*args: Any, **settings: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    subprocess.Popen = refuse  # type: ignore[assignment,misc]


def processes_that_do_not_start() -> None:
    from parcoll.world import boot

    boot.also_import.append("os.no_such_module")


def processes_that_are_too_large() -> None:
    from parcoll.worker import isolation

    isolation.memory_left = lambda: 1.0


def no_memory_for_distributed() -> None:
    from parcoll.worker import isolation

    isolation.memory_left = lambda: 45e6  # it has 20e6 before, 55e6 with distributed


@pytest.mark.parametrize("on_error", ["skip", lambda error: error])
@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (no_processes, "no process could be started beside a worker"),
        (processes_that_do_not_start, "ended with exit code 1 while parcoll set it up, 2 times"),
        (processes_that_are_too_large, "and memory_limit leaves it"),
        (no_memory_for_distributed, "and memory_limit leaves it"),
    ],
)
def test_there_is_no_process_beside_the_worker(
    broken: Any, breakage: Callable[[], None], message: str, on_error: Any
) -> None:
    broken(breakage)
    chain = parallel(range(10), timeout=30, partition_size=10, on_error=on_error, retries=2).map(of_client)
    with pytest.raises(WorkerSetupError, match=message):
        list(chain)
    assert not chain.errors
    assert [step.failed for step in chain.stats.steps] == [0]


def no_scheduler() -> None:
    import pickle

    import dask

    from parcoll.worker.this_worker import OPERATIONS

    dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    OPERATIONS["joining"] = lambda answers, worker: pickle.dumps(("tcp://127.0.0.1:9", {}))


def a_worker_that_hangs_up() -> None:
    from parcoll.worker.this_worker import Answers

    Answers._serve = lambda self, connection: connection.close()  # type: ignore[method-assign]


def of_client(x: int) -> Any:
    return distributed.get_client().scheduler.address and x


def of_client_or_else(x: int) -> Any:
    """A function may take what it is told for something else, and go on."""
    try:
        return of_client(x)
    except Exception:
        return -1


@pytest.mark.parametrize("func", [of_client, of_client_or_else])
@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (no_scheduler, "a process beside a worker cannot join the scheduler at tcp://127.0.0.1:9"),
        (a_worker_that_hangs_up, "a process beside a worker cannot ask its worker"),
    ],
)
def test_functions_do_not_find_what_dask_gives_to_tasks(
    broken: Any, breakage: Callable[[], None], message: str, func: Any
) -> None:
    broken(breakage)
    chain = parallel(range(10), timeout=30, partition_size=10, on_error="skip", retries=2).map(func)
    with pytest.raises(WorkerSetupError, match=message):
        list(chain)
    with pytest.raises(WorkerSetupError, match=message):
        parallel(range(10), timeout=30).reduce(lambda a, b: func(b))


def test_it_is_an_error_of_parcoll_and_not_an_element_s() -> None:
    assert issubclass(WorkerSetupError, ParcollError)
    assert not issubclass(WorkerSetupError, ElementError)
