"""The local cluster as an engine: starts at once, is waited for at the first task."""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from parcoll.cluster.following import Followers
from parcoll.errors import ClusterLostError, ClusterStartError, lost_for_good
from parcoll.evaluation.engine import Follower
from parcoll.local.host import Host
from parcoll.local.imports import import_whole
from parcoll.log import logger
from parcoll.watch.stats import Stats
from parcoll.wire.payload import Packed, Payload
from parcoll.wire.sharing import Sharing
from parcoll.worker.program import Program

if TYPE_CHECKING:
    from parcoll.cluster.engine import DistributedEngine
    from parcoll.cluster.session import DistributedSession

MAX_KILLED = 4  # clusters that are killed while they start, one after the other, before that is the error


class LocalEngine:
    """A host process, and the client that talks to its scheduler; another one where it dies."""

    renews = True
    in_background = True

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: int | float | str | None = "auto",
    ) -> None:
        self._settings = (n_workers, threads_per_worker, memory_limit)
        self._host = Host(*self._settings)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._engine: DistributedEngine | None = None
        self._closed = False
        self._sharing = Sharing()
        self._followers = Followers()

    def _connected(self) -> DistributedEngine:
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                raise lost_for_good("the local cluster is closed")
            if not self._host.alive or (self._engine is not None and not self._engine.connected):
                self._renew()
            if self._engine is None:
                self._engine = self._connect()
                self._followers.renew(self._engine.follow)
            # Folders may have come to the path since: a notebook's, a test runner's.
            self._engine.search_path = tuple(folder or os.getcwd() for folder in sys.path)
            return self._engine

    def _connect(self) -> DistributedEngine:
        for _ in range(MAX_KILLED):
            try:
                return self._connect_once()
            except (ClusterStartError, ClusterLostError, OSError, RuntimeError):
                if not self._host.was_killed:
                    raise
                logger.warning("%s; another one is started", self._host.failure)
            self._host.close()
            self._host = Host(*self._settings)
        return self._connect_once()

    def _connect_once(self) -> DistributedEngine:
        # Imported while the host process imports the same.
        import_whole("parcoll.cluster.clients", "parcoll.cluster.engine", lean=True)
        from parcoll.cluster.clients import client_of_host, close_lost
        from parcoll.cluster.engine import DistributedEngine

        ready = self._host.wait_ready()
        logger.info("local cluster of %d workers started, %s", ready.n_workers, ready.address)
        client = client_of_host(ready.address, ready.credentials.security())
        try:
            return DistributedEngine(
                client, direct=True, why_lost=self._failure, sharing=self._sharing, reporting=True
            )
        except BaseException:
            close_lost(client)
            raise

    def _renew(self) -> None:
        """Start another cluster, since this one's host or scheduler is gone."""
        logger.warning("%s; another one is started", self._host.failure or "the local cluster was lost")
        if self._engine is not None:
            from parcoll.cluster.clients import close_lost

            close_lost(self._engine.client)
            self._engine = None
        self._host.close()
        self._host = Host(*self._settings)

    def _failure(self) -> str | None:
        return "the local cluster was closed" if self._closed else self._host.failure

    @property
    def usable(self) -> bool:
        """Tell whether this process started the cluster and it still runs."""
        return not self._closed and os.getpid() == self._pid and self._host.alive

    @property
    def client(self) -> Any:
        """The client of the cluster's scheduler."""
        return self._connected().client

    @property
    def address(self) -> str:
        """The scheduler's address."""
        return self._host.wait_ready().address

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address, after the template in dask's configuration."""
        link: str = self.client.dashboard_link
        return link

    def open(self, program: Program, label: str, keep: bool) -> DistributedSession:
        """Start an evaluation, when the cluster is ready."""
        engine = self._connected()
        if engine.interrupted:
            from parcoll.cluster.interrupted import end_abandoned

            end_abandoned(engine.client, lambda: list(engine.waiting))
            engine.interrupted = False
        return self._connected().open(program, label, keep)

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Pickle the value, into shared memory where it is large and needed once."""
        return Packed.pack(value) if lasting else self._sharing.pack(value)

    def memory_limit(self) -> float:
        """Return what each worker may hold, in bytes."""
        return self._host.wait_ready().memory_limit or math.inf

    def threads(self) -> int:
        """Return how many threads the workers have."""
        return self._connected().threads()

    def fetch(self, handle: Any) -> Payload | None:
        """Bring a kept result here."""
        return self._connected().fetch(handle)

    def follow(self, stats: Stats) -> Follower | None:
        """Publish the evaluation on the dashboard's page."""
        return self._followers.add(stats, self._connected().follow)

    def persist(self, bag: Any) -> Any:
        """Compute a bag on the cluster."""
        return self._connected().persist(bag)

    def close(self) -> None:
        """End the client and the cluster. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._sharing.close()
            if os.getpid() == self._pid:
                if self._engine is not None:
                    from parcoll.cluster.clients import close_lost

                    close_lost(self._engine.client)
                self._host.close()
                logger.info("local cluster closed")
