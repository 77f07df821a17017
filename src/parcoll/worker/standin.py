"""Stand-in: what stands for the worker in a process beside it, for whatever dask gives to tasks.

`distributed.get_worker()` returns it. What functions read of the worker is asked of the worker itself
(`this_worker`); clients, and all that needs one, get a client of this process's own on the same scheduler.
All is made when a function first needs it: most never do, and to import distributed takes half a second.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import cloudpickle

from parcoll.chain.marks import Lanes, Marks
from parcoll.clock import time
from parcoll.errors import WorkerSetupError
from parcoll.text import line_of
from parcoll.wire.modules import AtImport
from parcoll.worker.this_worker import (
    CONNECT,
    OBJECT,
    OPERATIONS,
    RAISED,
    REJOIN,
    SECEDE,
    WORKER,
    in_memory,
    is_plain,
    referred,
)
from parcoll.world.boot import LENGTH_BYTES, message

CLOSE_SECONDS = 1.0  # that a client has to say goodbye
OWN = ("_channel", "_client", "_lock", "_files")  # attributes of the stand-in itself


class Channel:
    """The way to the worker; each thread has its own, also of a process that a function forked."""

    def __init__(self, descriptor: int, marks: Marks) -> None:
        self._knocks = _socket_of(descriptor)
        self.lanes = Lanes(marks)
        self._own = threading.local()
        self.dropped: deque[tuple[int, int]] = deque()
        self.proxies: weakref.WeakValueDictionary[int, Proxy] = weakref.WeakValueDictionary()
        self._receiving = threading.Lock()
        self.failures: dict[Marks, WorkerSetupError] = {}  # by lane: each ends the evaluation, in any case

    def enter(self, descriptor: int, marks: Marks) -> None:
        """Have this thread be a lane: it has a task, and marks, of its own."""
        self._own.tells = _socket_of(descriptor)
        self.lanes.enter(marks)

    def knock(self, why: bytes) -> socket.socket:
        """Return a new connection to the worker."""
        ours, theirs = socket.socketpair()
        ours.setblocking(True)  # also where a default timeout has been set
        with theirs:
            at = self._knocks if why == CONNECT else getattr(self._own, "tells", self._knocks)
            socket.send_fds(at, [why], [theirs.fileno()])
        return ours

    def tell(self, what: bytes) -> None:
        """Have the worker's task do something, and return when it has."""
        with self.broken(), self.knock(what) as connection:
            connection.recv(1)

    def ask(self, operation: str, number: int, *arguments: Any, **settings: Any) -> Any:
        """Return what an operation gives in the worker, or raise what it raises there."""
        dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
        _referring.depth = getattr(_referring, "depth", 0) + 1
        try:
            question = cloudpickle.dumps((operation, number, arguments, settings, dropped))
        finally:
            _referring.depth -= 1
        with self.broken():
            stream = self._stream()
            stream.write(message(question))
            stream.flush()
            length = stream.read(LENGTH_BYTES)
            answer = stream.read(int.from_bytes(length, "big"))
            if not answer:
                raise EOFError("it closed the connection")
        kind, value = pickle.loads(answer)
        if kind == RAISED:
            raise value.original()
        return self._proxy(value) if kind == OBJECT else value

    def _stream(self) -> Any:
        if getattr(self._own, "pid", None) != os.getpid():
            self._own.stream, self._own.pid = self.knock(CONNECT).makefile("rwb"), os.getpid()
        return self._own.stream

    def _proxy(self, number: int) -> Proxy:
        with self._receiving:
            proxy = self.proxies.get(number)
            if proxy is None:
                proxy = self.proxies[number] = Proxy(self, number)
            proxy._parcoll[2] += 1
            return proxy

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Have what fails in the block end the evaluation."""
        try:
            yield
        except (OSError, EOFError) as error:
            raise self.fails("a process beside a worker cannot ask its worker", error) from error

    def fails(self, what: str, error: BaseException) -> WorkerSetupError:
        """Return the error for what no function has done."""
        failure = self.failures[self.lanes.here] = WorkerSetupError(f"{what}: {line_of(error)}")
        return failure


def _socket_of(descriptor: int) -> socket.socket:
    found = socket.socket(fileno=descriptor)
    found.setblocking(True)
    os.set_inheritable(descriptor, False)
    return found


_referring = threading.local()


class Proxy:
    """Stands for an object that stays in the worker: it is read, changed and called there."""

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_parcoll", [channel, number, 0])  # and how often the worker told of it

    def __getattr__(self, name: str) -> Any:
        return self._parcoll[0].ask("get", self._parcoll[1], name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._parcoll[0].ask("set", self._parcoll[1], name, value)

    def __delattr__(self, name: str) -> None:
        self._parcoll[0].ask("delete", self._parcoll[1], name)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Call it there."""
        return self._parcoll[0].ask("call", self._parcoll[1], *arguments, **settings)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        return self._parcoll[0].ask("__exit__", self._parcoll[1], kind, error, None)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._parcoll[0].ask("class", self._parcoll[1])

    def __reduce_ex__(self, protocol: Any) -> Any:
        channel, number, _ = self._parcoll
        if getattr(_referring, "depth", 0):  # in a question to the worker
            return referred, (number,)
        return pickle.loads, (channel.ask("pickled", number),)

    def __del__(self) -> None:
        channel, number, times = self._parcoll
        channel.dropped.append((number, times))


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Proxy, *arguments: Any) -> Any:
        return self._parcoll[0].ask(name, self._parcoll[1], *arguments)

    method.__name__ = name
    return method


for _name in OPERATIONS:
    if _name.startswith("__") and _name != "__exit__":
        setattr(Proxy, _name, _forwarded(_name))


class _Data:
    """The results that the worker keeps, by key: those that a client finds next to itself."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __contains__(self, key: Any) -> bool:
        return bool(self._channel.ask("has_item", WORKER, key))

    def __getitem__(self, key: Any) -> Any:
        return pickle.loads(self._channel.ask("item", WORKER, key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel.ask("get", WORKER, "data"), name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._channel.ask("get", WORKER, "data"))

    def __len__(self) -> int:
        return len(self._channel.ask("get", WORKER, "data"))


class StandIn:
    """The worker, as functions find it in a process beside it.

    What they set is set in the worker, if it is plain data; other things, which may not be able to travel,
    are this process's own.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.RLock()
        self._client: Any = None
        self._files: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("get", WORKER, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN or not is_plain(value):
            object.__setattr__(self, name, value)
            return
        self.__dict__.pop(name, None)
        self._channel.ask("set", WORKER, name, value)

    def __delattr__(self, name: str) -> None:
        if self.__dict__.pop(name, self) is self:
            self._channel.ask("delete", WORKER, name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._channel.ask("__dir__", WORKER)} - {*OWN})

    def __repr__(self) -> str:
        return str(self._channel.ask("__repr__", WORKER))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._channel.ask("class", WORKER)

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a worker")

    def get_current_task(self) -> Any:
        """Return the key of the task whose functions run here."""
        return getattr(_task, "key", _key)

    def _get_client(self, timeout: Any = None) -> Any:
        """Return this process's client, connected to the worker's scheduler; what `get_client()` calls."""
        if self._channel.lanes.within and not hasattr(
            _task, "entered"
        ):  # another one has imported distributed
            _enter_thread(sys.modules["distributed.worker"])
        if self._client is None or self._client.status != "running":
            with self._channel.lanes.here.setting_up(), self._lock:
                if self._client is None or self._client.status != "running":
                    self._client = self._connect(timeout)
        return self._client

    def _connect(self, timeout: Any) -> Any:
        distributed: Any = importlib.import_module("distributed")
        address, security = pickle.loads(self._channel.ask("joining", WORKER))
        if isinstance(security, dict):
            security = distributed.Security(**{n: in_memory(n, v, self._files) for n, v in security.items()})
        settings = {"timeout": timeout} if timeout is not None else {}
        try:
            # As the worker makes its own.
            return distributed.Client(
                *(address,), security=security, direct_to_workers=True, name="worker", **settings
            )
        except Exception as error:
            what = f"a process beside a worker cannot join the scheduler at {address}"
            raise self._channel.fails(what, error) from error

    @property
    def client(self) -> Any:
        """The client."""
        return self._get_client()

    @property
    def scheduler(self) -> Any:
        """What calls the scheduler, in the client's event loop."""
        return self.client.scheduler

    @property
    def rpc(self) -> Any:
        """What calls other workers, in the client's event loop."""
        return self.client.rpc

    @property
    def loop(self) -> Any:
        """The client's event loop."""
        return self.client.loop

    io_loop = loop

    @property
    def data(self) -> Any:
        """The results that the worker keeps."""
        return self.__dict__.setdefault("_data", _Data(self._channel))

    def update_data(self, data: Any, stimulus_id: Any = None) -> None:
        """Have the worker keep results: what `scatter` within a task does."""
        self._channel.ask("update_data", WORKER, cloudpickle.dumps(data))

    def handle_stimulus(self, *events: Any) -> None:
        """Do nothing: the worker's own task has seceded, and has told so itself."""

    def close_client(self) -> None:
        """Say goodbye to the scheduler."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=CLOSE_SECONDS)


class _Thread:
    """Stands for the worker's thread pool, of which the main thread is one: it may leave it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._threads = {threading.current_thread()}
        self._rejoin_list: list[Any] = []
        self._rejoin_lock = threading.Lock()

    def _adjust_thread_count(self) -> None:
        self._channel.tell(SECEDE)

    def submit(self, func: Any) -> None:
        self._channel.tell(REJOIN)
        with self._rejoin_lock:
            while self._rejoin_list:
                thread, rejoined = self._rejoin_list.pop()
                self._threads.add(thread)
                rejoined.set()


_channel: Channel
_stand_in: StandIn
_key: Any = None  # of the task that was begun last, for threads that functions have started
_task = threading.local()


def prepare(descriptor: int, marks: Marks) -> Channel:
    """Have functions of this process find the worker, once they look for it."""
    global _channel, _stand_in
    _channel = Channel(descriptor, marks)
    _stand_in = StandIn(_channel)
    actions = {"dask": _nothing, "dask.config": _configure, "distributed": _nothing}
    actions |= {"distributed.worker": _enter}
    sys.meta_path.insert(0, AtImport(actions, lambda: _channel.lanes.here.setting_up()))
    return _channel


def begin(key: Any) -> None:
    """Note the key of the task whose functions run next, in this thread."""
    global _key
    _key = _task.key = key
    if "distributed.worker" in sys.modules:
        _enter_thread(sys.modules["distributed.worker"])


def close() -> None:
    """Let go of the scheduler."""
    _stand_in.close_client()


def _nothing(module: Any) -> None:
    """Do nothing but import it, in time that is not the function's."""


def _configure(module: Any) -> None:
    """Give dask the configuration that it has in the worker, which may come from no file."""
    config = pickle.loads(_channel.ask("config", WORKER))
    module.config.clear()
    module.config.update(config)


# What follows leans on private parts of distributed, and nothing else here does: it has no public way to say
# that this thread runs a task. tests/dask_facts/test_what_tasks_find.py fails when they change.


def _enter(module: Any) -> None:
    """Have `get_worker()` return the stand-in, in all threads."""
    module._worker_cvar = ContextVar("_worker_cvar", default=_stand_in)
    if _channel.lanes.within:
        _enter_thread(module)


def _enter_thread(module: Any) -> None:
    """Have dask take this thread for one of a worker's, at a task: that is where it secedes from."""
    state = module.thread_state
    state.key, state.start_time, _task.entered = getattr(_task, "key", None), time.time(), True
    state.execution_state = {"worker": _stand_in}
    pool: Any = sys.modules["distributed.threadpoolexecutor"].thread_state
    pool.proceed, pool.executor = True, _Thread(_channel)
