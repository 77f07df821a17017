"""Libraries: what a program can set in Python's own libraries and in numpy, read and set.

`world` has the table of these things. Each is None where it is as in a fresh process.
"""

from __future__ import annotations

import _locale
import abc
import builtins
import contextlib
import copyreg
import functools
import importlib
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from parcoll.wire import script
from parcoll.wire.codec import by_value, loads
from parcoll.wire.own_modules import is_own_module

# Settings -----------------------------------------------------------------------------------------


def _context(context: Any) -> tuple[Any, ...]:
    c = context
    return c.prec, c.rounding, c.Emin, c.Emax, c.capitals, c.clamp, tuple(c.traps.values())


def read_decimal() -> tuple[Any, ...] | None:
    """Return this thread's decimal context; None if it is as in a fresh process."""
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    found = _context(decimal.getcontext())
    return None if found == _context(decimal.DefaultContext) else found


def read_default_context() -> tuple[Any, ...] | None:
    """Return what threads begin with as their decimal context; None if it is as in a fresh process."""
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    found = _context(decimal.DefaultContext)
    return None if found == _fresh_context() else found


@functools.cache
def _fresh_context() -> tuple[Any, ...]:
    import decimal

    traps = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
    return _context(decimal.Context(28, decimal.ROUND_HALF_EVEN, -999999, 999999, 1, 0, [], traps))


def set_default_context(wanted: tuple[Any, ...] | None) -> None:
    """Have threads begin with such a decimal context."""
    import decimal

    c = decimal.DefaultContext
    c.prec, c.rounding, c.Emin, c.Emax, c.capitals, c.clamp, traps = wanted or _fresh_context()
    for signal, is_on in zip(c.traps, traps, strict=True):
        c.traps[signal] = is_on


def set_decimal(wanted: tuple[Any, ...] | None) -> None:
    """Have this thread's decimal context be such a one."""
    import decimal

    context = decimal.Context()
    if wanted is not None:
        prec, rounding, least, most, capitals, clamp, traps = wanted
        on = [signal for signal, is_on in zip(context.traps, traps, strict=True) if is_on]
        context = decimal.Context(prec, rounding, least, most, capitals, clamp, [], on)
    decimal.setcontext(context)


def copy_decimal() -> None:
    """Have this context have a decimal context of its own, which is what it was."""
    decimal = sys.modules.get("decimal")
    if decimal is not None:
        decimal.setcontext(decimal.getcontext().copy())


_NUMPY_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def read_numpy_errors() -> tuple[Any, ...] | None:
    """Return numpy's error state; None if it is as in a fresh process."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "geterrcall"):  # it is being imported
        return None
    found, call = numpy.geterr(), numpy.geterrcall()
    return None if found == _NUMPY_ERRORS and call is None else (found, call)


def set_numpy_errors(wanted: tuple[Any, ...] | None) -> None:
    """Set numpy's error state."""
    numpy = importlib.import_module("numpy")
    errors, call = wanted if wanted is not None else (_NUMPY_ERRORS, None)
    numpy.seterr(**errors)
    numpy.seterrcall(call)


def read_numpy_print() -> dict[str, Any] | None:
    """Return numpy's print options; None if they are as in a fresh process."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "get_printoptions"):
        return None
    found: dict[str, Any] = numpy.get_printoptions()
    return None if _NUMPY_PRINT.items() <= found.items() else found


_NUMPY_PRINT: dict[str, Any] = {"edgeitems": 3, "threshold": 1000, "floatmode": "maxprec", "precision": 8}
_NUMPY_PRINT |= {"suppress": False, "linewidth": 75, "nanstr": "nan", "infstr": "inf", "sign": "-"}
_NUMPY_PRINT |= {"formatter": None, "legacy": False}


def set_numpy_print(wanted: dict[str, Any] | None) -> None:
    """Set numpy's print options."""
    numpy = importlib.import_module("numpy")
    found = numpy.get_printoptions()
    options = wanted if wanted is not None else _NUMPY_PRINT
    numpy.set_printoptions(**{name: value for name, value in options.items() if name in found})


def read_locale() -> str | None:
    """Return the locale; None if it is as Python sets it when it starts."""
    found = _locale.setlocale(_locale.LC_ALL, None)
    # Python itself sets LC_CTYPE when it starts, as the machine has it.
    first, *others = found.split(";")
    fresh = first.startswith("LC_CTYPE=") and all(other.endswith("=C") for other in others)
    return None if fresh else found


def set_locale(wanted: str | None) -> None:
    """Set the locale."""
    _locale.setlocale(_locale.LC_ALL, wanted or "C")
    if wanted is None:
        _locale.setlocale(_locale.LC_CTYPE, "")


def read_timeout() -> float | None:
    """Return the default timeout of sockets."""
    socket = sys.modules.get("socket")
    return socket.getdefaulttimeout() if socket is not None else None


def set_timeout(seconds: float | None) -> None:
    """Set the default timeout of sockets."""
    import socket

    socket.setdefaulttimeout(seconds)


_FIELD_SIZE = 131_072


def read_field_size() -> int | None:
    """Return how long a field of `csv` may be; None if it is as in a fresh process."""
    csv = sys.modules.get("_csv")
    size: int | None = csv.field_size_limit() if csv is not None else None
    return None if size == _FIELD_SIZE else size


def set_field_size(size: int | None) -> None:
    """Set how long a field of `csv` may be."""
    import csv

    csv.field_size_limit(size or _FIELD_SIZE)


def read_temporary() -> Any:
    """Return the folder for temporary files, where the program has asked for it or set it."""
    return getattr(sys.modules.get("tempfile"), "tempdir", None)


def set_temporary(folder: Any) -> None:
    """Set the folder for temporary files; with None it is what the environment says."""
    if folder is not None or "tempfile" in sys.modules:
        vars(importlib.import_module("tempfile"))["tempdir"] = folder


def read_start_method() -> str | None:
    """Return how `multiprocessing` starts processes, where the program has said so."""
    module: Any = sys.modules.get("multiprocessing.context")
    return module._default_context.get_start_method(allow_none=True) if module is not None else None


def set_start_method(method: str | None) -> None:
    """Set how `multiprocessing` starts processes."""
    importlib.import_module("multiprocessing").set_start_method(method, force=True)


# Entries ------------------------------------------------------------------------------------------
#
# What the script's own code has put where Python's own looks for it. They are set after the modules that
# their functions come from are here, and travel packed.

_PACKED = 64 * 1024  # bytes of an entry, at most


def _is_own(value: Any) -> bool:
    """Tell whether a function, class or object is the script's, or comes from a module of the user's own."""
    name = getattr(value, "__module__", None)
    if not isinstance(name, str):
        return False
    return name == "__main__" or is_own_module(name, sys.modules.get(name))


def packed(entries: dict[Any, Any]) -> dict[int, bytes]:
    """Return what travels of some entries: the key of each, and a pickle of both."""
    found: dict[int, bytes] = {}
    for key, value in entries.items():
        try:
            content = by_value((key, value))
        except Exception:  # a function that finds a lock, say: it stays the script's
            continue
        if len(content) <= _PACKED:
            found[len(found)] = content
    return found


class _Entries:
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
        for at, (content, key) in list(self._here.items()):
            if wanted.get(at) != content or (other and b"__main__" in content):
                del self._here[at]
                self._drop(key)
        for at, content in wanted.items():
            if at not in self._here:
                key, value = loads(content)
                self._put(key, value)
                self._here[at] = content, key


def read_reducers() -> dict[type, Any]:
    """Return how the program has objects pickled and copied, by their class."""
    table = copyreg.dispatch_table
    seen = [*table, *table.values()]
    if seen != _reducers[0]:
        _reducers[:] = seen, {kind: reduce for kind, reduce in list(table.items()) if _is_own(reduce)}
    return dict(_reducers[1])


_reducers: list[Any] = [None, {}]  # the table as it was seen last, and what of it is the program's


set_reducers = _Entries(
    lambda kind, reduce: copyreg.pickle(kind, reduce), lambda kind: copyreg.dispatch_table.pop(kind, None)
)


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


set_dialects = _Entries(
    _register_dialect, lambda name: importlib.import_module("csv").unregister_dialect(name)
)


def read_adapters() -> dict[Any, Any]:
    """Return how the program has `sqlite3` take and give values."""
    module: Any = sys.modules.get("sqlite3.dbapi2")
    if module is None:
        return {}
    adapters = {
        ("adapter", kind): adapt for (kind, _), adapt in list(module.adapters.items()) if _is_own(adapt)
    }
    converters = list(module.converters.items())
    return adapters | {("converter", name): convert for name, convert in converters if _is_own(convert)}


def _register_adapter(key: tuple[str, Any], func: Any) -> None:
    getattr(importlib.import_module("sqlite3"), f"register_{key[0]}")(key[1], func)


def _drop_adapter(key: tuple[str, Any]) -> None:
    module: Any = sys.modules["sqlite3.dbapi2"]
    table = module.adapters if key[0] == "adapter" else module.converters
    for known in [known for known in table if key[1] in (known, known[0])]:
        del table[known]


set_adapters = _Entries(_register_adapter, _drop_adapter)


def read_builtins() -> dict[str, Any]:
    """Return the names that the program has added to the built-in ones, as `gettext.install` does."""
    names = vars(builtins)
    seen = [*names, *map(id, names.values())]
    if seen != _added[0]:
        _added[:] = seen, {name: value for name, value in list(names.items()) if _is_added(name, value)}
    return dict(_added[1])


_added: list[Any] = [None, {}]  # the names as they were seen last, and which of them the program has added
_fresh = frozenset(vars(builtins))  # in a worker, which has added none
_SCALARS = (str, bytes, int, float, complex)
_OF_START = ("builtins", "io", "_io", "_sitebuiltins")  # whose objects are there when Python starts


def _is_added(name: str, value: Any) -> bool:
    if name[:2] == "__" or (name == "_" and hasattr(sys, "ps1")):  # the last result
        return False
    if type(value) in _SCALARS or _is_own(value):
        return True
    home = str(getattr(value, "__module__", None) or type(value).__module__)
    return home.partition(".")[0] in sys.stdlib_module_names and home not in _OF_START


def _add_name(name: str, value: Any) -> None:
    if name not in _fresh:
        setattr(builtins, name, value)


def _drop_name(name: str) -> None:
    if name not in _fresh:
        vars(builtins).pop(name, None)


set_builtins = _Entries(_add_name, _drop_name)


def read_shown_warnings() -> dict[str, Any]:
    """Return the functions of its own that the program has put in the place of those that show warnings."""
    names = ("showwarning", "formatwarning")
    return {name: value for name in names if _is_own(value := getattr(warnings, name))}


_shown: dict[str, Any] = {}


def _show(name: str, func: Any) -> None:
    _shown.setdefault(name, getattr(warnings, name))
    setattr(warnings, name, func)


set_shown_warnings = _Entries(_show, lambda name: setattr(warnings, name, _shown.pop(name)))


def read_subclasses() -> dict[Any, None]:
    """Return the classes of its own that the program has registered with abstract ones, with those."""
    token = abc.get_cache_token(), len(sys.modules)
    if token != _registered[0]:
        _registered[:] = token, {pair: None for kind in _abstract_ones() for pair in _pairs_of(kind)}
    return dict(_registered[1])


_registered: list[Any] = [None, {}]
_WITH_ABSTRACT = ("collections.abc", "numbers", "os", "contextlib", "io")


def _abstract_ones() -> Iterator[abc.ABCMeta]:
    for name, module in list(sys.modules.items()):
        if name in _WITH_ABSTRACT or is_own_module(name, module):
            yield from (kind for kind in list(vars(module).values()) if type(kind) is abc.ABCMeta)


def _pairs_of(kind: abc.ABCMeta) -> Iterator[tuple[Any, Any]]:
    with contextlib.suppress(AttributeError, TypeError):  # it is no class of C's
        found = [reference() for reference in vars(abc)["_get_dump"](kind)[0]]
        yield from ((kind, one) for one in found if one is not None and _is_own(one))


set_subclasses = _Entries(lambda pair, _: pair[0].register(pair[1]), lambda pair: None)
