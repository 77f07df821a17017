"""What is said of a task that dask gave up: its function never raises."""

from __future__ import annotations

import sys

from parcoll.errors import ClusterLostError, SerializationError, lost_for_good
from parcoll.evaluation.engine import Job
from parcoll.wire.exceptions import Failure
from parcoll.worker.outcome import Outcome


def name_of(job: Job) -> str:
    """Name a task by what it was to do."""
    if job.kind == "join":
        return f"the join of {len(job.parts) - 1} partitions"
    many = "" if job.size is None else f"{job.size} element{'s' * (job.size > 1)} from "
    return f"the partition of {many}{job.place.element(0)}"


def failed(error: BaseException, job: Job) -> Outcome:
    """Describe a task that dask itself failed."""
    lost: BaseException
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "parcoll":
        lost = SerializationError(
            "a worker of the cluster has no parcoll and was not given it, as when it runs another Python "
            f"than this process ({sys.version_info[0]}.{sys.version_info[1]}): start it with that one"
        )
    else:
        lost = error
    lost.__cause__ = error if lost is not error else error.__cause__
    return Outcome(failure=Failure.of(lost, f"in {name_of(job)}"), lost=True)


def refused_bag() -> ClusterLostError:
    """Return the error for a partition of a bag that a scheduler cancelled, though it is there."""
    return lost_for_good(
        "the scheduler gave up a partition of the bag: what persist() left for it on a cluster is gone, or "
        "the scheduler cannot read one of its tasks"
    )
