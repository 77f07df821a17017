"""Several hosts on one machine: each with its own network, address, processes and temporary files.

A host is a set of Linux namespaces that a keeper process holds open. They have no names, so nothing
can be left behind: the keeper ends when its standard input does, whatever ended the test, the kernel
then kills every process of its process namespace, and the last one takes the interfaces with it.

The hosts hang on a router, which decides who reaches whom.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import psutil
from scripts import clean_environment, eventually

NAMESPACES = ("--mount", "--net", "--pid", "--ipc", "--uts")
UPLINK = "uplink"  # each host's interface
PIPES: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
SECONDS = 60  # no script here needs half of it; a hang must not hold up the others
KNOCK = """
import socket, sys, time
started = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
    kind = "connected"
except OSError as error:
    kind = type(error).__name__
print(kind, time.monotonic() - started)
"""


@cache
def why_not() -> str | None:
    """Return why there can be no hosts here, or None."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with Network() as network:
            network.host("probe")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        return f"network namespaces are not to be had (they need root): {str(said).strip()}"
    return None


class Host:
    """One machine: what is started here sees its own address, processes and temporary files only."""

    def __init__(self, name: str, address: str = "") -> None:
        self.name = name
        self.address = address
        self.folder = Path(tempfile.gettempdir())
        self._logs: list[IO[str]] = []
        self._started: list[subprocess.Popen[str]] = []
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "cat"]
        self._keeper = subprocess.Popen(command, text=True, **PIPES)
        try:
            self.pid = self._pid()
            # Nothing that one host writes is seen by another one.
            for folder in (self.folder, Path("/dev/shm")):
                self.do("mount", "-t", "tmpfs", "tmpfs", str(folder))
            self.do("hostname", name)
            self.do("ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def _pid(self) -> int:
        """Return the process id of the keeper's child, which is process 1 in there."""
        assert self._keeper.stdin is not None
        assert self._keeper.stderr is not None
        with suppress(BrokenPipeError):
            self._keeper.stdin.write("ready\n")  # which cat says too
            self._keeper.stdin.flush()
        if not _said_ready(self._keeper):
            raise OSError(self._keeper.stderr.read())
        return psutil.Process(self._keeper.pid).children()[0].pid

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs this one on the host."""
        return ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wdns={self.folder}", *command]

    def do(self, *command: str) -> str:
        """Run a command that must succeed; return what it wrote."""
        return _run(*self.inside(*command))

    def start(self, *command: str, **environment: str) -> Started:
        """Start Python with these arguments; what it writes goes to a log."""
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the host)
        self._logs.append(log)
        env = clean_environment() | {"PYTHONPATH": ""} | environment  # dask needs no parcoll there
        process = subprocess.Popen(
            self.inside(sys.executable, *command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            text=True,
        )
        self._started.append(process)
        return Started(process, log)

    def script(self, text: str, **environment: str) -> subprocess.Popen[str]:
        """Start a script as a user of this host would; its text comes through standard input."""
        env = clean_environment() | environment
        process = subprocess.Popen(self.inside(sys.executable, "-"), env=env, text=True, **PIPES)
        self._started.append(process)
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process

    def knock(self, other: Host, port: int = 9) -> tuple[str, float]:
        """Return what comes of a connection to another host, and after how many seconds.

        "connected", or the name of an error: a port that is closed, as 9 is, refuses.
        """
        kind, seconds = self.do(sys.executable, "-c", KNOCK, other.address, str(port)).split()
        return kind, float(seconds)

    def close(self) -> None:
        """End the host with all that runs there."""
        _hang_up(self._keeper)
        for process in self._started:
            process.wait(5)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for log in self._logs:
            log.close()


class Started:
    """A process on a host, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """Return what it wrote."""
        return os.pread(self._log.fileno(), 2**24, 0).decode()

    def says(self, text: str, seconds: float = 40) -> bool:
        """Wait until the log has this text; fail with the log where it does not come."""
        found = eventually(lambda: text in self.log or self.process.poll() is not None, seconds)
        assert found, self.log
        assert text in self.log, self.log
        return True


class Network:
    """A router and the hosts around it, each with a network of its own: 10.77.<number>.2.

    Use it as a context manager: at the end of its block all hosts are gone.
    """

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self._cables: list[subprocess.Popen[str]] = []
        self._router = Host("router")
        self._router.do("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def host(self, name: str, delay: float = 0, loss: float = 0) -> Host:
        """Return a new host, which reaches all others; its cable may be slow (seconds) and lose packets."""
        number = len(self.hosts) + 1
        host = Host(name, f"10.77.{number}.2")
        self.hosts.append(host)
        link, gateway = f"to{number}", f"10.77.{number}.1"
        # Not inside the router: there, the other host's process has no number.
        if delay or loss:
            self._cables.append(_cable(host, self._router, link, delay, loss))
        else:
            pair = ("ip", "link", "add", link, "type", "veth", "peer", "name", UPLINK, "netns", str(host.pid))
            _run("nsenter", "--target", str(self._router.pid), "--net", *pair)
        self._router.do("ip", "address", "add", gateway, "peer", host.address, "dev", link)
        self._router.do("ip", "link", "set", link, "up")
        host.do("ip", "address", "add", host.address, "peer", gateway, "dev", UPLINK)
        host.do("ip", "link", "set", UPLINK, "up")
        host.do("ip", "route", "add", "default", "via", gateway)
        return host

    def _link(self, host: Host) -> str:
        return f"to{self.hosts.index(host) + 1}"

    def unplug(self, host: Host) -> None:
        """Pull the host's cable: others are told that it cannot be reached."""
        self._router.do("ip", "link", "set", self._link(host), "down")

    def plug_in(self, host: Host) -> None:
        """Put the cable back."""
        self._router.do("ip", "link", "set", self._link(host), "up")

    def part(self, one: Host, other: Host, how: Literal["blackhole", "prohibit"]) -> None:
        """Let no packet pass between two hosts: without a word, or with a refusal."""
        for source, target in ((one, other), (other, one)):
            self._router.do("ip", "rule", "add", "from", source.address, "to", target.address, how)

    def isolate(self, host: Host) -> None:
        """Let no packet to or from the host pass, without a word."""
        for other in self.hosts:
            if other is not host:
                self.part(host, other, "blackhole")

    def join(self) -> None:
        """Let all packets pass again."""
        rules = self._router.do("ip", "rule", "list").splitlines()
        for rule in rules:
            number, _, text = rule.partition(":")
            if "blackhole" in text or "prohibit" in text:
                self._router.do("ip", "rule", "del", "pref", number)

    def close(self) -> None:
        """End all hosts."""
        for host in (*self.hosts, self._router):
            host.close()
        for cable in self._cables:
            _hang_up(cable)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_scheduler(host: Host, **environment: str) -> str:
    """Start a dask scheduler as its administrator would, and return its address."""
    address = f"tcp://{host.address}:8786"
    scheduler = host.start(
        *("-m", "dask", "scheduler", "--host", host.address, "--port", "8786", "--no-dashboard"),
        **environment,
    )
    scheduler.says(address)
    return address


def start_worker(host: Host, address: str, *options: str, **environment: str) -> Started:
    """Start a dask worker with one thread; it is registered when this returns."""
    command = ("worker", address, "--host", host.address, "--nthreads", "1", "--no-dashboard", *options)
    worker = host.start("-m", "dask", *command, **environment)
    worker.says("Registered to:")
    return worker


def result_of(script: subprocess.Popen[str], seconds: float = SECONDS) -> str:
    """Return what a script wrote; it must end in time, in order, and without a word on stderr."""
    out, err = script.communicate(timeout=seconds)
    assert script.returncode == 0, f"ended with {script.returncode}\n{out}\n{err}"
    assert err == "", err
    return out


def _cable(host: Host, router: Host, link: str, delay: float, loss: float) -> subprocess.Popen[str]:
    """Return the process that is the slow cable between them."""
    script = str(Path(__file__).with_name("slow_link.py"))
    settings = (UPLINK, f"/proc/{router.pid}/ns/net", link, str(delay), str(loss))
    cable = subprocess.Popen(
        ["nsenter", "--target", str(host.pid), "--net", sys.executable, script, *settings],
        text=True,
        **PIPES,
    )
    if not _said_ready(cable):
        _hang_up(cable)
        raise OSError("no slow cable")
    return cable


def _said_ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "ready\n"


def _hang_up(process: subprocess.Popen[str]) -> None:
    """End a process that ends with its standard input."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()  # an unshare takes process 1 with it, by --kill-child, and that all others
        process.wait(5)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
