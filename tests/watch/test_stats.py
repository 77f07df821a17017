"""The numbers of an evaluation: what each step took, how it ended, and that nothing is counted twice."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import eventually, wait_for_file

from parcoll import Connection, connect, parallel, read_files, read_text
from parcoll.connecting import current
from parcoll.text import function_words, key_words
from parcoll.watch import table
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import Stats


def slow(x: int) -> int:
    time.sleep(0.002)
    return x


def odd(x: int) -> bool:
    return x % 2 == 1


def twice(x: int) -> list[int]:
    return [x, x]


@pytest.fixture(params=["inline", "cluster"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("size", ["auto", 7, 1000])
def test_each_step_has_its_counts_and_its_time(engine: Any, size: Any) -> None:
    chain = parallel(range(300), partition_size=size).map(slow).filter(odd).flatmap(twice)
    assert len(list(chain)) == 300
    stats = chain.stats
    first, second, third = stats.steps
    assert [(s.entered, s.left, s.failed, s.retries) for s in stats.steps] == [
        (300, 300, 0, 0),
        (300, 150, 0, 0),
        (150, 300, 0, 0),
    ]
    assert (stats.state, stats.total, stats.elements_in, stats.elements_out) == ("ended", 300, 300, 300)
    # Each slow element is timed, so that no more is missing than what sleeping longer adds.
    assert 300 * 0.002 <= first.seconds <= stats.worker_seconds
    assert second.seconds + third.seconds < first.seconds / 2
    assert sum(s.seconds for s in stats.steps) <= stats.worker_seconds
    assert stats.partitions == stats.partitions_done
    assert 1 <= stats.sizes.smallest <= stats.sizes.median <= stats.sizes.largest <= 300
    assert stats.verdict.startswith("`map(slow)` takes ")


def test_the_time_of_cheap_elements_comes_from_a_sample(inline: Connection) -> None:
    """Half of the time is in either step, whether their elements are timed or not."""

    def work(x: int) -> int:
        return sum(range(20)) + x

    chain = parallel(range(200_000), partition_size=100_000).map(work).map(work)
    assert chain.count() == 200_000
    first, second = chain.stats.steps
    assert 1 / 3 < first.seconds / second.seconds < 3
    assert chain.stats.worker_seconds / 5 < first.seconds + second.seconds < chain.stats.worker_seconds


def test_elements_that_a_flatmap_makes_are_timed_too(engine: Any) -> None:
    chain = parallel(range(40), partition_size=1).flatmap(lambda x: range(1000)).map(lambda x: -x)
    assert chain.count() == 40_000
    assert all(step.seconds > 0 for step in chain.stats.steps)
    assert [(step.entered, step.left) for step in chain.stats.steps] == [(40, 40_000), (40_000, 40_000)]


@pytest.mark.parametrize("position", [0, 1, 5, 40, 299])
def test_a_partition_whose_step_raises_counts_exactly(engine: Any, position: int) -> None:
    def fail(x: int) -> int:
        if x == position:
            raise ValueError("<b>bad</b>")
        return slow(x)

    chain = parallel(range(300), partition_size=300).filter(lambda x: True).map(fail).map(str)
    with pytest.raises(ValueError, match="bad"):
        list(chain)
    stats = chain.stats
    kept, failing, last = stats.steps
    assert (kept.entered, kept.left) == (position + 1, position + 1)
    assert (failing.entered, failing.left, failing.failed) == (position + 1, position, 1)
    assert (last.entered, last.left, last.failed) == (position, position, 0)
    assert (stats.state, stats.failed, stats.elements_out) == ("failed", 1, position)
    (failure,) = stats.failures
    assert (failure.step, failure.message) == ("map(fail)", "ValueError: <b>bad</b>")
    assert f"at element {position}" in failure.note


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("2 errors\nname:\n    Field required\n"), "ValueError: 2 errors name: Field required"),
        (ExceptionGroup("many", [ValueError("a"), KeyError("b")]), "ExceptionGroup: many (2 sub-exceptions)"),
        (SyntaxError("no way", ("here.py", 3, 1, "x = ", 3, 5)), "SyntaxError: no way (here.py, line 3)"),
        (StopIteration(), "StopIteration"),
        (urllib.error.URLError("gone"), "urllib.error.URLError: <urlopen error gone>"),
        (Odd(), f"{__name__}.Odd: <its str() failed>"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_is_told_in_one_line(inline: Connection, error: Exception, message: str) -> None:
    error.add_note("and a note")

    def fail(x: int) -> int:
        raise error

    chain = parallel(range(1), on_error="skip").map(fail)
    assert list(chain) == []
    (failure,) = chain.stats.failures
    assert failure.message == message


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 µs"),
        (1.5e-6, "1.5 µs"),
        (999.6e-6, "1 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (999.4, "999 s"),
        (999.8, "1,000 s"),
        (86_400, "86,400 s"),
    ],
)
def test_times_are_told_with_three_digits(seconds: float, shown: str) -> None:
    assert table.duration(seconds) == shown


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1010 * 1024, "1,010 KiB"),
        (5 * 2**40, "5.0 TiB"),
    ],
)
def test_sizes_are_told_with_three_digits(nbytes: float, shown: str) -> None:
    assert table.size(nbytes) == shown


def test_how_an_evaluation_ended(engine: Any) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    stopped = parallel(lambda: iter(range(10**9))).map(slow)
    assert stopped.take(2) == [0, 1]
    failed = parallel(broken).map(slow)
    with pytest.raises(OSError, match="no more"):
        list(failed)
    unread = parallel(range(3))
    assert [chain.stats.state for chain in (stopped, failed, unread)] == ["stopped", "failed", "new"]
    assert failed.stats.failures[0].message == "OSError: no more"
    assert stopped.stats.total is None


def test_a_fold_and_a_reduce_have_a_row_of_their_own(engine: Any) -> None:
    def add(a: int, b: int) -> int:
        time.sleep(0.002)
        return a + b

    chain = parallel(range(60)).map(lambda x: x)
    assert chain.reduce(add) == 1770
    assert (chain.stats.fold, chain.stats.state) == ("reduce(add)", "ended")
    assert 59 * 0.002 <= chain.stats.fold_seconds <= chain.stats.worker_seconds
    assert chain.stats.verdict.startswith("`reduce(add)` takes ")
    assert chain.fold(add, 0) == 1770
    assert chain.stats.fold == "fold(add)"
    assert 59 * 0.002 <= chain.stats.fold_seconds <= chain.stats.worker_seconds
    assert "fold(add)" in str(chain.stats)


def test_whom_the_evaluation_waited_for(cluster: Connection) -> None:
    def source() -> Iterator[int]:
        for x in range(30):
            time.sleep(0.03)
            yield x

    def for_source() -> str:
        chain = parallel(source).map(lambda x: x)
        assert chain.count() == 30
        assert chain.stats.waited.source >= 0.9
        return chain.stats.verdict

    def for_consumer() -> str:
        chain = parallel(range(30), partition_size=1).map(lambda x: x)
        for _ in chain:
            time.sleep(0.03)
        assert chain.stats.waited.consumer >= 0.87
        return chain.stats.verdict

    # Where the machine pauses it is the workers that are waited for; not each time.
    assert any(for_source().startswith("the source is the bottleneck") for _ in range(4))
    assert any(for_consumer().startswith("the consumer is the bottleneck") for _ in range(4))

    assert (parallel(range(100)).map(slow)).count() == 100


def test_bytes_in_both_directions(cluster: Connection) -> None:
    """Of elements and of the functions; with these goes what the script has."""

    def sent(elements: list[bytes]) -> int:
        nonlocal chain
        chain = parallel(elements, partition_size=5).map(lambda data: data[:1000])
        list(chain)
        return chain.stats.bytes_sent

    chain = parallel([b""])
    functions = sent([b""])
    assert functions > 0
    assert 200_000 <= sent([os.urandom(10_000) for _ in range(20)]) - functions < 220_000
    assert 1_000 <= chain.stats.bytes_received < 40_000


def test_a_killed_worker_s_elements_are_counted_once(cluster: Connection, tmp_path: Path) -> None:
    """What it had begun runs again; what it had reported does not count again."""
    begun = tmp_path / "begun"

    def work(x: int) -> int:
        if x == 400:
            begun.touch()
        time.sleep(0.001)
        return os.getpid()

    chain = parallel(range(3000), partition_size=50).map(work).filter(lambda pid: True)
    killed: list[int] = []

    def kill() -> None:
        wait_for_file(begun)
        killed.append(min(cluster.engine.client.run(os.getpid).values()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    pids = list(chain)
    killer.join()
    stats = chain.stats
    assert len(pids) == 3000
    assert len(set(pids) - set(killed)) >= 1
    assert [(s.entered, s.left, s.failed) for s in stats.steps] == [(3000, 3000, 0)] * 2
    assert (stats.elements_in, stats.elements_out, stats.failed) == (3000, 3000, 0)
    assert stats.partitions == stats.partitions_done == 60
    assert (stats.sizes.smallest, stats.sizes.largest, stats.state) == (50, 50, "ended")


def test_a_lost_worker_is_logged(cluster: Connection, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="parcoll")
    assert parallel(range(400), name="logged").map(slow).count() == 400
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "logged: started"
    assert messages[-1].startswith("logged: ended after ")
    os.kill(min(cluster.engine.client.run(os.getpid).values()), signal.SIGKILL)
    lost = lambda: [r for r in caplog.records if "the cluster lost the worker" in r.getMessage()]
    assert eventually(lost)
    assert lost()[0].levelno == logging.WARNING


def test_a_cluster_s_start_and_end_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="parcoll")
    with connect(n_workers=1) as connection:
        address = connection.address
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"local cluster of 1 worker started, {address}", "local cluster closed"]


def test_numbers_may_be_read_while_they_change(inline: Connection) -> None:
    """Each reading is of one moment: what went in came out."""
    chain = parallel(range(30_000), partition_size=10).map(lambda x: x).map(lambda x: x)
    wrong, seen, ended = [], set(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            snapshot = chain.stats.snapshot()
            flows = {step[name] for step in snapshot["steps"] for name in ("entered", "left")}
            seen.update(flows)
            if len(flows | {snapshot["elements_in"]}) > 1 and snapshot["steps"]:
                wrong.append(snapshot)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert chain.count() == 30_000
    finally:
        ended.set()
        watcher.join()
    assert len(seen) > 2
    assert not wrong


def test_stats_can_be_copied_and_printed(inline: Connection) -> None:
    chain = parallel(range(10)).map(slow)
    assert str(chain.stats).startswith("not evaluated yet")
    list(chain)
    copied: Stats = pickle.loads(pickle.dumps(chain.stats))
    assert copied == chain.stats
    header, columns, row, *_ = str(copied).splitlines()
    assert header.startswith("ended after ")
    assert "10 of 10 elements" in header
    assert columns.split() == ["step", "in", "out", "failed", "seconds", "mean", "share"]
    assert row.split()[:4] == ["map(slow)", "10", "10", "0"]


# What users see of a collection -------------------------------------------------------------------


def test_explain_says_what_would_run_and_what_ran(inline: Connection) -> None:
    chain = parallel(range(10), partition_size=3).map(slow).filter(odd)
    before = str(chain.explain())
    assert before.splitlines() == [
        "chain:      parallel(range(0, 10)).map(slow).filter(odd)",
        "source:     range(0, 10), read anew by each evaluation",
        "engine:     connect(), inline",
        "partitions: 3 elements each; results in source order",
        "not evaluated yet",
    ]
    list(chain)
    after = str(chain.explain())
    assert after == before.replace("not evaluated yet", str(chain.stats))
    assert repr(chain.explain()) == after


def test_explain_starts_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "_connected", [])
    monkeypatch.setattr(current, "default", None)
    numbers = iter(range(3))
    explained = parallel(numbers).unordered().explain()
    assert explained.engine == "a local cluster, started by the first evaluation"
    assert "one evaluation" in explained.source
    assert explained.partitions.endswith("results as they come")
    assert list(numbers) == [0, 1, 2]
    assert current.default is None


def test_explain_names_the_bag_and_the_client(cluster: Connection) -> None:
    import dask.bag

    explained = parallel(dask.bag.from_sequence([1, 2], npartitions=2)).explain()
    assert explained.partitions.startswith("those of the bag, 2;")
    client = cluster.engine.client
    assert client.scheduler.address in parallel([], client=client).explain().engine
    assert explained.engine == f"connect(), {cluster.address}"


def test_a_notebook_shows_chain_and_numbers_escaped(inline: Connection) -> None:
    def fail(x: str) -> str:
        raise ValueError("<script>")

    fail.__name__ = "<i>fail"
    chain = parallel(["<b>"] * 2).map(fail)
    assert chain._repr_html_() == (
        "<div><code>&lt;ParallelGen: parallel(&lt;list of 2 elements&gt;).map(&lt;i&gt;fail)&gt;</code></div>"
    )
    with pytest.raises(ValueError, match="script"):
        list(chain)
    for shown in (chain._repr_html_(), chain.explain()._repr_html_()):
        assert "ValueError: &lt;script&gt;" in shown
        assert "<td>map(&lt;i&gt;fail)</td>" in shown
        assert "<script>" not in shown
        assert "<i>" not in shown
        assert "<b>" not in shown


def test_a_notebook_shows_a_connection_with_its_page(cluster: Connection) -> None:
    assert f'<a href="{cluster.dashboard_link}"' in cluster._repr_html_()
    assert "&lt;Connection: tls://" in cluster._repr_html_()
    with connect("inline") as connection:
        assert connection._repr_html_() == "<div><code>&lt;Connection: inline&gt;</code></div>"
    assert connection._repr_html_() == "<div><code>&lt;Connection: closed&gt;</code></div>"


# Names --------------------------------------------------------------------------------------------


def test_a_lambda_is_named_after_what_it_says() -> None:
    words = [function_words(f) for f in (lambda x: x * 2, lambda x: x["name"].strip().lower(), len, slow)]
    assert words == ["lambda x times two", "lambda x name strip lower", "len", "slow"]


def test_a_lambda_without_source_is_named_after_the_names_it_uses() -> None:
    space: dict[str, Any] = {}
    exec("def parser(): return lambda: 0\nclean, zero = (lambda s: s.strip()), parser()", space)
    assert function_words(space["clean"]) == "lambda strip"
    assert function_words(space["zero"]) == "lambda parser"


def test_a_table_shows_a_lambda_in_full_where_it_is_short(inline: Connection) -> None:
    chain = parallel([1]).map(lambda x: x + 1).map(lambda x, y=2: x)
    assert chain.count() == 1
    assert [step.label for step in chain.stats.steps] == ["map(lambda x: x + 1)", "map(lambda x, y: x)"]
    assert "map(lambda)" in repr(chain)


def test_names_are_bounded_and_letters_only() -> None:
    long = lambda x: x + x + x + x + x + x + x + x + x + x + x + x + 12345 + len("é1")
    name = key_words(f"map-{function_words(long)}")
    assert name.replace("-", "").isalpha()
    assert name.count("-") <= 9


def test_dask_shows_the_steps_of_a_chain(cluster: Connection) -> None:
    def prefixes(dask_scheduler: Any) -> list[str]:
        return list(dask_scheduler.task_prefixes)

    parallel(range(3)).map(lambda x: x * 2).filter(odd).count()
    parallel(range(3), name="parse logs").map(slow).count()
    parallel(range(3), name="parse logs", partition_size=1).reduce(lambda a, b: a - b)
    found = cluster.engine.client.run_on_scheduler(prefixes)
    assert {"map-lambda-x-times-two-filter-odd", "parse-logs"} <= set(found)
    assert "parse-logs-reduce-lambda-a-minus-b" in found
    assert "lambda" not in found


def test_connect_inline_tells_nobody() -> None:
    with connect("inline") as connection:
        assert parallel(range(3)).count() == 3
        assert connection.engine.follow(Stats()) is None


def test_a_lost_worker_that_several_partitions_had_is_one_death() -> None:
    stats = Stats()
    recorder = Recorder(stats)
    recorder.recover(["tcp://one", "tcp://one"])
    recorder.recover(["tcp://one", "tcp://two"])
    assert (stats.recovered, stats.deaths) == (4, 2)


@pytest.mark.usefixtures("inline")
def test_files_in_fewer_parts_than_threads_are_told(tmp_path: Path) -> None:
    """A file is read, and its lines go through all steps, on one worker, however long each takes."""
    (tmp_path / "a.txt").write_text("1\n2\n3\n", encoding="utf-8")
    rows = read_text(tmp_path / "a.txt").map(int)
    assert rows.sum() == 6
    seen = rows.stats.snapshot() | {
        "worker_seconds": 3.0,
        "busy_seconds": 3.0,
        "utilisation": 0.5,
        "threads": 2,
    }
    seen["steps"][1]["seconds"], seen["waited"]["source"] = 2.9, 0.0
    assert table.verdict(seen).endswith(
        "time, on 1 of 2 threads: a smaller blocksize= cuts so few files into more parts"
    )
    assert table.verdict(seen | {"threads": 1}).endswith("time")
    assert table.verdict(seen | {"worker_seconds": 0.5}).endswith("time")
    whole = read_files(tmp_path / "a.txt").map(len)
    assert whole.count() == 1
    assert "threads" not in table.verdict(whole.stats.snapshot() | {"worker_seconds": 3.0, "threads": 2})
    assert "1 worker thread," in str(whole.stats)


@pytest.mark.usefixtures("inline")
def test_a_name_has_the_calls_of_a_user_and_no_phases_behind_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n", encoding="utf-8")
    rows = read_text(tmp_path / "a.txt").map(int)
    grouped = rows.group_by(lambda x: x % 2).map(len)
    joined = parallel([1]).map(abs).take_while(lambda x: x > 0).join(rows, int).sorted().filter(None)
    assert (grouped.sum(), joined.count()) == (4, 1)
    assert grouped.stats.name == "read_text.map(int).group_by(lambda).map(len)"
    assert joined.stats.name == "map(abs).take_while(lambda).join(int).sorted().filter(None)"


@pytest.mark.usefixtures("inline")
def test_one_is_no_plural() -> None:
    one = parallel([3], partition_size=1).map(abs)
    assert "<list of 1 element>" in repr(one)
    assert "1 element each;" in str(one.explain())
    assert one.count() == 1
    assert " 1 of 1 element, " in str(one.stats)
    assert "1 of 1 partition came back, of 1 to 1 element (median 1)" in str(one.stats)
