"""What does a function find of the script's world? `python benchmarks/world.py` asks parcoll and others.

Each way runs the same questions in a process of its own. A pool is made anew for each question, as in
``with Pool() as pool``: one that was made before could not know what has changed since. parcoll keeps its
workers. The answers are compared with those of the script's own loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import decimal
import enum
import functools
import json
import locale
import logging
import multiprocessing
import multiprocessing.shared_memory
import os
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import typing
import unittest.mock
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Way = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
MISSING = object()
kept: dict[str, Any] = {}
_QUESTIONS: list[tuple[str, str, Callable[[Way], Any]]] = []


def question(room: str, text: str) -> Callable[[Callable[[Way], Any]], Callable[[Way], Any]]:
    """Have a function, which answers truth where all is as in the script, be asked."""

    def note(ask: Callable[[Way], Any]) -> Callable[[Way], Any]:
        _QUESTIONS.append((room, text, ask))
        return ask

    return note


def same(func: Callable[[Any], Any], elements: Sequence[Any] = (1, 2)) -> Callable[[Way], bool]:
    """Return what asks whether a function answers as in the script's own loop."""
    return lambda way: way(func, elements) == [func(element) for element in elements]


# The process --------------------------------------------------------------------------------------


def place(_: Any) -> Any:
    return os.getcwd(), os.environ.get("WORLD_NEW"), os.environ.get("WORLD_OLD")


@question("process", "directory and environment, as changed since")
def _(way: Way) -> bool:
    os.chdir(tempfile.gettempdir())
    os.environ["WORLD_NEW"] = "1"
    os.environ.pop("WORLD_OLD", None)
    return same(place)(way)


def path(_: Any) -> Any:
    return sys.path[0]


@question("process", "the order of `sys.path`")
def _(way: Way) -> bool:
    sys.path.insert(0, "/no-such-folder")
    return same(path)(way)


def umask(_: Any) -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@question("process", "umask")
def _(way: Way) -> bool:
    os.umask(0o027)
    return same(umask)(way)


def third(_: Any) -> Any:
    return len(str(decimal.Decimal(1) / 3)), sys.getrecursionlimit(), socket.getdefaulttimeout()


@question("interpreter", "decimal context, recursion limit, default timeout of sockets")
def _(way: Way) -> bool:
    decimal.getcontext().prec = 50
    sys.setrecursionlimit(5000)
    socket.setdefaulttimeout(50)
    try:
        return same(third)(way)
    finally:
        socket.setdefaulttimeout(None)


def divide(x: float) -> Any:
    try:
        return float(np.float64(1) / np.float64(x - x))
    except FloatingPointError:
        return "raised"


@question("interpreter", "numpy's error state")
def _(way: Way) -> bool:
    with np.errstate(all="raise"):
        return same(divide)(way)


def warned(_: Any) -> str:
    try:
        warnings.warn("x", stacklevel=1)
    except UserWarning:
        return "raised"
    return "shown"


@question("interpreter", "warnings filters")
def _(way: Way) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return same(warned)(way)


def decimal_point(_: Any) -> str:
    return locale.localeconv()["decimal_point"] + locale.setlocale(locale.LC_TIME)


@question("interpreter", "locale")
def _(way: Way) -> bool:
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    return same(decimal_point)(way)


class Listing(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def log(x: Any) -> Any:
    logging.getLogger("world").info("element %s", x)
    return x


@question("interpreter", "a record reaches the script's handler")
def _(way: Way) -> bool:
    handler = Listing()
    logging.getLogger("world").addHandler(handler)
    logging.getLogger("world").setLevel(logging.INFO)
    way(log, [1, 2])
    return sorted(handler.found) == ["element 1", "element 2"]


# Modules and `__main__` ---------------------------------------------------------------------------


def setting(x: Any) -> Any:
    import world_settings  # type: ignore[import-not-found]

    return x * world_settings.factor, world_settings.fetch()


@question("modules", "changed data and a mocked function in a module of one's own")
def _(way: Way) -> bool:
    import world_settings

    world_settings.factor = 10
    with unittest.mock.patch.object(world_settings, "fetch", lambda: "fake"):  # noqa: PT008 - a function
        return way(setting, [1]) == [(10, "fake")]


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def pickled(x: Any) -> int:
    return pickle.loads(pickle.dumps(Point(x))).x


@question("`__main__`", "objects of the script's can be pickled")
def _(way: Way) -> bool:
    return same(pickled)(way)


class Row(typing.NamedTuple):
    point: "Point"  # noqa: UP037 - looked up by its text


def hints(_: Any) -> str:
    return typing.get_type_hints(Row)["point"].__name__


def by_text(name: str) -> Any:
    return globals()["parse_" + name]("1")


def parse_number(text: str) -> int:
    return int(text)


def parse_list(text: str) -> list[str]:
    return list(text)


@question("`__main__`", "type hints, functions by their text")
def _(way: Way) -> bool:
    return same(hints)(way) and same(by_text, ["number", "list"])(way)


def plus_one(x: int) -> int:
    return x + 1


def in_pool(x: int) -> list[int]:
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        return list(pool.map(plus_one, [x, x]))


@question("`__main__`", "a pool within a function")
def _(way: Way) -> bool:
    return same(in_pool, [1])(way)


class Circle:
    made: typing.ClassVar[list[str]] = []

    def __init_subclass__(cls, kind: str) -> None:
        Circle.made.append(kind)

    @functools.cached_property
    def area(self) -> int:
        return 4


class Small(Circle, kind="small"): ...


class Color(enum.Enum):
    RED = 1


@functools.singledispatch
def show(x: object) -> str:
    return "object"


@show.register
def _show_int(x: int) -> str:
    return "int"


def classes(x: Any) -> Any:
    return Small().area, list(Circle.made), show(x), Color(1) is Color.RED


@question("`__main__`", "classes: cached properties, keywords, dispatch, enums")
def _(way: Way) -> bool:
    return same(classes)(way)


def is_missing(x: Any) -> bool:
    return x is MISSING


def missing(_: Any) -> Any:
    return MISSING


@question("`__main__`", "`x is MISSING`, in elements and in results")
def _(way: Way) -> bool:
    return same(is_missing, [MISSING, 1])(way) and way(missing, [1])[0] is MISSING


# Exceptions ---------------------------------------------------------------------------------------


def decode(_: Any) -> Any:
    return json.loads("{")


@question("exceptions", "arrive as what they were")
def _(way: Way) -> bool:
    try:
        way(decode, [1])
    except json.JSONDecodeError as error:
        return error.pos == 1 and "Expecting" in error.msg
    return False


# Threads, signals, families -----------------------------------------------------------------------


def alarm(_: Any) -> str:
    def stop(*_: object) -> None:
        raise TimeoutError

    try:
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(1)
    except TimeoutError:
        return "stopped"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "slept"


@question("threads", "the main thread: alarms")
def _(way: Way) -> bool:
    return same(alarm)(way)


def in_main_thread(_: Any) -> bool:
    return threading.current_thread() is threading.main_thread() and asyncio.run(asyncio.sleep(0, True))


@question("threads", "the main thread: event loops")
def _(way: Way) -> bool:
    return same(in_main_thread)(way)


def ask_database(x: int) -> int:
    if "connection" not in kept:
        kept["connection"] = sqlite3.connect(":memory:")
    return int(kept["connection"].execute("select ?", (x,)).fetchone()[0])


@question("threads", "a connection that is kept in a global")
def _(way: Way) -> bool:
    return way(ask_database, range(20)) == list(range(20))


def note_in(pair: tuple[Any, int]) -> None:
    noted, x = pair
    noted[x] = x


@question("processes", "a manager of the script's answers")
def _(way: Way) -> bool:
    with multiprocessing.Manager() as manager:
        noted = manager.dict()
        way(note_in, [(noted, x) for x in range(3)])
        return dict(noted) == {0: 0, 1: 1, 2: 2}


def attach(name: str) -> int:
    memory = multiprocessing.shared_memory.SharedMemory(name)
    found = memory.buf[0]
    memory.close()
    return found


@question("processes", "the script's shared memory is there when the pool has ended")
def _(way: Way) -> bool:
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=10)
    try:
        memory.buf[0] = 7
        return way(attach, [memory.name]) == [7] and attach(memory.name) == 7
    finally:
        memory.close()
        memory.unlink()


# The end ------------------------------------------------------------------------------------------


def write_line(pair: tuple[str, int]) -> int:
    folder, x = pair
    if folder not in kept:
        kept[folder] = open(os.path.join(folder, f"lines-{os.getpid()}"), "w")  # noqa: SIM115 - left open
    print(x, file=kept[folder])
    return x


def lines_after(way_name: str) -> bool:
    """Tell whether all lines are on the disk when a script has ended whose functions closed nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--lines", way_name, folder]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        found = [int(line) for file in Path(folder).glob("lines-*") for line in file.read_text().split()]
        return sorted(found) == list(range(100))


# Ways ---------------------------------------------------------------------------------------------


def by_parcoll(**settings: Any) -> Way:
    from parcoll import parallel

    return lambda func, elements: list(parallel(list(elements), partition_size=1, **settings).map(func))


def by_pool(kind: str) -> Way:
    def way(func: Callable[[Any], Any], elements: Sequence[Any]) -> list[Any]:
        pool = multiprocessing.get_context(kind).Pool(2)
        try:
            return pool.map(func, list(elements), chunksize=1)
        finally:
            pool.close()
            pool.join()

    return way


def by_joblib() -> Way:
    import joblib

    def way(func: Callable[[Any], Any], elements: Sequence[Any]) -> list[Any]:
        return list(joblib.Parallel(n_jobs=2)(joblib.delayed(func)(element) for element in elements))

    return way


WAYS: dict[str, Callable[[], Way]] = {
    "parcoll": by_parcoll,
    "parcoll, `timeout=`": functools.partial(by_parcoll, timeout=60),
    "parcoll, remote": by_parcoll,
    "Pool, fork": functools.partial(by_pool, "fork"),
    "Pool, spawn": functools.partial(by_pool, "spawn"),
    "joblib": by_joblib,
}


def ask_all(name: str) -> dict[str, str]:
    """Return "yes" or how it failed, by question."""
    way = WAYS[name]()
    os.environ["WORLD_OLD"] = "1"
    folder = tempfile.mkdtemp()
    Path(folder, "world_settings.py").write_text("factor = 2\ndef fetch(): return 'real'\n")
    sys.path.insert(0, folder)
    way(plus_one, [1, 2])  # what is kept over evaluations is there before anything changes
    answers = {}
    for room, text, ask in _QUESTIONS:
        try:
            answer = "yes" if ask(way) else "no"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"[:100]
        answers[f"{room}: {text}"] = answer
    answers["the end: files that functions left open are whole"] = "yes" if lines_after(name) else "no"
    return answers


def remote_cluster(folder: str) -> Iterator[str]:
    """Start a scheduler and two workers; give the scheduler's address."""
    file = Path(folder, "scheduler.json")
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    started = [
        subprocess.Popen([*dask, "scheduler", "--port", "0", "--host", "127.0.0.1", *options], **quiet)
    ]
    try:
        while not (file.exists() and file.stat().st_size):
            time.sleep(0.05)
        worker = [*dask, "worker", "--nthreads", "1", "--no-nanny", *options]
        started += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(10)


def main() -> None:
    answers: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clusters = remote_cluster(folder)
        address = next(clusters)
        for name in WAYS:
            env = os.environ | ({"DASK_SCHEDULER_ADDRESS": address} if "remote" in name else {})
            command = [sys.executable, __file__, "--way", name]
            try:
                run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
                answers[name] = json.loads(run.stdout.splitlines()[-1])
            except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError) as error:
                print(f"{name}: {error!r}; left out", file=sys.stderr)
        clusters.close()
    questions = list(next(iter(answers.values())))
    print("| a function finds | " + " | ".join(answers) + " |")
    print("|---" * (len(answers) + 1) + "|")
    for text in questions:
        found = ["yes" if answers[name].get(text) == "yes" else "**no**" for name in answers]
        print(f"| {text} | " + " | ".join(found) + " |")
    counts = [sum(answer == "yes" for answer in found.values()) for found in answers.values()]
    print(f"| of {len(questions)} | " + " | ".join(map(str, counts)) + " |")
    for name, found in answers.items():
        for text, answer in found.items():
            if answer not in ("yes", "no"):
                print(f"{name}: {text}: {answer}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        print(json.dumps(ask_all(sys.argv[2])))
    elif sys.argv[1:2] == ["--lines"]:
        WAYS[sys.argv[2]]()(write_line, [(sys.argv[3], x) for x in range(100)])
    else:
        main()
