"""Evaluations inside evaluations: none of them waits for something that waits for it."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pytest
from bare import bare_cluster

from parcoll import connect, parallel


def total(n: int) -> int:
    return parallel(range(n)).map(lambda x: x + 1).reduce(lambda a, b: a + b)


def test_two_levels_deep(cluster):
    def twice(n: int) -> int:
        return parallel([n, n]).map(total).reduce(lambda a, b: a + b)

    assert list(parallel([1, 2, 3]).map(twice)) == [2, 6, 12]


def test_in_a_thread_that_the_function_started(cluster):
    assert list(parallel([2]).map(total)) == [3], "the worker has a client of its own from here on"

    def in_thread(n: int) -> list[int]:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.extend(parallel(range(n)).map(str)))
        thread.start()
        thread.join()
        return found

    assert list(parallel([1, 2, 3]).map(in_thread)) == [["0"], ["0", "1"], ["0", "1", "2"]]


def test_an_iterator_that_one_task_leaves_to_another(cluster):
    def leave_one(n: int) -> int:
        import builtins

        kept = builtins.__dict__.setdefault("kept_by_a_test", [])
        stream = iter(parallel(range(30)).map(lambda x: x + n))
        first = next(stream)
        kept.append(stream)
        if len(kept) > 1:
            kept.pop(0)
        return first

    assert list(parallel(range(8), partition_size=1).map(leave_one)) == list(range(8))
    assert list(parallel([30, 30]).map(total)) == [465, 465]


@pytest.mark.parametrize("where", ["import importing_module\n", ""])
def test_while_a_module_is_imported_by_a_worker(cluster, tmp_path, monkeypatch, where):
    """The module's top level evaluates; the function comes from it, or imports it."""
    name = f"importing_module{len(where)}"
    (tmp_path / f"{name}.py").write_text(
        "from parcoll import parallel\n"
        "NUMBERS = list(parallel(range(4)).map(lambda x: x + 1))\n"
        "def first(x):\n    return x + NUMBERS[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if where:

        def first(x: int) -> int:
            import importlib

            return importlib.import_module(name).first(x)
    else:
        import importlib

        first = importlib.import_module(name).first
    assert list(parallel(range(6), partition_size=1).map(first)) == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_is_killed_once_costs_no_result_and_doubles_none(cluster, tmp_path: Path):
    """Elements under way run again elsewhere; what arrives is exact and in order."""

    def kill_once(x: int) -> int:
        if x == 50:
            try:
                os.close(os.open(tmp_path / "killed", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return x * 2
            os.kill(os.getpid(), signal.SIGKILL)
        return x * 2

    chain = parallel(range(200), partition_size=5).map(kill_once)
    assert list(chain) == [x * 2 for x in range(200)]
    assert (tmp_path / "killed").exists()
    (tmp_path / "killed").unlink()
    assert chain.reduce(lambda a, b: a + b) == sum(x * 2 for x in range(200))
    assert (tmp_path / "killed").exists()


def test_reduce_over_a_long_stream_leaves_the_scheduler_small(cluster):
    """Else it would remember each task, with its data, that the value was made of."""
    sizes: list[int] = []
    client = cluster.engine.client

    def source():
        for number in range(600):
            if number % 100 == 99:
                sizes.append(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
            yield number

    chain = parallel(source, partition_size=1).map(lambda x: x)
    assert chain.reduce(lambda a, b: a + b) == sum(range(600))
    assert max(sizes) < 400, sizes


def in_a_thread(n: int) -> int:
    """Count in a thread of one's own, as a library would that the function uses."""

    def inner(n: int) -> int:
        return parallel(range(n)).map(abs).count()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(inner, n).result(timeout=20)


def in_a_task_s_own_client(n: int) -> int:
    """The same where the worker has a client, which is dask's current one there; it may be passed on."""
    client = distributed.get_client()

    def inner(n: int) -> int:
        return parallel(range(n)).map(abs).count() + parallel(range(n), client=client).map(abs).count()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(inner, n).result(timeout=20) // 2


def in_two_threads(n: int) -> int:
    found: list[int] = []
    threads = [threading.Thread(target=lambda k=k: found.append(total(k))) for k in (n + 1, n + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [total(n + 1), total(n + 2)]
    return n


def in_a_copy_of_the_context(n: int) -> int:
    """In such a thread `get_worker` answers, though it is not the task's."""

    async def count() -> int:
        return await asyncio.wait_for(asyncio.to_thread(lambda: parallel(range(n)).map(abs).count()), 20)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(contextvars.copy_context().run, total, n)
        assert found.result(timeout=20) == n * (n + 1) // 2
    return asyncio.run(count())


def in_the_task_s_thread_too(n: int) -> int:
    before = parallel(range(n)).map(abs).count()
    assert in_a_thread(n) == before
    return parallel(range(n)).map(abs).count()


def in_threads_of_inner_functions(n: int) -> int:
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: list(parallel([n, n]).map(in_a_thread)))
        assert found.result(timeout=20) == [n, n]
    return sum(parallel([n, n]).map(in_a_copy_of_the_context)) // 2


def in_a_fork(n: int) -> int:
    """It has a copy of its worker, which does nothing there."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found: int = pool.map_async(total, [n]).get(20)[0]
    return found - n * (n - 1) // 2


THREADS = [in_a_thread, in_a_task_s_own_client, in_two_threads, in_a_copy_of_the_context]
THREADS += [in_the_task_s_thread_too, in_threads_of_inner_functions, in_a_fork]


@pytest.fixture(scope="module", params=["local", "remote"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give a client of a local cluster, and of one whose only worker, with one thread, has no parcoll."""
    if request.param == "local":
        yield request.getfixturevalue("cluster").engine.client
        return
    with bare_cluster(tmp_path_factory.mktemp("bare"), 1) as bare, connect(bare.address) as connection:
        yield connection.engine.client


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.parametrize("func", THREADS)
def test_in_threads_that_a_function_starts(client: Any, func: Callable[[int], int], timeout: Any) -> None:
    """They cannot leave the worker's thread to the tasks that they would wait for, and start no cluster."""
    started = time.monotonic()
    assert list(parallel([3, 4], client=client, timeout=timeout).map(func)) == [3, 4]
    assert time.monotonic() - started < 20
    assert count_of_hosts(client) == 0


def count_of_hosts(client: Any) -> int:
    """Return how many clusters the worker processes have started."""

    def hosts() -> int:
        import sys

        current = sys.modules.get("parcoll.connecting.current")
        return int(
            current is not None and current.default is not None and current.default.current is not None
        )

    return sum(client.run(hosts).values())
