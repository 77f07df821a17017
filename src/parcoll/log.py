"""The logger of parcoll, `logging.getLogger("parcoll")`, and a way to log that waits for no handler."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("parcoll")
logger.addHandler(logging.NullHandler())  # else warnings go to standard error where logging is not set up

HANDLED_SECONDS = 0.2  # that handlers may take, for what is logged to stand before what comes next

_thread = threading.local()


class Beside:
    """A thread that hands records to the logger's handlers, for another one that must not wait for them.

    A handler holds a lock while it runs. If it evaluates meanwhile, it waits for whoever starts the cluster,
    and that one would wait for the handler.
    """

    def __init__(self) -> None:
        self._records: Any = None
        self._at_work: threading.Thread | None = None

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """Have the thread log what the block logs."""
        before = getattr(_thread, "beside", None)
        try:
            _thread.beside = self
            yield
        finally:
            _thread.beside = before

    def take(self, record: logging.LogRecord) -> None:
        """Take a record of the block's."""
        if self._at_work is None:
            import queue  # takes 2 ms, which `import parcoll` need not take

            self._records = queue.SimpleQueue()
            self._at_work = threading.Thread(target=self._hand_over, name="parcoll-log", daemon=True)
            self._at_work.start()
        self._records.put(record)

    def _hand_over(self) -> None:
        while (record := self._records.get()) is not None:
            logger.handle(record)

    def wait(self) -> None:
        """Return when all is logged; soon also if a handler takes long: the caller may be within that one."""
        if self._at_work is not None:
            self._records.put(None)
            self._at_work.join(HANDLED_SECONDS)


def _passes(record: logging.LogRecord) -> bool:
    beside: Beside | None = getattr(_thread, "beside", None)
    if beside is not None:
        beside.take(record)
    return beside is None


logger.addFilter(_passes)
