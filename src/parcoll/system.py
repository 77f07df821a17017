"""System: what only Linux's kernel can do for a family of processes, and how processes ended.

On other systems the functions that need this kernel do nothing, and return False or 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref

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


def leave_to_forks(number: int) -> None:
    """Have what this process forks from now on be ended by a signal that has a handler here.

    `multiprocessing.Pool` ends its processes so. A handler of Python's runs between two steps of Python's: a
    fork that is about to wait for a lock just then never sees that it is to end. Until a fork has no handler
    any more, the signal waits.
    """
    masks = threading.local()

    def before() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, (number,))

    def in_child() -> None:
        signal.signal(number, signal.SIG_DFL)
        after()

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)


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
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0


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
