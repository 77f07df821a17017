"""Host process, in the hands of its parent: it is started, kept alive by a pipe, waited for, and ended."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from parcoll.clock import time
from parcoll.errors import ClusterStartError
from parcoll.local import limits
from parcoll.system import how_ended
from parcoll.world import boot, handlers
from parcoll.world.boot import adopt

# The host needs up to 1.5 s to end when a worker holds the GIL. After these seconds its group is killed.
_CLOSE_SECONDS = 3.0
# How long one turn of a wait holds the lock on the status pipe; between two turns close() can take it.
_TURN_SECONDS = 0.2


class HostProcess:
    """The host process, the pipe that keeps it alive, and the pipe that it tells its status through."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.closed = False
        self.ended = False  # the status pipe is at its end: the host is gone
        self.status: dict[str, Any] = {}
        self._chunks: list[bytes] = []  # all that was read
        self._taken = 0, b""  # how many of these are in the status, and the part of a line at their end
        self.owner = os.getpid()
        self._renew_locks()
        stdin, keep_alive = _pipe()
        status, self._status_of_child = _pipe()
        # Lists, since pop() gives each descriptor to one thread only, so that none is closed twice.
        self._keep_alive, self._pipe_of_status = [keep_alive], [status]
        os.set_blocking(status, False)
        try:
            self.popen = subprocess.Popen(
                boot.command(0, "-u"),
                stdin=stdin,
                stdout=_inherit_or_null(1),
                stderr=_inherit_or_null(2),
                env=environment,
                pass_fds=[self._status_of_child],
                start_new_session=True,
            )
        except OSError as error:
            _close_all_of(self._keep_alive)
            _close_all_of(self._pipe_of_status)
            why = limits.reason(error) or error
            raise ClusterStartError(
                f"the local cluster did not start: {sys.executable!r} could not be run ({why})"
            ) from error
        finally:
            os.close(stdin)
            os.close(self._status_of_child)
        _live.add(self)

    def boot(self, with_numpy: bool) -> None:
        """Tell the host what to import and run, as `host_main.main` says."""
        status = self._status_of_child
        self._write(boot.first_message("parcoll.local.host_main", (status, with_numpy), status))

    def send(self, message: dict[str, Any]) -> None:
        """Write one line to the host."""
        text = json.JSONEncoder().encode(message)  # a test may have replaced json.dumps
        self._write(text.encode() + b"\n")

    def _write(self, content: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is gone already, which `wait_ready` tells
            while content:
                content = content[os.write(self._keep_alive[0], content) :]

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Return the host's status once clients can connect; ClusterStartError if it ends or is late."""
        deadline = time.monotonic() + timeout
        while "address" not in self.status and not self.closed and not self.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise ClusterStartError(
                    f"the local cluster was not ready within {timeout:g} s and was stopped; the machine may "
                    "be overloaded: try connect(n_workers=...) with fewer workers"
                )
            self._read_status(min(left, _TURN_SECONDS))
        if self.closed:
            raise ClusterStartError("the local cluster is closed")
        if self.ended:
            failure = ClusterStartError(self.why_ended())
            if note := self.status.get("note"):
                failure.add_note(note)
            raise failure
        return self.status

    @property
    def alive(self) -> bool:
        """Whether the host runs."""
        # A thread that is reading the same pipe has found what is fresh.
        while not self.closed and not self.ended and not self._in_turn and self._read_status(0):
            pass
        return not self.closed and not self.ended

    def hang_up(self) -> None:
        """Let the host end, without waiting for it. Takes no lock, since the garbage collector calls it."""
        _close_all_of(self._keep_alive)

    @property
    def hung_up(self) -> bool:
        """Whether the host was let go."""
        return not self._keep_alive

    def close(self) -> None:
        """Let the host end, wait for it, and kill what is left of its group."""
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
        """In a fork: close the copies of the pipes, or the host would outlive the process that started it."""
        self._renew_locks()
        self.closed = True
        _close_all_of(self._keep_alive)
        _close_all_of(self._pipe_of_status)
        self.popen.returncode = 0  # not a child of this process: nothing to wait for or warn of

    def _renew_locks(self) -> None:
        # Reentrant: a signal's handler may close what its own thread waits for.
        self._reading, self._closing = threading.RLock(), threading.RLock()
        self._in_turn = False

    def _read_status(self, seconds: float) -> bool:
        """Take what the host tells within that time; return whether it has told something."""
        with self._reading:
            if not self._pipe_of_status:
                return False
            poll = select.poll()  # a selector takes 40 µs, and each evaluation looks five times
            poll.register(self._pipe_of_status[0], select.POLLIN)
            self._in_turn = True
            try:
                ready = bool(poll.poll(seconds * 1000))
            finally:
                self._in_turn = False
            with handlers.postponed:  # what was read is not lost
                if ready and self._pipe_of_status:
                    # A signal's handler, while this thread waited, may have read what there was.
                    with contextlib.suppress(BlockingIOError):
                        self._chunks.extend(map(os.read, self._pipe_of_status, (65536,)))
                self._take()
            return ready

    def _take(self) -> None:
        # Ctrl-C may come between any two steps of Python's. What was read is in the list by then, and if it
        # was not taken in to its end, it is once more.
        while (taken := self._taken[0]) < len(self._chunks):
            chunk = self._chunks[taken]
            *lines, rest = (self._taken[1] + chunk).split(b"\n")
            for line in lines:
                self.status.update(json.JSONDecoder().decode(line.decode()))
            self.ended = self.ended or not chunk
            self._taken = taken + 1, rest

    def why_ended(self) -> str:
        """Say how the host ended, for a message."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(1)
        code, error = self.popen.returncode, self.status.get("error")
        how = how_ended(code) if code is not None else "closed its status but has not ended"
        if "address" in self.status:
            return f"the local cluster ended: {error or 'its host process ' + how}"
        return f"the local cluster did not start: {f'{error}; ' if error else ''}its host process {how}"

    @property
    def was_killed(self) -> bool:
        """Whether a signal that this process did not send has ended the host or its scheduler."""
        if self.closed:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(1)
        self._read_status(0)
        return (self.popen.returncode or 0) < 0 or bool(self.status.get("killed"))

    def _end_now(self) -> None:
        """Kill what is left of the host's process group and remove its directory."""
        self.hang_up()
        # Until the host is reaped, its id, which is also its group's, cannot belong to another process.
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._read_status(0)
        if directory := self.status.get("directory"):
            shutil.rmtree(directory, ignore_errors=True)
        adopt(self.status.pop("segments", []))
        with self._reading:
            _close_all_of(self._pipe_of_status)
        self.ended = True
        _live.discard(self)


# Strong references: a host process must be waited for even if its `Host` was garbage-collected.
_live: set[HostProcess] = set()


def forget_ended() -> None:
    """Reap the host processes that were let go and have ended."""
    for process in list(_live):
        if process.hung_up and not process.alive:
            process.close()


def _close_all() -> None:
    mine = [process for process in list(_live) if process.owner == os.getpid()]
    for process in mine:  # all of them first, so that they end side by side
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


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends are not 0, 1 or 2, even if this process has closed those."""
    import fcntl  # lazy: Windows has none

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
    """Return None, by which a child inherits the descriptor, or the null device if it is no stream here.

    A process that closed its streams, as a daemon does, gives their numbers to the next files that it opens.
    These are not inherited: a child would have none, and no `sys.stdout`.
    """
    with contextlib.suppress(OSError):  # closed
        if os.get_inheritable(descriptor):
            return None
    return subprocess.DEVNULL
