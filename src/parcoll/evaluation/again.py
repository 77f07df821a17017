"""What evaluates as a whole begins again where its cluster is lost and another one is had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from parcoll.errors import ClusterLostError
from parcoll.evaluation.engine import Engine
from parcoll.log import logger
from parcoll.watch.stats import Stats

T = TypeVar("T")

MAX_LOSSES = 5  # clusters that are lost one after the other before any of them has done what was asked


class Run(Protocol):
    """An evaluation that can be attempted again."""

    stats: Stats

    @property
    def engine(self) -> Engine:
        """What evaluates."""

    def spent(self) -> object | None:
        """Return the source where it was read, and gives its elements only once."""


def once_more(run: Run, name: str, lost: str, attempt: Callable[[], T]) -> T:
    """Call `attempt` until the cluster stays; raises ClusterLostError where that cannot help.

    `name` is what the user called, `lost` says what becomes of it then.
    """
    losses = 0
    while True:
        try:
            return attempt()
        except ClusterLostError as error:
            if error.yielded is not None:  # of another evaluation, in the source or in a function
                raise
            losses += 1
            if not error.for_good:
                run.stats.lose()
            spent = run.spent()
            if error.for_good or not run.engine.renews or losses > MAX_LOSSES:
                error.tell(f"{name}() {lost}")
                raise
            if spent is not None:
                error.tell(
                    f"{name}() {lost}, and cannot begin again, since {spent} gives its elements only once: "
                    "pass a list, or a function that returns a new iterator"
                )
                raise
            logger.warning("%s: %s; %s() begins again", run.stats.name, error, name)
        run.stats.forget()
