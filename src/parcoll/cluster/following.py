"""Followers of evaluations that go on when their cluster is another one."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from parcoll.evaluation.engine import Follower
from parcoll.watch.stats import Stats

Follow = Callable[[Stats], Follower]


class Followers:
    """Those of one engine, to be told of its next cluster."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[_Renewed] = weakref.WeakSet()

    def add(self, stats: Stats, follow: Follow) -> Follower:
        """Have an evaluation followed, on this cluster and those to come."""
        made = _Renewed(stats, follow)
        self._all.add(made)
        return made

    def renew(self, follow: Follow) -> None:
        """Have all evaluations that have not ended followed on another cluster."""
        for follower in list(self._all):
            follower.renew(follow)


class _Renewed:
    """A follower in place of those of all the clusters that one evaluation has."""

    def __init__(self, stats: Stats, follow: Follow) -> None:
        self._stats = stats
        self._now = follow(stats)
        self._ended = False

    def renew(self, follow: Follow) -> None:
        """Go on with the next one; the last one's cluster is gone."""
        if not self._ended:
            self._now.end()
            self._now = follow(self._stats)

    def end(self) -> None:
        """Tell the final numbers."""
        self._ended = True
        self._now.end()
