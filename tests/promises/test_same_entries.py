"""Functions find what the script has put where Python's libraries, and modules of its own, look for it."""

from __future__ import annotations

import abc
import builtins
import collections.abc
import contextlib
import copy
import csv
import functools
import gc
import gettext
import importlib
import logging
import multiprocessing
import numbers
import os
import pickle
import re
import sqlite3
import sys
import tempfile
import textwrap
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ways import HERE, One

from parcoll import parallel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


# Python's own libraries ---------------------------------------------------------------------------


class Point:
    """An object of a class of the user's own."""

    def __init__(self, x: int) -> None:
        self.x, self.made = x, "here"


def restored(x: int) -> Point:
    point = Point(x)
    point.made = "again"
    return point


def test_how_objects_are_pickled(one: One) -> None:
    def look(_: object) -> Any:
        return pickle.loads(pickle.dumps(Point(1))).made, copy.copy(Point(1)).made

    def text_of(match: re.Match[str]) -> Any:
        return str, (match.group(),)

    @contextlib.contextmanager
    def registered(kind: Any, reduce: Any) -> Iterator[None]:
        pickle.dispatch_table[kind] = reduce  # type: ignore[attr-defined]
        yield
        del pickle.dispatch_table[kind]  # type: ignore[attr-defined]

    assert one(look) == ("here", "here")
    with registered(Point, lambda point: (restored, (point.x,))):
        assert one(look) == look(0) == ("again", "again")
    with registered(re.Match, text_of):
        assert one(lambda _: re.match("a", "ab")) == "a"
    assert one(look) == ("here", "here")


def test_dialects_of_csv(one: One) -> None:
    def read(_: object) -> Any:
        return next(csv.reader(["a|'b|c'"], "bars"))

    csv.register_dialect("bars", delimiter="|", quotechar="'")
    assert one(read) == ["a", "b|c"]
    csv.register_dialect("bars", delimiter="|", quoting=csv.QUOTE_NONE)
    assert one(read) == ["a", "'b", "c'"]
    csv.unregister_dialect("bars")
    assert one(lambda _: "bars" in csv.list_dialects()) is False


def test_adapters_of_sqlite(one: One) -> None:
    def ask(_: object) -> Any:
        with contextlib.closing(sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_COLNAMES)) as database:
            return database.execute('select ?, ? as "x [point]"', (Point(1), "2")).fetchone()

    sqlite3.register_adapter(Point, lambda point: f"point {point.x}")
    sqlite3.register_converter("point", lambda text: int(text) * 10)
    try:
        assert one(ask) == ask(0) == ("point 1", 20)
    finally:
        sqlite3.adapters.pop((Point, sqlite3.PrepareProtocol))
        sqlite3.converters.pop("POINT")
    with pytest.raises(sqlite3.Error):
        one(ask)


def test_names_added_to_the_built_in_ones(one: One) -> None:
    gettext.install("of_no_program")
    builtins.limit = 5  # type: ignore[attr-defined]
    try:
        assert one(lambda x: (_("hello"), limit + x)) == ("hello", 6)  # type: ignore[name-defined]  # noqa: F821
    finally:
        del builtins._, builtins.limit  # type: ignore[attr-defined]
    assert one(lambda _: [hasattr(builtins, name) for name in ("_", "limit")]) == [False, False]


class Settings:
    """An object that changes in place, and whose comparison says so of no other."""

    level = 1

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


def test_a_name_among_the_built_in_ones_that_has_changed(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    def set_(limit: Any) -> Any:
        monkeypatch.setattr(builtins, "limit", limit, raising=False)
        return found()

    def found() -> Any:
        return one(lambda x: limit)  # type: ignore[name-defined]  # noqa: F821

    for value in (1, 1.0, True, None, (1,)):
        assert (type(set_(value)), set_(value)) == (type(value), value)
    numbers = [1]
    assert set_(numbers) == [1]
    numbers.append(2)
    assert found() == [1, 2]
    settings = Settings()
    assert set_(settings).level == 1
    settings.level = 2
    assert found().level == 2
    assert set_(Settings()).level == 1
    assert set_(lambda: 1)() == 1
    assert set_(lambda: 2)() == 2


def test_an_object_that_is_no_built_in_name_any_more_is_not_held(one: One) -> None:
    builtins.limit = Settings()  # type: ignore[attr-defined]
    assert one(lambda x: limit.level) == 1  # type: ignore[name-defined]  # noqa: F821
    gone = weakref.ref(builtins.limit)  # type: ignore[attr-defined]
    del builtins.limit  # type: ignore[attr-defined]
    gc.collect()
    assert gone() is None


def test_a_name_that_cannot_be_set_leaves_the_others(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    for name, value in (("refusing", Refusing()), ("after", 5)):
        monkeypatch.setattr(builtins, name, value, raising=False)
    assert one(lambda x: (hasattr(builtins, "refusing"), after)) == (False, 5)  # type: ignore[name-defined]  # noqa: F821


def test_registered_subclasses(one: One) -> None:
    class Row:
        def __len__(self) -> int:
            return 0

    class Shape(abc.ABC):  # noqa: B024 - it goes by value
        pass

    def look(_: object) -> Any:
        return (
            issubclass(Row, collections.abc.Sequence),
            isinstance(Row(), numbers.Number),
            issubclass(int, Shape),
        )

    assert one(look) == (False, False, False)
    collections.abc.Sequence.register(Row)
    Shape.register(int)
    assert one(look) == look(0) == (True, False, True)
    numbers.Number.register(Row)
    assert one(look) == look(0) == (True, True, True)


def test_levels_that_logging_lacks(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("parcoll_tests.levels")  # libraries have levels of such names as TRACE

    def chatter(self: logging.Logger, message: str) -> str:
        return f"{self.name} {message}"

    def look(_: object) -> Any:
        found = [getattr(logging, name, None) for name in ("CHATTY", "raiseExceptions", "DEBUG")]
        calls = [log.chatter("a") if hasattr(log, "chatter") else None, hasattr(log, "remark")]  # type: ignore[attr-defined]
        return *found, *calls, logging.Logger.info.__module__ == "logging"

    def on_all() -> set[Any]:
        return {one(look) for _ in range(4)}

    assert on_all() == {look(0)} == {(None, True, 10, None, False, True)}
    monkeypatch.setattr(logging, "CHATTY", 5, raising=False)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(logging.Logger, "chatter", chatter, raising=False)
    remark = functools.partialmethod(logging.Logger.log, 25)
    monkeypatch.setattr(logging.Logger, "remark", remark, raising=False)
    assert on_all() == {look(0)} == {(5, False, 10, "parcoll_tests.levels a", True, True)}
    monkeypatch.setattr(logging.Logger, "info", lambda self, message, *arguments: None)
    monkeypatch.setattr(logging.Logger, "chatter", lambda self, message: message)
    assert on_all() == {look(0)} == {(5, False, 10, "a", True, False)}
    monkeypatch.undo()
    assert on_all() == {look(0)} == {(None, True, 10, None, False, True)}


def test_how_warnings_are_shown(one: One, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "warnings")

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        with open(path, "a") as shown:
            shown.write(warnings.formatwarning(message, category, filename, lineno))

    monkeypatch.setattr(warnings, "showwarning", show)
    monkeypatch.setattr(warnings, "formatwarning", lambda message, *_: f"so: {message}\n")
    warnings.simplefilter("always")
    one(lambda _: warnings.warn("mind", stacklevel=1))
    assert Path(path).read_text() == "so: mind\n"
    monkeypatch.undo()
    warnings.simplefilter("always")
    assert one(lambda _: warnings.formatwarning("m", UserWarning, "f", 1)).startswith("f:1: UserWarning: m")


def test_folder_for_temporary_files(
    one: One, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way not in HERE:
        pytest.skip("it belongs to a machine")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert one(lambda _: tempfile.gettempdir()) == str(tmp_path)
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert one(lambda _: tempfile.gettempdir()) == str(tmp_path / "other")


def test_how_processes_and_threads_are_started(one: One) -> None:
    def look(_: object) -> Any:
        size = threading.stack_size()  # which sets it to 0
        threading.stack_size(size)
        return multiprocessing.get_start_method(allow_none=True), size

    before = look(0)
    multiprocessing.set_start_method("spawn", force=True)
    threading.stack_size(2**20)
    try:
        assert one(look) == look(0) == ("spawn", 2**20)
    finally:
        multiprocessing.set_start_method(before[0], force=True)
        threading.stack_size(before[1])


def test_a_folder_that_was_removed(
    one: One, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way not in HERE:
        pytest.skip("it belongs to a machine")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    def look(_: object) -> Any:
        try:
            return os.getcwd()
        except FileNotFoundError:
            return "gone"

    assert one(look) == look(0) == "gone"
    monkeypatch.undo()
    assert one(look) == os.getcwd()


# Modules of the user's own ------------------------------------------------------------------------

MODULE = """
import abc, functools

class Settings:
    _one = None
    def __new__(cls):
        if cls._one is None:
            cls._one = super().__new__(cls)
        return cls._one

settings = Settings()
settings.level = 1

class Pool:
    default = None
    known = {}
    def __init__(self, size):
        self.size = size

@functools.singledispatch
def show(x):
    return "object"

@show.register
def _(x: int):
    return "int"

def on(kind):
    def keep(func):
        on.handlers[kind] = func
        return func
    return keep

def bare(x):
    return getattr(bare, "factor", 1) * x

class Shape(abc.ABC):
    pass
"""

Make = Callable[[], ModuleType]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Give a module of the user's own."""
    (tmp_path / "e_module.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("e_module")
    sys.modules.pop("e_module", None)


def test_a_class_that_makes_one_object(one: One, module: ModuleType) -> None:
    def look(_: object) -> Any:
        return vars(module.settings), module.Settings() is module.settings

    assert one(look) == look(0) == ({"level": 1}, True)
    module.settings.level = 5
    assert one(look) == look(0) == ({"level": 5}, True)
    module.Settings().name = "a"
    assert one(look) == look(0) == ({"level": 5, "name": "a"}, True)


def test_objects_that_classes_have(one: One, module: ModuleType) -> None:
    def look(_: object) -> Any:
        return getattr(module.Pool.default, "size", None), {n: p.size for n, p in module.Pool.known.items()}

    assert one(look) == look(0) == (None, {})
    module.Pool.default = module.Pool(4)
    module.Pool.known["a"] = module.Pool(1)
    assert one(look) == look(0) == (4, {"a": 1})
    module.Pool.default.size = 9
    module.Pool.known["a"].size = 2
    assert one(look) == look(0) == (9, {"a": 2})
    module.Pool.default = None
    assert one(look) == look(0) == (None, {"a": 2})


def test_what_is_registered_with_a_dispatching_function(one: One, module: ModuleType) -> None:
    def look(_: object) -> Any:
        return [module.show(x) for x in (1, 2.0, "a", Point(1))]

    assert one(look) == look(0) == ["int", "object", "object", "object"]
    module.show.register(float, lambda x: "float")
    module.show.register(Point, lambda x: f"point {x.x}")
    assert one(look) == look(0) == ["int", "float", "object", "point 1"]
    module.show.register(str, lambda x: "text")
    assert one(look) == look(0) == ["int", "float", "text", "point 1"]


def test_attributes_of_functions(one: One, module: ModuleType) -> None:
    module.on.handlers = {}

    @module.on("twice")  # type: ignore[untyped-decorator]
    def twice(x: int) -> int:
        return 2 * x

    assert one(lambda x: (module.on.handlers["twice"](x), module.bare(x))) == (2, 1)
    module.bare.factor = 3
    assert one(lambda x: (module.on.handlers["twice"](x), module.bare(x))) == (2, 3)
    module.bare.factor = 4
    assert one(lambda x: (module.on.handlers["twice"](x), module.bare(x))) == (2, 4)
    del module.bare.factor
    assert one(module.bare) == 1


def test_subclasses_registered_with_a_class_of_a_module(one: One, module: ModuleType) -> None:
    assert one(lambda _: isinstance(Point(1), module.Shape)) is False
    module.Shape.register(Point)
    assert one(lambda _: isinstance(Point(1), module.Shape)) is True


def test_two_evaluations_at_once_have_their_own(way: str) -> None:
    """What functions of the script register is of the program that runs, in the same worker."""

    def told() -> Any:
        return list(
            parallel(range(8), partition_size=1).map(lambda x: pickle.loads(pickle.dumps(Point(x))).made)
        )

    pickle.dispatch_table[Point] = lambda point: (restored, (point.x,))  # type: ignore[attr-defined]
    first = iter(
        parallel(range(8), partition_size=1).map(lambda x: pickle.loads(pickle.dumps(Point(x))).made)
    )
    got = [next(first)]
    del pickle.dispatch_table[Point]  # type: ignore[attr-defined]
    assert told() == ["here"] * 8
    got += list(first)
    assert got == ["again"] * 8
