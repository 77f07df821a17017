"""The process that one peer lives in: `python driver.py PEER`, then commands on its stdin.

A process for each, started afresh: no pool is forked from a process with another one's threads, and
nobody shares an interpreter lock, a heap or a garbage collector with a rival.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import keyed
from children import Channel, Handler, serve
from engines import ENGINES
from peers import CORES, PEERS, Peer
from workloads import WORKLOADS, increment
from written import read, write


def run(
    peer: Peer, workload: str, chunk: int | None, rehearsed: bool = False, **parameters: Any
) -> dict[str, Any]:
    """Time one run of a workload, which is built and checked outside the timing.

    Rehearsed: it is done once before, as in a script that has more than one such job.
    """
    if rehearsed:
        run(peer, workload, chunk, **parameters)
    built = WORKLOADS[workload](**parameters)
    peer.warm(built)
    gc.collect()
    started = time.perf_counter()
    answer = peer.run(built, chunk)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "right": bool(built.is_right(answer)), "title": built.title}


def first(peer: Peer, pause: float, count: int | None) -> dict[str, Any]:
    """Time the first result of a function that takes so long, from `count` elements (None: endless)."""
    warm_stream(peer)
    source = itertools.count() if count is None else range(count)
    started = time.perf_counter()
    stream = peer.stream(partial(wait, pause), source)
    result = next(stream)
    return {"seconds": time.perf_counter() - started, "right": result == 0}


def live(peer: Peer, interval: float, count: int) -> dict[str, Any]:
    """Measure how long after its element each result comes, from a source with a pause between elements."""
    warm_stream(peer)
    born: list[float] = []

    def source() -> Iterator[int]:
        for number in range(count):
            time.sleep(interval)
            born.append(time.perf_counter())
            yield number

    delays, results = [], []
    for result in peer.stream(increment, source()):
        delays.append(time.perf_counter() - born[len(delays)])
        results.append(result)
    return {"delays": delays, "right": results == list(range(1, count + 1))}


def small(peer: Peer, call: str, times: int) -> dict[str, Any]:
    """Time evaluations of ten quick elements, one after the other."""
    ten = list(range(-5, 5))
    evaluate, right = peer.small_calls(ten)[call]
    found = [evaluate() for _ in range(3)]  # all processes are up, and what is learned is known
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        found.append(evaluate())
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "right": all(answer == right for answer in found)}


def captured(peer: Peer, mebibytes: int, start: float, again: int) -> dict[str, Any]:
    """Time evaluations of a function that holds an array, which no evaluation has had before."""
    import numpy as np

    assert peer.map(abs, list(range(-4, 4)), 1) == [4, 3, 2, 1, 0, 1, 2, 3]
    array = np.arange(start, start + mebibytes * 2**17)
    source = list(range(8))
    seconds, right = [], True
    for _ in range(1 + again):
        started = time.perf_counter()
        found = peer.map(partial(look_up, array), source, 1)
        seconds.append(time.perf_counter() - started)
        right = right and found == [start + x for x in source]
    return {"first": seconds[0], "again": seconds[1:], "right": right}


def fetched(peer: Peer, port: int, count: int) -> dict[str, Any]:
    """Time how long it takes to fetch so many pages."""
    import pages  # and with it parcoll, which other peers need not have

    return pages.fetched(peer, port, count)


def look_up(array: Any, x: int) -> float:
    return float(array[x])


def warm_stream(peer: Peer) -> None:
    """Bring all processes up, in the way that is measured then."""
    assert list(peer.stream(increment, range(4 * CORES))) == list(range(1, 4 * CORES + 1))


def wait(seconds: float, x: int) -> int:
    time.sleep(seconds)
    return x


def main() -> None:
    channel = Channel()
    peer = (PEERS | ENGINES)[sys.argv[1]](**json.loads(sys.argv[2]))
    try:
        handlers: dict[str, Handler] = {
            "run": partial(run, peer),
            "first": partial(first, peer),
            "live": partial(live, peer),
            "small": partial(small, peer),
            "captured": partial(captured, peer),
            "written": partial(write, peer),
            "read": partial(read, peer),
            "keyed": partial(keyed.run, peer),
            "pages": partial(fetched, peer),
        }
        serve(channel, handlers)
    finally:
        peer.close()


if __name__ == "__main__":
    main()
