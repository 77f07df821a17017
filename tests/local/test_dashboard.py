"""The dashboard of a local cluster is loaded when somebody looks."""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from local_hosts import finish, run, start_script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def bokeh_is_loaded() -> bool:
    return "bokeh" in sys.modules


def test_the_dashboard_is_loaded_at_the_first_visit(start: Any, connect: Any) -> None:
    ready = start(n_workers=1).wait_ready()
    client = connect(ready)
    run(client, len, "abc")
    base = ready.dashboard_link.removesuffix("/status")
    assert fetch(base + "/health") == (200, "ok")
    assert not client.run_on_scheduler(bokeh_is_loaded)
    status, page = fetch(ready.dashboard_link)
    assert status == 200
    assert "Bokeh" in page
    assert client.run_on_scheduler(bokeh_is_loaded)
    assert "Bokeh" in fetch(base + "/")[1]
    assert fetch(base + "/workers")[0] == 200
    assert fetch(base + "/static/js/bokeh.min.js")[0] == 200
    assert fetch(base + "/no-such-page")[0] == 404
    assert run(client, len, "abcd") == 4


def test_a_dashboard_page_gets_its_data(start: Any, connect: Any) -> None:
    """The websocket of a page that was loaded late works."""
    bokeh_client = pytest.importorskip("bokeh.client")
    ready = start(n_workers=1).wait_ready()
    run(connect(ready), len, "abc")
    fetch(ready.dashboard_link)
    session = bokeh_client.pull_session(url=ready.dashboard_link)
    try:
        assert session.document.roots
    finally:
        session.close()


def test_pages_of_an_earlier_cluster_do_not_load_the_dashboard(start: Any, connect: Any) -> None:
    ready = start(n_workers=1).wait_ready()
    request = urllib.request.Request(
        f"{ready.dashboard_link}/ws", headers={"Upgrade": "websocket", "Connection": "Upgrade"}
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    raised.value.close()
    assert raised.value.code == 503
    assert not connect(ready).run_on_scheduler(bokeh_is_loaded)


def test_without_bokeh_the_dashboard_says_so(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bokeh.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, page = fetch(start(n_workers=1).wait_ready().dashboard_link)
    assert status == 200
    assert "pip install" in page


def test_a_taken_dashboard_port_is_no_trouble() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound = False
        with suppress(OSError):  # somebody else has it, and may give it up at any time
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
            bound = True
        script = start_script("host = Host(n_workers=1)\nprint(host.wait_ready().dashboard_link)")
        link = finish(script).strip()
    assert link.startswith("http://127.0.0.1:")
    assert not bound or not link.startswith("http://127.0.0.1:8787/")
