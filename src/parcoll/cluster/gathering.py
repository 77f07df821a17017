"""Asks dask for the outcomes of tasks that are done, and waits for none that is lost with its worker."""

from __future__ import annotations

import asyncio
from typing import Any

from parcoll.worker.outcome import Outcome, report


class WorkerLostMeanwhile(Exception):
    """A worker was lost while outcomes were asked for."""


class Gathering:
    """Asks for the outcomes of one evaluation; in the client's loop only."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loss = asyncio.Event()  # of any worker; another one each time

    def lose(self) -> None:
        """End what is being asked: a worker was lost."""
        self._loss.set()
        self._loss = asyncio.Event()

    async def outcomes(self, futures: list[Any], direct: bool | None) -> list[Outcome]:
        """Return the outcomes of some futures, or raise `WorkerLostMeanwhile`.

        Where the worker is one of those that are asked, dask goes on calling it for 30 s, with the outcomes
        of the others in its hands.
        """
        asked = self._client.gather(futures, direct=direct, asynchronous=True)
        gathering, losing = asyncio.ensure_future(asked), asyncio.ensure_future(self._loss.wait())
        try:
            await asyncio.wait({gathering, losing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            losing.cancel()
        if not gathering.done():
            # Not cancelled: the client shares it with other evaluations. How it ends is no news.
            gathering.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise WorkerLostMeanwhile
        return [report(result) for result in gathering.result()]
