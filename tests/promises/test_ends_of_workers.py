"""Workers end as scripts do: what their functions have written is on the disk, and what they left is done.

`kill -9` of a worker cannot be helped. The script may end however it likes: its workers end well.
"""

from __future__ import annotations

import contextlib
import gzip
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
from scripts import Scripts, append, eventually, lines

from parcoll import ParcollError, connect, parallel

# Each function keeps something in a global, and closes nothing.
KEEP = """
    import atexit, gzip, os, sys, tempfile, threading, time, weakref
    from pathlib import Path
    from parcoll import connect, parallel

    folder = Path(__file__).parent
    settings = {"timeout": 60} if "isolated" in sys.argv else {}
    kept = {}
    ballast = bytes(100_000 if "large" in sys.argv else 0)

    class Lines:
        def __init__(self):
            self.lines = []

        def __del__(self):
            (folder / f"del-{os.getpid()}").write_text("".join(self.lines))

    def cleaned_up(path):
        try:
            yield
        finally:
            path.write_text("")

    def begin():
        pid = os.getpid()
        kept["plain"] = open(folder / f"plain-{pid}", "w")
        kept["binary"] = open(folder / f"binary-{pid}", "wb", buffering=2**20)
        kept["gzip"] = gzip.open(folder / f"gzip-{pid}.gz", "wt")
        kept["lines"] = Lines()
        kept["generator"] = cleaned_up(folder / f"finally-{pid}")
        next(kept["generator"])
        kept["finalize"] = weakref.finalize(kept["lines"], (folder / f"finalize-{pid}").write_text, "")
        kept["folder"] = tempfile.TemporaryDirectory(dir=folder)
        atexit.register((folder / f"atexit-{pid}").write_text, "")

    def write(x):
        if kept.setdefault("begun by", me := threading.get_ident()) == me and "folder" not in kept:
            begin()
        while "folder" not in kept:
            time.sleep(0.001)
        print(x, file=kept["plain"])
        kept["binary"].write(b"%d\\n" % x)
        print(x, file=kept["gzip"])
        kept["lines"].lines.append(f"{x}\\n")
        return x + len(ballast) * 0
"""
RUN = "list(parallel(range(100), partition_size=5, **settings).map(write))\n"
ENDS = {
    "close": "with connect(n_workers=2) as connection:\n        RUN",
    "end": "RUN",
    "error": "RUN\n    raise KeyError",
    "exit": "RUN\n    sys.exit(3)",
    "kill": "RUN\n    os.kill(os.getpid(), 9)",
    "exit at once": "RUN\n    os._exit(0)",
}


def content(folder: Path, pattern: str) -> list[int]:
    found: list[int] = []
    for path in folder.glob(pattern):
        data = path.read_bytes()
        try:
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        except EOFError:  # it is not whole, or not yet: its lines are missing
            continue
        found += map(int, text.split())
    return sorted(found)


def wait(results: Iterator[Any]) -> None:
    with contextlib.suppress(ParcollError):  # the cluster is closed meanwhile
        next(results)


# Each end and each place by itself; all pairs are slow.
PAIRS = [
    (end, where) if not where or end == "close" else pytest.param(end, where, marks=pytest.mark.slow)
    for end in ENDS
    for where in ("", "isolated", "large", "large isolated")
]


@pytest.mark.parametrize(("end", "where"), PAIRS)
def test_what_functions_left_open_is_whole(scripts: Scripts, end: str, where: str) -> None:
    """Also where the function is large, so that it lies in shared memory."""
    file = scripts.write("script.py", KEEP + "\n    " + ENDS[end].replace("RUN", RUN))
    scripts.start(file, *where.split()).wait(60)
    assert eventually(lambda: not scripts.processes(), 10)
    for pattern in ("plain-*", "binary-*", "gzip-*", "del-*"):
        assert content(scripts.folder, pattern) == list(range(100)), pattern
    workers = len(list(scripts.folder.glob("plain-*")))
    for pattern in ("finally-*", "finalize-*", "atexit-*"):
        assert len(list(scripts.folder.glob(pattern))) == workers, pattern
    assert not [path for path in scripts.folder.glob("tmp*") if path != scripts.scratch], "temporary folders"


def test_it_is_whole_where_each_worker_has_several_threads(scripts: Scripts) -> None:
    end = "with connect(n_workers=1, threads_per_worker=3):\n        " + RUN
    scripts.run(scripts.write("script.py", KEEP + "\n    " + end))
    # Threads may share no gzip file, and `print` writes a line in two parts.
    assert content(scripts.folder, "binary-*") == list(range(100))
    assert len(list(scripts.folder.glob("finally-*"))) == 1


def test_processes_beside_a_worker_that_are_no_longer_needed_end_well(scripts: Scripts) -> None:
    file = scripts.write("script.py", KEEP + "\n    " + RUN + "    time.sleep(25)\n    os._exit(0)")
    process = scripts.start(file, "isolated")
    assert eventually(lambda: content(scripts.folder, "gzip-*") == list(range(100)), 40)
    process.kill()


@pytest.mark.parametrize("ways", ["in the worker", "beside it"])
def test_a_function_that_still_runs_is_unwound(tmp_path: Path, ways: str) -> None:
    settings: dict[str, Any] = {"timeout": 100} if ways == "beside it" else {}

    def never_ends(x: int) -> Any:
        with open(tmp_path / "written", "w") as file:
            print("begun", file=file)
            append(tmp_path / "begun", "")
            try:
                time.sleep(100)
            finally:
                print("unwound", file=file)

    with connect(n_workers=1):
        results = iter(parallel([0, 1], partition_size=1, **settings).map(never_ends))
        threading.Thread(target=wait, args=(results,), daemon=True).start()
        assert eventually((tmp_path / "begun").exists, 20)
        started = time.monotonic()
    assert time.monotonic() - started < 50, "it was waited for"
    assert lines(tmp_path / "written") == ["begun", "unwound"]


@pytest.mark.parametrize(
    "body",
    {
        "sleeps on": "while True:\n try: time.sleep(100)\n except BaseException: pass",
        "holds the GIL": "sum(iter(int, 1))",
        "waits in C": "import ctypes; ctypes.CDLL(None).sleep(100)",
        "has a handler": "signal.signal(signal.SIGTERM, lambda *_: None)\nwhile True: time.sleep(0.01)",
        "ignores it": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(0.01)",
    }.values(),
)
def test_a_function_does_not_delay_the_end(tmp_path: Path, body: str) -> None:
    def never_ends(x: int) -> None:
        kept = open(tmp_path / "kept", "w")  # noqa: SIM115
        print("kept", file=kept)
        append(tmp_path / "begun", "")
        exec(body, {"time": time, "signal": signal})

    with connect(n_workers=1):
        results = iter(parallel([0]).map(never_ends))
        threading.Thread(target=wait, args=(results,), daemon=True).start()
        assert eventually((tmp_path / "begun").exists, 20)
        time.sleep(0.1)
        started = time.monotonic()
    assert time.monotonic() - started < 50, "it was waited for"
    if "ctypes" in body or "BaseException" in body or "lambda" in body:
        assert lines(tmp_path / "kept") == ["kept"]


def test_a_worker_that_is_told_to_end_alone_ends_well(scripts: Scripts) -> None:
    run = """
    with connect(n_workers=1) as connection:
        RUN
        pid = list(parallel([0]).map(lambda _: os.getpid()))[0]
        os.kill(pid, 15)
        for _ in range(100):
            time.sleep(0.1)
            if (folder / f"finally-{pid}").exists():
                break
        assert sum(parallel(range(10)).map(write)) == 45
    """.replace("RUN", RUN)
    scripts.run(scripts.write("script.py", KEEP + run))
    assert content(scripts.folder, "gzip-*") == sorted([*range(100), *range(10)])


def test_a_thread_of_a_function_s_has_time_to_end(scripts: Scripts) -> None:
    out = scripts.run_file("""
        import os, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from parcoll import connect, parallel

        folder = Path(__file__).parent
        pool = None

        def later(x):
            global pool
            pool = pool or ThreadPoolExecutor(1)
            pool.submit(lambda: (time.sleep(0.01), (folder / f"executed-{x}").write_text("")))
            def work():
                time.sleep(0.1)
                (folder / f"thread-{x}").write_text("")
            threading.Thread(target=work).start()
            return x

        with connect(n_workers=2):
            print(sum(parallel(range(6), partition_size=1).map(later)))
    """)
    assert out == "15\n"
    names = sorted(path.name for path in scripts.folder.glob("*-*"))
    assert names == sorted([f"{word}-{x}" for word in ("executed", "thread") for x in range(6)])


def test_what_threads_of_functions_say_while_they_are_ended_is_not_told(scripts: Scripts) -> None:
    out = scripts.run_file("""
        import threading, time
        from parcoll import connect, parallel

        word = "still here"

        def background():
            while True:
                time.sleep(0.001)
                assert len(word) == 10

        def begin(x):
            threading.Thread(target=background, daemon=True).start()
            return x

        with connect(n_workers=2):
            print(sum(parallel(range(6), partition_size=1).map(begin)))
    """)
    assert out == "15\n"


@pytest.mark.parametrize("settings", ["", ", timeout=60"])
def test_joblib_within_a_function_leaves_no_warning(scripts: Scripts, settings: str) -> None:
    pytest.importorskip("joblib")
    out = scripts.run_file(f"""
        import joblib
        from parcoll import connect, parallel

        def double(x):
            return 2 * x

        def work(n):
            return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-x) for x in range(n)))

        with connect(n_workers=2):
            print(list(parallel([2, 3, 4, 5], partition_size=1{settings}).map(work)))
    """)
    assert out == "[1, 3, 6, 10]\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_functions_start_leave_no_warning(scripts: Scripts, method: str) -> None:
    out = scripts.run_file(f"""
        import multiprocessing
        from parcoll import connect, parallel

        context = multiprocessing.get_context({method!r})
        pool = None

        def work(n):
            global pool
            pool = pool or context.Pool(2)
            lock, queue = context.Lock(), context.Queue()
            return sum(pool.map(abs, range(-n, 0)))

        if __name__ == "__main__":
            with connect(n_workers=2):
                print(list(parallel([2, 3, 4, 5], partition_size=1).map(work)))
    """)
    assert out == "[3, 6, 10, 15]\n"


def test_a_process_that_a_function_forks_is_ended_by_a_signal_as_any_other() -> None:
    with connect(n_workers=1):
        assert list(parallel([0, 1]).map(forks.ended)) == [-signal.SIGTERM] * 2
        assert list(parallel([0], timeout=60).map(forks.ended)) == [-signal.SIGTERM]


def test_ctrl_c_leaves_what_was_written_whole(scripts: Scripts) -> None:
    run = """
    def stay(x):
        write(x)
        time.sleep(x)
        return x

    with connect(n_workers=1):
        try:
            for x in parallel([0, 1, 100], partition_size=1).map(stay):
                if x == 1:
                    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        except KeyboardInterrupt:
            pass
        print(list(parallel([0]).map(lambda x: x)))
        print(sorted(path.name.split("-")[0] for path in folder.glob("*-*")))
    """
    out, err = scripts.run(scripts.write("script.py", KEEP.replace("atexit,", "atexit, signal,") + run))
    assert eventually(lambda: content(scripts.folder, "gzip-*") in ([0, 1], [0, 1, 100]), 5)
    assert out.startswith("[0]"), (out, err)
