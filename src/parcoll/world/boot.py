"""Boot: how a process starts another Python that imports parcoll, and the user's modules, as it does itself.

The new process runs the text `BOOT`. It gets a descriptor to read from. The first message there says what it
imports and which `main` it runs. Its command line has nothing but numbers of descriptors.

Processes of one family tell one process, the tracker of `multiprocessing`, which shared memory and semaphores
they have, so that what is left is removed. Their key, with which they speak to each other's managers, comes
with the first message.

Modules of this process that another one would not find travel otherwise: what has a file as text, what has
none by value with the functions that use it.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from operator import is_
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from parcoll.errors import SerializationError
from parcoll.wire import modules
from parcoll.wire.modules import ModuleText
from parcoll.wire.named import text_in_pickles
from parcoll.wire.own_modules import NOT_OWN, is_own, is_own_module, package_sources, stamp_of, text_of
from parcoll.wire.reducers import made_code, made_modules
from parcoll.world import own_state

LENGTH_BYTES = 8  # before each message
# The variable of the hash seed. All processes that cut keys by their hashes (`keys.slots`) should have one
# seed: those of a local cluster, of the one that takes its place, and those beside its workers.
HASH_SEED = "PYTHONHASHSEED"
_started_with = {name: seed for name, seed in os.environ.items() if name == HASH_SEED and seed.isdigit()}
_made = {HASH_SEED: str(1 + int.from_bytes(os.urandom(3), "big"))}  # 0 would mean not to use any

# It takes over the import path, and modules that came as source text, before it imports anything of parcoll.
# It collects no garbage until its `main` says so, since an import makes hardly any. An error before `main` is
# written to a place where the starter reads, if there is one.
BOOT = """
import gc, multiprocessing, os, pickle, sys
gc.disable()
channel = int(sys.argv[1])
def read(size):
    found = b""
    while len(found) < size:
        found += os.read(channel, size - len(found)) or os._exit(0)
    return found
first = pickle.loads(read(int.from_bytes(read(8), "big")))
sys.path[:], sys.argv[:] = first["path"], first["argv"]
multiprocessing.current_process().authkey = first["authkey"]
try:
    if first["sources"]:
        names = {"__name__": "parcoll_bootstrap"}
        sys.modules["parcoll_bootstrap"] = type(sys)("parcoll_bootstrap")
        exec(compile(first["installer"], "parcoll/wire/modules.py", "exec"), names)
        names["finder"]().folder = first["folder"]
        names["install"](first["sources"])
    for name in first["also"]:
        __import__(name)
    main = __import__(first["module"], fromlist=["main"]).main
    main(channel, *first["arguments"])
except BaseException as error:
    if first["status"] is None:
        raise
    import json, traceback
    status = {"error": f"{type(error).__name__}: {error}", "note": traceback.format_exc()}
    os.write(first["status"], json.dumps(status).encode() + b"\\n")
    os._exit(1)
"""

also_import: list[str] = []  # modules that each new process imports first; for tests, to change settings


def command(channel: int, *flags: str) -> list[str]:
    """Return what runs `BOOT`: this interpreter, with those of its flags that change what code does.

    Not `-W`, which would hold for the imports of dask: the filters follow with the first program (`world`).
    """
    own = ["-" + letter * value for letter, flag in _FLAGS.items() if (value := getattr(sys.flags, flag))]
    options = {name: value for name, value in sys._xoptions.items() if name not in _NOT_PASSED_ON}
    options["utf8"] = str(sys.flags.utf8_mode)
    if sys.flags.dev_mode:
        options["dev"] = True
    own += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in options.items()]
    return [sys.executable, *flags, "-P", *own, "-c", BOOT, str(channel)]


_FLAGS = {
    "O": "optimize",
    "b": "bytes_warning",
    "B": "dont_write_bytecode",
    "E": "ignore_environment",
    "s": "no_user_site",
    "S": "no_site",
    "I": "isolated",
}
_NOT_PASSED_ON = ("importtime", "showrefcount")  # they write to standard error


def one_seed() -> dict[str, str]:
    """Return the variable for all hosts that this process starts: one seed, and nobody else's."""
    return _started_with or _made


def seed_here() -> dict[str, str]:
    """Return the variable for processes beside this one, if its own seed is known."""
    return _started_with


def first_message(module: str, arguments: Sequence[Any], status: int | None = None) -> bytes:
    """Return what a new process reads first: it is to run `main(channel, *arguments)` of a module.

    If something keeps it from that, it writes a line of JSON that says so to the descriptor `status`.
    """
    found = modules.finder().sources
    first = {
        "path": import_path(),
        "argv": sys.argv,
        # With it, processes speak to the managers of `multiprocessing` that others of them have started.
        "authkey": bytes(multiprocessing.current_process().authkey),
        "sources": {name: tuple(source) for name, source in found.items()},
        "folder": modules.finder().folder if found else None,
        "installer": modules.own_text() if found else "",
        "also": also_import,
        "module": module,
        "arguments": tuple(arguments),
        "status": status,
    }
    return message(pickle.dumps(first))


def message(content: bytes) -> bytes:
    """Return the content with its length before it."""
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def import_path() -> list[str]:
    """Return sys.path as another process must have it: "" means the current directory here."""
    here = None
    with contextlib.suppress(FileNotFoundError):  # it has been removed
        here = os.getcwd()
    return [entry or here for entry in sys.path if isinstance(entry, str) and (entry or here)]  # type: ignore[misc]


# Family of `multiprocessing` ----------------------------------------------------------------------


def tracker() -> int | None:
    """Return the descriptor to which this process tells its resources; None where it has told none yet."""
    module: Any = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def track_with(tracker_fd: int | None) -> None:
    """Have a tracker hear of this process's resources.

    This is how `multiprocessing.spawn` does it; its attributes are private, and
    test_private_parts_of_multiprocessing.py fails when they change.
    """
    if tracker_fd is not None:
        from multiprocessing import resource_tracker

        os.set_inheritable(tracker_fd, False)
        known: Any = resource_tracker._resource_tracker
        known._fd, known._pid = tracker_fd, None


def adopt(segments: list[str]) -> None:
    """Tell this process's tracker of shared memory that others have made, as far as it is still there."""
    for name in segments:
        if exists(name):
            from multiprocessing import resource_tracker

            resource_tracker.register(name, "shared_memory")


def exists(segment: str) -> bool:
    """Tell whether there is shared memory of that name."""
    import _posixshmem  # type: ignore[import-not-found]

    try:
        descriptor = _posixshmem.shm_open(segment, os.O_RDONLY, mode=0)
    except OSError:
        return False
    os.close(descriptor)
    return True


def remove(segment: str) -> None:
    """Remove shared memory, if it is there."""
    import _posixshmem

    with contextlib.suppress(OSError):
        _posixshmem.shm_unlink(segment)


def remove_semaphore(name: str) -> None:
    """Remove a semaphore, if it is there."""
    import _multiprocessing  # type: ignore[import-not-found]

    with contextlib.suppress(OSError):
        _multiprocessing.sem_unlink(name)


# Modules that others do not find ------------------------------------------------------------------


class _Lost:
    """The modules of this process that another one with the same search path would not find."""

    def __init__(self) -> None:
        self._seen: list[Any] = []  # the modules, in their order
        self._path: tuple[str, ...] = ()
        self._known: dict[str, tuple[Any, bool]] = {}
        self.names: list[str] = []  # those that have a file

    def look(self) -> None:
        """Look at the modules that are new; those without a file go by value from now on."""
        loaded, seen, path = sys.modules, self._seen, tuple(sys.path)
        # One may have been put in the place of another (11 us for 1000 modules).
        if len(loaded) == len(seen) and all(map(is_, loaded.values(), seen)) and path == self._path:
            return
        known, self._known = self._known if path == self._path else {}, {}
        modules = dict(loaded)
        for name, module in modules.items():
            of = known.get(name)
            if of is None or of[0] is not module:
                of = module, type(module) is ModuleType and _is_lost(name, module)
            self._known[name] = of
        lost = {name: module for name, (module, is_one) in self._known.items() if is_one}
        self.names = [
            name
            for name, module in lost.items()
            if is_own_module(name, module)
            and all(parent in loaded for parent in _parents(name))
            and name.partition(".")[0] not in sys.stdlib_module_names  # the worker needs its own
        ]
        made = lost.keys() - set(self.names)
        code = {text_in_pickles(name) for name in made if _has_own_code(lost[name])}
        made_modules.update(made)  # and only then without the others: other threads pickle meanwhile
        made_modules.intersection_update(made)
        made_code.update(code)
        made_code.intersection_update(code)
        self._seen, self._path = [*modules.values()], path


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _has_own_code(module: ModuleType) -> bool:
    """Tell whether what a module defines is written in Python, and not in a file that was installed."""
    found = [
        value for value in list(vars(module).values()) if getattr(value, "__module__", "") == module.__name__
    ]
    kinds = [kind for kind in found if isinstance(kind, type)]
    parts = [*found, *(part for kind in kinds for part in list(vars(kind).values()))]
    codes = [value.__code__ for value in parts if type(value) is FunctionType]
    if not codes:  # classes without a method: those of a `class` statement begin so, and C's do not
        return any(next(iter(vars(kind)), "") == "__module__" for kind in kinds)
    return any(is_own(Path(code.co_filename)) for code in codes)


def _is_lost(name: str, module: ModuleType) -> bool:
    """Tell whether others would find no module of this name, or another one."""
    spec = vars(module).get("__spec__")
    top, _, below = name.partition(".")
    is_own_one = is_own_module(name, module)
    if top in NOT_OWN or (top in sys.stdlib_module_names and not is_own_one):
        return False
    if vars(module).get("__name__") != name:
        return False
    if not is_own_one and (below or getattr(spec, "origin", None) is not None):
        return bool(below) and top in sys.modules and _is_lost(top, sys.modules[top])
    parent = sys.modules.get(name.rpartition(".")[0])
    if below and parent is None:
        return True
    found = _found(name, getattr(parent, "__path__", None) if below else None)
    if found is None:
        return True
    file = getattr(spec, "origin", None) or vars(module).get("__file__")
    return isinstance(file, str) and _real(found.origin) != _real(file)


def _found(name: str, path: Any) -> Any:
    """Return the spec that the finders give which other processes have too."""
    for finder in sys.meta_path:
        home = getattr(finder if isinstance(finder, type) else type(finder), "__module__", "")
        if home == "__main__" or is_own_module(home, sys.modules.get(home)):
            continue
        if home.startswith("parcoll."):  # asks all others, where workers run in this process
            continue
        with contextlib.suppress(Exception):
            spec = finder.find_spec(name, path)
            if spec is not None:
                return spec
    return None


def _real(path: str | None) -> str:
    return os.path.realpath(path or "")


_lost = _Lost()
_lock = threading.RLock()


def look_for_lost() -> None:
    """Note which modules others would not find; in a worker they were noted in the script."""
    if own_state.given is None:
        with _lock:
            _lost.look()


def lost_sources() -> dict[str, ModuleText]:
    """Return the texts of the modules that have files and that others would not find, as noted last."""
    found: dict[str, ModuleText] = {}
    for name in _lost.names:
        spec: Any = sys.modules[name].__spec__ if name in sys.modules else None
        if spec is None:
            continue
        with contextlib.suppress(OSError, SerializationError):
            if spec.submodule_search_locations:
                found |= package_sources(name, map(Path, spec.submodule_search_locations))
            else:
                path = Path(spec.origin)
                found[name] = ModuleText(False, str(path), text_of(path, stamp_of(path)))
    return found


# Modules that import each other, which works from one of them only -----------------------------------

order: tuple[str, ...] = ()  # in which the script's imports of own modules ended: a circle's first one last


class _Imports(threading.local):
    def __init__(self) -> None:
        self.begun: list[str] = []  # what is imported within the first import of a row, and that


_imports = _Imports()


def run_module(execute: Callable[[ModuleType], object], module: ModuleType) -> None:
    """Run a module's code; if that fails in a circle, begin with another module, as the script did."""
    begun, is_outer = _imports.begun, not _imports.begun
    begun.append(module.__name__)
    try:
        execute(module)
    except (ImportError, AttributeError) as error:
        if not is_outer or "partially initialized module" not in str(error) or not _again(begun):
            raise
    finally:
        if is_outer:
            begun.clear()


def _again(begun: list[str]) -> bool:
    """Import these modules by another one of them; tell whether the first is there then."""
    outer, *others = names = begun[:]
    for first in [name for name in reversed(order) if name in others]:
        for name in names:
            sys.modules.pop(name, None)
        begun.clear()
        with contextlib.suppress(Exception):  # the first error is the one to tell
            importlib.import_module(first)
            importlib.import_module(outer)
            return True
    return False


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
