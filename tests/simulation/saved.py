"""What a checkpoint has to have: each element whose results were given never runs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from disk import Disk

from parcoll.cluster.session import DistributedSession
from parcoll.evaluation.resuming import SavableJob
from parcoll.evaluation.window import Window


class Saved:
    """The elements whose results evaluations with a checkpoint have given, or had when they were left.

    However a run ends, what it has given is in the folder: it is saved first. What has come in order, and
    waits to be saved with more, is saved when the run is left: by its consumer, by an error, or since no
    cluster lasts. Not if the process dies there, or its disk has no room.
    """

    def __init__(self, disk: Disk | None) -> None:
        self.again: list[int] = []  # elements that were sent to workers all the same
        self._disk = disk
        self._elements: set[int] = set()

    def _note(self, deliveries: list[tuple[Any, Any]]) -> None:
        for job, outcome in deliveries:
            if outcome.failure is None:  # else some of its elements may not have run
                first = job.place.base
                self._elements.update(range(first, first + outcome.read))

    def _sent(self, jobs: Any) -> None:
        for job in jobs:
            if type(job) is SavableJob and job.size is not None:
                first, size = job.place.base, job.size if job.begun is None else job.begun
                self.again += self._elements.intersection(range(first, first + size))

    @property
    def _saves(self) -> bool:
        """Whether what is saved now is there."""
        return self._disk is None or not (self._disk.dead or self._disk.full)

    def changes(self) -> Iterator[tuple[Any, str, Any]]:
        """Give what is replaced to see this: the owner, the name, and by what."""
        yield Window, "_delivered", self._delivered(Window._delivered)
        yield Window, "outcomes", self._outcomes(Window.outcomes)
        yield DistributedSession, "submit", self._submit(DistributedSession.submit)

    def _delivered(self, delivered: Callable[..., Any]) -> Any:
        def noted(window: Window, idle: bool) -> Any:
            found = delivered(window, idle)
            if found and window._saver is not None:
                self._note(found)
            return found

        return noted

    def _outcomes(self, outcomes: Callable[..., Any]) -> Any:
        def noted(window: Window) -> Iterator[Any]:
            if window._saver is None:
                return outcomes(window)  # type: ignore[no-any-return]
            return left(window)

        def left(window: Window) -> Iterator[Any]:
            try:
                yield from outcomes(window)
            finally:
                if self._saves:
                    self._note(window._held)

        return noted

    def _submit(self, submit: Callable[..., Any]) -> Any:
        def noted(session: DistributedSession, jobs: Any) -> None:
            self._sent(jobs)
            submit(session, jobs)

        return noted
