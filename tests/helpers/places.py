"""Where an element is evaluated, and what an error says when nowhere."""

from __future__ import annotations

import os
from typing import Any

import distributed

from parcoll import (
    parallel,
)


def place(_: object = None) -> str:
    """Return the address of the scheduler whose worker runs this, or which process does."""
    try:
        return str(distributed.get_worker().scheduler.address)
    except ValueError:
        return f"process {os.getpid()}"


def evaluated_at(**options: Any) -> str:
    (found,) = set(parallel(range(3), **options).map(place))
    return str(found)


def check_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert all(word in text for word in words), text
