"""Preparing: what is done once for a client and its cluster.

Versions are compared, the workers get parcoll, and the way to them is tried.
"""

from __future__ import annotations

import asyncio
import re
import warnings
import weakref
from typing import Any

import distributed
import distributed.comm

from parcoll.errors import ConnectError, VersionWarning
from parcoll.worker.bootstrap import bootstrap

REACH_SECONDS = 1.0  # if no worker answers within this time, data goes through the scheduler
ASKED = 3  # workers that are tried, since one may just have died
OLDEST = (2026, 1)  # release of distributed
COMPARED = ("dask", "distributed", "cloudpickle", "msgpack", "tornado", "numpy")


class Prepared:
    """What is known of a client's cluster.

    `direct` tells whether workers can be reached from here; None until there are some to try.
    """

    def __init__(self, client: Any) -> None:
        check_versions(client)
        bring_parcoll(client)
        self.direct: bool | None = None


_prepared: weakref.WeakKeyDictionary[Any, tuple[Any, Prepared]] = weakref.WeakKeyDictionary()


def prepare(client: Any) -> Prepared:
    """Prepare a cluster for this client's tasks, once; ConnectError if it cannot run them."""
    stream = client.scheduler_comm  # another one if the client has come back to a new scheduler
    known, prepared = _prepared.get(client, (None, None))
    if prepared is None or known is not stream:
        prepared = Prepared(client)
        _prepared[client] = stream, prepared
    if prepared.direct is None:
        prepared.direct = can_reach_workers(client)
    return prepared


def check_versions(client: Any) -> None:
    """Refuse workers that cannot run this process's functions; warn of what may fail."""
    found = client.get_versions()
    here = found["client"]["packages"]
    nodes = [("the scheduler", found["scheduler"])]
    nodes += [(f"worker {address}", node) for address, node in sorted(found["workers"].items())]
    warned: set[str] = set()
    for who, node in nodes:
        if not isinstance(node, dict):
            continue  # it left just now
        if reason := _why_not(who, node["packages"], here):
            raise ConnectError(reason)
        for package in COMPARED:
            theirs, ours = node["packages"].get(package), here.get(package)
            if theirs and theirs != ours and package not in warned:  # a missing one shows when it is needed
                warned.add(package)
                warnings.warn(
                    f"{who} has {package} {theirs} and this process {package} {ours}: the same version "
                    "on both is safer",
                    VersionWarning,
                    stacklevel=2,
                )


def _why_not(who: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    python, our_python = (".".join(found["python"].split(".")[:2]) for found in (theirs, ours))
    if python != our_python and who != "the scheduler":  # which runs no function of the user's
        return (
            f"{who} runs Python {python} and this process Python {our_python}: functions travel as "
            "bytecode, which differs between the two; use the same minor version on both"
        )
    release = tuple(map(int, re.findall(r"\d+", str(theirs.get("distributed")))[:2]))  # as of "2026.9rc1"
    if release < OLDEST:
        return (
            f"{who} has distributed {theirs.get('distributed')}, and parcoll needs at least "
            f"{OLDEST[0]}.{OLDEST[1]} there: update it"
        )
    return None


def bring_parcoll(client: Any) -> None:
    """Have all workers of the cluster, present and future, import parcoll as this process has it."""
    for attempt in (1, 2):
        try:
            client.register_plugin(bootstrap())
            return
        except OSError:  # a worker left just now: register again, for those that are there and to come
            if attempt == 2:
                raise


def can_reach_workers(client: Any) -> bool | None:
    """Tell whether data may go to and from the workers past the scheduler; None without workers."""
    addresses = list(client.scheduler_info(n_workers=ASKED)["workers"])
    if not addresses:
        return None
    arguments = client.security.get_connection_args("client")

    async def answers(address: str) -> bool:
        try:
            connecting = distributed.comm.connect(address, timeout=REACH_SECONDS, **arguments)
            comm = await asyncio.wait_for(connecting, REACH_SECONDS)
        except (OSError, TimeoutError, ValueError):
            return False
        await comm.close()
        return True

    async def reach() -> bool:
        found = await asyncio.gather(*map(answers, addresses[:ASKED]))
        return any(found)

    return bool(client.sync(reach))


def is_ready_here() -> bool:
    """Tell whether this runs in a task of a worker that has parcoll, from a client or from our host."""
    try:
        plugins = distributed.get_worker().plugins
    except ValueError:
        return False
    return any(name.startswith("parcoll") for name in plugins)
