"""The local cluster as its parent sees it: start the host process, wait for it, end it.

The host (see ``host``) is a child with a session of its own. It lives as long as its standard
input, a pipe from this process, stays open: whatever ends this process, ``kill -9`` included, ends
the host and its workers too. Options and key travel through that pipe, reports come back through
another one; nothing is on the command line, in the environment or on a disk.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parcoll.engine.certificate import Credentials
from parcoll.errors import ClusterStartError

# What the child runs. It takes this process's sys.path before it imports anything of ours; no
# garbage collection while it imports (the host freezes what it has then, and collects after).
_BOOT = """
import gc, json, os, sys
gc.disable()
first = json.loads(open(0, "rb", buffering=0, closefd=False).readline() or "null")
if first is None:
    os._exit(0)
sys.path[:], sys.argv[:] = first["sys_path"], first["argv"]
try:
    from parcoll.engine.host import main
    main(first["status_fd"])
except BaseException as error:
    import traceback
    report = {"error": f"{type(error).__name__}: {error}", "note": traceback.format_exc()}
    os.write(first["status_fd"], json.dumps(report).encode() + b"\\n")
    os._exit(1)
"""

# The host needs up to 1.5 s to end when a worker holds the GIL; then its group is killed.
_CLOSE_SECONDS = 3.0
# How long one turn of a wait holds the lock on the status pipe, so that close() gets in between.
_TURN_SECONDS = 0.2
# The thread pools of numerical libraries would have each worker use all cores.
_THREAD_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SIZE = re.compile(r"\d+(\.\d*)?\s*([kmgtp]?i?b?)", re.IGNORECASE)


@dataclass(frozen=True)
class Ready:
    """A local cluster that takes clients.

    Attributes:
        address: The scheduler's, ``tls://127.0.0.1:<port>``.
        dashboard_link: The dashboard's, ``http://127.0.0.1:<port>/status``.
        n_workers: How many workers there are.
        credentials: What a client must show: ``Client(address, security=credentials.security())``.
    """

    address: str
    dashboard_link: str
    n_workers: int
    credentials: Credentials


class Host:
    """A local cluster: a scheduler and its workers in processes of their own.

    The constructor returns once the process is started, which is long before it is ready: import
    what a client needs meanwhile. The cluster ends with ``close``, when this object is collected,
    and when this process ends.

    Args:
        n_workers: How many worker processes; None for one for each core this process may use.
        threads_per_worker: How many tasks a worker runs at once.
        memory_limit: What one worker may hold: bytes, ``"4 GiB"``, a fraction of all memory,
            None for no limit, ``"auto"`` for an equal share of the memory there is.

    Raises:
        TypeError, ValueError: An argument cannot be meant.
        ClusterStartError: This system cannot run a local cluster.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: int | float | str | None = "auto",
    ) -> None:
        options = {
            "n_workers": None if n_workers is None else _check_count("n_workers", n_workers),
            "threads_per_worker": _check_count("threads_per_worker", threads_per_worker),
            "memory_limit": _check_size(memory_limit),
        }
        _check_system()
        _forget_ended()
        self._process = _Process(_environment(threads_per_worker))
        weakref.finalize(self, self._process.hang_up).atexit = False
        try:
            self._process.send({"sys_path": _import_path(), "argv": sys.argv})
            self._credentials = Credentials.generate()
            secret = {"certificate": self._credentials.certificate, "key": self._credentials.key}
            self._process.send(options | secret)
        except BaseException:
            self._process.close()
            raise

    def wait_ready(self, timeout: float = 60) -> Ready:
        """Return the address and the key once clients can connect; at once the second time.

        Raises:
            ClusterStartError: The host ended instead, or was not ready in time (it is closed then).
        """
        report = self._process.wait_ready(timeout)
        return Ready(
            address=report["address"],
            dashboard_link=f"http://127.0.0.1:{report['dashboard_port']}/status",
            n_workers=report["n_workers"],
            credentials=self._credentials,
        )

    @property
    def pid(self) -> int:
        """The process id of the host, which is also the id of its session and process group."""
        return self._process.popen.pid

    @property
    def alive(self) -> bool:
        """Whether the host runs (it may not be ready yet)."""
        return self._process.alive

    @property
    def failure(self) -> str | None:
        """Why the host ended without being told to, or None."""
        return None if self.alive or self.closed else self._process.why_ended()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or this is a fork of the process that started the host."""
        return self._process.closed

    def close(self) -> None:
        """End the host with all its processes; returns when they are gone (0.1 s, at most 3.5 s).

        May be called again, and from any thread. In a fork of the process that started the host
        it does nothing: the cluster is the starter's.
        """
        self._process.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "running" if self.alive else "ended"
        return f"<Host pid={self.pid} {state}>"


class _Process:
    """The host process, the pipe that keeps it alive, and the pipe that it reports through."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.closed = False
        self.ended = False  # the status pipe is at its end: the host is gone
        self.reports: dict[str, Any] = {}
        self._unread = b""
        self.owner = os.getpid()
        self._renew_locks()
        stdin, keep_alive = _pipe()
        status, self._status_of_child = _pipe()
        # Lists, because pop() cannot close one descriptor twice, whatever thread calls it.
        self._keep_alive, self._status = [keep_alive], [status]
        try:
            self.popen = subprocess.Popen(
                _command(),
                stdin=stdin,
                stdout=_inherit_or_null(1),
                stderr=_inherit_or_null(2),
                env=environment,
                pass_fds=[self._status_of_child],
                start_new_session=True,
            )
        except OSError as error:
            _close_all_of(self._keep_alive)
            _close_all_of(self._status)
            raise ClusterStartError(
                f"the local cluster did not start: {sys.executable!r} could not be run ({error})"
            ) from error
        finally:
            os.close(stdin)
            os.close(self._status_of_child)
        _live.add(self)

    def send(self, message: dict[str, Any]) -> None:
        """Write one line to the host; one that is gone already is wait_ready's to report."""
        message["status_fd"] = self._status_of_child
        line = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._keep_alive[0], line) :]

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while "address" not in self.reports and not self.closed and not self.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise ClusterStartError(
                    f"the local cluster was not ready after {timeout:g} s, so it was ended"
                )
            self._read_status(min(left, _TURN_SECONDS))
        if self.closed:
            raise ClusterStartError("the local cluster is closed")
        if self.ended:
            failure = ClusterStartError(self.why_ended())
            if note := self.reports.get("note"):
                failure.add_note(note)
            raise failure
        return self.reports

    @property
    def alive(self) -> bool:
        # Who holds the lock reads the same pipe, so its last finding is fresh.
        if not self.closed and not self.ended and self._reading.acquire(blocking=False):
            self._reading.release()
            self._read_status(0)
        return not self.closed and not self.ended

    def hang_up(self) -> None:
        """Let the host end, without waiting for it; takes no lock, as the collector calls it."""
        _close_all_of(self._keep_alive)

    @property
    def hung_up(self) -> bool:
        return not self._keep_alive

    def close(self) -> None:
        if os.getpid() != self.owner:
            return
        with self._closing:
            if self not in _live:
                return
            self.closed = True
            try:
                self.hang_up()
                deadline = time.monotonic() + _CLOSE_SECONDS
                while not self.ended and (left := deadline - time.monotonic()) > 0:
                    self._read_status(min(left, _TURN_SECONDS))
            finally:  # also when Ctrl-C ends the wait
                self._end_now()

    def abandon(self) -> None:
        """In a fork: close the copies of the pipes, or the host would outlive its starter."""
        self._renew_locks()
        self.closed = True
        _close_all_of(self._keep_alive)
        _close_all_of(self._status)
        self.popen.returncode = 0  # not a child of this process: nothing to wait for or warn of

    def _renew_locks(self) -> None:
        self._reading, self._closing = threading.Lock(), threading.Lock()

    def _read_status(self, seconds: float) -> None:
        """Take what the host reports within that time; returns at the first report."""
        with self._reading, selectors.DefaultSelector() as selector:
            if not self._status:
                return
            selector.register(self._status[0], selectors.EVENT_READ)
            if selector.select(seconds):
                data = os.read(self._status[0], 65536)
                *lines, self._unread = (self._unread + data).split(b"\n")
                for line in lines:
                    self.reports.update(json.loads(line))
                self.ended = not data

    def why_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(1)
        code, error = self.popen.returncode, self.reports.get("error")
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
        if "address" in self.reports:
            return f"the local cluster ended: {error or 'its host process ' + how}"
        return f"the local cluster did not start: {f'{error}; ' if error else ''}its host {how}"

    def _end_now(self) -> None:
        """Kill what is left of the host's process group and remove its directory."""
        self.hang_up()
        # Before the host is reaped its id, and so its group's, cannot belong to anyone else.
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._read_status(0)
        if directory := self.reports.get("directory"):
            shutil.rmtree(directory, ignore_errors=True)
        with self._reading:
            _close_all_of(self._status)
        _live.discard(self)


# Strong references: a host whose Host was collected still has to be waited for.
_live: set[_Process] = set()


def _forget_ended() -> None:
    """Reap the hosts that were let go and have ended."""
    for process in list(_live):
        if process.hung_up and not process.alive:
            process.close()


def _close_all() -> None:
    mine = [process for process in list(_live) if process.owner == os.getpid()]
    for process in mine:  # first all of them, so that they end side by side
        process.hang_up()
    for process in mine:
        process.close()


def _abandon_all() -> None:
    for process in list(_live):
        process.abandon()
    _live.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _check_size(limit: int | float | str | None) -> int | float | str | None:
    """Return a memory limit that dask will understand too."""
    if limit is None or limit == "auto":
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int | float | str):
        raise TypeError(f"memory_limit must be a size, not {type(limit).__name__}: {limit!r}")
    text = limit.strip() if isinstance(limit, str) else f"{limit:f}"
    if not _SIZE.fullmatch(text):
        raise ValueError(
            f"memory_limit must be 'auto', None, bytes, a fraction or a text like '4 GiB', not {limit!r}"
        )
    return limit


def _check_system() -> None:
    if not hasattr(os, "fork"):
        raise ClusterStartError(
            f"a local cluster needs Linux or macOS, and this is {sys.platform}: "
            "connect() to a dask scheduler instead"
        )
    # A frozen program, and some that embed Python, would run themselves again and again.
    if getattr(sys, "frozen", False) or not sys.executable:
        raise ClusterStartError(
            "a local cluster needs a Python interpreter to run, and sys.executable is "
            f"{sys.executable!r}: connect() to a dask scheduler instead"
        )


def _command() -> list[str]:
    """Return the host's command: this interpreter, with the flags that change what code does."""
    optimize = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    utf8 = ["-X", f"utf8={sys.flags.utf8_mode}"]
    return [sys.executable, "-u", "-P", *optimize, *utf8, "-c", _BOOT]


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of the host, which is not ours: ours stays as it is."""
    return dict.fromkeys(_THREAD_POOLS, str(threads)) | dict(os.environ)


def _import_path() -> list[str]:
    """Return sys.path as another process must have it: "" means the current directory here."""
    with contextlib.suppress(FileNotFoundError):
        here = os.getcwd()
        return [entry or here for entry in sys.path if isinstance(entry, str)]
    return [entry for entry in sys.path if entry and isinstance(entry, str)]


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends are not 0, 1 or 2, also when this process has those closed."""
    import fcntl  # not on Windows

    ends = os.pipe()
    try:
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends]
    finally:
        for end in ends:
            os.close(end)
    return high[0], high[1]


def _close_all_of(descriptors: list[int]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            os.close(descriptors.pop())


def _inherit_or_null(descriptor: int) -> int | None:
    try:
        os.fstat(descriptor)
    except OSError:
        return subprocess.DEVNULL
    return None
