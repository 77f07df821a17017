"""Process: one that runs beside a worker, as the worker starts it, stops it and ends it.

It has a lane for each partition that it runs at the same time. As a rule that is one, in its main thread.
Where a worker has more threads than there are cores, processes share out more lanes, in threads of their own:
functions of so many threads mostly wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from parcoll.chain.marks import Mark
from parcoll.system import descriptor_of, how_ended, kill_descendants, resident_bytes, wait_for_stop
from parcoll.worker.this_worker import Answers
from parcoll.world import boot, records
from parcoll.world.world import FAMILY

LONGEST_LOOK = 3600.0  # seconds of one wait, whose length the system bounds
ANSWER_SECONDS = 2.0  # for a thread of a process to answer, which it cannot where another one holds the GIL
PINGS = 256  # until one is sent again


@dataclass
class Died(Exception):
    """What was asked of a process will not be answered: what it was at, and how it ended.

    It need not have ended: where other lanes of it are at work, it goes on until they are done.
    """

    mark: Mark
    how: str
    timed_out: bool = False
    counts: bool = True  # nobody else has told of the end of this process


class Process:
    """A process beside this worker. Those of its lanes that are at work keep it alive."""

    def __init__(self, descriptors: tuple[int, int, int], shares: bool) -> None:
        self.lanes: list[Any] = []
        self.shared = False  # whether two lanes of it have been at work at the same time
        self.condemned = False  # nothing more is asked of it
        self.alone = False  # it gets no more lanes for now
        self.owner = ""  # the process of the script whose partitions it has, or had last
        self.asked: list[Answers] = []  # where threads ask that belong to no lane, if there are several
        self._name = uuid.uuid4().hex  # in the environment of what it starts
        self._lock = threading.Lock()
        self._stopping = threading.Lock()
        self._door: socket.socket | None = None
        self._doorbell = threading.Lock()
        self._answers, self._pings = True, 0
        self.ended: int | None = None  # shows its end even if a process that it forked keeps connections open
        self._untold = True
        self._left = True  # it may have started others, which are killed with it
        connection, memory, telling = descriptors
        passed = [*descriptors]
        told = boot.tracker()
        theirs: list[socket.socket] = []
        try:
            if shares:
                self._door, door = socket.socketpair()
                theirs.append(door)
                self.asked.append(Answers())
                theirs.append(self.asked[0].theirs)
                door.setblocking(True)
                self._door.settimeout(ANSWER_SECONDS)
            passed += [one.fileno() for one in theirs]
            self._popen = subprocess.Popen(
                boot.command(connection),
                stdin=subprocess.DEVNULL,
                env=os.environ | boot.seed_here() | {FAMILY: self._name},
                pass_fds=(*passed, *(() if told is None else (told,))),
            )
        except BaseException:
            for answers in self.asked:
                answers.close()
            self._close()
            raise
        finally:
            for one in theirs:
                one.close()
        self.ended = descriptor_of(self._popen.pid)
        own = (records.process_name(), told)
        self._arguments = (memory, telling, os.getpid(), *own, *(passed[3:] if shares else ()))

    def first_message(self) -> bytes:
        """Return what it reads first."""
        return boot.first_message("parcoll.worker.subworker_main", self._arguments)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    @property
    def size(self) -> int:
        """How many bytes of memory it has."""
        return resident_bytes(self._popen.pid)

    @property
    def shares(self) -> bool:
        """Whether it may have another lane."""
        return self._door is not None and not (self.condemned or self.alone) and self.alive

    def at_work(self) -> list[Any]:
        """Return the lanes that have a partition."""
        return [lane for lane in self.lanes if lane.lent]

    def suits(self, owner: str) -> bool:
        """Tell whether it may run a script's partitions. It has one `__main__`: not those of two scripts."""
        return not self.alone and (self.owner == owner or not self.at_work())

    def admit(self, lane: Any, descriptors: tuple[int, int, int] | None) -> None:
        """Have it serve a lane, its first one without descriptors. Asking shows whether it is at its end."""
        with self._lock:
            if self.condemned:
                return
            self.lanes.append(lane)
        if descriptors is not None and self._door is not None:
            self.shared = True
            with self._doorbell, contextlib.suppress(OSError):  # it is gone
                socket.send_fds(self._door, [b"+"], descriptors)

    def answers(self) -> bool:
        """Tell whether a thread of it answers soon."""
        with self._doorbell:
            if self._answers and self._door is not None:
                self._answers = self._ping(self._door)
            return self._answers

    def _ping(self, door: socket.socket) -> bool:
        self._pings = (self._pings + 1) % PINGS
        ping = bytes([self._pings])
        with contextlib.suppress(OSError):
            door.sendall(ping)
            while answer := door.recv(1):
                if answer == ping:
                    return True
        return False

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it while the block runs. It need not go on then."""
        with self._stopping:
            self._popen.send_signal(signal.SIGSTOP)
            wait_for_stop(self._popen.pid)
            try:
                yield
            finally:
                self._popen.send_signal(signal.SIGCONT)  # nothing is sent to one that has ended

    def tell(self) -> bool:
        """Tell whether nobody has told of its end so far."""
        with self._lock:
            untold, self._untold = self._untold, False
        return untold

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(min(seconds, LONGEST_LOOK))

    def how_ended(self) -> str:
        """Return how it ended; nothing if it has not."""
        code = self._popen.poll()
        return "" if code is None else how_ended(code)

    def terminate(self) -> None:
        """Have it end as a script does."""
        self._popen.terminate()

    def retire(self) -> bool:
        """Have it get nothing more to do; False if it is at work."""
        with self._lock:
            self.condemned = self.condemned or not self.at_work()
            return self.condemned

    def leave(self, lane: Any, after: float) -> None:
        """Have it end after some seconds, but not before the other lanes that are at work."""
        with self._lock:
            self.condemned = True
            if lane in self.lanes:
                self.lanes.remove(lane)
            if self.at_work():
                return
        self.end(after)

    def end(self, after: float = 0.0) -> None:
        """End it, and all that it has started, after some seconds; returns when they are gone."""
        self.wait(after)
        self.kill()
        asked, self.asked = self.asked, []
        for answers in asked:
            answers.close()
        self._close()

    def kill(self) -> None:
        """Kill it, and all that it has started."""
        if self.alive:
            with contextlib.suppress(psutil.Error, OSError):
                kill_descendants(self._popen.pid)
            self._popen.kill()
        self._popen.wait()
        with self._lock:
            left, self._left = self._left, False
        if left:
            self._kill_left()

    def _kill_left(self) -> None:
        """Kill what the process has started, if it left it to others, now or before."""
        mark = f"{FAMILY}={self._name}".encode()
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/environ", "rb") as file:
                    is_mine = mark in file.read()
                if is_mine:
                    os.kill(pid, signal.SIGKILL)

    def _close(self) -> None:
        if self._door is not None:
            self._door.close()
        if self.ended is not None:
            os.close(self.ended)
            self.ended = None
