"""Data files beside modules of the user's own travel with them to workers that have none of it."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bare import BareCluster, bare_cluster
from scripts import Scripts

from parcoll import connect, parallel
from parcoll.wire import own_modules
from parcoll.wire.own_modules import sources_for

PACKAGE = """
import importlib.resources
import inspect
import json
import pkgutil
from pathlib import Path

HERE = Path(__file__).parent
AT_IMPORT = (HERE / "words.txt").read_text()

def resource(name):
    return importlib.resources.files(__package__).joinpath(name).read_text()

def inner_resource():
    return importlib.resources.files("d_package.data").joinpath("deep.json").read_text()

def loaded():
    return pkgutil.get_data("d_package", "data/deep.json"), pkgutil.get_data("d_package", "raw.bin")

def beside():
    names = sorted(path.name for path in HERE.iterdir() if path.name[0] != "_")
    return json.loads((HERE / "data" / "deep.json").read_text()), names

def source():
    from d_package import part
    return inspect.getsource(source), inspect.getsource(part), inspect.getsource(part.Kind)
"""

MODULE = """
import json
from pathlib import Path

def table():
    return json.loads(Path(__file__).with_name("d_table.json").read_text())

def of(name):
    return (Path(__file__).parent / "d_texts" / f"{name}.txt").read_text()

def own_text():
    return Path(__file__).read_text()
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """Give a cluster of one worker, whose folder is elsewhere."""
    with bare_cluster(tmp_path_factory.mktemp("bare"), 1) as cluster, connect(cluster.file):
        yield cluster


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder on the path, and forget its modules afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("d_")]:
        del sys.modules[name]


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())


@pytest.fixture
def package(folder: Path) -> Path:
    write(folder / "d_package/__init__.py", PACKAGE)
    write(folder / "d_package/part.py", "class Kind:\n    x = 1\n")
    write(folder / "d_package/words.txt", "zwölf\n")
    write(folder / "d_package/raw.bin", bytes(range(256)))
    write(folder / "d_package/data/deep.json", '{"deep": 1}')
    return folder / "d_package"


def one(func: Callable[[Any], Any], **settings: Any) -> Any:
    return next(iter(parallel([1], **settings).map(func)))


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_package_finds_its_files(bare: BareCluster, package: Path, timeout: float | None) -> None:
    import d_package

    def ask(_: object) -> tuple[Any, ...]:
        found = d_package.AT_IMPORT, d_package.resource("words.txt"), d_package.inner_resource()
        return *found, d_package.loaded(), d_package.beside(), d_package.source()

    assert one(ask, timeout=timeout) == ask(0)
    there = one(lambda _: d_package.__file__, timeout=timeout)
    assert one(lambda _: d_package.HERE, timeout=timeout) == Path(there).parent
    assert not Path(there).is_relative_to(package.parent)
    assert Path(there).is_relative_to(bare.folder), "it is removed with the worker's own folder"


def test_a_namespace_package(bare: BareCluster, folder: Path) -> None:
    text = "import pkgutil\ndef data():\n    return pkgutil.get_data(__name__, 'a.txt')\n"
    write(folder / "d_space/inner/tool.py", text)
    write(folder / "d_space/inner/a.txt", "here")
    tool = importlib.import_module("d_space.inner.tool")

    def resource(_: object) -> tuple[bytes, str]:
        files = importlib.resources.files("d_space.inner")
        return tool.data(), files.joinpath("a.txt").read_text()

    assert one(resource) == (b"here", "here")


def test_a_module_that_is_no_package(bare: BareCluster, folder: Path) -> None:
    write(folder / "d_module.py", MODULE)
    write(folder / "d_table.json", "[1, 2]")
    write(folder / "d_texts/one.txt", "first")
    write(folder / "results.csv", "not named")
    module = importlib.import_module("d_module")
    assert one(lambda _: (module.table(), module.of("one"), module.own_text())) == ([1, 2], "first", MODULE)
    assert not any(name.endswith("results.csv") for name in sources_for(module.table))


def test_a_function_that_looks_beside_a_module_of_which_it_is_not(bare: BareCluster, folder: Path) -> None:
    write(folder / "d_bare.py", "x = 1\n")
    write(folder / "d_beside.txt", "beside")
    write(folder / "d_inner/deep.txt", "deep")
    module = importlib.import_module("d_bare")

    def read(_: object) -> tuple[Any, ...]:
        deep = Path(module.__file__ or "").parent / "d_inner" / "deep.txt"
        return module.x, pkgutil.get_data("d_bare", "d_beside.txt"), deep.read_text()

    assert one(read) == (1, b"beside", "deep")
    assert one(lambda _: Path(module.__file__ or "").is_relative_to(folder)) is False


def test_a_file_that_changes_is_the_new_one_and_the_module_stays(bare: BareCluster, package: Path) -> None:
    import d_package

    one(lambda _: setattr(d_package, "noted", 7))
    write(package / "words.txt", "new")
    write(package / "more.txt", "another")
    assert one(lambda _: (d_package.resource("words.txt"), d_package.resource("more.txt"))) == (
        "new",
        "another",
    )
    assert one(lambda _: (d_package.AT_IMPORT, d_package.noted)) == ("zwölf\n", 7)


def test_a_nested_evaluation_finds_them_too(bare: BareCluster, package: Path) -> None:
    import d_package

    def outer(_: object) -> list[str]:
        return list(parallel([1, 2]).map(lambda _: d_package.resource("words.txt")))

    assert one(outer) == ["zwölf\n"] * 2


def test_a_bag_that_dask_computes_has_them(bare: BareCluster, package: Path) -> None:
    import d_package

    with bare.client() as client:
        bag = parallel([1]).map(lambda _: d_package.resource("words.txt")).bag
        assert client.compute(bag).result(timeout=30) == ["zwölf\n"]


def test_what_is_too_large_stays_and_is_named_once(
    bare: BareCluster, package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import d_package

    monkeypatch.setattr(own_modules, "DATA_BYTES", 2**20)
    write(package / "large.bin", os.urandom(2**20))
    write(package / ".hidden/secret.txt", "hidden")
    write(package / "__pycache__/x.pyc", "bytecode")
    (package / "nowhere.txt").symlink_to(package / "missing")
    os.mkfifo(package / "pipe")
    caplog.set_level(logging.WARNING, "parcoll")
    for _ in range(2):
        found = sources_for(d_package.resource)
    assert sorted(name for name in found if "/" in name) == [
        f"d_package/{name}" for name in ("data/deep.json", "raw.bin", "words.txt")
    ]
    (said,) = caplog.messages
    assert "the data files of the module 'd_package' are more than 1 MiB" in said
    assert str(package / "large.bin") in said
    with pytest.raises(FileNotFoundError, match=r"large\.bin"):
        one(lambda _: (d_package.HERE / "large.bin").read_bytes())


REGISTRIES = """
from collections import defaultdict
from pathlib import Path
HERE = Path(__file__).parent
listed = []
called = list()
kinds = set()
places = [HERE / "first"]
by_kind = defaultdict(list)
def plugin(func):
    listed.append(func)
    called.append(func)
    kinds.add(func)
    by_kind["all"].append(func)
    return func
def names():
    found = [listed, called, kinds, by_kind["all"]]
    return [[func.__name__ for func in part] for part in found], [path.name for path in places]
"""


def script_of(scripts: Scripts, bare: BareCluster, text: str) -> str:
    """Run a script beside the modules that it has written; return what it prints."""
    process = scripts.start_file(text, env={"DASK_SCHEDULER_ADDRESS": bare.address})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), err
    return str(out)


def test_registries_of_functions_whose_file_stands_beside_the_module(
    bare: BareCluster, scripts: Scripts
) -> None:
    """The code of such a function names its file, and so the module's folder; no value is made of that."""
    scripts.write("d_plugins.py", REGISTRIES)
    text = """
    import d_plugins
    from parcoll import parallel
    @d_plugins.plugin
    def double(x):
        return 2 * x
    print(*parallel([1]).map(lambda _: d_plugins.names()))
    """
    assert script_of(scripts, bare, text) == "([['double'], ['double'], ['double'], ['double']], ['first'])\n"


def test_the_next_script_finds_what_the_import_gives(bare: BareCluster, scripts: Scripts) -> None:
    """A list that cannot travel, and one that is made of the folder, have nothing of the script before."""
    scripts.write("d_plugins.py", REGISTRIES.replace("found = [", "found = [] and ["))
    begin = "import d_plugins\nfrom parcoll import parallel\n"
    look = "print(*parallel([1]).map(lambda _: (len(d_plugins.listed), d_plugins.names())))"
    first = "list(parallel([1]).map(lambda _: len(d_plugins.places)))\n"  # so that what follows is a change
    first += "d_plugins.listed.append(1)\nd_plugins.places.append(d_plugins.HERE / 'second')\n"
    assert script_of(scripts, bare, begin + first + look) == "(1, ([], ['first', 'second']))\n"
    second = "d_plugins.listed.append(x for x in ())\n"
    assert script_of(scripts, bare, begin + second + look) == "(0, ([], ['first']))\n"


def test_nothing_of_it_is_left(tmp_path: Path, package: Path) -> None:
    import d_package

    with bare_cluster(tmp_path / "ends", 0) as cluster:
        worker = cluster.add_worker()
        cluster.wait_for_workers(1)
        with connect(cluster.file):
            there = Path(one(lambda _: d_package.__file__))
            assert there.exists()
        worker.terminate()
        worker.wait(30)
        assert not there.exists()
