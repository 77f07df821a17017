"""A port that nobody listens at, and that the kernel gives to nobody who asks for any."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
# Below those that Linux and macOS hand out, to any program of the machine, at any moment.
CHOSEN = range(20_000, 32_000)


def free_port() -> int:
    """Return a port of this machine to be left closed, or to be listened at again and again."""
    while True:
        port = random.SystemRandom().choice(CHOSEN)
        with socket.socket() as tried:
            try:
                tried.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
