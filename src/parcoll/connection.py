"""`connect`: which cluster evaluates, for a block or for the rest of a program."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from parcoll.engine import choose
from parcoll.engine.cluster import LocalEngine
from parcoll.engine.inline import InlineEngine
from parcoll.text import describe

ALLOWED = (
    'None (a local cluster), a scheduler\'s address ("tcp://..." or "tls://..."), "inline", '
    "a distributed.Client, or a dask cluster object"
)


class Connection:
    """A cluster in force: evaluations run on it until it is closed, or its `with` block ends."""

    def __init__(self, engine: Any, owned_client: Any = None) -> None:
        self.engine = engine
        self._owned_client = owned_client
        self._closed = False
        choose.enter(self)

    @property
    def address(self) -> str:
        """The scheduler's address; "inline" where there is none."""
        if isinstance(self.engine, InlineEngine):
            return "inline"
        if isinstance(self.engine, LocalEngine):
            return self.engine.address
        address: str = self.engine.client.scheduler.address
        return address

    @property
    def dashboard_link(self) -> str | None:
        """The address of dask's dashboard; None where there is no cluster."""
        if isinstance(self.engine, InlineEngine):
            return None
        if isinstance(self.engine, LocalEngine):
            return self.engine.dashboard_link
        link: str = self.engine.client.dashboard_link
        return link

    def close(self) -> None:
        """Put back what was in force before; end the cluster if `connect` started it."""
        if self._closed:
            return
        self._closed = True
        choose.leave(self)
        if isinstance(self.engine, LocalEngine):
            self.engine.close()
        elif self._owned_client is not None:
            self._owned_client.close(timeout=2)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<Connection: closed>"
        return f"<Connection: {self.address}>"


def connect(
    target: Any = None,
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | float | str | None = "auto",
    security: Any = None,
) -> Connection:
    """Return a connection on which all evaluations run from now on. Starts or joins it at once.

    `target`: None starts a local cluster; an address (`"tcp://host:8786"`, `"tls://..."`) joins a
    scheduler, with `security` for TLS; a `distributed.Client` or a dask cluster object is used as it
    is; `"inline"` evaluates in this process, which is what a debugger wants.
    `n_workers`, `threads_per_worker`, `memory_limit` (of each worker) are for a local cluster: one
    worker process with one thread for each core that this process may use.

    The connection is a context manager; used bare, it lasts until `close()` or the end of the
    program. The innermost one counts, in all threads. Closing it ends what it started and nothing else.

    Raises TypeError for another target, ConnectError where no scheduler answers, ClusterStartError
    where the local cluster does not start.

    >>> from parcoll import connect, parallel
    >>> with connect("inline"):
    ...     list(parallel("abc").map(str.upper))
    ['A', 'B', 'C']
    """
    settings = (n_workers, threads_per_worker, memory_limit) != (None, 1, "auto")
    if target is not None and settings:
        raise TypeError(
            "n_workers, threads_per_worker and memory_limit are for a local cluster, which "
            f"connect() starts without a target; the target is {describe(target)}"
        )
    if security is not None and not isinstance(target, str):
        raise TypeError("security is for joining a scheduler by its address")
    if target is None:
        engine = LocalEngine(n_workers, threads_per_worker, memory_limit)
        try:
            _ = engine.client  # a cluster that does not start says so here
        except BaseException:
            engine.close()
            raise
        return Connection(engine)
    if isinstance(target, str):
        return _connect_address(target, security)
    return _connect_object(target)


def _connect_address(target: str, security: Any) -> Connection:
    if target == "inline":
        return Connection(InlineEngine())
    if "://" not in target:
        raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}")
    from parcoll.engine.clients import client_of

    client = client_of(target, security)
    return Connection(choose.engine_of_client(client), client)


def _connect_object(target: Any) -> Connection:
    from parcoll.engine.clients import client_of, is_client

    if is_client(target):
        return Connection(choose.engine_of_client(target))
    if hasattr(target, "scheduler_address"):
        client = client_of(target.scheduler_address, getattr(target, "security", None))
        return Connection(choose.engine_of_client(client), client)
    raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}")
