"""The private parts of dask's worker and its thread pool that `local.main_thread` leans on."""

from __future__ import annotations

import inspect
import threading

import distributed
from distributed import threadpoolexecutor, worker
from distributed.worker_state_machine import RescheduleEvent, SecedeEvent, WorkerState

from parcoll import Connection
from parcoll.local.levels import key_of, level_of
from parcoll.local.main_thread import MainThreadPoolExecutor


def test_dask_s_pool_has_the_parts_that_ours_puts_others_in_the_place_of() -> None:
    pool = threadpoolexecutor.ThreadPoolExecutor(1)
    assert {"_threads", "_work_queue", "_rejoin_list", "_rejoin_lock", "_shutdown"} <= vars(pool).keys()
    assert pool._threads == set()
    assert hasattr(pool, "_adjust_thread_count")
    assert isinstance(threadpoolexecutor.thread_state, threading.local)
    assert isinstance(threadpoolexecutor.threads_lock, type(threading.Lock()))
    for function, parts in {
        threadpoolexecutor._worker: ("proceed", "_rejoin_list.pop()", "_threads.add", "task.run()"),
        threadpoolexecutor.secede: ("_threads.remove(threading.current_thread())", "_adjust_thread_count()"),
        threadpoolexecutor.rejoin: ("_rejoin_list.append", "e.submit(", "event.wait()"),
    }.items():
        text = inspect.getsource(function)
        assert all(part in text for part in parts), function


def test_dask_s_worker_runs_tasks_in_the_pool_that_it_is_given() -> None:
    text = inspect.getsource(distributed.Worker.execute)
    assert '"ThreadPoolExecutor" in str(type(e))' in text
    assert "ThreadPoolExecutor" in MainThreadPoolExecutor.__name__
    assert inspect.iscoroutinefunction(distributed.Worker.execute)
    assert list(inspect.signature(distributed.Worker.execute).parameters) == ["self", "key", "stimulus_id"]
    assert "active_threads[ident] = key" in inspect.getsource(worker._run_task)
    assert "executor._work_queue.queue.clear()" in inspect.getsource(distributed.Worker.close)


def test_dask_s_worker_can_be_told_that_a_task_leaves_its_slot_or_goes_to_another() -> None:
    assert {"key", "compute_duration", "stimulus_id"} <= set(inspect.signature(SecedeEvent).parameters)
    assert {"key", "stimulus_id"} <= set(inspect.signature(RescheduleEvent).parameters)
    transitions = WorkerState._TRANSITIONS_TABLE
    for pair in (
        ("executing", "long-running"),
        ("long-running", "rescheduled"),
        ("cancelled", "rescheduled"),
    ):
        assert pair in transitions, pair


def test_a_worker_of_ours_has_our_pool(cluster: Connection) -> None:
    def kinds(dask_worker: distributed.Worker) -> tuple[str, str, str]:
        pool = dask_worker.executors["default"]
        return type(dask_worker).__name__, type(pool).__name__, pool._main.name

    cluster.engine.client.wait_for_workers(2, timeout=30)
    found = set(cluster.engine.client.run(kinds).values())
    assert found == {("Worker", "MainThreadPoolExecutor", "MainThread")}


def test_the_level_of_an_evaluation_is_in_its_keys() -> None:
    assert level_of(key_of("map-lambda", "1234567-8", 3, 90)) == 3
    assert [level_of(key) for key in ("map-1", "report", ("x", 1), 7, "word-4-5-6")] == [None] * 5
    assert level_of("report-" + key_of("map", "1234567-8", 0, 1)) == 0
