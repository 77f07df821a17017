"""The shape of the code: who may import whom, and what `import parcoll` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import parcoll

ROOT = Path(parcoll.__file__).parent
MODULES = {
    "parcoll." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
}

# Each row may import the rows above it and those of its own row, never one below.
LAYERS = [
    {"text", "errors", "place", "system", "memory", "codec", "segments", "shipped", "call"}
    | {"naming", "log", "table", "switch", "arguments", "policy"},
    {"pickling", "failure", "failed", "outcome", "steps", "equality", "digest", "storage"},
    {"stats"},
    {
        "chain",
        "guard",
        "loops",
        "marks",
        "timing",
        "program",
        "source",
        "sizing",
        "shipping",
        "fingerprint",
        "checkpoint",
    },
    {
        "tasks",
        "bar",
        "subworker",
        "subworker_main",
        "blame",
        "isolation",
        "engine.certificate",
        "engine.lean",
        "engine.page",
        "engine.process",
    },
    {"graph", "engine.base", "engine.local", "engine.silence", "engine.collector", "engine.nesting"}
    | {"engine.bootstrap", "engine.opaque"},
    {"engine.clients", "engine.losses", "engine.publish", "engine.following", "engine.given_up", "watch"},
    {
        "engine.abandoned",
        "engine.ahead",
        "engine.gathering",
        "engine.joining",
        "engine.reports",
        "engine.sharing",
        "feed",
        "again",
    },
    {"run", "resuming"},
    {"engine.roles", "engine.session", "engine.distributed", "engine.inline", "engine.remote"},
    {"engine.host"},
    {"engine.cluster"},
    {"engine.choose"},
    {"evaluate", "folding", "node"},
    {"explain"},
    {"collection", "connection"},
    {"start"},
    {"reading"},
]
# What a worker loads needs no more than every dask worker has.
ON_WORKERS = {
    "call",
    "chain",
    "codec",
    "equality",
    "errors",
    "failed",
    "failure",
    "guard",
    "loops",
    "marks",
} | {
    *("naming", "outcome", "pickling", "place", "policy", "program", "segments", "shipped", "steps", "tasks"),
    *("blame", "isolation", "memory", "subworker", "subworker_main", "system"),
    *("text", "timing"),
}
# Modules that load distributed: the engine and its clients, the host process, and TLS for both.
USE_DISTRIBUTED = {
    "engine.bootstrap",
    "engine.certificate",
    "engine.clients",
    "engine.collector",
    "engine.distributed",
    "engine.host",
    "engine.joining",
    "engine.nesting",
    "engine.page",
    "engine.reports",
    "engine.roles",
    "engine.session",
}
# Modules that load dask.bag: the graph, and dask's own reader of text.
USE_BAGS = {"graph", "reading"}


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(module: str) -> int:
    (row,) = [row for row, names in enumerate(LAYERS) if module in names]
    return row


def ours(path: Path) -> set[str]:
    return {name.removeprefix("parcoll.") for name in imported(path) if name in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name: str):
    short = name.removeprefix("parcoll.")
    # steps asks for chain when dask itself runs a step: a chain is made of steps.
    below = {m for m in ours(MODULES[name]) if layer_of(m) > layer_of(short)} - (
        {"chain"} if short == "steps" else set()
    )
    assert not below, f"{short} imports {below} from a higher layer"


@pytest.mark.parametrize("name", sorted(ON_WORKERS))
def test_what_runs_on_workers_imports_the_standard_library_and_cloudpickle_only(name: str):
    # psutil is one of distributed's own dependencies.
    allowed = sys.stdlib_module_names | {"parcoll", "cloudpickle", "tblib", "psutil"}
    assert {module.split(".")[0] for module in imported(MODULES[f"parcoll.{name}"])} <= allowed
    assert ours(MODULES[f"parcoll.{name}"]) <= ON_WORKERS


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_engines_import_distributed_and_only_graph_and_reading_dask_bag(name: str):
    short = name.removeprefix("parcoll.")
    modules = imported(MODULES[name])
    type_only = short in ("collection", "reading", "start")  # for annotations
    if short not in USE_DISTRIBUTED and not type_only:
        assert not {m for m in modules if m.split(".")[0] == "distributed"}
    if short not in USE_BAGS and not type_only:
        assert not {m for m in modules if m.startswith("dask.bag")}


def test_importing_parcoll_loads_neither_dask_nor_distributed():
    code = "import sys, parcoll; print(sorted({'dask', 'distributed', 'numpy', 'tblib'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_modules_stay_small():
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
