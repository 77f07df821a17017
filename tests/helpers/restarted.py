"""A remote cluster whose scheduler is lost and comes back, and what is evaluated meanwhile."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bare import BareCluster
from scripts import eventually, meanwhile


class Restarted:
    """A cluster whose scheduler is killed, and started again at the same port, as its administrator would."""

    def __init__(self, cluster: BareCluster) -> None:
        self.cluster = cluster
        self.address = cluster.address
        self.workers = [cluster.add_worker() for _ in range(2)]
        cluster.wait_for_workers(2)

    def lose(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the scheduler; its workers end themselves."""
        self.cluster.scheduler.send_signal(how)
        self.cluster.scheduler.wait(20)

    def start(self, workers: int = 2) -> None:
        """Start another one at the same address, and workers for it."""
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:  # dask's own way to end may hang; its administrator's does not
                worker.kill()
                worker.wait(5)
        self.cluster.start_scheduler(int(self.address.rpartition(":")[2]))
        self.workers = [self.cluster.add_worker() for _ in range(workers)]

    @contextmanager
    def losing(self, pauses: list[float], begun: Callable[[], object]) -> Iterator[list[float]]:
        """Lose it so many seconds after the block has begun, and after each restart."""
        lost: list[float] = []

        def work(ended: threading.Event) -> None:
            assert eventually(begun, 30)
            for pause in pauses:
                if ended.wait(pause):
                    return
                self.lose()
                lost.append(time.time())
                self.start()
                self.cluster.wait_for_workers(2)

        with meanwhile(work):
            yield lost


def slowly(x: int) -> int:
    time.sleep(0.01)
    return 2 * x


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have a process stand still while the block runs."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
