"""The local cluster as an engine: starts at once, is waited for at the first task."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from parcoll.engine.lean import lean_imports
from parcoll.engine.local import Host
from parcoll.engine.sharing import Sharing
from parcoll.errors import ClusterLostError
from parcoll.pickling import Packed, Payload
from parcoll.program import Program

if TYPE_CHECKING:
    from parcoll.engine.distributed import DistributedEngine
    from parcoll.engine.session import DistributedSession


class LocalEngine:
    """A host process, and the client that talks to its scheduler."""

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: int | float | str | None = "auto",
    ) -> None:
        self._host = Host(n_workers, threads_per_worker, memory_limit)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._engine: DistributedEngine | None = None
        self._closed = False
        self._sharing = Sharing()

    def _connected(self) -> DistributedEngine:
        with self._lock:
            if self._closed or not self.usable:
                raise ClusterLostError("the local cluster is closed")
            if self._engine is None:
                self._engine = self._connect()
            # Folders may have come to the path since: a notebook's, a test runner's.
            self._engine.search_path = tuple(folder or os.getcwd() for folder in sys.path)
            return self._engine

    def _connect(self) -> DistributedEngine:
        # Imported while the host process imports the same.
        with lean_imports():
            from parcoll.engine.clients import client_of_host
            from parcoll.engine.distributed import DistributedEngine

        ready = self._host.wait_ready()
        return DistributedEngine(
            client_of_host(ready.address, ready.credentials.security()),
            direct=True,
            why_lost=self._failure,
            sharing=self._sharing,
            reporting=True,
        )

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
        """The dashboard's address."""
        return self._host.wait_ready().dashboard_link

    def open(self, program: Program, label: str, keep: bool) -> DistributedSession:
        """Start an evaluation, when the cluster is ready."""
        return self._connected().open(program, label, keep)

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Pickle the value, into shared memory where it is large and needed once."""
        return Packed.pack(value) if lasting else self._sharing.pack(value)

    def threads(self) -> int:
        """Return how many threads the workers have."""
        return self._connected().threads()

    def fetch(self, handle: Any) -> Payload | None:
        """Bring a kept result here."""
        return self._connected().fetch(handle)

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
                    self._engine.client.close(timeout=2)
                self._host.close()
