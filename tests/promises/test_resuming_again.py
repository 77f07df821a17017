"""Scripts whose source grows, that run again what had failed, or fold, and are killed on the way."""

from __future__ import annotations

import os
import random
import signal
from collections import defaultdict
from pathlib import Path

import pytest
from scripts import Scripts, eventually, lines

from parcoll import checkpoint_info

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

SCRIPT = """
    import dataclasses, os, sys, time
    from parcoll import parallel

    def note(name, value):
        file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.environ['RUN']} {value}\\n".encode())
        os.close(file)

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: float

        def __add__(self, other):
            assert type(other) is Point
            return Point(self.x + other.x)

    def measure(x):
        note("calls", x)
        time.sleep(0.003)
        if x % 5 == 0 and os.environ["BROKEN"]:
            raise ValueError(x)
        return Point(x / 8)

    def source():
        yield from range(int(os.environ["LENGTH"]))

    again = bool(os.environ.get("AGAIN"))
    numbers = parallel(source, checkpoint=sys.argv[1], on_error="skip", retry_failed=again).map(measure)
    if os.environ.get("FOLD"):
        total = numbers.fold(Point.__add__, Point(0.0), Point.__add__)
        assert type(total) is Point
        note("ended", total.x)
        sys.exit()
    chain = numbers.filter(lambda point: point.x % 3)
    for point in chain:
        assert type(point) is Point
        note("results", point.x)
    note("ended", len(chain.errors))
"""


def by_run(path: Path) -> dict[int, list[float]]:
    """Return the numbers in a log, by the run that wrote them."""
    found = defaultdict(list)
    for line in lines(path):
        run, number = line.split()
        found[int(run)].append(float(number))
    return found


KILLS = 2


def killed_twice(scripts: Scripts, script: Path, log: str, steps: int, **environment: str) -> int:
    """Run a script with `kill -9` after some more lines in a log, then to its end; return its last run."""
    luck, run = random.Random(f"killed {environment}"), 1
    while not lines(scripts.folder / "ended"):
        run += 1
        assert run < KILLS + 3
        settings = {**environment, "RUN": str(run), "PYTHONHASHSEED": str(run)}
        process = scripts.start(script, scripts.folder / "saved", env=settings, stderr=None)
        reached = len(by_run(scripts.folder / log)[run - 1]) if log == "results" else 0
        goal = reached + (luck.randrange(1, steps) if run < KILLS + 2 else 10**6)

        def far_enough(run: int = run, goal: int = goal, process: object = process) -> bool:
            done = process.poll() is not None  # type: ignore[attr-defined]
            return done or len(by_run(scripts.folder / log)[run]) >= goal

        assert eventually(far_enough, 60)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    return run


def test_what_had_failed_in_a_source_that_has_grown(scripts: Scripts):
    folder = scripts.folder
    script = scripts.write("script.py", SCRIPT)
    scripts.run_with(script, folder / "saved", env={"RUN": "1", "LENGTH": "200", "BROKEN": "yes"})
    assert lines(folder / "ended") == ["1 40"]
    assert checkpoint_info(folder / "saved").failed == 40
    (folder / "ended").unlink()
    last = killed_twice(scripts, script, "results", 80, LENGTH="260", BROKEN="", AGAIN="yes")
    assert lines(folder / "ended") == [f"{last} 0"]
    results, calls = by_run(folder / "results"), by_run(folder / "calls")
    expected = [x / 8 for x in range(260) if x / 8 % 3]
    assert results[last] == expected
    for run in range(2, last + 1):
        assert results[run] == expected[: len(results[run])]
        assert all(x >= 200 or x % 5 == 0 for x in calls[run])  # only what had failed, and what is new
        for later in range(run + 1, last + 1):
            assert not {8 * x for x in results[run]} & set(calls[later])
    info = checkpoint_info(folder / "saved")
    assert (info.elements, info.failed, info.complete, info.damaged) == (260, 0, True, 0)
    assert not list((folder / "saved").glob(".parcoll-unfinished*"))


def test_a_fold_that_is_killed(scripts: Scripts):
    """What was saved does not run again, and the value is the same."""
    folder = scripts.folder
    script = scripts.write("script.py", SCRIPT)
    last = killed_twice(scripts, script, "calls", 250, LENGTH="400", BROKEN="", FOLD="yes")
    assert lines(folder / "ended") == [f"{last} {sum(range(400)) / 8}"]
    assert all(len(numbers) == len(set(numbers)) for numbers in by_run(folder / "calls").values())
    before = len(lines(folder / "calls"))
    environment = {"RUN": "99", "LENGTH": "405", "BROKEN": "", "FOLD": "yes"}
    scripts.run_with(script, folder / "saved", env=environment)
    assert lines(folder / "ended")[1:] == [f"99 {sum(range(405)) / 8}"]
    assert len(lines(folder / "calls")) == before + 5
