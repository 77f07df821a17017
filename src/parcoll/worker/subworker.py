"""Subworker: a process beside a worker, as the worker starts it, asks it, watches it and ends it.

It runs functions that must be stopped after a while, or that may end their process. So the worker is not lost
with them, and neither are its other tasks. What the process was at when it died is in its marks.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import threading
import time
import uuid
import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from parcoll.calls import objects
from parcoll.chain.marks import SETTING_UP, Mark, Marks
from parcoll.errors import WorkerSetupError
from parcoll.system import (
    Starter,
    descriptor_of,
    how_ended,
    kill_descendants,
    resident_bytes,
    wait_for_stop,
)
from parcoll.wire.payload import free_beside
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.this_worker import Answers, Slot
from parcoll.world import boot, ending, family, records
from parcoll.world.world import FAMILY

IDLE_SECONDS = 10.0  # to wait for the next partition; a process holds 20 MB, and what functions load
KEEPING_SECONDS = 600.0  # the same for one that has objects of `per_worker`, which are dear to make
MEMORY_SECONDS = 0.05  # between two looks at a process's memory; meanwhile it may take 100 MB more
LONGEST_LOOK = 3600.0  # seconds of one wait, whose length the system bounds
POLL_SECONDS = 0.1  # between two looks at whether the process has ended, if the system cannot tell
IDLE_END_SECONDS = 2.0  # that one has to end then: its functions' `atexit` handlers may take a while
LAST_SECONDS = 0.2  # that a worker which ends needs after them
INTERRUPT_SECONDS = 0.4  # that one whose worker ends has, if it was at something
STARTS = 2  # that may fail in a row: the first may have been killed by chance


@dataclass
class Died(Exception):
    """The process is gone: what it was at, and how it ended."""

    mark: Mark
    how: str
    timed_out: bool = False


class Subworker:
    """One process. Only one thread asks it at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(True)  # also where the script has set a default timeout
        memory = Marks.new_memory()
        self.token = ""  # of the program that it has
        self.unstarted = ""  # how it ended, where that was not its work's doing
        self.keeps: set[str] = set()  # names of the objects of `per_worker` that it has
        self.since = 0.0  # when it was given back last; below that if it is to end then
        self.answers = Answers()
        self._name = uuid.uuid4().hex  # in the environment of what it starts
        answers_fd, told = self.answers.theirs.fileno(), family.tracker()
        try:
            self.marks = Marks(memory)
            self.marks.begin(SETTING_UP)
            self._popen = subprocess.Popen(
                boot.command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                env=os.environ | boot.seed_here() | {FAMILY: self._name},
                pass_fds=(theirs.fileno(), memory, answers_fd, *(() if told is None else (told,))),
            )
        except BaseException:
            self.answers.close()
            ours.close()
            raise
        finally:
            theirs.close()
            self.answers.theirs.close()
            os.close(memory)
        ours.setblocking(False)
        self._connection = ours
        # Shows its end even if a process that it forked keeps the connection open.
        self._ended = descriptor_of(self._popen.pid)
        numbers = (memory, answers_fd, os.getpid(), records.process_name(), told)
        first = boot.first_message("parcoll.worker.subworker_main", numbers)
        with contextlib.suppress(EOFError, OSError):  # it is gone, which the first request shows
            self._send(first)

    @property
    def patience(self) -> float:
        """The seconds that it waits for more work, at least."""
        return (KEEPING_SECONDS if self.keeps else IDLE_SECONDS) / 2

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    def ask(self, request: Any, least_timeout: float = math.inf, memory_limit: float = math.inf) -> Any:
        """Return the reply to a request.

        A call of a user's function that outlasts its deadline is stopped; a deadline is at least
        `least_timeout` seconds from when it is set. A process that takes more memory than `memory_limit`
        bytes is stopped too, if the system tells.

        Raises:
            Died: The process ended, or was ended, before it replied.
        """
        try:
            self._send(boot.message(pickle.dumps(request, pickle.HIGHEST_PROTOCOL)))
            self._wait(least_timeout, memory_limit)
            while True:
                reply = pickle.loads(self._receive(int.from_bytes(self._receive(boot.LENGTH_BYTES), "big")))
                if not isinstance(reply, records.Logged):
                    break
                records.forward(reply.packed)
                self._wait(least_timeout, memory_limit)
        except (OSError, EOFError):
            raise self._died() from None
        self.answers.slot.settle()
        outcome = reply.outcome if isinstance(reply, Kept) else reply
        self.keeps |= {made.name for made in outcome.made} if isinstance(outcome, Outcome) else set()
        return reply

    def _wait(self, least_timeout: float, memory_limit: float) -> None:
        """Wait for the reply to begin; let the process ask of this worker meanwhile."""
        look = MEMORY_SECONDS if memory_limit < math.inf else LONGEST_LOOK
        while True:
            until_late = min(self.marks.deadline - time.monotonic(), least_timeout)
            if self._ready(to_read=True, seconds=max(0.0, min(until_late, look))):
                return
            if self.marks.deadline <= time.monotonic() and self._stop_late():
                raise self._died(timed_out=True)
            if memory_limit < math.inf and resident_bytes(self._popen.pid) > memory_limit:
                how = "was ended, since it took more memory than its worker may: {mib} MiB"
                raise self._died(how, unstarted=self.marks.size > memory_limit)

    def _ready(self, to_read: bool, seconds: float = LONGEST_LOOK) -> bool:
        """Wait until the connection can be read or written; EOFError if the process has ended."""
        poller = select.poll()  # not select(), which takes no descriptor from 1024 up
        poller.register(self._connection, select.POLLIN if to_read else select.POLLOUT)
        if to_read:
            poller.register(self.answers, select.POLLIN)
        if self._ended is not None:
            poller.register(self._ended, select.POLLIN)
        longest = seconds if self._ended is not None else min(seconds, POLL_SECONDS)
        found = {descriptor for descriptor, _ in poller.poll(math.ceil(longest * 1000))}
        if self.answers.fileno() in found:
            self.answers.take()
        if self._connection.fileno() in found:
            return True
        if not self.alive:
            raise EOFError
        return False

    def _send(self, message: bytes) -> None:
        view = memoryview(message)
        while view:
            if self._ready(to_read=False):
                view = view[self._connection.send(view) :]

    def _receive(self, size: int) -> bytearray:
        found = bytearray(size)
        view = memoryview(found)
        while view:
            if self._ready(to_read=True):
                received = self._connection.recv_into(view)
                if not received:
                    raise EOFError
                view = view[received:]
        return found

    def _stop_late(self) -> bool:
        """Stop the process; tell whether its call is still late, and let it go on if not."""
        self._popen.send_signal(signal.SIGSTOP)
        # A stopped process writes nothing, so its marks stay what they are.
        wait_for_stop(self._popen.pid)
        if self.marks.deadline <= time.monotonic():
            return True
        self._popen.send_signal(signal.SIGCONT)
        return False

    def _died(self, ended: str = "", timed_out: bool = False, unstarted: bool = False) -> Died:
        how = ended.format(mib=resident_bytes(self._popen.pid) >> 20)
        if not ended and not timed_out:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1)  # its end of the connection is closed a little earlier
        mark = self.marks.read()
        if unstarted:
            mark = mark._replace(phase=SETTING_UP)
        self.end()
        died = Died(mark, how or how_ended(self._popen.returncode), timed_out)
        if mark.is_apart:
            at = f"it ran the factory of {mark.making}" if mark.making else "parcoll set it up"
            self.unstarted = f"{died.how} while {at}"
        return died

    def interrupt(self) -> None:
        """Interrupt what the process does, so that it ends as a script does."""
        self._popen.terminate()

    def dismiss(self) -> None:
        """Tell the process that nothing more is asked: it ends as a script does, with its files written."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def end(self, after: float = 0.0) -> None:
        """End the process, and all that it has started, after some seconds; returns when they are gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(min(after, LONGEST_LOOK))
        if self.alive:
            with contextlib.suppress(psutil.Error, OSError):
                kill_descendants(self._popen.pid)
            self._popen.kill()
        self._popen.wait()
        self._kill_left()
        self._connection.close()  # may be called again
        self.answers.close()
        if self._ended is not None:
            os.close(self._ended)
            self._ended = None

    def _kill_left(self) -> None:
        """Kill what the process has started, if it left it to others, now or before."""
        mark = f"{FAMILY}={self._name}".encode()
        for pid in psutil.pids() if self._ended is not None else ():  # once
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/environ", "rb") as file:
                    is_mine = mark in file.read()
                if is_mine:
                    os.kill(pid, signal.SIGKILL)


class Pool:
    """The processes of one worker that wait for their next partition."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Subworker] = []
        self._all: weakref.WeakSet[Subworker] = weakref.WeakSet()
        self._timer: threading.Timer | None = None
        self._starter: Starter[Subworker] | None = None

    @contextlib.contextmanager
    def lend(self) -> Iterator[Lent]:
        """Return a process for one partition, and another one each time that it dies."""
        lent = Lent(self._take)
        try:
            yield lent
        except ending.ProcessEnds:
            lent.end(gently=True)
            raise
        except BaseException:
            lent.end()
            raise
        if lent.current is not None:
            self._give_back(lent.current)

    def _take(self) -> Subworker:
        while True:
            with self._lock:
                if not self._idle:
                    break
                subworker = self._idle.pop()
            if subworker.alive:
                return subworker
            subworker.end()
        # The kernel ends the process with the thread that started it: threads of dask's pool come and go.
        with self._lock:
            if self._starter is None:
                self._starter = Starter(Subworker)
            starter = self._starter
        try:
            started = starter.start()
        except OSError as error:  # no memory, no descriptors, too many processes
            raise WorkerSetupError(
                f"no process could be started beside a worker, where functions with timeout=, and partitions "
                f"whose workers died, run: {type(error).__name__}: {error}"
            ) from error
        self._all.add(started)
        return started

    def _give_back(self, subworker: Subworker) -> None:
        with self._lock:
            stale = subworker.since < 0
            subworker.since = -math.inf if stale else time.monotonic()
            self._idle.append(subworker)
            self._trim_later()
        if stale:
            self._trim()

    def renew(self, names: Collection[str] | None) -> None:
        """End those that have one of these objects of `per_worker`: now, or when they are given back."""
        with self._lock:
            for subworker in list(self._all):
                if subworker.keeps if names is None else not subworker.keeps.isdisjoint(names):
                    subworker.since = -math.inf
        self._trim()

    def _trim_later(self) -> None:
        if self._timer is None and self._idle:
            self._timer = threading.Timer(IDLE_SECONDS, self._trim)
            self._timer.daemon = True
            self._timer.start()

    def _trim(self) -> None:
        now = time.monotonic()
        with self._lock:
            ended = [idle for idle in self._idle if now - idle.since > idle.patience]
            self._idle = [idle for idle in self._idle if idle not in ended]
            if self._timer is threading.current_thread():
                self._timer = None
            self._trim_later()
        _end_all(ended, IDLE_END_SECONDS)
        if not any(subworker.alive for subworker in list(self._all)):
            free_beside()

    def close(self) -> None:
        """End those that wait."""
        with self._lock:
            ended, self._idle = self._idle, []
            starter, self._starter = self._starter, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        _end_all(ended, min(max(ending.seconds_left() - LAST_SECONDS, 0.0), IDLE_END_SECONDS))
        if starter is not None:
            starter.stop()


def _end_all(subworkers: list[Subworker], seconds: float) -> None:
    """End processes that nothing is asked of, side by side."""
    for subworker in subworkers:
        subworker.dismiss()
    deadline = time.monotonic() + seconds
    for subworker in subworkers:
        subworker.end(after=max(deadline - time.monotonic(), 0.0))


class Lent:
    """A process on loan, which is replaced if it dies."""

    def __init__(self, take: Any) -> None:
        self._take = take
        self._slot = Slot()
        self._unstarted = 0  # the last ones, in a row
        self.current: Subworker | None = None

    def get(self) -> Subworker:
        """Return the process; if it has died, another one."""
        if self.current is None or not self.current.alive:
            self._check_start()
            self.end()
            self.current = self._take()
            self.current.answers.slot = self._slot
        return self.current

    def _check_start(self) -> None:
        """Fail where processes do not even start: that is no function's doing."""
        if self.current is None or not self.current.unstarted:
            self._unstarted = 0
            return
        self._unstarted += 1
        if self._unstarted >= STARTS:
            raise WorkerSetupError(
                f"a process beside a worker {self.current.unstarted}, {self._unstarted} times: what it says "
                "is on the worker's standard error"
            )

    def end(self, gently: bool = False) -> None:
        """End it: what it does is not wanted any more. `gently` interrupts what it does, as in the worker."""
        if self.current is not None:
            if gently:
                self.current.interrupt()
            self.current.end(INTERRUPT_SECONDS if gently else 0.0)
            self.current = None


pool = Pool()
objects.renews.append(pool.renew)
atexit.register(pool.close)
