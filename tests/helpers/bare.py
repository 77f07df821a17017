"""A dask cluster as an administrator starts one: real processes, in an environment that has no parcoll."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed
from ports import LOOPBACK
from scripts import clean_environment, eventually

# What the environment lacks: a package that is compiled, and one of pure Python that nothing there needs.
LACKING = ("parcoll", "numpy", "pure_eval")


def make_environment(folder: Path, lacking: tuple[str, ...] = LACKING) -> dict[str, str]:
    """Return the environment of processes that have all that is installed here but `lacking`.

    With -S Python looks at no installed package, and PYTHONPATH leads to links to those that count.
    """
    folder.mkdir(parents=True)
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(installed).iterdir():
            if not entry.name.startswith(lacking) and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return clean_environment() | {"PYTHONPATH": str(folder)}


class BareCluster:
    """A scheduler, and workers that come and go."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        security: distributed.Security | None = None,
        lacking: tuple[str, ...] = LACKING,
        port: int = 0,
    ) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.security = security
        self.environment = make_environment(folder / "packages", lacking) | {"TMPDIR": str(folder)}
        self._options = [*options, "--host", LOOPBACK, "--no-dashboard", "--scheduler-file", str(self.file)]
        self._log = open(folder / "log", "w")  # noqa: SIM115 - as long as the processes
        self._started: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler(port)

    @property
    def address(self) -> str:
        """The scheduler's address."""
        with self.client() as client:
            return str(client.scheduler.address)

    def start_scheduler(self, port: int = 0) -> subprocess.Popen[bytes]:
        """Start the scheduler, again where the last one is gone; returns when it listens."""
        self.file.unlink(missing_ok=True)
        self.scheduler = self._dask("scheduler", "--port", str(port))
        assert eventually(lambda: self.file.exists() and self.file.stat().st_size, 30), self.log()
        return self.scheduler

    def client(self) -> distributed.Client:
        """Return a client of dask's own."""
        return distributed.Client(scheduler_file=str(self.file), security=self.security, set_as_default=False)

    def add_worker(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker with one thread and no nanny, so that its process is the one returned."""
        given = ["--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder), *options]
        return self._dask("worker", *given)

    def wait_for_workers(self, count: int) -> None:
        """Return when that many workers are there."""
        with self.client() as client:
            client.wait_for_workers(count, timeout=30)

    def log(self) -> str:
        """Return what the processes wrote."""
        return (self.folder / "log").read_text()

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self._started):
            process.send_signal(signal.SIGTERM)
        # A worker that has exchanged results with another one takes 10 s: it waits for connections to close.
        deadline = time.monotonic() + 2
        for process in reversed(self._started):
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self._log.close()

    def _dask(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-m", "dask", *command, *self._options],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._started.append(process)
        return process


@contextmanager
def bare_cluster(folder: Path, workers: int, *options: str, **settings: Any) -> Iterator[BareCluster]:
    """Give a cluster with that many workers."""
    cluster = BareCluster(folder, *options, **settings)
    try:
        for _ in range(workers):
            cluster.add_worker()
        if workers:
            cluster.wait_for_workers(workers)
        yield cluster
    finally:
        cluster.close()


def tls_options(folder: Path, certificate: str, key: str) -> Sequence[str]:
    """Write a certificate and its key, and return the command line options of a cluster that uses them."""
    for name, text in (("cert.pem", certificate), ("key.pem", key)):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    files = {"ca-file": "cert.pem", "cert": "cert.pem", "key": "key.pem"}
    named = [part for option, name in files.items() for part in (f"--tls-{option}", str(folder / name))]
    return ["--protocol", "tls", *named]
