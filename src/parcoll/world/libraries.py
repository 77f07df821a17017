"""Libraries: what a program can set in Python's own libraries and in numpy, read and set.

`world` has the table of these things. Each is None where it is as in a fresh process.
"""

from __future__ import annotations

import _locale
import functools
import importlib
import sys
from typing import Any


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
