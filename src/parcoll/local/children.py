"""Children of the host process: the scheduler, which has a dashboard on demand, and the workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from parcoll import ending
from parcoll.local import dashboard, limits
from parcoll.local.credentials import Credentials

if TYPE_CHECKING:
    from distributed.diagnostics.plugin import SchedulerPlugin

    from parcoll.local.main_thread import MainThreadPoolExecutor

_DASHBOARD_PORT = 8787  # dask's own; if it is taken, any other
# Of each thread. A script's main thread has 8 MiB as a rule. Memory is taken as it is used.
STACK_BYTES = 32 * 2**20
_SEND_SECONDS = 0.001  # between two messages of one stream
NOT_STARTED = 87  # the exit code of a worker that could not start


@dataclass(frozen=True)
class HostOptions:
    """What the parent asked for, with a value in place of each default."""

    n_workers: int
    threads_per_worker: int
    memory_limit: int  # bytes; 0 for none
    credentials: Credentials
    directory: str


def most_memory(limit: int) -> float:
    """Return the bytes beyond which a worker is killed: the part of `limit` that dask's settings name."""
    import dask

    part = dask.config.get("distributed.worker.memory.terminate")
    return limit * part if part and limit else 0.0


def options_of(message: dict[str, Any]) -> HostOptions:
    """Return the options that the parent's message asks for."""
    import dask
    from dask.system import CPU_COUNT
    from dask.utils import parse_bytes
    from distributed.system import MEMORY_LIMIT

    n_workers = message["n_workers"] or CPU_COUNT
    memory_limit = message["memory_limit"]
    if memory_limit == "auto":
        memory_limit = MEMORY_LIMIT // n_workers
    elif isinstance(memory_limit, str):
        memory_limit = parse_bytes(memory_limit)
    elif memory_limit is None:
        memory_limit = 0  # dask's word for no limit
    elif memory_limit <= 1:
        memory_limit = memory_limit * MEMORY_LIMIT
    memory_limit = min(int(memory_limit), MEMORY_LIMIT)
    base = dask.config.get("temporary-directory") or tempfile.gettempdir()
    os.makedirs(base, exist_ok=True)  # as dask does
    return HostOptions(
        n_workers=n_workers,
        threads_per_worker=message["threads_per_worker"],
        memory_limit=memory_limit,
        credentials=Credentials(message["certificate"], message["key"]),
        directory=os.path.join(os.path.abspath(base), f"parcoll-{os.urandom(8).hex()}"),
    )


def make_directory(path: str) -> None:
    """Make the cluster's directory, which only this user can enter; OSError says what to do if it cannot be.

    Its name is drawn at random, and nothing that is there already is taken for it, nor a link: in a temporary
    directory others may have put something.
    """
    try:
        path.encode()  # dask's messages have it
        os.mkdir(path, 0o700)
    except (OSError, UnicodeEncodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name is no text in UTF-8"
        raise OSError(
            f"the temporary directory {os.path.dirname(path)!r} cannot be used ({why}): name another one in "
            "the environment's TMPDIR, or as dask's temporary-directory"
        ) from error


def run_scheduler(status_fd: int, options: HostOptions) -> None:
    """Serve as the scheduler until it is closed; tell its address, or why it did not start."""
    try:
        asyncio.run(_serve_scheduler(status_fd, options), debug=False)  # also with -X dev
    except Exception as error:
        why = limits.reason(error) or f"{type(error).__name__}: {error}"
        status = {"error": why, "note": traceback.format_exc()}
        with contextlib.suppress(OSError):
            os.write(status_fd, json.dumps(status).encode())
        raise


def _without_spans(extensions: dict[str, Any]) -> dict[str, Any]:
    """Return dask's extensions without "spans", which keeps 5 kB for each submission to an idle cluster.

    A live source makes such a submission for each element. Without the extension, the dashboard only loses
    its choice of metrics by span.
    """
    return {name: extension for name, extension in extensions.items() if name != "spans"}


def _prompt() -> SchedulerPlugin:
    """Return what has the scheduler send its messages sooner, which makes more messages of them.

    dask waits up to 5 ms, and has no public setting for that. A task that follows a release of results came
    so much later to its worker, and ten quick elements take no longer in all.
    """
    from distributed.diagnostics.plugin import SchedulerPlugin  # lazy: the template has imported it by then

    class Prompt(SchedulerPlugin):
        name = "parcoll-prompt"

        def add_worker(self, scheduler: Any, worker: str) -> None:
            scheduler.stream_comms[worker].interval = _SEND_SECONDS

        def add_client(self, scheduler: Any, client: str) -> None:
            asyncio.get_running_loop().call_soon(self._hurry, scheduler, client)  # it has no stream yet

        def _hurry(self, scheduler: Any, client: str) -> None:
            if client in scheduler.client_comms:
                scheduler.client_comms[client].interval = _SEND_SECONDS

    return Prompt()


async def _serve_scheduler(status_fd: int, options: HostOptions) -> None:
    from distributed.scheduler import DEFAULT_EXTENSIONS, Scheduler

    from parcoll.watch.publish import new_page  # lazy: distributed, which the template has imported by then

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Port 8787 is already in use"
        scheduler = Scheduler(
            host="127.0.0.1",
            port=0,
            protocol="tls://",
            security=options.credentials.security(),
            extensions=_without_spans(DEFAULT_EXTENSIONS),
            dashboard=False,
            dashboard_address=f"127.0.0.1:{_DASHBOARD_PORT}",
            local_directory=os.path.join(options.directory, "scheduler"),
        )
    dashboard.add(scheduler)
    await scheduler
    await scheduler.register_scheduler_plugin(new_page(), idempotent=True)
    await scheduler.register_scheduler_plugin(_prompt(), idempotent=True)
    dashboard_port = scheduler.services["dashboard"].port
    status = {"address": scheduler.address, "dashboard_port": dashboard_port}
    os.write(status_fd, json.dumps(status).encode())
    os.close(status_fd)
    await scheduler.finished()


def run_worker(number: int, address: str, options: HostOptions) -> NoReturn:
    """Serve as a worker until it is closed, with dask's loop in a thread of its own; then end the process."""
    from parcoll.local.main_thread import MainThreadPoolExecutor  # lazy: distributed, as above

    for stream in (sys.stdout, sys.stderr):
        # The host runs with -u. With it print() would write its arguments one by one, and the lines of
        # two workers would mix.
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    threading.stack_size(STACK_BYTES)  # of other threads than the main one
    pool = MainThreadPoolExecutor() if options.threads_per_worker == 1 else None
    serving = partial(_serve_worker, number, address, options, pool)

    def work() -> None:
        threading.Thread(target=_run_loop, args=(serving,), name="parcoll-worker", daemon=True).start()
        if pool is not None:
            pool.serve()
        else:
            threading.Event().wait()

    ending.after(work)


def _run_loop(serving: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run dask's loop, and have the process end with it."""
    code = 1
    try:
        asyncio.run(serving(), debug=False)
        code = 0
    except _NotStartedError:
        code = NOT_STARTED
    except BaseException:
        traceback.print_exc()
    ending.ask(code)


class _NotStartedError(Exception):
    """A worker could not start."""


async def _serve_worker(
    number: int, address: str, options: HostOptions, pool: MainThreadPoolExecutor | None
) -> None:
    from distributed.worker import DEFAULT_EXTENSIONS
    from distributed.worker import Worker as PlainWorker

    from parcoll.local.main_thread import Worker  # lazy: distributed, as above
    from parcoll.worker.reports import ReportSender  # lazy: distributed, as above

    make: Any = PlainWorker if pool is None else partial(Worker, executor=pool)
    loop = asyncio.get_running_loop()
    # When the process is told to end, what becomes of the functions that are interrupted is not to be told.
    ending.begins.append(lambda: loop.call_soon_threadsafe(threading.Event().wait))
    try:
        worker = await make(
            address,
            name=number,
            nthreads=options.threads_per_worker,
            memory_limit=options.memory_limit,
            local_directory=worker_directory(options, number),
            security=options.credentials.security(),
            host="127.0.0.1",
            extensions=_without_spans(DEFAULT_EXTENSIONS),
            plugins=(ReportSender(),),
            dashboard_address="127.0.0.1:0",
        )
    except Exception as error:
        traceback.print_exc()
        raise _NotStartedError from error
    worker.batched_stream.interval = _SEND_SECONDS
    worker.batched_stream.comm.allow_offload = False  # or it estimates the size of each message
    await worker.finished()


def worker_directory(options: HostOptions, number: int) -> str:
    """Return the directory of one worker."""
    return os.path.join(options.directory, f"worker-{number}")
