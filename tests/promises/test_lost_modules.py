"""Modules that another process would not find by their names: loaded from a file, made by hand, moved."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.abc
import importlib.util
import os
import sys
import textwrap
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import distributed
import numpy as np
import pytest
from scripts import Scripts
from ways import HERE, WAYS, One, connected

from parcoll import connect, parallel
from parcoll.wire.payload import Packed
from parcoll.world import boot

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


@pytest.fixture(scope="module", params=["local", "bare", "inline"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Evaluate on a local cluster, on one of dask's own processes, and in this process."""
    if request.param == "inline":
        with connect("inline"):
            yield "local"
        return
    with connected(request.param, tmp_path_factory.mktemp("place")):
        yield request.param


Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Give what loads a module from a file that is on no search path, as Python's documentation says."""
    before: dict[str, ModuleType | None] = {}

    def loaded(name: str, text: str, file: str = "") -> ModuleType:
        path = tmp_path / (file or f"{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        before.setdefault(name, sys.modules.get(name))
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield loaded
    for name, module in before.items():  # and no others: what was imported meanwhile is everybody's
        for found in [found for found in sys.modules if found == name or found.startswith(f"{name}.")]:
            del sys.modules[found]
        if module is not None:
            sys.modules[name] = module


Make = Callable[[str, str], Any]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Give what makes a module by hand."""

    def make(name: str, text: str) -> Any:
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(text, vars(module))
        return module

    return make


TEXT = """
import dataclasses
factor = 3
@dataclasses.dataclass
class Row:
    x: int

def times(x): return factor * x
def row(x): return Row(x)
"""


@pytest.mark.parametrize("name", ["l_plugin", "l-plugin.one", "l_space.one"])
def test_a_module_loaded_from_a_file(one: One, load: Load, name: str) -> None:
    module = load(name, TEXT, file="plugin.py")
    assert one(module.times) == one(lambda x: module.times(x)) == 3
    assert one(module.row) == one(lambda x: module.Row(x)) == module.Row(1)
    assert type(one(module.row)) is module.Row
    assert list(parallel([module.Row(4)]).map(lambda row: (row.x, type(row).__module__))) == [(4, name)]
    module.factor = 5
    assert one(lambda x: module.times(x)) == 5


def test_a_function_imports_it(one: One, load: Load) -> None:
    module = load("l_plugin", TEXT)

    def use(x: int) -> Any:
        import l_plugin  # type: ignore[import-not-found]

        return l_plugin.times(x), l_plugin.Row(x)

    assert one(use) == (3, module.Row(1))


def test_one_that_has_the_name_of_another(one: One, load: Load) -> None:
    """Workers would import the other one, which is on their path."""
    module = load("colorsys", "def rgb_to_hls(x): return 'mine', x\n")
    assert one(lambda x: module.rgb_to_hls(x)) == ("mine", 1)


def test_a_package(one: One, load: Load, tmp_path: Path) -> None:
    (tmp_path / "l_package").mkdir()
    (tmp_path / "l_package" / "part.py").write_text("def half(x): return x / 2\n")
    (tmp_path / "l_package" / "late.py").write_text("def third(x): return x / 3\n")
    package = load("l_package", "from . import part\nfrom .part import half\n", file="l_package/__init__.py")

    def late(x: int) -> Any:
        from l_package import late  # type: ignore[import-not-found]

        return late.third(x)

    assert one(package.half) == one(lambda x: package.part.half(x)) == 0.5
    assert one(late) == 1 / 3


def test_a_file_that_was_edited(one: One, load: Load) -> None:
    module = load("l_plugin", TEXT)
    assert one(module.times) == 3
    module = load("l_plugin", TEXT.replace("factor * x", "-factor * x"))
    assert one(module.times) == -3


def test_modules_made_by_hand(one: One) -> None:
    module: Any = types.ModuleType("l_made")
    sys.modules["l_made"] = module
    exec(TEXT, vars(module))
    try:
        assert one(module.times) == one(lambda x: module.times(x)) == 3
        assert type(one(module.row)) is module.Row
        module.factor = 4
        assert one(lambda x: (module.factor, module.times(x))) == (4, 4)
    finally:
        del sys.modules["l_made"]
    assert one(lambda x: (module.factor, module.times(x))) == (4, 4), "it is nobody's any more"


@pytest.mark.parametrize("within", [False, True], ids=["plain", "workers were in this process"])
def test_a_finder_of_the_user_s_own(one: One, monkeypatch: pytest.MonkeyPatch, within: bool) -> None:
    if within:  # they leave a finder here that asks all others
        options: dict[str, Any] = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
        with (
            distributed.LocalCluster(**options, dashboard_address=None) as cluster,
            cluster.get_client() as client,
        ):
            assert list(parallel([1], client=client).map(str)) == ["1"]

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name: str, path: object, target: object = None) -> Any:
            return importlib.util.spec_from_loader(name, self) if name == "l_found" else None

        def exec_module(self, module: ModuleType) -> None:
            vars(module).update(value=42)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    module: Any = importlib.import_module("l_found")
    try:
        assert one(lambda x: module.value + x) == 43
        module.value = 1
        assert one(lambda x: module.value + x) == 2
    finally:
        del sys.modules["l_found"]


def test_a_search_path_that_has_changed(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that functions import, and the script does not, is that of the path as it is now."""
    if way not in HERE:
        pytest.skip("it belongs to a machine")
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "l_moved.py").write_text(f"def value(): return {number}\n")

    def use(_: object) -> Any:
        import l_moved  # type: ignore[import-not-found]

        return l_moved.value()

    try:
        for number in (1, 2, 1):
            with monkeypatch.context() as patched:
                patched.syspath_prepend(tmp_path / str(number))
                for call in (WAYS["local"], WAYS["local-timeout"]):
                    answers = {call(use) for _ in range(4)}
                    if "l_moved" not in sys.modules:  # else functions run here
                        assert answers == {number}
        with monkeypatch.context() as patched:
            patched.syspath_prepend(tmp_path / "1")
            module = importlib.import_module("l_moved")
        assert WAYS["local"](lambda _: module.value()) == module.value(), "the script has imported it before"
    finally:
        sys.modules.pop("l_moved", None)


def test_a_script_run_by_runpy(scripts: Scripts) -> None:
    scripts.write(
        "run_by.py",
        """
        import enum, functools, typing
        from parcoll import parallel
        Id = typing.NewType("Id", int)
        T = typing.TypeVar("T")
        class Kind(enum.Enum):
            A = 1
        class Box(typing.Generic[T]):
            def __init__(self, x: T): self.x = x
        @functools.lru_cache
        def cached(x): return x + 1
        def boxed(x) -> Id: return Box[int](x).x, Kind.A, Id(x), cached(x)
        found = list(parallel([1]).map(boxed))
        print(found == [(1, Kind.A, 1, 2)], found[0][1] is Kind.A)
        """,
    )
    for name in ("", ", run_name='other'", ", run_name='__main__'"):
        code = f"import runpy; runpy.run_path('run_by.py'{name})"
        assert scripts.run("-c", code) == ("True True\n", "")


def test_installed_packages_are_none_of_these() -> None:
    boot.look_for_lost()
    before = set(boot.made_code)  # of other tests
    for name in ("numpy", "pandas", "pyarrow", "IPython", "aiohttp", "lxml.etree"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    boot.look_for_lost()
    assert boot.made_code <= before


def pickles(value: Any) -> bool:
    """Tell whether a value goes by what is in it, rather than by its names."""
    boot.look_for_lost()
    head = Packed.pack(value).head
    return b"_make_skeleton_class" in head or b"make_function" in head


def test_only_what_is_of_a_made_module_goes_by_value(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook it is there for good, and all that other cells evaluate travels beside it."""
    numbers = np.zeros(3, [("x", float)]).view(np.recarray)
    elements: list[Any] = [numbers, {"x": functools.partial(int, base=7)}, Path, "of l_made"]
    before = Packed.pack(elements).head
    module = made("l_made", TEXT)
    boot.look_for_lost()
    monkeypatch.delitem(sys.modules, "numpy.rec", raising=False)  # numpy imports it where it is asked for
    assert Packed.pack(elements).head == before
    assert pickles(module.times)
    assert pickles([1, module.Row(1)])
    long = made("l" * 300, TEXT)
    assert pickles([1, long.Row(1)])
    del sys.modules["l_made"]
    assert pickles([module.Row(1)])


def test_a_class_without_methods_of_a_made_module(one: One, made: Make) -> None:
    module = made("l_bare", "class Row: pass\n")
    row = module.Row()
    row.x = 5
    assert list(parallel([row]).map(lambda row: (row.x, type(row) is module.Row))) == [(5, True)]


def test_one_that_was_put_in_the_place_of_another(one: One, load: Load, made: Make) -> None:
    """As tests and notebooks do with what they cannot ask: the table of modules is as long as before."""
    module = load("l_asked", "def ask(x): return 'real', x\n")
    assert one(module.ask) == ("real", 1)
    fake = made("l_asked", "def ask(x): return 'fake', x\n")
    assert one(fake.ask) == one(lambda x: fake.ask(x)) == ("fake", 1)


def test_modules_that_are_gone_are_not_kept(way: str, made: Make) -> None:
    module = made("l_made", TEXT)
    assert list(parallel([1]).map(module.times)) == [3]
    gone = weakref.ref(module)
    del sys.modules["l_made"], module
    assert list(parallel([1]).map(abs)) == [1]
    gc.collect()
    assert gone() is None
