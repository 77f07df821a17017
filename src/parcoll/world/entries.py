"""Entries: what the script's own code has put where Python's own looks for it, read and set.

They are set after the modules that their functions come from are here, and travel packed. `world` has the
table of these things.
"""

from __future__ import annotations

import abc
import builtins
import contextlib
import copyreg
import functools
import importlib
import logging
import sys
import warnings
import weakref
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any

from parcoll.wire import script
from parcoll.wire.codec import dumps, loads
from parcoll.wire.named import Place
from parcoll.wire.own_modules import is_own_module
from parcoll.world.content import held, resolved
from parcoll.world.libraries import Mock
from parcoll.world.outlines import ABSENT, give_back

MOST_BYTES = 64 * 1024  # bytes of an entry, at most


def is_own(value: Any) -> bool:
    """Tell whether a function, class or object is the script's, or comes from a module of the user's own."""
    name = _home(value)
    return name == "__main__" or (name is not None and is_own_module(name, sys.modules.get(name)))


def _home(value: Any) -> str | None:
    """Return the module that a function, class or object says it is of."""
    try:
        name = getattr(value, "__module__", None)
    except Exception:  # a framework's proxy of an object that is not there yet
        return None
    return name if isinstance(name, str) else None


def packed(entries: dict[Any, Any]) -> dict[int, bytes]:
    """Return what travels of some entries: the key of each, and a pickle of both."""
    found: dict[int, bytes] = {}
    for key, value in entries.items():
        try:
            found[len(found)] = dumps((key, value), MOST_BYTES)
        except Exception:  # it finds a lock, say, or is too large: it stays the script's
            continue
    return found


class Entries:
    """The entries of one table of Python's own, as the script has them, on a worker."""

    def __init__(self, put: Any, drop: Any) -> None:
        self._put, self._drop = put, drop
        self._here: dict[int, tuple[bytes, Any]] = {}  # by number: as they came, and the key
        self._of: Any = None  # the program in which they were loaded

    def __call__(self, wanted: dict[int, bytes]) -> None:
        """Set what has changed, and remove what is gone; each program has the script's functions anew."""
        program = script.current()
        other = self._of is None or self._of() is not program
        self._of = weakref.ref(program) if program is not None else None
        for at, (content, key) in self._here.copy().items():
            if wanted.get(at) != content or (other and b"__main__" in content):
                del self._here[at]
                self._drop(key)
        refused: Exception | None = None
        for at, content in wanted.items():
            if at not in self._here:
                try:
                    key, value = loads(content)
                    self._put(key, value)
                    self._here[at] = content, key
                except Exception as error:  # the others are set
                    refused = error
        if refused is not None:
            raise refused


def replacing(before: dict[Place, Any]) -> tuple[Any, Any]:
    """Return what puts a value at a place, and what puts back what was there; `before` has it meanwhile."""

    def found(place: Place) -> tuple[Any, str]:
        return resolved(importlib.import_module(place[0]), place[1])

    def put_in(place: Place, value: Any) -> None:
        owner, name = found(place)
        before.setdefault(place, held(owner, name))
        setattr(owner, name, value.make() if isinstance(value, Mock) else value)

    def drop(place: Place) -> None:
        give_back(*found(place), before.pop(place, ABSENT))

    return put_in, drop


def read_reducers() -> dict[type, Any]:
    """Return how the program has objects pickled and copied, by their class."""
    table = copyreg.dispatch_table
    seen = [*table, *table.values()]
    if seen != _reducers[0]:
        _reducers[:] = seen, {kind: reduce for kind, reduce in table.copy().items() if is_own(reduce)}
    return dict(_reducers[1])


_reducers: list[Any] = [None, {}]  # the table as it was seen last, and what of it is the program's


set_reducers = Entries(
    lambda kind, reduce: copyreg.pickle(kind, reduce), lambda kind: copyreg.dispatch_table.pop(kind, None)
)


def read_options() -> dict[tuple[str, str], Any]:
    """Return what the program has set of pandas' options and matplotlib's parameters, by library and name."""
    return {
        (library, name): value
        for library, options in _OPTIONS.items()
        for name, (value, default) in options().items()
        if _differ(value, default)
    }


def _of_pandas() -> dict[str, tuple[Any, Any]]:
    # pandas tells what its options are by default in texts alone. `promises/test_same_options.py` fails when
    # it has these two tables no more.
    config = sys.modules.get("pandas._config.config")
    found: dict[str, tuple[Any, Any]] = {}
    for name, option in getattr(config, "_registered_options", {}).copy().items():
        value: Any = getattr(config, "_global_config", {})
        for part in name.split("."):
            value = value.get(part, option.defval) if isinstance(value, dict) else option.defval
        found[name] = value, option.defval
    return found


def _of_matplotlib() -> dict[str, tuple[Any, Any]]:
    library = sys.modules.get("matplotlib")
    now, before = getattr(library, "rcParams", {}), getattr(library, "rcParamsOrig", {})
    # As they are stored: to ask for the backend, as a copy does too, chooses one and imports it.
    names = list(dict.keys(before))
    found = {
        name: (dict.get(now, name), dict.get(before, name)) for name in names if dict.__contains__(now, name)
    }
    found.pop("interactive", None)
    # One that has windows belongs to the script's own thread and screen.
    if str(found.get("backend", ("",))[0]).lower() not in _WITHOUT_WINDOWS:
        found.pop("backend", None)
    return found


_WITHOUT_WINDOWS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
_OPTIONS = {"pandas": _of_pandas, "matplotlib": _of_matplotlib}


def _differ(value: Any, default: Any) -> bool:
    if value is default:
        return False
    try:
        return bool(value != default)
    except Exception:  # of objects that compare themselves otherwise, arrays say
        return True


def _set_option(key: tuple[str, str], value: Any) -> None:
    library, name = key
    module: Any = importlib.import_module(library)
    if library == "pandas":
        module.set_option(name, value)
    elif name == "backend":
        module.use(value)
    else:
        module.rcParams[name] = value


def _reset_option(key: tuple[str, str]) -> None:
    library, name = key
    options = _OPTIONS[library]()
    if name in options and library == "pandas":
        _set_option(key, options[name][1])
    elif name in options:  # before the backend was chosen it is no name
        dict.__setitem__(sys.modules[library].rcParams, name, options[name][1])


set_options = Entries(_set_option, _reset_option)


def read_dialects() -> dict[str, Any]:
    """Return the dialects of `csv` that the program has registered."""
    csv: Any = sys.modules.get("_csv")
    if csv is None:
        return {}
    names = [name for name in csv.list_dialects() if name not in ("excel", "excel-tab", "unix")]
    return {name: tuple(getattr(csv.get_dialect(name), part) for part in _DIALECT) for name in names}


_DIALECT = (
    *("delimiter", "quotechar", "doublequote", "skipinitialspace", "lineterminator", "quoting"),
    *("escapechar", "strict"),
)


def _register_dialect(name: str, parts: tuple[Any, ...]) -> None:
    importlib.import_module("csv").register_dialect(name, **dict(zip(_DIALECT, parts, strict=True)))


set_dialects = Entries(
    _register_dialect, lambda name: importlib.import_module("csv").unregister_dialect(name)
)


def read_adapters() -> dict[Any, Any]:
    """Return how the program has `sqlite3` take and give values."""
    module: Any = sys.modules.get("sqlite3.dbapi2")
    if module is None:
        return {}
    adapters = {
        ("adapter", kind): adapt for (kind, _), adapt in module.adapters.copy().items() if is_own(adapt)
    }
    converters = module.converters.copy().items()
    return adapters | {("converter", name): convert for name, convert in converters if is_own(convert)}


def _register_adapter(key: tuple[str, Any], func: Any) -> None:
    getattr(importlib.import_module("sqlite3"), f"register_{key[0]}")(key[1], func)


def _drop_adapter(key: tuple[str, Any]) -> None:
    module: Any = sys.modules["sqlite3.dbapi2"]
    table = module.adapters if key[0] == "adapter" else module.converters
    for known in [known for known in table if key[1] in (known, known[0])]:
        del table[known]


set_adapters = Entries(_register_adapter, _drop_adapter)


def read_builtins() -> dict[str, Any]:
    """Return the names that the program has added to the built-in ones, as `gettext.install` does.

    With each goes what tells whether it is what it was: the object itself is not held, since it would outlive
    the program, and what it holds.
    """
    names = vars(builtins)
    seen = [*names, *map(id, names.values())]
    if seen != _added[0]:
        _added[:] = seen, [name for name, value in names.copy().items() if _is_added(name, value)]
    return {name: _told_of(names[name]) for name in _added[1] if name in names}


def pack_builtins(found: dict[str, Any]) -> dict[int, bytes]:
    """Return what travels of them."""
    names = vars(builtins)
    return packed({name: names[name] for name in found if name in names})


def _told_of(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return kind, value
    try:
        if issubclass(kind, (FunctionType, MethodType, type)):
            return weakref.ref(value)
        return value if kind is BuiltinFunctionType else dumps(value, MOST_BYTES)  # it may change in place
    except Exception:  # it cannot travel
        return None


_added: list[Any] = [None, []]  # the names as they were seen last, and which of them the program has added
FRESH = frozenset(vars(builtins))  # in a worker, which has added none
_SCALARS = (str, bytes, int, float, complex, bool, NoneType)
_CONTAINERS = (list, dict, tuple, set, frozenset, bytearray)
_OF_START = ("builtins", "io", "_io", "_sitebuiltins")  # whose objects are there when Python starts


def _is_added(name: str, value: Any) -> bool:
    if name[:2] == "__" or (name == "_" and hasattr(sys, "ps1")):  # the last result
        return False
    if name in ("True", "False", "None"):
        return False
    if type(value) in (*_SCALARS, *_CONTAINERS) or is_own(value):
        return True
    home = _home(value) or str(type(value).__module__)
    return home.partition(".")[0] in sys.stdlib_module_names and home not in _OF_START


def _add_name(name: str, value: Any) -> None:
    if name not in FRESH:
        setattr(builtins, name, value)


def _drop_name(name: str) -> None:
    if name not in FRESH:
        vars(builtins).pop(name, None)


set_builtins = Entries(_add_name, _drop_name)


def read_shown_warnings() -> dict[str, Any]:
    """Return the functions of its own that the program has put in the place of those that show warnings."""
    names = ("showwarning", "formatwarning")
    return {name: value for name in names if is_own(value := getattr(warnings, name))}


_shown: dict[str, Any] = {}


def _show(name: str, func: Any) -> None:
    _shown.setdefault(name, getattr(warnings, name))
    setattr(warnings, name, func)


set_shown_warnings = Entries(_show, lambda name: setattr(warnings, name, _shown.pop(name)))


def read_logging_names() -> dict[Place, Any]:
    """Return what the program has set in `logging` and its `Logger`: functions of its own, and numbers.

    So are levels of one's own made: `logging.TRACE = 5`, `logging.Logger.trace = ...`.
    """
    module = vars(logging)
    seen = [*module.values(), *vars(logging.Logger).values()]
    if seen != _set_in_logging[0]:
        methods = vars(logging.Logger).copy().items()
        found: dict[tuple[str, str], Any] = {
            ("logging", name): v for name, v in module.copy().items() if _is_set(v)
        }
        found |= {("logging", f"Logger.{name}"): value for name, value in methods if _is_set(value)}
        numbers = [item for item in module.copy().items() if type(item[1]) in (int, bool)]
        found |= {
            ("logging", name): v for name, v in numbers if name[0] != "_" and _NUMBERS.get(name, True) != v
        }
        _set_in_logging[:] = seen, found
    return dict(_set_in_logging[1])


_set_in_logging: list[Any] = [None, {}]
_NUMBERS = {"CRITICAL": 50, "FATAL": 50, "ERROR": 40, "WARNING": 30, "WARN": 30, "INFO": 20, "DEBUG": 10}
_NUMBERS |= {"NOTSET": 0}  # and what is `True` there: `raiseExceptions`, `logThreads` and the like


def _is_set(value: Any) -> bool:
    return isinstance(value, (functools.partial, functools.partialmethod)) or (
        type(value) is FunctionType and is_own(value)
    )


set_logging_names = Entries(*replacing({}))


def read_subclasses() -> list[tuple[Any, Any]]:
    """Return the classes of its own that the program has registered with abstract ones, with those.

    Weakly, as these have them.
    """
    token = abc.get_cache_token(), len(sys.modules)
    if token != _registered[0]:
        pairs = [pair for kind in _abstract_ones() for pair in _pairs_of(kind)]
        _registered[:] = token, [(weakref.ref(kind), weakref.ref(one)) for kind, one in pairs]
    return [pair for pair in _registered[1] if pair[0]() is not None and pair[1]() is not None]


def pack_subclasses(found: list[tuple[Any, Any]]) -> dict[int, bytes]:
    """Return what travels of them."""
    pairs = [(kind(), one()) for kind, one in found]
    return packed({pair: None for pair in pairs if None not in pair})


_registered: list[Any] = [None, []]
_WITH_ABSTRACT = ("collections.abc", "numbers", "os", "contextlib", "io")


def _abstract_ones() -> Iterator[abc.ABCMeta]:
    for name, module in sys.modules.copy().items():
        if name in _WITH_ABSTRACT or is_own_module(name, module):
            yield from (kind for kind in list(vars(module).values()) if type(kind) is abc.ABCMeta)


def _pairs_of(kind: abc.ABCMeta) -> Iterator[tuple[Any, Any]]:
    with contextlib.suppress(AttributeError, TypeError):  # it is no class of C's
        found = [reference() for reference in vars(abc)["_get_dump"](kind)[0]]
        yield from ((kind, one) for one in found if one is not None and is_own(one))


set_subclasses = Entries(lambda pair, _: pair[0].register(pair[1]), lambda pair: None)
