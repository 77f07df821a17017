"""The processes of a local cluster by their roles, and what may befall them.

All are found from the user's process, which is never a victim.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil

from parcoll import Connection

STOPPED_SECONDS = 0.5


class Victims:
    """The processes that a connection's local cluster has at the moment."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def host(self) -> psutil.Process | None:
        """Return the host; None while there is none that runs."""
        with suppress(psutil.Error):
            process = psutil.Process(self._connection.engine.way.host.pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def scheduler(self) -> psutil.Process | None:
        """Return the scheduler, which a host starts before its workers."""
        return next(iter(self._children()), None)

    def workers(self) -> list[psutil.Process]:
        """Return the workers, the oldest first."""
        return self._children()[1:]

    def worker_of(self, pid: int) -> psutil.Process | None:
        """Return the worker that is, or that started, the process in which an element runs."""
        workers = self.workers()
        with suppress(psutil.Error):
            running = psutil.Process(pid)
            for process in (running, *running.parents()):
                if process in workers:
                    return process
        return None

    def _children(self) -> list[psutil.Process]:
        host = self.host()
        if host is None:
            return []
        with suppress(psutil.Error):
            living = [child for child in host.children() if child.status() != psutil.STATUS_ZOMBIE]
            return sorted(living, key=lambda child: (child.create_time(), child.pid))
        return []


def strike(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """Send a signal; to a process that has just ended, none."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def stop_for_a_while(process: psutil.Process, seconds: float = STOPPED_SECONDS) -> None:
    """Stop a process as if its machine were too busy for it, and let it go on."""
    strike(process, signal.SIGSTOP)
    time.sleep(seconds)
    strike(process, signal.SIGCONT)
