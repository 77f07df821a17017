"""Engine: evaluation on a dask scheduler, through a `distributed.Client`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from parcoll.cluster import losses
from parcoll.cluster.link import Link
from parcoll.cluster.preparing import is_ready_here, prepare
from parcoll.cluster.receiving import ReportReader
from parcoll.cluster.sending import current_world
from parcoll.cluster.session import DistributedSession
from parcoll.errors import ClusterLostError
from parcoll.watch.publish import Publisher, install_now
from parcoll.watch.stats import Stats
from parcoll.wire import modules
from parcoll.wire.own_modules import shipped_sources, sources_for
from parcoll.wire.payload import Packed, Payload
from parcoll.wire.unpicklable import cannot_send
from parcoll.worker.program import Program


class DistributedEngine:
    """Runs programs on the cluster of one client."""

    renews = False
    in_background = True

    def __init__(
        self,
        link: Link,
        *,
        ship: Sequence[Any] | None = None,
        reporting: bool = False,
        worker_memory: Callable[[], float] | None = None,
    ) -> None:
        """Use the link's cluster.

        `ship` says which modules to send and which not, beside those that are needed; None sends on what
        was sent here, as to workers that import from the search path. `reporting` where the workers have the
        plugin that sends outcomes (`worker.reports`). `worker_memory` where it is known without asking.
        """
        self.link = link
        self._ship = ship
        self._reports = ReportReader(link) if reporting else None
        self._worker_memory = worker_memory
        losses.listen(link.client, install=ship is not None or reporting)

    @property
    def client(self) -> Any:
        """The client."""
        return self.link.client

    @property
    def address(self) -> str:
        """The scheduler's address."""
        return self.link.address

    @property
    def dashboard_link(self) -> str | None:
        """The address of dask's dashboard, once the page beside it is there."""
        if self._reports is None:  # else the host has put it there
            install_now(self.client)
        link: str = self.client.dashboard_link
        return link

    def open(self, program: Program, label: str, keep: bool) -> DistributedSession:
        """Start an evaluation; names what cannot be pickled."""
        if not self.link.connected:
            raise self.link.lost()
        packed = _pack_program(program)
        modules = self._modules(program)
        world = current_world(of_machine=self.link.sharing is not None)
        return DistributedSession(
            self.link, self._reports, packed, modules, label, keep, program.stops, world
        )

    def _modules(self, program: Program) -> bytes:
        """Return the sources to send along; within a task of a cluster, those that came with the task."""
        sources = shipped_sources() if self._ship is None else sources_for(program, self._ship)
        return modules.packed(sources)

    def pack(self, value: Any, lasting: bool = False) -> Payload:
        """Pickle the value; into shared memory, if there is some, where it is large and needed once."""
        sharing = self.link.sharing
        return Packed.pack(value) if lasting or sharing is None else sharing.pack(value)

    def memory_limit(self) -> float:
        """Return what the largest worker may hold, in bytes."""
        if self._worker_memory is not None:
            return self._worker_memory()
        try:
            with self.link.errors():
                workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        except ClusterLostError:  # which is told where the partition is sent
            return math.inf
        return max((worker["memory_limit"] or math.inf for worker in workers), default=math.inf)

    def threads(self) -> int:
        """Ask the scheduler how many threads its workers have."""
        link = self.link
        with link.errors():
            threads: int = sum(link.client.nthreads().values())
            if threads and link.direct is None and link.reach is not None:
                link.direct = link.reach()
        return threads

    def follow(self, stats: Stats) -> Publisher:
        """Publish the evaluation on the dashboard's page."""
        return Publisher(self.client, stats, has_page=self._reports is not None)

    def persist(self, bag: Any) -> Any:
        """Compute a bag whose partitions share tasks on the cluster, once."""
        with self.link.errors():
            return self.client.persist(bag)

    def keys_wanted(self) -> list[str]:
        """Return the keys of the tasks for whose reports evaluations wait."""
        return list(self._reports.waiting) if self._reports is not None else []

    def close(self) -> None:
        """Do nothing: the client is somebody else's."""


def engine_of_client(client: Any, ship: Sequence[Any] = ()) -> DistributedEngine:
    """Return an engine for a `distributed.Client`, whose cluster is made ready for our tasks.

    `ship` adds modules to those that are sent. Within a task of a worker that has parcoll there is nothing to
    make ready.
    """
    if client.asynchronous:
        raise TypeError("parcoll needs a synchronous client: this one was made with asynchronous=True")
    link = Link(client)
    if is_ready_here():
        return DistributedEngine(link)
    engine = DistributedEngine(link, ship=ship)
    with link.errors():
        if not link.connected:
            raise link.lost()
        link.direct = prepare(client).direct
        link.reach = lambda: prepare(client).direct
    return engine


def _pack_program(program: Program) -> Packed:
    try:
        return Packed.pack(program)
    except Exception as error:
        for step in program.steps:
            _check_function(step.func, f"the function of {step.label}")
            _check_function(step.policy.on_error, f"the on_error of {step.label}")
            _check_function(step.policy.retry_on, f"the retry_on of {step.label}")
        for func in program.sink.functions.values():
            _check_function(func, f"the function of {program.sink.label}")
        raise cannot_send(None, "the chain", error) from error


def _check_function(func: Any, role: str) -> None:
    try:
        Packed.pack(func)
    except Exception as error:
        raise cannot_send(func, role, error) from error
