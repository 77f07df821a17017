"""What the program has changed in its modules is noticed, and what it has not is not packed again."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from parcoll.world import boot, content, own_state

TEXT = """
import enum, functools, math, random, threading
from w_other import imported

limit = 1
rows = [1]

def named(x):
    return x

class Kept:
    limit = 1
    class Inner:
        limit = 1
    def method(self, x=1, *, y=[1]):
        return x
    @staticmethod
    def static(x=1):
        return x

class Other(Kept):
    pass

class Cache:
    def __init__(self):
        self.lock, self.found = threading.Lock(), {}

class Color(enum.Enum):
    RED = 1

def made(start, *, step=1):
    total = [start]
    def add(x: int, more=(1, [2]), *, by=None):
        return total, limit, rows, step, x, other()
    def other():
        return start
    return add

@functools.lru_cache
def cached(x):
    return x

@functools.singledispatch
def dispatching(x):
    return x

table = {
    "cached": cached,
    "lambda": lambda x: x + limit,
    "closure": made(1),
    "list": [lambda x: [y + limit for y in x], named, len, math.sqrt, Kept, {"deep": (made(2),)}],
    "partial": functools.partial(made(3), [4], more=[5]),
    "other": imported,
    "text": "text",
}
alone = made(5)
cache = Cache()
numbers = random.Random(7)
same_rows = {"rows": rows}
"""
OTHER = "def imported(x):\n    return x\nfactor = 1\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """Import two modules of the program's own."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "w_other.py").write_text(OTHER)
    (tmp_path / "w_own.py").write_text(textwrap.dedent(TEXT))
    importlib.invalidate_caches()
    found = importlib.import_module("w_own"), importlib.import_module("w_other")
    digest()  # a text of another module may become interned by it, which marshal writes otherwise
    yield found
    for module in found:
        del sys.modules[module.__name__]


def digest() -> str:
    found = own_state.read(of_machine=True)
    assert found is not None
    return found.digest


def cell(func: Any, name: str) -> Any:
    return func.__closure__[func.__code__.co_freevars.index(name)]


def replaced_code(own: Any) -> None:
    own.table["lambda"].__code__ = (lambda x: x - limit).__code__  # type: ignore[name-defined]  # noqa: F821


def swapped(own: Any) -> None:
    first, *rest = own.table["list"]
    own.table["list"][:] = [*rest, first]


CHANGES: dict[str, Callable[[Any], object]] = {
    "code": replaced_code,
    "default": lambda own: setattr(own.table["closure"], "__defaults__", (2, [3])),
    "within a default": lambda own: own.table["closure"].__defaults__[0][1].append(3),
    "default of a keyword": lambda own: own.table["closure"].__kwdefaults__.update(by=7),
    "attribute": lambda own: setattr(own.table["lambda"], "seen", 1),
    "variable around it": lambda own: setattr(cell(own.alone, "step"), "cell_contents", 9),
    "within a variable": lambda own: cell(own.alone, "total").cell_contents.append(9),
    "of a function around it": lambda own: setattr(
        cell(cell(own.alone, "other").cell_contents, "start"), "cell_contents", 8
    ),
    "deep": lambda own: cell(own.table["list"][5]["deep"][0], "total").cell_contents.append(1),
    "annotation": lambda own: own.alone.__annotations__.update(x=str),
    "name": lambda own: setattr(own.alone, "__name__", "alone"),
    "doc": lambda own: setattr(own.alone, "__doc__", "Text."),
    "global": lambda own: setattr(own, "limit", 2),
    "global list": lambda own: own.rows.append(2),
    "item": lambda own: own.table.update(text="other"),
    "key": lambda own: own.table.update(more=1),
    "order of keys": lambda own: own.table.update(text=own.table.pop("lambda")),
    "order": swapped,
    "function for another": lambda own: own.table["list"].__setitem__(1, lambda x: x),
    "argument of a partial": lambda own: own.table["partial"].args[0].append(1),
    "keyword of a partial": lambda own: own.table["partial"].keywords["more"].append(1),
    "attribute of a partial": lambda own: setattr(own.table["partial"], "seen", 1),
    "what a name leads to": lambda own: setattr(sys.modules["w_other"], "imported", len),
    "what a name of its own leads to": lambda own: setattr(own, "named", len),
    "cached one for another": lambda own: setattr(own, "cached", functools.lru_cache(own.named)),
    "class": lambda own: setattr(own, "Kept", int),
    "default of a function": lambda own: setattr(own.named, "__defaults__", (1,)),
    "default of a method": lambda own: setattr(own.Kept.method, "__defaults__", (2,)),
    "within a keyword of a method": lambda own: own.Kept.method.__kwdefaults__["y"].append(2),
    "default of a static method": lambda own: setattr(own.Kept.static, "__defaults__", (2,)),
    "code of a function": lambda own: setattr(own.named, "__code__", (lambda x: -x).__code__),
    "attribute of a method": lambda own: setattr(own.Kept.method, "seen", 1),
    "attribute of a function": lambda own: setattr(own.named, "seen", 1),
    "bases": lambda own: setattr(own.Other, "__bases__", (own.Kept.Inner,)),
    "of a class within a class": lambda own: setattr(own.Kept.Inner, "limit", 2),
    "deleted from a class": lambda own: delattr(own.Kept, "limit"),
    "attribute of a member": lambda own: setattr(own.Color.RED, "note", 1),
    "of an object with a lock": lambda own: own.cache.found.update(a=1),
    "what is registered": lambda own: own.dispatching.register(int, lambda x: -x),
    "a draw": lambda own: own.numbers.random(),
    "the same for another": lambda own: setattr(own, "same_rows", {"rows": [*own.rows]}),
    "nothing travels any more": lambda own: own.table.update(lock=sys.stdout),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(modules: tuple[ModuleType, ModuleType], change: str) -> None:
    own, _ = modules
    before = digest()
    assert digest() == before
    CHANGES[change](own)
    after = digest()
    assert after != before
    if change not in ("nothing travels any more", "code of a function"):
        assert own_state._modules[True].modules["w_own"].state.contents["table"].is_of(own.table)


@pytest.mark.parametrize("with_made", [False, True], ids=["", "beside a module made by hand"])
def test_what_is_the_same_is_not_pickled_again(
    modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, with_made: bool
) -> None:
    own, _ = modules
    if with_made:
        made = ModuleType("w_made")
        monkeypatch.setitem(sys.modules, "w_made", made)
        exec("def made(x): return x", vars(made))
        boot.look_for_lost()
        assert any(b"w_made" in name for name in boot.made_code)
    before, with_locks = digest(), content.with_locks
    pickled: list[Any] = []  # also of modules that other tests have loaded
    monkeypatch.setattr(content, "with_locks", lambda value: [pickled.append(value), with_locks(value)][1])
    assert digest() == before
    assert not [value for value in pickled if any(value is one for one in vars(own).values())]
    assert own_state._modules[True].modules["w_own"]._names.unchanged()


def test_a_module_that_is_to_be_pickled_by_value(modules: tuple[ModuleType, ModuleType]) -> None:
    """A function that has been sent by its name has its content sent then."""
    own, other = modules
    own.chosen = [functools.partial(other.imported)]
    before = digest()
    cloudpickle.register_pickle_by_value(other)
    try:
        assert digest() != before
    finally:
        cloudpickle.unregister_pickle_by_value(other)
    assert digest() == before
