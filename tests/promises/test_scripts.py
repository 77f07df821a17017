"""A script needs no guard, and finds its own functions and modules, however it is run."""

from __future__ import annotations

import os

import pytest
from scripts import Scripts, lines

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
