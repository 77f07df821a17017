"""Memory: how much a worker's functions may take.

That is what dask allows the worker, less what the worker itself holds.
"""

from __future__ import annotations

import math
import os
import sys

from parcoll.system import resident_bytes

LEAST_PART = 0.5  # of the limit, at least: a worker that holds kept results must still run something


def memory_limit() -> float:
    """Return the bytes that this worker may take; infinity outside of a worker, and if there is no limit.

    `Worker.memory_manager` is how dask's documentation of worker memory names it; `tests/dask_facts` fails
    when it goes.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return math.inf
    try:
        return distributed.get_worker().memory_manager.memory_limit or math.inf
    except (ValueError, AttributeError):  # not in a task
        return math.inf


def memory_left() -> float:
    """Return the bytes that a process beside this worker may take."""
    limit = memory_limit()
    if limit == math.inf:
        return limit
    return max(limit - resident_bytes(os.getpid()), limit * LEAST_PART) / threads()


def threads() -> int:
    """Return how many tasks this worker runs at the same time."""
    try:
        count: int = sys.modules["distributed"].get_worker().state.nthreads
    except (KeyError, ValueError, AttributeError):
        return 1
    return count
