"""Modules of the user's own are on every worker as they are in the script: their data, and their code."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest
from scripts import Scripts
from ways import Make, One

from parcoll import parallel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


# Data ---------------------------------------------------------------------------------------------


def test_a_constant(one: One, make: Make) -> None:
    settings = make("w_settings", "factor = 1\ndef times(x):\n    return x * factor\n")
    assert one(lambda x: x * settings.factor) == 1
    settings.factor = 10
    assert one(lambda x: x * settings.factor) == 10
    assert one(settings.times) == 10
    settings.factor = 1
    assert one(settings.times) == 1
    settings.added = "new"
    assert one(lambda _: settings.added) == "new"
    del settings.added
    assert one(lambda _: hasattr(settings, "added")) is False


def test_a_constant_that_was_changed_before_the_first_evaluation(one: One, make: Make) -> None:
    settings = make("w_early", "factor = 1\nmodel = None\n")
    settings.factor = 10
    settings.model = list(range(200_000))
    assert one(lambda x: (x * settings.factor, len(settings.model))) == (10, 200_000)


def test_a_container_that_was_empty_and_was_filled_before_the_first_evaluation(one: One, make: Make) -> None:
    filled = make("w_filled", "rows = []\nmore = list()\ntable = {}\n")
    filled.rows.extend(range(300_000))  # more than travels whether the script has changed it or not
    filled.more.extend(filled.rows)
    filled.table.update(enumerate(filled.rows[:150_000]))
    assert one(lambda _: [*map(len, (filled.rows, filled.more, filled.table))]) == [300_000, 300_000, 150_000]


def test_buffers_are_what_they_were(one: One, make: Make) -> None:
    numpy = pytest.importorskip("numpy")
    raw = make("w_raw", "weights = None\nparts = {}\nraw = bytearray(b'ab')\nrow = None\n")

    def look(_: object) -> tuple[Any, ...]:
        kinds = type(raw.weights).__name__, type(raw.raw).__name__, type(raw.row).__name__
        return (*kinds, list(raw.weights), [[type(p).__name__, *p] for p in raw.parts.values()], raw.raw[0])

    raw.weights = numpy.array([1.5, 2.5])
    raw.parts["a"] = numpy.arange(3)
    raw.parts["b"] = array("d", [1])
    raw.raw[0] = 7
    raw.row = array("i", range(5))
    assert one(look) == look(0)
    raw.weights[0] = -1
    raw.parts["b"][0] = 5
    assert one(look) == look(0)


def test_containers_that_were_changed_in_place(one: One, make: Make) -> None:
    conf = make(
        "w_conf",
        """
        from collections import OrderedDict, defaultdict, deque
        span = range(2)
        lists = defaultdict(list)
        table = {"z": {"deep": [1, 2]}}
        names = ["a"]
        seen = {1, 2}
        ordered = OrderedDict(x=1)
        recent = deque([1], 3)
        same = names
        """,
    )

    def look(_: object) -> tuple[Any, ...]:
        found = conf.table, conf.names, conf.seen, conf.ordered, list(conf.recent), conf.same is conf.names
        return *found, conf.recent.maxlen, conf.lists.default_factory, conf.span

    assert one(look) == look(0)
    conf.table["a"] = 1
    conf.table["z"]["deep"].append(3)
    conf.names.append("b")
    conf.seen.discard(1)
    conf.ordered["y"] = 2
    conf.recent.append(7)
    conf.lists.default_factory = int
    conf.span = range(3)  # type: ignore[attr-defined]
    assert one(look) == look(0)
    conf.recent = type(conf.recent)(conf.recent, 5)  # type: ignore[attr-defined]
    conf.table.clear()
    assert one(look) == look(0)


def test_an_object_that_two_modules_have(one: One, make: Make) -> None:
    base = make("w_base", "class Settings:\n    debug = False\nsettings = Settings()\nlimits = {}\n")
    user = make(
        "w_user", "from w_base import limits, settings\ndef look(_):\n    return settings.debug, limits"
    )
    assert one(user.look) == (False, {})
    base.settings.debug = True
    base.limits["most"] = 5
    assert one(user.look) == (True, {"most": 5})
    assert one(lambda _: user.settings is base.settings) is True


def test_a_name_that_was_given_another_object(one: One, make: Make) -> None:
    """The object that it had is that of another module, too, and stays what it is there."""
    base = make(
        "w_defaults",
        "class Mode:\n    def __init__(self, name):\n        self.name = name\n"
        "options = {'a': 1}\nmodes = [1]\nmode = Mode('fast')\n",
    )
    user = make("w_changed", "from w_defaults import mode, modes, options\n")

    def look(_: object) -> Any:
        found = [(module.options, module.modes, module.mode.name) for module in (base, user)]
        return found, user.options is base.options

    user.options, user.modes, user.mode = {"b": 2}, [], base.Mode("slow")
    assert one(look) == look(0) == ([({"a": 1}, [1], "fast"), ({"b": 2}, [], "slow")], False)
    base.options["c"] = 3
    user.options["d"] = 4
    assert one(look) == look(0)


def test_objects_that_lead_back_to_themselves(one: One, make: Make) -> None:
    module = make(
        "w_tree",
        """
        class Node:
            def __init__(self, parent=None):
                self.parent, self.children, self.marks = parent, [], {"seen": set()}
                if parent is not None:
                    parent.children.append(self)
        class Options(dict):
            pass
        tree = Node()
        options = Options(a=1)
        options.level = 1
        """,
    )

    def look(_: object) -> Any:
        tree, options = module.tree, module.options
        found = [child.parent is tree for child in tree.children], tree in tree.marks["seen"]
        return *found, dict(options), options.level, options.get("itself", options) is options

    assert one(look) == look(0) == ([], False, {"a": 1}, 1, True)
    module.Node(module.Node(module.tree))
    module.tree.marks["seen"].add(module.tree)
    module.options.level = 2
    assert one(look) == look(0) == ([True], True, {"a": 1}, 2, True)
    module.Node(module.tree)
    assert one(look) == look(0)


def test_names_with_underscores(one: One, make: Make) -> None:
    module = make("w_dunder", "__version__ = '1'\ndef __getattr__(name):\n    return 'import'\n")
    first = module.__getattr__

    def look(_: object) -> Any:
        return module.__version__, getattr(module, "anything", None), dir(module)[:1]

    assert one(look) == look(0)
    module.__version__, module.__getattr__ = "2", lambda name: name  # type: ignore[method-assign]
    module.__dir__ = lambda: ["all"]  # type: ignore[method-assign]
    assert one(look) == look(0) == ("2", "anything", ["all"])
    del module.__getattr__
    assert one(look) == look(0) == ("2", None, ["all"])
    module.__getattr__ = first  # type: ignore[method-assign]
    assert one(look) == look(0) == ("2", "import", ["all"])


def test_what_was_deleted_may_come_back(one: One, make: Make) -> None:
    module = make("w_deleted", "def fetch(x):\n    return 'real'\nclass Client:\n    pass\n")

    def look(_: object) -> Any:
        return [hasattr(module, name) for name in ("fetch", "Client")]

    def on_all() -> list[Any]:
        return [one(look) for _ in range(4)]  # on one worker, then on the other

    fetch, client = module.fetch, module.Client
    assert on_all() == [[True, True]] * 4
    del module.fetch, module.Client
    assert on_all() == [[False, False]] * 4
    module.fetch, module.Client = fetch, client
    assert on_all() == [[True, True]] * 4


def test_a_registry_that_the_script_adds_to(one: One, make: Make) -> None:
    module = make("w_plugins", "def upper(x):\n    return x.upper()\nplugins = {'upper': upper}\n")
    module.plugins["twice"] = lambda x: x * 2
    assert one(lambda _: [plugin("a") for plugin in module.plugins.values()]) == ["A", "aa"]
    assert one(lambda _: module.plugins["upper"] is module.upper) is True


def test_what_functions_keep_in_a_module_stays(way: str, make: Make) -> None:
    module = make("w_cache", "import threading\nlock = threading.Lock()\nmodel = None\nfactor = 1\n")

    def use(_: object) -> bool:
        loaded = module.model is not None
        with module.lock:
            module.model = "dear"
        return loaded

    assert True in list(parallel(range(12), partition_size=1).map(use))
    assert True in list(parallel(range(12), partition_size=1).map(use))
    module.factor = 2
    assert list(parallel(range(12), partition_size=1).map(use)).count(False) <= 1


def test_what_functions_keep_of_a_name_stays_where_the_script_changes_another(way: str, make: Make) -> None:
    module = make("w_kept", "kept = {}\nmodel = {'a': 1}\nfactor = 1\n")

    def keep(n: int) -> tuple[int, int, int]:
        module.kept[n] = module.model
        return os.getpid(), len(module.kept), module.factor

    first = list(parallel(range(12), partition_size=1).map(keep))
    most = {pid: max(n for p, n, _ in first if p == pid) for pid, *_ in first}
    module.factor = 2
    second = list(parallel(range(12, 24), partition_size=1).map(keep))
    assert {factor for *_, factor in second} == {2}
    for pid in {pid for pid, *_ in second} & most.keys():
        assert min(n for p, n, _ in second if p == pid) == most[pid] + 1


def test_a_module_that_only_the_function_imports(one: One, make: Make) -> None:
    make("w_lazily", "value = 1\n")
    sys.modules["w_lazily"].value = 5

    def use(_: object) -> int:
        import w_lazily

        return int(w_lazily.value)

    assert one(use) == 5


# Code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reload", [True, False], ids=["reloaded", "not reloaded"])
def test_code_that_was_edited_is_new_on_every_worker(
    way: str, make: Make, tmp_path: Path, reload: bool
) -> None:
    name = f"w_helper_{way}_{reload}"
    path = tmp_path / f"{name}.py"
    module = make(name, "FACTOR = 1\ndef f(x):\n    return x + FACTOR\n")
    make(f"{name}_user", f"from {name} import f\ndef g(x):\n    return f(x)\n")
    user = sys.modules[f"{name}_user"]
    for factor in range(1, 4):
        path.write_text(f"FACTOR = {factor}\ndef f(x):\n    return x + FACTOR\n")
        if reload and factor > 1:
            _forget_bytecode(path)
            importlib.reload(module)
        right = [x + factor for x in range(100)]
        assert list(parallel(range(100), partition_size=5).map(module.f)) == right
        assert list(parallel(range(100), partition_size=5).map(user.g)) == right
        assert list(parallel(range(10), partition_size=5, timeout=60).map(user.g)) == right[:10]


def _forget_bytecode(path: Path) -> None:
    """The script would reload the old one, if both files are of the same second and size."""
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def test_code_of_a_package_that_was_edited(way: str, make: Make, tmp_path: Path) -> None:
    package = f"w_package_{way}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("from .inner import f\n")
    inner = make(f"{package}.inner", "def f(x):\n    return 'old'\n")
    top = sys.modules[package]
    assert set(parallel(range(20), partition_size=1).map(lambda x: top.f(x))) == {"old"}
    (tmp_path / package / "inner.py").write_text("def f(x):\n    return 'new and longer'\n")
    importlib.reload(inner)
    importlib.reload(top)
    assert set(parallel(range(20), partition_size=1).map(lambda x: top.f(x))) == {"new and longer"}
    assert set(parallel(range(20), partition_size=1).map(lambda x: top.inner.f(x))) == {"new and longer"}
    sys.modules.pop(package)


def test_a_module_that_only_functions_import_is_edited(way: str, make: Make, tmp_path: Path) -> None:
    name = f"w_unseen_{way}"
    make(name, "def f(x):\n    return 1\n")
    del sys.modules[name]

    def use(_: object) -> int:
        return int(importlib.import_module(name).f(0))

    if way == "bare":
        pytest.skip("what only a name in a text leads to does not travel")
    assert set(parallel(range(20), partition_size=1).map(use)) == {1}
    (tmp_path / f"{name}.py").write_text("def f(x):\n    return 2\n")
    assert set(parallel(range(20), partition_size=1).map(use)) == {2}


# As scripts do ------------------------------------------------------------------------------------


def test_a_script_that_changes_its_settings_first(scripts: Scripts) -> None:
    scripts.write("settings.py", "factor = 1\ntable = {}\nclass Mode:\n    fast = False\nmode = Mode()\n")
    scripts.write("deeper.py", "from settings import table\nimport settings\n")
    text = """
    import settings, deeper
    from parcoll import parallel
    settings.factor = 10
    settings.table["a"] = 1
    settings.mode.fast = True
    settings.Mode.fast = None
    def look(x):
        return x * settings.factor, deeper.table, settings.mode.fast, deeper.settings.Mode.fast
    print(*parallel([1]).map(look))
    print(*parallel([1], timeout=30).map(look))
    """
    assert scripts.run_file(text) == "(10, {'a': 1}, True, None)\n" * 2


def test_a_base_of_a_module_knows_each_class_of_the_script_once(scripts: Scripts) -> None:
    """Also one that notes them, whose note travels with the module."""
    scripts.write(
        "w_base.py",
        """
        class Base:
            known = {}
            def __init_subclass__(cls):
                Base.known[cls.__name__] = cls
        class First(Base): pass
        """,
    )
    out = scripts.run_file(
        """
        from w_base import Base
        from parcoll import parallel

        def look(_):
            names = [kind.__name__ for kind in Base.__subclasses__()]
            return names, sorted(Base.known), [Base.known[name] is globals().get(name) for name in names]

        def ask():
            right = look(0)
            got = [*parallel(range(4), partition_size=1).map(look), *parallel([0], timeout=60).map(look)]
            assert got == [right] * 5, (got, right)

        ask()
        class Second(Base): pass
        ask()
        class Third(Second): pass
        class Fourth(Base): pass
        ask()
        print(*look(0)[0])
        """
    )
    assert out == "First Second Fourth\n"


def test_evaluations_at_the_top_of_a_module_that_is_being_imported(scripts: Scripts) -> None:
    scripts.write(
        "job.py",
        """
        from parcoll import parallel
        factor = 3
        def f(x):
            return x * factor
        results = list(parallel([1, 2]).map(f))
        later = 5
        """,
    )
    text = """
    import job
    from parcoll import parallel
    print(job.results, list(parallel([1]).map(lambda x: x + job.later)))
    """
    assert scripts.run_file(text) == "[3, 6] [6]\n"


def test_two_threads_evaluate_while_a_third_changes_a_module(way: str, make: Make) -> None:
    module = make("w_threads", "value = 0\n")
    wrong: list[Any] = []

    def evaluate() -> None:
        for _ in range(10):
            found = set(parallel(range(4), partition_size=1).map(lambda _: module.value))
            if not all(isinstance(value, int) for value in found):
                wrong.append(found)

    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        module.value += 1
    assert wrong == []
