"""Child processes that take commands: one JSON line to them, one or more back, and nothing left at the end.

Both ends are here: `Child` for the benchmark, `serve` for the child.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

import psutil

FOLDER = Path(__file__).resolve().parent
# In the environment of every process that a child starts, by whatever way: found by it at the end.
MARK = "PARCOLL_BENCHMARK_CHILD"
RUN = uuid.uuid4().hex  # begins the marks of all children of this run
# Ray would otherwise report to its makers that it was used, and warn about its future defaults.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class ChildError(Exception):
    """The child answered with an error, or ended before it answered."""


class Child:
    """A process of this folder's scripts, in its own session, with all that it starts."""

    def __init__(self, *arguments: str) -> None:
        self.mark = f"{RUN}-{uuid.uuid4().hex}"
        # Ray's logs and sockets; here, since a Ray that is killed would leave its folder behind.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Its own session: Ctrl-C reaches the benchmark alone, which then ends its children in order.
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(self.mark) | {"RAY_TMPDIR": self._folder.name},
            bufsize=0,
            start_new_session=True,
        )
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(10 if kind is None else 0)

    def ask(self, seconds: float | None = None, **command: Any) -> dict[str, Any]:
        """Send a command and return its answer; see `hear`."""
        self.say(**command)
        return self.hear(seconds)

    def say(self, **command: Any) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise ChildError(f"ended with {self.process.wait()}") from None

    def hear(self, seconds: float | None = None) -> dict[str, Any]:
        """Return the next answer; raise TimeoutError if it takes longer than that."""
        assert self.process.stdout is not None
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError(f"no answer within {seconds:g} s")
            part = os.read(self.process.stdout.fileno(), 65_536)
            if not part:
                raise ChildError(f"ended with {self.process.wait()}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def processes(self) -> list[psutil.Process]:
        """Return it and all that it started and that still runs."""
        return marked(self.mark)

    def close(self, seconds: float = 10) -> None:
        """Let it end by itself for that long, then kill what is left."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        deadline = time.monotonic() + (min(seconds, 5) if self.process.returncode == 0 else 0)
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        kill(left)
        self.process.wait()
        self._folder.cleanup()


def environment(mark: str) -> dict[str, str]:
    """Return the environment of a child: this folder importable, the mark on it and on all it starts."""
    folders = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | SETTINGS | {MARK: mark, "PYTHONPATH": os.pathsep.join(folders)}


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes whose mark begins so."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            known = process.environ().get(MARK, "")
            if known.startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# These tidy up when the others are gone: loky's semaphores in /dev/shm, parcoll's folder.
TIDY = ("resource_tracker", "parcoll.local")


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill them; those that remove what the others leave behind get a moment to do so."""
    tidy = []
    for process in processes:
        with suppress(psutil.Error):
            if any(name in argument for argument in process.cmdline() for name in TIDY):
                tidy.append(process)
            else:
                process.kill()
    for process in psutil.wait_procs(tidy, 3)[1]:
        with suppress(psutil.Error):
            process.kill()


Handler = Callable[..., dict[str, Any]]


class Channel:
    """The child's end of its pipes."""

    def __init__(self) -> None:
        # What libraries print must not mix with the answers: stdout is stderr from here on.
        self._answers: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        self._commands: TextIO = os.fdopen(os.dup(0), "r")
        for descriptor in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDONLY) if descriptor == 0 else 2, descriptor)

    def commands(self) -> Iterator[dict[str, Any]]:
        """Give each command, until the benchmark closes the pipe or is gone."""
        # Not `for line in`: that reads ahead, and a command may wait for the answer to another.
        while line := self._commands.readline():
            yield json.loads(line)

    def answer(self, **values: Any) -> None:
        """Send an answer."""
        self._answers.write(json.dumps(values) + "\n")


def serve(channel: Channel, handlers: dict[str, Handler]) -> None:
    """Answer commands until the pipe is closed; an exception is an answer too."""
    for command in channel.commands():
        try:
            answer = handlers[command.pop("do")](**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        channel.answer(**answer)
