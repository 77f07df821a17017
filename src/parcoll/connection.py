"""`connect`: which cluster evaluates, for a block or for the rest of a program."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from parcoll import arguments, current
from parcoll.cluster.renewing import RenewingEngine
from parcoll.cluster.ways import AtAddress, OfClient, StartedHere
from parcoll.errors import ConnectError
from parcoll.evaluation.engine import Engine
from parcoll.evaluation.inline import InlineEngine
from parcoll.log import logger
from parcoll.text import describe, short_repr

ALLOWED = (
    'None (a local cluster), a scheduler\'s address ("tcp://..." or "tls://...") or file, "inline", '
    "a distributed.Client, or a dask cluster object"
)


class Connection:
    """A cluster in force: evaluations run on it until it is closed, or its `with` block ends."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._closed = False
        current.enter(self)
        logger.debug("connected to %s", self.address)

    @property
    def address(self) -> str:
        """The scheduler's address; "inline" where there is none."""
        return self.engine.address

    @property
    def dashboard_link(self) -> str | None:
        """The address of the page that shows the cluster's pipelines; None where there is no cluster.

        It comes from dask's template (`distributed.dashboard.link`); dask's own dashboard, at
        `/status` instead of `/parcoll`, is linked there.
        """
        link = self.engine.dashboard_link
        return None if link is None else _page_link(link)

    def close(self) -> None:
        """Put back what was in force before; end the cluster if `connect` started it."""
        if self._closed:
            return
        self._closed = True
        current.leave(self)
        self.engine.close()

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

    def _repr_html_(self) -> str:
        """Return the same for a notebook, with a link to the page that shows the pipelines."""
        from html import escape

        text = f"<code>{escape(repr(self))}</code>"
        link = None if self._closed else self.dashboard_link
        if link is not None and link.startswith(("http://", "https://", "/")):
            text += f' <a href="{escape(link)}" target="_blank" rel="noopener">pipelines</a>'
        return f"<div>{text}</div>"


def _page_link(dashboard: str) -> str:
    """Return the page beside dask's first one; a template that ends otherwise says where to go itself."""
    return f"{dashboard.removesuffix('/status')}/parcoll" if dashboard.endswith("/status") else dashboard


def connect(
    target: Any = None,
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | float | str | None = "auto",
    security: Any = None,
    ship: Sequence[Any] = (),
    reconnect: float | None = None,
) -> Connection:
    """Return a connection on which all evaluations run from now on. Starts or joins it at once.

    `target`: None starts a local cluster; an address (`"tcp://host:8786"`, `"tls://..."`) joins a
    scheduler, with `security` for TLS, as does the path of a scheduler file; a `distributed.Client` or a
    dask cluster object is used as it is; `"inline"` evaluates in this process, which is what a debugger
    wants.
    `ship`: a scheduler's workers need dask only. parcoll and those modules of yours that no package
    installs are sent along, as far as the functions, or the script, use them; `ship` adds others by name,
    and leaves one out with "-name". What is in installed packages must be installed there too.
    `n_workers`, `threads_per_worker`, `memory_limit` (of each worker) are for a local cluster: one
    worker process with one thread for each core that this process may use.

    `reconnect`: seconds for which an evaluation waits where the scheduler is gone, as while it is restarted.
    When one answers again at the address (a file is read again, a cluster object asked again), it is joined
    anew, and what has no result yet is sent again: results come once, and in order. What `reduce`, `fold`
    and `foreach` had so far is gone; they begin again, unless their source can be read only once. Without
    it, `ClusterLostError` ends the evaluation, and all later ones of this connection. A client that you
    passed stays the one in use: dask has it look for its scheduler on its own, for as long as the `timeout`
    that it was made with, and `reconnect` says how long evaluations wait for that.

    The connection is a context manager; used bare, it lasts until `close()` or the end of the
    program. The innermost one counts, in all threads. Closing it ends what it started and nothing else.

    Raises TypeError for another target, ConnectError where no scheduler answers, ClusterStartError
    where the local cluster does not start.

    >>> from parcoll import connect, parallel
    >>> with connect("inline"):
    ...     list(parallel("abc").map(str.upper))
    ['A', 'B', 'C']
    """
    reconnect = arguments.reconnect(reconnect)
    settings = (n_workers, threads_per_worker, memory_limit) != (None, 1, "auto")
    if target is not None and settings:
        raise TypeError(
            "n_workers, threads_per_worker and memory_limit are for a local cluster, which "
            f"connect() starts without a target; the target is {describe(target)}"
        )
    if security is not None and not isinstance(target, (str, os.PathLike)):
        raise TypeError(
            f"security is for joining a scheduler by its address, got {describe(security)} and no address"
        )
    if security is not None and not hasattr(security, "get_connection_args"):
        raise TypeError(f"security must be a distributed.Security, got {describe(security)}")
    if ship != ():
        from parcoll.wire.own_modules import names_of  # lazy: 5 ms, only where it is asked for

        names_of(ship)
    if target is None and ship:
        raise TypeError(
            f"ship={short_repr(ship)} is for a dask scheduler's workers: those of a local cluster import "
            "as you do"
        )
    if reconnect is not None and target in (None, "inline"):
        raise TypeError(
            "reconnect is for a dask scheduler that others run: a local cluster that dies is replaced "
            f'anyway, and "inline" has none; the target is {describe(target)}'
        )
    if target is None:
        return _connected(RenewingEngine(StartedHere(n_workers, threads_per_worker, memory_limit)))
    if isinstance(target, (str, os.PathLike)):
        target = os.fspath(target)
        return _connect_address(target, security, ship, reconnect)
    return _connect_object(target, ship, reconnect)


def _connect_address(target: str, security: Any, ship: Sequence[Any], reconnect: float | None) -> Connection:
    if target == "inline":
        return Connection(InlineEngine())
    address = lambda: target  # noqa: E731
    if "://" not in target:
        if not target.endswith(".json") and os.sep not in target and not os.path.exists(target):
            raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}")
        address = functools.partial(address_in, target)
    return _connected(RenewingEngine(AtAddress(address, security, ship, reconnect)))


def _connected(engine: RenewingEngine) -> Connection:
    """Return a connection to a cluster that is there: raises what keeps it from starting or answering."""
    try:
        engine.connected()
    except BaseException:
        engine.close()
        raise
    return Connection(engine)


def address_in(path: str | os.PathLike[str]) -> str:
    """Return the scheduler's address from the file that `dask scheduler --scheduler-file` writes."""
    try:
        with open(path, encoding="utf-8") as file:
            address = json.load(file)["address"]
        if not isinstance(address, str):
            raise TypeError(f"its address is {address!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConnectError(
            f"{os.fspath(path)!r} is no scheduler file, as `dask scheduler --scheduler-file` writes it "
            f"({type(error).__name__}: {error})"
        ) from error
    return address


def _connect_object(target: Any, ship: Sequence[Any], reconnect: float | None) -> Connection:
    from parcoll.cluster.clients import is_client  # lazy: distributed

    if is_client(target):
        return _connected(RenewingEngine(OfClient(target, ship, reconnect)))
    if hasattr(target, "scheduler_address") and not isinstance(target, type):
        security = getattr(target, "security", None)
        way = AtAddress(lambda: str(target.scheduler_address), security, ship, reconnect)
        return _connected(RenewingEngine(way))
    raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}")
