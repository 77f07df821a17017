"""A script needs no guard, finds its own functions and modules, and leaves nothing, however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import SECONDS, Scripts, eventually, lines

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

BESIDE = """
class Point:
    def __init__(self, x):
        self.x = x
    def is_point(self):
        return isinstance(self, Point)

def double(x):
    return 2 * x
"""

# One text for every way to run it: file, -c, stdin, -m and REPL (hence no blank line in a block).
SCRIPT = """
import os
from beside import Point, double
from parcoll import parallel
_ = open("imports", "a").write("main imported\\n")
offset = 100
def add(x):
    return double(x) + offset

points = list(parallel(range(20)).map(add).map(Point))
assert [point.x for point in points] == [2 * x + 100 for x in range(20)]
assert all(type(point) is Point for point in points)
assert list(parallel(points).map(Point.is_point)) == [True] * 20
assert os.getpid() not in list(parallel(range(4)).map(lambda _: os.getpid()))
print("done")
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    """Check after each test that no process, folder or segment of its scripts is left."""
    found = Scripts(tmp_path)
    yield found
    found.check()


# Ways to run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["script.py"], None),
        (["-c", SCRIPT], None),
        (["-"], SCRIPT),
        (["-m", "script"], None),
        (["-O", "-X", "utf8", "script.py"], None),
    ],
    ids=["file", "-c", "stdin", "-m", "flags"],
)
def test_a_script_without_guard_works_and_is_imported_once(
    scripts: Scripts, arguments: list[str], stdin: str | None
) -> None:
    scripts.write("beside.py", BESIDE)
    scripts.write("script.py", SCRIPT)
    assert scripts.run(*arguments, input=stdin) == ("done\n", "")
    assert lines(scripts.folder / "imports") == ["main imported"]


def test_a_file_in_another_folder_finds_the_modules_beside_it(scripts: Scripts) -> None:
    scripts.write("elsewhere/beside.py", BESIDE)
    script = scripts.write("elsewhere/script.py", SCRIPT)
    assert scripts.run(script) == ("done\n", "")


def test_a_module_of_a_package_may_import_relatively(scripts: Scripts) -> None:
    scripts.write("package/__init__.py", "")
    scripts.write("package/beside.py", BESIDE)
    scripts.write("package/tool.py", SCRIPT.replace("from beside", "from .beside"))
    assert scripts.run("-m", "package.tool") == ("done\n", "")


def test_the_repl_works(scripts: Scripts) -> None:
    scripts.write("beside.py", BESIDE)
    out, err = scripts.run("-i", "-q", input=SCRIPT)
    assert out == "done\n"
    # The prompts go to stderr, and nothing else does.
    assert err.replace(">>> ", "").replace("... ", "").strip() == ""


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_a_test_file_under_pytest_works(scripts: Scripts, mode: str) -> None:
    """No conftest, no package: functions of the test module travel whatever way pytest imported it."""
    pytest_args = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "inner")
    scripts.write(
        "inner/test_inner.py",
        """
        from parcoll import parallel
        class Point:
            def __init__(self, x):
                self.x = x
        def double(x):
            return 2 * x
        def test_it():
            points = list(parallel(range(20)).map(double).map(lambda x: Point(x)))
            assert [point.x for point in points] == [2 * x for x in range(20)]
            assert all(type(point) is Point for point in points)
        """,
    )
    out, err = scripts.run(*pytest_args)
    assert "1 passed" in out
    assert err == ""


def test_ipython_works(scripts: Scripts) -> None:
    pytest.importorskip("IPython", reason="IPython is not installed")
    scripts.write("beside.py", BESIDE)
    # IPython's own traits may warn; ours would name parcoll.
    out, err = scripts.run("-m", "IPython", "--no-banner", "--colors=NoColor", "-c", SCRIPT)
    assert "done" in out
    assert "parcoll" not in err
    assert "Traceback" not in out + err


def test_a_notebook_s_kernel_works(scripts: Scripts) -> None:
    """A cell that is run again defines its classes and functions anew."""
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    scripts.write("beside.py", BESIDE)
    scripts.write("cell.py", SCRIPT)
    notebook = """
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel()
        def show(message):
            if message["msg_type"] in ("stream", "error"):
                print(message["content"].get("text") or message["content"]["evalue"], end="")
        for _ in range(2):
            client.execute_interactive(open("cell.py").read(), timeout=50, output_hook=show)
        client.stop_channels()
        manager.shutdown_kernel()
    """
    out, err = scripts.run(scripts.write("notebook.py", notebook))
    assert out == "done\ndone\n"
    assert "Traceback" not in err


# What main defines --------------------------------------------------------------------------------


def test_classes_of_main_are_the_same_on_the_way_there_and_back(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        import dataclasses, enum, typing
        from parcoll import parallel
        class Base:
            def __init__(self, x): self.x = x
            def __eq__(self, other): return isinstance(other, Base) and self.x == other.x
            __hash__ = None
        class Derived(Base):
            def grown(self): return type(self)(self.x + 1)
        @dataclasses.dataclass(frozen=True)
        class Row:
            x: int
            y: str = "y"
        class Pair(typing.NamedTuple):
            a: int
            b: int
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
        class Bits(enum.IntFlag):
            ONE = 1
            TWO = 2
        make = lambda x: (Derived(x), Row(x), Pair(x, x), Color(x % 2 + 1), Bits.ONE | Bits.TWO)
        rows = list(parallel(range(30)).map(make))
        assert rows == [make(x) for x in range(30)]
        for derived, row, pair, color, bits in rows:
            assert type(derived) is Derived and isinstance(derived, Base)
            assert type(row) is Row and type(pair) is Pair and type(bits) is Bits
            assert color in (Color.RED, Color.BLUE) and (color is Color.RED) == (derived.x % 2 == 0)
        def known(row):
            derived, record, pair, color, bits = row
            return (isinstance(derived, Base), type(record) is Row, type(pair) is Pair,
                    color is Color.RED or color is Color.BLUE, bits is not None)
        assert set(parallel(rows).map(known)) == {(True,) * 5}
        assert list(parallel(rows).map(lambda row: row[0].grown())) == [Derived(x + 1) for x in range(30)]
        print("all as expected")
        """
    )
    assert out == "all as expected\n"


def test_every_kind_of_callable_of_main_works(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        import functools, operator
        from parcoll import parallel
        table = {x: x * x for x in range(50)}
        def look_up(x): return table[x]
        def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        def adder(n):
            def add(x): return x + n
            return add
        def traced(func):
            @functools.wraps(func)
            def wrapper(*args): return func(*args)
            return wrapper
        @traced
        def decorated(x, y=3): return x + y
        def pair(x):
            yield x
            yield -x
        class Scale:
            def __init__(self, by): self.by = by
            def __call__(self, x): return x * self.by
            def method(self, x): return x + self.by
            @classmethod
            def of_class(cls, x): return cls(x).by
            @staticmethod
            def of_static(x): return x
        scale = Scale(3)
        counted = iter(range(3))
        later = lambda x: defined_later(x)
        def defined_later(x): return x - 1
        functions = [look_up, factorial, even, adder(7), decorated, scale, scale.method,
                     Scale.of_class, Scale.of_static, later, functools.partial(pow, 2),
                     functools.partial(look_up), operator.neg, str, (5).__add__, [0, 2, 4].index]
        for function in functions[:-1]:
            got = list(parallel(range(20)).map(function))
            assert got == [function(x) for x in range(20)], function
        assert list(parallel([0, 4]).map(functions[-1])) == [0, 2]
        assert list(parallel(range(5)).flatmap(pair)) == [y for x in range(5) for y in pair(x)]
        assert list(parallel(range(20)).filter(even)) == list(range(0, 20, 2))
        assert parallel(range(20)).reduce(lambda a, b: scale(a) - b) == functools.reduce(
            lambda a, b: scale(a) - b, range(20))
        print("all as expected")
        """
    )
    assert out == "all as expected\n"


def test_a_cached_function_of_main_works(scripts: Scripts) -> None:
    """`lru_cache` makes an object in C that cloudpickle takes for importable."""
    out = scripts.run_file(
        """
        import functools
        from parcoll import parallel
        @functools.lru_cache(maxsize=None)
        def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
        print(list(parallel(range(12)).map(fibonacci)))
        """
    )
    assert out == "[0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89]\n"


def test_a_changed_global_is_seen_by_the_next_evaluation(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        from parcoll import parallel
        factor = 1
        scaled = parallel(range(4)).map(lambda x: x * factor)
        print(list(scaled))
        factor = 10
        print(list(scaled))
        """
    )
    assert out == "[0, 1, 2, 3]\n[0, 10, 20, 30]\n"


def test_what_workers_print_comes_out_whole(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        from parcoll import parallel
        list(parallel(range(200)).map(lambda x: print("element", x)))
        """
    )
    assert sorted(out.splitlines()) == sorted(f"element {x}" for x in range(200))


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


def test_an_imported_module_may_evaluate_at_its_top_level(scripts: Scripts) -> None:
    """Workers import such a module to get at its functions, and must not hang in its top-level code."""
    scripts.write(
        "prepared.py",
        """
        from parcoll import parallel
        def square(x): return x * x
        squares = list(parallel(range(10)).map(square))
        """,
    )
    out = scripts.run("-c", "import prepared; print(prepared.squares)")
    assert out == ("[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n", "")


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
