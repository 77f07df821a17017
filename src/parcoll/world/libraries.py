"""Libraries: what a program can set in Python's own libraries and in numpy, read and set.

`world` has the table of these things. Each is None where it is as in a fresh process. The others are told of
objects in modules of the user's own: whether they are data, or mocks of `unittest.mock`.
"""

from __future__ import annotations

import _locale
import contextlib
import functools
import importlib
import io
import random
import sys
import threading
from enum import Enum
from types import FunctionType
from typing import Any, NamedTuple

from parcoll.wire.codec import LOCKS, ByValue, by_value, loads
from parcoll.wire.own_modules import is_own_module

CONTAINERS = (dict, list, set, frozenset, tuple)
# Whose instances are data, beside the user's own classes.
DATA_MODULES = {
    "argparse",
    "array",
    "collections",
    "configparser",
    "datetime",
    "decimal",
    "fractions",
    "uuid",
}
DATA_MODULES |= {"functools", "ipaddress", "numpy", "operator", "pandas", "pathlib", "random", "re", "string"}
DATA_MODULES |= {"types"}
DATA_MODULES |= {"unittest", "zoneinfo"}  # of mocks: sentinels

OTHERS = (bytearray, range, slice, io.StringIO, io.BytesIO, threading.Event)


class Filters:
    """The warnings filters, as they travel: on a worker, some are pickles, which lack their class.

    That may lack the package, or get a module of the user's only with the program. So each loads for itself.
    """

    def __init__(self, found: tuple[Any, ...]) -> None:
        self._found, self._modules = found, -1  # how many there were when missing classes were looked for

    def __reduce__(self) -> tuple[Any, ...]:
        return Filters, (
            tuple(one if one[2].__module__ == "builtins" else by_value(one) for one in self._found),
        )

    def here(self) -> tuple[Any, ...]:
        """Return those whose class is here: nothing else can be warned of."""
        if self._modules != len(sys.modules):
            self._found, self._modules = tuple(map(_loaded, self._found)), len(sys.modules)
        return tuple(one for one in self._found if type(one) is not bytes)

    def __eq__(self, other: object) -> bool:
        return self.here() == other

    __hash__ = None  # type: ignore[assignment]


def _loaded(one: Any) -> Any:
    with contextlib.suppress(ImportError, AttributeError):
        return loads(one) if type(one) is bytes else one
    return one


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


def read_traceback_limit() -> Any:
    """Return how many lines a traceback may have, where the program has said so."""
    return getattr(sys, "tracebacklimit", None)


def set_traceback_limit(most: Any) -> None:
    """Set how many lines a traceback may have; with None any number."""
    if most is not None:
        sys.tracebacklimit = most
    elif hasattr(sys, "tracebacklimit"):
        del sys.tracebacklimit


def generators() -> tuple[type, ...]:
    """Return the types of generators of random numbers that are known here."""
    found = sys.modules.get("numpy.random")
    kinds = [getattr(found, name, random.Random) for name in ("Generator", "RandomState")]
    return random.Random, *kinds


def draw_as(here: Any, value: Any) -> bool:
    """Have a generator go on where another one of its kind stands; tells whether it can."""
    if isinstance(here, random.Random):
        here.setstate(value.getstate())
        return True
    if type(here._bit_generator) is not type(value._bit_generator):
        return False
    if hasattr(here, "set_state"):  # a `RandomState`, which may have a number left
        here.set_state(value.get_state())
    else:
        here.bit_generator.state = value.bit_generator.state
    return True


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


def is_data(kind: type) -> bool:
    """Tell whether objects of a class are data: of the user's own classes, and of some of Python's."""
    if issubclass(kind, (Enum, BaseException)) or kind in CONTAINERS or kind in OTHERS:
        return True
    module = kind.__module__
    return (
        module.partition(".")[0] in DATA_MODULES
        or module == "__main__"
        or is_own_module(module, sys.modules.get(module))
    )


# Whose objects belong to a process.
_OF_PROCESS = {
    "_thread",
    "asyncio",
    "builtins",
    "concurrent",
    "contextvars",
    "dask",
    "distributed",
    "logging",
}
_OF_PROCESS |= {"multiprocessing", "parcoll", "threading", "typing", "weakref"}


def belongs_to_process(kind: type) -> bool:
    """Tell whether objects of a class are of no use in another process."""
    return kind.__module__.partition(".")[0] in _OF_PROCESS


def is_part_of_class(kind: type) -> bool:
    """Tell whether objects of a class say how another one works, rather than being its data."""
    return issubclass(kind, (Enum, BaseException)) or any(
        hasattr(kind, name) for name in ("__get__", "__set__", "__set_name__")
    )


class Mock(NamedTuple):
    """What a mock does, of `unittest.mock`, which cannot be pickled; the calls that it has had stay here."""

    number: int  # in the order in which they are met: one may return itself
    kind: str  # of its class; none where it has been met
    returns: Any
    effect: Any
    attributes: dict[str, Any]
    wraps: Any = None

    @staticmethod
    def is_one(value: Any) -> bool:
        """Tell whether a value is a mock."""
        mock = sys.modules.get("unittest.mock")
        return mock is not None and issubclass(type(value), mock.NonCallableMock)  # the object may raise

    @classmethod
    def of(cls, value: Any, met: dict[int, int] | None = None) -> Mock:
        """Describe a mock."""
        met = {} if met is None else met
        if id(value) in met:
            return cls(met[id(value)], "", None, None, {})
        number = met[id(value)] = len(met)
        mock = sys.modules["unittest.mock"]
        state = vars(value)
        found = {n: part for n, part in state["_mock_children"].items() if n[:2] != "__" or cls.is_one(part)}
        found |= {
            k: v for k, v in state.items() if not k.startswith(("_mock", "_spec")) and k != "method_calls"
        }
        attributes = {name: cls.of(part, met) if cls.is_one(part) else part for name, part in found.items()}
        func = state.get("_mock_delegate")  # that `create_autospec` has made: what is set is set there
        returns = state.get("_mock_return_value", mock.DEFAULT) if func is None else func.return_value
        returns = (
            cls.of(returns, met) if cls.is_one(returns) else None if returns is mock.DEFAULT else (returns,)
        )
        effect = state.get("_mock_side_effect") if func is None else func.side_effect
        if getattr(effect, "__module__", None) == mock.__name__:  # a mock's own of `__iter__`, say
            effect = None
        name = type(value).__mro__[1].__name__
        return cls(number, name, returns, effect, attributes, state.get("_mock_wraps"))

    def make(self, made_ones: dict[int, Any] | None = None) -> Any:
        """Make a mock that does the same."""
        from unittest import mock

        ones = {} if made_ones is None else made_ones
        if not self.kind:
            return ones[self.number]
        made = ones[self.number] = getattr(mock, self.kind)(wraps=self.wraps)
        for name, part in self.attributes.items():
            setattr(made, name, part.make(ones) if isinstance(part, Mock) else part)
        if self.returns is not None:
            made.return_value = self.returns.make(ones) if isinstance(self.returns, Mock) else self.returns[0]
        if self.effect is not None:
            made.side_effect = self.effect
        return made


def mock_of(value: Any) -> Mock | None:
    """Describe a mock, or a function that `create_autospec` has made; None for anything else."""
    found = value.__dict__.get("mock") if type(value) is FunctionType else value
    return Mock.of(found) if Mock.is_one(found) else None


class _State(ByValue):
    """A pickler of what a process has beside its threads: a lock is one of its own elsewhere."""

    def reducer_override(self, value: Any) -> Any:
        """Have a lock made anew, which nobody has acquired."""
        if issubclass(type(value), threading.Thread):
            raise TypeError("cannot pickle a thread")
        if issubclass(type(value), LOCKS):
            return threading.Lock if type(value) is LOCKS[0] else threading.RLock, ()
        return super().reducer_override(value)


def with_locks(value: object) -> bytes:
    """Pickle by value what other processes have with locks of their own."""
    file = io.BytesIO()
    _State(file, None).dump(value)
    return file.getvalue()
