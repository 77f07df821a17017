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

import contextlib
import contextvars
import gc
import os
import sys
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from parcoll.errors import logger
from parcoll.system import genuine_open
from parcoll.wire import memmaps, script
from parcoll.wire.classes import show
from parcoll.wire.codec import loads
from parcoll.wire.named import set_variables
from parcoll.world import entries, libraries, own_state, patches, records, settings
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
    late: bool = False  # set when the modules are here that the program needs
    for_task: bool = False  # removed at the end of a task: dask, too, would call what a test has put there


# Machine ------------------------------------------------------------------------------------------


def _read_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)
        return
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)


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
    with genuine_open("/proc/self/status", "rb", buffering=0) as file:
        found = file.read(256)
    _, _, behind = found.partition(b"Umask:")
    return int(behind.split(None, 1)[0], 8) if behind else None


def _set_umask(umask: int | None) -> None:
    if umask is not None:
        os.umask(umask)


# Interpreter --------------------------------------------------------------------------------------


def _set_filters(wanted: Any) -> None:
    warnings.resetwarnings()  # has warnings that were filtered before be looked at again
    warnings.filters[:] = wanted.here() if isinstance(wanted, libraries.Filters) else wanted  # type: ignore[index]


def _set_list(there: list[str]) -> Callable[[tuple[str, ...]], None]:
    def set_(wanted: tuple[str, ...]) -> None:
        there[:] = wanted

    return set_


def _read_limit() -> int:
    return sys.getrecursionlimit()


def _read_stack_size() -> int:
    nbytes = threading.stack_size()  # which sets it to 0
    if nbytes:
        threading.stack_size(nbytes)
    return nbytes


def _set_stack_size(nbytes: int) -> None:
    threading.stack_size(nbytes)


def _read_digits() -> int | None:
    return sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None


def _set_digits(most: int | None) -> None:
    if most is not None:
        sys.set_int_max_str_digits(most)


THINGS: tuple[Thing, ...] = (
    Thing("the working directory", _read_folder, _set_folder, of_machine=True),
    Thing("the environment", _read_environment, _set_environment, of_machine=True),
    # `set` has no way to set it: the C library takes it from the environment.
    Thing("the time zone", lambda: (time.tzname, time.timezone), lambda _: time.tzset(), of_machine=True),
    Thing("the umask", _read_umask, _set_umask, of_machine=True, once=True),
    Thing("sys.path", lambda: tuple(import_path()), _set_list(sys.path), of_machine=True),
    Thing("sys.argv", lambda: tuple(sys.argv), _set_list(sys.argv), of_machine=True),
    Thing("the warnings filters", lambda: tuple(warnings.filters), _set_filters, pack=libraries.Filters),
    Thing("sys.warnoptions", lambda: tuple(sys.warnoptions), _set_list(sys.warnoptions), of_machine=True),
    Thing("the recursion limit", _read_limit, sys.setrecursionlimit),
    Thing("the switch interval", sys.getswitchinterval, sys.setswitchinterval),
    Thing("the collector's thresholds", gc.get_threshold, lambda wanted: gc.set_threshold(*wanted)),
    Thing("sys.tracebacklimit", libraries.read_traceback_limit, libraries.set_traceback_limit),
    Thing("the limit of an int's digits", _read_digits, _set_digits),
    Thing("the locale", libraries.read_locale, libraries.set_locale),
    Thing("decimal.DefaultContext", libraries.read_default_context, libraries.set_default_context),
    Thing("the decimal context", libraries.read_decimal, libraries.set_decimal, of_thread=True),
    Thing("numpy's error state", libraries.read_numpy_errors, libraries.set_numpy_errors, of_thread=True),
    Thing("numpy's print options", libraries.read_numpy_print, libraries.set_numpy_print, of_thread=True),
    Thing("the sockets' default timeout", libraries.read_timeout, libraries.set_timeout),
    Thing("csv.field_size_limit", libraries.read_field_size, libraries.set_field_size),
    Thing("tempfile.tempdir", libraries.read_temporary, libraries.set_temporary, of_machine=True),
    Thing("the start method", libraries.read_start_method, libraries.set_start_method),
    Thing("the size of stacks", _read_stack_size, _set_stack_size),
    Thing("the clocks of freezegun or time-machine", patches.read_frozen, patches.set_frozen),
    Thing("logging", records.read_settings, records.set_settings, once=True, pack=records.pack_settings),
)
THINGS += tuple(
    Thing(name, read, set_, pack=pack, late=True)
    for name, read, pack, set_ in (
        ("copyreg's table", entries.read_reducers, entries.packed, entries.set_reducers),
        ("the dialects of csv", entries.read_dialects, entries.packed, entries.set_dialects),
        ("options of pandas and matplotlib", entries.read_options, entries.packed, entries.set_options),
        ("the adapters of sqlite3", entries.read_adapters, entries.packed, entries.set_adapters),
        ("the built-in names", entries.read_builtins, entries.pack_builtins, entries.set_builtins),
        ("names in logging", entries.read_logging_names, entries.packed, entries.set_logging_names),
        ("registrations", settings.read_registered, entries.packed, settings.set_registered),
        ("registered subclasses", entries.read_subclasses, entries.pack_subclasses, entries.set_subclasses),
        ("how warnings are shown", entries.read_shown_warnings, entries.packed, entries.set_shown_warnings),
    )
)
_PATCHES = patches.read, patches.set_
THINGS += (Thing("patches of libraries", *_PATCHES, pack=patches.pack, late=True, for_task=True),)
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

# Contexts -----------------------------------------------------------------------------------------


def in_own_context(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a copy of this thread's context, with the script's variables: what it sets there is gone."""
    return contextvars.copy_context().run(_prepared, run, arguments)


def _prepared(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    set_variables(script.current())
    libraries.copy_decimal()
    return run(*arguments)


class CallContext:
    """What the calls find that a task makes in other threads, and in an event loop.

    They have the script's context variables, decimal context and numpy's state. But they know nothing of the
    task, or of dask: an evaluation of theirs must not wait in its place.
    """

    def __init__(self) -> None:
        self._things = [(thing, thing.read()) for thing in THINGS if thing.of_thread]
        self._context = contextvars.copy_context() if given is None else contextvars.Context()
        self._context.run(self._begin, script.current())

    def _begin(self, program: script.Script | None) -> None:
        set_variables(program)
        self._set()

    def _set(self) -> None:
        for thing, value in self._things:
            if thing.read() != value:
                thing.set(value)
        libraries.copy_decimal()

    def copy(self) -> contextvars.Context:
        """Return one for a call in an event loop."""
        return self._context.copy()

    def run(self, work: Callable[[], Any]) -> None:
        """Do a thread's work in one."""
        self.copy().run(self._run, work)

    def _run(self, work: Callable[[], Any]) -> None:
        self._set()  # numpy 1 has its state in the thread
        work()


# Worker -------------------------------------------------------------------------------------------

given: World | None = None  # the last one, in a worker
_unpacked: OrderedDict[str, dict[str, Any]] = OrderedDict()
_set_once: dict[str, Any] = {}  # things of `once` as they were set last
_before: dict[str, Any] = {}  # as others have them, while tasks of ours run
_inside = 0  # how many tasks of ours, where others use the process too
_of_thread = threading.local()
_refused: set[tuple[str, str]] = set()
_setting = threading.RLock()


def enter(world: World, anew: bool = False, late: bool = True) -> None:
    """Have this process, and this thread, be as the script was; `anew` where modules have been imported.

    Not `late` where those that the program needs may be missing yet.
    """
    global given
    with _setting:
        wanted = _wanted(world)
        if not world.is_of_here:
            given = world
        memmaps.of_machine = world.of_machine
        for name, value in wanted.items():
            thing = _BY_NAME[name]
            if thing.late:  # it sees itself what has changed
                if not late:
                    if thing.for_task:  # what is imported now finds what is the library's
                        thing.set({})
                    continue
            elif thing.once:
                if not anew and name in _set_once and _set_once[name] == value:
                    continue
            elif thing.read() == value:
                continue
            if not world.of_machine:
                _remember(thing)
            elif thing.for_task and value:
                _before.setdefault(name, {})
            _set(thing, value, world.digest)
        show()


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
