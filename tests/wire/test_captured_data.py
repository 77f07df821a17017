"""Large data that functions capture: it lies in shared memory once for all workers, and stays there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import append, lines

from parcoll import Connection, parallel
from parcoll.wire import segments
from parcoll.wire.payload import Captured, Sharing

MIB = 2**20
OTHERS = 6 * MIB  # more than the data of other test modules, which travels with each program
SETTINGS: list[dict[str, Any]] = [{}, {"timeout": 60}]


def numbers(mib: int, start: float = 0.0) -> Any:
    return np.arange(start, start + mib * MIB // 8)


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "timeout"])
def test_what_has_not_changed_is_not_sent_again(cluster: Connection, settings: dict[str, Any]) -> None:
    data = numbers(24, start=len(settings))
    chain = parallel([5, 7, 9], partition_size=1, **settings).map(lambda i: float(data[i]))

    def sent() -> int:
        assert list(chain) == [data[5], data[7], data[9]]
        return chain.stats.bytes_sent

    assert 24 * MIB < sent() < 24 * MIB + OTHERS
    assert sent() < OTHERS
    data[7] = -1.0  # the last byte that differs is found, wherever it is
    assert 24 * MIB < sent() < 24 * MIB + OTHERS
    other = chain.map(lambda x: (x, data[3]))  # the same array, in another program
    assert list(other) == [(data[i], data[3]) for i in (5, 7, 9)]
    assert other.stats.bytes_sent < OTHERS


def test_each_evaluation_begins_with_what_the_script_has(cluster: Connection) -> None:
    """A worker that writes into its array changes neither the script's, nor another's, nor the next one."""
    data = numbers(12)

    def write(i: int) -> tuple[int, float]:
        data[0] += 1
        time.sleep(0.002)
        return os.getpid(), float(data[0])

    chain = parallel(range(100), partition_size=5).map(write)
    for number in range(3):
        found = list(chain)
        for worker in {pid for pid, _ in found}:
            counts = sorted(count for pid, count in found if pid == worker)
            assert counts == [n + 1.0 for n in range(len(counts))], "of this worker alone, from the start"
        assert number == 0 or chain.stats.bytes_sent < OTHERS, "what lies there is as it was"
    assert data[0] == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda data: data[::2],
        lambda data: data.reshape(64, -1).T,
        lambda data: np.frombuffer(data.tobytes(), ">u4"),
        lambda data: bytearray(data.tobytes()),
        lambda data: [data, data, data.copy(), data[:0], data.astype("f4"), data.astype(bool)],
        lambda data: {"a": data, "b": bytes(3 * MIB + 5), "c": data[5:-3]},
        lambda data: np.array(["x" * 9, "y"] * 100_000),
    ],
    ids=["strided", "transposed", "read-only", "bytearray", "several", "odd sizes", "text"],
)
def test_whatever_holds_it(cluster: Connection, make: Callable[[Any], Any]) -> None:
    data = make(numbers(2))
    for _ in range(2):
        (got,) = parallel([1]).map(lambda _: data)
        assert type(got) is type(data)
        np.testing.assert_equal(got, data)


def test_the_script_may_write_into_it_meanwhile(cluster: Connection) -> None:
    """What counts is what it was when the evaluation began."""
    data = numbers(4)
    iterator = iter(parallel(range(40), partition_size=1).map(lambda i: float(data[i])))
    found = [next(iterator)]
    data[:] = -1.0
    assert found + list(iterator) == list(map(float, range(40)))


def test_a_worker_that_comes_later_has_it_too(cluster: Connection, tmp_path: Path) -> None:
    data = numbers(4)

    def once_deadly(i: int) -> float:
        if i == 20 and not lines(tmp_path / "died"):
            append(tmp_path / "died", "")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)
        return float(data[i])

    assert list(parallel(range(40), partition_size=2).map(once_deadly)) == list(map(float, range(40)))


def test_two_threads_at_once(cluster: Connection) -> None:
    wrong: list[Any] = []

    def evaluate(start: int) -> None:
        data = numbers(3, start)
        chain = parallel(range(10), partition_size=3).map(lambda i: float(data[i]))
        for _ in range(5):
            if (found := list(chain)) != [start + i for i in range(10)]:
                wrong.append(found)
            data += 1
            start += 1

    threads = [threading.Thread(target=evaluate, args=(1000 * n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_little_is_kept_of_what_earlier_programs_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "IDLE_BYTES", 5 * MIB)
    sharing = Sharing()
    for n in range(20):
        lent = sharing.capture(numbers(2, n))
        assert lent is not None
        assert lent[1] > 2 * MIB
        lent[0].end_use()
    assert len(sharing._captures._held) == 2
    lent = sharing.capture([numbers(2, 19), numbers(2, 18)])
    assert lent is not None
    assert lent[1] < MIB
    found: Captured = lent[0]
    sharing.close()
    np.testing.assert_equal(found.load(), [numbers(2, 19), numbers(2, 18)])
    del lent, found
