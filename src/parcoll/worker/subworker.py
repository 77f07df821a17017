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
import socket
import threading
import weakref
from collections.abc import Collection, Iterator
from typing import Any

from parcoll import ending
from parcoll.calls import objects
from parcoll.chain.marks import SETTING_UP, Marks
from parcoll.clock import time
from parcoll.errors import WorkerSetupError
from parcoll.system import Starter, cores
from parcoll.wire.payload import free_beside
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.process import LONGEST_LOOK, Died, Process
from parcoll.worker.this_worker import Answers, Slot, threads
from parcoll.world import boot, records

IDLE_SECONDS = 10.0  # to wait for the next partition; a process holds 20 MB, and what functions load
KEEPING_SECONDS = 600.0  # the same for one that has objects of `per_worker`, which are dear to make
MEMORY_SECONDS = 0.05  # between two looks at a process's memory; meanwhile it may take 100 MB more
POLL_SECONDS = 0.1  # between two looks at whether the process has ended, if the system cannot tell
IDLE_END_SECONDS = 2.0  # that one has to end then: its functions' `atexit` handlers may take a while
LAST_SECONDS = 0.2  # that a worker which ends needs after them
INTERRUPT_SECONDS = 0.4  # that one whose worker ends has, if it was at something
STARTS = 2  # that may fail in a row: the first may have been killed by chance


class Subworker:
    """One lane of a process: what runs one partition there. Only one thread asks it at a time.

    The first lane of a process is its main thread. It has others only if it `shares`.
    """

    def __init__(self, process: Process | None = None, shares: bool = False) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(True)  # also where the script has set a default timeout
        memory = Marks.new_memory()
        self.token = ""  # of the program that it has
        self.unstarted = ""  # how it ended, where that was not its work's doing
        self.keeps: set[str] = set()  # names of the objects of `per_worker` that it has
        self.since = 0.0  # when it was given back last; below that if it is to end then
        self.lent, self.unsure = True, False  # unsure: another lane may be to blame for its end
        self._is_over, self.is_main = False, process is None
        self.answers = Answers()
        descriptors = (theirs.fileno(), memory, self.answers.theirs.fileno())
        try:
            self.marks = Marks(memory)
            self.marks.begin(SETTING_UP)
            self.process = process if process is not None else Process(descriptors, shares)
            self.process.admit(self, None if process is None else descriptors)
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
        if process is None:
            with contextlib.suppress(EOFError, OSError):  # it is gone, which the first request shows
                self._send(self.process.first_message())

    @property
    def patience(self) -> float:
        """The seconds that it waits for more work, at least."""
        return (KEEPING_SECONDS if self.keeps else IDLE_SECONDS) / 2

    @property
    def alive(self) -> bool:
        """Whether it may be asked."""
        return self.process.alive and not (self._is_over or self.process.condemned)

    def ask(self, request: Any, least_timeout: float = math.inf, memory_limit: float = math.inf) -> Any:
        """Return the reply to a request.

        A call of a user's function that outlasts its deadline is stopped; a deadline is at least
        `least_timeout` seconds from when it is set. A process that takes more memory than `memory_limit`
        bytes for each of its lanes is stopped too, if the system tells.

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
            if self.marks.deadline <= time.monotonic() and (late := self._late()) is not None:
                raise late
            most = memory_limit * len(self.process.at_work())
            if most < math.inf and (held := self.process.size) > most:
                told = f"held {held / 2**20:,.0f} MiB, and memory_limit leaves it {most / 2**20:,.0f} MiB"
                how = f"was ended, since it {told} (raise memory_limit, or have it hold less)"
                raise self._died(how, unstarted=self.marks.size > memory_limit)

    def _ready(self, to_read: bool, seconds: float = LONGEST_LOOK) -> bool:
        """Wait until the connection can be read or written; EOFError if the process has ended."""
        poller = select.poll()  # not select(), which takes no descriptor from 1024 up
        poller.register(self._connection, select.POLLIN if to_read else select.POLLOUT)
        asked = [self.answers, *self.process.asked] if to_read else []
        for answers in asked:
            poller.register(answers, select.POLLIN)
        if self.process.ended is not None:
            poller.register(self.process.ended, select.POLLIN)
        longest = seconds if self.process.ended is not None else min(seconds, POLL_SECONDS)
        found = {descriptor for descriptor, _ in poller.poll(math.ceil(longest * 1000))}
        for answers in asked:
            if answers.fileno() in found:
                answers.take()
        if self._connection.fileno() in found:
            return True
        if not self.process.alive:
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

    def _late(self) -> Died | None:
        """Stop the process; if its call is still late, end this lane, and the process if it has no other.

        Where its threads cannot run, since a call of compiled code holds the GIL, any of the calls under way
        may be that one, and none gets done.
        """
        stuck = len(self.process.at_work()) > 1 and not self.process.answers()
        with self.process.stopped():  # then it writes nothing, so its marks stay what they are
            if self.marks.deadline > time.monotonic():
                return None
            return self._died(timed_out=True, unsure=stuck)

    def _died(
        self, ended: str = "", timed_out: bool = False, unstarted: bool = False, unsure: bool = False
    ) -> Died:
        if not ended and not timed_out:
            self.process.wait(1)  # its end of the connection is closed a little earlier
        mark = self.marks.read()
        counts = timed_out or self.process.tell()
        self.unsure = unsure or (self.process.shared and not (self.process.alone or timed_out))
        if unstarted or self.unsure:
            mark = mark._replace(phase=SETTING_UP)
        if ended or unsure:
            self.process.kill()
        self.end()
        died = Died(mark, ended or self.process.how_ended(), timed_out and not unsure, counts)
        if mark.is_apart and not self.unsure:
            at = f"it ran the factory of {mark.making}" if mark.making else "parcoll set it up"
            self.unstarted = f"{died.how} while {at}"
        return died

    def interrupt(self) -> None:
        """Interrupt what the process does, so that it ends as a script does."""
        self.process.terminate()

    def dismiss(self) -> None:
        """Tell the lane that nothing more is asked; the process then ends as a script does, files written."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def end(self, after: float = 0.0) -> None:
        """Ask nothing more. The process, and all that it has started, is ended after some seconds.

        Other lanes that are at work are done first, if there are any. Without them, it is gone when this
        returns.
        """
        self.lent, self._is_over = False, True
        self.process.leave(self, after)
        self._connection.close()  # may be called again
        self.answers.close()


class Pool:
    """The processes of one worker, and their lanes that wait for their next partition."""

    def __init__(self) -> None:
        self._lock, self._growing = threading.Lock(), threading.Lock()
        self._idle: list[Subworker] = []
        self._all: weakref.WeakSet[Subworker] = weakref.WeakSet()
        self._timer: threading.Timer | None = None
        self._starter: Starter[Subworker] | None = None

    @contextlib.contextmanager
    def lend(self, owner: str = "") -> Iterator[Lent]:
        """Return a lane for one partition, and another one each time that its process dies."""
        lent = Lent(self._take, owner)
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

    def _take(self, alone: bool = False, owner: str = "") -> Subworker:
        """Return a lane of a process that suits; if to be `alone`, of one that has no others at work."""
        with self._growing:
            shares = threads() > cores()
            try:
                while found := self._waiting(alone, owner) or self._added(shares and not alone, owner):
                    if found.alive:
                        found.process.owner = owner
                        return found
                    found.end()
                with self._lock:
                    self._starter = starter = self._starter or Starter(Subworker)
                # The kernel ends it with the thread that started it: those of dask's pool come and go.
                found = starter.start(shares=shares)
            except OSError as error:  # no memory, no descriptors, too many processes
                raise WorkerSetupError(
                    f"no process could be started beside a worker, where functions with timeout=, and "
                    f"partitions whose workers died, run: {type(error).__name__}: {error}"
                ) from error
            found.process.alone, found.process.owner = alone, owner
            return self._noted(found)

    def _added(self, shares: bool, owner: str) -> Subworker | None:
        """Return one more lane of the process that has least to do; None if there may be more processes."""
        processes = self._sharing(owner) if shares else ()
        if not processes or len(processes) < cores():
            return None
        return self._noted(Subworker(min(processes, key=lambda process: len(process.at_work()))))

    def _noted(self, lane: Subworker) -> Subworker:
        with self._lock:
            self._all.add(lane)
        return lane

    def _waiting(self, alone: bool, owner: str) -> Subworker | None:
        """Return a lane that waits, of the process that has least to do; None if there is none that may."""
        with self._lock:
            work = {x: len(x.process.at_work()) for x in self._idle if x.process.suits(owner)}
            found = min(reversed(work), key=work.__getitem__, default=None)
            if found is None or (work[found] and (alone or len(self._sharing(owner)) < cores())):
                return None
            self._idle.remove(found)
            found.lent, found.process.alone = True, alone
            return found

    def _sharing(self, owner: str) -> set[Process]:
        """Return the processes that may have more lanes for this script."""
        return {lane.process for lane in list(self._all) if lane.process.shares and lane.process.suits(owner)}

    def _give_back(self, subworker: Subworker) -> None:
        if not subworker.alive:
            subworker.end()
            return
        with self._lock:
            stale = subworker.since < 0
            subworker.since = -math.inf if stale else time.monotonic()
            subworker.lent = subworker.process.alone = False
            self._idle.append(subworker)
            self._trim_later()
        if stale:
            self._trim()

    def renew(self, names: Collection[str] | None) -> None:
        """End those that have one of these objects of `per_worker`: now, or when they are given back."""
        with self._lock:
            lanes = list(self._all)
            have = [x.process for x in lanes if (x.keeps if names is None else not x.keeps.isdisjoint(names))]
            for lane in lanes:
                if lane.process in have:
                    lane.since = -math.inf
        self._trim()

    def _trim_later(self) -> None:
        if self._timer is None and self._idle:
            self._timer = threading.Timer(IDLE_SECONDS, self._trim)
            self._timer.daemon = True
            self._timer.start()

    def _trim(self) -> None:
        now = time.monotonic()
        with self._lock:
            kept = {lane.process for lane in self._idle if now - lane.since <= lane.patience}
            ended = [lane for lane in self._idle if lane.process not in kept and lane.process.retire()]
            self._idle = [lane for lane in self._idle if lane not in ended]
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


def _end_all(lanes: list[Subworker], seconds: float) -> None:
    """End the processes of lanes that nothing is asked of, side by side; their main threads go last."""
    for lane in sorted(lanes, key=lambda lane: lane.is_main):
        lane.dismiss()
    deadline = time.monotonic() + seconds
    for lane in lanes:
        lane.end(after=max(deadline - time.monotonic(), 0.0))


class Lent:
    """A process on loan, which is replaced if it dies."""

    def __init__(self, take: Any, owner: str) -> None:
        self._take, self.owner = take, owner  # the process of the script whose partition it is for
        self._slot, self._unstarted = Slot(), 0  # the last ones, in a row
        self.alone = False  # whether its process is to have no other partition meanwhile
        self.current: Subworker | None = None

    def get(self) -> Subworker:
        """Return the process; if it has died, another one."""
        if self.current is None or not self.current.alive:
            self._check_start()
            self.alone = self.alone or (self.current is not None and self.current.unsure)
            self.end()
            self.current = self._take(self.alone, self.owner)
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
