"""Ctrl-C once stops the run and leaves the cluster usable, twice ends the process; neither leaves anything.

Real scripts, in a process group of their own that gets the signal whole, as from a terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import SECONDS, Scripts, eventually

PAUSES = (
    0.0,
    0.05,
    0.3,
)  # seconds between the two: while the first one ends the run, and while the script ends

START = """
import contextlib, ctypes, itertools, os, signal, threading, time
from parcoll import connect, parallel

WAIT = {wait}

def up():
    open("up", "w").close()

def sleeps(x):
    up()
    time.sleep(WAIT)
    return x

def holds_gil(x):
    up()
    ctypes.PyDLL(None).usleep(int(WAIT * 1e6))  # which no signal, thread or timer of Python gets into
    return x

def ignores(x):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        ctypes.CDLL(None).signal(number, 1)  # SIG_IGN
    open("begun", "w").close()
    ctypes.PyDLL(None).usleep(int(WAIT * 1e6))
    return x

def up_later():
    def wait():
        while not os.path.exists("begun"):
            time.sleep(0.01)
        up()
    threading.Thread(target=wait, daemon=True).start()

def fails(x):
    up()
    raise ValueError(x)

def add(x, y):
    sleeps(x)
    return x + y

def source():
    yield from range(5)
    up()
    time.sleep(1000)

def reads(stream):
    for x in stream:
        up()
        time.sleep(1000)

def closes():
    # Its worker ends only when it is killed, after a second.
    own = connect(n_workers=1)
    results = iter(parallel(range(10)).map(ignores))
    threading.Thread(target=draw, args=(results,), daemon=True).start()
    while not os.path.exists("begun"):
        time.sleep(0.01)
    threading.Timer(0.2, up).start()
    own.close()
    time.sleep(1000)  # where it was closed before the signal came

def draw(results):
    with contextlib.suppress(Exception):
        list(results)
"""

PLACES = {
    "a function": "list(parallel(range(10)).map(sleeps))",
    "functions that hold the GIL": "list(parallel(range(10)).map(holds_gil))",
    "functions that ignore all signals": "up_later(); list(parallel(range(10)).map(ignores))",
    "a function, on_error": "list(parallel(range(10), on_error='skip').map(sleeps))",
    "a pause before a retry": "list(parallel(range(10), retries=99).map(fails))",
    "a function with a timeout": "list(parallel(range(10), timeout=100).map(sleeps))",
    "the source": "list(parallel(source).map(abs))",
    "the source, on_error": "list(parallel(source, on_error='skip').map(abs))",
    "the consumer": "reads(parallel(range(10)).map(abs))",
    "reduce": "parallel(range(4)).reduce(add)",
    "fold": "parallel(range(4), partition_size=2).fold(add, 0)",
    "foreach": "parallel(range(10)).foreach(sleeps)",
    "count": "parallel(range(10)).map(sleeps).count()",
    "take": "parallel(itertools.count()).map(sleeps).take(5)",
    "closing": "closes()",
    "inline": "with connect('inline'): list(parallel(range(10)).map(sleeps))",
    "inline, on_error": "with connect('inline'): list(parallel(range(10), on_error='skip').map(sleeps))",
    "inline, a pause before a retry": "with connect('inline'): parallel([1], retries=99).map(fails).count()",
}
# As a user at a prompt: after the first Ctrl-C the next evaluation works.
ONCE = """
parallel(range(4)).map(abs).count()
try:
    {place}
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(list(parallel(range(5)).map(lambda x: x + 1)), flush=True)
"""
TWICE = """
parallel(range(4)).map(abs).count()
{place}
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    """Run scripts that must leave nothing."""
    scripts = Scripts(tmp_path)
    yield scripts
    scripts.check(10)


def started(scripts: Scripts, text: str, wait: float) -> subprocess.Popen[str]:
    """Return a script that is where it is to be interrupted."""
    code = START.replace("{wait}", str(wait)) + text
    script = scripts.start_file(code, start_new_session=True)
    there = eventually(lambda: (scripts.folder / "up").exists() or script.poll() is not None, SECONDS)
    assert there
    assert script.poll() is None, script.communicate()
    return script


def press_ctrl_c(script: subprocess.Popen[str]) -> None:
    os.killpg(script.pid, signal.SIGINT)


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_once_stops_the_run_and_the_cluster_stays_usable(scripts: Scripts, place: str) -> None:
    """Also where the functions would go on for a thousand seconds: their workers are replaced."""
    script = started(scripts, ONCE.replace("{place}", PLACES[place]), wait=1000)
    press_ctrl_c(script)
    out, err = script.communicate(timeout=SECONDS)
    assert (out, err, script.returncode) == ("interrupted\n[1, 2, 3, 4, 5]\n", "", 0)


# What the one before shows up to the first Ctrl-C: every second place is enough.
TWICE_IN = [pytest.param(place, marks=pytest.mark.slow if i % 2 else ()) for i, place in enumerate(PLACES)]


@pytest.mark.parametrize("place", TWICE_IN)
def test_ctrl_c_twice_ends_the_process(scripts: Scripts, place: str) -> None:
    """Whatever workers are in, for a thousand seconds. What it says then is Python's own."""
    script = started(scripts, TWICE.replace("{place}", PLACES[place]), wait=1000)
    pause = PAUSES[list(PLACES).index(place) % len(PAUSES)]
    press_ctrl_c(script)
    time.sleep(pause)
    press_ctrl_c(script)
    _, err = script.communicate(timeout=SECONDS)
    assert "KeyboardInterrupt" in err
    assert script.returncode in (-signal.SIGINT, 130, 1)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "seconds", [0.0, 0.1, 0.4, *(pytest.param(late, marks=SLOW) for late in (0.05, 0.2, 0.8))]
)
def test_ctrl_c_while_the_cluster_starts(scripts: Scripts, seconds: float) -> None:
    text = """
try:
    up()
    parallel(range(4)).map(abs).count()
    time.sleep(1000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(list(parallel(range(5)).map(lambda x: x + 1)), flush=True)
"""
    script = started(scripts, text, wait=0)
    time.sleep(seconds)
    press_ctrl_c(script)
    out, err = script.communicate(timeout=SECONDS)
    assert (out, err, script.returncode) == ("interrupted\n[1, 2, 3, 4, 5]\n", "", 0)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_ctrl_c_twice_while_the_cluster_starts(scripts: Scripts, seconds: float) -> None:
    script = started(scripts, "up()\nparallel(range(4)).map(sleeps).count()", wait=1000)
    time.sleep(seconds)
    press_ctrl_c(script)
    time.sleep(0.02)
    press_ctrl_c(script)
    _, err = script.communicate(timeout=SECONDS)
    assert "KeyboardInterrupt" in err


def test_what_another_thread_evaluates_is_not_touched(scripts: Scripts) -> None:
    """Its partitions wait for workers that go on with what was interrupted, until these are replaced."""
    text = """
kept = parallel(range(100))
kept.foreach(lambda x: -x)

def pause(x):
    time.sleep(0.002)
    return x

found = []
thread = threading.Thread(target=lambda: found.extend(parallel(range(2000)).map(pause)))
try:
    thread.start()
    list(parallel(range(50), partition_size=1).map(sleeps))
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(list(parallel(range(5)).map(lambda x: x + 1)), flush=True)
thread.join()
print(found == list(range(2000)), list(kept) == [-x for x in range(100)])
"""
    script = started(scripts, text, wait=1000)
    press_ctrl_c(script)
    out, err = script.communicate(timeout=SECONDS)
    expected = "interrupted\n[1, 2, 3, 4, 5]\nTrue True\n"
    assert (out, err, script.returncode) == (expected, "", 0)
