"""Clocks that the program cannot set: `time` has all that Python's own has.

A test puts other clocks into `time`, for its own functions: `mock.patch("time.monotonic")`, or freezegun,
which looks through the names of all modules. parcoll would wait for ever by a clock that stands still; and a
rate, a timeout or a partition's size that went by one would be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.machinery import BuiltinImporter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import time
else:
    # Python makes the functions of `time` anew for each module that it makes of it, as for each interpreter.
    time = BuiltinImporter.create_module(BuiltinImporter.find_spec("time"))
    BuiltinImporter.exec_module(time)

__all__ = ["steady_clock", "steady_loop", "steady_loop_of_dask", "time"]


def steady_clock() -> Callable[[], float]:
    """Return a clock that tells the seconds since 1970, as far as nobody sets the wall clock from now on."""
    beginning = time.time() - time.monotonic()

    def steady() -> float:
        return beginning + time.monotonic()

    steady.__name__ = "time"  # by which the pages of dask's dashboard call it
    return steady


def steady_loop(loop: Any) -> None:
    """Have one of asyncio's loops go by a clock that nobody can stop: nothing that waits would go on."""
    with contextlib.suppress(AttributeError):  # one of uvloop's, which has a clock of its own
        loop.time = time.monotonic


def steady_loop_of_dask(loop: Any) -> None:
    """Have one of tornado's loops, and that of asyncio within it, go by steady clocks from now on.

    tornado's goes by `time.time()`. Set back by two hours, it would wait for two hours with what it does
    later, or again and again.
    """
    loop.time = steady_clock()
    steady_loop(loop.asyncio_loop)
