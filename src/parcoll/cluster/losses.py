"""Losses: what clients hear from their scheduler when it loses a worker, and workers when it loses a client.

dask runs the tasks of a lost worker again as they are, and fails a task whose workers were lost four times.
But an element may end each worker that runs it. So a session sends its tasks again itself, and after the
second loss in another way (`worker.isolation`).

A plugin in the scheduler reports losses. It is added when a client connects, in any scheduler. It travels
by value, since a scheduler may have no parcoll, so `LossDetector` needs only the standard library and
distributed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import cloudpickle
from distributed.diagnostics.plugin import SchedulerPlugin

from parcoll.errors import logger

LOST_TOPIC = "parcoll-lost-workers"
LEAVE_TOPIC = "parcoll-leaving-clients"
MAX_KEYS = 1000  # of the tasks that a lost worker had; dask gives a worker only a few at a time
PLUGIN_SECONDS = 5.0  # that an evaluation waits for the plugin; without it dask's own rules hold


class LossDetector(SchedulerPlugin):
    """Tells clients of workers that were lost, and of the tasks that each of them had."""

    name = "parcoll-losses"
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Remember the scheduler."""
        self.scheduler = scheduler
        self.last_calls: dict[str, Any] = {}  # what the workers are to call when a client has left
        self.calling: set[Any] = set()

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Have the workers do what a client has asked for that has left."""
        call = self.last_calls.pop(client, None)
        if call is not None:
            calling = asyncio.ensure_future(scheduler.broadcast(msg=call, on_error="ignore"))
            self.calling.add(calling)
            calling.add_done_callback(self.calling.discard)

    def log_event(self, topic: str, msg: Any) -> None:
        """Pass on dask's event of a worker that is gone, unless it was told to go."""
        if topic == LEAVE_TOPIC:
            self.last_calls[msg["client"]] = msg["call"]
        if topic == "all" and msg.get("action") == "remove-worker" and not msg.get("expected"):
            tasks = list(msg.get("processing-tasks") or ())
            # Also tasks that had ended: the worker may have died while it sent a result.
            keys = [*tasks, *(msg.get("lost-computed-tasks") or ())][:MAX_KEYS]
            keys = [key for key in keys if isinstance(key, str)]
            self.scheduler.log_event(LOST_TOPIC, {"worker": msg["worker"], "tasks": len(tasks), "keys": keys})


Lose = Callable[[str, list[str]], None]  # gets the worker's address, and the keys of the tasks that it had

# By the client's stream to its scheduler: a client may come back to a new one, which lacks the plugin.
_added: weakref.WeakKeyDictionary[Any, Future[None]] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[Any, list[weakref.WeakMethod[Lose]]] = weakref.WeakKeyDictionary()


def listen(client: Any, add_plugin: bool = True) -> None:
    """Have a client hear of lost workers. Returns at once; does nothing the second time.

    `add_plugin` puts the plugin into the scheduler. Within a task of a worker it is there already, put there
    by the client that sent the task.
    """
    stream = client.scheduler_comm
    added: Future[None] = Future()
    # No lock: the client's loop would wait for whoever holds it, and that may be an evaluation in a handler.
    if stream is None or _added.setdefault(stream, added) is not added:
        return
    told = _told.setdefault(client, [])
    client.subscribe_topic(LOST_TOPIC, functools.partial(_heard, told))
    if add_plugin:
        with contextlib.suppress(RuntimeError):  # the client's loop has been closed
            client.loop.add_callback(_add, client, added)
    else:
        added.set_result(None)


def message(func: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return what a scheduler broadcasts to have all workers call a function of parcoll's."""
    # That of dask's own `Client.run`, which is not documented; `tests/dask_facts` fails when it changes.
    parts = {"function": func, "args": arguments, "kwargs": {}}
    return {"op": "run", "wait": True} | {name: pickle.dumps(part) for name, part in parts.items()}


def at_leave(client: Any, func: Callable[..., Any], *arguments: Any) -> None:
    """Have all workers call a function when this client has left its scheduler, in whatever way."""
    stream = client.scheduler_comm
    added = None if stream is None else _added.get(stream)
    if added is not None:
        with contextlib.suppress(TimeoutError):
            added.result(PLUGIN_SECONDS)
    client.log_event(LEAVE_TOPIC, {"client": client.id, "call": message(func, *arguments)})


def register(client: Any, lose: Lose) -> None:
    """Have a session's method called when its client hears of a lost worker, until `unregister`.

    It is called in the client's loop. Returns when the plugin is in the scheduler.
    """
    _told.setdefault(client, []).append(weakref.WeakMethod(lose))
    stream = client.scheduler_comm  # None where the scheduler was lost just now
    added = None if stream is None else _added.get(stream)
    if added is not None:
        with contextlib.suppress(TimeoutError):
            added.result(PLUGIN_SECONDS)


def unregister(client: Any, lose: Lose) -> None:
    """Have the method called no more."""
    with contextlib.suppress(ValueError):
        _told.setdefault(client, []).remove(weakref.WeakMethod(lose))


def _heard(told: list[weakref.WeakMethod[Lose]], event: tuple[float, dict[str, Any]]) -> None:
    try:
        worker, tasks = str(event[1]["worker"]), int(event[1]["tasks"])
        keys = [key for key in event[1]["keys"] if isinstance(key, str)]
    except (LookupError, TypeError, ValueError):
        return  # our plugin has not sent this
    logger.warning("the cluster lost the worker %s, with %d tasks: they run again", worker, tasks)
    for method in list(told):
        if (lose := method()) is not None:
            lose(worker, keys)


async def _add(client: Any, added: Future[None]) -> None:
    try:
        register_plugin = client.scheduler.register_scheduler_plugin
        await register_plugin(plugin=_pickled(), name=LossDetector.name, idempotent=True)
    except Exception as error:  # a scheduler may refuse to unpickle
        logger.info("the scheduler cannot report lost workers: %s: %s", type(error).__name__, str(error))
    finally:
        added.set_result(None)


@functools.cache
def _pickled() -> bytes:
    """Pickle the plugin with its class: the scheduler may not have parcoll."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(LossDetector())
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return pickled
