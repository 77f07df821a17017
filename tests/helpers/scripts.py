"""Scripts as a user runs them: started in an environment of their own, and gone without a trace."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from leaks import shared_memory

import parcoll

MARK = "PARCOLL_TEST_SCRIPT"
SECONDS = 60  # no script here needs a tenth of it; a hang must not hold up the others


def eventually(condition: Callable[[], object], seconds: float = 5) -> bool:
    """Return whether the condition comes true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def meanwhile(work: Callable[[threading.Event], object]) -> Iterator[None]:
    """Call `work` in a thread while the block runs; at its end the event is set, and `work` is to return.

    What it raises fails the test, as pytest does with any thread's error.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name="meanwhile")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def append(path: str | Path, text: object) -> None:
    """Add one line to a file, whole, whichever processes add to it at the same time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def lines(path: str | Path) -> list[str]:
    """Return the lines of a file, none where it was never written."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def wait_for_file(path: str | Path, seconds: float = 30) -> None:
    """Return when the file is there; the test that forgot to make it fails instead of hanging."""
    if not eventually(Path(path).exists, seconds):
        raise TimeoutError(f"{path} did not appear")


def import_path() -> list[str]:
    """Return what a process must have on its path to import parcoll: nothing where it is installed."""
    folder = str(Path(parcoll.__file__).parents[1])
    return [] if folder in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) else [folder]


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without what changes Python's or dask's ways."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DASK_", "PYTEST"))}
    path = {"PYTHONPATH": os.pathsep.join(import_path())} if import_path() else {}
    return kept | path | extra


class Scripts:
    """Runs scripts in one folder and knows all processes that they start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "tmp"
        self.scratch.mkdir(exist_ok=True)
        self._mark = uuid.uuid4().hex
        self._segments = shared_memory()
        self._started: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> Path:
        """Write a file beside the scripts."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start Python with these arguments."""
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"stdin": subprocess.DEVNULL}
        env = clean_environment(TMPDIR=str(self.scratch), **{MARK: self._mark}) | options.pop("env", {})
        command = [sys.executable, *map(str, arguments)]
        options = {"cwd": self.folder, "text": True} | pipes | options
        self._started.append(subprocess.Popen(command, env=env, **options))
        return self._started[-1]

    def start_file(self, text: str, **options: Any) -> subprocess.Popen[str]:
        """Start a script, given as text, as a file."""
        return self.start(self.write("script.py", text), **options)

    def run(
        self, *arguments: str | Path, input: str | None = None, code: int = 0, seconds: float = SECONDS
    ) -> tuple[str, str]:
        """Run Python to its end, which must be this code; return what it wrote to stdout and stderr."""
        process = self.start(*arguments, stdin=subprocess.PIPE)
        out, err = process.communicate(input, timeout=seconds)
        assert process.returncode == code, f"ended with {process.returncode}\n{out}\n{err}"
        return out, err

    def run_with(
        self, script: Path, *arguments: str | Path, env: dict[str, str], code: int = 0
    ) -> tuple[str, str]:
        """Run a script with arguments and environment variables; return what it wrote."""
        process = self.start(script, *arguments, env=env)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == code, f"ended with {process.returncode}\n{out}\n{err}"
        return out, err

    def run_file(self, text: str, *flags: str) -> str:
        """Run a script that must succeed without a word on stderr; return its stdout."""
        out, err = self.run(*flags, self.write("script.py", text))
        assert err == "", err
        return out

    def processes(self) -> list[psutil.Process]:
        """Return the living processes that the scripts started, by whatever way."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def remains(self) -> dict[str, list[str]]:
        """Return what the scripts left: processes, folders, shared segments."""
        found = {
            "processes": [f"{process.pid} {process}" for process in self.processes()],
            "folders": glob.glob(str(self.scratch / "parcoll-*")),
            "shared segments": sorted(shared_memory() - self._segments),
        }
        return {kind: names for kind, names in found.items() if names}

    def check(self, seconds: float = 5) -> None:
        """Fail if anything of the scripts is still there after that time; ends it first."""
        gone = eventually(lambda: not self.remains(), seconds)
        remains = self.remains()
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        for started in self._started:
            started.wait(5)
            for pipe in (started.stdin, started.stdout, started.stderr):
                if pipe is not None:
                    pipe.close()
        assert gone, f"left behind: {remains}"
