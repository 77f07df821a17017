"""Patches: functions, classes and mocks of the program's own in the place of a library's, read and set.

A library is any module that is not the user's own. Those are looked through that the script or the user's
modules name, or have something of, with the classes that they define; and the modules within them, where they
are few. A worker has the patches while a task of the program runs.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.text import message_of
from parcoll.wire.codec import dumps
from parcoll.wire.named import Place, looks, originals, replaced
from parcoll.wire.own_modules import NOT_OWN, is_own_module
from parcoll.world import own_state
from parcoll.world.content import held, resolved
from parcoll.world.entries import FRESH, MOST_BYTES, Entries, is_own, replacing
from parcoll.world.libraries import Mock, mock_of, with_locks
from parcoll.world.outlines import renamed
from parcoll.world.settings import settings_of

LEFT_ALONE = {"abc", "copyreg", "logging", "sys", "unittest", "warnings", *NOT_OWN}  # `entries` has of these
# What a worker itself runs in. It would call what was put there, in other threads too: that is told.
RUN_IN = {"builtins", "asyncio", "concurrent", "queue", "select", "selectors", "socket", "threading"}
RUN_IN |= {"_thread", "cloudpickle", "dask", "distributed", "pickle", "tornado"}
MOST_WITHIN = 32  # modules of a package that are looked through: numpy has 150, with 10,000 names


class _Library:
    """A module, with the dictionaries that its names and those of its classes are in."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self._seen: list[int] = []
        self._tables: list[tuple[str, Callable[[], Iterable[Any]]]] = []
        self._found: dict[str, Any] = {}  # by path, weakly: the program's objects are not held

    def patches(self) -> dict[str, Any]:
        """Return what the program has put there, by path."""
        seen = list(map(id, chain.from_iterable([values() for _, values in self._tables])))
        found = {path: reference() for path, reference in self._found.items()}
        if seen != self._seen or not seen or None in found.values():
            found = self._look()
        return found

    def _look(self) -> dict[str, Any]:
        top = self.module.__name__.partition(".")[0]
        owners: list[tuple[str, Any]] = [("", vars(self.module))]
        for name, value in vars(self.module).copy().items():
            own = issubclass(type(value), type) and str(value.__module__).partition(".")[0] == top
            if own and top != "builtins" and _looks_through.setdefault(id(value), (self, value))[0] is self:
                owners.append((f"{name}.", vars(value)))
        self._tables = [(path, table.values) for path, table in owners]
        self._seen = list(map(id, chain.from_iterable([values() for _, values in self._tables])))
        found = {
            path + name: value
            for path, table in owners
            for name, value in table.copy().items()
            if _is_put(value, name) and name != "excepthook"
        }
        if top == "builtins":  # what was added to them travels
            found = {path: value for path, value in found.items() if path in FRESH}
        elif top not in RUN_IN:
            found = settings_of(self.module) | found
        self._found = {path: _weakly(value) for path, value in found.items()}
        return found


_looks_through: dict[int, tuple[_Library, Any]] = {}  # a class that several modules have is looked at once


def _weakly(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # of a property, say
        return lambda: value


def _is_put(value: Any, name: str) -> bool:
    """Tell whether a program has put this there: a function, class or mock, or what else can be called."""
    kind = type(value)  # `isinstance` would ask the object, which may raise: one of a request outside of it
    if kind in PARTIAL:
        given = *value.args, *value.keywords.values()
        # What binds arguments of the function that it replaces is no library's.
        return _is_put(value.func, "") or any(map(_is_part, given)) or _name_of(value.func) == name
    for part in ("__func__", "fget", "func"):  # of methods of each kind, and properties
        if kind.__module__ in ("builtins", "functools") and hasattr(value, part):
            return _is_put(getattr(value, part), "") or is_own(type(getattr(value, "__self__", None)))
    if kind is FunctionType:
        return _is_function_of_program(value) or mock_of(value) is not None
    if issubclass(kind, type):
        return is_own(value)
    if Mock.is_one(value):
        return True
    binds = hasattr(kind, "__get__")
    if not (binds or callable(value)):
        return False
    return is_own(kind) or (binds and _has_part(value))  # an accessor of pandas has the program's class


PARTIAL = (functools.partial, functools.partialmethod)


def _is_part(value: Any) -> bool:
    """Tell whether what something else has is the program's: a function, a class or its object."""
    kind = type(value)
    return _is_function_of_program(value) if kind is FunctionType else is_own(value if kind is type else kind)


def _has_part(value: Any) -> bool:
    try:
        return any(map(_is_part, [*vars(value).values()]))
    except Exception:  # it has no dictionary, or a property of that name, which raises
        return False


def _name_of(func: Any) -> Any:
    return getattr(func, "__name__", None)


def _is_function_of_program(value: FunctionType) -> bool:
    """Tell whether a function is the program's: one that wraps another says that it is that one."""
    home = value.__globals__.get("__name__")
    return is_own(value) or home == "__main__" or is_own_module(str(home), sys.modules.get(str(home)))


def _within(module: ModuleType) -> list[ModuleType]:
    """Return the module, and those within it; if these are many, those that are its public attributes."""
    prefix = f"{module.__name__}."
    parts: list[Any] = [part for name, part in sys.modules.copy().items() if name.startswith(prefix)]
    if len(parts) > MOST_WITHIN:
        attributes = vars(module).copy().items()
        parts = [sys.modules.get(prefix + name) for name, part in attributes if name[:1] != "_"]
    return [module, *(part for part in parts if isinstance(part, ModuleType))]


def _modules_of(names: dict[str, Any]) -> Iterator[ModuleType]:
    """Give the modules that names refer to, and those that functions and classes among them come from."""
    for value in list(names.values()):
        if issubclass(type(value), ModuleType):
            yield value
        elif issubclass(type(value), (FunctionType, type)):
            home = sys.modules.get(str(value.__module__))
            if home is not None and issubclass(type(home), ModuleType):
                yield home


# What a module names, as it was looked through last: of the dictionary of such a number, and so long.
_named: dict[str, tuple[int, int, list[ModuleType]]] = {}
_libraries: dict[str, _Library] = {}
_seen: list[Any] = []


def _is_there(module: ModuleType) -> bool:
    return sys.modules.get(vars(module).get("__name__", "")) is module


def _look_for_libraries() -> None:
    """Find the libraries that the script and modules of the user's own name."""
    homes = own_state.modules()
    main = sys.modules.get("__main__")
    if main is not None:
        homes = {**homes, "__main__": main}
    seen: list[Any] = [len(sys.modules), builtins]
    for name, home in homes.items():
        names = vars(home)
        known = _named.get(name)
        if known is None or known[:2] != (id(names), len(names)) or not all(map(_is_there, known[2])):
            those = list(dict.fromkeys(_modules_of(names)))
            _named[name] = known = id(names), len(names), those
        seen += known[2]
    if seen == _seen:
        return
    _seen[:] = seen
    wanted: dict[str, ModuleType] = {}
    for module in seen[1:]:
        name = module.__name__
        if name.partition(".")[0] not in LEFT_ALONE and not is_own_module(name, module):
            wanted |= {part.__name__: part for part in _within(module)}
    for name in [name for name in _libraries if wanted.get(name) is not _libraries[name].module]:
        gone = _libraries.pop(name)
        for number in [number for number, (one, _) in _looks_through.items() if one is gone]:
            del _looks_through[number]
    for name, module in wanted.items():
        if sys.modules.get(name) is module and name not in _libraries:
            _libraries[name] = _Library(module)


def read() -> dict[Place, Any]:
    """Return what tells whether patches are what they were, by their places."""
    with own_state.lock:
        _reading.append(threading.get_ident())
        try:
            return _read()
        finally:
            _reading.pop()


_reading: list[int] = []  # the thread that has the lock, as often as it reads


def _read() -> dict[Place, Any]:
    _look_for_libraries()
    found = {
        (name, path): _told_of(value)
        for name, library in _libraries.copy().items()
        for path, value in library.patches().items()
    }
    for name, path in [*originals]:  # an evaluation within a function
        found.setdefault((name, path), _told_of(held(*resolved(sys.modules[name], path))))
    if replaced != found.keys():
        replaced.clear()
        replaced.update(found)
    return found


def homes() -> set[str]:
    """Return the user's own modules that patches come from, as they were at the last reading."""
    values = [found() for library in list(_libraries.values()) for found in list(library._found.values())]
    names = {str(getattr(value, "__module__", None) or type(value).__module__) for value in values}
    return {name for name in names if is_own_module(name, sys.modules.get(name))}


def _told_of(value: Any) -> Any:
    mocked = mock_of(value)
    if mocked is None and isinstance(value, (FunctionType, type)):
        return weakref.ref(value)
    try:
        return with_locks(mocked or value)  # it may change in place
    except Exception:  # it cannot travel
        return None


def pack(found: dict[Place, Any]) -> dict[int, bytes]:
    """Return what travels of them, and note what cannot."""
    sent: dict[int, bytes] = {}
    for place in found:
        try:
            if place[0].partition(".")[0] in RUN_IN:
                raise TypeError("workers run in that library, and would call it")
            value = held(*resolved(sys.modules[place[0]], place[1]))
            sent[len(sent)] = dumps((place, _sent(value, place)), MOST_BYTES)
        except Exception as error:
            told = f"what the script has put into {'.'.join(place)}", message_of(error)
            if told not in _told:
                _told.add(told)
                refused.append(told)
    return sent


refused: list[tuple[str, str]] = []  # what cannot travel, and why
_told: set[tuple[str, str]] = set()


def _sent(value: Any, key: Place) -> Any:
    """Return what is sent for a value: of a mock what it does, and what wraps a function not by its name."""
    if (mocked := mock_of(value)) is not None:
        return mocked
    is_wrapper = type(value) is FunctionType and (value.__module__, value.__qualname__) == key
    return renamed(value, key[1]) if is_wrapper else value


set_ = Entries(*replacing(originals))


def _look() -> None:
    """Read, for a pickler; unless that pickles what was read. That goes on whatever is found."""
    if threading.get_ident() not in _reading:
        with contextlib.suppress(Exception):
            read()


looks.append(_look)


# Clocks of freezegun and time-machine -------------------------------------------------------------
# Both put functions of their own, no program's, where Python's clocks are: freezegun into all modules, and
# time-machine into the functions themselves. `promises/test_frozen_clocks.py` fails when their private parts
# change.


ZONE = ("_destination_tzname", "_orig_tz")  # which time-machine puts into the environment, and that travels


class Frozen(NamedTuple):
    """Where such a library has the clocks stand or go."""

    package: str
    kind: str  # of what tells the time
    state: dict[str, Any]  # its own
    offset: Any = None  # of the local time, for freezegun
    ignored: tuple[str, ...] = ()  # modules beside those that freezegun always leaves alone


def read_frozen() -> Frozen | None:
    """Return where the program has the clocks; None if they go as in a fresh process."""
    api: Any = sys.modules.get("freezegun.api")
    if telling := getattr(api, "freeze_factories", None):
        always = sys.modules["freezegun.config"].DEFAULT_IGNORE_LIST
        ignored = tuple(name for name in api.ignore_lists[-1] if name not in always)
        return Frozen("freezegun", *_told_by(telling[-1]), api.tz_offsets[-1], ignored)
    # Before its third version time-machine stopped the monotonic clock, and with it all event loops.
    if travellers := getattr(sys.modules.get("time_machine"), "traveller_stack", None):
        travellers[-1].time_ns()  # which makes it begin, if it has not
        return Frozen("time_machine", *_told_by(travellers[-1]))
    return None


def _told_by(telling: Any) -> tuple[str, dict[str, Any]]:
    state = {name: value for name, value in vars(telling).items() if name not in ZONE}
    return type(telling).__name__, state


def set_frozen(wanted: Frozen | None) -> None:
    """Have the clocks stand or go so."""
    while _frozen:
        _frozen.pop()()
    if wanted is None:
        return
    package = importlib.import_module(wanted.package)
    if wanted.package == "time_machine":
        travel = package.travel(0)
        telling = travel.start()
        _frozen.append(travel.stop)
    else:
        # What a worker runs in is left alone. Whose calls are not changed is not asked: freezegun would look
        # for `threading` among the callers, and functions are called in threads here.
        freezer = package.freeze_time(ignore=[*RUN_IN, "parcoll"])
        freezer.start()
        _frozen.append(freezer.stop)
        api = sys.modules["freezegun.api"]
        telling = object.__new__(getattr(api, wanted.kind))
        api.freeze_factories[-1], api.tz_offsets[-1] = telling, wanted.offset
        api.ignore_lists[-1] = wanted.ignored
    vars(telling).update(wanted.state)


_frozen: list[Callable[[], None]] = []  # what ends it


# Libraries that are not imported yet ---------------------------------------------------------------


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


class _Call:
    def __init__(self, func: Any, *arguments: Any) -> None:
        self.reduced = func, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def pickled_module(name: str) -> bytes:
    """Pickle a module, which the worker imports when it is used."""
    return pickle.dumps(_Call(module_named, name), 5)
