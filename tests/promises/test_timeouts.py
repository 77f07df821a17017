"""`timeout=`: an element that takes too long is stopped, whatever it does, and no other one is lost."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dask.bag
import psutil
import pytest
from scripts import append, eventually, lines
from test_failing_elements import check_sums, drained

from parcoll import Connection, ElementError, ElementTimeoutError, connect, parallel
from parcoll.worker.subworker import Subworker
from parcoll.worker.subworker_main import LoadPartition

SECONDS = 0.3
LONG = 1000  # seconds: nothing here waits for it


def spin() -> None:
    while True:
        pass


def hold_the_gil() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # C code that never looks at signals, for years


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def wait_for_a_program() -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({LONG})"])


def refuse_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            time.sleep(LONG)
        except BaseException:
            continue


HANGS = [spin, hold_the_gil, wait_for_a_lock, wait_for_a_program, refuse_to_end, lambda: time.sleep(LONG)]


@pytest.mark.parametrize("size", [1, 7, 40, "auto"])
@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.__name__)
def test_a_call_that_does_not_end_is_stopped(cluster: Connection, hang: Any, size: Any) -> None:
    def work(x: int) -> int:
        if x == 23:
            hang()
        return x * 2

    chain = parallel(range(40), timeout=SECONDS, on_error="skip", partition_size=size).map(work)
    assert list(chain) == [x * 2 for x in range(40) if x != 23]
    (error,) = chain.errors
    assert (error.index, error.element, error.attempts, error.step) == (23, 23, 1, "map(work)")
    assert isinstance(error.exception, ElementTimeoutError)
    assert str(error.exception) == "map(work) took longer than timeout=0.3 seconds, at element 23"
    assert (chain.stats.timeouts, chain.stats.deaths, chain.stats.failed) == (1, 0, 1)
    assert chain.stats.steps[0].seconds >= SECONDS
    check_sums(chain.stats)


def test_it_is_raised_after_the_results_before_it(cluster: Connection) -> None:
    chain = parallel(range(10), timeout=SECONDS, partition_size=5).map(lambda x: spin() if x == 7 else x)
    found, raised = drained(chain)
    assert found == list(range(7))
    assert isinstance(raised, ElementTimeoutError)
    assert isinstance(raised, TimeoutError)
    assert raised.__notes__ == ["in step 1 of 1, map(lambda), at element 7: 7"]
    check_sums(chain.stats)


def test_no_other_element_is_run_in_vain(cluster: Connection, tmp_path: Path) -> None:
    """Those before it in its piece run twice, a tenth of a second's worth; slow ones never do."""

    def work(x: int) -> int:
        append(tmp_path / "calls", x)
        time.sleep(0.15)
        if x in (3, 9):
            spin()
        return x

    chain = parallel(range(12), timeout=1, on_error="skip", partition_size=12).map(work)
    assert list(chain) == [x for x in range(12) if x not in (3, 9)]
    assert lines(tmp_path / "calls") == [str(x) for x in range(12)]


def test_what_it_has_started_ends_with_it(cluster: Connection, tmp_path: Path) -> None:
    """Also a daemon, whose parent has left it, and a process in a session of its own."""
    sleep = [sys.executable, "-c", f"import time; time.sleep({LONG})"]
    daemon = (
        "import subprocess, sys; "  # -3 is DEVNULL: a pipe of ours would stay open
        "print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=-3, stderr=-3).pid)"
    )

    def work(x: int) -> int:
        if x == 2:
            append(tmp_path / "pids", os.getpid())
            append(tmp_path / "pids", subprocess.Popen(sleep).pid)
            append(tmp_path / "pids", subprocess.Popen(sleep, start_new_session=True).pid)
            made = subprocess.run([sys.executable, "-c", daemon, *sleep], capture_output=True, text=True)
            append(tmp_path / "pids", int(made.stdout))
            if (child := os.fork()) == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(LONG)
            append(tmp_path / "pids", child)
            threading.Thread(target=time.sleep, args=(LONG,)).start()
            spin()
        return x

    assert list(parallel(range(4), timeout=8, on_error="skip").map(work)) == [0, 1, 3]
    pids = [int(pid) for pid in lines(tmp_path / "pids")]
    assert len(pids) == 5
    assert eventually(lambda: not any(_lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_element_that_was_stopped_is_tried_again(cluster: Connection, tmp_path: Path) -> None:
    def work(x: int) -> int:
        append(tmp_path / f"calls-{x}", "")
        if x % 5 == 0 and len(lines(tmp_path / f"calls-{x}")) < 3:
            spin()
        return x

    chain = parallel(range(11), timeout=SECONDS, retries=2, retry_on=ElementTimeoutError).map(work)
    assert list(chain) == list(range(11))
    assert (chain.stats.timeouts, chain.stats.retries, chain.stats.failed) == (6, 6, 0)
    chain = parallel([0], timeout=SECONDS, retries=1, on_error="skip").map(lambda x: spin())
    assert list(chain) == []
    assert [error.attempts for error in chain.errors] == [2]
    chain = parallel([0], timeout=SECONDS, retries=5, retry_on=ValueError, on_error="skip").map(
        lambda x: spin()
    )
    assert list(chain) == []
    assert [error.attempts for error in chain.errors] == [1]


def test_attempts_that_raised_count_too(cluster: Connection, tmp_path: Path) -> None:
    """It raises, then hangs, then raises: three attempts."""

    def work(x: int) -> int:
        append(tmp_path / "calls", "")
        if len(lines(tmp_path / "calls")) == 2:
            spin()
        raise ValueError(x)

    chain = parallel([7], timeout=SECONDS, retries=2, on_error="skip").map(work)
    assert list(chain) == []
    assert len(lines(tmp_path / "calls")) in (3, 4)  # the first attempt of the piece is made again
    assert [(error.attempts, type(error.exception)) for error in chain.errors] == [(3, ValueError)]


def test_a_value_takes_its_place(cluster: Connection) -> None:
    def stand_in(error: ElementError) -> str:
        return f"{type(error.exception).__name__} {error.element} {error.attempts}"

    chain = parallel(range(3), timeout=SECONDS, on_error=stand_in).map(lambda x: spin() if x == 1 else x)
    assert list(chain.map(str)) == ["0", "ElementTimeoutError 1 1", "2"]


def test_each_step_has_its_own(cluster: Connection) -> None:
    """A step may be given more time than its chain, and one is without any."""
    quick: Any = parallel(range(4), timeout=0.5, on_error="skip")

    def slow(x: int) -> int:
        time.sleep(1.2 if x == 2 else 0)
        return x

    assert list(quick.map(slow)) == [0, 1, 3]
    assert list(quick.map(slow, timeout=LONG)) == [0, 1, 2, 3]
    assert list(quick.map(slow, timeout=math.inf)) == [0, 1, 2, 3]
    assert list(quick.map(slow, timeout=LONG).map(slow)) == [0, 1, 3]
    chain = quick.map(slow, timeout=LONG).filter(lambda x: slow(x) != 1)
    assert list(chain) == [0, 3]
    assert [(step.failed, step.filtered) for step in chain.stats.steps] == [(0, 0), (1, 1)]
    check_sums(chain.stats)


def test_a_flatmap_is_timed_while_it_is_drawn(cluster: Connection) -> None:
    """Its own time counts, with all its draws; that of the steps after it does not."""

    def draw(x: int) -> Any:
        for i in range(4):
            if (x, i) == (1, 2):
                spin()
            yield 10 * x + i

    def wait(x: int) -> int:
        time.sleep(0.2)
        return x

    chain = parallel(range(3), timeout=0.5, on_error="skip").flatmap(draw).map(wait)
    assert list(chain) == [0, 1, 2, 3, 20, 21, 22, 23]
    check_sums(chain.stats)
    (error,) = chain.errors
    assert (error.step, error.index, error.element) == ("flatmap(draw)", 1, 1)

    def forever(x: int) -> Any:
        while True:
            time.sleep(0.05)
            yield x

    endless = parallel([5], timeout=0.5, on_error="skip").flatmap(forever)
    assert list(endless) == []
    check_sums(endless.stats)


class Endless:
    def __init__(self, n: int) -> None:
        self.n = n

    def __bool__(self) -> bool:
        while self.n == 13:
            pass
        return True


def test_the_truth_of_an_element(cluster: Connection) -> None:
    chain = parallel(map(Endless, range(30)), on_error="skip", timeout=1, partition_size=10).filter(None)
    assert [element.n for element in chain] == [n for n in range(30) if n != 13]
    assert [(error.step, error.index) for error in chain.errors] == [("filter(None)", 13)]


def test_one_of_many_that_a_flatmap_made(cluster: Connection) -> None:
    chain = parallel(range(3), timeout=SECONDS, on_error="skip", partition_size=3)
    chain = chain.flatmap(lambda x: range(10 * x, 10 * x + 4))
    chain = chain.map(lambda x: spin() if x in (11, 13) else x)
    assert list(chain) == [0, 1, 2, 3, 10, 12, 20, 21, 22, 23]
    assert [(error.index, error.element) for error in chain.errors] == [(1, 11), (1, 13)]
    check_sums(chain.stats)


def hang_at_4(x: int) -> int:
    return spin() or 0 if x == 4 else x


def test_every_evaluating_call(cluster: Connection) -> None:
    def chain() -> Any:
        return parallel(range(30), timeout=SECONDS, on_error="skip", partition_size=10).map(hang_at_4)

    left = [x for x in range(30) if x != 4]
    assert chain().count() == 29
    assert chain().take(6) == left[:6]
    assert Counter(chain().unordered()) == Counter(left)
    assert chain().reduce(lambda a, b: [*a, b], []) == left
    assert chain().reduce(lambda a, b: a + b) == sum(left)
    assert chain().fold(lambda a, b: a + b, 0) == sum(left)
    assert chain().fold(lambda a, b: [*a, b], [], lambda a, b: a + b) == left
    kept = parallel(range(30), timeout=SECONDS, on_error="skip", partition_size=10)
    kept.foreach(hang_at_4)
    assert list(kept) == left
    check_sums(kept.stats)
    assert list(kept.map(lambda x: spin() if x == 20 else -x)) == [-x for x in left if x != 20]


def fold_or_hang(total: int, x: int) -> int:
    return spin() or 0 if x == 23 else total + x


def join_or_hang(one: int, other: int) -> int:
    return hold_the_gil() or 0 if one and other else one + other


def join_or_hang_first(one: int, other: int) -> int:
    return spin() or 0 if one and not other else one + other


ADD = (lambda total, x: total + x, 0)
JOINED = " of those that reached it"
LATE = " took longer than timeout=0.3 seconds, at "


@pytest.mark.parametrize("shift", [None, 100])
@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (
            lambda chain: chain.reduce(fold_or_hang),
            f"reduce(fold_or_hang)@element 23{JOINED}",
        ),
        (
            lambda chain: chain.reduce(fold_or_hang, 0),
            f"reduce(fold_or_hang)@element 23{JOINED}",
        ),
        (lambda chain: chain.fold(fold_or_hang, 0), "fold(fold_or_hang)@element 23"),
        (lambda chain: chain.fold(fold_or_hang, 0, lambda a, b: a + b), "fold(fold_or_hang)@element 23"),
        (
            lambda chain: chain.fold(*ADD, join_or_hang),
            f"fold(lambda), combining with join_or_hang@element 1{JOINED}",
        ),
        (
            lambda chain: chain.fold(*ADD, join_or_hang_first),
            "fold(lambda), combining with join_or_hang_first@the value of the partition from element 0 on",
        ),
    ],
)
def test_a_function_that_folds_is_stopped(
    cluster: Connection, evaluate: Any, message: str, shift: int | None
) -> None:
    chain = parallel(range(30), timeout=SECONDS, on_error="skip", partition_size=10)
    if shift is not None:
        chain = chain.map(lambda x: x + shift).map(lambda x: x - shift, timeout=math.inf)
    with pytest.raises(ElementTimeoutError) as raised:
        evaluate(chain)
    assert str(raised.value) == message.replace("@", LATE)
    assert raised.value.__notes__ == [f"in {message.partition('@')[0]}"]
    assert chain.stats.timeouts >= 1  # partitions at once
    assert chain.stats.deaths == 0
    assert list(chain) == list(range(30))


def test_the_element_that_is_named_where_others_have_left(cluster: Connection) -> None:
    """The first partitions give nothing, or elements are skipped: it is counted as for an exception."""

    def from_20(x: int) -> bool:
        time.sleep(0.01)
        return x >= 20

    def positive(x: int) -> int:
        return 1 // (x not in (11, 12)) and x

    # Long enough for calls that end, wherever this machine pauses.
    late = LATE.replace(str(SECONDS), "1")
    chain = parallel(range(30), timeout=1, partition_size=10)
    with pytest.raises(ElementTimeoutError, match=f"{late}element 3 of those that reached it"):
        chain.filter(from_20).reduce(fold_or_hang)
    skipping = parallel(range(30), timeout=1, on_error="skip", partition_size=10).map(positive)
    with pytest.raises(ElementTimeoutError, match=f"{late}element 3 of those of its partition that reached"):
        skipping.fold(lambda a, b: spin() if b == 15 else a + b, 0)


def test_what_a_fold_s_function_raises_is_shown_as_without_a_timeout(cluster: Connection) -> None:
    """Its own frames, and none of parcoll's; and the seconds of a call that was stopped are counted."""

    def fails(a: int, b: int) -> int:
        return a // (b != 7) + b

    def fails_at_the_end(a: int, b: int) -> int:
        return a // (b != 0 or a == 0)

    for timeout in (None, 9):
        chain = parallel(range(10), timeout=timeout, partition_size=5)
        found = []
        for evaluate in (
            lambda: chain.reduce(fails),  # noqa: B023
            lambda: chain.fold(fails, 0),  # noqa: B023
            lambda: chain.fold(*ADD, fails_at_the_end),  # noqa: B023
        ):
            with pytest.raises(ZeroDivisionError) as raised:
                evaluate()
            found.append([entry.name for entry in raised.traceback][-2:])
        assert [names[-1] for names in found] == ["fails", "fails", "fails_at_the_end"]
        assert not any("__call__" in names for names in found)
    late = parallel(range(30), timeout=SECONDS)
    with pytest.raises(ElementTimeoutError):
        late.reduce(fold_or_hang)
    assert late.stats.fold_seconds >= SECONDS


def test_a_fold_of_steps_without_time_is_not_stopped(cluster: Connection) -> None:
    """The chain's timeout is for the function of a fold; a step's is not."""

    def slow(total: int, x: int) -> int:
        time.sleep(0.02)
        return total + x

    chain = parallel(range(30)).map(str, timeout=0.01).map(int)
    assert chain.reduce(slow) == chain.fold(slow, 0) == sum(range(30))


def test_a_bag(cluster: Connection) -> None:
    bag = dask.bag.from_sequence(range(12), npartitions=3)
    chain = parallel(bag, timeout=SECONDS, on_error="skip").map(hang_at_4)
    assert list(chain) == [x for x in range(12) if x != 4]
    assert [(error.partition, error.index) for error in chain.errors] == [(1, 0)]


def test_an_evaluation_within_a_timed_call_ends(cluster: Connection) -> None:
    def nested(x: int) -> int:
        return sum(parallel(range(x)).map(lambda y: y + 1))

    assert list(parallel([1, 2, 3], timeout=30).map(nested)) == [1, 3, 6]


def test_no_process_stays_beside_an_idle_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient() -> None:
        from parcoll.worker import subworker

        subworker.IDLE_SECONDS = 0.2

    with connect(n_workers=2) as own:
        own.engine.client.wait_for_workers(2, timeout=30)
        own.engine.client.run(impatient)
        beside = set(parallel(range(100), timeout=9).map(lambda _: os.getpid()))
        workers = own.engine.client.run(os.getpid).values()
        assert not beside & set(workers)
        assert eventually(lambda: not any(_lives(pid) for pid in beside), 10)
        assert eventually(lambda: not any(psutil.Process(pid).children() for pid in workers), 10)


def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    def hang(x: int) -> None:
        append(tmp_path / "pids", os.getpid())
        hold_the_gil()

    with connect(n_workers=1):
        thread = threading.Thread(target=drained, args=(parallel([1], timeout=LONG).map(hang),))
        thread.start()
        assert eventually(lambda: lines(tmp_path / "pids"), 20)
    thread.join(20)
    assert eventually(lambda: not _lives(int(lines(tmp_path / "pids")[0])))


def test_in_this_process_nothing_is_stopped(inline: Connection) -> None:
    """A debugger would be."""
    assert list(parallel([1], timeout=0.01).map(lambda x: time.sleep(0.1) or x)) == [1]


def test_a_call_that_was_stopped_is_not_said_to_have_waited(cluster: Connection) -> None:
    """Nobody can tell; `concurrency=`, which the verdict names for calls that wait, helps none that works."""
    chain = parallel([0, 1, 2], timeout=SECONDS, on_error="skip").map(lambda x: spin() if x == 1 else x)
    assert list(chain) == [0, 2]
    assert chain.stats.busy_seconds >= SECONDS


@pytest.mark.parametrize(
    ("timeout", "kind", "message"),
    [
        (0, ValueError, "timeout must be a number of seconds above 0, got 0"),
        (-1.5, ValueError, "got -1.5"),
        (math.nan, ValueError, "got nan"),
        ("3", TypeError, r"got '3' \(a str\)"),
        (True, TypeError, r"got True \(a bool\)"),
    ],
)
def test_what_is_no_time_is_refused(timeout: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        parallel([1], timeout=timeout)
    with pytest.raises(kind, match=message):
        parallel([1]).map(str, timeout=timeout)


def test_a_process_that_is_late_by_a_hair_goes_on() -> None:
    """It is stopped, asked again whether it is late, and let go."""
    subworker = Subworker()
    try:
        assert subworker._late() is None
        with pytest.raises(TypeError, match="cannot pickle"):
            subworker.ask(LoadPartition(threading.Lock(), None, None))  # type: ignore[arg-type]
        assert subworker.alive
    finally:
        subworker.end()
