"""Imports: distributed without numpy, in 0.45 s instead of 0.6, out of reach of Ctrl-C; and its clock."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time as the_program_s
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import BuiltinFunctionType, ModuleType

from parcoll.clock import steady_clock, time
from parcoll.errors import ClusterStartError
from parcoll.local import limits
from parcoll.local.shutdown import refuse_at_end, registering_late
from parcoll.system import without_collections
from parcoll.world import handlers

LEFT_OUT = "numpy"


class _Absent(MetaPathFinder):
    """Hides numpy from the thread that made it; other threads find numpy."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == LEFT_OUT and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import without garbage collections, and without numpy unless that is loaded already.

    An import makes hardly any garbage, and collections look through all that it made, again and again.

    While distributed is imported, it asks for numpy in one place, to allocate memory that is not zeroed for
    what it receives (`distributed.protocol.utils.host_array`), and it can do without. Everything else in it
    asks for numpy when the first array comes. `tests/dask_facts` fails when that changes.
    """
    finder = _Absent()
    sys.meta_path.insert(0, finder)
    try:
        with without_collections():
            yield
    finally:
        sys.meta_path.remove(finder)


def import_whole(*names: str, lean: bool = False) -> None:
    """Import modules in a thread of their own, out of reach of Ctrl-C, which then only ends the wait.

    An interrupted import leaves modules half done, and each later import of them fails. At a prompt or in a
    notebook no evaluation would work any more.
    """
    _hold_streams()
    if all(name in sys.modules and not _is_under_way(sys.modules[name]) for name in names):
        return
    refuse_at_end()
    if why := limits.mocked():
        raise ClusterStartError(why)

    def work() -> None:
        with registering_late(), lean_imports() if lean else without_collections():
            for name in names:
                importlib.import_module(name)
            _with_genuine_clocks()

    handlers.unbroken(work)


def _hold_streams() -> None:
    """Have the numbers of streams that a daemon has closed be no files of dask's or parcoll's.

    What a library of C prints goes to a number: it would go into a message or into data.
    """
    try:
        for number in range(3):
            os.fstat(number)
    except OSError:
        with contextlib.suppress(OSError):  # there are no more descriptors, which is told elsewhere
            while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
                pass
            os.close(descriptor)


def _is_under_way(module: ModuleType) -> bool:
    """Tell whether a thread is importing the module, which is in `sys.modules` from the start."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


# The clock that dask goes by ----------------------------------------------------------------------
# dask batches its messages by `time.time()`, too. So the loops of parcoll's clients and workers, and all of
# the local cluster's processes, go by clocks that nobody can set. In the user's process nothing else of
# dask's changes. `tests/dask_facts/` fails when the private parts change.


CLOCKS = ("time", "monotonic", "process_time", "thread_time")  # that dask's modules have by these names


def steady_messages() -> None:
    """Have dask send messages by the clock of the loop that sends them."""
    import distributed.batched

    # A client of the user's own has a loop that goes by the wall clock.
    distributed.batched.time = time_of_loop


def steady_process() -> None:
    """Have all of dask, of tornado and of asyncio in this process go by a steady clock."""
    import asyncio

    from tornado.ioloop import IOLoop

    steady = steady_clock()
    IOLoop.time = lambda self: steady()  # type: ignore[method-assign]
    asyncio.BaseEventLoop.time = lambda self: time.monotonic()  # type: ignore[method-assign]
    for name, module in sys.modules.copy().items():
        if name.partition(".")[0] == "distributed" and getattr(module, "time", None) is the_program_s.time:
            module.time = steady  # type: ignore[attr-defined]


def _with_genuine_clocks() -> None:
    """Have dask go by Python's own clocks, if a test had put others there when it was imported."""
    theirs = {name: getattr(the_program_s, name) for name in CLOCKS}
    put = {name: clock for name, clock in theirs.items() if type(clock) is not BuiltinFunctionType}
    for name, module in sys.modules.copy().items() if put else ():
        if name.partition(".")[0] == "distributed":
            for clock in [clock for clock in put if vars(module).get(clock) is put[clock]]:
                setattr(module, clock, getattr(time, clock))


def time_of_loop() -> float:
    """Return the time by the clock of the loop that runs this."""
    from tornado.ioloop import IOLoop

    return IOLoop.current().time()
