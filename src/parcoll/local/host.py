"""Host: the local cluster as the user's process sees it, which starts it, waits for it and ends it.

The host process (``host_main``) is a child with a session of its own. It lives as long as its standard
input, a pipe from this process, stays open. So whatever ends this process, ``kill -9`` included, ends the
host and its workers too. Options and key travel through that pipe, and the host's status comes back through
another one. Neither options nor key are on the command line, in the environment or on a disk.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from dataclasses import dataclass
from typing import Any

from parcoll.errors import ClusterStartError, logger
from parcoll.local import limits
from parcoll.local.credentials import Credentials
from parcoll.local.host_process import HostProcess, forget_ended
from parcoll.system import others_who_write
from parcoll.text import describe, short_repr
from parcoll.world import boot
from parcoll.world.world import THREAD_POOLS

_SIZE = re.compile(r"[0-9]{1,30}(\.[0-9]{0,30})?\s*([kmgtp]i?)?b?", re.IGNORECASE)
_told: set[str] = set()  # temporary directories
_MOST = 10_000  # workers, or threads of one: a higher number is a slip that would fill up the machine
_MOST_BYTES = 2**63
_LEAST_BYTES = 48_000_000  # with less, workers are killed as soon as they have started
_NO_BYTES = 2**24  # a plain number below it is one of GiB, or MiB, that was meant
_WANTED_SIZE = (
    'memory_limit must be "auto", None, a number of bytes, a part of the memory from 0 to 1, or a text '
    'like "4 GiB"'
)


@dataclass(frozen=True)
class Ready:
    """A local cluster that is ready for clients.

    Attributes:
        address: The scheduler's, ``tls://127.0.0.1:<port>``.
        dashboard_link: The dashboard's, ``http://127.0.0.1:<port>/status``.
        n_workers: How many workers there are.
        memory_limit: What each of them may hold, in bytes; 0 for no limit.
        credentials: What a client must show: ``Client(address, security=credentials.security())``.
    """

    address: str
    dashboard_link: str
    n_workers: int
    memory_limit: int
    credentials: Credentials


class Host:
    """A local cluster: a scheduler and its workers in processes of their own.

    The constructor returns once the host process is started, long before the cluster is ready; use the
    time to import what a client needs. The cluster ends with ``close``, when this object is
    garbage-collected, and when this process ends.

    No signal's handler may raise in the constructor, nor in `close` (`handlers.unbroken`).

    Args:
        n_workers: How many worker processes; None for one for each core that this process may use.
        threads_per_worker: How many tasks a worker runs at once.
        memory_limit: What one worker may hold: bytes, ``"4 GiB"``, a fraction of all memory,
            None for no limit, ``"auto"`` for an equal share of the memory there is.

    Raises:
        TypeError, ValueError: An argument has a type or a value that is not allowed.
        ClusterStartError: This system cannot run a local cluster.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: int | float | str | None = "auto",
    ) -> None:
        options: dict[str, Any] = {
            "n_workers": None if n_workers is None else _check_count("n_workers", n_workers),
            "threads_per_worker": _check_count("threads_per_worker", threads_per_worker),
            "memory_limit": _check_size(memory_limit),
        }
        _check_system()
        limits.check(options["n_workers"])
        forget_ended()
        self._process = HostProcess(_environment(threads_per_worker))
        try:
            self._dropped = weakref.finalize(self, self._process.hang_up)
            self._dropped.atexit = False
            self._process.boot(with_numpy="numpy" in sys.modules)
            self._credentials = Credentials.generate()
            secret = {"certificate": self._credentials.certificate, "key": self._credentials.key}
            self._process.send(options | secret)
        except BaseException:
            self._process.close()
            raise

    def wait_ready(self, timeout: float = 60) -> Ready:
        """Return the address and the key once clients can connect; a second call returns at once.

        Raises:
            ClusterStartError: The host has ended, or was not ready in time; then it is closed.
        """
        status = self._process.wait_ready(timeout)
        base = os.path.dirname(status["directory"])
        if base not in _told and (who := others_who_write(base, sticky_helps=True)) is not None:
            _told.add(base)
            logger.warning("in the temporary directory %r, %s can replace what the workers write", base, who)
        return Ready(
            address=status["address"],
            dashboard_link=f"http://127.0.0.1:{status['dashboard_port']}/status",
            n_workers=status["n_workers"],
            memory_limit=status["memory_limit"],
            credentials=self._credentials,
        )

    @property
    def pid(self) -> int:
        """The process id of the host, which is also the id of its session and process group."""
        return self._process.popen.pid

    @property
    def alive(self) -> bool:
        """Whether the host process runs (its cluster may not be ready yet)."""
        return self._process.alive

    @property
    def failure(self) -> str | None:
        """Why the host ended without being told to, or None."""
        return None if self.alive or self.closed else self._process.why_ended()

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended the host or its scheduler; another cluster may fare better."""
        return self._process.was_killed

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or this is a fork of the process that started the host."""
        return self._process.closed

    def close(self) -> None:
        """End the host with all its processes; returns when they are gone (0.1 s, at most 3.5 s).

        May be called again, and from any thread. In a fork of the process that started the host this does
        nothing, since the cluster belongs to that process.
        """
        self._process.close()
        self._dropped.detach()  # Python loses what a signal's handler raises in a finalizer

    def __repr__(self) -> str:
        state = "closed" if self.closed else "running" if self.alive else "ended"
        return f"<Host pid={self.pid} {state}>"


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {describe(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {short_repr(value)}")
    if value > _MOST:
        raise ValueError(f"{name} must be at most {_MOST:,}, got {short_repr(value)}")
    return value


def _check_size(limit: int | float | str | None) -> int | float | str | None:
    """Return a memory limit, if dask understands it too; TypeError or ValueError if not."""
    if limit is None:
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int | float | str):
        raise TypeError(f"{_WANTED_SIZE}, got {describe(limit)}")
    if limit == "auto":
        return limit
    if not (_SIZE.fullmatch(limit.strip()) if isinstance(limit, str) else 0 <= limit < _MOST_BYTES):
        raise ValueError(f"{_WANTED_SIZE}, got {short_repr(limit)}")
    plain = not isinstance(limit, str) or limit.strip().isdigit()
    nbytes = _bytes_of(limit) if isinstance(limit, str) else limit
    if plain and 1 < nbytes < _NO_BYTES:
        raise ValueError(
            f"memory_limit={limit!r} is a number of bytes, of which a worker takes some 90 million itself: "
            f'write memory_limit="{nbytes:g} GiB"'
        )
    if 1 < nbytes < _LEAST_BYTES:
        raise ValueError(
            f"memory_limit={limit!r} is less than a worker takes itself, which are some 90 million bytes: "
            'write a larger one, as in memory_limit="1 GiB"'
        )
    return limit


def _bytes_of(text: str) -> float:
    """Return the bytes of a text that `_SIZE` matches. dask's own function takes 0.1 s to import."""
    number, unit = re.findall(r"^([0-9.]+)\s*([a-z]?)", text.strip().lower())[0]
    base = 1024 if "i" in text.lower() else 1000
    return float(number) * float(base ** ("kmgtp".find(unit) + 1 if unit else 0))


def _check_system() -> None:
    if not hasattr(os, "fork"):
        raise ClusterStartError(
            f"a local cluster needs Linux or macOS, and this is {sys.platform}: "
            "connect() to a dask scheduler instead"
        )
    # A frozen program, or one that embeds Python, would start itself instead, again and again.
    if getattr(sys, "frozen", False) or not sys.executable:
        raise ClusterStartError(
            "a local cluster needs a Python interpreter to run, and sys.executable is "
            f"{sys.executable!r}: connect() to a dask scheduler instead"
        )


def _environment(threads: int) -> dict[str, str]:
    """Return the environment for the host: a copy of this process's, with sizes of pools and a seed."""
    return dict.fromkeys(THREAD_POOLS, str(threads)) | boot.one_seed() | dict(os.environ)
