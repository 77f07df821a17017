"""Clocks: what dask waits for does not depend on the wall clock, which may be set while a cluster is up.

dask batches its messages by `time.time()`, and so do tornado's loops with timeouts and with what comes again
and again. Set back by two hours, they would wait for two hours. So the loops of parcoll's clients, and all of
the local cluster's processes, go by a clock that nobody can set: it begins as the wall clock, and goes on
evenly. In the user's process nothing else of dask's changes. `tests/dask_facts/` fails when the private parts
change.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


def steady() -> Callable[[], float]:
    """Return a clock that tells the seconds since 1970, as far as nobody sets the wall clock from now on."""
    beginning = time.time() - time.monotonic()
    return lambda: beginning + time.monotonic()


def for_client(client: Any) -> None:
    """Have a client's loop, and its messages to the scheduler, go by a steady clock."""
    import distributed.batched

    client.loop.time = steady()  # from now on: what waits already waits by the wall clock as it is
    distributed.batched.time = of_loop  # a client of the user's own has a loop that goes by the wall clock


def for_process() -> None:
    """Have all of dask and of tornado in this process go by a steady clock."""
    from tornado.ioloop import IOLoop

    clock = steady()
    IOLoop.time = lambda self: clock()  # type: ignore[method-assign]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "distributed" and getattr(module, "time", None) is time.time:
            module.time = clock  # type: ignore[attr-defined]


def of_loop() -> float:
    """Return the time by the clock of the loop that runs this."""
    from tornado.ioloop import IOLoop

    return IOLoop.current().time()
