"""A dask scheduler that others run, as an engine: joined anew where it went away and came back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from parcoll.cluster import clients
from parcoll.cluster.clients import client_of, close_lost
from parcoll.cluster.engine import DistributedEngine
from parcoll.cluster.following import Followers
from parcoll.cluster.joining import is_ready_here, join
from parcoll.cluster.session import DistributedSession
from parcoll.errors import ClusterLostError, ConnectError, lost_for_good
from parcoll.evaluation.engine import Follower
from parcoll.log import logger
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Packed, Payload
from parcoll.worker.program import Program

TRY_SECONDS = 2.0  # for one attempt: the file with the address, or the cluster object, may name another then
LAST_SECONDS = 0.2  # for the last one, where less is left
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0  # between two attempts


class Way(Protocol):
    """How to come to a scheduler, again and again."""

    finds: bool  # it looks for the scheduler itself; otherwise the client does, whether asked or not

    def client(self, seconds: float) -> Any:
        """Return a client that is connected; ConnectError where there is none within that time."""

    def leave(self, client: Any) -> None:
        """Let go of a client, whose scheduler may be gone."""


class OurWay:
    """A client of our own, to an address that is asked for anew each time."""

    finds = True

    def __init__(self, address: Callable[[], str], security: Any = None) -> None:
        self._address = address
        self._security = security

    def client(self, seconds: float) -> Any:
        """Join the scheduler with a new client."""
        return client_of(self._address(), self._security, seconds)

    def leave(self, client: Any) -> None:
        """Close the client."""
        close_lost(client)


class TheirWay:
    """A client of the user's, in whose place no other is put: dask has it look for its scheduler itself."""

    finds = False

    def __init__(self, client: Any) -> None:
        self._client = client

    def client(self, seconds: float) -> Any:
        """Wait until the client has a scheduler."""
        deadline = time.monotonic() + seconds
        while self._client.status != "running":
            if self._client.status != "connecting":
                raise lost_for_good(
                    "the dask client that parcoll was given is closed, by its owner or because it found its "
                    "scheduler no more within its own timeout: distributed.Client(..., timeout=) sets that"
                )
            if time.monotonic() >= deadline:
                raise ConnectError("the dask client that parcoll was given has not found its scheduler yet")
            time.sleep(0.05)
        return self._client

    def leave(self, client: Any) -> None:
        """Leave it as it is."""


class RemoteEngine:
    """One connection to a scheduler.

    With `reconnect` seconds an evaluation whose scheduler is gone waits that long for one to answer in its
    place, and goes on there. Without, it ends with an error.
    """

    def __init__(self, way: Way, ship: Sequence[Any] = (), reconnect: float | None = None) -> None:
        self.renews = reconnect is not None
        self.in_background = True
        self._way = way
        self._ship = ship
        self._seconds = reconnect or 0.0
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._followers = Followers()
        self._engine = self._join(clients.JOIN_SECONDS)

    def _join(self, seconds: float) -> DistributedEngine:
        client = self._way.client(seconds)
        try:
            return joined_engine(client, self._ship)
        except BaseException:
            self._way.leave(client)
            raise

    def _connected(self) -> DistributedEngine:
        deadline = time.monotonic() + self._seconds
        if self._engine.connected and not self._closed.is_set():
            return self._engine  # without the lock, which a thread may hold that waits
        with self._lock:
            if self._closed.is_set() or os.getpid() != self._pid:
                raise lost_for_good(f"the connection to the dask scheduler {self.address} is closed")
            if not self._engine.connected:
                self._engine = self._joined_again(deadline)
                self._followers.renew(self._engine.follow)
            return self._engine

    def _joined_again(self, deadline: float) -> DistributedEngine:
        lost, started = self._engine.lost(), time.monotonic()
        if not self.renews:
            if self._way.finds or self._engine.client.status != "running":
                raise lost_for_good(f"{lost}: connect() anew, or with reconnect=, the seconds to wait for it")
        else:
            logger.warning("%s; waiting up to %g s for it to come back", lost, self._seconds)
        self._way.leave(self._engine.client)
        pause = FIRST_PAUSE
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                found = self._join(min(max(left, LAST_SECONDS), TRY_SECONDS))
            except (ConnectError, ClusterLostError) as error:
                left = deadline - time.monotonic()
                if left <= 0 or getattr(error, "for_good", False):
                    within = f" within {self._seconds:g} s" if self.renews else ""
                    raise lost_for_good(f"{lost}, and was not joined again{within}: {error}") from error
            else:
                logger.info("joined %s after %.1f s", found.address, time.monotonic() - started)
                if found.direct is None:  # its workers come later; the last ones were of the same network
                    found.direct = self._engine.direct
                return found
            if self._closed.wait(min(pause, left)):
                raise lost_for_good(f"{lost}, and its connection was closed")
            pause = min(1.5 * pause, LAST_PAUSE)

    @property
    def connected(self) -> bool:
        """Tell whether there is a scheduler at this moment."""
        return self._engine.connected

    @property
    def client(self) -> Any:
        """The client of the scheduler, or of the last one that was joined."""
        return self._engine.client

    @property
    def address(self) -> str:
        """The scheduler's address, or that of the last one that was joined."""
        return self._engine.address

    @property
    def sends_ahead(self) -> bool:
        """Tell whether large partitions go straight to the workers."""
        return self._engine.sends_ahead

    def open(self, program: Program, label: str, keep: bool) -> DistributedSession:
        """Start an evaluation; waits for a scheduler that is gone."""
        return self._connected().open(program, label, keep)

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Pickle the value."""
        return Packed.pack(value)

    # These serve an evaluation under way: where they fail, it asks for a new session, and that one waits.

    def memory_limit(self) -> float:
        """Return what the largest worker may hold, in bytes."""
        return self._engine.memory_limit()

    def threads(self) -> int:
        """Return how many threads the workers have."""
        return self._engine.threads()

    def fetch(self, handle: Any) -> Payload | None:
        """Bring a kept result here."""
        return self._engine.fetch(handle)

    def persist(self, bag: Any) -> Any:
        """Compute a bag on the cluster."""
        return self._engine.persist(bag)

    def follow(self, stats: Stats) -> Follower:
        """Publish the evaluation on the dashboard's page; of the next scheduler, where there is none now."""
        return self._followers.add(stats, self._engine.follow)

    def close(self) -> None:
        """Let go of the scheduler. May be called twice, and while another thread waits for one."""
        self._closed.set()
        if os.getpid() == self._pid:
            with self._lock:
                self._way.leave(self._engine.client)


def joined_engine(client: Any, ship: Sequence[Any] = ()) -> DistributedEngine:
    """Return an engine for a `distributed.Client`, whose cluster is made ready for our tasks.

    `ship` adds modules to those that are sent. Within a task of a worker that has parcoll there is nothing to
    make ready.
    """
    if client.asynchronous:
        raise TypeError("parcoll needs a synchronous client: this one was made with asynchronous=True")
    if is_ready_here():
        return DistributedEngine(client)
    engine = DistributedEngine(client, ship=ship)
    with engine.errors():
        if not engine.connected:
            raise engine.lost()
        engine.direct = join(client).direct
        engine.reach = lambda: join(client).direct
    return engine
