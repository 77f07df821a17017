"""What a program brings of the script's `__main__`: how much, how often, and whose it is where it arrives."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from parcoll import Connection, connect, parallel
from parcoll.wire import script
from parcoll.wire.codec import dumps, loads
from parcoll.wire.reducers import sentinels
from parcoll.wire.script import Script, arrived
from parcoll.world import own_state
from parcoll.world.namespace import CODEC, of_main, pack_program

TEXT = """
import json, threading
from decimal import Decimal
class Point:
    def __init__(self, x): self.x = x
def double(x): return 2 * x
def quadruple(x): return double(double(x))
def by_text(name): return globals()[name]
def in_a_text(x): return len("double")
step = 10
table = {"a": [1, 2]}
large = bytes(1_000_000)
many = list(range(100_000))
lock = threading.Lock()
def locked(x, lock=threading.Lock()): return x
"""


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Have another `__main__` for a while."""
    module = types.ModuleType("__main__")
    exec(TEXT, vars(module))
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that lets something arrive as in another process."""
    monkeypatch.setattr(script, "_running", [])

    def arrive(content: bytes) -> Script:
        return arrived(content, CODEC)

    return arrive


def test_the_rest_of_the_script_is_small_and_whole(main: types.ModuleType, elsewhere: Any) -> None:
    content = of_main()
    assert len(content) < 10_000
    brought = elsewhere(content)
    assert set(brought.waiting) == {
        *("json", "threading", "Decimal", "Point", "double", "quadruple", "by_text", "in_a_text"),
        *("step", "table"),
    }
    assert brought.find("quadruple")(3) == 12
    assert brought.find("by_text")("double") is brought.find("double")
    assert vars(brought.module)["table"] == {"a": [1, 2]}
    assert brought.module.json.dumps([1]) == "[1]"
    assert brought.module.Decimal("1.5") == brought.find("Decimal")("1.5")
    with pytest.raises(AttributeError, match="has no attribute 'large'"):
        _ = brought.module.large


def test_what_functions_name_is_not_brought_twice(main: types.ModuleType) -> None:
    packed, content = pack_program([main.quadruple])
    brought = arrived(content, CODEC)
    assert not {"double", "quadruple"} & set(brought.waiting)
    with script.loading(brought):
        (quadruple,) = packed.load()
    assert quadruple.__globals__ is brought.names
    assert brought.names["quadruple"] is quadruple
    assert quadruple(2) == 8


def test_what_may_be_looked_for_by_text_is_loaded_at_once(main: types.ModuleType) -> None:
    brought = arrived(pack_program([main.by_text])[1], CODEC)
    brought.settle()
    assert brought.waiting == {}
    brought = arrived(pack_program([main.in_a_text])[1], CODEC)
    brought.settle()
    assert "double" in brought.names
    assert "step" in brought.waiting


def test_it_is_packed_again_only_where_it_has_changed(main: types.ModuleType) -> None:
    content = of_main()
    assert of_main() is content
    main.Point.y = 1
    changed = of_main()
    assert arrived(changed, CODEC).module.Point.y == 1
    main.table["a"].append(3)
    assert arrived(of_main(), CODEC).module.table == {"a": [1, 2, 3]}
    exec("def double(x): return 3 * x", vars(main))
    assert arrived(of_main(), CODEC).module.double(1) == 3


def test_what_is_not_there_yet_may_come(main: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("not_everywhere")
    exec("def func(x): return x", vars(plugin))
    monkeypatch.setitem(sys.modules, "not_everywhere", plugin)
    main.func = plugin.func
    brought = arrived(of_main(), CODEC)
    monkeypatch.delitem(sys.modules, "not_everywhere")
    with pytest.raises(AttributeError, match="'func' of '__main__' cannot be loaded here"):
        brought.find("func")
    monkeypatch.setitem(sys.modules, "not_everywhere", plugin)
    assert brought.find("func")(1) == 1


def test_the_script_s_own_names_are_never_the_module_s(main: types.ModuleType) -> None:
    for name in ("find", "settle", "names", "waiting", "module", "load"):
        setattr(main, name, f"the script's {name}")
    brought = arrived(of_main(), CODEC)
    for name in ("find", "settle", "names", "waiting", "module", "load"):
        assert getattr(brought.module, name) == f"the script's {name}"


def test_an_object_whose_class_cannot_be_asked_for_does_no_harm(main: types.ModuleType) -> None:
    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("outside of a request")

    main.request = Proxy()
    assert "double" in arrived(of_main(), CODEC).waiting


def test_code_of_the_user_s_does_not_run_for_what_nobody_named(main: types.ModuleType) -> None:
    class Session:
        __module__ = "__main__"

        def __reduce__(self) -> Any:
            raise AssertionError("was pickled")

        __getstate__ = __reduce__

    main.Session, main.session = Session, Session()
    assert "session" not in arrived(of_main(), CODEC).waiting


def test_a_function_that_comes_back_is_the_script_s_own(main: types.ModuleType) -> None:
    assert loads(dumps(main.double)) is main.double
    assert loads(dumps([main.Point(1)]))[0].__class__ is main.Point
    main.double.__defaults__ = None
    copy = loads(dumps(lambda x: main.double(x)))
    assert copy(2) == 4


def test_bare_objects_are_remembered_up_to_a_number() -> None:
    kept = [object() for _ in range(20)]
    copies = loads(dumps(kept))
    assert all(copy is one for copy, one in zip(copies, kept, strict=True))
    for _ in range(20_000):
        dumps(object())
    assert len(sentinels._objects) <= 10_000
    assert len(sentinels._keys) == len(sentinels._objects)


# In workers ---------------------------------------------------------------------------------------


def test_a_worker_s_main_is_the_script_s(cluster: Connection) -> None:
    kinds = list(parallel(range(4), partition_size=1).map(lambda _: type(sys.modules["__main__"]).__name__))
    assert kinds == ["Main"] * 4
    assert type(sys.modules["__main__"]) is types.ModuleType


def test_an_evaluation_within_a_function_gives_main_back(cluster: Connection) -> None:
    def outer(n: int) -> bool:
        main = sys.modules["__main__"]
        inner = list(parallel(range(n)).map(lambda x: x + 1))
        return sys.modules["__main__"] is main and inner == list(range(1, n + 1))

    assert list(parallel([5, 6]).map(outer)) == [True, True]


def test_inline_leaves_the_script_s_globals_alone(main: types.ModuleType) -> None:
    exec("count = 0\ndef bump(x):\n    global count\n    count += 1\n    return count", vars(main))
    with connect("inline"):
        assert list(parallel(range(3)).map(main.bump)) == [1, 2, 3]
        assert list(parallel([main.bump, main.double]).map(lambda f: f.__name__)) == ["bump", "double"]
    assert main.count == 0
    assert sys.modules["__main__"] is main


def test_workers_in_this_process_leave_main_alone(main: types.ModuleType) -> None:
    import distributed

    exec("count = 0\ndef bump(x):\n    global count\n    count += 1\n    return count", vars(main))
    options: dict[str, Any] = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as cluster,
        cluster.get_client() as client,
    ):
        chain = parallel(range(3), client=client, partition_size=3).map(main.bump)
        assert list(chain) == [1, 2, 3]
        pids = list(
            parallel([1], client=client).map(lambda _: (os.getpid(), sys.modules["__main__"] is main))
        )
    assert pids == [(os.getpid(), True)]
    assert main.count == 0
    assert own_state.given is None  # else other workers would never again get what changes here
