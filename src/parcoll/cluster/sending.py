"""Sending: tasks that pass through the scheduler as bytes, and large partitions that go past it.

The scheduler unpickles what a client submits, and pickles it again for a worker. Of our tasks it sees only
names of the standard library, and bytes. So it needs neither parcoll nor a user's modules, and nothing costs
more because it is large or strange.

With a program goes the state of this process, which `current_world` reads before each evaluation.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import os
import pickle
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from dask._task_spec import Task, TaskRef
from dask.base import normalize_token

from parcoll.errors import logger
from parcoll.evaluation.engine import Job
from parcoll.text import message_of
from parcoll.wire.codec import by_reference, by_value
from parcoll.wire.payload import Packed
from parcoll.wire.reducers import names_made
from parcoll.worker.tasks import Awaited, Body
from parcoll.world import handlers, own_state, patches
from parcoll.world import world as worlds
from parcoll.world.world import THINGS, World

LARGE_BYTES = 2**20  # it takes three requests, some 5 ms, which have to pay
WAIT_SECONDS = 2.0  # until there is a worker at all


def opaque_task(key: str, func: Callable[..., Any], *arguments: Any, queues: bool = False) -> Task:
    """Return the task `func(*arguments)`; other tasks make the arguments that are a `TaskRef`.

    With `queues` it waits at the scheduler until a worker has room for it, wherever that is.
    """
    awaited = [argument for argument in arguments if isinstance(argument, TaskRef)]
    positions = iter(range(len(awaited)))
    placed = tuple(Awaited(next(positions)) if isinstance(a, TaskRef) else a for a in arguments)
    call = Task(None, pickle.loads, by_reference(Body(func, placed)))
    # dask guesses this from how many tasks of this name there are, and of those that they need, and changes
    # its mind where five evaluations run at once. What does not queue goes past what does, which then waits
    # until all the others have ended. `tests/dask_facts` fails when dask has this parameter no more.
    return Task(key, operator.call, call, *awaited, _data_producer=queues)


class Graph(dict[Any, Any]):
    """Tasks by their keys, which name them: no two graphs have a key in common.

    dask hashes a graph that it is given, to name it, with all that its tasks hold: 0.3 ms for two tasks, and
    20 ms for each MB. To other processes it is a plain dict.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


@normalize_token.register(Graph)  # type: ignore[untyped-decorator]
def _(graph: Graph) -> list[Any]:
    return list(graph)


class Ahead:
    """The large partitions of one evaluation, which lie on workers until their tasks have ended.

    What is inside a task passes through the scheduler, which unpickles it, keeps it and pickles it again: at
    85 MB/s, and at 300 MB/s this way. But dask keeps one copy and cannot make another. If its worker dies,
    the task is cancelled, and the session sends the partition again, inside its task.
    """

    def __init__(self, client: Any, token: str) -> None:
        self._client = client
        self._token = token
        self._numbers = itertools.count()
        self._futures: dict[Job, Any] = {}
        self._works = True

    def send(self, jobs: Sequence[Job]) -> None:
        """Send the large partitions of these jobs, spread over the workers."""
        large = [job for job in jobs if isinstance(job.elements, Packed) and job.sent_bytes >= LARGE_BYTES]
        if not large or not self._works:
            return
        data = {f"partition-{self._token}-{next(self._numbers)}": job.elements for job in large}
        try:
            futures = self._client.scatter(data, direct=True, hash=False, timeout=WAIT_SECONDS)
        except (OSError, TimeoutError):  # no worker is there, or one left just now
            self._works = False
            return
        self._futures |= zip(large, futures.values(), strict=True)

    def reference(self, job: Job) -> TaskRef | None:
        """Return what stands for a job's partition in its task; None if it was not sent ahead."""
        future = self._futures.get(job)
        return None if future is None else TaskRef(future.key)

    def forget(self, job: Job) -> bool:
        """Let go of a job's partition. Returns whether it was sent ahead."""
        return self._futures.pop(job, None) is not None

    def clear(self) -> None:
        """Let go of all partitions."""
        self._futures.clear()


class SentBuffers:
    """Large data that functions capture, which lies on the workers of one client's cluster.

    Each buffer is known by its content. It is sent to one worker, dask brings it to each other one that needs
    it, and there it stays until an evaluation captures other data, or the connection is closed.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._futures: dict[bytes, Any] = {}  # of the evaluation that sent or used some last

    def place(self, buffers: Sequence[Any]) -> tuple[list[Any], int] | None:
        """Return futures of these buffers, and how many bytes were sent now; None if that did not work."""
        known = self._futures
        names = [hashlib.sha256(buffer).digest() for buffer in buffers]  # 1.7 GB/s, twice as fast as blake2b
        there = {name: future for name, future in known.items() if future.status == "finished"}
        missing = {name: buffer for name, buffer in zip(names, buffers, strict=True) if name not in there}
        keys = {name: f"captured-{_number(os.urandom(8))}" for name in missing}
        data = {keys[name]: Packed(b"", buffer) for name, buffer in missing.items()}
        try:
            sent = self._client.scatter(data, direct=True, hash=False, timeout=WAIT_SECONDS) if data else {}
        except (OSError, TimeoutError):  # no worker is there, or one left just now
            return None
        there |= {name: sent[key] for name, key in keys.items()}
        self._futures = {name: there[name] for name in names}
        return [there[name] for name in names], sum(memoryview(part).nbytes for part in missing.values())

    def clear(self) -> None:
        """Let go of all of it."""
        self._futures = {}


def _number(content: bytes) -> int:
    return int.from_bytes(content, "big")


class _WorldReader:
    """What was read of this process's state last, and what was packed of it."""

    def __init__(self, of_machine: bool) -> None:
        self._things = [thing for thing in THINGS if of_machine or not thing.of_machine]
        self._of_machine = of_machine
        self._last: list[Any] = []
        self._packed = b""
        self._world: World | None = None
        self._refused: list[tuple[str, str]] = []

    def read(self) -> World:
        own = own_state.read(self._of_machine)  # first: patches are looked for in what it names
        found = [thing.read() for thing in self._things]
        world = self._world
        if world is None or found != self._last:
            self._last, self._packed = found, self._pack(found)
        elif own is world.own and world.is_of_here:  # no fork since
            return world
        digest = hashlib.blake2b(self._packed, digest_size=16).hexdigest()
        self._world = World(digest, self._packed, self._of_machine, own, worlds.this_process)
        return self._world

    def _pack(self, found: list[Any]) -> bytes:
        parts: dict[str, bytes] = {}
        for thing, value in zip(self._things, found, strict=True):
            try:
                parts[thing.name] = _pickled(thing.pack(value))
            except Exception as error:  # a handler or a warning's class that cannot travel
                handlers.look()
                self._refused.append((thing.name, message_of(error)))
        self._refused += patches.refused
        patches.refused.clear()
        return by_reference(parts)

    def tell(self) -> None:
        """Log what could not be packed. Not while others wait: a handler of the log may evaluate too."""
        while self._refused:
            logger.warning("%s cannot be sent to the workers: %s", *self._refused.pop())


def _pickled(value: Any) -> bytes:
    try:
        content = by_reference(value)
    except Exception:
        return by_value(value)
    return by_value(value) if names_made(content) else content


_readers = {of_machine: _WorldReader(of_machine) for of_machine in (False, True)}
_reading = threading.RLock()


def current_world(of_machine: bool) -> World:
    """Return the state of this process, for workers on this machine or on others.

    Within a task it is for such workers as this process was given its own for.
    """
    given = worlds.given
    reader = _readers[of_machine if given is None else given.of_machine]
    with _reading:
        world = reader.read()
    reader.tell()
    return world


def _renew_lock() -> None:
    global _reading
    _reading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


# Turns --------------------------------------------------------------------------------------------

KEPT = 2048  # turns that are remembered, for rests and for what is sent again: more than are under way


class Turns:
    """Whose tasks go first where several evaluations of one client run at once.

    Each gets on by as many tasks as the others: start-time fair queuing (Goyal, Vin and Cheng 1996) with
    tasks of equal cost. A task is never given an earlier turn than the last one that has come back. So one
    that begins, or goes on, does not go past all that the others still have to do, nor they past it.
    """

    def __init__(self) -> None:
        self.reached = 0
        self._running: set[int] = set()

    def begin(self) -> OwnTurns:
        """Return the turns of one more evaluation."""
        own = OwnTurns(self)
        self._running.add(id(own))
        return own

    def end(self, own: OwnTurns) -> None:
        """Count one no more among those that run. Behind the last one, turns are as for a new client."""
        self._running.discard(id(own))
        if not self._running:
            self.reached = 0


class OwnTurns:
    """Those of one evaluation."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._orders: list[int] = []  # of jobs, ascending
        self._numbers: list[int] = [0]  # their turns, behind that of none

    def of(self, order: int) -> int:
        """Return the turn of a job. One that is cut from another, or sent again, goes where that did."""
        if not self._orders or order > self._orders[-1]:
            self._orders.append(order)
            self._numbers.append(max(self._numbers[-1] + 1, self._turns.reached))
            if len(self._orders) > 2 * KEPT:
                del self._orders[:KEPT], self._numbers[:KEPT]
        return self._numbers[max(bisect_right(self._orders, order), 1)]

    def came(self, order: int) -> None:
        """Note that a job has come back."""
        self._turns.reached = max(self._turns.reached, self.of(order))
