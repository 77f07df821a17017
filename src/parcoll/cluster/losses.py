"""What clients hear from the pipeline page's plugin when a worker is lost: which tasks it had.

dask runs these again as they are, and gives up a task that had four workers: one of its elements may end
each of them. So their sessions send them again in another way (`isolation`), after the first loss.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

from parcoll.log import logger
from parcoll.watch import page


class Loser(Protocol):
    """An evaluation: it looks for its tasks among those that were lost."""

    def lose(self, worker: str, keys: list[str]) -> None:
        """Take in that a worker was lost which had these tasks; runs in the client's loop."""


_losers: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def listen(client: Any) -> None:
    """Have a client hear of lost workers."""
    losers = _losers_of(client)

    def heard(event: tuple[float, dict[str, Any]]) -> None:
        _, lost = event
        logger.warning(
            "the cluster lost the worker %s, with %d tasks: they run again", lost["worker"], lost["tasks"]
        )
        with _lock:
            found: list[Loser] = list(losers)
        for loser in found:
            loser.lose(lost["worker"], lost["keys"])

    client.subscribe_topic(page.LOST_TOPIC, heard)


def register(client: Any, loser: Loser) -> None:
    """Tell an evaluation what its client hears, as long as it lives."""
    with _lock:
        _losers_of(client).add(loser)


def _losers_of(client: Any) -> weakref.WeakSet[Any]:
    return _losers.setdefault(client, weakref.WeakSet())
