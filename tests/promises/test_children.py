"""Children of `multiprocessing`, of executors and of servers that fork: functions of the script travel there.

A child that is started anew (spawn, forkserver) has the script as `__mp_main__`.
"""

from __future__ import annotations

import tempfile

import pytest
from scripts import SECONDS, Scripts

SHORT = {"TMPDIR": tempfile.gettempdir()}  # forkserver's socket is there, whose path must be short

SCRIPT = """
    import enum, multiprocessing, sys, typing
    from concurrent.futures import ProcessPoolExecutor
    from dataclasses import dataclass
    from parcoll import connect, parallel

    class Color(enum.Enum):
        RED = 1

    class Pair(typing.NamedTuple):
        one: int
        two: int

    @dataclass
    class Point:
        x: int
        class Inner:
            y = 3

    class Refused(Exception):
        pass

    def f(x): return x + 1
    def moved(p): return Point(p.x + OFFSET)
    def kinds(x): return Color.RED, Pair(x, x), Point.Inner().y
    def refuses(x): raise Refused(x)
    OFFSET = 10

    def work(n): return sum(parallel(range(n)).map(f))
    def points(n): return list(parallel([Point(i) for i in range(n)]).map(moved))
    def others(n):
        y = 2
        assert list(parallel([1]).map(kinds)) == [(Color.RED, Pair(1, 1), 3)]
        assert list(parallel([1]).map(lambda x: x + y)) == [3]
        assert parallel([1, 2]).reduce(lambda a, b: f(a) + b) == 4
        try:
            parallel([n]).map(refuses).first()
        except Refused as error:
            return error.args
    def here(n):
        with connect("inline"):
            return [type(p) is Point for p in parallel([Point(n)]).map(moved)]
    """


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_pool_of_processes(scripts: Scripts, start: str) -> None:
    """Its processes are daemons."""
    text = f"""{SCRIPT}
    if __name__ == "__main__":
        with multiprocessing.get_context("{start}").Pool(2) as pool:
            print(pool.map(work, [10]), pool.map(points, [2]), pool.map(others, [5]), pool.map(here, [1]))
    """
    found = "[55] [[Point(x=10), Point(x=11)]] [(5,)] [[True]]\n"
    assert scripts.run_with(scripts.write("script.py", text), env=SHORT) == (found, "")


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_an_executor_beside_a_cluster_of_the_parent_s(scripts: Scripts, start: str) -> None:
    text = f"""{SCRIPT}
    if __name__ == "__main__":
        print(work(3))
        context = multiprocessing.get_context("{start}")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            print(pool.submit(work, 10).result(), pool.submit(points, 1).result())
        print(work(3))
    """
    found = "6\n55 [Point(x=10)]\n6\n"
    assert scripts.run_with(scripts.write("script.py", text), env=SHORT) == (found, "")


@pytest.mark.parametrize("start", ["forkserver"])
def test_single_processes_and_a_module_run_by_name(scripts: Scripts, start: str) -> None:
    text = f"""{SCRIPT}
    def tell(queue, n):
        queue.put((work(n), others(n)))
    if __name__ == "__main__":
        context = multiprocessing.get_context("{start}")
        queue = context.Queue()
        process = context.Process(target=tell, args=(queue, 10))
        process.start()
        print(queue.get())
        process.join()
        print(process.exitcode)
    """
    scripts.write("package/__init__.py", "")
    scripts.write("package/run.py", text)
    process = scripts.start("-m", "package.run", env=SHORT)
    assert process.communicate(timeout=SECONDS) == ("(55, (10,))\n0\n", "")


# Python 3.12 and later warn of forks in processes with threads, which dask has.
FORKS = ("-W", "ignore:This process:DeprecationWarning")


def test_forks_of_a_process_that_has_a_cluster(scripts: Scripts) -> None:
    """As gunicorn and Celery fork their workers, before and after the parent has evaluated."""
    text = f"""{SCRIPT}
    import os
    def fork():
        pid = os.fork()
        if not pid:
            print("child", work(10), others(1), flush=True)
            os._exit(0)
        return os.waitpid(pid, 0)[1]
    print(fork())
    print(work(3), flush=True)
    print(fork(), fork())
    print(work(3))
    """
    out = scripts.run_file(text, *FORKS)
    assert sorted(out.splitlines()) == sorted(["child 55 (1,)"] * 3 + ["0", "6", "0 0", "6"])


def test_a_fork_within_an_evaluation_of_its_parent(scripts: Scripts) -> None:
    text = f"""{SCRIPT}
    import os
    def source():
        for i in range(3):
            pid = os.fork()
            if not pid:
                print("child", work(10), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            yield i
    print(sum(parallel(source).map(f)))
    """
    assert scripts.run_file(text, *FORKS) == "child 55\n" * 3 + "6\n"
