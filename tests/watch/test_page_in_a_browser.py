"""The pipeline page in a real browser."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from bare import bare_cluster
from browser import chromium, opened
from page_json import all_named
from scripts import Scripts, eventually

from parcoll import Connection, parallel


@pytest.fixture
def has_browser() -> None:
    """Skip, or in CI fail, before anything is started."""
    chromium()


@pytest.fixture(scope="module")
def shots(request: pytest.FixtureRequest) -> Path:
    """Give the folder for screenshots, beside pytest's cache."""
    return Path(request.config.cache.mkdir("screenshots"))


def number(page: Any, name: str, which: str) -> int:
    text = page.text_content(f'article[data-name="{name}"] [data-number="{which}"]')
    return int(text.replace(",", ""))


def wait_for(page: Any, name: str, state: str) -> None:
    page.wait_for_selector(f'article[data-name="{name}"][data-state="{state}"]', timeout=20_000)


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


def slow(x: int) -> int:
    time.sleep(0.002)
    return x


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
        made = "{label: 'per_worker(model)', count: 2, seconds: 4, mean: 2}"
        rows = f"steps({{steps: [], made: [{made}], worker_seconds: 8}}).querySelector('tbody tr').cells"
        assert page.evaluate(f"[...{rows}].map(cell => cell.textContent).join('|')").split("|")[:-1] == (
            ["per_worker(model)", "", "2", "", "4.0 s", "2.0 s"]
        )
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
