"""What is compared: one class for each way to map a function over a list on all cores.

An object of these lives in a process of its own (see driver.py). `chunk` is the size that a person
would have tuned; None is what the library does by itself.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import operator
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from workloads import Workload

CORES = os.cpu_count() or 1


class Peer:
    """A way to map. Made in the driver, where its processes start; they end with `close`."""

    name: ClassVar[str]
    needs: ClassVar[str | None] = None  # the module to be installed
    default: ClassVar[bool] = True  # has a row without a chunk size
    tuned: ClassVar[bool] = False  # has rows with one
    rests: ClassVar[bool] = False  # must not idle while the others run

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        """Return the results, in order."""
        raise NotImplementedError

    def each(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> Iterable[Any]:
        """Give the results in any order, where that is quicker."""
        return self.map(func, source, chunk)

    def run(self, workload: Workload, chunk: int | None) -> Any:
        """Return the workload's answer. This is what is timed."""
        if workload.merge:
            results = self.each(workload.func, workload.given, chunk)
            return functools.reduce(workload.merge, results, Counter())
        return self.map(workload.func, workload.given, chunk)

    def warm(self, workload: Workload) -> None:
        """Bring all processes up, with the function's module loaded."""
        self.map(workload.func, workload.source[: 4 * CORES], 1)

    def small_calls(self, ten: list[int]) -> dict[str, tuple[Callable[[], Any], Any]]:
        """Return evaluating calls on these elements, each with its answer."""
        return {"list": (lambda: self.map(abs, ten, None), list(map(abs, ten)))}

    def stream(self, func: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
        """Give the results in order, each as soon as it can be had, from any iterable."""
        raise NotImplementedError

    def close(self) -> None:
        """End all processes."""


class Serial(Peer):
    """The builtin."""

    name = "serial"

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return list(map(func, source))

    def run(self, workload: Workload, chunk: int | None) -> Any:
        results: Iterable[Any] = workload.source
        for _ in range(workload.steps):
            results = map(workload.func, results)
        if workload.merge:
            return functools.reduce(workload.merge, results, Counter())
        return list(results)

    def warm(self, workload: Workload) -> None:
        pass


class Bare(Peer):
    """One forked process for each core, the work split by hand by someone who knows what each element costs.

    Nothing is pickled on the way there, and the results come back in one piece: what is left is the
    work itself. No library can be faster by more than noise, so this is the physical limit.
    """

    name = "bare processes"

    def run(self, workload: Workload, chunk: int | None) -> Any:
        shares = split_by_cost(workload)
        context = multiprocessing.get_context("fork")
        ends = []
        for share in shares:
            here, there = context.Pipe(duplex=False)
            context.Process(target=work_alone, args=(workload, share, there)).start()
            there.close()
            ends.append(here)
        parts = [end.recv() for end in ends]
        for process in multiprocessing.active_children():
            process.join()
        if workload.merge:
            return functools.reduce(workload.merge, parts)
        answer = [None] * len(workload.source)
        for share, part in zip(shares, parts, strict=True):
            for index, result in zip(share, part, strict=True):
                answer[index] = result
        return answer

    def warm(self, workload: Workload) -> None:
        pass


def split_by_cost(workload: Workload) -> list[list[int]]:
    """Return the indices for each core: the dearest first, each to the one with the least so far."""
    costs = list(map(workload.cost, workload.source))
    if len(set(costs)) == 1:
        return [list(range(core, len(costs), CORES)) for core in range(CORES)]
    shares: list[list[int]] = [[] for _ in range(CORES)]
    totals = [0.0] * CORES
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = totals.index(min(totals))
        totals[least] += costs[index]
        shares[least].append(index)
    return shares


def work_alone(workload: Workload, share: list[int], end: Any) -> None:
    results = map(workload.func, map(workload.source.__getitem__, share))
    end.send(functools.reduce(workload.merge, results, Counter()) if workload.merge else list(results))


class Parcoll(Peer):
    """parcoll as it comes. With `n_workers`, on a cluster of that size."""

    name = "parcoll"

    def __init__(self, n_workers: int | None = None) -> None:
        from parcoll import connect, parallel

        self.parallel = parallel
        self.connection = None if n_workers is None else connect(n_workers=n_workers)

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return list(self.parallel(source).map(func))

    def run(self, workload: Workload, chunk: int | None) -> Any:
        collection = self.parallel(workload.given)
        for _ in range(workload.steps):
            collection = collection.map(workload.func)
        if workload.merge:  # its partitions' totals are joined by the same function
            return collection.fold(workload.merge, Counter(), workload.merge)
        return list(collection)

    def small_calls(self, ten: list[int]) -> dict[str, tuple[Callable[[], Any], Any]]:
        right = list(map(abs, ten))
        chain = self.parallel(ten).map(abs)
        return {
            "list": (lambda: list(self.parallel(ten).map(abs)), right),
            "take": (lambda: chain.take(3), right[:3]),
            "first": (chain.first, right[0]),
            "count": (chain.count, len(right)),
            "reduce": (lambda: chain.reduce(operator.add), sum(right)),
            "fold": (lambda: chain.fold(operator.add, 0), sum(right)),
        }

    def stream(self, func: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
        return iter(self.parallel(source).map(func))

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()


class Remote(Parcoll):
    """parcoll on a dask scheduler and workers that were started by hand, one for each core."""

    name = "remote parcoll"

    def __init__(self) -> None:
        from parcoll import connect, parallel

        self.parallel = parallel
        self.folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        file = os.path.join(self.folder.name, "scheduler.json")
        common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file]
        workers = ["--nthreads", "1", "--nworkers", str(CORES), "--local-directory", self.folder.name]
        commands = [["scheduler", "--port", "0", *common], ["worker", *workers, *common]]
        self.processes = [
            subprocess.Popen([sys.executable, "-m", "dask", *command], stderr=subprocess.DEVNULL)
            for command in commands
        ]
        while not os.path.exists(file) or not os.path.getsize(file):
            time.sleep(0.05)
        self.connection = connect(file)
        self.connection.engine.client.wait_for_workers(CORES)

    def close(self) -> None:
        super().close()
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
        self.folder.cleanup()


class Pool(Peer):
    """multiprocessing.Pool: `map` for lists, and `imap_unordered` where order does not matter."""

    name = "Pool"
    tuned = True

    def __init__(self) -> None:
        self.pool = multiprocessing.Pool()

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return self.pool.map(func, source, chunk)

    def each(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> Iterable[Any]:
        # Its default of 1 is what `map` would never choose; untuned means `map`.
        return self.pool.imap_unordered(func, source, chunk) if chunk else self.pool.map(func, source)

    def stream(self, func: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
        return self.pool.imap(func, source)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class Executor(Peer):
    """concurrent.futures.ProcessPoolExecutor; its default chunk size is 1."""

    name = "ProcessPoolExecutor"
    tuned = True

    def __init__(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.executor: Any = ProcessPoolExecutor()

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return list(self.each(func, source, chunk))

    def each(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> Iterable[Any]:
        return self.executor.map(func, source, **({"chunksize": chunk} if chunk else {}))

    def stream(self, func: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
        return self.executor.map(func, source)

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)


class Loky(Executor):
    """loky's executor, which joblib stands on."""

    name = needs = "loky"
    default = False

    def __init__(self) -> None:
        import loky

        # Its workers leave after 10 s without work; the others' turns are longer.
        self.executor = loky.get_reusable_executor(timeout=3_600)

    def close(self) -> None:
        self.executor.shutdown(kill_workers=True)


class Joblib(Peer):
    """joblib with all cores; tuned means its batch size, and no limit on what is dispatched ahead."""

    name = needs = "joblib"
    tuned = True

    def __init__(self) -> None:
        import joblib

        self.joblib = joblib

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return list(self._parallel(func, source, chunk))

    def _parallel(self, func: Any, source: Iterable[Any], chunk: int | None, **more: Any) -> Any:
        tuning = {"batch_size": chunk, "pre_dispatch": "all"} if chunk else {}
        return self.joblib.Parallel(n_jobs=-1, **tuning, **more)(map(self.joblib.delayed(func), source))

    def stream(self, func: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
        # What it says when its generator is dropped, as all who want the first result only do.
        warnings.filterwarnings("ignore", message=".*have been cancelled", category=UserWarning)
        return iter(self._parallel(func, source, None, return_as="generator"))

    def close(self) -> None:
        from joblib.externals import loky

        loky.get_reusable_executor().shutdown(kill_workers=True)


class Mpire(Peer):
    """mpire's pool: `map` for all lists.

    Workers that did a `map` give an `imap_unordered` of the same function wrong arguments (2.10.2).
    """

    name = needs = "mpire"
    tuned = True
    rests = True  # its threads use 4 % of a core without any work; up again within 0.1 s

    def __init__(self) -> None:
        from mpire import WorkerPool

        self.pool = WorkerPool(keep_alive=True)

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        # It would make one array of all results.
        return self.pool.map(func, source, chunk_size=chunk, concatenate_numpy_output=False)

    def stream(self, func: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
        return self.pool.imap(func, source, chunk_size=1)

    def close(self) -> None:
        self.pool.terminate()


class Ray(Peer):
    """Ray's Pool, or (chunk 0) one task an element, whose results stay in its object store."""

    name = "Ray"
    needs = "ray"
    default = False
    tuned = True
    rests = True  # its daemons use 5 % of a core without any work

    def __init__(self) -> None:
        import ray
        from ray.util.multiprocessing import Pool

        self.ray = ray
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.make_pool = functools.partial(Pool, processes=CORES)
        self.pool: Any = None  # holds all cores, so there are no tasks beside it

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        if chunk == 0:
            task = self.ray.remote(func)
            return self.ray.get([task.remote(element) for element in source])
        self.pool = self.pool or self.make_pool()
        return self.pool.map(func, source, chunk)

    def each(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> Iterable[Any]:
        self.pool = self.pool or self.make_pool()
        return self.pool.imap_unordered(func, source, chunk)

    def close(self) -> None:
        self.ray.shutdown()


class Pseq(Peer):
    """PyFunctional's parallel sequence, which makes a pool for each evaluation."""

    name = "pseq"
    needs = "functional"

    def __init__(self) -> None:
        from functional import pseq

        self.pseq = pseq

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return self.pseq(source).map(func).to_list()

    def warm(self, workload: Workload) -> None:
        pass


class DaskBag(Peer):
    """dask.bag as it comes: up to 100 partitions, on processes that it starts for each evaluation."""

    name = "dask.bag"
    needs = "dask"

    def __init__(self) -> None:
        import dask.bag

        self.bag = dask.bag

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return self.bag.from_sequence(source).map(func).compute()

    def run(self, workload: Workload, chunk: int | None) -> Any:
        if workload.merge:
            bag = self.bag.from_sequence(workload.source).map(workload.func)
            return bag.fold(workload.merge, workload.merge, initial=Counter()).compute()
        return self.map(workload.func, workload.given, chunk)

    def warm(self, workload: Workload) -> None:
        pass


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (Serial, Bare, Parcoll, Remote, Pool, Executor, Loky, Joblib, Mpire, Ray, Pseq, DaskBag)
}


def is_installed(peer: type[Peer]) -> bool:
    """Return whether this peer can be compared here. Imports nothing."""
    module = peer.needs
    return module is None or importlib.util.find_spec(module) is not None
