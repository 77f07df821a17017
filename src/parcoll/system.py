"""System: what only Linux's kernel can do for a family of processes, and how processes ended.

On other systems these do nothing, and return False or 0. And when the collector of cycles has to wait.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import signal
import stat
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from parcoll.clock import time

T = TypeVar("T")
genuine_open = open  # whatever a test puts into the built-in names: that is for its own functions
IN_MEMORY = "/proc/self/fd/"  # before the path of a file that only this process and its forks have

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> bool:
    """Set an attribute of this process; return False if the system has no such attribute (not Linux)."""
    if sys.platform != "linux":
        return False
    import ctypes

    call = ctypes.CDLL(None).prctl
    call.argtypes = (ctypes.c_int, *4 * (ctypes.c_ulong,))
    return bool(call(option, value, 0, 0, 0) == 0)


def adopt_orphans() -> bool:
    """Have orphans among this process's descendants become its children; return whether they will."""
    return prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> bool:
    """Have this process killed when its parent ends, ``kill -9`` included; return whether it will be.

    Only the kernel can end a process that holds the GIL, since none of its threads can run. To the kernel,
    the parent is the thread that started this process.
    """
    set_ = prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the kernel was asked
        os._exit(1)
    return set_


def die_with(template: int, of_template: int) -> None:
    """Have this child end when the template does, ``kill -9`` included."""
    if not die_with_parent(template):
        threading.Thread(target=lambda: os.read(of_template, 1) or os._exit(1), daemon=True).start()


def reap() -> tuple[list[tuple[int, int]], bool]:
    """Return the children that have ended, with their status, and whether there are any others."""
    ended: list[tuple[int, int]] = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return ended, True
            ended.append((pid, status))
    return ended, False


def leave_to_forks(number: int) -> None:
    """Have what this process forks from now on be ended by a signal that has a handler here.

    `multiprocessing.Pool` ends its processes so. A handler of Python's runs between two steps of Python's: a
    fork that is about to wait for a lock just then never sees that it is to end. Until a fork has no handler
    any more, the signal waits.
    """
    masks, handler = threading.local(), signal.getsignal(number)

    def before() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, (number,))

    def in_child() -> None:
        current = signal.getsignal(number)
        # Not one of a function's. That of `dask worker` is asyncio's, and does nothing in a fork.
        if current is handler or getattr(current, "__module__", None) == "asyncio.unix_events":
            signal.signal(number, signal.SIG_DFL)
        after()

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)


@functools.cache
def leave_sigterm_to_forks() -> None:
    """Do that for SIGTERM, once in a process that others have started."""
    if hasattr(os, "register_at_fork"):
        leave_to_forks(signal.SIGTERM)


def how_ended(code: int) -> str:
    """Say how a process ended: ``was killed by signal 11 (SIGSEGV)``."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = ""
    with contextlib.suppress(ValueError):
        name = f" ({signal.Signals(-code).name})"
    return f"was killed by signal {-code}{name}"


def resident_bytes(pid: int) -> int:
    """Return the memory that a process takes, without what it shares with others (large partitions).

    0 if the process is gone, or if the system does not tell.
    """
    try:
        with genuine_open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0


def alarm_is_set() -> bool:
    """Tell whether this thread is the main one, which alarms interrupt, and one is to come."""
    return _is_alarmed() and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def unset_alarm() -> None:
    """Have no alarm come any more; one that has just come is dropped."""
    if _is_alarmed():
        with contextlib.suppress(Exception):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _is_alarmed() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def descriptor_of(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None on kernels before 5.3."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def wait_for_stop(pid: int) -> None:
    """Return when the process stands still. A system call may have to end first."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        deadline = time.monotonic() + 1
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            if time.monotonic() > deadline:  # one that waits for a disk stops when that answers
                return
            time.sleep(0.0005)


def kill_descendants(pid: int) -> None:
    """Kill all descendants of a process. Each is stopped first, so that it starts no more."""
    import psutil

    root = psutil.Process(pid)
    root.suspend()
    stopped: set[psutil.Process] = set()
    while more := set(root.children(recursive=True)) - stopped:
        for process in more:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        stopped |= more
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.kill()


def others_who_write(folder: str, sticky_helps: bool) -> str | None:
    """Say who else than this user and root may write to a folder; None for nobody, or if it is not known.

    In a folder with the sticky bit, as `/tmp`, others may make files, and not replace those that are there:
    that helps (`sticky_helps`) where names cannot be guessed.
    """
    if not hasattr(os, "geteuid"):
        return None
    with contextlib.suppress(OSError):
        found = os.stat(folder)
        if found.st_uid not in (os.geteuid(), 0):
            return f"its owner, the user {found.st_uid},"
        if found.st_mode & stat.S_IWOTH and not (sticky_helps and found.st_mode & stat.S_ISVTX):
            return "every user of this machine"
    return None


class MemoryFile:
    """An open anonymous file, which has a path in this process and its forks only, and is on no disk."""

    def __init__(self, descriptor: int) -> None:
        self.path = f"{IN_MEMORY}{descriptor}"
        # Not closed at exit: a client that another exit handler closes may still open it.
        weakref.finalize(self, os.close, descriptor).atexit = False

    @classmethod
    def of(cls, text: str) -> MemoryFile | None:
        """Return a file that holds a short text, or None if the system has no such files."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            descriptor = os.memfd_create("parcoll")
        except OSError:  # a kernel or a sandbox that forbids it
            return None
        file = cls(descriptor)
        # A text of less than 4 kB, as a key is, takes one write.
        os.write(descriptor, text.encode())
        return file if os.path.exists(file.path) else None  # some chroots have no /proc


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Inbox(Generic[T]):
    """A queue with one reader, whose wait ends in time also where signals are handled meanwhile.

    Before Python 3.13 `SimpleQueue.get` waits for ever once a handler has taken longer than what was left of
    its timeout. A wait for a lock does not.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._bell = threading.Lock()  # free if something has come since the reader looked last
        self._bell.acquire()

    def put(self, item: T) -> None:
        """Add an item, from any thread."""
        self._items.append(item)
        with contextlib.suppress(RuntimeError):  # it is free already
            self._bell.release()

    def empty(self) -> bool:
        """Tell whether there is none."""
        return not self._items

    def get_nowait(self) -> T:
        """Return the next item. Raises queue.Empty."""
        return self.get(0.0)

    def get(self, seconds: float = math.inf) -> T:
        """Return the next item; wait for it so long at most. Raises queue.Empty."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                left = max(until - time.monotonic(), 0.0) if seconds else 0.0
                if not self._bell.acquire(timeout=-1 if left == math.inf else left) and not self._items:
                    raise Empty from None


class Starter(Generic[T]):
    """A thread that starts processes. The kernel ends a process with the thread that started it."""

    def __init__(self, start: Callable[..., T]) -> None:
        self._start = start
        self._asked: SimpleQueue[tuple[SimpleQueue[T | BaseException], dict[str, Any]] | None] = SimpleQueue()
        # A daemon, since others are joined before functions' `atexit` handlers are called.
        threading.Thread(target=self._serve, name="parcoll-starter", daemon=True).start()

    def start(self, **settings: Any) -> T:
        """Return a new process."""
        answer: SimpleQueue[T | BaseException] = SimpleQueue()
        self._asked.put((answer, settings))
        started = answer.get()
        if isinstance(started, BaseException):
            raise started
        return started

    def stop(self) -> None:
        """End the thread."""
        self._asked.put(None)

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            answer, settings = asked
            try:
                answer.put(self._start(**settings))
            except BaseException as error:
                answer.put(error)
            del answer, asked


LOOK_SECONDS = 0.1  # between two looks at what a thread has done: one takes 15 µs
MUCH_OF_CORE = 0.5  # for a process: its threads may wait for each other
IDLE_SECONDS = 1.0  # after which what came before a partition is not of its kind

_looked = threading.local()
_lookers: dict[int, float] = {}  # when each thread looked last that runs partitions


class _Look(NamedTuple):
    """What a thread, and its process with its children, had done at a moment."""

    at: float
    of_thread: float
    of_process: float


def begin_busy() -> None:
    """Note that this thread begins with a partition."""
    last: _Look | None = getattr(_looked, "last", None)
    if last is None or time.perf_counter() - last.at > IDLE_SECONDS:
        _looked.last = last = _look()
    _lookers[threading.get_ident()] = last.at


def busy_lately() -> float:
    """Return the seconds, since it was said last, in which this thread did not wait; 0.0 if they are few.

    It does not wait while it works, or its process or a child of it does, or others keep it from a processor.
    What the process does counts in equal parts for the threads that run partitions, unless it is so much that
    they wait for its GIL. A system that cannot tell says that it never waits.
    """
    last: _Look = _looked.last
    if time.perf_counter() - last.at < LOOK_SECONDS:
        return 0.0
    _looked.last = now = _look()
    _lookers[threading.get_ident()] = now.at
    for thread, at in _lookers.copy().items():
        if now.at - at > max(IDLE_SECONDS, now.at - last.at):
            _lookers.pop(thread, None)
    of_process = now.of_process - last.of_process
    if of_process < MUCH_OF_CORE * (now.at - last.at):
        of_process /= len(_lookers)
    return max(now.of_thread - last.of_thread, of_process, 0.0)


def _look() -> _Look:
    at = time.perf_counter()
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            worked, kept, _ = os.read(file, 100).split()  # in nanoseconds
        finally:
            os.close(file)
    except (OSError, ValueError):
        return _Look(at, at, 0.0)
    return _Look(at, (int(worked) + int(kept)) / 1e9, sum(os.times()[:4]))


_changing = threading.RLock()  # a handler of a signal may evaluate between any two lines
_waits_for = 0  # blocks, of all threads


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage, in no thread, until the last of such blocks ends. Where it is off, it stays off.

    For what a callback that evaluates would find half done, and where very many objects are made, none of
    which could be freed: half of the time that merging took.
    """
    global _waits_for
    with _changing:
        was_on = gc.isenabled() or _waits_for > 0
        _waits_for += was_on
        gc.disable()
    try:
        yield
    finally:
        with _changing:
            _waits_for -= was_on
            if was_on and not _waits_for:
                gc.enable()


def collections_wait() -> bool:
    """Tell whether the collector waits for such blocks, and is not off because a program wants that."""
    return _waits_for > 0


def _in_child() -> None:
    global _changing, _waits_for
    _changing = threading.RLock()
    if _waits_for:
        _waits_for = 0
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
