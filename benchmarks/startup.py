"""How long does a script take that has hardly any work?

Each script is started cold, from its command line to its first result, and to its end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import report
from children import RUN, environment, kill, marked
from measuring import Bench, WrongAnswer, about, in_turn, tell

ROWS = ("cold",)

SCRIPTS = {
    "serial": """
print(next(map(lambda x: x + 1, range(100))), flush=True)
""",
    "parcoll": """
from parcoll import parallel

print(next(iter(parallel(range(100)).map(lambda x: x + 1))), flush=True)
""",
    "Pool": """
import multiprocessing

def increment(x):
    return x + 1

if __name__ == "__main__":
    with multiprocessing.Pool() as pool:
        print(pool.map(increment, range(100))[0], flush=True)
""",
    "ProcessPoolExecutor": """
from concurrent.futures import ProcessPoolExecutor

def increment(x):
    return x + 1

if __name__ == "__main__":
    with ProcessPoolExecutor() as executor:
        print(next(executor.map(increment, range(100), chunksize=10)), flush=True)
""",
    "joblib": """
from joblib import Parallel, delayed

print(Parallel(n_jobs=-1)(delayed(lambda x: x + 1)(x) for x in range(100))[0], flush=True)
""",
    "loky": """
from loky import get_reusable_executor

print(next(get_reusable_executor().map(lambda x: x + 1, range(100), chunksize=10)), flush=True)
""",
    "LocalCluster": """
from distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster) as client:
            print(client.gather(client.map(lambda x: x + 1, range(100)))[0], flush=True)
""",
    "LocalCluster, no dashboard": """
from distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            print(client.gather(client.map(lambda x: x + 1, range(100)))[0], flush=True)
""",
    "Ray": """
import ray

ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
increment = ray.remote(lambda x: x + 1)
print(ray.get([increment.remote(x) for x in range(100)])[0], flush=True)
""",
}
# Without bokeh, LocalCluster starts without its dashboard and says nothing.
NEEDS = {"joblib": "joblib", "loky": "loky", "Ray": "ray", "LocalCluster": "bokeh"}
FEW = {"Ray": 2}  # runs: 5 s each, most of it the daemons' start


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the row's figures: each script's seconds to its first result and to its end."""
    if not bench.wants("cold"):
        return
    names = [name for name in SCRIPTS if bench.peers is None or name.split(",")[0] in bench.peers]
    for name in names:
        if find_spec(NEEDS.get(name, "sys")) is None:
            tell(f"{name} needs {NEEDS[name]}, which is not installed: left out")
    names = [name for name in names if find_spec(NEEDS.get(name, "sys"))]
    scripts: dict[str, dict[str, list[float]]] = {name: {"first": [], "end": []} for name in names}
    if not bench.small:
        for name in names:
            run_script(name)  # so that all bytecode is there, and all files in the page cache
    for run in range(bench.runs):
        for name in in_turn(names, run):
            if run < FEW.get(name, bench.runs):
                for kind, seconds in zip(("first", "end"), run_script(name), strict=True):
                    scripts[name][kind].append(seconds)
        if not bench.small:
            tell(f"cold: run {run + 1} of {bench.runs}")
    yield "cold", {"title": "100 x `x + 1`, cold", "about": about(bench), "scripts": scripts}


def run_script(name: str) -> tuple[float, float]:
    """Return the seconds until the first result is read, and until the process has ended."""
    mark = f"{RUN}-{uuid.uuid4().hex}"
    with tempfile.TemporaryFile() as complaints, tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        script = subprocess.Popen(
            [sys.executable, "-c", SCRIPTS[name]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            cwd=folder,
            # Ray's logs would stay, in a folder that it keeps for all sessions.
            env=environment(mark) | {"RAY_TMPDIR": folder},
            start_new_session=True,
        )
        try:
            assert script.stdout is not None
            line = script.stdout.readline()
            first = time.perf_counter() - started
            script.wait(60)
            end = time.perf_counter() - started
        finally:
            script.poll()
            if script.returncode is not None:
                wait_for_rest(mark)
            kill(marked(mark))
            script.wait()
        script.stdout.close()
        if line != b"1\n" or script.returncode:
            complaints.seek(0)
            sys.stderr.write(complaints.read().decode(errors="replace"))
            raise WrongAnswer(f"cold: {name} printed {line!r} and ended with {script.returncode}")
    return first, end


def wait_for_rest(mark: str) -> None:
    """Give daemons a moment to end by themselves, so that they do not run into the next one's turn."""
    deadline = time.monotonic() + 5
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    if "cold" not in rows:
        return ""
    scripts = rows["cold"]["scripts"]
    heading = ["seconds: minimum / median", "to the first result", "to the end", "runs"]
    lines = [
        [name, report.two(times["first"]), report.two(times["end"]), str(len(times["end"]))]
        for name, times in scripts.items()
    ]
    return report.table(heading, lines)
