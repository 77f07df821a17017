"""What becomes of an element that fails in a step: which exceptions are tried again, and what comes after."""

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

# Of its own, since a user's `random.seed` must give the same numbers with retries and without, and
# workers that were forked must not all wait equally long.
_random = random.SystemRandom()


@dataclass(frozen=True)
class Policy:
    """The settings of one step. Only an `Exception` is tried again or passed over."""

    on_error: OnError = "raise"
    retries: int = 0
    retry_on: tuple[type[Exception], ...] | Callable[[Exception], object] = (Exception,)
    timeout: float | None = None  # seconds for one call

    @property
    def guards(self) -> bool:
        """Tell whether an exception does anything else than end the evaluation."""
        return self.retries > 0 or self.on_error != "raise"


PLAIN = Policy()


def pause(attempts: int) -> float:
    """Return the seconds to wait after that many attempts.

    A random part of up to a half is left out: what one service refused to all workers at once, they
    would all ask of it at once again.
    """
    longest: float = min(CAP_SECONDS, BASE_SECONDS * 2 ** min(attempts - 1, 20))
    return longest * _random.uniform(0.5, 1.0)
