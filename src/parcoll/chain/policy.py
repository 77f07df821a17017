"""Policy: what becomes of an element that fails in a step, and which exceptions are tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal

from parcoll.errors import ElementError

OnError = Literal["raise", "skip"] | Callable[[ElementError], Any]
RetryOn = type[Exception] | tuple[type[Exception], ...] | UnionType | Callable[[Exception], object]

BASE_SECONDS = 0.1  # before the first retry; twice as long before each one after it
CAP_SECONDS = 10.0

# Not the `random` of the user: its seed must give the same numbers with retries and without. Not a seeded one
# either: workers that were forked from one process must not all wait equally long.
_random = random.SystemRandom()


@dataclass(frozen=True)
class Policy:
    """The settings of one step. They hold for an `Exception`, not for KeyboardInterrupt or SystemExit."""

    on_error: OnError = "raise"
    retries: int = 0
    retry_on: tuple[type[Exception], ...] | Callable[[Exception], object] = (Exception,)
    timeout: float | None = None  # seconds for one call

    @property
    def guards(self) -> bool:
        """Whether an exception does anything else than end the evaluation."""
        return self.retries > 0 or self.on_error != "raise"


PLAIN = Policy()


def pause(attempts: int) -> float:
    """Return the seconds to wait after so many attempts.

    A random part of at most half is left out. Otherwise all workers that a service has refused at the same
    time would ask it again at the same time.
    """
    longest: float = min(CAP_SECONDS, BASE_SECONDS * 2 ** min(attempts - 1, 20))
    return longest * _random.uniform(0.5, 1.0)
