"""Client, scheduler and workers on hosts of their own, whose network is slow, broken or walled."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import hosts
import pytest
from hosts import Host, Network
from scripts import Scripts, eventually, import_path

pytestmark = pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))

# dask gives up a peer that says nothing after 30 s; this is the least that it takes.
IMPATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s"}
# dask tries for 30 s to connect; this long, who waits for that has not ended when its test does.
PATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1h"}
GOODBYE = 29.0  # seconds: less than dask's


class Cluster:
    """A scheduler, two workers and a client, each on its own host."""

    def __init__(self, network: Network, delay: float = 0, loss: float = 0, **environment: str) -> None:
        self.network = network
        self.environment = environment
        self.scheduler, self.left, self.right, self.client = (
            network.host(name, delay, loss) for name in ("scheduler", "left", "right", "client")
        )
        self.address = hosts.start_scheduler(self.scheduler, **environment)
        for host in (self.left, self.right):
            hosts.start_worker(host, self.address, "--no-nanny", **environment)

    def start(self, body: str, options: str = "", **environment: str) -> subprocess.Popen[str]:
        """Start a script on the client's host, connected to the cluster."""
        head = f"""
            import json, socket, time
            from parcoll import connect, parallel
            with connect({self.address!r}{options}) as cluster:
        """
        text = textwrap.dedent(head) + textwrap.indent(textwrap.dedent(body), "    ")
        return self.client.script(text, **self.environment, **environment)

    def answer(self, body: str, **environment: str) -> Any:
        """Return what a script prints as JSON."""
        return json.loads(hosts.result_of(self.start(body, **environment)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a cluster on a network without fault, to be left so."""
    with Network() as network:
        yield Cluster(network)


@pytest.fixture
def impatient() -> Iterator[Cluster]:
    """Give a cluster that is for one test, and gives up silent peers early."""
    with Network() as network:
        yield Cluster(network, **IMPATIENT)


# A chain, a reduce that is neither commutative nor associative, and results that stay on the workers
# and are read, joined and counted there. The sleep has both workers take part.
EVERYTHING = """
    def slow(x):
        time.sleep(0.01)
        return x, socket.gethostname()
    pairs = list(parallel(range(200)).map(slow))
    numbers = parallel(range(1000)).filter(lambda x: x % 3).flatmap(lambda x: [x, -x])
    kept = parallel(range(60), partition_size=5)
    kept.foreach(lambda x: x * x)
    print(json.dumps({
        "pairs": [number for number, _ in pairs],
        "hosts": sorted({host for _, host in pairs}),
        "chain": list(numbers),
        "reduce": numbers.reduce(lambda total, x: (2 * total - x) % 1_000_003, 7),
        "fold": numbers.fold(lambda total, x: total + x, 0),
        "kept": list(kept),
        "kept, reduced": kept.map(str).reduce(lambda text, x: text + x),
        "count": kept.count(),
    }))
"""


def by_builtins() -> dict[str, Any]:
    """Return what EVERYTHING has to print."""
    chain = [sign * x for x in range(1000) if x % 3 for sign in (1, -1)]
    total = 7
    for x in chain:
        total = (2 * total - x) % 1_000_003
    return {
        "pairs": list(range(200)),
        "hosts": ["left", "right"],
        "chain": chain,
        "reduce": total,
        "fold": sum(chain),
        "kept": [x * x for x in range(60)],
        "kept, reduced": "".join(str(x * x) for x in range(60)),
        "count": 60,
    }


def test_hosts_have_addresses_and_files_of_their_own(cluster: Cluster) -> None:
    """What the other tests stand on."""
    found = [cluster.left, cluster.right, cluster.scheduler, cluster.client]
    assert len({host.do("hostname") for host in found}) == len({host.address for host in found}) == 4
    cluster.left.do("touch", str(cluster.left.folder / "mine"), "/dev/shm/mine")
    for other in found[1:]:
        assert "mine" not in other.do("ls", str(other.folder), "/dev/shm")
        assert str(cluster.left.address) not in other.do("ip", "address")
        assert "dask worker" in (seen := other.do("ps", "axww")) or other is not cluster.right
        assert cluster.left.address not in seen


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_nothing_of_a_network_is_left(tmp_path: Path, how: str) -> None:
    """Also where the process that made it gets no chance to tidy up."""
    scripts = Scripts(tmp_path)
    script = scripts.start_file(
        """
        import sys, time
        from hosts import Network
        with Network() as network:
            command = "import time; print('up', flush=True); time.sleep(60)"
            network.host("one").start("-c", command).says("up")
            print("up", flush=True)
            sys.stdin.readline()
        """,
        stdin=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join([*import_path(), str(Path(hosts.__file__).parent)])},
    )
    assert script.stdin is not None
    assert script.stdout is not None
    assert script.stdout.readline() == "up\n"
    # Itself, two unshare, two cat, one nsenter, and the Python in there.
    assert len(scripts.processes()) == 7
    if how == "killed":
        script.kill()
    else:
        script.stdin.close()
        script.stdin = None
    scripts.check()


def test_all_operations_give_the_right_answer_over_three_hosts(cluster: Cluster) -> None:
    assert cluster.answer(EVERYTHING) == by_builtins()


SHARED_PAGES = """
    def pages(x):
        with open("/proc/self/maps") as maps:
            return x, sum("memfd:parcoll" in line for line in maps)
    arrays = [bytes([i]) * 1_000_000 for i in range(30)]
    results = list(parallel(arrays).map(pages))
    mine = pages(None)[1]
    print(json.dumps([[array for array, _ in results] == arrays, max(n for _, n in results), mine]))
"""


def test_no_shared_memory_is_used_between_hosts(cluster: Cluster) -> None:
    """Its address means nothing, or another's pages, on another host."""
    assert cluster.answer(SHARED_PAGES) == [True, 0, 0]


def test_shared_memory_is_used_on_one_host(cluster: Cluster) -> None:
    """That the test above can fail."""
    text = SHARED_PAGES.replace("    ", "", 1).replace("\n    ", "\n")
    head = "import json\nfrom parcoll import connect, parallel\nconnect(n_workers=1)\n"
    right, there, here = json.loads(hosts.result_of(cluster.client.script(head + text)))
    assert right
    assert there > 0
    assert here > 0


def test_arrays_come_back_as_they_are_over_the_network(cluster: Cluster) -> None:
    pytest.importorskip("numpy")
    body = """
    import numpy
    arrays = [numpy.full(125_000, i, dtype="float64") for i in range(40)]
    doubled = list(parallel(arrays).map(lambda a: a * 2))
    right = [bool((b == 2 * a).all()) and b.flags.writeable for a, b in zip(arrays, doubled, strict=True)]
    total = parallel(arrays).map(lambda a: a + 1).reduce(lambda a, b: a + b)
    print(json.dumps([right, [total.min(), total.max()]]))
    """
    assert cluster.answer(body) == [[True] * 40, [820.0, 820.0]]


@pytest.fixture
def walled(cluster: Cluster) -> Iterator[Callable[[str], Cluster]]:
    """Let the client reach the scheduler only, for one test."""

    def wall(how: Any) -> Cluster:
        for host in (cluster.left, cluster.right):
            cluster.network.part(cluster.client, host, how)
        return cluster

    yield wall
    cluster.network.join()


@pytest.mark.parametrize("how", ["blackhole", "prohibit"])
def test_results_come_through_the_scheduler_where_workers_cannot_be_reached(
    walled: Callable[[str], Cluster], how: Literal["blackhole", "prohibit"]
) -> None:
    """Whether the network refuses or says nothing; and nobody waits until dask gives up connecting."""
    cluster = walled(how)
    said = {"blackhole": "TimeoutError", "prohibit": "OSError"}
    assert cluster.client.knock(cluster.left)[0] == said[how]
    assert cluster.client.knock(cluster.scheduler)[0] == "ConnectionRefusedError"
    assert cluster.answer(EVERYTHING, **PATIENT) == by_builtins()
    assert cluster.answer(SHARED_PAGES, **PATIENT) == [True, 0, 0]


LARGE_WITH_WORKERS_THAT_COME = """
    import sys
    print("begun", flush=True)
    cluster.engine.client.wait_for_workers(1, 30)
    arrays = [bytes([i]) * 3_000_000 for i in range(12)]
    print(json.dumps(list(parallel(arrays).map(lambda array: array)) == arrays))
"""


def test_workers_that_come_after_the_client_are_tried_before_data_is_sent_to_them() -> None:
    """Nobody was there to be reached when it joined, which says nothing of those that are there now."""
    with Network() as network:
        scheduler, worker, client = (network.host(name) for name in ("scheduler", "worker", "client"))
        address = hosts.start_scheduler(scheduler)
        network.part(client, worker, "blackhole")
        head = f"import json\nfrom parcoll import connect, parallel\ncluster = connect({address!r})\n"
        script = client.script(head + textwrap.dedent(LARGE_WITH_WORKERS_THAT_COME), **PATIENT)
        assert script.stdout is not None
        assert script.stdout.readline() == "begun\n"
        hosts.start_worker(worker, address, "--no-nanny")
        assert json.loads(hosts.result_of(script)) is True


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun")
def test_a_network_that_is_slow_and_loses_packets_changes_nothing() -> None:
    with Network() as network:
        cluster = Cluster(network, delay=0.01, loss=0.005)
        # One knock in fifty loses a packet, which TCP sends again after a second, too late for it.
        knocks = [cluster.client.knock(cluster.left) for _ in range(4)]
        answered = [seconds for answer, seconds in knocks if answer == "ConnectionRefusedError"]
        assert answered
        assert min(answered) >= 0.04  # two cables, there and back
        assert cluster.answer(EVERYTHING) == by_builtins()


# Cut off in mid-run -------------------------------------------------------------------------------

LONG = """
    def slow(x):
        time.sleep(0.03)
        return x * 3
    results = iter(parallel(range(200)).map(slow).{call})
    found = [next(results)]
    print("begun", flush=True)
    found += results
    print(json.dumps(found))
"""
LONG_REDUCE = """
    def slow(x):
        time.sleep(0.03)
        if x == 20:
            print("begun", flush=True)
        return str(x)
    import threading
    threading.Timer(1.0, lambda: print("begun", flush=True)).start()
    print(json.dumps(parallel(range(300)).map(slow).reduce(lambda a, b: a + b)))
"""


def begin(cluster: Cluster, body: str, options: str = "") -> subprocess.Popen[str]:
    """Start a script and return when its run is under way."""
    script = cluster.start(body, options)
    assert script.stdout is not None
    assert script.stdout.readline() == "begun\n"
    time.sleep(0.5)
    assert script.poll() is None
    return script


@pytest.mark.parametrize("who", ["one worker", "both workers", "the client"])
@pytest.mark.parametrize("how", ["unplug", "isolate"])
def test_a_host_that_is_cut_off_for_some_seconds_is_waited_for(cluster: Cluster, who: str, how: str) -> None:
    """TCP itself goes on where it stopped: nothing runs twice, nothing is lost."""
    cut: dict[str, tuple[Host, ...]] = {
        "one worker": (cluster.left,),
        "both workers": (cluster.left, cluster.right),
        "the client": (cluster.client,),
    }
    network = cluster.network
    script = begin(cluster, LONG.format(call="map(str)"))
    for host in cut[who]:
        getattr(network, how)(host)
    time.sleep(2)
    if how == "isolate":
        network.join()
    else:
        for host in cut[who]:
            network.plug_in(host)
    assert json.loads(hosts.result_of(script)) == [str(3 * x) for x in range(200)]


BODIES = [  # each waits for 11 s of silence, once or twice
    pytest.param(LONG.format(call="map(str)"), id="map", marks=pytest.mark.slow),
    pytest.param(LONG_REDUCE, id="reduce"),
]


@pytest.mark.parametrize("body", BODIES)
def test_the_work_of_a_host_that_never_comes_back_is_done_by_another(impatient: Cluster, body: str) -> None:
    script = begin(impatient, body)
    impatient.network.isolate(impatient.left)
    found = json.loads(hosts.result_of(script))
    if body is LONG_REDUCE:
        assert found == "".join(map(str, range(300)))
    else:
        assert found == [str(3 * x) for x in range(200)]


ALL_LOST = """
    import sys, threading
    from parcoll import ClusterLostError
    def slow(x):
        time.sleep(0.03)
        return x
    numbers = parallel(range(100_000), partition_size=1).map(slow)
    def late():
        stream = iter(numbers)
        next(stream)
        while not found:  # the others have been told by then
            time.sleep(0.1)
        list(stream)
    calls = {
        "drawn": lambda: list(numbers), "drawn late": late, "reduce": lambda: numbers.reduce(max),
        "count": numbers.count, "foreach": lambda: parallel(range(100_000), partition_size=1).foreach(slow),
    }
    found = {}
    def run(name):
        try:
            calls[name]()
        except BaseException as error:
            found[name] = [type(error).__name__, str(error)]
    threads = [threading.Thread(target=run, args=[name], daemon=True) for name in calls]
    for thread in threads:
        thread.start()
    time.sleep(2)
    print("begun", flush=True)
    for thread in threads:
        thread.join(50)
    calls["afterwards"] = lambda: list(numbers)
    run("afterwards")
    print(json.dumps(found))
"""


@pytest.mark.parametrize("who", [pytest.param("the client", marks=pytest.mark.slow), "the scheduler"])
def test_a_client_that_never_reaches_its_scheduler_again_says_so(impatient: Cluster, who: str) -> None:
    """Whatever was evaluated, once dask's time for silent peers is over; and not a word more."""
    script = begin(impatient, ALL_LOST)
    impatient.network.isolate(impatient.client if who == "the client" else impatient.scheduler)
    found = json.loads(hosts.result_of(script))
    assert set(found) == {"drawn", "drawn late", "reduce", "count", "foreach", "afterwards"}
    for kind, text in found.values():
        assert kind == "ClusterLostError"
        assert text.startswith(f"the dask scheduler {impatient.address} is gone")
    assert found["drawn"][1].endswith("had been yielded")
    assert "reduce() has no value" in found["reduce"][1]


LEFT = """
    stream = iter(parallel(range(10_000), partition_size=1).map(lambda x: (time.sleep(0.01), x)[1]))
    next(stream)
    print("begun", flush=True)
    time.sleep(4)
    started = time.monotonic()
    cluster.close()
    print(json.dumps(time.monotonic() - started))
"""


def test_leaving_a_scheduler_that_says_nothing_takes_no_longer_than_a_goodbye(impatient: Cluster) -> None:
    script = begin(impatient, LEFT)
    impatient.network.isolate(impatient.scheduler)
    assert json.loads(hosts.result_of(script)) < GOODBYE


@pytest.mark.slow  # test_lost_scheduler.py has one that says nothing, and is joined again
@pytest.mark.parametrize("body", BODIES)
def test_a_scheduler_that_is_reached_again_later_is_joined_anew(impatient: Cluster, body: str) -> None:
    """Its workers have given it up, and others come."""
    script = begin(impatient, body, ", reconnect=60")
    impatient.network.isolate(impatient.scheduler)
    assert not eventually(lambda: script.poll() is not None, 25), script.communicate()
    impatient.network.join()
    for host in (impatient.left, impatient.right):
        hosts.start_worker(host, impatient.address, "--no-nanny", **IMPATIENT)
    out, err = script.communicate(timeout=hosts.SECONDS)
    assert script.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    if body is LONG_REDUCE:
        assert found == "".join(map(str, range(300)))
    else:
        assert found == [str(3 * x) for x in range(200)]
    assert all(
        "waiting up to 60 s" in line or "sent again" in line or "begins again" in line
        for line in err.splitlines()
    ), err
