"""Evaluations inside evaluations: none of them waits for something that waits for it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from parcoll import parallel


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
