"""The dashboard answers to this machine's names alone, and in a line to what it does not understand.

A web site can have its own name lead to 127.0.0.1, and then asks as if the dashboard were its own.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from scripts import Scripts, import_path
from visits import QUERIES, ask

from parcoll import Connection, parallel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a local cluster needs fork")
SECRET = b"name-of-a-step"
REFUSED = r"This dashboard answers to localhost and 127\.0\.0\.1, and was asked for '{}'\. Behind a p.*\n"


def name_of_a_step(x: int) -> int:
    return x


name_of_a_step.__name__ = SECRET.decode()


@pytest.fixture(scope="module")
def port(cluster: Connection) -> int:
    with pytest.raises(ZeroDivisionError):
        parallel([0], name="seen").map(name_of_a_step).map(lambda x: 1 // x).count()
    assert cluster.dashboard_link is not None
    return int(cluster.dashboard_link.split(":")[2].split("/")[0])


def live(port: int, host: str, origin: str, path: str = "/status/ws") -> int:
    """Return the status with which a live connection of the dashboard begins, or is refused."""
    known = f"Host: localhost:{port}"
    for _ in range(2):  # at the first visit it is loaded, and asked again
        _, page = ask(port, path.removesuffix("/ws"), known)
    token = re.findall(rb'"token":"([^"]+)"', page)[0].decode()
    request = [
        *(f"GET {path} HTTP/1.1", f"Host: {host.format(port=port)}", "Connection: Upgrade"),
        *("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        *(f"Sec-WebSocket-Protocol: bokeh, {token}", f"Origin: http://{origin.format(port=port)}"),
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as page_of_a_site:
        page_of_a_site.sendall("\r\n".join([*request, "", ""]).encode())
        return int(page_of_a_site.recv(100).split()[1])


FOREIGN = (
    *(
        "evil.example:{port}",
        "evil.example",
        "localhost.evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
    ),
    *("evil.example:80", "10.0.0.1:{port}", "0.0.0.0:{port}", "[2001:db8::1]:{port}", "xlocalhost:{port}"),
    *("localhost:{port}@evil.example", "evil.example\\@localhost", "localhost evil.example", "2130706433"),
    *(
        "127.1:{port}",
        "[::1].evil.example:{port}",
        "localhost:{port}:evil",
        "*",
        "%6cocalhost",
        "EVIL.example.",
    ),
)
PATHS = ("/parcoll/json", "/parcoll", "/health", "/metrics", "/status", "/tasks", "/json/counts.json")
PATHS += ("/info/main/workers.html", "/sitemap.json", "/static/js/bokeh.min.js", "/no-such-page", "/")


@pytest.mark.parametrize("host", FOREIGN)
def test_a_name_that_is_not_this_machine_s_gets_nothing(port: int, host: str) -> None:
    name = host.format(port=port)
    for path in ("/parcoll/json", "/status"):
        status, body = ask(port, path, f"Host: {name}")
        assert status in (400, 403)
        assert SECRET not in body
        assert body == b"" or re.fullmatch(REFUSED.format(re.escape(name)), body.decode())


@pytest.mark.parametrize("path", PATHS)
def test_no_page_at_all_is_given_to_it(port: int, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        status, body = ask(port, path, f"Host: evil.example:{port}", method=method)
        assert status == 403
        assert body == b"" or body.startswith(b"This dashboard answers to localhost and 127.0.0.1")


NAMES = ("localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost", "LOCALHOST:9999", "localhost.")
NAMES += ("127.0.0.2:{port}", f"{socket.gethostname()}:{{port}}", socket.gethostname().upper())


@pytest.mark.parametrize("host", NAMES)
def test_this_machine_s_names_are_answered(port: int, host: str) -> None:
    """At any port: it may be forwarded, as `ssh -L` does."""
    status, body = ask(port, "/parcoll/json", f"Host: {host.format(port=port)}")
    assert status == 200
    assert SECRET in body


def test_programs_that_name_nobody_are_answered(port: int) -> None:
    """A browser always names one."""
    assert ask(port, "/health", version="1.0") == (200, b"ok")


LIVE = [
    ("evil.example:{port}", "evil.example:{port}", 403),
    ("evil.example", "evil.example", 403),
    ("evil.example:{port}", "127.0.0.1:{port}", 403),
    ("127.0.0.1:{port}", "evil.example:{port}", 403),
    ("localhost:{port}", "localhost.evil.example:{port}", 403),
    ("127.0.0.1:{port}", "null", 403),
    ("127.0.0.1:{port}", "127.0.0.1:{port}", 101),
    ("localhost:{port}", "localhost:{port}", 101),
    ("[::1]:{port}", "[::1]:{port}", 101),
    ("localhost:9999", "localhost:9999", 101),
]


@pytest.mark.parametrize(("host", "origin", "status"), LIVE)
def test_live_connections(port: int, host: str, origin: str, status: int) -> None:
    pytest.importorskip("bokeh")
    assert live(port, host, origin) == status


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_is_none_gets_a_line(port: int, query: str) -> None:
    status, body = ask(port, f"/parcoll/json?{query}", f"Host: localhost:{port}")
    assert status == 400
    assert body.count(b"\n") <= 1
    assert b"Traceback" not in body


@pytest.mark.parametrize("query", ["", "?", "?since=0", "?since=00", "?other=%ff", "?&&", "?since=999999"])
def test_a_query_that_is_one(port: int, query: str) -> None:
    status, body = ask(port, f"/parcoll/json{query}", f"Host: localhost:{port}")
    assert status == 200
    assert json.loads(body)["workers"] == 2


SCRIPT = """
import re, sys
from parcoll import connect, parallel
from visits import QUERIES, ask

def name(x):
    return 1 // x

with connect(n_workers=1) as cluster:
    try:
        parallel([0]).map(name).count()
    except ZeroDivisionError:
        pass
    port = int(re.findall("[0-9]{4,5}", cluster.dashboard_link)[-1])
    for query in QUERIES:
        ask(port, "/parcoll/json?" + query, "Host: localhost")
        ask(port, "/parcoll?" + query, "Host: localhost")
    for path in ("//evil.example/x", "/\\\\evil.example", "/%0d%0aX: y", "/\\xe9", "/parcoll/json/../x"):
        status, body = ask(port, path, "Host: localhost")
        assert b"evil" not in body or status >= 400, body
    statuses = [ask(port, "/parcoll/json", "Host: " + host)[0] for host in sys.argv[1:]]
    print(*statuses)
"""


@pytest.fixture
def script(scripts: Scripts) -> Path:
    return scripts.write("script.py", SCRIPT)


HELPERS = Path(__file__).parents[1] / "helpers"
PATH_OF_SCRIPTS = {"PYTHONPATH": os.pathsep.join([str(HELPERS), *import_path()])}


def test_nothing_is_written_to_standard_error(scripts: Scripts, script: Path) -> None:
    out, err = scripts.run_with(script, "evil.example", "localhost:1", env=PATH_OF_SCRIPTS)
    assert (out, err) == ("403 200\n", "")


PROXIES = [
    ({"DASK_DISTRIBUTED__DASHBOARD__LINK": "/user/{JUPYTERHUB_USER}/proxy/{port}/status"}, "200 200 200"),
    ({"DASK_DISTRIBUTED__DASHBOARD__LINK": "https://hub.example/{port}/status"}, "200 200 200"),
    (
        {
            "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__BOKEH_APPLICATION__ALLOW_WEBSOCKET_ORIGIN": (
                "['hub.example', '*.hub.example:8000']"
            )
        },
        "200 200 403",
    ),
]


@pytest.mark.parametrize(("settings", "statuses"), PROXIES)
def test_a_proxy_that_dask_s_configuration_names(
    scripts: Scripts, script: Path, settings: dict[str, str], statuses: str
) -> None:
    env = {"JUPYTERHUB_USER": "ada"} | PATH_OF_SCRIPTS | settings
    hosts = ("hub.example", "a.hub.example:8000", "evil.example")
    out, err = scripts.run_with(script, *hosts, env=env)
    assert (out, err) == (f"{statuses}\n", "")
