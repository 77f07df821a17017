"""Levels: how deep an evaluation is in others. The keys of its tasks tell it to every worker."""

from __future__ import annotations

import re
from typing import Any

_OUR_KEY = re.compile(r"-\d+-\d+-(\d+)-\d+$")


def key_of(words: str, token: str, level: int, number: int) -> str:
    """Return the key of a task of ours: `token` is two numbers, and level 0 is that of the user's process."""
    return f"{words}-{token}-{level}-{number}"


def level_of(key: object) -> int | None:
    """Return the level of a task of ours, None of any other."""
    found = _OUR_KEY.search(key) if isinstance(key, str) else None
    return int(found[1]) if found else None


class Running:
    """A task of this worker, and what it has begun: of a user's own tasks the level is 0."""

    __slots__ = ("evaluations", "key", "level", "over", "placed", "seceded", "thread")

    def __init__(self, key: Any, level: int, placed: bool) -> None:
        self.key = key
        self.level = level
        self.placed = (
            placed  # runs in the main thread, or in one that waits; others in any thread of the pool
        )
        self.thread = 0
        self.over = False
        self.evaluations = 0  # that go on within it
        self.seceded = False  # by the first of them
