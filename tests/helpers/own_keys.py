"""A module of a user's own, whose class no function of a later phase names."""

from __future__ import annotations


class OwnKey:
    """An element."""

    def __init__(self, x: int) -> None:
        self.x = x
