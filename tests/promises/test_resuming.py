"""Scripts with a checkpoint that are killed, run out of disk, or changed, and started again."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import Scripts, eventually, lines

SCRIPT = """
    import dataclasses, os, sys, time
    from pathlib import Path
    from parcoll import parallel

    def note(name, value):
        file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.environ['RUN']} {value}\\n".encode())
        os.close(file)

    WANTED = {"even", "odd", "none"}

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        kinds: frozenset

    def measure(element):
        x, kinds = element
        note("calls", x)
        time.sleep(0.003)
        while x == 400 and os.environ.get("HOLD") and not os.path.exists("go"):
            time.sleep(0.01)
        assert kinds <= WANTED
        return Point(x, frozenset(kinds))

    def source():
        for x in range(600):
            yield x, {"even" if x % 2 == 0 else "odd", "none"}

    def in_use(point):
        return point.x % 7 and "none" in point.kinds

    if os.environ.get("EXTRA_LINES"):
        pass

    points = parallel(source, checkpoint=sys.argv[1], partition_size=int(os.environ.get("SIZE", 0)) or "auto")
    for point in points.map(measure).filter(in_use):
        note("results", point.x)
        assert type(point) is Point and point == Point(point.x, frozenset(point.kinds))
    note("ended", points.map(measure).filter(in_use).count())
"""


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


def by_run(path: Path) -> dict[int, list[int]]:
    """Return the numbers in a log, by the run that wrote them."""
    found = defaultdict(list)
    for line in lines(path):
        run, number = line.split()
        found[int(run)].append(int(number))
    return found


@pytest.mark.parametrize("size", ["0", "1", "25"])
def test_killed_at_random_until_it_is_done(scripts: Scripts, size: str):
    """With `kill -9`, each time after some more results; another PYTHONHASHSEED each time."""
    luck = random.Random(f"killed {size}")
    folder = scripts.folder
    expected = [x for x in range(600) if x % 7]
    script = scripts.write("script.py", SCRIPT)
    run = 0
    while not lines(folder / "ended"):
        run += 1
        assert run < 40, "no progress"
        environment = {"RUN": str(run), "PYTHONHASHSEED": str(run), "SIZE": size}
        process = scripts.start(script, folder / "saved", env=environment, stderr=None)
        before = max(by_run(folder / "results").get(run - 1, [0]), default=0)
        more = luck.randrange(0, 120)

        def far_enough(run: int = run, goal: int = before + more, process: object = process) -> bool:
            done = process.poll() is not None  # type: ignore[attr-defined]
            return done or any(x >= goal for x in by_run(folder / "results").get(run, []))

        assert eventually(far_enough, 60)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    results, calls = by_run(folder / "results"), by_run(folder / "calls")
    assert results[run] == expected
    for earlier in range(1, run):
        assert results[earlier] == expected[: len(results[earlier])]  # in order, from the first on
        yielded = set(results[earlier])
        for later in range(earlier + 1, run + 1):
            assert not yielded & set(calls[later])
    assert all(len(numbers) == len(set(numbers)) for numbers in calls.values())
    assert lines(folder / "ended") == [f"{run} {len(expected)}"]
    assert run > 1  # a fast machine is done sooner
    assert not list((folder / "saved").glob(".parcoll-unfinished*"))


def test_ctrl_c_saves_what_came(scripts: Scripts):
    folder = scripts.folder
    script = scripts.write("script.py", SCRIPT)
    environment = {"RUN": "1", "HOLD": "1"}  # else it may have ended by the time that Ctrl-C comes
    process = scripts.start(script, folder / "saved", env=environment)
    assert eventually(lambda: len(lines(folder / "results")) > 100, 60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    scripts.run_with(script, folder / "saved", env={"RUN": "2"})
    calls, results = by_run(folder / "calls"), by_run(folder / "results")
    assert results[2] == [x for x in range(600) if x % 7]
    assert not set(results[1]) & set(calls[2])


CHANGES = [
    ("time.sleep(0.003)", "time.sleep(0.002)", "the code of step 1, map(measure), has changed"),
    ('"even", "odd", "none"}', '"even", "odd", "none", "x"}', "the global 'WANTED' of step 1, map(measure)"),
    ("dataclass(frozen=True)", "dataclass(frozen=True, order=True)", "the global 'Point' of step 1"),
    ("point.x % 7", "point.x % 5", "the code of step 2, filter(in_use), has changed"),
    ("x % 2 == 0 else", "x % 2 == 1 else", "has the results of another source: element 0 is another one"),
    ("range(600)", "range(5)", "has the results of another source: it had"),
    ("pass\n", "pass\n\n    # Lines that move what follows.\n\n", None),
]


def test_a_changed_script_is_refused_and_a_moved_function_is_not(scripts: Scripts):
    folder = scripts.folder
    script = scripts.write("script.py", SCRIPT)
    process = scripts.start(script, folder / "saved", env={"RUN": "1"}, stderr=subprocess.DEVNULL)
    assert eventually(lambda: len(lines(folder / "results")) > 50, 60)
    process.kill()
    process.wait(30)
    for old, new, message in CHANGES:
        assert SCRIPT.count(old) == 1
        changed = scripts.write("elsewhere/changed.py", "\n" * 3 + SCRIPT.replace(old, new))
        if message is None:
            scripts.run_with(changed, folder / "saved", env={"RUN": "3"})
            continue
        _, err = scripts.run_with(changed, folder / "saved", env={"RUN": "2"}, code=1)
        last = err.strip().splitlines()[-1]
        assert last.startswith("parcoll.errors.CheckpointError: the checkpoint "), err
        assert message in last
        assert str(folder / "saved") in last
        assert "delete the folder" in last
    calls, results = by_run(folder / "calls"), by_run(folder / "results")
    assert 2 not in calls
    assert results[3] == [x for x in range(600) if x % 7]
    assert not set(results[1]) & set(calls[3])


def test_two_processes_on_one_folder(scripts: Scripts):
    folder = scripts.folder
    script = scripts.write("script.py", SCRIPT)
    first = scripts.start(script, folder / "saved", env={"RUN": "1", "HOLD": "1"})
    assert eventually(lambda: lines(folder / "results"), 60)
    _, err = scripts.run_with(script, folder / "saved", env={"RUN": "2"}, code=1)
    assert f"is in use by process {first.pid} on " in err
    (folder / "go").touch()
    assert first.wait(60) == 0
    assert 2 not in by_run(folder / "calls")
    assert by_run(folder / "results")[1] == [x for x in range(600) if x % 7]


LARGE = """
    import os, resource, sys, time
    from parcoll import CheckpointError, parallel

    limit = int(os.environ["LIMIT"])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def large(x):
        file = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.environ['RUN']} {x}\\n".encode())
        os.close(file)
        time.sleep(0.02)
        return x, bytes([x]) * (20_000 + 1_000 * x)

    seen = []
    try:
        for x, content in parallel(range(100), partition_size=1, checkpoint=sys.argv[1]).map(large):
            assert content == bytes([x]) * (20_000 + 1_000 * x)
            seen.append(x)
    except CheckpointError as error:
        print(seen)
        print(error)
        sys.exit(3)
    print(seen)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no filesystem can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(scripts: Scripts, small_disk: Path):
    script = scripts.write("script.py", LARGE)
    saved = small_disk / "saved"
    out, _ = scripts.run_with(script, saved, env={"RUN": "1", "LIMIT": "0"}, code=3)
    assert check_stopped(out, saved, "No space left on device") > 5
    out, _ = scripts.run_with(script, saved, env={"RUN": "2", "LIMIT": "0"}, code=3)  # still full
    stopped = check_stopped(out, saved, "No space left on device")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    check_goes_on(scripts, script, saved, out, stopped)


def test_a_limit_on_files_stops_the_run_and_loses_nothing(scripts: Scripts):
    script = scripts.write("script.py", LARGE)
    saved = scripts.folder / "saved"
    out, _ = scripts.run_with(script, saved, env={"RUN": "1", "LIMIT": "60000"}, code=3)
    assert check_stopped(out, saved, "File too large") == 40  # then come results of more than 60,000 bytes
    check_goes_on(scripts, script, saved, out, 40)


def check_stopped(out: str, saved: Path, reason: str) -> int:
    """Return how many elements the message says are saved."""
    seen, message = out.splitlines()
    assert reason in message
    assert str(saved) in message
    numbers = [int(x) for x in seen.strip("[]").split(",") if x]
    assert numbers == list(range(len(numbers)))
    assert not list(saved.glob(".parcoll-unfinished*"))
    (count,) = re.findall(r"the results of (\d+) elements are saved and whole", message)
    assert int(count) >= len(numbers)
    return int(count)


def check_goes_on(scripts: Scripts, script: Path, saved: Path, out: str, stopped: int) -> None:
    seen = {int(x) for x in out.splitlines()[0].strip("[]").split(",") if x}
    again, _ = scripts.run_with(script, saved, env={"RUN": "9", "LIMIT": "0"})
    assert again.strip() == str(list(range(100)))
    assert not seen & set(by_run(scripts.folder / "calls")[9])
    assert len(by_run(scripts.folder / "calls")[9]) == 100 - stopped


def test_a_folder_that_cannot_be_written(scripts: Scripts):
    (scripts.folder / "file").write_text("no folder")
    script = scripts.write("script.py", LARGE)
    out, _ = scripts.run_with(script, scripts.folder / "file", env={"RUN": "1", "LIMIT": "0"}, code=3)
    assert "cannot be opened: FileExistsError" in out
    assert not (scripts.folder / "calls").exists()
