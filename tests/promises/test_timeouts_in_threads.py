"""`timeout=` where a worker has many threads: its processes are few, and no call pays for another one."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import append, eventually, lines
from test_timeouts import hold_the_gil

from parcoll import Connection, ElementTimeoutError, WorkerLostError, connect, parallel, per_worker, system
from parcoll.worker import subworker

THREADS = 12
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def threads() -> Iterator[Connection]:
    with connect(n_workers=2, threads_per_worker=THREADS) as connection:
        yield connection


def together(folder: Path, number: int) -> None:
    """Wait until so many calls are under way."""
    append(folder / "begun", os.getpid())
    deadline = time.monotonic() + 60
    while len(lines(folder / "begun")) < number:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_calls_that_wait_share_a_few_processes(threads: Connection, tmp_path: Path) -> None:
    def wait(x: int) -> int:
        if x >= 20:
            together(tmp_path, 2 * THREADS - 4)
        return -x

    assert list(parallel(range(50), timeout=30, partition_size=1).map(wait)) == [-x for x in range(50)]
    assert len(set(lines(tmp_path / "begun"))) <= 2 * CORES
    assert 2 * THREADS > 2 * CORES + 4, "more calls waited for each other than there were processes"


def test_a_late_call_is_named_and_no_other_one_is_made_again(threads: Connection, tmp_path: Path) -> None:
    late = {*range(4), 31, 32}  # two have the main threads of processes, which go on

    def work(x: int) -> int:
        append(tmp_path / "called", x)
        if x in late:
            append(tmp_path / "hangs", os.getpid())
            time.sleep(1.8 if x < 4 else 1000)
        time.sleep(0.6)
        return x

    chain = parallel(range(80), timeout=1.5, on_error="skip", partition_size=1).map(work)
    assert list(chain) == [x for x in range(80) if x not in late]
    assert [error.index for error in chain.errors] == sorted(late)
    assert all(isinstance(error.exception, ElementTimeoutError) for error in chain.errors)
    assert chain.stats.timeouts == 6
    assert Counter(lines(tmp_path / "called")) == Counter(map(str, range(80)))
    assert eventually(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in lines(tmp_path / "hangs")), 20
    )


def test_a_call_that_holds_the_gil_is_named_alone(threads: Connection) -> None:
    def work(x: int) -> int:
        if x == 20:
            hold_the_gil()
        time.sleep(0.01)
        return x

    chain = parallel(range(40), timeout=1.5, on_error="skip", partition_size=1).map(work)
    assert list(chain) == [x for x in range(40) if x != 20]
    assert [error.index for error in chain.errors] == [20]


def test_a_call_that_ends_its_process_is_named_alone(threads: Connection) -> None:
    def work(x: int) -> int:
        time.sleep(0.02)
        if x in (5, 30):
            os._exit(3)
        return x

    chain = parallel(range(60), timeout=30, on_error="skip", partition_size=1).map(work)
    assert list(chain) == [x for x in range(60) if x not in (5, 30)]
    assert [error.index for error in chain.errors] == [5, 30]
    assert all(isinstance(error.exception, WorkerLostError) for error in chain.errors)
    assert all("exit code 3" in str(error.exception) for error in chain.errors)
    assert chain.stats.deaths <= 6


def test_scripts_share_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one `__main__`: what one script has of a class is not what another one has of it."""
    monkeypatch.setattr(subworker, "threads", lambda: THREADS)
    monkeypatch.setattr(subworker, "cores", lambda: 1)
    pool = subworker.Pool()
    try:
        with pool.lend("a") as one, pool.lend("b") as other, pool.lend("a") as third:
            first = [lent.get().process for lent in (one, other, third)]
        with pool.lend("b") as fourth, pool.lend("c") as fifth:
            then = [lent.get().process for lent in (fourth, fifth)]
    finally:
        pool.close()
    assert first[0] is first[2] is not first[1]
    assert set(then) == set(first), "one after the other they do"


def test_objects_nested_evaluations_and_logs(
    threads: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @per_worker(scope="thread")
    def own() -> Iterator[int]:
        made = threading.get_ident()
        yield made
        append(tmp_path / "ended", threading.get_ident() == made)

    def work(x: int) -> Any:
        assert own() == threading.get_ident()
        logging.getLogger("of-the-user").warning("at %d", x)
        time.sleep(0.02)
        return sum(parallel(range(x)).map(lambda y: y + 1)) if x % 10 == 3 else x

    expected = [x * (x + 1) // 2 if x % 10 == 3 else x for x in range(40)]
    assert list(parallel(range(40), timeout=30, partition_size=1).map(work)) == expected
    said = [record.getMessage() for record in caplog.records if record.name == "of-the-user"]
    assert sorted(said) == sorted(f"at {x}" for x in range(40))
    own.close()
    assert eventually(lambda: lines(tmp_path / "ended"), 20)
    assert set(lines(tmp_path / "ended")) == {"True"}


@pytest.mark.parametrize(("of_process", "busy"), [(0.3, 0.15), (0.01, 0.02), (0.9, 0.9)])
def test_a_thread_waits_while_others_of_its_process_work_a_little(
    of_process: float, busy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not while they keep the GIL from it: then its calls are no calls that wait."""
    looks = iter([system._Look(0.0, 0.0, 0.0), system._Look(1.0, 0.02, of_process)])
    monkeypatch.setattr(system, "_look", lambda: next(looks))
    monkeypatch.setattr(system, "_looked", threading.local())
    monkeypatch.setattr(system, "_lookers", {-1: 0.9, -2: -5.0})
    system.begin_busy()
    assert system.busy_lately() == pytest.approx(busy)
