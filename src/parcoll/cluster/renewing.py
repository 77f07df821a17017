"""Renewing: an engine that goes on when its cluster is lost, on another cluster or on one that has come back.

`cluster.ways` has the ways to get there.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from parcoll.clock import time
from parcoll.cluster.ways import Way
from parcoll.errors import ConnectError
from parcoll.evaluation.engine import lost_for_good
from parcoll.keys.store import Scratch
from parcoll.local.shutdown import refuse_at_end
from parcoll.watch.around import Follower
from parcoll.watch.stats import Stats
from parcoll.wire.codec import by_value
from parcoll.wire.payload import ByValue, Payload
from parcoll.worker.program import Program
from parcoll.world import handlers

if TYPE_CHECKING:
    from parcoll.cluster.engine import DistributedEngine
    from parcoll.cluster.session import DistributedSession


T = TypeVar("T")

CLOSING_SECONDS = 10.0  # that a thread which connects may take to notice that all is closed


class _Turn:
    """One thread's turn to look for a cluster. Others wait for its end; no lock is held meanwhile."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = threading.Event()


_at_work = threading.local()  # how deep this thread is in the start or the end of a cluster


def is_at_work() -> bool:
    """Tell whether this thread is starting or ending a cluster.

    So an evaluation here is one of a signal's handler, of one of the log or of a callback of the garbage
    collector. It cannot wait for the cluster, nor start another: dask may hold locks of its own here.
    """
    return getattr(_at_work, "depth", 0) > 0


def at_work(work: Callable[[], T]) -> T:
    """Return `work()`, and note meanwhile that this thread starts or ends a cluster."""
    depth = getattr(_at_work, "depth", 0)
    try:  # no context manager: one that a handler keeps from being left would have it at work for ever
        _at_work.depth = depth + 1
        return work()
    finally:
        _at_work.depth = depth


class RenewingEngine:
    """One connection to a cluster, which may be another cluster after a loss. Any thread may use it."""

    in_background = True
    scratch: Callable[[], Scratch] | None = None  # `connect` may set it

    def __init__(self, way: Way) -> None:
        self.way = way
        self.renews = way.renews
        self.current: DistributedEngine | None = None  # the last one
        self._pid = os.getpid()
        self._turns: dict[str, _Turn] = {}  # at most one; a dict, since its methods cannot be interrupted
        self._is_closed = False
        self._closed = threading.Event()  # tells whoever waits for a cluster
        self._left = False  # it is closed, and nothing of its cluster is here any more
        self._followers: weakref.WeakSet[_RenewedFollower] = weakref.WeakSet()

    def connected(self) -> DistributedEngine:
        """Return the engine of a cluster that is there; start or find one if there is none."""
        since, engine = time.monotonic(), self.current
        if os.getpid() != self._pid:  # a fork, which has no threads of the client
            raise lost_for_good(self.way.gone(engine))
        if engine is not None and engine.link.connected and not self._is_closed:
            return engine
        refuse_at_end()
        while True:
            turn = _Turn()
            try:
                first = self._turns.setdefault("now", turn)
                if first is turn:
                    return self._connected(since)
            finally:
                with handlers.postponed:  # else others may wait for ever
                    if self._turns.get("now") is turn:
                        del self._turns["now"]
                    turn.over.set()
            if first.thread == turn.thread and not is_at_work():  # Ctrl-C has left it behind
                self._turns.pop("now", None)
                continue
            if first.thread == turn.thread:
                raise ConnectError("this thread is connecting to the cluster already, below this evaluation")
            first.over.wait()

    def _connected(self, since: float) -> DistributedEngine:
        if self._is_closed:
            raise lost_for_good(self.way.gone(self.current))
        if self.current is not None and self.current.link.connected:
            return self.current
        return at_work(functools.partial(self._connected_anew, since))

    def _connected_anew(self, since: float) -> DistributedEngine:
        try:
            found = self.way.connect(self.current, since, self._closed)
        except Exception:
            if self._is_closed:  # by another thread, which has ended what this one waited for
                self.way.close(None)
                raise lost_for_good(self.way.gone(self.current)) from None
            raise
        self.current = found
        if self._is_closed:
            self.way.close(found)
            raise lost_for_good(self.way.gone(found))
        for follower in list(self._followers):
            follower.renew(found)
        return found

    def _last(self) -> DistributedEngine:
        """Return the engine for an evaluation under way.

        If its cluster is lost, its next call fails. Then the evaluation opens a new session, which waits.
        """
        return self.connected() if self.current is None or self.way.starts else self.current

    @property
    def usable(self) -> bool:
        """Whether this process made the engine, and has not closed it."""
        return not self._is_closed and os.getpid() == self._pid

    @property
    def hands_back(self) -> bool:
        """Whether tasks that take long hand back what they have not begun."""
        return (self.current or self.connected()).hands_back

    @property
    def of_machine(self) -> bool:
        """Whether the workers share memory with this process."""
        return (self.current or self.connected()).of_machine

    @property
    def address(self) -> str:
        """The address of the scheduler, or of the last one."""
        return (self.current or self.connected()).address

    @property
    def client(self) -> Any:
        """The client of the scheduler, or of the last one."""
        return self._last().client

    @property
    def dashboard_link(self) -> str | None:
        """The address of the scheduler's dashboard."""
        return self._last().dashboard_link

    def open(self, program: Program, words: str, keep: bool) -> DistributedSession:
        """Start an evaluation; waits for a cluster if there is none."""
        self.way.prepare(self.connected())
        return self.connected().open(program, words, keep)

    def pack(self, value: Any, lasting: bool = False, by_value: ByValue = by_value) -> Payload:
        """Pickle the value."""
        return (self.current or self.connected()).pack(value, lasting, by_value)

    def memory_limit(self) -> float:
        """Return what the largest worker may hold, in bytes."""
        return self._last().memory_limit()

    def threads(self) -> int:
        """Return how many threads the workers have."""
        return (self.current or self.connected()).threads()

    def follow(self, stats: Stats) -> Follower:
        """Publish the evaluation on the web page of its cluster, and on that of the next one."""
        follower = _RenewedFollower(stats, self._last(), self._followers)
        self._followers.add(follower)
        return follower

    def persist(self, bag: Any) -> Any:
        """Compute a bag on the cluster."""
        return self._last().persist(bag)

    def close(self) -> None:
        """Let go of the cluster. May be called while another thread waits for a cluster.

        It may be called again. If what a signal's handler raised has ended it, it goes on then.
        """
        if not self._is_closed:  # not again: an event whose setting was interrupted may be locked for ever
            self._is_closed = True
            with handlers.postponed:
                self._closed.set()
        if not self._left and os.getpid() == self._pid:
            at_work(functools.partial(self.way.close, self.current))
            turn = self._turns.get("now")
            if turn is not None and turn.thread != threading.get_ident():
                turn.over.wait(CLOSING_SECONDS)
            self._left = True


class _RenewedFollower:
    """A follower that stands for those of all the clusters that one evaluation has."""

    def __init__(
        self, stats: Stats, engine: DistributedEngine, others: weakref.WeakSet[_RenewedFollower]
    ) -> None:
        self._others = others  # of one engine, this one among them
        self._stats = stats
        self._now = engine.follow(stats)
        self._ended = False

    def renew(self, engine: DistributedEngine) -> None:
        """Go on with the next cluster, unless the evaluation has ended."""
        if not self._ended:
            self._now.end()
            self._now = engine.follow(self._stats)

    def end(self) -> None:
        """Show the final numbers."""
        self._ended = True
        # Else it would be removed wherever it is dropped: what a signal's handler raises then is lost.
        self._others.discard(self)
        self._now.end()
