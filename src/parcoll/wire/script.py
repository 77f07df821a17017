"""Script: the `__main__` of the user's process, as its functions find it where they run.

Each program that reaches a worker brings a `Main`, a module whose names all functions of the script share as
their globals. What the program's functions name is there from the start. What else the script has comes along
in small (`namespace`), and is loaded when somebody looks for it: pickle, `typing.get_type_hints`, a child
process. While a task of the program runs, `Main` is the process's `__main__`.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import os
import pickle
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire import modules
from parcoll.wire.reducers import names_of, sentinels, set_function_state


class Entry(NamedTuple):
    """One name of the script's that no function of the program names."""

    content: bytes  # the pickle of its value
    uses: tuple[str, ...] = ()  # the script's names that its functions need
    needs: tuple[str, ...] = ()  # the modules that are imported to unpickle it
    noted: bool = False  # whether a module may note that it is there: a class of plugins, say


class Brought(NamedTuple):
    """What a program brings of the script."""

    process: str  # of the script
    head: dict[str, Any]  # `__file__` and the like
    entries: dict[str, Entry]
    wanted: tuple[str, ...]  # those of the entries that the program's functions may look for by text


class Codec(NamedTuple):
    """How entries are unpickled, and how `__main__` is packed for another process."""

    load: Callable[[bytes], Any]
    pack: Callable[[], bytes]


class Main(ModuleType):
    """`__main__` on a worker."""

    # Not in the module's own dictionary, which is the functions' globals.
    __slots__ = ("_codec", "_entries", "_lock", "_wanted", "travelled")

    def __init__(self, brought: Brought | None = None, codec: Codec | None = None) -> None:
        super().__init__("__main__")
        names_of(self)["__builtins__"] = builtins
        self._entries: dict[str, Entry] = {}
        self.travelled = brought is None or brought.process != sentinels.process  # this is not the script's
        self._wanted = brought.wanted if brought is not None else ()
        self._codec = codec
        self._lock = threading.RLock()
        if brought is not None:
            names_of(self).update(brought.head)
            self._entries.update(brought.entries)

    @property
    def waiting(self) -> dict[str, Entry]:
        """What has not been looked for yet."""
        return dict(self._entries)

    def find(self, name: str) -> Any:
        """Return what the script has under this name; AttributeError where it is not here."""
        names = names_of(self)
        with self._lock:
            if name in names:
                return names[name]
            entry = self._entries.pop(name, None)
            if entry is None or self._codec is None:
                raise AttributeError(f"module '__main__' has no attribute {name!r}")
            try:
                with loading(self):
                    value = self._codec.load(entry.content)
            except Exception as error:
                self._entries[name] = entry  # what it needs may come to be here
                raise AttributeError(f"{name!r} of '__main__' cannot be loaded here: {error!r}") from error
            value = names.setdefault(name, value)
            for used in entry.uses:
                with contextlib.suppress(AttributeError):
                    self.find(used)
            return value

    def settle(self) -> None:
        """Load what may be looked for elsewhere than in this module: in functions' globals, in registries."""
        noted = [
            name
            for name, entry in self._entries.items()
            if entry.noted and all(module in sys.modules for module in entry.needs)
        ]
        self._find_all([*self._wanted, *noted])

    def _find_all(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(AttributeError):
                self.find(name)

    def __getattr__(self, name: str) -> Any:
        return self.find(name)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        self._find_all(list(self._entries))
        return names_of(self)

    @property
    def __spec__(self) -> Any:  # type: ignore[override]
        return (
            None if self._codec is None else _Spec(self._codec)
        )  # in the dictionary it is None, as in a script's


# Which one is in use ------------------------------------------------------------------------------

_thread = threading.local()
_running: list[tuple[int, Main]] = []  # by the threads that run tasks, the last to begin at the end
_others: ModuleType | None = None  # the `__main__` of a worker that others use too, while tasks of ours run
_lock = threading.Lock()


@contextlib.contextmanager
def loading(main: Main | None) -> Iterator[None]:
    """Have what this thread unpickles belong to this `Main`."""
    before = getattr(_thread, "main", None)
    _thread.main = main
    try:
        yield
    finally:
        _thread.main = before


@contextlib.contextmanager
def running(main: Main | None) -> Iterator[None]:
    """Have what this thread unpickles belong to this `Main`, which is `__main__` where it may be."""
    if main is None:
        yield
        return
    global _others
    mine = threading.get_ident(), main
    replaces = main.travelled and _replaceable()
    with _lock:
        _running.append(mine)
        if replaces:
            here = sys.modules["__main__"]
            _others = here if not isinstance(here, Main) else _others
            sys.modules["__main__"] = main
    try:
        yield
    finally:
        with _lock:
            del _running[max(at for at, entry in enumerate(_running) if entry is mine)]
            if replaces and _running:
                sys.modules["__main__"] = _running[-1][1]
            elif replaces and _others is not None:
                sys.modules["__main__"] = _others


def make_main(main: Main | None) -> None:
    """Have this be the `__main__` of a process that runs one task at a time, until another is."""
    if main is not None:
        sys.modules["__main__"] = main


def _replaceable() -> bool:
    """Tell whether this is a process of a cluster's, whose `__main__` says nothing to anybody."""
    main = sys.modules.get("__main__")
    if isinstance(main, Main):
        return True
    name = getattr(getattr(main, "__spec__", None), "name", None) or ""
    file = os.path.basename(getattr(main, "__file__", None) or "")
    started_by_nanny = "distributed.worker" in sys.modules and _is_child()
    return started_by_nanny or name.partition(".")[0] in ("dask", "distributed") or file.startswith("dask")


def _is_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def current() -> Main | None:
    """Return the `Main` that what is unpickled here and now belongs to; None in the script's own process."""
    main: Main | None = getattr(_thread, "main", None)
    if main is not None:
        return main
    thread = threading.get_ident()
    for other, found in reversed(_running):
        if other == thread:
            return found
    module = sys.modules.get("__main__")
    return module if isinstance(module, Main) else None


def arrived(content: bytes, codec: Codec) -> Main:
    """Return the `Main` of a program that has arrived."""
    return Main(_brought(content), codec)


@functools.lru_cache(maxsize=4)
def _brought(content: bytes) -> Brought:
    found: Brought = pickle.loads(zlib.decompress(content) if content[:1] == b"x" else content)
    return found


# Functions ----------------------------------------------------------------------------------------


def make_function(code: CodeType, names: dict[str, Any], closure: Any, at: str | None) -> Any:
    """Make a function of the script: with the globals that all of them have here, or `names`.

    `at` is its name in the script, if it has one there. Where the process has that function, it is returned.
    """
    main = current()
    known = names_of(main or sys.modules["__main__"])
    found = None
    if at is not None:
        with contextlib.suppress(AttributeError):
            found = main.find(at) if main is not None else known.get(at)
    if type(found) is FunctionType and found.__code__ == code:
        return found
    made = FunctionType(code, known if main is not None else names, None, None, closure)
    _made().add(id(made))
    if at is not None and main is not None and getattr(_thread, "main", None) is main:
        known[at] = made
    return made


def add_class(kind: type, at: str | None) -> None:
    """Have the `Main` that is being loaded have a class under its name."""
    main: Main | None = getattr(_thread, "main", None)
    if at is not None and main is not None:
        names_of(main)[at] = kind


def set_state(func: Any, state: tuple[Any, dict[str, Any]]) -> None:
    """Give a function that was just made its attributes, and its globals what it names."""
    if id(func) not in _made():
        return
    _made().discard(id(func))
    _, slots = state
    named, slots["__globals__"] = slots["__globals__"], {}
    if getattr(_thread, "main", None) is not None:
        func.__globals__.update(named)
    else:
        for name, value in named.items():
            func.__globals__.setdefault(name, value)
    set_function_state(func, state)


def _made() -> set[int]:
    found: set[int] | None = getattr(_thread, "made", None)
    if found is None:
        found = _thread.made = set()
    return found


def named(name: str) -> Any:
    """Return what the script has under this name."""
    main = current()
    return main.find(name) if main is not None else getattr(sys.modules["__main__"], name)


# Modules ------------------------------------------------------------------------------------------


class _Unimported(ModuleType):
    """Stands for a module that the script has imported and this process has not, until it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        module = importlib.import_module(self.__name__)
        with contextlib.suppress(ImportError):
            if not hasattr(module, name):
                importlib.import_module(f"{self.__name__}.{name}")
        return getattr(module, name)


def module_named(name: str) -> ModuleType:
    """Return a module, or what stands for it until it is used."""
    return sys.modules.get(name) or _Unimported(name)


# Child processes ----------------------------------------------------------------------------------

# What a child that `multiprocessing` starts anew has as its `__main__`. It runs before the child's search
# path is set: so it imports nothing but the standard library until somebody looks for a name.
_CHILD = """
import sys
from types import ModuleType
class Main(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if sources:
            names = {"__name__": "parcoll_bootstrap"}
            sys.modules["parcoll_bootstrap"] = ModuleType("parcoll_bootstrap")
            exec(compile(installer, "parcoll/wire/modules.py", "exec"), names)
            names["install"](sources)
        from parcoll.world.namespace import CODEC
        from parcoll.wire.script import arrived
        main = arrived(content, CODEC)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
        return main.find(name)
sys.modules["__main__"] = sys.modules["__mp_main__"] = Main("__main__")
"""


class _Name(str):
    """The name of `__main__`, which makes one as it is unpickled."""

    content: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        found = modules.finder().sources
        names = {
            "content": self.content,
            "sources": {name: tuple(source) for name, source in found.items()},
            "installer": modules.own_text() if found else "",
        }
        return eval, ("exec(text, names) or '__main__'", {"text": _CHILD, "names": names})


class _Spec:
    """What `multiprocessing` asks for the name by which a child would import its parent's `__main__`."""

    parent = ""
    loader = origin = submodule_search_locations = None

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    @property
    def name(self) -> str:
        """The name; a child that gets it needs no file."""
        name = _Name("__main__")
        name.content = self._codec.pack()
        return name
