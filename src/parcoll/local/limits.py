"""Limits: what of a system, or of a patched Python, would keep a local cluster from starting, in a sentence.

dask itself meets these one by one, some of them after seconds of trying, and tells of none what to do. So the
user's process looks first (0.3 ms together). What it cannot foresee is told when it comes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator

from parcoll.errors import ClusterStartError, ParcollError
from parcoll.system import cores

_INLINE = 'or evaluate in this process with connect("inline")'
# What gevent and eventlet put in the place of Python's own, and a client of dask cannot do with.
_GEVENT = ("threading", "thread", "socket", "select", "subprocess", "os", "signal")
_EVENTLET = ("thread", "socket", "select", "subprocess", "os")
# What dask's import and client call. With a mock there they hang, or fail without a word of it.
# `platform`, which a client asks for what it tells of this machine, starts a process.
_CALLED = [
    *("builtins.open", "io.open", "os.urandom", "socket.socket", "threading.Thread"),
    *("subprocess.Popen", "subprocess.check_output", "subprocess.run"),
]


def check(n_workers: int | None) -> None:
    """Raise ClusterStartError if a local cluster of that many workers cannot start here."""
    why = patches() or _files(n_workers or cores()) or _loopback() or _threads()
    if why is not None:
        raise ClusterStartError(why)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise ClusterStartError, with what to do, in the place of an error that a limit has caused."""
    try:
        yield
    except ParcollError:
        raise
    except (OSError, RuntimeError) as error:
        why = reason(error)
        if why is None:
            raise
        raise ClusterStartError(f"the local cluster did not start: {why}") from error


def reason(error: BaseException) -> str | None:
    """Return which limit an error came of, and what to do; None if it came of none that is known."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror if isinstance(error, OSError) else error} ({_of_files()}): {_more_files()}"
    if number == errno.EAGAIN or "can't start new thread" in str(error):
        return f"{error} ({_of_processes()}): end some of them, raise the limit (`ulimit -u`), {_INLINE}"
    return None


def patches() -> str | None:
    """Return why this process cannot have a client of dask: gevent or eventlet has patched it, or a test."""
    found = _patched_by_gevent() or _patched_by_eventlet()
    if found is None:
        return mocked()
    library, names = found
    return (
        f"{library} has patched {', '.join(names)} in this process, and dask's clients need Python's own: "
        f"evaluate in a process that is not patched, {_INLINE}"
    )


def _patched_by_gevent() -> tuple[str, list[str]] | None:
    monkey = sys.modules.get("gevent.monkey")
    names = [name for name in _GEVENT if monkey is not None and monkey.is_module_patched(name)]
    return ("gevent", names) if names else None


def _patched_by_eventlet() -> tuple[str, list[str]] | None:
    patcher = sys.modules.get("eventlet.patcher")
    names = [name for name in _EVENTLET if patcher is not None and patcher.is_monkey_patched(name)]
    return ("eventlet", names) if names else None


def mocked() -> str | None:
    """Return what dask needs to be imported and to start a client, if a test has put mocks there."""
    names = [name for name in _CALLED if _is_mock(*name.split("."))]
    if not names:
        return None
    is_, it = ("is a mock", "it is") if len(names) == 1 else ("are mocks", "they are")
    return (
        f"{', '.join(names)} {is_} in this process, and dask starts with Python's own: evaluate something, "
        f"if only parallel([1]).count(), before {it} put there"
    )


def _is_mock(module: str, name: str) -> bool:
    return type(getattr(sys.modules.get(module), name, None)).__module__ == "unittest.mock"


def _files(n_workers: int) -> str | None:
    """Return why there are not enough descriptors: here, or in the scheduler, which has the same limit."""
    here, there = 8 + 4 * n_workers, 20 + n_workers
    limit, used = _limit_of_files(), _open_files()
    if limit is None or (limit - used >= here and limit >= there):
        return None
    needed = f"{here} more here" if limit - used < here else f"{there} in its scheduler"
    fewer = "connect(n_workers=1), " if n_workers > 1 else ""
    return (
        f"a local cluster of {n_workers} worker{'s' * (n_workers > 1)} needs {needed} of the files that a "
        f"process may have open ({_of_files()}): {_more_files(fewer)}"
    )


def _limit_of_files() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1
        except FileNotFoundError:
            continue
        except OSError:  # not even one more
            return _limit_of_files() or 0
    return 0


def _of_files() -> str:
    return f"this process has {_open_files():,} of {_limit_of_files() or 0:,}"


def _more_files(fewer: str = "") -> str:
    return f"raise the limit (`ulimit -n 1024`), close some, {fewer}{_INLINE}"


def _of_processes() -> str:
    try:
        import resource  # not on Windows
    except ImportError:
        return "this user may have no more processes and threads"
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    most = "as many as the system holds" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    return f"this user may have {most} processes and threads"


def _loopback() -> str | None:
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return reason(error) or (
            f"a local cluster speaks through 127.0.0.1, which cannot be reached here ({error}): bring the "
            f"loopback network up (`ip link set lo up`), {_INLINE}"
        )
    return None


def _threads() -> str | None:
    thread = threading.Thread(target=int, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        return f"a local cluster needs threads: {reason(error) or error}"
    thread.join()
    return None
