"""The README is what a newcomer runs first, and the guides come next: all that they show is run here."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parcoll
from parcoll import ParallelGen

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GUIDES = [page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "guides"]


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of the README, or of another text, in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


BLOCKS = [
    (page.stem, block) for page in PAGES for block in blocks("python", page.read_text(encoding="utf-8"))
]


def cells(heading: str) -> list[str]:
    """Return the first cell of each row of the table under that heading."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| ([^|]*`[^|]*) \|", table, flags=re.MULTILINE)


def test_two_commands_do_all_the_setup():
    commands = [block.strip() for block in blocks("sh")]
    assert len(commands) == 2
    demo, tests = commands
    assert demo == f"{tests} -s demo"


def test_ci_runs_the_readme_test_command():
    _, tests = blocks("sh")
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == tests.strip()


def printed_by(block: str) -> list[str]:
    """Return what a code block says that it prints."""
    return re.findall(r"print\(.*\)  # (.+)$", block, flags=re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_prints_what_its_comments_say(block, tmp_path):
    script = tmp_path / "readme.py"
    script.write_text(block, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == printed_by(block)
    assert run.stderr == ""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each block of the pages printed, and how it failed: all in one process, with one cluster."""
    folder = tmp_path_factory.mktemp("blocks")
    for number, (_, block) in enumerate(BLOCKS):
        (folder / f"{number:03}.py").write_text(block, encoding="utf-8")
    runner = Path(__file__).parents[1] / "helpers" / "run_blocks.py"
    run = subprocess.run(
        [sys.executable, str(runner), str(folder)], capture_output=True, text=True, timeout=500
    )
    assert (run.returncode, run.stderr) == (0, "")
    return json.loads(run.stdout)


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[page for page, _ in BLOCKS])
def test_a_block_of_a_page_prints_what_its_comments_say(number, ran):
    printed, failure = ran[number]
    missing = failure and re.search(r"ModuleNotFoundError: No module named '(pandas|PIL)'", failure)
    if missing:
        pytest.skip(f"{missing[1]} is not installed")
    assert failure is None, failure
    assert printed.splitlines() == printed_by(BLOCKS[number][1])


ASKED = """
import os
from unittest import mock
import pytest
import shop
from parcoll import connect, parallel

def pid():
    return parallel([1]).map(lambda _: os.getpid()).first()

def test_before():
    assert pid() == os.getpid()

def test_on_real_processes(cluster):
    assert pid() != os.getpid()

def test_behind():
    assert pid() == os.getpid()

@pytest.mark.usefixtures("cluster")
def test_by_a_mark():
    assert pid() != os.getpid()

def test_calls_of_mocks_are_counted_where_modules_have_them():
    with mock.patch("shop.price", return_value=3) as priced:
        assert shop.total("a") == shop.total_of_a_lambda("a") == 3
        assert priced.call_count == 0
        assert shop.total_of_a_def("a") == parallel("a").map(lambda item: shop.price(item)).sum() == 3
        assert priced.call_count == 2
        with connect("inline", copies=False):
            assert shop.total("a") == shop.total_of_a_lambda("a") == 3
        assert priced.call_count == 4
"""
SHOP = """
from parcoll import parallel

def price(item):
    raise RuntimeError("asks a server")

def with_tax(item):
    return price(item)

def total(items):
    return parallel(items).map(price).sum()

def total_of_a_lambda(items):
    return parallel(items).map(lambda item: price(item)).sum()

def total_of_a_def(items):
    return parallel(items).map(with_tax).sum()
"""


def test_the_fixtures_of_the_guide_have_each_test_where_it_asks_to_be(tmp_path):
    guide = (ROOT / "docs" / "guides" / "testing.md").read_text(encoding="utf-8")
    (fixtures,) = [block for block in blocks("python", guide) if "fixture" in block]
    (tmp_path / "conftest.py").write_text(fixtures, encoding="utf-8")
    (tmp_path / "test_asked.py").write_text(ASKED, encoding="utf-8")
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout
    assert "5 passed" in run.stdout


def test_the_table_names_every_operation_and_no_other():
    named = {name for cell in cells("on a collection") for name in re.findall(r"`(\w+)", cell)}
    public = {name for name in dir(ParallelGen) if not name.startswith("_")}
    assert named == public


def test_calls_named_in_the_text_exist():
    methods = {name for name in dir(ParallelGen) if not name.startswith("_")}
    called = set(re.findall(r"`(\w+)\(", "".join([README, *GUIDES])))
    assert called <= methods | {*parcoll.__all__, *dir(builtins)}


def test_the_readme_is_short_and_leads_to_the_site():
    assert len(README.splitlines()) <= 150
    assert "](docs/index.md)" in README


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
