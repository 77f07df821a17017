"""This worker: what it may hold, and what it tells the processes beside it of itself.

Functions that run beside a worker find a stand-in for it (`standin`), which asks the worker itself. Each
thread that asks has a connection of its own, and a thread of the worker that answers: so a call that takes
long holds up no other, and whoever asked can be stopped meanwhile.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import enum
import math
import operator
import os
import pickle
import re
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

from parcoll.system import IN_MEMORY, MemoryFile, resident_bytes
from parcoll.wire.exceptions import Failure
from parcoll.world.boot import LENGTH_BYTES, message

# Of what is left, for what a partition has made when it is asked whether that is much: it may make as much
# once more until it is asked again, and its results are packed, and sent, as copies.
ROOM_PART = 16
LEAST_PART = 0.5  # of the limit, at least: a worker that holds kept results must still run something


def memory_limit() -> float:
    """Return the bytes that this worker may take; infinity outside of a worker, and if there is no limit.

    `Worker.memory_manager` is how dask's documentation of worker memory names it; `tests/dask_facts` fails
    when it goes.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return math.inf
    try:
        return distributed.get_worker().memory_manager.memory_limit or math.inf
    except (ValueError, AttributeError):  # not in a task
        return math.inf


def memory_left() -> float:
    """Return the bytes that a process beside this worker may take."""
    limit = memory_limit()
    if limit == math.inf:
        return limit
    return max(limit - resident_bytes(os.getpid()), limit * LEAST_PART) / threads()


class Room:
    """What a partition may add to this worker's memory, before anybody knows how large its results are."""

    def __init__(self) -> None:
        found = sys.modules.get("distributed")
        self._bytes = math.inf
        with contextlib.suppress(ValueError):  # not in a task
            # `isinstance` asks a stand-in, which asks the worker.
            if found is not None and issubclass(type(found.get_worker()), found.Worker):
                self._bytes = memory_left() / ROOM_PART
        self._before = 0 if self._bytes == math.inf else resident_bytes(os.getpid())

    def is_full(self) -> bool:
        """Tell whether it has added that."""
        return self._bytes < math.inf and resident_bytes(os.getpid()) - self._before > self._bytes


def threads() -> int:
    """Return how many tasks this worker runs at the same time."""
    try:
        count: int = sys.modules["distributed"].get_worker().state.nthreads
    except (KeyError, ValueError, AttributeError):
        return 1
    return count


def named() -> str:
    """Name this worker, for messages."""
    distributed = sys.modules.get("distributed")
    try:
        return f"worker {distributed.get_worker().address}" if distributed is not None else "this process"
    except ValueError:  # not in a task
        return "this process"


def task_key() -> Any:
    """Return the key of the task that this thread runs; None outside of one."""
    try:
        return sys.modules["distributed"].get_worker().get_current_task()
    except (KeyError, ValueError):
        return None


def has_worker() -> bool:
    """Tell whether a worker runs in this process.

    Workers of a cluster that lives in its user's own process are none: that one may start what it likes.
    `Worker._instances` is private, and tests/dask_facts fails when dask does without it.
    """
    distributed = sys.modules.get("distributed")
    found = list(getattr(getattr(distributed, "Worker", None), "_instances", ()))
    running = [worker for worker in found if worker.status.name == "running"]
    return any(not worker.address.startswith("inproc:") for worker in running)


class Slot:
    """The place in the worker's thread pool of a task whose functions run beside the worker.

    dask's `secede` gives it to other tasks, those that the functions wait for, and `rejoin` takes it again.
    """

    def __init__(self) -> None:
        self._seceded = self._rejoins = False

    def secede(self) -> None:
        """Leave it, in the task's own thread."""
        self._rejoins = False
        if not self._seceded:
            with contextlib.suppress(ValueError, AttributeError, KeyError):  # not in a task
                sys.modules["distributed"].secede()
                self._seceded = True

    def rejoin(self) -> None:
        """Take it again when the process has replied, since that may have to wait for other tasks."""
        self._rejoins = True

    def settle(self) -> None:
        """Take it again if that was asked for."""
        if self._seceded and self._rejoins:
            self._rejoins = self._seceded = False
            sys.modules["distributed"].rejoin()


CONNECT, SECEDE, REJOIN = b"c", b"s", b"r"  # what a process beside the worker may knock for
VALUE, OBJECT, RAISED = range(3)  # kinds of answers
WORKER = 0  # the number of the worker among the objects that a process knows

# What never changes, or is the same thing in both processes: it travels as it is. Other objects stay, so
# that what functions change in them is seen by all.
PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum, re.Pattern),
    *(type(...), type(NotImplemented), type, types.FunctionType, types.ModuleType),
)
# More of them, of modules that not every process loads.
PLAIN_OF_MODULES = {
    "datetime": ("date", "time", "timedelta", "tzinfo"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "pathlib": ("PurePath",),
    "uuid": ("UUID",),
}
# Those of dask's objects that stand for something on the scheduler, wherever they are.
REMOTE = ("Future", "Variable", "Queue", "Lock", "Event", "Semaphore", "MultiLock", "Actor", "Security")
CONTAINERS = (list, dict, set, bytearray, collections.deque, collections.OrderedDict, collections.Counter)


def _references() -> int:
    value = object()
    return sys.getrefcount(value)


FRESH = _references()  # to an object that one variable has and nothing else; one less from Python 3.14 on


def is_plain(value: Any) -> bool:
    """Tell whether a copy of an object is as good as the object, whoever else has it."""
    if isinstance(value, PLAIN):
        return True
    for module, names in PLAIN_OF_MODULES.items():
        kinds = tuple(getattr(sys.modules.get(module), name, ()) for name in names)
        if isinstance(value, kinds):
            return True
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    if isinstance(value, tuple | frozenset):
        return all(map(is_plain, value))
    kind = type(value)
    return kind.__module__.startswith("distributed.") and kind.__name__ in REMOTE


def _is_copied(value: Any, fresh: bool) -> bool:
    """Tell whether an object travels: one of which a copy is as good."""
    if is_plain(value):
        return True
    if type(value) not in CONTAINERS:
        try:
            memoryview(value).release()  # arrays: functions of compiled code take no other thing for one
        except (TypeError, BufferError, ValueError):
            return False
        return True
    return fresh and _holds_copied(value)


def _holds_copied(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_holds_copied, value.keys())) and all(map(_holds_copied, value.values()))
    if isinstance(value, CONTAINERS):
        return all(map(_holds_copied, value))
    return _is_copied(value, fresh=True)


class Answers:
    """What one process beside this worker asks, and is told."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)  # another task's thread may have let in who has knocked
        self.theirs.setblocking(True)  # also where the script has set a default timeout
        self.slot = Slot()
        self._objects: dict[int, tuple[Any, int]] = {}  # with how often the process was told of each
        self._numbers: dict[int, int] = {}  # by the identity of the object
        self._last = WORKER
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []

    def fileno(self) -> int:
        """Return the descriptor at which the process knocks."""
        return self._ours.fileno()

    def take(self) -> None:
        """Let in whoever has knocked; in the thread of the task whose functions the process runs."""
        try:
            knock, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
        except BlockingIOError:
            return
        connection = socket.socket(fileno=descriptors[0])
        connection.setblocking(True)
        if knock == CONNECT:
            self._connections.append(connection)
            run = contextvars.copy_context().run  # in which `get_worker()` finds this worker
            threading.Thread(
                target=run, args=(self._serve, connection), name="parcoll-answers", daemon=True
            ).start()
            return
        with connection:
            (self.slot.secede if knock == SECEDE else self.slot.rejoin)()
            connection.sendall(knock)

    def close(self) -> None:
        """End all connections."""
        self._ours.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # closed by its thread
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket) -> None:
        _answering.answers = self
        with contextlib.suppress(OSError), connection, connection.makefile("rwb") as stream:
            while length := stream.read(LENGTH_BYTES):
                question = stream.read(int.from_bytes(length, "big"))
                stream.write(message(self._answer(question)))
                stream.flush()

    def _answer(self, question: bytes) -> bytes:
        try:
            operation, number, arguments, settings, dropped = pickle.loads(question)
            for gone, times in dropped:
                self._drop(gone, times)
            value = OPERATIONS[operation](self, self.object(number), *arguments, **settings)
            return self._packed(value, fresh=sys.getrefcount(value) <= FRESH)
        except BaseException as error:  # what it raises is the function's to handle
            return pickle.dumps((RAISED, Failure.of(error, "raised in the worker")))

    def _packed(self, value: Any, fresh: bool) -> bytes:
        if _is_copied(value, fresh):
            with contextlib.suppress(Exception):
                return cloudpickle.dumps((VALUE, value))  # type: ignore[no-any-return]
        with self._lock:
            number = self._numbers.get(id(value))
            if number is None:
                self._last += 1
                number = self._numbers[id(value)] = self._last
            _, times = self._objects.get(number, (None, 0))
            self._objects[number] = value, times + 1
        return pickle.dumps((OBJECT, number))

    def _drop(self, number: int, times: int) -> None:
        with self._lock:
            value, told = self._objects.pop(number)
            if told > times:
                self._objects[number] = value, told - times
            else:
                del self._numbers[id(value)]

    def object(self, number: int) -> Any:
        """Return the object with a number."""
        return sys.modules["distributed"].get_worker() if number == WORKER else self._objects[number][0]

    def joining(self, worker: Any) -> bytes:
        """Return where the worker's scheduler is, and what lets a client in, which is on no disk."""
        security = worker.security
        slots = sys.modules["distributed"].Security.__slots__
        fields = {name: getattr(security, name, None) for name in slots}
        paths = [value for value in fields.values() if isinstance(value, str)]
        in_memory = any(path.startswith(IN_MEMORY) for path in paths)
        if not in_memory and type(security) is not sys.modules["distributed"].Security:
            return cloudpickle.dumps((worker.scheduler.address, security))  # type: ignore[no-any-return]
        for name, path in fields.items():
            if isinstance(path, str) and path.startswith(IN_MEMORY):
                with open(path, encoding="utf-8") as file:
                    fields[name] = file.read()
        return pickle.dumps((worker.scheduler.address, fields))


def in_memory(name: str, text: Any, files: list[Any]) -> Any:
    """Return the path of a file in memory with a key that came as text: dask would put it on a disk."""
    if not isinstance(text, str) or "\n" not in text or name == "tls_ca_file":
        return text
    file = MemoryFile.of(text)
    if file is None:
        return text
    files.append(file)
    return file.path


_answering = threading.local()


def referred(number: int) -> Any:
    """Return the object that a question refers to by its number."""
    return _answering.answers.object(number)


def _update_data(worker: Any, pickled: bytes) -> None:
    data = pickle.loads(pickled)

    async def update() -> None:
        worker.update_data(data=data)

    sys.modules["distributed"].utils.sync(worker.loop, update)


def _config() -> bytes:
    return cloudpickle.dumps(sys.modules["dask"].config.config)  # type: ignore[no-any-return]


def _of(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda answers, *arguments, **settings: function(*arguments, **settings)


def _special(name: str) -> Callable[..., Any]:
    """Return what calls a method as the language does: that of the class."""
    return lambda answers, value, *arguments: getattr(type(value), name)(value, *arguments)


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda answers, value, other: function(other, value)


BINARY = [
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "or",
    "xor",
]
OPERATIONS: dict[str, Callable[..., Any]] = {
    "joining": Answers.joining,
    "config": lambda answers, worker: _config(),
    "update_data": _of(_update_data),
    "has_item": lambda answers, worker, key: key in worker.data,
    "item": lambda answers, worker, key: cloudpickle.dumps(worker.data[key]),
    "pickled": _of(cloudpickle.dumps),
    "get": _of(getattr),
    "set": _of(setattr),
    "delete": _of(delattr),
    "class": lambda answers, value: value.__class__,
    "call": lambda answers, value, *arguments, **settings: value(*arguments, **settings),
    **{f"__{name}__": _of(getattr(operator, f"__{name}__")) for name in BINARY},
    **{f"__r{name}__": _reflected(getattr(operator, f"__{name}__")) for name in BINARY},
    **{f"__i{name}__": _of(getattr(operator, f"__i{name}__")) for name in BINARY},
    **{
        f"__{name}__": _of(getattr(operator, name))
        for name in ["eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs"]
    },
    **{f"__{name}__": _of(getattr(operator, name)) for name in ["index", "contains", "getitem", "setitem"]},
    **{f"__{name}__": _special(f"__{name}__") for name in ["enter", "exit"]},
    "__delitem__": _of(operator.delitem),
    "__invert__": _of(operator.invert),
    **{f"__{kind.__name__}__": _of(kind) for kind in (bool, int, float, complex, str, repr, bytes, format)},
    **{f"__{name.__name__}__": _of(name) for name in (len, iter, next, reversed, hash, dir, round)},
}
