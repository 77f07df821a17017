"""The pipeline page without a browser: its JSON and metrics, and what it keeps of pipelines long gone."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
from page_json import all_named, named, read
from scripts import Scripts, clean_environment, eventually

from parcoll import Connection, connect, parallel
from parcoll.watch import page as pages
from parcoll.watch import publish
from parcoll.watch.publish import Publisher, new_page
from parcoll.watch.stats import Stats, StepStats

# On the local cluster -----------------------------------------------------------------------------


def slow(x: int) -> int:
    time.sleep(0.002)
    return x


def test_the_page_says_what_stats_say(cluster: Connection) -> None:
    cluster.engine.client.wait_for_workers(2, timeout=30)
    chain = parallel(range(400), name="compared").map(slow)
    assert chain.count() == 400
    link = cluster.dashboard_link
    shown = named(link, "compared")
    expected = json.loads(json.dumps(chain.stats.snapshot()))
    assert {name: shown[name] for name in expected} == expected
    assert shown["verdict"] == chain.stats.verdict
    assert f"process {os.getpid()}" in shown["client"]
    assert shown["points"][-1][1] == 400
    report = read(f"{link}/json?since={shown['version']}")
    assert report["pipelines"] == []
    assert shown["id"] in report["order"]
    assert (report["workers"], report["threads"]) == (2, 2)


def test_a_short_evaluation_is_not_published_unless_it_fails(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "FIRST_SECONDS", 30.0)  # short it is, however busy this machine

    def fail(x: int) -> int:
        raise KeyError(x)

    parallel(range(3), name="short").count()
    with pytest.raises(KeyError):
        parallel(range(3), name="short and failed").map(fail).count()
    names = [p["name"] for p in read(f"{cluster.dashboard_link}/json")["pipelines"]]
    assert "short" not in names
    assert "short and failed" in names


def test_publishing_costs_at_most_four_small_messages_a_second(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    message = Publisher._message

    def noted(self: Publisher) -> dict[str, Any]:
        sent.append(message(self))
        return sent[-1]

    monkeypatch.setattr(Publisher, "_message", noted)
    chain = parallel(range(2_000), partition_size=10).map(slow)
    assert chain.count() == 2_000
    assert 3 <= len(sent) <= 4 * chain.stats.seconds + 1
    assert sent[-1]["state"] == "ended"
    assert max(len(json.dumps(one)) for one in sent) < 4000


def test_the_page_loads_no_bokeh(cluster: Connection) -> None:
    def loaded(dask_scheduler: Any) -> bool:
        return "bokeh" in sys.modules

    with urllib.request.urlopen(cluster.dashboard_link, timeout=30) as response:
        assert b"parcoll" in response.read()
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert not cluster.engine.client.run_on_scheduler(loaded)


def test_the_page_refers_to_nothing_outside() -> None:
    html = new_page().html
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in html


def test_prometheus_has_the_same_counters(cluster: Connection) -> None:
    pytest.importorskip("prometheus_client")
    parallel(range(300), name="measured").map(slow).count()
    parallel(range(300), name="measured").map(slow).count()
    link = cluster.dashboard_link.replace("/parcoll", "/metrics")
    with urllib.request.urlopen(link, timeout=30) as response:
        lines = response.read().decode().splitlines()
    assert 'parcoll_elements_in_total{pipeline="measured"} 600.0' in lines
    assert 'parcoll_step_left_total{pipeline="measured",step="1 map(slow)"} 600.0' in lines
    assert any(line.startswith('parcoll_pipelines{state="ended"}') for line in lines)


def test_the_link_follows_dask_s_template(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    template = "/user/{JUPYTERHUB_USER}/proxy/{port}/status"
    port = cluster.dashboard_link.split(":")[2].split("/")[0]
    with dask.config.set({"distributed.dashboard.link": template}):
        assert cluster.dashboard_link == f"/user/ada/proxy/{port}/parcoll"
    with dask.config.set({"distributed.dashboard.link": "https://dash.example/{port}"}):
        assert cluster.dashboard_link == f"https://dash.example/{port}"


# On a scheduler without parcoll -------------------------------------------------------------------

SCHEDULER = """
import sys
sys.modules["parcoll"] = None
from dask.__main__ import main
sys.argv[:] = ["dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-prefix", "/some/where",
               "--dashboard-address", "127.0.0.1:0", "--scheduler-file", sys.argv[1]]
main()
"""


CLIENT = """
import sys, time
import distributed
from parcoll import connect, parallel
from parcoll.watch.publish import Publisher
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats

with distributed.Client(sys.argv[1], set_as_default=False) as client:
    with connect("inline"):
        chain = parallel(range(50)).map(lambda x: x)
        stats = Stats(name=sys.argv[2], state="running", started=time.time())
        publisher = Publisher(client, stats, has_page=False)
        time.sleep(1)
        chain.count()
        stats.elements_in = chain.stats.elements_in
        if sys.argv[2] == "killed":
            print("running", flush=True)
            time.sleep(60)
        Recorder(stats).end("ended")
        publisher.end()
"""


@pytest.fixture
def bare_scheduler(tmp_path: Path) -> Iterator[Path]:
    """Start a scheduler that cannot import parcoll, below a prefix; give the file with its address."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-c", SCHEDULER, str(file)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, env=clean_environment(TMPDIR=str(tmp_path)), stdout=log, stderr=log
        )
    try:
        ready = eventually(lambda: file.exists() and file.stat().st_size, 30)
        assert ready, (tmp_path / "log").read_text()
        yield file
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def test_the_page_comes_with_the_client_and_outlives_it(bare_scheduler: Path, scripts: Scripts) -> None:
    description = json.loads(bare_scheduler.read_text())
    address, port = description["address"], description["services"]["dashboard"]
    link = f"http://127.0.0.1:{port}/some/where/parcoll"
    with connect(address) as connection:
        assert connection.dashboard_link == f"http://127.0.0.1:{port}/parcoll"  # dask leaves the prefix out
        with urllib.request.urlopen(link, timeout=30) as response:
            assert b"parcoll/json" in response.read()
    script = scripts.write("client.py", CLIENT)
    scripts.run(script, address, "finished")
    assert (named(link, "finished")["state"], named(link, "finished")["elements_in"]) == ("ended", 50)
    killed = scripts.start(script, address, "killed")
    assert killed.stdout.readline() == "running\n"
    assert eventually(lambda: all_named(link, "killed"), 20)
    assert named(link, "killed")["state"] == "running"
    killed.kill()
    assert eventually(lambda: named(link, "killed")["state"] == "lost", 20)
    with distributed.Client(address, set_as_default=False) as client:
        assert client.run_on_scheduler(lambda: "parcoll.watch.page" in sys.modules) is False


# What it keeps ------------------------------------------------------------------------------------


def message(key: str, **numbers: Any) -> dict[str, Any]:
    stats = Stats(name=key, state="ended", started=1.0, ended=2.0)
    return stats.snapshot() | {"id": key, "client": "me", "client_id": "c", "verdict": ""} | numbers


def test_a_thousand_pipelines_leave_a_hundred() -> None:
    page = pages.Page("")
    page.publish(message("running", state="running", ended=None))
    for i in range(1000):
        page.publish(message(f"number {i}"))
    assert len(page.pipelines) == len(page.totals) == 100
    assert "running" in page.pipelines
    assert "number 999" in page.pipelines
    for i in range(1000):
        page.publish(message(f"running {i}", state="running", ended=None))
    assert len(page.pipelines) == 100


def test_a_pipeline_that_runs_for_weeks_keeps_a_plot_of_bounded_size() -> None:
    page = pages.Page("")
    for i in range(1, 5000):
        page.publish(message("long", elements_in=i, ended=float(i)))
    points = page.pipelines["long"]["points"]
    assert len(points) <= pages.MAX_POINTS + pages.RECENT_POINTS
    assert points[0] == [1.0, 0]
    assert points[-1] == [4999.0, 4999]
    assert points == sorted(points)
    assert page.totals["long"][("elements_in",)] == 4999


def test_the_plot_of_a_long_run_spans_all_of_it() -> None:
    """Evenly, and closer in the last seconds, from which the page tells the present rate."""
    plot = pages.Plot(0.0)
    for i in range(1, 7201):
        points = plot.add(i / 2, i)
        assert points[-1] == [i / 2, i]
        assert len(points) <= pages.MAX_POINTS + pages.RECENT_POINTS
    assert points[0] == [0.0, 0]
    assert points[-pages.RECENT_POINTS :] == [[i / 2, i] for i in range(7181, 7201)]
    times = [time for time, _ in points]
    gaps = [after - before for before, after in itertools.pairwise(times[: -pages.RECENT_POINTS])]
    assert len(gaps) > pages.MAX_POINTS / 3
    assert max(gaps) <= 2.5 * min(gaps)


def test_more_pipelines_than_are_shown_are_counted_once() -> None:
    page = pages.Page("")
    steps = [vars(StepStats("map(str)", entered=10))]
    for _ in range(3):
        for i in range(150):
            numbers = {"state": "running", "ended": None, "steps": steps, "elements_in": 10}
            page.publish(message(f"one of many {i}", **numbers) | {"name": "n"})
    assert len(page.pipelines) == len(page.plots) == 100
    assert len(page.unseen) == 50
    assert page.totals["n"][("elements_in",)] == 1500
    assert page.totals["n"][("step", "entered", "1 map(str)")] == 1500
    page.remove_client(None, "c")
    assert not page.unseen
    for i in range(3000):
        page.publish(message(f"another {i}", state="running", ended=None))
    assert len(page.unseen) == pages.MAX_UNSEEN


def test_steps_that_are_others_each_time_leave_metrics_of_bounded_size() -> None:
    """As where a step's label says what a function was bound to."""
    page = pages.Page("")
    for i in range(2_000):
        steps = [vars(StepStats(f"map(partial({i}))", entered=2)), vars(StepStats("map(str)", entered=1))]
        page.publish(message("the same", steps=steps, elements_in=3) | {"id": f"run {i}"})
    totals = page.totals["the same"]
    assert len(totals) <= len(pages.COUNTERS) + pages.MAX_STEP_NUMBERS
    assert totals[("elements_in",)] == 6_000
    assert totals[("step", "entered", "2 map(str)")] == 2_000, "one that all have is counted on"
    assert totals[("step", "entered", "1 map(partial(1999))")] == 2


def test_metrics_go_when_their_scheduler_goes() -> None:
    """Two schedulers may live in one process, one after the other or at once."""
    registry = pytest.importorskip("prometheus_client").REGISTRY
    added: list[Any] = []
    scheduler = SimpleNamespace(
        http_application=SimpleNamespace(add_handlers=lambda *handlers: added.append(handlers))
    )

    async def live() -> None:
        first, second = pages.Page(""), pages.Page("")
        await first.start(scheduler)
        await second.start(scheduler)
        first.publish(message("one"))
        families = [family.name for family in registry.collect()]
        assert families.count("parcoll_pipelines") == 2
        await first.close()
        await second.close()
        assert "parcoll_pipelines" not in [family.name for family in registry.collect()]

    asyncio.run(live())
    assert len(added) == 2
