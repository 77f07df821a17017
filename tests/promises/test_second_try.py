"""Whatever works in a function's first try works in every other, and under `timeout=`: its worker is there.

Partitions whose worker has died twice, and all partitions of a chain with a timeout, run in a process beside
a worker. What dask gives to tasks is there too: the worker, its plugins, a client of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import psutil
import pytest
from bare import bare_cluster
from distributed.diagnostics.plugin import WorkerPlugin
from scripts import append, eventually, lines

from parcoll import connect, parallel

SECONDS = 60.0  # that a call may take: enough on a machine that others use, too


class Shop(WorkerPlugin):
    """What a user's plugin gives to functions: data, what cannot be pickled, and methods."""

    name = "shop"

    def setup(self, worker: Any) -> None:
        self.prices = {"apple": 3}
        self.lock = threading.Lock()
        self.sold: list[int] = []
        self.stream = (n for n in range(1_000_000))
        worker.currency = "EUR"

    def sell(self, number: int, *, price: int = 1) -> int:
        with self.lock:
            self.sold.append(number)
        return number * price


_bare: list[Any] = []  # the cluster whose workers nobody replaces


@pytest.fixture(scope="module", params=["local", "remote"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, leaves_no_trace: None
) -> Iterator[Any]:
    """Give a client of parcoll's own cluster, and of one whose workers have no parcoll."""
    with contextlib.ExitStack() as stack:
        _bare.clear()
        if request.param == "remote":
            _bare.append(stack.enter_context(bare_cluster(tmp_path_factory.mktemp("bare"), 2)))
        connection = connect(_bare[0].address) if _bare else connect(n_workers=2)
        found = stack.enter_context(connection).engine.client
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        found.register_plugin(Shop())
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        yield found


def bring_workers(client: Any, count: int) -> None:
    """Have the cluster have so many, after others were killed. A local one brings its own, which are two."""

    def are_there() -> bool:
        found = workers_of(client).values()
        return len(found) >= (count if _bare else 2) and all(map(is_alive, found))

    for _ in range(count - len(workers_of(client)) if _bare else 0):
        _bare[0].add_worker()
    assert eventually(are_there, 60)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def made() -> Any:
    """Return a function and a class that travel by value: a bare scheduler has no module of tests."""

    def double(x: int) -> int:
        return 2 * x

    class Counter:
        total = 0

        def add(self, x: int) -> int:
            self.total += x
            return x

    return double, Counter


double, Counter = made()


def worker(x: int) -> Any:
    found = distributed.get_worker()
    assert found.address.startswith(("tcp://", "tls://"))
    assert found.get_current_task()
    assert found.state.nthreads == 1
    assert not hasattr(found, "no_such_attribute")
    return x


def attribute_of_the_worker(x: int) -> Any:
    found = distributed.get_worker()
    assert found.currency == "EUR"
    found.seen = getattr(found, "seen", 0) + 1
    return x


def plugin(x: int) -> Any:
    shop = distributed.get_worker().plugins["shop"]
    assert shop.prices["apple"] == 3
    assert dict(shop.prices) == {"apple": 3}
    with shop.lock:
        shop.prices["pear"] = 4
        assert sorted(shop.prices) == ["apple", "pear"]
        del shop.prices["pear"]
    assert shop.sell(x, price=3) == 3 * x
    assert x in shop.sold
    assert next(shop.stream) < next(shop.stream)
    with pytest_raises(TypeError):
        shop.sell()
    return x


class pytest_raises:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, *rest: Any) -> bool:
        assert kind is self.kind
        return True


def a_client(x: int) -> Any:
    assert distributed.get_client().submit(double, x, pure=False).key
    return x


def clients_task(x: int) -> Any:
    with distributed.worker_client() as found:
        futures = found.map(double, [x, x + 1], pure=False)
        assert found.gather(futures) == [2 * x, 2 * x + 2]
    return x


def seceded(x: int) -> Any:
    future = distributed.get_client().submit(double, x, pure=False)
    distributed.secede()
    assert future.result() == 2 * x
    distributed.rejoin()
    return x


def scattered(x: int) -> Any:
    with distributed.worker_client() as found:
        future = found.scatter([x], hash=False)[0]
        assert future.result() == x
        assert found.submit(double, future, pure=False).result() == 2 * x
    return x


def computed(x: int) -> Any:
    import dask

    assert dask.delayed(double)(x).compute() == 2 * x
    return x


def lock(x: int) -> Any:
    with distributed.Lock("lock"):
        return x


def semaphore(x: int) -> Any:
    with distributed.Semaphore(max_leases=1, name="semaphore"):
        return x


def queue(x: int) -> Any:
    found = distributed.Queue("queue")
    found.put(x)
    assert isinstance(found.get(timeout=10), int)
    return x


def event(x: int) -> Any:
    found = distributed.Event("event")
    found.set()
    assert found.wait(timeout=10)
    return x


def variable(x: int) -> Any:
    found = distributed.Variable(f"variable-{x}")
    found.set(x)
    return found.get(timeout=10)


def actor(x: int) -> Any:
    with distributed.worker_client() as found:
        counter = found.submit(Counter, actor=True, pure=False).result()
        assert counter.add(x).result() == x
        assert counter.total == x
    return x


def events(x: int) -> Any:
    distributed.get_worker().log_event("topic", {"x": x})
    distributed.print("printed", x)
    return x


KINDS: list[Callable[[int], Any]] = [
    *(worker, attribute_of_the_worker, plugin, a_client, clients_task, seceded, scattered, computed, lock),
    *(semaphore, queue, event, variable, actor, events),
]


def leave_out_what_schedulers_import(func: Callable[[int], Any]) -> None:
    """Skip what a scheduler without this module cannot do: it loads the class of an actor itself."""
    if _bare and func is actor:
        pytest.skip("modules of the script's own travel to workers, not to a scheduler")


@pytest.mark.parametrize("func", KINDS)
def test_in_a_worker_and_beside_it(client: Any, func: Callable[[int], Any]) -> None:
    leave_out_what_schedulers_import(func)
    assert list(parallel(range(4), client=client, partition_size=2).map(func)) == list(range(4))
    started = time.monotonic()
    chain = parallel(range(4), client=client, partition_size=2, timeout=SECONDS)
    assert list(chain.map(func)) == list(range(4))
    assert time.monotonic() - started < SECONDS


def test_an_actor_that_a_function_captures(client: Any) -> None:
    made = client.submit(Counter, actor=True, pure=False)  # kept: the actor lives as long
    counter = made.result()

    def func(x: int) -> int:
        with distributed.worker_client():
            return int(counter.add(x).result())

    assert list(parallel(range(4), client=client).map(func)) == list(range(4))
    assert list(parallel(range(4), client=client, timeout=SECONDS).map(func)) == list(range(4))


def test_functions_of_folds_and_filters(client: Any) -> None:
    def add(total: int, x: int) -> int:
        assert distributed.get_worker().currency
        return total + x

    chain = parallel(range(20), client=client, timeout=SECONDS, partition_size=5)
    assert chain.filter(lambda x: distributed.get_worker().currency).fold(add, 0) == 190


def test_the_time_that_it_takes_to_join_the_scheduler_is_not_the_function_s(client: Any) -> None:
    """A process beside a worker has yet to import distributed, and to find its scheduler."""
    chain = parallel(range(4), client=client, timeout=0.5, partition_size=2)
    assert list(chain.map(variable)) == list(range(4))


def workers_of(client: Any) -> dict[str, int]:
    """Return the processes of the workers, as the scheduler knows them."""

    def pids(dask_scheduler: Any) -> dict[str, int]:
        return {address: state.pid for address, state in dask_scheduler.workers.items()}

    return client.run_on_scheduler(pids)  # type: ignore[no-any-return]


def slowly(func: Callable[[int], Any]) -> Callable[[int], Any]:
    def slow(x: int) -> Any:
        time.sleep(0.02)
        return func(x)

    return slow


@pytest.mark.parametrize("func", [worker, clients_task, variable])
def test_after_a_worker_was_killed(client: Any, func: Callable[[int], Any]) -> None:
    """Whatever killed it: the partitions that it had run again in another one."""
    killed: set[int] = set()

    def kill() -> None:
        pid = min(workers_of(client).values())
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    bring_workers(client, 2)
    killer = threading.Timer(0.7, kill)
    killer.start()
    chain = parallel(range(100), client=client, on_error="skip", partition_size=5).map(slowly(func))
    assert list(chain) == list(range(100))
    killer.join()
    assert chain.stats.failed == 0
    assert killed


SLOW = [pytest.param(func, marks=pytest.mark.slow) for func in (a_client, actor, events)]


@pytest.mark.parametrize("func", [plugin, clients_task, lock, *SLOW])
def test_in_the_process_beside_a_worker_after_its_workers_were_killed(
    client: Any, func: Callable[[int], Any], tmp_path: Path
) -> None:
    """Two of them, or four: dask gives the task to another one itself, before it is told that it may not."""
    leave_out_what_schedulers_import(func)

    def deadly_in_workers(x: int) -> Any:
        if x == 7:
            append(tmp_path / "tries", "")
            if not sys.modules["parcoll.worker.program"].isolated:
                os.kill(os.getpid(), signal.SIGKILL)
        return func(x)

    bring_workers(client, 5)
    chain = parallel(range(12), client=client, on_error="skip", partition_size=4).map(deadly_in_workers)
    assert list(chain) == list(range(12))
    assert chain.stats.failed == 0
    assert 3 <= len(lines(tmp_path / "tries")) <= 5


def test_one_loss_isolates_nothing(client: Any, tmp_path: Path) -> None:
    def kill_once(x: int) -> int:
        if x == 7 and not lines(tmp_path / "tries"):
            append(tmp_path / "tries", "")
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    bring_workers(client, 2)
    pids = set(parallel(range(12), client=client, partition_size=12).map(kill_once))
    assert pids <= set(workers_of(client).values())
