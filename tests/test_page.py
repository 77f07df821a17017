"""The pipeline page in a real browser, its JSON and metrics, and what it keeps of pipelines long gone."""

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
from bare import bare_cluster
from browser import chromium, opened
from scripts import Scripts, clean_environment, eventually

from parcoll import Connection, connect, parallel
from parcoll.watch import page as pages
from parcoll.watch import publish
from parcoll.watch.publish import Publisher, new_page
from parcoll.watch.stats import Stats, StepStats


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    found = Scripts(tmp_path)
    yield found
    found.check()


@pytest.fixture
def has_browser() -> None:
    """Skip, or in CI fail, before anything is started."""
    chromium()


@pytest.fixture(scope="module")
def shots(request: pytest.FixtureRequest) -> Path:
    """Give the folder for screenshots, beside pytest's cache."""
    return Path(request.config.cache.mkdir("screenshots"))


def read(link: str) -> dict[str, Any]:
    with urllib.request.urlopen(link, timeout=30) as response:
        found: dict[str, Any] = json.load(response)
    return found


def all_named(link: str, name: str) -> list[dict[str, Any]]:
    return [p for p in read(f"{link}/json")["pipelines"] if p["name"] == name]


def named(link: str, name: str) -> dict[str, Any]:
    (found,) = all_named(link, name)
    return found


def number(page: Any, name: str, which: str) -> int:
    text = page.text_content(f'article[data-name="{name}"] [data-number="{which}"]')
    return int(text.replace(",", ""))


def wait_for(page: Any, name: str, state: str) -> None:
    page.wait_for_selector(f'article[data-name="{name}"][data-state="{state}"]', timeout=20_000)


# In the browser -----------------------------------------------------------------------------------

TWO = """
import json, sys, threading, time
from parcoll import connect, parallel

def parse(x):
    time.sleep(0.002)
    return x

def valid(x):
    return x % 3 != 0

def check(x):
    time.sleep(0.001)
    if x == 900:
        raise ValueError("<img src=x onerror=alert(1)> is no number")
    return x

def failing():
    try:
        parallel(range(10_000), name="check <b>all</b>", partition_size=50).map(check).count()
    except ValueError:
        pass

with connect(n_workers=2) as cluster:
    print(cluster.dashboard_link, flush=True)
    sys.stdin.readline()
    other = threading.Thread(target=failing)
    other.start()
    logs = parallel(range(3000), name="parse logs", partition_size=50).map(parse).filter(valid)
    logs.count()
    other.join()
    print(json.dumps(logs.stats.snapshot()), flush=True)
    sys.stdin.readline()
"""


TROUBLES = """
import json, os, sys, time
from parcoll import connect, parallel

def work(x):
    if x == 30:
        os._exit(1)
    if x == 60:
        time.sleep(1000)
    return x

with connect(n_workers=2) as cluster:
    print(cluster.dashboard_link, flush=True)
    sys.stdin.readline()
    settings = {"on_error": "skip", "partition_size": 20}
    hard = parallel(range(100), name="hard", retries=1, timeout=0.5, **settings).map(work)
    hard.count()
    print(json.dumps(hard.stats.snapshot()), flush=True)
    killed = parallel(range(100), name="killed", **settings).map(lambda x: os._exit(1) if x == 3 else x)
    killed.count()
    print(json.dumps(killed.stats.snapshot()), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.usefixtures("has_browser")
def test_a_browser_sees_what_was_overcome(scripts: Scripts, tmp_path: Path, shots: Path) -> None:
    script = scripts.start_file(TROUBLES, stdin=subprocess.PIPE)
    link = script.stdout.readline().strip()
    with opened(tmp_path / "profile") as page:
        page.goto(link)
        page.locator("#cluster", has_text="on 2 workers").wait_for()
        script.stdin.write("go\n")
        script.stdin.flush()
        for name in ("hard", "killed"):
            wait_for(page, name, "ended")
            stats = json.loads(script.stdout.readline())
            troubles = [key for key in ("retries", "timeouts", "deaths", "recovered") if stats[key]]
            assert (
                troubles
                == {
                    "hard": ["retries", "timeouts", "deaths"],
                    "killed": ["retries", "deaths", "recovered"],
                }[name]
            )
            for key in (*troubles, "failed"):
                assert number(page, name, key) == stats[key]
            assert stats["failed"] == {"hard": 2, "killed": 1}[name]
        page.screenshot(path=shots / "troubles.png", full_page=True)
    script.stdin.write("end\n")
    script.stdin.close()
    script.stdin = None
    _, err = script.communicate(timeout=30)
    assert (script.returncode, err) == (0, "")


@pytest.mark.usefixtures("has_browser")
def test_a_browser_sees_two_pipelines_move_end_and_fail(
    scripts: Scripts, tmp_path: Path, shots: Path
) -> None:
    script = scripts.start_file(TWO, stdin=subprocess.PIPE)
    link = script.stdout.readline().strip()
    assert link.endswith("/parcoll")
    with opened(tmp_path / "profile") as page:
        page.goto(link)
        page.locator("#cluster", has_text="on 2 workers").wait_for()
        assert page.query_selector("article") is None
        script.stdin.write("go\n")
        script.stdin.flush()
        seen = set()
        wait_for(page, "parse logs", "running")
        while page.query_selector('article[data-name="parse logs"][data-state="running"]'):
            seen.add(number(page, "parse logs", "done"))
            time.sleep(0.2)
        assert len(seen) > 2  # without a reload
        wait_for(page, "parse logs", "ended")
        wait_for(page, "check <b>all</b>", "failed")
        stats = json.loads(script.stdout.readline())
        assert number(page, "parse logs", "done") == stats["elements_in"] == 3000
        assert number(page, "parse logs", "results") == stats["elements_out"] == 2000
        for step in stats["steps"]:
            row = f'article[data-name="parse logs"] tr[data-step="{step["label"]}"]'
            cells = [page.text_content(f'{row} [data-number="{which}"]') for which in ("in", "out")]
            assert cells == [f"{step['entered']:,}", f"{step['left']:,}"]
        assert page.query_selector('article[data-name="parse logs"] svg path')
        failure = page.text_content('article[data-state="failed"] .failures li')
        assert "ValueError: <img src=x onerror=alert(1)> is no number" in failure
        assert "map(check), at element 900" in failure
        assert page.query_selector("article img, article b:not([data-number])") is None
        page.screenshot(path=shots / "two-pipelines.png", full_page=True)
    script.stdin.write("end\n")
    script.stdin.close()
    script.stdin = None
    _, err = script.communicate(timeout=30)
    assert (script.returncode, err) == (0, "")


@pytest.mark.usefixtures("has_browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(
    cluster: Connection, tmp_path: Path, shots: Path, scheme: str
) -> None:
    steps = parallel(range(400), name=f"{scheme} pipeline with a long name " * 4)
    for _ in range(6):
        steps = steps.map(with_a_rather_long_name_that_is_one_word)
    steps.reduce(max)
    link = cluster.dashboard_link
    opened_ones = opened(tmp_path / "profile", viewport={"width": 360, "height": 700}, color_scheme=scheme)
    with opened_ones as page:
        page.goto(link)
        page.wait_for_selector("article")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(246, 247, 249)") == (scheme == "light")
        page.screenshot(path=shots / f"phone-{scheme}.png")


def with_a_rather_long_name_that_is_one_word(x: int) -> int:
    time.sleep(0.0003)
    return x


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
        stats.end("ended")
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


REMOTE = """
import sys, time
from parcoll import connect, parallel

def work(x):
    time.sleep(0.005)
    return x

with connect(sys.argv[1]) as cluster:
    print(cluster.dashboard_link, flush=True)
    chain = parallel(range(int(sys.argv[3])), name=sys.argv[2], partition_size=20).map(work)
    assert chain.count() == int(sys.argv[3])
    print(chain.stats.state, chain.stats.elements_in)
"""


@pytest.mark.usefixtures("has_browser")
def test_two_clients_of_a_remote_cluster_are_on_its_page_and_stay_there(
    scripts: Scripts, tmp_path: Path, shots: Path
) -> None:
    """Neither the scheduler nor its workers have parcoll; one client ends, the other is killed."""
    script = scripts.write("client.py", REMOTE)
    with bare_cluster(tmp_path / "cluster", workers=2) as cluster:
        address = cluster.address
        killed = scripts.start(script, address, "killed", 100_000)
        link = killed.stdout.readline().strip()
        assert link.endswith("/parcoll")
        out, _ = scripts.run(script, address, "finished", 200)
        assert out == f"{link}\nended 200\n"
        assert eventually(lambda: any(p["elements_in"] > 0 for p in all_named(link, "killed")), 20)
        with opened(tmp_path / "profile") as page:
            page.goto(link)
            wait_for(page, "killed", "running")
            wait_for(page, "finished", "ended")
            assert number(page, "finished", "done") == 200
            killed.kill()
            wait_for(page, "killed", "lost")
            assert page.text_content('article[data-name="killed"] .state') == "its client is gone"
            clients = page.locator("article .details:nth-child(2)").all_text_contents()
            assert len(set(clients)) == 2
            page.screenshot(path=shots / "two-clients.png", full_page=True)


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


@pytest.mark.usefixtures("has_browser")
def test_the_page_s_script(cluster: Connection, tmp_path: Path) -> None:
    """What it makes of numbers; and what a reader has marked or scrolled stays while it runs."""
    with opened(tmp_path / "profile", viewport={"width": 390, "height": 800}) as page:
        page.goto(cluster.dashboard_link)
        page.locator("#cluster", has_text="workers").wait_for()
        numbers = "[0, 1e-9, 0.0123, 9.996, 20, 99.94, 99.97, 100, 999.6, 12345].map(short)"
        assert " ".join(page.evaluate(numbers)) == "0 0 0.0123 10 20 99.9 100 100 1,000 12,345"
        times = "[0, 0.0009999, 0.0015, 0.9997, 1.25, 121, 7200].map(duration)"
        assert page.evaluate(times) == ["0 µs", "1 ms", "1.5 ms", "1.0 s", "1.3 s", "2.0 min", "2.0 h"]
        sizes = "[0, 1023, 1536, 1010 * 1024, 5 * 2 ** 40].map(size)"
        assert page.evaluate(sizes) == ["0 B", "1,023 B", "1.5 KiB", "1,010 KiB", "5 TiB"]
        run = parallel(range(100_000), name="scrolled", partition_size=20).map(slow)
        stream = iter(run)
        next(stream)
        wait_for(page, "scrolled", "running")
        scrolled = "document.querySelector('[data-name=scrolled] .scroll').scrollLeft"
        page.evaluate(f"{scrolled} = 60")
        version = "document.querySelector('[data-name=scrolled]').dataset.version"
        before = page.evaluate(version)
        for _ in range(200):
            next(stream)
        assert eventually(lambda: page.evaluate(version) != before)
        assert page.evaluate(scrolled) == 60
        heading = "document.querySelector('[data-name=scrolled] h2')"
        page.evaluate(f"getSelection().selectAllChildren({heading})")
        marked = page.evaluate(version)
        for _ in range(200):
            next(stream)
        page.wait_for_timeout(2500)
        assert page.evaluate("String(getSelection())") == "scrolled"
        assert page.evaluate(version) == marked
        page.evaluate("getSelection().empty()")
        assert eventually(lambda: page.evaluate(version) != marked)
        stream.close()
        wait_for(page, "scrolled", "stopped")


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
