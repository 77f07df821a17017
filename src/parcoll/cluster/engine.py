"""Engine of a cluster: evaluation on a dask scheduler, through a `distributed.Client`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from parcoll.calls import objects, per_workers
from parcoll.cluster import losses
from parcoll.cluster.link import Link
from parcoll.cluster.preparing import is_ready_here, prepare
from parcoll.cluster.receiving import ReportReader
from parcoll.cluster.sending import current_world
from parcoll.cluster.session import DistributedSession
from parcoll.cluster.workers import ThreadCount
from parcoll.errors import ClusterLostError
from parcoll.watch.publish import Publisher, add_page_now
from parcoll.watch.stats import Stats
from parcoll.wire import memmaps, modules
from parcoll.wire.codec import by_value
from parcoll.wire.own_modules import shipped_sources, sources_for
from parcoll.wire.payload import ByValue, Packed, Payload
from parcoll.wire.reducers import sentinels
from parcoll.worker.program import Program, packed_program
from parcoll.world import boot, own_state, patches

END_SECONDS = 5.0  # that workers have to end objects; some may be busy, and end theirs later


class DistributedEngine:
    """Runs programs on the cluster of one client."""

    renews = False
    scratch = None
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

        `ship` says which modules to send and which not, beside those that are needed. None sends on what was
        sent here, or nothing if the workers import from the search path. `reporting` if the workers have the
        plugin that sends outcomes (`worker.reports`). `worker_memory` if it is known without asking.
        """
        self.link = link
        self._ship = ship
        self._announced = False  # what the workers do when this client has left
        self._reports = ReportReader(link) if reporting else None
        self._worker_memory = worker_memory
        self._counted = ThreadCount(link.client)
        self._within = ship is None and not reporting  # a task, whose objects belong to the script
        losses.listen(link.client, add_plugin=not self._within)

    @property
    def hands_back(self) -> bool:
        """Whether the workers have the plugin that hands back elements, as those of a local cluster do."""
        return self._reports is not None

    @property
    def of_machine(self) -> bool:
        """Whether the workers share memory with this process."""
        return self.link.sharing is not None

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
        """The address of dask's dashboard, once our web page beside it is there."""
        if self._reports is None:  # on a local cluster the host has put it there
            add_page_now(self.client)
        link: str = self.client.dashboard_link
        return link

    def open(self, program: Program, words: str, keep: bool) -> DistributedSession:
        """Start an evaluation; raises an error that names what cannot be pickled."""
        if not self.link.connected:
            raise self.link.lost()
        if per_workers.known and not self._within:
            self._watch_objects()
        of_machine = self.link.sharing is not None
        boot.look_for_lost()
        with memmaps.sent(here=of_machine or bool(memmaps.of_machine)):
            packed, script = packed_program(program, copies=keep or not of_machine)
        world = current_world(of_machine=of_machine)
        modules = self._modules(program)
        return DistributedSession(
            *(self.link, self._reports, packed, modules, script, words, keep, program.stops, world)
        )

    def _watch_objects(self) -> None:
        """Have the workers end objects that nobody can use any more: now, and when this client has left."""
        per_workers.elsewhere.add(self)
        if not self._announced and self._reports is None:  # a local cluster ends with its client
            losses.at_leave(self.client, objects.end_on, self._owned())
            self._announced = True
        dropped = objects.end_dropped()
        if dropped is not None:
            self.end_objects(dropped)

    def _owned(self) -> objects.Which:
        return objects.Which(owner=sentinels.process)

    def end_objects(self, which: objects.Which | None = None) -> None:
        """End objects on the workers, as far as they can be reached: without `which`, all of this process."""
        if per_workers.known and not self._within and self.link.connected:
            broadcast, client = self.client.scheduler.broadcast, self.client
            message = losses.message(objects.end_on, which or self._owned())
            with contextlib.suppress(Exception):  # a worker that has left, or hangs
                client.sync(broadcast, msg=message, on_error="ignore", callback_timeout=END_SECONDS)

    def _modules(self, program: Program) -> bytes:
        """Return the sources to send along; within a task those that came with it; else what is not found."""
        if self._ship is None:
            return modules.packed({**shipped_sources(), **boot.lost_sources()})
        homes, ship = own_state.homes(self.link.sharing is not None), [*self._ship, *patches.homes()]
        return modules.packed(sources_for((program, *program.origins), ship, homes))

    def pack(self, value: Any, lasting: bool = False, by_value: ByValue = by_value) -> Payload:
        """Pickle the value; into shared memory, if there is some and the value is large and needed once."""
        sharing = self.link.sharing
        with memmaps.sent(here=sharing is not None or bool(memmaps.of_machine)):
            packs = Packed if lasting or sharing is None else sharing
            return packs.pack(value, by_value)

    def memory_limit(self) -> float:
        """Return what the largest worker may hold, in bytes."""
        if self._worker_memory is not None:
            return self._worker_memory()
        try:
            with self.link.asking():
                workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
                return max((worker["memory_limit"] or math.inf for worker in workers), default=math.inf)
        except ClusterLostError:  # raised again when the partition is sent
            return math.inf

    def threads(self) -> int:
        """Return how many threads the workers have, as the scheduler said last, a second ago at most.

        It is asked again meanwhile, and nobody waits for that: a small evaluation would spend a quarter of
        its time with it.
        """
        link = self.link
        with link.asking():
            threads = self._counted.threads()
            if threads and link.direct is None and link.reach is not None:
                link.direct = link.reach()
        return threads

    def follow(self, stats: Stats) -> Publisher:
        """Publish the evaluation on the web page of the scheduler."""
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
    """Return an engine for a `distributed.Client`, whose cluster is prepared for our tasks.

    `ship` adds modules to those that are sent. Within a task of a worker that has parcoll there is nothing to
    prepare.
    """
    if client.asynchronous:
        raise TypeError("parcoll needs a synchronous client: this one was made with asynchronous=True")
    link = Link(client)
    if is_ready_here():
        return DistributedEngine(link)
    engine = DistributedEngine(link, ship=ship)
    with link.asking():
        if not link.connected:
            raise link.lost()
        link.direct = prepare(client).direct
        link.reach = lambda: prepare(client).direct
    return engine
