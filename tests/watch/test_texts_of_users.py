"""Texts that users choose, with whatever is in them: on the page, in log lines, the bar, tables, metrics."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened
from page_json import named, read

from parcoll import Connection, parallel
from parcoll.text import escaped
from parcoll.watch.bar import Bar
from parcoll.watch.stats import Stats

FILE = os.fsdecode(b"caf\xe9.txt")  # which no encoding holds
TEXTS = {
    "half a character": FILE,
    "two halves": "\ud83d\ude00 and \udfff",
    "markup": "<img src=x onerror='window.taken = 1'><script>window.taken = 1</script>&lt;b&gt;",
    "breaks": "one\nlevel=ERROR two\r\nthree\x0b\x0c\x85\u2028four\u2029five",
    "terminal": "\x1b[2J\x1b]0;title\x07\x9b31mred\x1b[0m\x08\x08",
    "a metric": 'x"} 1\nparcoll_failed_total{pipeline="y\\',
    "directions": "\u202eright to left\u202c \u2066isolated\u2069\u200f\ufeff",
    "nothing there": "\x00\x01\x7f\u200b",
    "a template": "{{7*7}} ${7*7} %(x)s %s {0} #{1}",
}
HARMLESS = [
    "café",
    "日本語\u3000名",
    "e\u0301",
    "👩\u200d💻",
    "\u0646\u0627\u0645\u200c\u0647\u0627",
    "a\u00a0b",
]
texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())


def shown_as_it_is(text: str) -> bool:
    """Tell whether every encoding holds a text, and every terminal shows it in one line."""
    return text == escaped(text) and text.encode().decode().splitlines() in ([], [text])


def failing_with(text: str) -> Callable[[int], int]:
    def fail(x: int) -> int:
        if x % 100 == 7:
            raise ValueError("cannot parse " + text)
        time.sleep(0.002)
        return x

    fail.__name__ = text
    return fail


class Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@pytest.mark.parametrize("text", HARMLESS)
def test_what_every_language_writes_stays(text: str) -> None:
    assert escaped(text) == text


@texts
def test_the_page_the_log_and_the_metrics(
    cluster: Connection, text: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """All of them tell how it ended, and nobody else says a word."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families as families

    chain = parallel(range(400), name=text, on_error="skip", partition_size=50).map(failing_with(text))
    with caplog.at_level(logging.INFO):
        assert chain.map(abs).count() == 396
        with pytest.raises(ValueError, match="broken"):
            parallel([Shown(text)], name=text).map(broken).count()
    assert [record for record in caplog.records if record.name != "parcoll"] == []
    assert len(caplog.messages) >= 4
    assert all(shown_as_it_is(message) for message in caplog.messages)
    assert capfd.readouterr() == ("", "")
    link = cluster.dashboard_link
    seen = [p for p in all_pipelines(link) if p["name"] == escaped(text)]
    assert {p["state"] for p in seen} == {"ended", "failed"}
    ended = next(p for p in seen if p["state"] == "ended")
    assert [f["message"] for f in ended["failures"]] == [
        escaped(f"ValueError: {' '.join(f'cannot parse {text}'.split())}")
    ] * 4
    assert all(shown_as_it_is(found) for found in texts_in(seen))
    metrics = link.replace("/parcoll", "/metrics")
    with urllib.request.urlopen(metrics, timeout=30) as response:
        found = list(families(response.read().decode()))
    samples = [s for family in found if family.name == "parcoll_failed" for s in family.samples]
    assert [s.value for s in samples if s.labels == {"pipeline": escaped(text)}] == [5.0]
    assert "y" not in [s.labels.get("pipeline") for s in samples]


def broken(x: Any) -> Any:
    raise ValueError("broken")


def all_pipelines(link: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(f"{link}/json")["pipelines"]
    return found


def texts_in(found: Any) -> list[str]:
    if isinstance(found, str):
        return [found]
    values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return [text for value in values for text in texts_in(value)]


@texts
def test_numbers_and_explanations(inline: Connection, text: str) -> None:
    chain = parallel([1, 107, Shown(text)], name=text, on_error="skip").map(failing_with(text))
    assert list(chain) == [1]
    assert chain.stats.name == text
    for table in (str(chain.stats), str(chain.explain()), repr(chain)):
        assert all(map(shown_as_it_is, table.split("\n")))
    for failure in chain.stats.failures:
        assert shown_as_it_is(failure.message)
        assert shown_as_it_is(failure.note)
    html = chain.explain()._repr_html_()
    assert "<img" not in html
    assert "<script" not in html
    html.encode()


@texts
def test_a_source_that_fails(
    inline: Connection, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> Any:
        yield 1
        raise OSError(f"no such file: {text}")

    chain = parallel(source, name=text, checkpoint=tmp_path)
    with caplog.at_level(logging.INFO, "parcoll"), pytest.raises(OSError, match="no such file"):
        list(chain)
    assert [shown_as_it_is(failure.message) for failure in chain.stats.failures] == [True]
    assert all(map(shown_as_it_is, caplog.messages))


@texts
def test_the_bar(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
        monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", out)
        bar = Bar(Stats(name=text, state="ended", started=1.0, ended=2.0, elements_in=3, total=3), text)
        bar.end()
        written = raw.getvalue().decode()
        assert "3/3" in written
        lines = written.replace("\r", "\n").replace("\x1b[A", "").split("\n")
        assert all(map(shown_as_it_is, lines))


def test_a_program_whose_name_no_encoding_holds(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    from parcoll.watch import publish

    monkeypatch.setattr(sys, "argv", [f"/home/{FILE}"])
    publish._who.cache_clear()
    try:
        parallel(range(200), name="named").map(lambda x: time.sleep(0.003)).count()
        assert ": caf\\udce9.txt, process" in named(cluster.dashboard_link, "named")["client"]
    finally:
        publish._who.cache_clear()


def test_nothing_of_them_is_run_by_a_browser(cluster: Connection, tmp_path: Path) -> None:
    """Nor breaks the page: every pipeline is there, and its texts are read as they were written."""
    chromium()
    for text in TEXTS.values():
        chain = parallel([1, 7, Shown(text)], name=text, on_error="skip").map(failing_with(text))
        with pytest.raises(ZeroDivisionError):
            chain.map(lambda x: 1 // 0, on_error="raise").count()
    with opened(tmp_path / "profile") as page:
        said: list[str] = []
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if "127.0.0.1" not in request.url else 0)
        page.goto(cluster.dashboard_link)
        for text in TEXTS.values():
            page.wait_for_function(
                "name => [...document.querySelectorAll('h2')].some(node => node.textContent === name)",
                arg=escaped(text),
                timeout=20_000,
            )
        page.wait_for_timeout(1500)  # one more round of numbers
        assert page.evaluate("window.taken") is None
        assert page.query_selector("article img, article script") is None
        assert said == []
