"""Connection: which cluster evaluates, for a block or for the rest of a program. `connect` makes one."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec

from parcoll.cluster.renewing import RenewingEngine
from parcoll.cluster.ways import AtAddress, OfClient, StartedHere, Way
from parcoll.connecting import current
from parcoll.errors import ConnectError, logger
from parcoll.evaluation.engine import Engine
from parcoll.evaluation.inline import InlineEngine
from parcoll.local.shutdown import refuse_at_end
from parcoll.mistakes import not_a_collection
from parcoll.system import genuine_open
from parcoll.text import describe, short_repr
from parcoll.world import handlers

if TYPE_CHECKING:
    from parcoll.connecting.scratch import Place

P = ParamSpec("P")

ALLOWED = (
    'None (a local cluster), a scheduler\'s address ("tcp://host:8786", "host:8786", "tls://...") or file, '
    '"inline", a distributed.Client, or a dask cluster object'
)
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


LONGEST = 1e9  # seconds, 32 years; more may be too much for a clock


class Connection:
    """A cluster on which all evaluations run until it is closed or its `with` block ends. `connect` makes it.

    It holds for all threads. The one that was made last counts, of those that are not closed.

    >>> from parcoll import connect, parallel
    >>> with connect("inline") as connection:
    ...     connection.address, parallel(range(3)).count()
    ('inline', 3)
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine  # internal: what runs the tasks
        self._closed = False
        current.enter(self)
        logger.debug("connected to %s", self.address)

    @property
    def address(self) -> str:
        """The address of the scheduler; "inline" if there is none."""
        return self.engine.address

    @property
    def dashboard_link(self) -> str | None:
        """The address of the web page that shows the pipelines of the cluster; None if there is no cluster.

        It is made from dask's template (`distributed.dashboard.link`). The page links to dask's own
        dashboard, which is at `/status` instead of `/parcoll`.
        """
        link = self.engine.dashboard_link
        return None if link is None else _page_link(link)

    def close(self) -> None:
        """End the connection: evaluations run where they ran before it. May be called twice.

        A cluster that `connect` started ends; any other goes on.
        """
        if self._closed:
            return
        try:
            handlers.reached(self._end)
        except BaseException:  # as a signal's handler raises; what it has left undone is done
            self._end()
            raise

    def _end(self) -> None:
        self._closed = True
        _end(self.engine)

    def __enter__(self) -> Connection:
        if self._closed:
            raise ConnectError("this connection is closed, and nothing runs on it any more: connect() again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BaseException:  # maybe before its first line
            self._end()
            raise

    if not TYPE_CHECKING:  # so that type checkers refuse them, too

        def __getattr__(self, name: str) -> Any:
            """Say where the methods are that dask's client and other libraries' pools have."""
            raise AttributeError(not_a_collection("a connection", name), name=name, obj=self)

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
    """Return the address beside dask's `/status`; leave a template as it is if it ends otherwise."""
    return f"{dashboard.removesuffix('/status')}/parcoll" if dashboard.endswith("/status") else dashboard


def dashboard_link() -> str | None:
    """Return the address of the web page that shows the pipelines; None where no cluster is up.

    It is that of the innermost connection, or of the local cluster that the first evaluation has started.
    Starts nothing.

    >>> from parcoll import connect, dashboard_link
    >>> with connect("inline"):
    ...     print(dashboard_link())
    None
    """
    connection, default = current.current_connection(), current.default
    if connection is not None:
        return connection.dashboard_link  # type: ignore[no-any-return]
    if default is None or not (default.usable and default.way.alive):
        return None
    link = default.dashboard_link
    return None if link is None else _page_link(link)


_made = threading.local()  # `engines`: those that a `connect` under way in this thread has made


def _whole(connect: Callable[P, Connection]) -> Callable[P, Connection]:
    """Decorate `connect`: what it has made ends if it does not return, whatever is raised, and wherever."""

    @functools.wraps(connect)
    def call(*arguments: P.args, **named: P.kwargs) -> Connection:
        outer = getattr(
            _made, "engines", None
        )  # of the call that a signal's handler has interrupted with this
        engines: list[Engine] = []
        try:
            _made.engines = engines
            return connect(*arguments, **named)
        except BaseException:
            for engine in engines:
                _end(engine)
            raise
        finally:
            _made.engines = outer

    return call


def _end(engine: Engine) -> None:
    """Let go of an engine. If this was interrupted, it may be called again."""
    try:
        current.leave(engine)
    finally:
        engine.close()


@_whole
@handlers.reaching
def connect(
    target: Any = None,
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | float | str | None = "auto",
    security: Any = None,
    ship: Sequence[Any] = (),
    reconnect: float | None = None,
    copies: bool = True,
    scratch: str | os.PathLike[str] | None = None,
) -> Connection:
    """Return a connection to a cluster, started or reached now, on which all evaluations run from now on.

    It is a context manager; without `with` it lasts until `close()` or the end of the program. The connection
    made last counts, in all threads. Closing it ends a cluster that it started, and nothing else.

    Args:
        target: None starts a local cluster. An address (`"tcp://host:8786"`, `"tls://..."`) or the path of a
            scheduler file connects to a dask scheduler. A `distributed.Client` or a dask cluster object is
            used as it is. "inline" evaluates in this process, which is what a debugger wants.
        n_workers: For a local cluster: its worker processes. None starts one for each core that this process
            may use.
        threads_per_worker: For a local cluster: threads of each worker.
        memory_limit: For a local cluster: what each worker may hold, as bytes, a text like "4 GiB", or a part
            of the machine's memory from 0 to 1. "auto" divides the memory among the workers; None sets no
            limit.
        security: For an address or a scheduler file: a `distributed.Security` with what TLS needs.
        ship: For a dask scheduler: names of modules that are sent to its workers, or, as "-name", that are
            not. The workers need only dask and distributed. parcoll is sent, and so are those of your own
            modules that no package installs, as far as the functions or the script use them. Installed
            packages must be installed on the workers too, unless they are named here.
        copies: For "inline": True gives functions copies, as on a cluster, and raises an error for what
            cannot be sent. False gives them your own objects, for a debugger.
        reconnect: For a dask scheduler: seconds that an evaluation waits when the scheduler is gone, for
            example while it is restarted. When one answers again at the address (a file is read again, a
            cluster object asked again), the evaluation goes on there and sends what has no result yet:
            results come once and in order. `reduce`, `fold` and `foreach` begin again, unless their source
            can be read only once. With None, `ClusterLostError` ends the evaluation and all later ones of
            this connection.
        scratch: The URL of a bucket, or the path of a shared folder, that this process and all workers reach.
            `group_by`, `sorted`, `fold_by` and `count_by` then put there what workers send to each other,
            in place of sending it through this process. It is removed at the end of each evaluation. What a
            killed script has left is removed by the next `connect` of its machine with this `scratch`. fsspec
            opens it, with the settings of fsspec's configuration. Whoever can write there can have the
            workers run code.

    A client that you pass is never replaced. dask lets it look for its scheduler for as long as the `timeout`
    that the client was made with, and `reconnect` says how long evaluations wait for that.

    Raises TypeError for another target, ConnectError if no scheduler answers or nothing can be written to
    `scratch`, and ClusterStartError if the local cluster does not start.

    >>> from parcoll import connect, parallel
    >>> with connect("inline"):
    ...     list(parallel("abc").map(str.upper))
    ['A', 'B', 'C']
    """
    reconnect = _seconds(reconnect)
    settings = (n_workers, threads_per_worker, memory_limit) != (None, 1, "auto")
    if target is not None and settings:
        raise TypeError(
            "n_workers, threads_per_worker and memory_limit are for a local cluster, which "
            f"connect() starts without a target; the target is {describe(target)}"
        )
    if security is not None and not isinstance(target, (str, os.PathLike)):
        raise TypeError(f"security is for a scheduler's address, got {describe(security)} and no address")
    if security is not None and not hasattr(security, "get_connection_args"):
        raise TypeError(f"security must be a distributed.Security, got {describe(security)}")
    if ship != ():
        from parcoll.wire.own_modules import names_of  # lazy: 5 ms, only where it is asked for

        names_of(ship)
    if target is None and ship:
        raise TypeError(
            f"ship={short_repr(ship)} is for a dask scheduler's workers: leave it out, since those of a "
            "local cluster import all that this process can import"
        )
    if reconnect is not None and target in (None, "inline"):
        raise TypeError(
            "reconnect is for a dask scheduler that others run: a local cluster that dies is replaced "
            f'anyway, and "inline" has none; the target is {describe(target)}'
        )
    if not isinstance(copies, bool):
        raise TypeError(f"copies must be True or False, got {describe(copies)}")
    if not copies and not (isinstance(target, str) and target == "inline"):
        raise TypeError(f'copies=False is for "inline" alone, got the target {describe(target)}')
    if scratch is not None and isinstance(target, str) and target == "inline":
        raise TypeError('scratch is for what workers send to each other, and "inline" has no workers')
    refuse_at_end()
    place = None if scratch is None else _place(scratch)
    if target is None:
        way: Way = StartedHere(n_workers, threads_per_worker, memory_limit)
    elif isinstance(target, (str, os.PathLike)):
        target = os.fspath(target)
        if target == "inline":
            return _connected(InlineEngine(copies))
        way = _way_to_address(target, security, ship, reconnect)
    else:
        way = _way_to_object(target, ship, reconnect)
    engine = RenewingEngine(way)
    engine.scratch = place
    return _connected(engine)


def _place(given: Any) -> Place:
    """Return the place for a scratch, where something could be written."""
    from parcoll.connecting.scratch import Place  # lazy: only with a scratch

    place = Place(given)
    place.check()
    return place


# What dask and joblib call these.
_LOCAL = ("local", "processes", "threads", "threading", "multiprocessing", "distributed", "loky", "auto")
_INSTEAD = dict.fromkeys(_LOCAL, ": write connect(), or nothing, for a local cluster")
_INSTEAD |= dict.fromkeys(("sync", "synchronous", "single-threaded"), ': write connect("inline")')


def _way_to_address(target: str, security: Any, ship: Sequence[Any], reconnect: float | None) -> Way:
    address = lambda: target  # noqa: E731
    if _HOST_AND_PORT.fullmatch(target) and not os.path.exists(target):
        target = f"{'tcp' if security is None else 'tls'}://{target}"
    elif "://" not in target:
        if not target.endswith(".json") and os.sep not in target and not os.path.exists(target):
            instead = _INSTEAD.get(target.lower(), "")
            raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}{instead}")
        address = functools.partial(address_in, target)
    return AtAddress(address, security, ship, reconnect)


def _connected(engine: RenewingEngine | InlineEngine) -> Connection:
    """Return a connection to a cluster that is there. Raises what keeps it from starting or answering."""
    _made.engines.append(engine)  # which has nothing yet
    if isinstance(engine, RenewingEngine):
        engine.connected()
    return Connection(engine)


def address_in(path: str | os.PathLike[str]) -> str:
    """Return the scheduler's address from the file that `dask scheduler --scheduler-file` writes."""
    try:
        with genuine_open(path, encoding="utf-8") as file:
            address = json.load(file)["address"]
        if not isinstance(address, str):
            raise TypeError(f"its address is {address!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConnectError(
            f"{os.fspath(path)!r} is not a scheduler file as `dask scheduler --scheduler-file` writes it "
            f"({type(error).__name__}: {error})"
        ) from error
    return address


def _way_to_object(target: Any, ship: Sequence[Any], reconnect: float | None) -> Way:
    from parcoll.cluster.clients import is_address, is_client  # lazy: distributed

    if is_client(target):
        return OfClient(target, ship, reconnect)
    if isinstance(target, type):
        raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}")
    status = getattr(target, "status", None)
    if getattr(status, "name", status) == "closed":
        raise ConnectError(
            f"the cluster object {short_repr(target)} is closed: make another, or evaluate in its block"
        )
    if is_address(getattr(target, "scheduler_address", None)):
        security = getattr(target, "security", None)
        return AtAddress(lambda: str(target.scheduler_address), security, ship, reconnect)
    if callable(get_client := getattr(target, "get_client", None)) and is_client(client := get_client()):
        return OfClient(client, ship, reconnect)
    instead = f": write connect(n_workers={target})" if type(target) is int else ""
    raise TypeError(f"connect() needs {ALLOWED}; got {describe(target)}{instead}")


def _seconds(given: Any) -> float | None:
    """Return a `reconnect`: seconds, or None if a lost scheduler is not waited for."""
    wanted = "reconnect must be a number of seconds from 0 up, or None"
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"{wanted}, got {describe(given)}")
    if not given >= 0:
        raise ValueError(f"{wanted}, got {short_repr(given)}")
    return float(min(given, LONGEST)) or None
