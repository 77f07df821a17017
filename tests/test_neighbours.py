"""What other programs of the machine do is not told of the tests, and what the tests leave is."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import shared_memory
from named_memory import FOLDER, VARIABLE, names
from scripts import Scripts, clean_environment, eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="who has a file open is not told")

# As `multiprocessing.shared_memory` makes it, but for those who tidy up behind it. Ends at the second line.
MAKER = """
import _posixshmem, mmap, os, sys
descriptor = _posixshmem.shm_open("/" + sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
os.ftruncate(descriptor, 1000)
memory = mmap.mmap(descriptor, 1000)
os.close(descriptor)
print("made", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def name() -> Iterator[str]:
    found = f"psm_{uuid.uuid4().hex[:8]}"
    yield found
    Path(FOLDER, found).unlink(missing_ok=True)


def test_memory_that_a_neighbour_left_is_its_own(scripts: Scripts, name: str) -> None:
    """It may come and go at any time."""
    env = {key: value for key, value in clean_environment().items() if key != VARIABLE}
    # Ends at once, so that what it starts is no descendant of the tests.
    starter = f"import os, sys\nif os.fork():\n    os._exit(0)\nos.setsid()\n{MAKER}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", starter, name], env=env, **pipes) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "made\n"
        assert name in names()
        scripts.run("-c", "import time; time.sleep(1)")  # the watcher had time to look
        neighbour.communicate("end\n")
    assert name in names()
    assert shared_memory() == set()
    assert scripts.remains() == {}


def test_memory_that_a_script_left_is_told(scripts: Scripts, name: str) -> None:
    script = scripts.start("-c", MAKER, name, stdin=subprocess.PIPE)
    assert script.stdout is not None
    assert script.stdout.readline() == "made\n"
    assert eventually(lambda: shared_memory() == {name})
    script.communicate("end\n")
    assert scripts.remains() == {"shared segments": [name]}


def test_memory_that_a_fork_of_this_process_left_is_told(scripts: Scripts, name: str) -> None:
    """It does not carry the mark of what is started."""
    path = Path(FOLDER, name)
    end, keep = os.pipe()
    if os.fork() == 0:
        os.close(keep)
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.read(end, 1)
        os.close(file)
        os._exit(0)
    try:
        assert eventually(lambda: shared_memory() == {name})
    finally:
        os.close(keep)
        os.close(end)
        os.wait()
    assert scripts.remains() == {"shared segments": [name]}
