"""World: the state of the script's process, which a worker takes over before it runs a partition.

`THINGS` is the table of what is carried: for each thing its name, how it is read and how it is set. The
script reads it before each evaluation and packs it when something has changed; it travels with the program.
A worker compares what it finds with what the script has, before each partition, and sets what differs. So
what a function changes lasts to the end of its partition. `own_state` carries the user's own modules, and
`records` the logging.

What belongs to a machine (directory, environment, umask) goes to workers on the script's machine only.
Workers that others use too are given back as they were after each partition.
"""

from __future__ import annotations

import _locale
import contextlib
import importlib
import os
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from parcoll.log import logger
from parcoll.wire import memmaps
from parcoll.wire.codec import loads
from parcoll.world import own_state, records
from parcoll.world.boot import import_path

# Without these variables the thread pools of numerical libraries use all cores, in each worker. The local
# cluster sets them, unless the script has them.
THREAD_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
FAMILY = "PARCOLL_SUBWORKER"  # the variable by which what a process beside a worker has started is known
UNPACKED = 4  # worlds that a worker keeps unpacked


class Thing(NamedTuple):
    """One part of a process's state.

    `read` returns a value that can be compared, or None where it is as in a fresh process. `pack` makes what
    travels of it, which is what `set` takes.
    """

    name: str
    read: Callable[[], Any]
    set: Callable[[Any], None]
    of_machine: bool = False
    of_thread: bool = False
    once: bool = False  # set where the script's has changed, not where a function has changed the worker's
    pack: Callable[[Any], Any] = lambda value: value


# Machine ------------------------------------------------------------------------------------------


def _read_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _read_environment() -> dict[Any, Any]:
    # As it is stored: to decode fifty variables takes 25 µs, and to copy them 0.3.
    return dict(getattr(os.environ, "_data", os.environ))


def _set_environment(wanted: dict[bytes, bytes]) -> None:
    here = os.environb
    for name in [name for name in here if name not in wanted]:
        del here[name]
    for name, value in wanted.items():
        if here.get(name) != value:
            here[name] = value


_of_process: dict[bytes, bytes] = {}  # variables that this process was given beside the script's


def _with_own_variables(wanted: dict[bytes, bytes]) -> dict[bytes, bytes]:
    if not _of_process:
        names = map(os.fsencode, (*THREAD_POOLS, FAMILY))
        _of_process.update({name: os.environb[name] for name in names if name in os.environb})
    return _of_process | wanted


def _read_umask() -> int | None:
    if sys.platform != "linux":
        umask = os.umask(0o077)  # for a moment; files that another thread makes in it are not open to others
        os.umask(umask)
        return umask
    with open("/proc/self/status", "rb", buffering=0) as file:
        found = file.read(256)
    _, _, behind = found.partition(b"Umask:")
    return int(behind.split(None, 1)[0], 8) if behind else None


def _set_umask(umask: int | None) -> None:
    if umask is not None:
        os.umask(umask)


# Interpreter --------------------------------------------------------------------------------------


def _set_filters(filters: tuple[Any, ...]) -> None:
    warnings.resetwarnings()  # has warnings that were filtered before be looked at again
    warnings.filters[:] = filters  # type: ignore[index]


def _set_list(there: list[str]) -> Callable[[tuple[str, ...]], None]:
    def set_(wanted: tuple[str, ...]) -> None:
        there[:] = wanted

    return set_


def _read_limit() -> int:
    return sys.getrecursionlimit()


def _read_digits() -> int | None:
    return sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None


def _set_digits(most: int | None) -> None:
    if most is not None:
        sys.set_int_max_str_digits(most)


# Libraries ----------------------------------------------------------------------------------------


def _context(context: Any) -> tuple[Any, ...]:
    c = context
    return c.prec, c.rounding, c.Emin, c.Emax, c.capitals, c.clamp, tuple(c.traps.values())


def _read_decimal() -> tuple[Any, ...] | None:
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    found = _context(decimal.getcontext())
    return None if found == _context(decimal.DefaultContext) else found


def _set_decimal(wanted: tuple[Any, ...] | None) -> None:
    import decimal

    context = decimal.Context()
    if wanted is not None:
        prec, rounding, least, most, capitals, clamp, traps = wanted
        on = [signal for signal, is_on in zip(context.traps, traps, strict=True) if is_on]
        context = decimal.Context(prec, rounding, least, most, capitals, clamp, [], on)
    decimal.setcontext(context)


_NUMPY_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def _read_numpy_errors() -> tuple[Any, ...] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "geterrcall"):  # it is being imported
        return None
    found, call = numpy.geterr(), numpy.geterrcall()
    return None if found == _NUMPY_ERRORS and call is None else (found, call)


def _set_numpy_errors(wanted: tuple[Any, ...] | None) -> None:
    numpy = importlib.import_module("numpy")
    errors, call = wanted if wanted is not None else (_NUMPY_ERRORS, None)
    numpy.seterr(**errors)
    numpy.seterrcall(call)


def _read_numpy_print() -> dict[str, Any] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "get_printoptions"):
        return None
    found: dict[str, Any] = numpy.get_printoptions()
    return None if _NUMPY_PRINT.items() <= found.items() else found


_NUMPY_PRINT: dict[str, Any] = {"edgeitems": 3, "threshold": 1000, "floatmode": "maxprec", "precision": 8}
_NUMPY_PRINT |= {"suppress": False, "linewidth": 75, "nanstr": "nan", "infstr": "inf", "sign": "-"}
_NUMPY_PRINT |= {"formatter": None, "legacy": False}


def _set_numpy_print(wanted: dict[str, Any] | None) -> None:
    numpy = importlib.import_module("numpy")
    found = numpy.get_printoptions()
    options = wanted if wanted is not None else _NUMPY_PRINT
    numpy.set_printoptions(**{name: value for name, value in options.items() if name in found})


def _read_locale() -> str | None:
    found = _locale.setlocale(_locale.LC_ALL, None)
    # Python itself sets LC_CTYPE when it starts, as the machine has it.
    first, *others = found.split(";")
    fresh = first.startswith("LC_CTYPE=") and all(other.endswith("=C") for other in others)
    return None if fresh else found


def _set_locale(wanted: str | None) -> None:
    _locale.setlocale(_locale.LC_ALL, wanted or "C")
    if wanted is None:
        _locale.setlocale(_locale.LC_CTYPE, "")


def _read_timeout() -> float | None:
    socket = sys.modules.get("socket")
    return socket.getdefaulttimeout() if socket is not None else None


def _set_timeout(seconds: float | None) -> None:
    import socket

    socket.setdefaulttimeout(seconds)


_FIELD_SIZE = 131_072


def _read_field_size() -> int | None:
    csv = sys.modules.get("_csv")
    size: int | None = csv.field_size_limit() if csv is not None else None
    return None if size == _FIELD_SIZE else size


def _set_field_size(size: int | None) -> None:
    import csv

    csv.field_size_limit(size or _FIELD_SIZE)


THINGS = (
    Thing("the working directory", _read_folder, _set_folder, of_machine=True),
    Thing("the environment", _read_environment, _set_environment, of_machine=True),
    # `set` has no way to set it: the C library takes it from the environment.
    Thing("the time zone", lambda: (time.tzname, time.timezone), lambda _: time.tzset(), of_machine=True),
    Thing("the umask", _read_umask, _set_umask, of_machine=True, once=True),
    Thing("sys.path", lambda: tuple(import_path()), _set_list(sys.path), of_machine=True),
    Thing("sys.argv", lambda: tuple(sys.argv), _set_list(sys.argv), of_machine=True),
    Thing("the warnings filters", lambda: tuple(warnings.filters), _set_filters),
    Thing("sys.warnoptions", lambda: tuple(sys.warnoptions), _set_list(sys.warnoptions), of_machine=True),
    Thing("the recursion limit", _read_limit, sys.setrecursionlimit),
    Thing("the limit of an int's digits", _read_digits, _set_digits),
    Thing("the locale", _read_locale, _set_locale),
    Thing("the decimal context", _read_decimal, _set_decimal, of_thread=True),
    Thing("numpy's error state", _read_numpy_errors, _set_numpy_errors, of_thread=True),
    Thing("numpy's print options", _read_numpy_print, _set_numpy_print, of_thread=True),
    Thing("the sockets' default timeout", _read_timeout, _set_timeout),
    Thing("csv.field_size_limit", _read_field_size, _set_field_size),
    Thing("logging", records.read_settings, records.set_settings, once=True, pack=records.pack_settings),
)
_BY_NAME = {thing.name: thing for thing in THINGS}


# Script -------------------------------------------------------------------------------------------


class World(NamedTuple):
    """What the script's process had when an evaluation began, packed."""

    digest: str
    packed: bytes
    of_machine: bool  # whether it is for workers on the script's machine
    own: own_state.OwnState | None
    process: bytes  # whose it is

    @property
    def nbytes(self) -> int:
        """How many bytes travel."""
        return len(self.packed) + (len(self.own.packed) if self.own is not None else 0)

    @property
    def is_of_here(self) -> bool:
        """Whether it is this process's own: workers within the script's process have all of it."""
        return self.process == this_process


this_process = os.urandom(16)

# Worker -------------------------------------------------------------------------------------------

given: World | None = None  # the last one, in a worker
_unpacked: OrderedDict[str, dict[str, Any]] = OrderedDict()
_set_once: dict[str, Any] = {}  # things of `once` as they were set last
_before: dict[str, Any] = {}  # as others have them, while tasks of ours run
_inside = 0  # how many tasks of ours, where others use the process too
_of_thread = threading.local()
_refused: set[tuple[str, str]] = set()
_setting = threading.RLock()


def enter(world: World, anew: bool = False) -> None:
    """Have this process, and this thread, be as the script was; `anew` where modules have been imported."""
    global given
    with _setting:
        wanted = _wanted(world)
        if not world.is_of_here:
            given = world
        memmaps.of_machine = world.of_machine
        for name, value in wanted.items():
            thing = _BY_NAME[name]
            if thing.once:
                if not anew and name in _set_once and _set_once[name] == value:
                    continue
            elif thing.read() == value:
                continue
            if not world.of_machine:
                _remember(thing)
            _set(thing, value, world.digest)


def _wanted(world: World) -> dict[str, Any]:
    found = _unpacked.get(world.digest)
    if found is None:
        found = {}
        for name, content in loads(world.packed).items():
            try:
                found[name] = loads(content)
            except Exception as error:
                _refuse(name, world.digest, error)
        if "the environment" in found:
            found["the environment"] = _with_own_variables(found["the environment"])
        _unpacked[world.digest] = found
        while len(_unpacked) > UNPACKED:
            _unpacked.popitem(last=False)
    _unpacked.move_to_end(world.digest)
    return found


def _set(thing: Thing, value: Any, digest: str) -> None:
    try:
        thing.set(value)
    except Exception as error:
        _refuse(thing.name, digest, error)
    if thing.once:
        _set_once[thing.name] = value


def _refuse(name: str, digest: str, error: Exception) -> None:
    if (name, digest) not in _refused:
        _refused.add((name, digest))
        logger.warning(
            "a worker cannot have %s as the script has it: %s: %s", name, type(error).__name__, str(error)
        )


def _remember(thing: Thing) -> None:
    """Keep what others have here, to be given back."""
    before = vars(_of_thread).setdefault("before", {}) if thing.of_thread else _before
    if thing.name not in before:
        before[thing.name] = thing.pack(thing.read())


@contextlib.contextmanager
def borrowed() -> Any:
    """Give the process back as it was at the end of the block, where others use it too."""
    global _inside
    with _setting:
        _inside += 1
    try:
        yield
    finally:
        with _setting:
            _inside -= 1
            _give_back(vars(_of_thread).setdefault("before", {}))
            if not _inside:
                _give_back(_before)


def _give_back(before: dict[str, Any]) -> None:
    while before:
        name, value = before.popitem()
        _set_once.pop(name, None)
        with contextlib.suppress(Exception):
            _BY_NAME[name].set(value)


def _renew() -> None:
    global _setting, this_process
    _setting, this_process = threading.RLock(), os.urandom(16)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
