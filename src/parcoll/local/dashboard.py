"""Dashboard of the local cluster: it is loaded at the first visit, and asked by this machine's names only.

A web site can have its own name lead to 127.0.0.1 (DNS rebinding). To a browser its page and the dashboard
are then of one site, and the page may read all that the dashboard shows. What gives it away is the name that
the browser asks for. So a request for a name that is not this machine's gets nothing: no page, no numbers,
no live connection. Behind a proxy any name may be right, and the proxy is who decides.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import re
import socket
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from parcoll.text import short_repr

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

_ORIGINS = "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin"
_LINK = "distributed.dashboard.link"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/\\\s]+)(?::\d{1,5})?")  # a name or an address, and a port


def add(scheduler: Scheduler) -> None:
    """Serve the dashboard, but import it (1 s, most of it bokeh) only at the first visit.

    The application added here gets the requests for paths that the scheduler does not know. At the first
    one it puts the real dashboard in its own place and has the browser ask again.
    """
    from tornado import web

    loading = asyncio.Lock()

    class FirstVisit(web.RequestHandler):
        async def get(self) -> None:
            if self.request.headers.get("Upgrade"):  # a web page of an earlier cluster tries again
                raise web.HTTPError(503)
            async with loading:
                if placeholder in scheduler.http_application.applications:
                    await _load(scheduler)
                    scheduler.http_application.applications.remove(placeholder)
            # One slash only: "//host/" would lead to another host, and browsers take "/\\" for the same.
            self.redirect("/" + (self.request.uri or "").lstrip("/\\"))

    placeholder = web.Application([(r"/.*", FirstVisit)])
    scheduler.http_application.add_application(placeholder)
    _refuse_other_names(scheduler.http_application)


async def _load(scheduler: Scheduler) -> None:
    """Connect dask's dashboard to a scheduler that was started without it.

    This is what ``Scheduler.__init__`` does with ``dashboard=True``. dask has no public way to do it later;
    ``test_the_dashboard_is_loaded_at_the_first_visit`` fails when the parts used here change.
    """
    from distributed.http.utils import get_handlers
    from tornado import web

    try:
        # In a thread, so that the scheduler goes on serving its workers.
        dashboard = await asyncio.to_thread(importlib.import_module, "distributed.dashboard.scheduler")
    except ImportError:
        routes = get_handlers(scheduler, ["distributed.http.scheduler.missing_bokeh"])
        scheduler.http_application.add_application(web.Application(routes))
    else:
        _allow_this_machine_only(scheduler.services["dashboard"].port)
        dashboard.connect(scheduler.http_application, scheduler.http_server, scheduler, prefix="/")


def _allow_this_machine_only(port: int) -> None:
    """Have the dashboard's live connections refuse the pages of other web sites, which dask lets in.

    Nothing changes if the user's configuration says whom to let in, or that the dashboard is behind a proxy.
    """
    import dask

    if dask.config.get(_ORIGINS) == ["*"] and not _has_proxy():
        dask.config.set({_ORIGINS: [f"127.0.0.1:{port}", f"localhost:{port}"]})


def _has_proxy() -> bool:
    """Tell whether the user's configuration says that the dashboard is reached by way of another server."""
    import dask

    return "{host}" not in dask.config.get(_LINK)


def _refuse_other_names(application: Any) -> None:
    """Have the application answer by this machine's names alone, before it looks at what is asked for."""
    import dask
    from tornado import routing, web

    if _has_proxy():
        return
    origins = [str(origin) for origin in dask.config.get(_ORIGINS) or ()]
    others = [origin for origin in origins if origin != "*"]  # dask's own default lets every site in

    class OtherName(routing.Matcher):
        def match(self, request: Any) -> dict[str, Any] | None:
            return None if _is_right(request.host, others) else {}

    class Refusal(web.RequestHandler):
        def prepare(self) -> None:
            self.set_status(403)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(
                "This dashboard answers to localhost and 127.0.0.1, and was asked for "
                f"{short_repr(self.request.host)}. Behind a proxy, set dask's {_LINK!r} to the address "
                "there.\n"
            )

    # The first rule of all. dask's own pages, and those of bokeh, are found by the same application.
    application.default_router.rules.insert(0, routing.Rule(OtherName(), Refusal))


def _is_right(host: str, others: list[str]) -> bool:
    """Tell whether a request's `Host` is a name of this machine, or one that the user's configuration has."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower().removesuffix(".")
    if name == "localhost" or name in _own_names():
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return any(fnmatch(form, other.lower()) for other in others for form in (host.lower(), name))


def _own_names() -> set[str]:
    """Return the names of this machine, without asking a server for them."""
    own = socket.gethostname().lower()
    return {own, own.partition(".")[0]} - {""}
