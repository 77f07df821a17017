"""The progress bar, in a real pseudo-terminal and in a log file: one line, exact at the end."""

from __future__ import annotations

import os
import pty
import re
import signal
import termios
import threading
import time
from typing import Any

import pytest
from scripts import Scripts

from parcoll import parallel, progress
from parcoll.watch import bar
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats
from parcoll.worker.outcome import Outcome

START = """
import time
from parcoll import connect, parallel, progress

def slow(x):
    time.sleep(0.002)
    return x

def fail(x):
    if x == 150:
        raise ValueError("bad")
    return slow(x)

def endless():
    x = 0
    while True:
        yield x
        x += 1
"""


class Terminal:
    """A terminal that a script writes its standard error to."""

    def __init__(self, scripts: Scripts, text: str, columns: int = 100) -> None:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, columns))
        self.process = scripts.start_file(START + text, stderr=slave)
        os.close(slave)
        self._master = master
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self._parts.append(data)
        except OSError:  # the last writer is gone
            pass

    @property
    def written(self) -> str:
        return b"".join(self._parts).decode()

    def end(self, code: int = 0) -> tuple[str, list[str]]:
        """Wait for the script; return what it printed, and the states of each line of the terminal."""
        out, _ = self.process.communicate(timeout=60)
        self._reader.join(30)
        os.close(self._master)
        assert self.process.returncode == code, self.written
        return out, self.written.replace("\r\n", "\n").split("\n")


def last(line: str) -> str:
    """Return what a terminal shows of a line that was written over and over."""
    return re.sub(r"\x1b\[\w", "", line).rstrip().split("\r")[-1]


@pytest.mark.parametrize("columns", [100, 0])
def test_a_known_total_is_reached_on_one_line(scripts: Scripts, columns: int) -> None:
    """Also in a terminal that does not say how wide it is, as in some containers."""
    _, lines = Terminal(scripts, "list(parallel(range(1000), progress='parse').map(slow))", columns).end()
    assert lines[1:] == [""]
    assert re.match(r"parse: 100%\|█+\| 1000/1000 \[.*elements/s\]$", last(lines[0]))
    counts = [int(n) for n in re.findall(r" (\d+)/1000 ", lines[0])]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3  # it moved


def test_a_stream_shows_no_total_and_stops_where_it_is_left(scripts: Scripts) -> None:
    text = """
chain = parallel(endless, progress=True, partition_size=20).map(slow)
chain.take(333)
print(chain.stats.elements_in)
"""
    out, lines = Terminal(scripts, text).end()
    assert lines[1:] == [""]
    assert re.match(rf"map\(slow\): {int(out)} elements \[.*, stopped\]$", last(lines[0]))


def test_a_loop_that_is_left_early_ends_its_bar(scripts: Scripts) -> None:
    text = """
chain = parallel(range(100_000), progress=True, partition_size=20).map(slow)
for x in chain:
    if x == 100:
        break
print(chain.stats.elements_in)
"""
    out, lines = Terminal(scripts, text).end()
    assert lines[1:] == [""]
    assert f" {int(out)}/100000 [" in last(lines[0])
    assert last(lines[0]).endswith(", stopped]")


def test_a_failure_is_shown(scripts: Scripts) -> None:
    text = """
chain = parallel(range(300), progress=True, partition_size=20).map(fail)
try:
    chain.count()
except ValueError:
    print(chain.stats.elements_in)
"""
    out, lines = Terminal(scripts, text).end()
    assert lines[1:] == [""]
    assert f" {int(out)}/300 [" in last(lines[0])
    assert last(lines[0]).endswith(", 1 failed, failed]")


def test_what_was_overcome_is_shown(scripts: Scripts) -> None:
    text = """
import os

def work(x):
    if x == 30:
        os._exit(1)
    while x == 60:
        pass
    return x

with connect(n_workers=2):
    settings = {"on_error": "skip", "timeout": 0.5, "partition_size": 50, "progress": True}
    print(parallel(range(100), **settings).map(work).count())
"""
    out, lines = Terminal(scripts, text, columns=160).end()
    assert (out, lines[1:]) == ("98\n", [""])
    assert " 100/100 [" in last(lines[0])
    assert last(lines[0]).endswith(", 2 failed, 1 retry, 1 call timed out, 2 processes died]")


def test_ctrl_c_leaves_the_exact_number(scripts: Scripts) -> None:
    text = """
chain = parallel(range(1_000_000), progress=True, partition_size=20).map(slow)
try:
    chain.foreach(slow)
except KeyboardInterrupt:
    print(chain.stats.elements_in)
"""
    terminal = Terminal(scripts, text)
    deadline = time.monotonic() + 30
    while not re.search(r" [1-9]\d*/1000000", terminal.written) and time.monotonic() < deadline:
        time.sleep(0.05)
    terminal.process.send_signal(signal.SIGINT)
    out, lines = terminal.end()
    assert lines[1:] == [""]
    assert f" {int(out)}/1000000 [" in last(lines[0])
    assert last(lines[0]).endswith(", stopped]")


def test_a_long_chain_leaves_room_for_the_numbers(scripts: Scripts) -> None:
    text = """
chain = parallel(range(50), progress=True)
for _ in range(20):
    chain = chain.map(slow)
chain.count()
"""
    _, lines = Terminal(scripts, text, columns=80).end()
    assert lines[1:] == [""]
    assert last(lines[0]).startswith("map(slow).map(s...w).map(slow): 100%")
    assert " 50/50 [" in last(lines[0])


def test_every_evaluating_call_has_a_bar(scripts: Scripts) -> None:
    text = """
progress()
chain = parallel(range(50)).map(slow)
list(chain)
chain.count()
chain.reduce(max)
chain.fold(max, 0)
chain.foreach(slow)
chain.take(50)
parallel(range(5), progress=False).count()
with progress(False):
    chain.count()
"""
    _, lines = Terminal(scripts, text).end()
    *bars, end = lines
    assert end == ""
    assert len(bars) == 6
    assert all(" 50/50 [" in last(line) for line in bars[:5])


def test_the_rate_counts_the_time_in_which_nothing_came() -> None:
    """Results come in bursts, and the bar is drawn between them too."""
    stats, now = Stats(), [0.0]
    line = bar._Line("bursts")
    line._bar._time = lambda: now[0]
    line._bar.start_t = line._bar.last_print_t = 0.0
    for tenth in range(100):
        now[0] = (tenth + 1) / 10
        stats.elements_in = 20 * ((tenth + 1) // 10)
        line.draw(stats)
    assert line._bar.format_dict["rate"] == pytest.approx(20, rel=0.01)
    line.close()


def test_a_log_file_gets_few_whole_lines(scripts: Scripts) -> None:
    text = "list(parallel(range(500), progress=True).map(slow)); list(parallel(range(5)).map(slow))"
    _, err = scripts.run(scripts.write("script.py", START + text))
    lines = err.splitlines()
    assert "\r" not in err
    assert " 500/500 [" in lines[-1]
    assert len(lines) <= 2


def test_a_log_file_gets_nothing_unless_asked(scripts: Scripts) -> None:
    script = scripts.write("script.py", START + "progress()\nlist(parallel(range(50)).map(slow))")
    assert scripts.run(script) == ("", "")


def test_a_bar_that_nobody_can_see_costs_no_result(scripts: Scripts) -> None:
    """Its pipe has no reader any more, from the start or from some moment on, or it is closed."""
    text = """
import os, sys
kept = os.dup(2)

def reader_gone():
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    os.close(reading)

def run(way, *moments):
    chain = parallel(range(60), progress=True, partition_size=5).map(slow)
    results = []
    for x in chain:
        if x in moments:
            way()
        results.append(x)
    os.dup2(kept, 2)
    print(len(results), chain.stats.state)

bar_seconds = __import__("parcoll.watch.bar", fromlist=["bar"])
bar_seconds.LOG_SECONDS = bar_seconds._Log.seconds = 0.01
reader_gone()
run(lambda: None)
run(reader_gone, 30)
sys.stderr = None
run(lambda: None)
sys.stderr = open(os.devnull, "w")
run(sys.stderr.close, 30)
sys.stderr = sys.__stderr__
"""
    out, _ = scripts.run(scripts.write("script.py", START + text))
    assert out == "60 ended\n" * 4


def test_tqdm_is_imported_for_a_bar_only(scripts: Scripts) -> None:
    text = "import sys\nparallel(range(5)).count()\nprint('tqdm' in sys.modules)"
    assert scripts.run_file(START + text) == "False\n"


def test_a_notebook_kernel_shows_it(scripts: Scripts) -> None:
    """Standard error is no terminal there, and somebody watches all the same."""
    client = pytest.importorskip("jupyter_client")
    manager, kernel = client.manager.start_new_kernel(extra_arguments=["--log-level=ERROR"])
    try:
        errors: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stderr":
                errors.append(message["content"]["text"])

        code = START + "\nprogress()\nwith connect('inline'):\n    parallel(range(100)).map(slow).count()\n"
        reply = kernel.execute_interactive(code, output_hook=collect, timeout=60)
        assert reply["content"]["status"] == "ok"
        assert " 100/100 [" in last("".join(errors))
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="progress must be True, False or a label, got 3"):
        parallel([], progress=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"progress\(\) needs True, False or nothing, got 'x'"):
        progress("x")  # type: ignore[arg-type]


@pytest.mark.parametrize("display", [bar._Line, bar._Log])
def test_an_evaluation_that_begins_again_is_shown_from_its_beginning(
    display: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cluster was lost, and with it what it had: what is done again is not counted twice."""
    stats = Stats(total=10)
    recorder = Recorder(stats)
    recorder.begin()
    line = display("again")
    for outcome in (
        Outcome(read=7, produced=7),
        None,
        Outcome(read=4, produced=4),
        Outcome(read=6, produced=6),
    ):
        if outcome is None:
            recorder.lose()
            recorder.forget()
        else:
            recorder.add(outcome)
        line.draw(stats)
    line.close()
    shown = capsys.readouterr().err
    assert " 7/10 " in shown
    assert " 4/10 " in shown
    last = shown.replace("\r", "\n").strip().splitlines()[-1]
    assert " 10/10 " in last
    assert "1 loss of the cluster" in last
