"""Host process: it imports dask once, and forks the scheduler and the workers from itself.

It is the template of its children, and is called so below. It has a single thread for life, so that its
forks are clean. It replaces workers that die. It ends everything when its standard input ends (the parent is
gone, or has closed the cluster), when its parent changes, when the scheduler ends, and at SIGTERM.
``host_process`` starts it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from parcoll.clock import time
from parcoll.local import limits
from parcoll.local.children import (
    NOT_STARTED,
    make_directory,
    most_memory,
    options_of,
    run_scheduler,
    run_worker,
    worker_directory,
)
from parcoll.local.imports import lean_imports, steady_process
from parcoll.local.tracker import Tracker
from parcoll.system import adopt_orphans, die_with, how_ended, leave_to_forks, reap, resident_bytes
from parcoll.wire.own_modules import is_own
from parcoll.wire.script import Script, make_main
from parcoll.world.boot import track_with

# What a scheduler and a worker import when they start, beyond `import distributed`. It is imported here
# once, instead of in each of them.
_PRELOADED = ("email.policy", "tornado.platform.asyncio")

_CONFIG: dict[str, Any] = {
    # BatchedSend and the scheduler keep that many past messages, data included. 700 submits of 300 kB
    # took 560 MB with dask's 1000 messages, and take 73 MB with 5.
    "distributed.admin.low-level-log-length": 5,
    "distributed.diagnostics.computations.max-history": 1,
    # dask would throw out a worker whose task holds the GIL for 5 minutes.
    "distributed.scheduler.worker-ttl": None,
    # An evaluation within a task submits through a client in the worker, which would warn of large graphs.
    "distributed.admin.large-graph-warning-threshold": "1 TB",
    # The host lives exactly as long as its parent wants, and its scheduler is found where it says it is.
    "distributed.scheduler.idle-timeout": None,
    "distributed.scheduler.contact-address": None,
    "distributed.scheduler.dashboard.tls.cert": None,
    # dask tries to connect for that long, even to a worker that is gone; its own 30 s are meant for
    # networks. Not shorter: a worker whose task holds the GIL answers late, but is alive.
    "distributed.comm.timeouts.connect": "10s",
    # A paused worker would wait for memory that its own tasks hold. It would hang: no nanny ends it.
    "distributed.worker.memory.pause": False,
    # Each time an event loop wakes, it takes a core, or the GIL, from a task. At dask's intervals (20 ms
    # to measure itself, 10 ms to sample for the profile page, ...) a busy worker was interrupted 500 times
    # a second, and two workers on two cores took 26 % longer than bare processes. At these intervals it is
    # 20 times a second, and 17 %.
    "distributed.admin.tick.interval": "5s",
    "distributed.admin.tick.limit": "30s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.profile.interval": "1s",
    "distributed.worker.memory.monitor-interval": "1s",
    # Each worker has a directory of its own, and the template removes it, so no locks are needed.
    "distributed.worker.use-file-locking": False,
    # A worker cannot be kept from serving HTTP; without routes it serves nothing.
    "distributed.worker.http.routes": [],
}

_GRACE_SECONDS = 1.0  # from SIGTERM to SIGKILL
_MEMORY_SECONDS = 0.1  # how often the template measures its workers' memory; dask's nannies do so as often
_LOOK_SECONDS = 1.0  # how often the template checks that its parent is still the same
# A worker that dies younger than this is replaced after a pause which doubles each time.
_YOUNG_SECONDS = 1.0
_PAUSE_SECONDS = (0.05, 1.0)
# When that many workers in a row could not start, the host gives up.
_MAX_NOT_STARTED = 5


@dataclass
class _Worker:
    number: int
    started: float


class _End(Exception):
    """Ends the template; its text, if any, says what went wrong."""

    def __init__(self, reason: str = "", killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed  # a signal has ended the scheduler: another cluster may fare better


def main(stdin_fd: int, status_fd: int, with_numpy: bool = False) -> NoReturn:
    """Run the template until the parent is gone; the second line of its input has the options.

    `with_numpy` tells that the parent uses numpy. Its functions will too, and one import serves all workers.
    """
    os.set_inheritable(status_fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the user's process handles Ctrl-C
    with contextlib.nullcontext() if with_numpy else lean_imports():
        _import_dask()
    # Workers get an empty __main__, in place of the code that started this process.
    make_main(Script())
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:
        os._exit(0)
    _Template(status_fd, json.loads(line)).run()


def _import_dask() -> None:
    import dask
    import distributed  # noqa: F401

    for name in _PRELOADED:
        importlib.import_module(name)
    steady_process()
    dask.config.set(_CONFIG)
    if not any("logging" in place for place in (dask.config.config, dask.config.get("distributed"))):
        _quiet_logs()


def _import_for_workers() -> None:
    """Import what the first task of each worker would."""
    gc.disable()
    importlib.import_module("parcoll.worker.isolation")
    importlib.import_module("parcoll.worker.reports")
    is_own(Path(__file__))  # finds the folders of installed packages
    gc.freeze()
    gc.enable()


def _quiet_logs() -> None:
    """Silence dask where parcoll itself reports: a worker's start, end and death log several lines each.

    This is not called if dask's own configuration has a part for its logs ("logging" in its yaml files).
    """
    import logging

    for name in ("distributed", "distributed.client", "distributed.gc"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Critical ones too: workers that are closed while tasks run still try to send the outcomes.
    for name in ("distributed.scheduler", "distributed.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _Template:
    """The process from which the children are forked, and which watches over them."""

    def __init__(self, status_fd: int, message: dict[str, Any]) -> None:
        self.status_fd = status_fd
        self.parent = os.getppid()
        self.options = options_of(message)
        self.scheduler = 0  # the process id, once there is one
        self.address = ""
        self.workers: dict[int, _Worker] = {}
        self.most_memory = most_memory(self.options.memory_limit)  # of a worker, in bytes; 0 for no limit
        self.next_number = 0
        self.due: list[float] = []  # when workers that died are to be replaced
        self.pause = 0.0
        self.not_started = 0
        self.told_to_end = False
        self.adopts_orphans = adopt_orphans()
        self.tracker = Tracker()
        track_with(self.tracker.told)
        self.scheduler_status, self._scheduler_status_of_child = os.pipe()
        self.wakeup, self._wakeup_of_signals = os.pipe()
        # The template alone keeps the second end open: a child that finds the pipe ended knows it is gone.
        self._of_template, self._template_lives = os.pipe()

    def run(self) -> NoReturn:
        code, remains = 1, True
        try:
            self._handle_signals()
            self._tell(directory=self.options.directory)
            make_directory(self.options.directory)
            gc.freeze()  # the children share this memory as long as no garbage collection writes to it
            gc.enable()
            self._start_scheduler()
            _import_for_workers()  # while the scheduler starts
            while True:
                self._wait()
        except _End as end:
            if reason := str(end):
                self._tell(error=reason, killed=end.killed)
            else:
                code = 0
        except BaseException as error:
            why = limits.reason(error) or f"{type(error).__name__}: {error}"
            self._tell(error=why, note=traceback.format_exc())
        finally:
            remains = self._end_children()
            self._hand_over()
            shutil.rmtree(self.options.directory, ignore_errors=True)
        if remains:  # programs that tasks started; the signal kills the template with them
            os.killpg(0, signal.SIGKILL)
        os._exit(code)

    def _handle_signals(self) -> None:
        for end in (self.wakeup, self._wakeup_of_signals):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wakeup_of_signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end_soon)

    def _end_soon(self, *_: object) -> None:
        self.told_to_end = True

    def _tell(self, **status: object) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, or no longer reads
            os.write(self.status_fd, json.dumps(status).encode() + b"\n")

    def _wait(self) -> None:
        """Wait until something happens, and handle it."""
        now = time.monotonic()
        look = _MEMORY_SECONDS if self.most_memory and self.workers else _LOOK_SECONDS
        seconds = max(0.0, min([look, *(due - now for due in self.due)]))
        watched = [0, self.wakeup, self.tracker.heard] + ([] if self.address else [self.scheduler_status])
        readable, _, _ = select.select(watched, [], [], seconds)
        # The parent's id changes when the parent dies, even if a fork of it kept a copy of the pipe open.
        hung_up = 0 in readable and not os.read(0, 4096)
        if hung_up or self.told_to_end or os.getppid() != self.parent:
            raise _End
        if self.wakeup in readable:
            os.read(self.wakeup, 4096)
        if self.tracker.heard in readable:
            self.tracker.read()
        if self.scheduler_status in readable:
            self._greet_scheduler()
        self._bury_children()
        self._end_large_workers()
        self._replace_workers()

    # The scheduler -------------------------------------------------------------------------------

    def _start_scheduler(self) -> None:
        self.scheduler = self._fork(partial(run_scheduler, self._scheduler_status_of_child, self.options))
        os.close(self._scheduler_status_of_child)

    def _greet_scheduler(self) -> None:
        data = os.read(self.scheduler_status, 65536)  # the status is one write of less than a pipe's 4 kB
        if not data:
            return  # the scheduler has died, which SIGCHLD tells too, with the reason
        status = json.loads(data)
        if "error" in status:
            self._tell(**status)
            raise _End(status["error"])
        self.address = status["address"]
        options = self.options
        self._tell(**status, pid=os.getpid(), n_workers=options.n_workers, memory_limit=options.memory_limit)
        self.due = [0.0] * self.options.n_workers

    # The workers ---------------------------------------------------------------------------------

    def _replace_workers(self) -> None:
        now = time.monotonic()
        while self.address and self.due and min(self.due) <= now:
            self.due.remove(min(self.due))
            number, self.next_number = self.next_number, self.next_number + 1
            pid = self._fork(partial(run_worker, number, self.address, self.options))
            self.workers[pid] = _Worker(number, now)

    def _bury_children(self) -> None:
        for pid, status in reap()[0]:
            if pid == self.scheduler:
                code = os.waitstatus_to_exitcode(status)
                raise _End(f"its scheduler {how_ended(code)}", killed=code < 0)
            if worker := self.workers.pop(pid, None):
                self._plan_replacement(worker, os.waitstatus_to_exitcode(status))

    def _end_large_workers(self) -> None:
        """Kill workers that take more memory than they may, as a nanny does; their tasks run elsewhere."""
        if self.most_memory:
            for pid in self.workers:
                if resident_bytes(pid) > self.most_memory:
                    os.kill(pid, signal.SIGKILL)  # the id is the worker's, since it was not reaped yet

    def _plan_replacement(self, worker: _Worker, code: int) -> None:
        shutil.rmtree(worker_directory(self.options, worker.number), ignore_errors=True)
        self.not_started = self.not_started + 1 if code == NOT_STARTED else 0
        if self.not_started >= _MAX_NOT_STARTED:
            raise _End(
                f"{self.not_started} workers in a row could not start; their tracebacks are on standard error"
            )
        now = time.monotonic()
        least, most = _PAUSE_SECONDS
        young = now - worker.started < _YOUNG_SECONDS
        self.pause = min(most, max(least, 2 * self.pause)) if young else 0.0
        self.due.append(now + self.pause)

    # Children ------------------------------------------------------------------------------------

    def _fork(self, body: Callable[[], None]) -> int:
        """Fork a child that runs `body` and exits; return its process id."""
        sys.stdout.flush()
        sys.stderr.flush()
        template = os.getpid()
        # Until the child has handlers of its own, a signal would go to the template's and be lost.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD))
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return pid
        code = 1
        try:
            self._become_child(template)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            body()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            _exit_now(code)

    def _become_child(self, template: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: _exit_now(0))
        leave_to_forks(signal.SIGTERM)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for descriptor in (
            null,
            self.status_fd,
            self.wakeup,
            self._wakeup_of_signals,
            self.scheduler_status,
            self.tracker.heard,
            self._template_lives,
        ):
            os.close(descriptor)
        die_with(template, self._of_template)
        if "numpy.random" in sys.modules:  # otherwise all workers would draw the same numbers
            sys.modules["numpy.random"].seed()

    def _end_children(self) -> bool:
        """End all children, by force after a second; return whether any process may be left."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # the programs that tasks started are in the group too
        if not self._wait_for_children(_GRACE_SECONDS):
            for pid in (self.scheduler, *self.workers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._wait_for_children(_GRACE_SECONDS / 2)
        return not (self.adopts_orphans and self._wait_for_children(0))

    def _wait_for_children(self, seconds: float) -> bool:
        """Wait until this process has no child, adopted ones included; return whether it has none."""
        deadline = time.monotonic() + seconds
        while reap()[1]:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            readable = select.select([self.wakeup, self.tracker.heard], [], [], left)[0]
            if self.wakeup in readable:
                os.read(self.wakeup, 4096)
            self.tracker.read()
        return True

    def _hand_over(self) -> None:
        """Leave the shared memory that functions have made to the parent, if it is there."""
        left = self.tracker.left()
        if os.getppid() != self.parent:
            self.tracker.remove_left()
        elif left:
            self._tell(segments=left)


# Processes --------------------------------------------------------------------------------------


def _exit_now(code: int) -> NoReturn:
    """Exit without the interpreter's own clean-up, which would wait for threads that run tasks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
