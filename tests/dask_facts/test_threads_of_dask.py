"""Threads: names of dask's, by which `connecting/current.py` knows them; what Python keeps for its end."""

from __future__ import annotations

import threading
from typing import Any

from distributed.utils import _offload_executor

from parcoll import Connection, parallel
from parcoll.connecting import current
from parcoll.evaluation.inline import InlineEngine


async def _name() -> str:
    return threading.current_thread().name


async def _evaluates() -> tuple[Any, int]:
    return type(current.engine_for(None)), parallel(range(3)).map(lambda x: x + 1).reduce(max)


def test_a_client_s_loop_has_a_thread_of_this_name_and_evaluates_in_this_process(cluster: Connection) -> None:
    client = cluster.engine.client
    assert client.sync(_name).startswith(current.THREADS_OF_DASK)
    assert client.sync(_evaluates) == (InlineEngine, 3)


def test_the_threads_that_pack_large_messages_have_this_name() -> None:
    name = _offload_executor.submit(lambda: threading.current_thread().name).result()
    assert name.startswith(current.THREADS_OF_DASK)


def test_python_registers_what_ends_threads_when_the_last_line_has_run() -> None:
    """`local.shutdown` calls it at once where that is too late."""
    registered: list[Any] = threading._threading_atexits  # type: ignore[attr-defined]
    before = list(registered)
    threading._register_atexit(print, "registered")  # type: ignore[attr-defined]
    assert len(registered) == len(before) + 1
    registered[:] = before
