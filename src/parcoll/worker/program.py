"""Program: what one evaluation asks of every partition, and how it reaches each worker once."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from parcoll import ending
from parcoll.calls import broadcasts, objects
from parcoll.chain.failures import Ledger
from parcoll.chain.sinks import Results, Sink
from parcoll.chain.steps import Origins, Step
from parcoll.chain.timing import Pace
from parcoll.errors import SerializationError
from parcoll.text import message_of
from parcoll.wire.anatomy import cannot_send, unloadable
from parcoll.wire.exceptions import Failure
from parcoll.wire.modules import install, unpacked
from parcoll.wire.payload import CAPTURED_BYTES, Captured, Fetched, Packed, Payload, Plain, Sharing
from parcoll.wire.payload import sharing_beside as sharing
from parcoll.wire.script import Script, arrived, loading, running
from parcoll.worker.fold import Fold
from parcoll.worker.outcome import Outcome, UnreadError
from parcoll.world import takeover
from parcoll.world.namespace import CODEC, pack_program
from parcoll.world.world import World, enter

PYTHON = sys.version_info[:2]
CACHED = 4  # programs that a worker keeps loaded; each was at most EMBEDDED_BYTES when packed


@dataclass(frozen=True)
class Program:
    """The steps, and the sink that takes the elements which leave them."""

    steps: tuple[Step, ...]
    sink: Sink = field(default_factory=Results)
    pace: Pace = field(default_factory=Pace, compare=False)
    ledger: Ledger = field(default_factory=Ledger, compare=False)
    origins: Origins = field(default=Origins(), compare=False)

    @property
    def fold(self) -> Fold:
        """The sink of a program that joins kept partitions."""
        assert isinstance(self.sink, Fold)
        return self.sink

    @property
    def waits(self) -> bool:
        """Whether a step makes several calls at the same time."""
        return any(step.waits for step in self.steps)

    @property
    def limit(self) -> int | None:
        """Into how many parts the calls of its steps may be cut at most; None if nothing limits them."""
        return min((step.limit for step in self.steps if step.limit is not None), default=None)

    def at_once(self, parts: int) -> int:
        """Return how many calls a task makes at the same time that has one of so many parts."""
        return max((step.at_once(parts) for step in self.steps), default=1)

    def interval(self, parts: int) -> float:
        """Return the least seconds from one element to the next, for such a task."""
        return max((step.interval(parts) for step in self.steps), default=0.0)

    @property
    def stops(self) -> bool:
        """Whether calls may have to be stopped."""
        return self.least_timeout < math.inf

    @property
    def least_timeout(self) -> float:
        """The shortest time that any call has, in seconds."""
        timeouts = [self.sink.timeout, *(step.policy.timeout for step in self.steps)]
        return min((timeout for timeout in timeouts if timeout is not None), default=math.inf)


class SharedProgram:
    """A packed program, which each worker process unpickles once an evaluation.

    A small one travels inside each task. A large one lies in shared memory, where the workers have that.
    Elsewhere, and where results are kept, it is a dask key of its own (`cached=False`): dask moves its value
    to each worker once, and drops it with the evaluation. Its large buffers may be keys too, which outlive
    it: then they are `apart` of it, and `whole` puts them in their places.
    """

    __slots__ = (
        *("_beside", "_loaded", "_whole", "apart", "cached", "lent", "main", "modules", "packed"),
        *("python", "script", "token", "world"),
    )

    def __init__(
        self,
        packed: Payload | None,
        token: str,
        world: World | None = None,
        modules: bytes = b"",
        cached: bool = True,
        python: tuple[int, int] = PYTHON,
        script: bytes = b"",
        lent: Captured | None = None,
        apart: tuple[int, ...] = (),
    ) -> None:
        self.packed = packed
        self.apart = apart  # the positions of the buffers that are not here
        self.token = token
        self.world = world  # what the user's process had when the evaluation began
        self.modules = modules  # the user's own, packed, if the workers have no such folders
        self.cached = cached
        self.python = python
        self.script = script  # what the script has beside what its functions name
        self.lent = lent  # all of this, in shared memory
        self.main: Script | None = None  # what is `__main__` here, once the program is loaded
        self._loaded: Program | None = None
        self._whole: SharedProgram | None = None
        self._beside: SharedProgram | None = None

    def without(self, positions: Sequence[int]) -> SharedProgram:
        """Return this program without the buffers at these positions."""
        assert isinstance(self.packed, Packed)
        left = [buffer for at, buffer in enumerate(self.packed.buffers) if at not in positions]
        return self._with(Packed(self.packed.head, *left), tuple(positions))

    def whole(self, buffers: Sequence[Packed]) -> SharedProgram:
        """Return the program with the buffers that were apart of it; the same object for all tasks here."""
        with _cache_lock:
            if self._whole is None:
                assert isinstance(self.packed, Packed)
                placed = list(self.packed.buffers)
                for position, buffer in zip(self.apart, buffers, strict=True):
                    placed.insert(position, buffer.buffers[0])
                self._whole = self._with(Packed(self.packed.head, *placed), ())
            return self._whole

    def _with(self, packed: Packed, apart: tuple[int, ...]) -> SharedProgram:
        settings = (self.token, self.world, self.modules, self.cached, self.python, self.script)
        return SharedProgram(packed, *settings, apart=apart)

    def lend(self, sharing: Sharing) -> tuple[Captured, int] | None:
        """Have the program travel through shared memory; return what it lies in, and how many bytes it took.

        None if it cannot.
        """
        lent = sharing.capture((self.packed, self.world, self.modules, self.script))
        if lent is not None:
            self.lent, self.cached, self.packed = lent[0], False, None
        elif isinstance(self.packed, Packed):  # the script may write into its buffers while this waits
            self.packed = Packed.copy_of(self.packed.head, *self.packed.buffers)
        return lent

    def take_back(self) -> None:
        """Have the program travel in messages again; OSError if the shared memory is gone."""
        self._fetch()
        self.lent = None

    def beside(self) -> SharedProgram:
        """Return the program for the processes beside this one: what is large of it lies in shared memory.

        There it is once, also for the next evaluation. It is freed with the last of these processes.
        """
        buffers = self.packed.buffers if isinstance(self.packed, Packed) and self.lent is None else ()
        if not any(memoryview(buffer).nbytes >= CAPTURED_BYTES for buffer in buffers):
            return self
        with _cache_lock:
            if self._beside is None:
                lent = sharing().capture((self.packed, self.world, self.modules, self.script))
                if lent is None:
                    return self
                self._beside = SharedProgram(None, self.token, None, b"", False, self.python, lent=lent[0])
            return self._beside

    def is_unread_beside(self, outcome: Outcome) -> bool:
        """Tell whether a process beside this one could not read the program; from now on it gets messages."""
        if self._beside is None or not outcome.unprogrammed:
            return False
        sharing().stop(outcome.unshared or "")
        self._beside = None
        return True

    def is_wanted(self) -> bool:
        """Tell whether the evaluation of a program that was lent goes on."""
        return self.lent is not None and self.lent.is_valid()

    def _fetch(self) -> None:
        """Copy out of shared memory what was lent; UnreadError if that cannot be read, or is gone."""
        assert self.lent is not None
        try:
            packed, self.world, self.modules, self.script = self.lent.load()
        except OSError as error:
            raise UnreadError(message_of(error)) from error
        self.packed = Fetched(packed.head, *packed.buffers)  # not copied again

    def load(self) -> Program:
        """Return the program, unpickled at most once in this process, which is as the user's was."""
        with self._alone():
            return self._load()

    @property
    def owner(self) -> str:
        """The process of the script, once the program is loaded."""
        return "" if self.main is None else self.main.owner

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Have tasks that share this object load it one after the other."""
        return contextlib.nullcontext() if self.lent is None and self.cached else _cache_lock

    def _load(self) -> Program:
        if self.lent is not None and self.packed is None and self._loaded is None:
            self._fetch()
        if self._loaded is None and self.script:
            _, self.main = _cache.get(self.token) or (None, arrived(self.script, CODEC))
        with running(self.main):
            if self.world is not None and self.python == PYTHON:
                enter(self.world, late=self._loaded is not None or self.token in _cache)
                with _as_loading():
                    own = None if self.world.is_of_here else self.world.own
                    if self.modules and takeover.is_news(own):
                        install(unpacked(self.modules))  # before: what the state refers to may be one of them
                    takeover.take_over(own)
            if self._loaded is None:
                self._loaded = self._from_cache() if self.cached else self._unpickle()
        if self.lent is not None:
            self.packed, self.script = None, b""  # a process beside this one reads it where it lies
        return self._loaded

    def _from_cache(self) -> Program:
        with _cache_lock:
            if self.token not in _cache:
                program = self._unpickle()
                _cache[self.token] = program, self.main
            _cache.move_to_end(self.token)
            program, self.main = _cache[self.token]
            while len(_cache) > CACHED:
                _cache.popitem(last=False)
        return program

    def _unpickle(self) -> Program:
        if self.python != PYTHON:
            raise SerializationError(
                f"this worker runs Python {_dotted(PYTHON)} and the program comes from Python "
                f"{_dotted(self.python)}: functions travel as bytecode, which differs between the two; use "
                "the same minor version on both"
            )
        if self.modules:
            install(unpacked(self.modules))
        loaded = len(sys.modules)
        with _as_loading():
            if self.world is not None and self.world.of_machine:
                takeover.import_edited()
            elif self.world is not None:
                takeover.watch_imports()
            assert self.packed is not None
            with loading(self.main):
                program: Any = self.packed.load(self.main is None or self.main.travelled)
                if self.main is not None:
                    self.main.settle()
        if self.world is not None:  # what was imported just now may have changed what it did in the script
            enter(self.world, anew=len(sys.modules) != loaded)
        return program  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """How many bytes travel."""
        if self.lent is not None or self.packed is None:
            return 0
        nbytes = self.packed.nbytes + len(self.modules) + len(self.script)
        return nbytes if self.world is None else nbytes + self.world.nbytes

    def __sizeof__(self) -> int:
        return self.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        if self.lent is not None:
            return _lent, (self.lent, self.token, self.python)
        arguments = (self.packed, self.token, self.world, self.modules, self.cached, self.python)
        return SharedProgram, (*arguments, self.script, None, self.apart)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


_cache: OrderedDict[str, tuple[Program, Script | None]] = OrderedDict()
_lent_here: dict[str, SharedProgram] = {}
_loading = threading.local()
# Reentrant: unpickling runs user code (`__setstate__`, imports) that may evaluate a chain itself.
_cache_lock = threading.RLock()


def _lent(lent: Captured, token: str, python: tuple[int, int]) -> SharedProgram:
    """Return the program that lies in shared memory: one object in each process.

    It is kept until another one comes and its own evaluation has ended, which its segment tells.
    """
    with _cache_lock:
        if token not in _lent_here:
            ended = [other for other, program in _lent_here.items() if not program.is_wanted()]
            for other in ended:
                del _lent_here[other]
            _lent_here[token] = SharedProgram(None, token, cached=False, python=python, lent=lent)
        return _lent_here[token]


isolated = False  # True in a process beside a worker (`subworker_main`)


@contextlib.contextmanager
def _as_loading() -> Iterator[None]:
    _loading.depth = getattr(_loading, "depth", 0) + 1
    try:
        yield
    finally:
        _loading.depth -= 1


def is_loading() -> bool:
    """Tell whether this thread unpickles a program, which may run code of the user's modules.

    An evaluation must then not wait for another task of this worker: that task would wait for the cache of
    programs, or for the module that is being imported.
    """
    return getattr(_loading, "depth", 0) > 0


def _renew_lock() -> None:
    global _cache_lock
    _cache_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
ending.forgets += [_cache.clear, _lent_here.clear, broadcasts.forget, objects.forget]


def packed_program(program: Program, copies: bool = True) -> tuple[Packed, bytes]:
    """Pickle a program, and what else the script has; without `copies`, its large buffers are the script's.

    The SerializationError of one that cannot be sent names the function, and why.
    """
    try:
        return pack_program(program, copies)
    except Exception as error:
        for func, role in _functions(program):
            _check_function(func, role)
        raise cannot_send(None, "the chain", error) from error


def with_culprit(program: Program, outcome: Outcome) -> Failure:
    """Return an outcome's failure; if the program could not be loaded, with the captured object at fault."""
    failure = outcome.failure
    assert failure is not None
    for func, role in _functions(program) if outcome.unloaded else ():
        if func is not None and (culprit := unloadable(func, outcome.unloaded)):
            error = failure.original()
            named = SerializationError(f"{error}, for {role}: {culprit}")
            named.__cause__ = error.__cause__
            return Failure.of(named, failure.note)
    return failure


def _functions(program: Program) -> Iterator[tuple[Any, str]]:
    for step in program.steps:
        yield step.func, f"the function of {step.label}"
        yield step.policy.on_error, f"the on_error of {step.label}"
        yield step.policy.retry_on, f"the retry_on of {step.label}"
    for func in program.sink.functions.values():
        yield func, f"the function of {program.sink.label}"


def _check_function(func: Any, role: str) -> None:
    try:
        Packed.pack(func)
    except Exception as error:
        raise cannot_send(func, role, error) from error


def copied(program: Program) -> SharedProgram:
    """Wrap a copy of a program for an engine that shares this process."""
    packed, script = packed_program(program)
    main = arrived(script, CODEC)
    with loading(main):
        copy = packed.load()
        main.settle()
    shared = in_process(copy)
    shared.main = main
    return shared


def in_process(program: Program) -> SharedProgram:
    """Wrap a program for an engine that shares this process, with its functions as they are."""
    shared = SharedProgram(Plain(program), "")
    shared._loaded = program
    return shared
