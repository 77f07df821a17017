"""Around an evaluation: its start and its end are noted, logged, shown and published."""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType
from typing import Protocol

from parcoll.clock import time
from parcoll.errors import logger
from parcoll.text import escaped, line_of
from parcoll.watch.bar import Bar
from parcoll.watch.progress import wanted
from parcoll.watch.recorder import Recorder
from parcoll.watch.stats import FailureReport, State, Stats
from parcoll.watch.table import headline
from parcoll.world import handlers


class Follower(Protocol):
    """Shows others an evaluation while it runs."""

    def end(self) -> None:
        """Show the final numbers."""


class Watch:
    """The context of one evaluation. However it is left, the evaluation has ended in its `Stats`."""

    def __init__(self, stats: Stats, progress: bool | str | None) -> None:
        self.follower: Follower | None = None  # set once there is an engine to follow it
        self._stats = stats
        self._progress = progress
        self._bar: Bar | None = None
        self._pid = os.getpid()

    def __enter__(self) -> None:
        try:
            Recorder(self._stats).begin()
            logger.info("%s: started", self._stats.name)
            if wanted(self._progress):
                caption = self._progress if isinstance(self._progress, str) else self._stats.name
                with handlers.postponed:  # else nobody would have the bar, whose thread goes on
                    self._bar = Bar(self._stats, caption)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a fork, which drops its copy of an evaluation of its parent
            return
        stats = self._stats
        state = self._state(kind)
        if state == "failed" and not stats.failures and error is not None:  # not in a worker, as the source
            message = escaped(line_of(error)[:500])[:500]
            stats.failures.append(FailureReport(time.time(), "", message, "outside of the steps"))
        Recorder(stats).end(state)
        try:
            if self._bar is not None:
                self._bar.end()
        finally:
            if self.follower is not None:
                self.follower.end()
            if logger.isEnabledFor(logging.INFO):  # the numbers in a line take 30 µs
                logger.info("%s: %s", stats.name, headline(stats.snapshot()))

    def _state(self, kind: type[BaseException] | None) -> State:
        stats = self._stats
        if stats._raised:
            return "failed"
        if kind is None or (issubclass(kind, GeneratorExit) and stats.elements_in == stats.total):
            return "ended"
        return "failed" if issubclass(kind, Exception) else "stopped"
