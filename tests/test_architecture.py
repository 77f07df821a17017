"""The shape of the code: rooms in one order of imports, read from the folders; what `import parcoll` loads.

A room is a folder of `src/parcoll`. The modules beside the folders are one room more: the ground.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import parcoll

ROOT = Path(parcoll.__file__).parent
TESTS = Path(__file__).parent
# From the ground up. Rooms of one row do not import each other.
ORDER = [
    {"ground"},
    {"wire"},
    {"chain", "world"},
    {"calls", "files", "keys", "output"},
    {"worker"},
    {"checkpoint", "watch"},
    {"local"},
    {"evaluation"},
    {"cluster"},
    {"connecting"},
    {"front"},
]
# What a worker loads, which needs no more than every dask worker has.
ON_WORKERS = {"ground", "wire", "chain", "world", "calls", "files", "keys", "output", "worker"}
# These have modules that load distributed, and these one that loads dask.bag.
USE_DISTRIBUTED = {"worker", "watch", "local", "cluster"}
USE_BAGS = {"evaluation.bag", "front.sources"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


class Statement(NamedTuple):
    """One import: where it stands, what it names, and whether only type checkers run it."""

    line: int
    within: bool  # a function, or a condition
    names: set[str]
    for_types: bool


@functools.cache
def statements(path: Path) -> list[Statement]:
    """Return the import statements of a file, wherever they stand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    type_only = {
        inner for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING" for inner in ast.walk(block)
    }
    found: list[Statement] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        found.append(Statement(node.lineno, node.col_offset > 0, names, node in type_only))
    return found


def imported(path: Path) -> set[str]:
    """Return all modules that a file names in an import: those for types, and in functions, count as well."""
    return {name for statement in statements(path) for name in statement.names}


def ours(path: Path) -> set[str]:
    """Return the modules of parcoll among them."""
    return {name.removeprefix("parcoll.") for name in imported(path)} & MODULES.keys()


IMPORTS = {name: ours(path) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    if "." in module:
        return module.partition(".")[0]
    return "ground"


def row_of(room: str) -> int:
    (row,) = [row for row, rooms in enumerate(ORDER) if room in rooms]
    return row


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_imports_from_rooms_below_it_only(name: str):
    room = room_of(name)
    above = {m for m in IMPORTS[name] if room_of(m) != room and row_of(room_of(m)) >= row_of(room)}
    assert not above, f"{name} imports {above}, which stand above it"


def test_no_import_leads_back_to_where_it_started():
    circle: list[str] = []
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_an_import_within_a_function_says_why(name: str):
    """A circle is not a reason: only start-up time, or a module that need not be there."""
    lines = ["", *MODULES[name].read_text(encoding="utf-8").splitlines()]
    hidden = [
        statement.line
        for statement in statements(MODULES[name])
        if statement.within
        and not statement.for_types
        and any(found.partition(".")[0] == "parcoll" for found in statement.names)
        and "# lazy: " not in lines[statement.line]
    ]
    assert not hidden, f"{name} imports within functions without `# lazy: why` at lines {hidden}"


def test_rooms_are_few_and_each_holds_few_modules():
    assert set().union(*ORDER) == {*FOLDERS, "ground"}
    assert len(FOLDERS) <= 15
    sizes = {folder: sum(room_of(name) == folder for name in MODULES) for folder in FOLDERS}
    assert {folder: size for folder, size in sizes.items() if size > 13} == {}
    assert sum("." not in name for name in MODULES) <= 9


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room_of(name) in ON_WORKERS))
def test_what_runs_on_workers_needs_what_every_dask_worker_has(name: str):
    # psutil and tblib are among distributed's own dependencies.
    allowed = sys.stdlib_module_names | {
        "parcoll",
        "cloudpickle",
        "tblib",
        "psutil",
        "distributed",
        "dask",
        "fsspec",
    }
    assert {module.split(".")[0] for module in imported(MODULES[name])} <= allowed


@pytest.mark.parametrize("name", sorted(MODULES))
def test_few_rooms_load_distributed_and_two_modules_dask_bag(name: str):
    loaded = {
        n for statement in statements(MODULES[name]) if not statement.for_types for n in statement.names
    }
    if room_of(name) not in USE_DISTRIBUTED:
        assert not {module for module in loaded if module.split(".")[0] == "distributed"}
    if name not in USE_BAGS:
        assert not {module for module in loaded if module.startswith("dask.bag")}


def test_importing_parcoll_loads_neither_dask_nor_distributed():
    dear = ["dask", "distributed", "numpy", "tblib"]
    code = f"import sys; from parcoll import *; print(sorted(set(sys.modules).intersection({dear})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_threads_may_begin_with_any_of_its_modules():
    """As the threads of a worker do, which unpickle its first tasks: no two wait for each other for ever."""
    code = """
import concurrent.futures, importlib, sys, threading
names = sys.argv[1:]
together = threading.Barrier(len(names))
def load(name):
    together.wait()
    importlib.import_module(name)
with concurrent.futures.ThreadPoolExecutor(len(names)) as threads:
    list(threads.map(load, names))
"""
    names = [
        f"parcoll.{name}" for name in MODULES if room_of(name) in ON_WORKERS and room_of(name) != "ground"
    ]
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_the_front_door_has_the_names_that_it_promises():
    """It imports a name's module when the name is asked for, and only then."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    shown = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert shown - {"TYPE_CHECKING", "Any", "not_a_collection"} == set(parcoll.__all__) <= set(dir(parcoll))
    assert all(getattr(parcoll, name).__name__ == name for name in parcoll.__all__)
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, parcoll.errors; print([m for m in sys.modules if 'parcoll.' in m])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "['parcoll.errors']\n"


def test_modules_stay_small():
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_files_of_tests_stay_small():
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {str(path.relative_to(TESTS)): lines for path, lines in files.items() if lines > 500} == {}


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by name, whichever folder they are in, and so do the workers of their clusters."""
    names = [path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py"]
    assert {name for name in names if names.count(name) > 1} == set()
