"""Script: the `__main__` of the user's process, as its functions find it where they run.

Each program that reaches a worker brings a `Script`. Its module has the names that all functions of the
script share as their globals. What the program's functions name is there from the start. What else the script
has comes along in small (`world.namespace`), and is loaded when somebody looks for it: pickle,
`typing.get_type_hints`, a child process. While a task of the program runs, the module is `__main__`.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import pickle
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.text import short_repr
from parcoll.wire import modules
from parcoll.wire.reducers import names_of, sentinels, set_function_state


class Entry(NamedTuple):
    """One name of the script's that no function of the program names."""

    content: bytes  # the pickle of its value
    uses: tuple[str, ...] = ()  # the script's names that its functions need
    needs: tuple[str, ...] = ()  # the modules that are imported to unpickle it
    noted: bool = False  # whether a module may note that it is there: a class of plugins, say
    classes: tuple[str, ...] = ()  # the numbers of the classes that it has


class Brought(NamedTuple):
    """What a program brings of the script."""

    process: str  # that has sent it
    owner: str  # the process of the script: another one if a task has sent it
    head: dict[str, Any]  # `__file__` and the like
    entries: dict[str, Entry]
    wanted: tuple[str, ...]  # those of the entries that the program's functions may look for by text


class Codec(NamedTuple):
    """How entries are unpickled, and how `__main__` is packed for another process."""

    load: Callable[[bytes], Any]
    pack: Callable[[], bytes]


class Script:
    """What a program has brought of the script, and the module that is `__main__` while the program runs."""

    def __init__(self, brought: Brought | None = None, codec: Codec | None = None) -> None:
        self.module = Main(self)
        self.names = names_of(self.module)
        self.names["__builtins__"] = builtins
        self._codec = codec
        self._lock = threading.RLock()
        self._wanted = brought.wanted if brought is not None else ()
        self.travelled = brought is None or brought.process != sentinels.process  # this is not its process
        self.owner = brought.owner if brought is not None else ""
        self.kept: dict[str, Any] = {}  # what others know of it, as long as it is here
        self.waiting = dict(brought.entries) if brought is not None else {}  # what nobody has looked for yet
        if brought is not None:
            self.names.update(brought.head)

    def find(self, name: str) -> Any:
        """Return what the script has under this name; AttributeError where it is not here."""
        with self._lock:
            if name in self.names:
                return self.names[name]
            entry = self.waiting.pop(name, None)
            if entry is None or self._codec is None:
                raise AttributeError(f"module '__main__' has no attribute {name!r}")
            try:
                with loading(self):
                    value = self._codec.load(entry.content)
            except Exception as error:
                self.waiting[name] = entry  # what it needs may come to be here
                raise AttributeError(
                    f"{name!r} of '__main__' cannot be loaded here: {short_repr(error)}"
                ) from error
            value = self.names.setdefault(name, value)
            self.find_all(entry.uses)
            return value

    def find_all(self, names: Iterable[str]) -> None:
        """Have those of these names that can be loaded."""
        for name in names:
            with contextlib.suppress(AttributeError):
                self.find(name)

    def find_class(self, number: str, is_here: Callable[[], bool]) -> None:
        """Have the class of this number, where a name of the script's brings it."""
        with self._lock:
            having = {name: entry.needs for name, entry in self.waiting.items() if number in entry.classes}
        # What has the fewest modules imported goes first.
        for name in sorted(having, key=lambda name: len(having[name])):
            if not is_here():
                self.find_all([name])

    def settle(self) -> None:
        """Load what may be looked for elsewhere than in the module: in functions' globals, in registries."""
        noted = [
            name
            for name, entry in self.waiting.items()
            if entry.noted and all(module in sys.modules for module in entry.needs)
        ]
        self.find_all([*self._wanted, *noted])

    @property
    def spec(self) -> Any:
        """What `multiprocessing` asks for `__main__`."""
        return None if self._codec is None else _Spec(self._codec)


class Main(ModuleType):
    """`__main__` on a worker. It has no attributes but the script's, and one."""

    __slots__ = ("_parcoll",)  # not in the module's own dictionary, which is the functions' globals

    def __init__(self, script: Script) -> None:
        super().__init__("__main__")
        self._parcoll = script

    def __getattr__(self, name: str) -> Any:
        return self._parcoll.find(name)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        self._parcoll.find_all(list(self._parcoll.waiting))
        return names_of(self)

    @property
    def __spec__(self) -> Any:  # type: ignore[override]
        return self._parcoll.spec  # in the dictionary it is None, as a script's is


def script_of(module: Any) -> Script | None:
    """Return what a module that is `__main__` has been brought; None for one that was not."""
    return module._parcoll if isinstance(module, Main) else None


# Which one is in use ------------------------------------------------------------------------------


class _Thread(threading.local):
    script: Script | None = None  # what is being loaded belongs to it
    owner = ""  # of the program that runs; "" for a thread that is none of a task's, as the script's own

    def __init__(self) -> None:
        self.made: set[int] = set()  # functions that have not got their state yet


_thread = _Thread()
_running: list[tuple[int, Script]] = []  # by the threads that run tasks, the last to begin at the end
_others: ModuleType | None = None  # the `__main__` of a worker that others use too, while tasks of ours run
_lock = threading.RLock()  # a signal's handler may evaluate in this process


@contextlib.contextmanager
def loading(script: Script | None) -> Iterator[None]:
    """Have what this thread unpickles be what the script has."""
    before, _thread.script = _thread.script, script
    try:
        yield
    finally:
        _thread.script = before


@contextlib.contextmanager
def running(script: Script | None) -> Iterator[None]:
    """Have what this thread unpickles belong to the script, whose module is `__main__` where it may be."""
    if script is None:
        yield
        return
    global _others
    mine = threading.get_ident(), script
    before = _thread.owner  # in the script's own process, its engine may have said whose the task is
    _thread.owner = script.owner if script.travelled else before or script.owner
    replaces = script.travelled and _replaceable()
    with _lock:
        _running.append(mine)
        if replaces:
            here = sys.modules["__main__"]
            _others = here if not isinstance(here, Main) else _others
            sys.modules["__main__"] = script.module
    try:
        yield
    finally:
        _thread.owner = before
        with _lock:
            del _running[max(at for at, entry in enumerate(_running) if entry is mine)]
            if replaces and _running:
                sys.modules["__main__"] = _running[-1][1].module
            elif replaces and _others is not None:
                sys.modules["__main__"] = _others


def make_main(script: Script | None) -> None:
    """Have this be the `__main__` of a process that runs one task at a time, until another is."""
    if script is not None:
        sys.modules["__main__"], _thread.owner = script.module, script.owner


def owner() -> str:
    """Return the process of the script whose task this thread runs; "" if it runs none."""
    return _thread.owner


@contextlib.contextmanager
def owned_by(name: str) -> Iterator[None]:
    """Have this thread run a task of that owner, where no program says whose it is."""
    before, _thread.owner = _thread.owner, name
    try:
        yield
    finally:
        _thread.owner = before


def _replaceable() -> bool:
    """Tell whether this is a process of a cluster's, whose `__main__` says nothing to anybody."""
    main = sys.modules.get("__main__")
    if isinstance(main, Main):
        return True
    name = getattr(getattr(main, "__spec__", None), "name", None) or ""
    file = os.path.basename(getattr(main, "__file__", None) or "")
    process = sys.modules.get("multiprocessing.process")
    is_child = process is not None and process.parent_process() is not None
    started_by_nanny = is_child and "distributed.worker" in sys.modules
    return started_by_nanny or name.partition(".")[0] in ("dask", "distributed") or file.startswith("dask")


def current() -> Script | None:
    """Return the script that what is unpickled here and now belongs to; None in its own process."""
    if _thread.script is not None:
        return _thread.script
    thread = threading.get_ident()
    for other, found in reversed(_running):
        if other == thread:
            return found
    return script_of(sys.modules.get("__main__"))


def arrived(content: bytes, codec: Codec) -> Script:
    """Return what a program that has arrived brought of its script."""
    return Script(_brought(content), codec)


@functools.lru_cache(maxsize=4)
def _brought(content: bytes) -> Brought:
    found: Brought = pickle.loads(zlib.decompress(content) if content[:1] == b"x" else content)
    return found


# Functions ----------------------------------------------------------------------------------------


def make_function(code: CodeType, names: dict[str, Any], closure: Any, at: str | None) -> Any:
    """Make a function of the script: with the globals that all of them have here, or `names`.

    `at` is its name in the script, if it has one there. Where the process has that function, it is returned.
    """
    script = current()
    known = names_of(sys.modules["__main__"]) if script is None else script.names
    found = None
    if at is not None:
        with contextlib.suppress(AttributeError):
            found = script.find(at) if script is not None else known.get(at)
    if type(found) is FunctionType and found.__code__ == code:
        return found
    made = FunctionType(code, known if script is not None else names, None, None, closure)
    _thread.made.add(id(made))
    if at is not None and script is not None and _thread.script is script:
        known[at] = made
    return made


def add_class(kind: type, at: str | None) -> None:
    """Have the script that is being loaded have a class under its name."""
    if at is not None and _thread.script is not None:
        _thread.script.names[at] = kind


def set_state(func: Any, state: tuple[Any, dict[str, Any]]) -> None:
    """Give a function that was just made its attributes, and its globals what it names."""
    if id(func) not in _thread.made:
        return
    _thread.made.discard(id(func))
    _, slots = state
    named, slots["__globals__"] = slots["__globals__"], {}
    if _thread.script is not None:
        func.__globals__.update(named)
    give_names(func, named)
    set_function_state(func, state)
    func.__globals__["__builtins__"] = builtins  # as `__main__` has it, where cloudpickle puts a dict


def is_bare(func: Any) -> bool:
    """Tell whether a function of the script was just made, and has not got its state yet."""
    return id(func) in _thread.made


def give_names(func: Any, names: dict[str, Any]) -> None:
    """Have a function find these names, unless it finds others: those of an element's class may be later."""
    if _thread.script is None and (program := current()) is not None:
        program.find_all(names.keys() - func.__globals__.keys())
    for name, value in names.items():
        func.__globals__.setdefault(name, value)


def named(name: str) -> Any:
    """Return what the script has under this name."""
    script = current()
    return script.find(name) if script is not None else getattr(sys.modules["__main__"], name)


# Child processes ----------------------------------------------------------------------------------


def name_as_main() -> None:
    """Have the script's functions and classes be those of `__main__` in a child of `multiprocessing` too.

    A child that is started anew imports the script as `__mp_main__`, and has that module as `__main__` as
    well. Its parent, workers and whatever else unpickles know the script as `__main__` alone.
    """
    main = sys.modules.get("__main__")
    if main is None or main.__name__ != CHILD_S_MAIN:
        return
    todo = list(names_of(main).values())
    while todo:
        value = todo.pop()
        if isinstance(value, (type, FunctionType)) and value.__module__ == CHILD_S_MAIN:
            with contextlib.suppress(AttributeError, TypeError):  # a metaclass may refuse
                value.__module__ = "__main__"
                todo += vars(value).values() if isinstance(value, type) else ()


CHILD_S_MAIN = "__mp_main__"

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
        script = arrived(content, CODEC)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = script.module
        return script.find(name)
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
