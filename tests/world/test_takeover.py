"""What notes the imports of a process is in the way of none of them."""

from __future__ import annotations

import gc
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

from parcoll.world import entries, own_state, patches, records

HELPERS = """
import importlib, sys, threading, types, zlib
from parcoll.wire.codec import by_reference, by_value
from parcoll.world import takeover
from parcoll.world.content import Content
from parcoll.world.own_state import ModuleState, OwnState
begun, may_end = threading.Event(), threading.Event()
shared = types.ModuleType("shared")
shared.begun, shared.may_end = begun, may_end
sys.modules["shared"] = shared
def state(**contents):
    packed = by_reference(ModuleState(contents, frozenset()))
    return OwnState("1", zlib.compress(by_reference({"one": packed})))
"""


def run(folder: Path, script: str, helpers: str = HELPERS) -> str:
    """Run a script that must succeed; return what it prints."""
    command = [sys.executable, "-c", helpers + script]
    done = subprocess.run(command, check=True, timeout=60, cwd=folder, stdout=subprocess.PIPE, text=True)
    return done.stdout


def test_the_first_import_noted_may_be_that_of_python_s_own_tables(tmp_path: Path) -> None:
    """Python 3.13 imports a module while it fills the table that tells which modules are the user's own."""
    script = """
import sys
from parcoll.world.takeover import watch_imports
watch_imports()
import json.tool, sysconfig
from parcoll.wire.own_modules import is_own_spec
print(bool(sysconfig.get_path("stdlib")), is_own_spec(json.tool.__spec__))
"""
    assert run(tmp_path, script, helpers="") == "True False\n"


def test_a_worker_that_had_another_parcoll_before_still_imports(tmp_path: Path) -> None:
    """The modules of the one before are gone, and its finder of modules asks those that are there."""
    script = """
import sys
for _ in range(3):
    from parcoll.world.takeover import watch_imports
    watch_imports()
    before = sys.meta_path[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == "parcoll"]:
        del sys.modules[name]
sys.meta_path.insert(0, sys.meta_path.pop())  # whichever comes first
sys.path.insert(0, ".")
import one
print(one.value, [type(finder).__name__ for finder in sys.meta_path].count(type(before).__name__))
"""
    (tmp_path / "one.py").write_text("value = 1\n")
    assert run(tmp_path, script, helpers="") == "1 1\n"


def test_a_second_thread_waits_until_the_first_has_taken_over(tmp_path: Path) -> None:
    """Both have the same program; else its function would see what the import gave."""
    (tmp_path / "one.py").write_text("value = 1\n")
    (tmp_path / "slow.py").write_text("import shared\nshared.begun.set()\nshared.may_end.wait()\nthing = 2\n")
    out = run(
        tmp_path,
        """
import one
given = state(value=Content("reference", b"slow:thing"))
first = threading.Thread(target=takeover.take_over, args=(given,))
first.start()
begun.wait()
seen = []
second = threading.Thread(target=lambda: (takeover.take_over(given), seen.append(one.value)))
second.start()
second.join(0.5)
print(seen)
may_end.set()
second.join()
print(seen)
""",
    )
    assert out == "[]\n[2]\n"


def test_a_module_that_is_imported_meanwhile_is_waited_for_by_nobody_who_waits_for_it(tmp_path: Path) -> None:
    """Who imports it holds its import lock; who takes over asks for this module."""
    (tmp_path / "one.py").write_text("value = 1\n")
    (tmp_path / "slow.py").write_text("import shared\nshared.begun.set()\nshared.may_end.wait()\nthing = 2\n")
    out = run(
        tmp_path,
        """
import one
takeover.watch_imports()
importing = threading.Thread(target=importlib.import_module, args=("slow",), daemon=True)
importing.start()
begun.wait()
taking = threading.Thread(
    target=takeover.take_over, args=(state(value=Content("reference", b"slow:thing")),), daemon=True
)
taking.start()
taking.join(0.3)
may_end.set()
taking.join(20)
importing.join(20)
print(one.value, importing.is_alive())
""",
    )
    assert out == "2 False\n"


def test_what_is_looked_through_may_change_meanwhile() -> None:
    """To make the pairs of `items` may start the collector, whose callbacks are Python's: others run then."""
    added: list[str] = []

    def add(phase: str, info: Any) -> None:
        added.append(f"w_added_{len(added)}")
        sys.modules[added[-1]] = types.ModuleType(added[-1])
        setattr(types, added[-1], added[-1])

    before = gc.get_threshold()
    gc.callbacks.append(add)
    gc.set_threshold(1)
    try:
        entries._registered[0] = None
        entries.read_subclasses()
        entries._added[0] = None
        entries.read_builtins()
        patches._seen.clear()
        patches.read()
        own_state.read(True)
        records.pack_settings(records.read_settings())
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(add)
        for name in added:
            del sys.modules[name]
            delattr(types, name)
    assert added
