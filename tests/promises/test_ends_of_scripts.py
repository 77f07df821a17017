"""A script stays as it was beside its cluster, and leaves nothing, however it ends, forks or waits."""

from __future__ import annotations

import os
import signal

import pytest
from scripts import SECONDS, Scripts, eventually

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


# What stays as it was -----------------------------------------------------------------------------


def test_the_process_stays_as_it_was(scripts: Scripts) -> None:
    """Environment, working directory, path, signal handlers, and the workers see the same."""
    out = scripts.run_file(
        """
        import os, signal, sys
        numbers = [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]
        handlers = lambda: [signal.getsignal(number) for number in numbers]
        state = lambda: (dict(os.environ), os.getcwd(), list(sys.path), handlers())
        before = state()
        from parcoll import parallel
        os.environ["MINE"] = "set by the script"
        before[0]["MINE"] = "set by the script"
        (seen,) = parallel([0]).map(lambda _: (os.getcwd(), os.environ["MINE"]))
        print(seen == (os.getcwd(), "set by the script"))
        open("relative", "w").write("found")
        print(list(parallel(["relative"]).map(lambda name: open(name).read())))
        print(state() == before)
        """,
        "-W",
        "ignore::ResourceWarning",
    )
    assert out == "True\n['found']\nTrue\n"


def test_a_path_added_after_the_cluster_started_works(scripts: Scripts) -> None:
    scripts.write("library/late.py", "def triple(x): return 3 * x")
    scripts.write("first/later.py", "def half(x): return x / 2")
    out = scripts.run_file(
        """
        import os, sys
        from parcoll import parallel
        print(list(parallel(range(3)).map(abs)))
        sys.path.append(os.path.abspath("library"))
        import late
        print(list(parallel(range(3)).map(late.triple)))
        sys.path.insert(0, os.path.abspath("first"))
        import later
        print(list(parallel(range(3)).map(lambda x: later.half(x))))
        """
    )
    assert out == "[0, 1, 2]\n[0, 3, 6]\n[0.0, 0.5, 1.0]\n"


# Ends ---------------------------------------------------------------------------------------------

STREAM = """
import itertools, os, signal, sys, time
from parcoll import parallel
def slow(x):
    time.sleep(0.02)
    return x
for x in parallel(itertools.count()).map(slow):
    if x == 20:
        {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "last_words"),
    [
        ("break", 0, ""),
        ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
        ("sys.exit(3)", 3, ""),
        ("os._exit(4)", 4, ""),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("os.abort()", -signal.SIGABRT, ""),
    ],
    ids=["end", "exception", "exit", "_exit", "sigterm", "sigint", "sigkill", "abort"],
)
def test_whatever_ends_a_script_in_mid_stream_nothing_is_left(
    scripts: Scripts, end: str, code: int, last_words: str
) -> None:
    _, err = scripts.run("-c", STREAM.format(end=end), code=code)
    assert err.strip().endswith(last_words)
    if not last_words:
        assert err == ""
    scripts.check(5)


def test_a_script_that_is_killed_while_it_waits_leaves_nothing(scripts: Scripts) -> None:
    """From outside, while workers are inside a user's function."""
    script = scripts.start_file(
        """
        import time
        from parcoll import parallel
        list(parallel(range(4)).map(lambda x: (print("up", flush=True), time.sleep(60))))
        """
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "up\n"
    script.kill()
    script.wait(5)
    scripts.check(5)


@pytest.mark.parametrize("target", ["process", "group"])
@pytest.mark.parametrize("place", ["function", "body", "source"])
def test_ctrl_c_stops_the_loop_and_the_cluster_stays_usable(
    scripts: Scripts, place: str, target: str
) -> None:
    """A terminal sends Ctrl-C to the whole group. The script notices before the long wait is over."""
    code = """
    import itertools, os, time
    from parcoll import parallel
    place = {place!r}
    def wait(where, x):
        if place == where and x == 5:
            open("up", "w").close()
            time.sleep(4)
            open("waited " + where, "w").close()
        return x
    pids = set(parallel(range(40)).map(lambda _: os.getppid()))
    try:
        source = (wait("source", x) for x in itertools.count())
        for x in parallel(source).map(lambda x: wait("function", x)):
            wait("body", x)
    except KeyboardInterrupt:
        print("interrupted", os.listdir(".").count("waited " + place), flush=True)
    print(list(parallel(range(5)).map(lambda x: x + 1)), flush=True)
    print(pids == set(parallel(range(40)).map(lambda _: os.getppid())))
    """.replace("{place!r}", repr(place))
    script = scripts.start_file(code, start_new_session=True)
    assert eventually((scripts.folder / "up").exists, SECONDS)
    (os.killpg if target == "group" else os.kill)(script.pid, signal.SIGINT)
    out, err = script.communicate(timeout=SECONDS)
    assert (out, err) == ("interrupted 0\n[1, 2, 3, 4, 5]\nTrue\n", "")


def test_leaving_loops_early_is_silent(scripts: Scripts) -> None:
    """Results that are on their way when the loop is left are dropped, not complained about."""
    script = scripts.write(
        "script.py",
        """
        import itertools
        from parcoll import parallel
        for _ in range(40):
            for x in parallel(itertools.count(), partition_size=20).map(lambda x: bytes(200_000)):
                break
        print("left", len(x))
        """,
    )
    assert scripts.run(script) == ("left 200000\n", "")


# Forks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)"])
def test_a_fork_has_a_cluster_of_its_own(scripts: Scripts, end: str) -> None:
    out = scripts.run_file(
        f"""
        import os, sys
        from parcoll import parallel
        hosts = lambda: set(parallel(range(50)).map(lambda _: os.getppid()))
        before = hosts()
        streams = [iter(parallel(range(1000)).map(abs)) for _ in range(10)]  # all under way
        assert [next(stream) for stream in streams] == [0] * 10
        pid = os.fork()
        if pid == 0:
            assert not hosts() & before
            print("child", list(parallel(range(5)).map(lambda x: -x)), flush=True)
            {end}
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert hosts() == before
        print("parent", all(list(stream) == list(range(1, 1000)) for stream in streams))
        """,
        "-W",
        "ignore::DeprecationWarning",  # from 3.12 on, of any fork of a process with threads
    )
    assert out == "child [0, -1, -2, -3, -4]\nparent True\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_multiprocessing_pool_works_beside(scripts: Scripts, method: str) -> None:
    out = scripts.run_file(
        f"""
        import multiprocessing
        from parcoll import parallel
        def pool():
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                return pool.map(abs, range(-5, 0))
        if __name__ == "__main__":  # which spawn needs, and parcoll does not
            print(pool())
            print(list(parallel(range(-5, 0)).map(abs)))
            print(pool())
            print(list(parallel(range(-5, 0)).map(abs)))
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert out == "[5, 4, 3, 2, 1]\n" * 4


# Threads ------------------------------------------------------------------------------------------


def test_the_first_evaluations_of_several_threads_share_one_cluster(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        import os, threading
        from concurrent.futures import ThreadPoolExecutor
        from parcoll import parallel
        start = threading.Barrier(6)
        def evaluate(n):
            start.wait(30)
            assert threading.current_thread() is not threading.main_thread()
            rows = list(parallel(range(n, n + 100)).map(lambda x: (x, os.getppid())))
            assert [x for x, _ in rows] == list(range(n, n + 100))
            return {host for _, host in rows}
        with ThreadPoolExecutor(6) as pool:
            hosts = set().union(*pool.map(evaluate, range(6)))
        assert hosts == set(parallel([0]).map(lambda _: os.getppid()))
        print(len(hosts))
        """
    )
    assert out == "1\n"


def test_a_script_may_end_while_a_daemon_thread_evaluates(scripts: Scripts) -> None:
    """It ends at once, with its own exit code; the thread may still complain of the lost cluster."""
    code = """if True:
        import itertools, sys, threading
        from parcoll import parallel
        started = threading.Event()
        def consume():
            for _ in parallel(itertools.count()).map(abs):
                started.set()
        threading.Thread(target=consume, daemon=True).start()
        assert started.wait(30)
        print("end")
        sys.exit(5)
    """
    out, _ = scripts.run("-c", code, code=5)
    assert out == "end\n"
    scripts.check(5)
