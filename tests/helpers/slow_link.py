"""A cable that delays and loses packets: `python slow_link.py HERE NAMESPACE THERE DELAY LOSS`.

What `tc netem` does, for kernels without it: two interfaces, HERE in the network namespace that this is
started in and THERE in the other one, and this process that carries the packets of each to the other.
It ends when its standard input does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

# From <linux/if_tun.h> and <linux/sched.h>.
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000


def interface(name: str) -> int:
    """Return a new interface in the present namespace, as a file of its packets."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def enter(namespace: str) -> None:
    """Go to another network namespace (os.setns came with Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(namespace) as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def carry(here: int, there: int, delay: float, loss: float) -> None:
    """Carry packets in both directions until standard input ends."""
    other = {here: there, there: here}
    under_way: deque[tuple[float, int, bytes]] = deque()  # all take as long, so in order of arrival
    lottery = random.Random(0)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([0, here, there], [], [], wait)
        if 0 in readable and not os.read(0, 1):
            return
        for source in (here, there):
            if source in readable:
                packet = os.read(source, 65_536)
                if lottery.random() >= loss:
                    under_way.append((time.monotonic() + delay, other[source], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, target, packet = under_way.popleft()
            try:
                os.write(target, packet)
            except OSError:  # an interface that is down or full loses packets too
                continue


def main() -> None:
    here_name, namespace, there_name, delay, loss = sys.argv[1:]
    here = interface(here_name)
    enter(namespace)
    there = interface(there_name)
    print("ready", flush=True)
    carry(here, there, float(delay), float(loss))


if __name__ == "__main__":
    main()
