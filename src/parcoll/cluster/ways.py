"""Ways to a cluster: start one, connect to a scheduler, or use a client of the user's."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from parcoll.clock import time
from parcoll.errors import ClusterLostError, ClusterStartError, ConnectError, logger
from parcoll.evaluation.engine import lost_for_good
from parcoll.local import limits
from parcoll.local.host import Host, Ready
from parcoll.local.imports import import_whole
from parcoll.text import counted
from parcoll.wire.payload import Sharing
from parcoll.world import handlers

if TYPE_CHECKING:
    from parcoll.cluster.engine import DistributedEngine

MAX_KILLED = 4  # clusters that are killed while they start, one after the other; then it is an error
TRY_SECONDS = 2.0  # for one attempt; then the file or the cluster object may name another address
LAST_SECONDS = 0.2  # for the last attempt, if less time is left
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0  # between two attempts


class Way(Protocol):
    """How to get to a cluster, again and again."""

    renews: bool  # an evaluation whose cluster was lost may go on
    starts: bool  # another cluster is there within a second, so whoever asks may wait for it

    @property
    def alive(self) -> bool:
        """Whether the cluster is there, as far as can be told without a client."""

    def connect(
        self, before: DistributedEngine | None, since: float, closed: threading.Event
    ) -> DistributedEngine:
        """Return an engine to replace the one before, which was lost at `since` or earlier."""

    def prepare(self, engine: DistributedEngine) -> None:
        """Make the cluster ready for another evaluation."""

    def close(self, engine: DistributedEngine | None) -> None:
        """Let go of the cluster, whose scheduler may be gone."""

    def gone(self, engine: DistributedEngine | None) -> str:
        """Say what is closed."""


class StartedHere:
    """A local cluster: a host process, and a client of its scheduler. If it dies, another one is started.

    Host process and clients are made, noted here and ended where no signal's handler comes between. So
    whatever a handler raises, and whenever, `close` ends all of them.
    """

    renews = True
    starts = True

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: int | float | str | None = "auto",
    ) -> None:
        self._settings = (n_workers, threads_per_worker, memory_limit)
        self._host: Host | None = None  # not started yet
        self._clients: list[Any] = []  # ours that are not closed
        self._changing = threading.Lock()  # of these two; taken where no handler comes between
        self.sharing = Sharing()
        self._closed = False

    @property
    def host(self) -> Host:
        """The host, which was started."""
        assert self._host is not None
        return self._host

    @property
    def alive(self) -> bool:
        """Whether the host runs."""
        return self._host is not None and self._host.alive

    def start(self) -> None:
        """Start the host process, if that was not done yet. It is ready some tenths of a second later."""
        if self._host is None:
            with limits.told():
                handlers.unbroken(self._start)

    def _start(self) -> None:
        with self._changing:
            if self._host is None:
                self._begin()

    def _start_again(self) -> None:
        with self._changing:
            self._end_clients()
            self.host.close()
            self._begin()

    def _begin(self) -> None:
        self._check_open()
        self._host = Host(*self._settings)

    def _check_open(self) -> None:
        if self._closed:
            raise ClusterStartError("the local cluster is closed")

    def _end_clients(self) -> None:
        if self._clients:
            from parcoll.cluster.clients import close_lost  # lazy: distributed

            while self._clients:
                close_lost(self._clients[-1])
                self._clients.pop()

    def connect(
        self, before: DistributedEngine | None, since: float, closed: threading.Event
    ) -> DistributedEngine:
        """Connect to the cluster when it is ready; if it died, start another one."""
        self.start()
        if before is not None or not self.host.alive:
            logger.warning("%s; another one is started", self.host.failure or "the local cluster was lost")
            handlers.unbroken(self._start_again)
        with limits.told():
            return self._connected()

    def _connected(self) -> DistributedEngine:
        for _ in range(MAX_KILLED):
            try:
                return self._connect()
            except (ClusterStartError, ClusterLostError, OSError, RuntimeError):
                if not self.host.was_killed:
                    raise
                logger.warning("%s; another one is started", self.host.failure)
            handlers.unbroken(self._start_again)
        return self._connect()

    def _connect(self) -> DistributedEngine:
        # Imported while the host process imports the same.
        import_whole("parcoll.cluster.clients", "parcoll.cluster.engine", lean=True)
        from parcoll.cluster.sending import current_world  # lazy: distributed

        current_world(of_machine=True)  # looks at all modules, the first time, while the host starts
        ready = self.host.wait_ready()
        logger.info("local cluster of %s started, %s", counted(ready.n_workers, "worker"), ready.address)
        return handlers.unbroken(functools.partial(self._engine_on, ready))

    def _engine_on(self, ready: Ready) -> DistributedEngine:
        from parcoll.cluster.clients import client_of_host  # lazy: distributed
        from parcoll.cluster.engine import DistributedEngine  # lazy: distributed
        from parcoll.cluster.link import Link  # lazy: distributed

        with self._changing:
            self._check_open()
            self._end_clients()  # of a thread that did not wait for its end
            self._clients.append(client_of_host(ready.address, ready.credentials.security()))
            link = Link(self._clients[-1], direct=True, sharing=self.sharing, why_lost=self._why_lost)
            memory_limit = ready.memory_limit or math.inf
            return DistributedEngine(link, reporting=True, worker_memory=lambda: memory_limit)

    def _why_lost(self) -> str | None:
        return "the local cluster was closed" if self._closed else self.host.failure

    def prepare(self, engine: DistributedEngine) -> None:
        """End what was interrupted."""
        link = engine.link
        if link.interrupted:
            from parcoll.cluster.workers import end_abandoned  # lazy: only after Ctrl-C

            end_abandoned(link.client, engine.keys_wanted)
            link.interrupted = False

    def close(self, engine: DistributedEngine | None) -> None:
        """End the client and the cluster."""
        self._closed = True
        handlers.unbroken(self._end)
        logger.info("local cluster closed")

    def _end(self) -> None:
        with self._changing:
            try:
                self.sharing.close()
                self._end_clients()
            finally:
                if self._host is not None:
                    self._host.close()

    def gone(self, engine: DistributedEngine | None) -> str:
        """Say what is closed."""
        return "the local cluster is closed"


class _AtScheduler:
    """A dask scheduler that others run. An evaluation waits `reconnect` seconds for it if it is gone."""

    starts = False
    alive = True
    finds = True  # it looks for a lost scheduler; otherwise the client does so by itself

    def __init__(self, ship: Sequence[Any], reconnect: float | None) -> None:
        self.renews = reconnect is not None
        self._ship = ship
        self._seconds = reconnect or 0.0

    def client(self, seconds: float) -> Any:
        """Return a client that is connected; ConnectError if there is none within that time."""
        raise NotImplementedError

    def leave(self, client: Any) -> None:
        """Let go of a client, whose scheduler may be gone."""
        raise NotImplementedError

    def connect(
        self, before: DistributedEngine | None, since: float, closed: threading.Event
    ) -> DistributedEngine:
        """Connect to the scheduler; if it was lost, wait for it."""
        if before is None:
            from parcoll.cluster.clients import JOIN_SECONDS  # lazy: distributed

            return self._connect(JOIN_SECONDS)
        lost, started = before.link.lost(), time.monotonic()
        if not self.renews:
            if self.finds or before.client.status != "running":
                raise lost_for_good(
                    f"{lost}: connect() again, or pass reconnect=, the seconds to wait for it"
                )
        else:
            logger.warning("%s; waiting up to %g s for it to come back", lost, self._seconds)
        self.leave(before.client)
        pause, deadline = FIRST_PAUSE, since + self._seconds
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                found = self._connect(min(max(left, LAST_SECONDS), TRY_SECONDS))
            except (ConnectError, ClusterLostError) as error:
                left = deadline - time.monotonic()
                if left <= 0 or getattr(error, "_final", False):
                    within = f" within {self._seconds:g} s" if self.renews else ""
                    raise lost_for_good(f"{lost}, and did not come back{within}: {error}") from error
            else:
                logger.info("reconnected to %s after %.1f s", found.address, time.monotonic() - started)
                if (
                    found.link.direct is None
                ):  # its workers come later; the last ones were of the same network
                    found.link.direct = before.link.direct
                return found
            if closed.wait(min(pause, left)):
                raise lost_for_good(f"{lost}, and its connection was closed")
            pause = min(1.5 * pause, LAST_PAUSE)

    def _connect(self, seconds: float) -> DistributedEngine:
        from parcoll.cluster.engine import engine_of_client  # lazy: distributed

        client = self.client(seconds)
        try:
            return engine_of_client(client, self._ship)
        except BaseException:
            self.leave(client)
            raise

    def prepare(self, engine: DistributedEngine) -> None:
        """Do nothing: its workers are not ours to end, and have folders of their own."""

    def close(self, engine: DistributedEngine | None) -> None:
        """Let go of the client, and of what its workers have for our functions."""
        if engine is not None:
            try:
                engine.link.captured.clear()
                engine.end_objects()
            finally:
                self.leave(engine.client)

    def gone(self, engine: DistributedEngine | None) -> str:
        """Say what is closed."""
        at = engine.address if engine is not None else "that was never reached"
        return f"the connection to the dask scheduler {at} is closed"


class AtAddress(_AtScheduler):
    """A scheduler whose address is asked for anew each time, with a client of our own."""

    def __init__(
        self,
        address: Callable[[], str],
        security: Any = None,
        ship: Sequence[Any] = (),
        reconnect: float | None = None,
    ) -> None:
        super().__init__(ship, reconnect)
        self._address = address
        self._security = security

    def client(self, seconds: float) -> Any:
        """Connect to the scheduler with a new client."""
        from parcoll.cluster.clients import client_of  # lazy: distributed

        return client_of(self._address(), self._security, seconds)

    def leave(self, client: Any) -> None:
        """Close the client."""
        from parcoll.cluster.clients import close_lost  # lazy: distributed

        close_lost(client)


class OfClient(_AtScheduler):
    """A client of the user's, which is never replaced: dask lets it look for its scheduler itself."""

    finds = False

    def __init__(self, client: Any, ship: Sequence[Any] = (), reconnect: float | None = None) -> None:
        super().__init__(ship, reconnect)
        self._client = client

    def client(self, seconds: float) -> Any:
        """Wait until the client has a scheduler."""
        deadline = time.monotonic() + seconds
        while self._client.status != "running":
            if self._client.status != "connecting":
                raise lost_for_good(
                    "the dask client that parcoll was given is closed: its owner closed it, or it did not "
                    "find its scheduler again in the seconds of distributed.Client(..., timeout=)"
                )
            if time.monotonic() >= deadline:
                raise ConnectError("the dask client that parcoll was given has not found its scheduler yet")
            time.sleep(0.05)
        return self._client

    def leave(self, client: Any) -> None:
        """Leave the client as it is."""
