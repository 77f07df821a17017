"""A soak on hosts that are cut off: a scheduler, workers and two users, each with a network of its own.

The users' processes evaluate as in the other soak (`chaos.py`), while the cables of the workers' hosts are
pulled, packets vanish without a word, and the worker processes are killed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

import hosts
import psutil
from evaluations import Client, Found

from parcoll import connect

WORKERS = 3
GIVEN_UP = "8s"  # after which the scheduler gives up a worker that says nothing
LONGEST = 14.0  # seconds for which a host is cut off
PATIENCE = 240.0  # seconds without a result
USERS = 2
SCRIPT = "import cut_off; cut_off.evaluate({address!r}, {seconds!r}, {first!r}, {clients!r})"


def evaluate(address: str, seconds: float, first: int, clients: int) -> None:
    """Evaluate on a cluster for so long, in a user's process; write what was found.

    Its clients begin with the number `first`, so that no two do the same at the same time.
    """
    found, ending = Found(), threading.Event()
    with connect(address):
        running = [Client(first + number, found, ending) for number in range(clients)]
        for client in running:
            client.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not found.errors:
            hung = [c.name for c in running if time.monotonic() - c.last_result > PATIENCE]
            if hung:
                found.off(f"no result for {PATIENCE:g} s: {hung}")
                faulthandler.dump_traceback()
            time.sleep(0.5)
        ending.set()
        for client in running:
            client.join(PATIENCE)
            if client.is_alive():
                found.off(f"{client.name} does not end")
    numbers = {name: getattr(found, name) for name in ("elements", "checked", "lost", "doubled", "wrong")}
    print(json.dumps(numbers | {"evaluations": found.evaluations, "errors": found.errors}), flush=True)
    os._exit(0)  # what hangs is told


class CutOff(threading.Thread):
    """The soak, beside another one."""

    def __init__(self, seconds: float, seed: int, clients: int = 1) -> None:
        """There are so many `clients`, each a thread, of each user."""
        super().__init__(name="cut-off")
        self.happened: Counter[str] = Counter()
        self.evaluations: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()  # elements, checked, lost, doubled, wrong
        self.errors: list[str] = []
        self._seconds, self._clients = seconds, clients
        self._random = random.Random(seed)

    def run(self) -> None:
        """Run it."""
        try:
            with hosts.Network() as network:
                self._soak(network)
        except Exception as error:
            self.errors.append(f"on hosts that are cut off: {type(error).__name__}: {error}")

    def _soak(self, network: hosts.Network) -> None:
        scheduler = network.host("scheduler")
        ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": GIVEN_UP}
        address = hosts.start_scheduler(scheduler, **ttl)
        working = [network.host(f"worker{number}") for number in range(WORKERS)]
        started = [hosts.start_worker(host, address) for host in working]
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        scripts = []
        for number in range(USERS):
            settings = {"first": number * self._clients, "clients": self._clients}
            text = SCRIPT.format(address=address, seconds=self._seconds, **settings)
            scripts.append(network.host(f"user{number}").script(text, PYTHONPATH=path))
        until = time.monotonic() + self._seconds
        while time.monotonic() < until and all(script.poll() is None for script in scripts):
            time.sleep(self._random.uniform(2, 15))
            self._strike(network, working[self._random.randrange(WORKERS)], address)
        for script in scripts:
            out, said = script.communicate(timeout=2 * PATIENCE)
            found = json.loads(out.splitlines()[-1]) if out else {"errors": [said[-2_000:]]}
            self.errors += found.pop("errors")
            self.evaluations += Counter(found.pop("evaluations", {}))
            self.numbers += Counter(found)
        for one in started:
            one.process.poll()

    def _strike(self, network: hosts.Network, host: hosts.Host, address: str) -> None:
        what = self._random.choice(["isolated", "isolated", "unplugged", "killed"])
        seconds = self._random.uniform(0.5, LONGEST)
        self.happened[what] += 1
        if what == "killed":  # `dask worker` starts another one
            for process in psutil.Process(host.pid).children(recursive=True):
                try:
                    if "spawn_main" in " ".join(process.cmdline()):
                        process.kill()
                except psutil.Error:
                    continue
            return
        if what == "isolated":
            network.isolate(host)
        else:
            network.unplug(host)
        time.sleep(seconds)
        try:
            network.join() if what == "isolated" else network.plug_in(host)
        except subprocess.CalledProcessError as error:
            self.errors.append(str(error.stderr))
