"""Files that are written while something dies: absent or whole, and the next run leaves nothing else."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from scripts import Scripts, eventually, meanwhile
from victims import Victims, strike

from parcoll import ClusterLostError, Connection, ParallelGen, parallel
from parcoll.output.placing import LocalTarget

COUNT = 3000
FORMATS = ("text", "jsonl", "csv", "parquet")
LEAST = [pytest.param(name, marks=[pytest.mark.slow] if name != "jsonl" else []) for name in FORMATS]
ONE, SEVERAL = "out.{}", "out/part-*.{}"


def made(x: int) -> dict[str, Any]:
    """Make a row, not too fast."""
    time.sleep(0.0001)
    return {"x": x, "text": "é" * (x % 7)}


def write(format: str, path: Path, chain: ParallelGen[dict[str, Any]], **options: Any) -> Any:
    """Write the rows in a format; into several files if the path has a star."""
    if "*" in path.name:
        options |= {"rows_per_file": 700}
    if format == "text":
        return chain.map(json.dumps).write_text(path, **options)
    return getattr(chain, f"write_{format}")(path, **options)


def read(format: str, folder: Path) -> list[int] | None:
    """Return the numbers of the rows that are in the files of a run; None if there are none."""
    files = sorted(folder.glob(f"**/*.{format}"))
    files = [file for file in files if not any(part.startswith(".parcoll-") for part in file.parts)]
    if not files:
        return None
    if format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        return [x for file in files for x in parquet.read_table(file).column("x").to_pylist()]
    texts = [file.read_bytes().decode() for file in files]
    if format == "csv":
        return [int(line.partition(",")[0]) for text in texts for line in text.splitlines()[1:]]
    return [json.loads(line)["x"] for text in texts for line in text.splitlines()]


def hidden(folder: Path) -> list[str]:
    """Return what a run has left that is no output."""
    return [str(found) for found in folder.glob("**/.parcoll-*")]


def check(format: str, folder: Path, path: Path, count: int = COUNT) -> None:
    """Fail if there is a part of the rows; then write them again, and fail if anything else is there."""
    before = read(format, folder)
    assert before in (None, list(range(count)))
    again(format, folder, path, count)


def again(format: str, folder: Path, path: Path, count: int) -> None:
    """Write again, and fail if anything but the rows is there."""
    chain = parallel(range(count), client=None).map(made)
    write(format, path, chain, overwrite=True)
    assert read(format, folder) == list(range(count))
    assert hidden(folder) == []


def choices(name: str, slow: int) -> list[Any]:
    """Return seeds of random moments: one, and more that are slow."""
    seeds = range(slow)
    return [
        pytest.param(seed, id=f"{name}-{seed}", marks=[pytest.mark.slow] if seed else []) for seed in seeds
    ]


class TestWorkersAndHosts:
    """Processes of the cluster die."""

    @pytest.mark.parametrize("seed", choices("worker", 20))
    @pytest.mark.parametrize("format", LEAST)
    def test_a_worker(self, cluster: Connection, tmp_path: Path, format: str, seed: int) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        chance = random.Random(f"{format}{seed}")

        def kill(ended: Any) -> None:
            if not ended.wait(chance.uniform(0, 0.4)):
                workers = Victims(cluster).workers()
                if workers:
                    strike(chance.choice(workers))

        path = tmp_path / (SEVERAL if seed % 2 else ONE).format(format)
        with meanwhile(kill):
            written = write(format, path, parallel(range(COUNT)).map(made))
        assert written.rows == COUNT
        assert read(format, tmp_path) == list(range(COUNT))
        assert hidden(tmp_path) == []

    @pytest.mark.parametrize("seed", choices("host", 20))
    @pytest.mark.parametrize("format", LEAST)
    def test_the_host(self, cluster: Connection, tmp_path: Path, format: str, seed: int) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        chance = random.Random(f"{format}{seed}")

        def kill(ended: Any) -> None:
            host = Victims(cluster).host()
            if not ended.wait(chance.uniform(0, 0.4)) and host is not None:
                strike(host)

        path = tmp_path / (ONE if seed % 2 else SEVERAL).format(format)
        with meanwhile(kill), suppress(ClusterLostError):
            write(format, path, parallel(range(COUNT)).map(made))
        assert hidden(tmp_path) == []
        check(format, tmp_path, path)


class TestDisksThatFill:
    """No byte more can be written."""

    @pytest.mark.parametrize("seed", choices("disk", 20))
    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("name", [ONE, SEVERAL])
    def test_it_is_an_error_and_nothing_is_there(
        self, inline: Connection, tmp_path: Path, format: str, seed: int, name: str
    ) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        path = tmp_path / name.format(format)
        chain = parallel(range(300)).map(made)
        with limited(random.Random(f"{format}{seed}").randrange(1, 1500)), pytest.raises(OSError):
            write(format, path, chain, **({} if "*" not in name else {"overwrite": True}))
        assert os.listdir(tmp_path) == []
        again(format, tmp_path, path, 300)


@contextmanager
def limited(nbytes: int) -> Iterator[None]:
    """Let no file of this process grow larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What changes names, or has them on the disk: a process is killed behind each call.
CALLS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "open")


class TestKilledAtAnyCall:
    """A script that is killed as it makes, renames or removes anything."""

    @pytest.mark.parametrize(
        "kind",
        [
            *("one", "several that exist", "new folders"),
            *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("one that exists", "several")),
        ],
    )
    def test_it_is_absent_or_whole(self, tmp_path: Path, kind: str) -> None:
        name = "part-*" if "several" in kind else "new/deep/out-*" if "new" in kind else "out"
        old = {0: "old", 1: "old", 5: "old"} if "several" in kind else {0: "old"}
        new = {0: "new", 1: "new"} if "*" in name else {0: "new"}
        there = old if "exist" in kind else None
        number, ended = 0, False
        while not ended:
            folder = tmp_path / str(number)
            folder.mkdir()
            if there is not None:
                put(folder / name, there)
            ended = dies(lambda path=folder / name: put(path, new), number)
            if "several" not in kind:  # those are renamed one by one
                assert contents(folder) in (there, new), number
            # The next run ends what this one had begun to commit, and drops anything else.
            LocalTarget(str(folder / name), True, "test").check()
            assert contents(folder) in (there, new), number
            assert hidden(folder) == [], number
            assert ended <= (contents(folder) == new)
            number += 1
        assert number > 10


def put(path: Path, texts: dict[int, str]) -> None:
    """Write files as an evaluation does."""
    target = LocalTarget(str(path), True, "test")
    target.check()
    target.begin()
    for number, text in texts.items():
        with target.open(number) as file:
            file.write(text.encode())
            os.fsync(file.fileno())
    target.commit()


def contents(folder: Path) -> dict[int, str] | None:
    """Return what `put` has put there; None for nothing."""
    files = [file for file in folder.glob("**/*") if file.is_file() and ".parcoll-" not in str(file)]
    assert bool(files) or not [file for file in folder.iterdir() if not file.name.startswith(".")]
    return {int(file.name[-5:]) if file.name != "out" else 0: file.read_text() for file in files} or None


def dies(work: Callable[[], Any], number: int) -> bool:
    """Do work in a fork that is killed behind its call of this number; tell whether it came to its end."""
    pid = os.fork()
    if not pid:
        calls = 0

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                result = call(*arguments, **options)
                if calls > number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return called

        try:
            for name in CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def fast(x: int) -> dict[str, Any]:
    """Make a row."""
    return {"x": x}


def rows(count: int) -> ParallelGen[dict[str, Any]]:
    """Return rows as a collection."""
    return parallel(range(count)).map(fast)


SCRIPT = """
import sys, time
from parcoll import connect, parallel

def made(x):
    time.sleep(0.0002)
    return {"x": x, "text": "é" * (x % 7)}

path, method = sys.argv[1:]
chain = parallel(range(3000)).map(made)
if method == "write_text":
    import json
    chain = chain.map(json.dumps)
with connect(n_workers=2):
    chain.take(1)
    print("begins", flush=True)
    getattr(chain, method)(path, overwrite=True, **({"rows_per_file": 700} if "*" in path else {}))
    print("ended", flush=True)
"""


class TestScripts:
    """The script itself is killed, or interrupted."""

    @pytest.mark.parametrize("seed", choices("script", 20))
    @pytest.mark.parametrize("format", LEAST)
    def test_killed(
        self, inline: Connection, tmp_path: Path, scripts: Scripts, format: str, seed: int
    ) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        folder = tmp_path / "written"
        folder.mkdir()
        path = folder / (ONE if seed % 2 else SEVERAL).format(format)
        process = scripts.start(scripts.write("script.py", SCRIPT), path, f"write_{format}")
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(random.Random(f"{format}{seed}").uniform(0, 0.6))
        process.kill()
        process.wait()
        check(format, folder, path)
        scripts.check()

    def test_a_run_that_lives_is_left_alone(
        self, inline: Connection, tmp_path: Path, scripts: Scripts
    ) -> None:
        folder = tmp_path / "written"
        folder.mkdir()
        path = folder / "part-*.jsonl"
        process = scripts.start(scripts.write("script.py", SCRIPT), path, "write_jsonl")
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        assert eventually(lambda: list(folder.glob(".parcoll-*/files/*")))
        process.send_signal(signal.SIGSTOP)
        write("jsonl", path, rows(5), overwrite=True)
        assert (read("jsonl", folder), len(hidden(folder))) == (list(range(5)), 1)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "ended\n"
        assert process.wait() == 0
        assert (read("jsonl", folder), hidden(folder)) == (list(range(COUNT)), [])
        scripts.check()

    def test_interrupted(self, inline: Connection, tmp_path: Path, scripts: Scripts) -> None:
        folder = tmp_path / "written"
        folder.mkdir()
        process = scripts.start(scripts.write("script.py", SCRIPT), folder / "new" / "a.jsonl", "write_jsonl")
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        assert eventually(lambda: hidden(folder))
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
        assert os.listdir(folder) == []
        scripts.check()


def test_an_interrupt_at_any_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0, 0]  # made, and the one at which Ctrl-C comes

    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            calls[0] += 1
            if calls[0] == calls[1]:
                raise KeyboardInterrupt
            return result

        return called

    for name in CALLS:
        monkeypatch.setattr(os, name, interrupted(getattr(os, name)))
    ended = False
    while not ended:
        calls[:] = 0, calls[1] + 1
        folder = tmp_path / str(calls[1])
        calls[0] = -1  # of this one
        folder.mkdir()
        target = LocalTarget(str(folder / "out-*"), False, "test")
        try:
            target.begin()
            for number in range(2):
                target.open(number).close()
            target.commit()
            ended = calls[0] < calls[1]
        except KeyboardInterrupt:
            pass
        target.abandon()
        assert hidden(folder) == []
        assert len(os.listdir(folder)) in (0, 2)
    assert calls[1] > 10
