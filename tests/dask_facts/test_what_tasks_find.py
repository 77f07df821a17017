"""The private parts of distributed by which a process beside a worker has functions find that worker."""

from __future__ import annotations

import contextvars
import inspect
import threading
from typing import Any

import distributed
import distributed.threadpoolexecutor
import distributed.worker
import pytest
from bare import bare_cluster

from parcoll.worker import standin
from parcoll.worker.this_worker import IN_MEMORY, REMOTE


def test_get_worker_still_asks_a_context_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`standin._enter` puts another one in its place, which has a value in all threads."""
    assert isinstance(distributed.worker._worker_cvar, contextvars.ContextVar)
    stand_in = object()
    monkeypatch.setattr(distributed.worker, "_worker_cvar", contextvars.ContextVar("w", default=stand_in))
    found: list[Any] = [distributed.get_worker()]
    thread = threading.Thread(target=lambda: found.append(distributed.get_worker()))
    thread.start()
    thread.join()
    assert found == [stand_in, stand_in]


def test_get_client_still_asks_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        def _get_client(self, timeout: Any = None) -> Any:
            return self, timeout

    worker = Worker()
    monkeypatch.setattr(distributed.worker, "_worker_cvar", contextvars.ContextVar("w", default=worker))
    assert distributed.get_client(timeout=3) == (worker, 3)
    own = inspect.getsource(distributed.Worker._get_client)
    for part in ("security=self.security", "direct_to_workers=True", 'name="worker"', "set_as_default=True"):
        assert part in own, "the stand-in makes its client as the worker does"


def test_secede_and_rejoin_still_go_through_the_thread_s_pool() -> None:
    """`standin._Thread` stands for it."""
    told: list[bytes] = []

    class Channel:
        def tell(self, what: bytes) -> None:
            told.append(what)

    def secede_and_rejoin() -> None:
        state = distributed.threadpoolexecutor.thread_state
        state.proceed, state.executor = True, standin._Thread(Channel())  # type: ignore[arg-type]
        for _ in range(2):
            distributed.threadpoolexecutor.secede()
            with pytest.raises(KeyError):
                distributed.threadpoolexecutor.secede()
            distributed.threadpoolexecutor.rejoin()

    thread = threading.Thread(target=secede_and_rejoin)
    thread.start()
    thread.join(10)
    assert told == [standin.SECEDE, standin.REJOIN] * 2


def test_a_task_s_thread_still_has_its_key_and_its_start(tmp_path: Any) -> None:
    """By them dask's client and `worker_client` know that they are in a task."""

    def state() -> tuple[Any, ...]:
        found = distributed.worker.thread_state
        worker = distributed.get_worker()
        same = found.execution_state["worker"] is worker
        return found.key, found.start_time > 0, same, worker.get_current_task()

    with bare_cluster(tmp_path / "cluster", 1) as cluster, cluster.client() as client:
        future = client.submit(state)
        assert future.result(timeout=20) == (future.key, True, True, future.key)
        future.release()


def test_a_process_still_knows_its_workers_and_the_clients_that_they_made(tmp_path: Any) -> None:
    """`cluster.clients.is_of_worker` and `worker.this_worker.has_worker` ask for them."""

    def known() -> tuple[bool, bool, bool, str]:
        worker = distributed.get_worker()
        instances = worker in distributed.Worker._instances
        before = len(distributed.Worker._initialized_clients)
        made = distributed.get_client() in distributed.Worker._initialized_clients
        return instances, before == 0, made, worker.status.name

    with bare_cluster(tmp_path / "cluster", 1) as cluster, cluster.client() as client:
        assert client.submit(known).result(timeout=20) == (True, True, True, "running")


def test_what_lets_a_client_in_is_still_in_the_slots_of_its_security() -> None:
    slots = distributed.Security.__slots__
    assert {"require_encryption", "tls_ca_file", "tls_client_key", "tls_client_cert"} <= {*slots}
    first = distributed.Security(require_encryption=True, tls_ca_file="a", tls_client_key="b")
    fields = {name: getattr(first, name) for name in slots}
    second = distributed.Security(**fields)
    assert {name: getattr(second, name) for name in slots} == fields
    assert IN_MEMORY == "/proc/self/fd/"


def test_what_stands_for_something_on_the_scheduler_still_has_its_name() -> None:
    for name in REMOTE:
        assert getattr(distributed, name).__module__.startswith("distributed."), name
