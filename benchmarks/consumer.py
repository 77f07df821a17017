"""The script whose memory is measured: consumes a long stream one by one, and stops where it is told to.

python consumer.py elements 20000000     python consumer.py arrays 20000
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from children import Channel
from workloads import double, increment

from parcoll import parallel

POINTS = 10  # stops between the first element and the last


def main() -> None:
    channel = Channel()
    kind, count = sys.argv[1], int(sys.argv[2])
    {"elements": consume_elements, "arrays": consume_arrays}[kind](channel, count)


def is_odd(x: int) -> bool:
    return x % 2 == 1


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def consume_elements(channel: Channel, count: int) -> None:
    """Stop at the first element, at every tenth of them and at the last, until the benchmark has looked."""
    commands = channel.commands()
    left = count // 2  # the odd ones
    stops = {1, *(left * point // POINTS for point in range(1, POINTS + 1))}
    total = number = 0
    for number, x in enumerate(parallel(numbers(count)).map(increment).filter(is_odd), 1):
        total += x
        if number in stops:
            channel.answer(at=number)
            next(commands)
    channel.answer(right=number == left and total == left * left)


def consume_arrays(channel: Channel, count: int) -> None:
    """Consume arrays of 1 MiB, and look into each."""
    import numpy as np

    def arrays() -> Iterator[Any]:
        for number in range(count):
            yield np.full(131_072, float(number))

    started = time.perf_counter()
    right, number = True, -1
    for number, array in enumerate(parallel(arrays()).map(double)):
        right = right and array.shape == (131_072,) and array[0] == array[-1] == 2.0 * number
    channel.answer(right=bool(right) and number == count - 1, seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()
