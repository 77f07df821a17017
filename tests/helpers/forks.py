"""What becomes of processes that functions fork."""

from __future__ import annotations

import multiprocessing
import time


def ended(_: object = None) -> int:
    """Fork a process that waits, end it by SIGTERM as `multiprocessing.Pool` does; return its exit code."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
    child.start()
    child.terminate()
    child.join(20)
    return child.exitcode or 0
