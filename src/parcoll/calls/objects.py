"""Objects: what the factories of `per_workers` have made in this process, and how it ends.

An object has owners: the processes of the scripts whose functions have asked for it. It ends when it is
told to, when all its owners have left, or with its process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from parcoll.chain.failures import makes_apart
from parcoll.clock import time
from parcoll.errors import logger
from parcoll.text import line_of
from parcoll.wire.script import current, owner

UNMADE: Any = object()
NO_FAILURE = ", and not for one element: on_error does not apply"
END_SECONDS = 2.0  # for a thread that makes calls, to be free and end what it has made
EXIT_SECONDS = 0.2  # that threads have which have made objects, when their process ends

# Each ends the processes beside this one that have one of these objects; None for any.
renews: list[Callable[[Collection[str] | None], object]] = []

Slot = str | tuple[str, int]  # a key, with a thread if each thread has its own


class Object:
    """One object, or the place of one that is to be made."""

    def __init__(self, key: str, slot: Slot, label: str) -> None:
        self.key = key
        self.slot = slot
        self.label = label
        self.value: Any = UNMADE
        self.owners: set[str] = set()
        self.thread: threading.Thread = threading.current_thread()  # that has made it
        self.ended = False
        self.lock = threading.RLock()
        self._makes = False
        self._generator: Any = None

    def is_stale(self) -> bool:
        """Tell whether this is of another thread, which has ended, and had the same number."""
        return isinstance(self.slot, tuple) and self.thread is not threading.current_thread()

    def make(self, factory: Callable[[], Any]) -> None:
        """Call the factory. With the lock held."""
        if self._makes:
            raise needs_itself(self.label)
        self._makes = True
        try:
            made = factory()
            generator = made if inspect.isgeneratorfunction(called(factory)) else None
            if generator is not None:
                made = next(generator, UNMADE)
                if made is UNMADE:
                    raise gives_nothing(self.label)
        except BaseException as error:
            _forget(self)
            self.ended = True
            tell_of_making(self.label, error)
            raise
        finally:
            self._makes = False
        self.thread, self._generator = threading.current_thread(), generator
        self.owners.add(owner_here())
        if generator is not None:
            # Registered last, it is called first: before what the factory's libraries have registered.
            atexit.unregister(end_at_exit)
            atexit.register(end_at_exit)
        self.value = made

    def end_where_made(self) -> threading.Event | None:
        """End it, or have the thread do so that makes calls and made it; return what tells when it has."""
        hand_over: Callable[..., threading.Event | None] | None = getattr(self.thread, "end_object", None)
        if hand_over is not None and self.thread is not threading.current_thread():
            ended = hand_over(self.end)
            if ended is not None:
                return ended
        self.end()
        return None

    def end(self) -> None:
        """Let go of the object; run what follows the `yield` of its factory."""
        if not self.lock.acquire(timeout=0 if self._makes else -1):
            return  # it is just being made, by a thread that is stuck or interrupted
        try:
            _forget(self)
            self.ended, self.value = True, UNMADE
            generator, self._generator = self._generator, None
            if generator is None:
                return
            try:
                next(generator)
            except StopIteration:
                return
            except Exception as error:
                tell_of_end(self.label, error)
                return
            generator.close()
            tell_of_yield(self.label)
        finally:
            self.lock.release()


def tell_of_making(label: str, error: BaseException) -> None:
    """Note in what a factory has raised that no element failed, unless the factory of another object did."""
    if isinstance(error, Exception) and not any(NO_FAILURE in one for one in getattr(error, "__notes__", ())):
        error.add_note(f"raised by the factory of {label}{NO_FAILURE}")


def tell_of_end(label: str, error: Exception) -> None:
    """Log what was raised behind the `yield` of a factory."""
    logger.warning("at the end of %s: %s", label, line_of(error), exc_info=error)


def tell_of_yield(label: str) -> None:
    """Log that a factory has more than one `yield`."""
    logger.warning("the factory of %s has a second yield, behind which nothing runs", label)


def needs_itself(label: str) -> RuntimeError:
    """Return the error for a factory that asks for the object that it makes."""
    return RuntimeError(f"the factory of {label} needs the object that it is to make")


def gives_nothing(label: str) -> RuntimeError:
    """Return the error for a factory that ends before it yields."""
    return RuntimeError(f"the factory of {label} has not yielded anything")


makes_apart(Object.make.__code__)
here: dict[Slot, Object] = {}  # the objects of this process, in the order in which they were made
dropped: deque[str] = deque()  # keys of each `PerWorker` that the script cannot use any more


def owner_here() -> str:
    """Return the process of the script whose function this is, also in a thread that it has started."""
    if owner():
        return owner()
    script = current()
    return script.owner if script is not None else ""


def called(factory: Any) -> Any:
    """Return the function that runs when a factory is called."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    is_object = not (isinstance(factory, type) or inspect.isroutine(factory))
    return type(factory).__call__ if is_object else factory


def of_thread(thread: threading.Thread) -> bool:
    """Tell whether a thread has objects of its own."""
    return any(isinstance(found.slot, tuple) and found.thread is thread for found in list(here.values()))


def at(module: Any, path: str) -> Any:
    """Return what a module has at a path, as `Class.name`; None for nothing."""
    found = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _forget(found: Object) -> None:
    if here.get(found.slot) is found:
        del here[found.slot]


class Which(NamedTuple):
    """Which objects are to end: those with these keys, that of a module's `PerWorker`, those of an owner."""

    keys: Collection[str] = ()
    place: tuple[str, str] | None = None
    owner: str = ""


def name_of(key: str, place: tuple[str, str] | None) -> str:
    """Return a name that is the same in all processes: keys of what an import makes are not."""
    return key if place is None else ":".join(place)


def _chosen(which: Which) -> list[Object]:
    """Return the objects that are to end, the one made last first."""
    keys = set(which.keys)
    if which.place is not None and which.place[0] in sys.modules:
        keys |= {getattr(at(sys.modules[which.place[0]], which.place[1]), "_key", "")}
    chosen = []
    for found in list(here.values()):
        if which.owner and which.owner in found.owners:
            found.owners.discard(which.owner)
            if not found.owners:
                keys.add(found.key)
        if found.key in keys:
            chosen.append(found)
    return chosen[::-1]


def end_here(which: Which) -> None:
    """End objects of this process, in this thread, or in those that make calls and have made them."""
    _end_all(_chosen(which), END_SECONDS)


def _end_all(chosen: list[Object], seconds: float) -> None:
    """End objects, and wait so long for threads that make calls and are to end some."""
    deadline = time.monotonic() + seconds
    for ended in [found.end_where_made() for found in chosen]:
        if ended is not None:
            ended.wait(max(deadline - time.monotonic(), 0.0))


def end_dropped() -> Which | None:
    """End the objects of each `PerWorker` that nobody can use any more; return which, for the clusters."""
    keys = [dropped.popleft() for _ in range(len(dropped))]
    if not keys:
        return None
    which = Which(keys=keys)
    end_here(which)
    return which


async def end_on(which: Which, seconds: float = END_SECONDS, dask_worker: Any = None) -> None:
    """End objects of a worker's process, in its threads. Returns after some seconds at the latest."""
    import asyncio

    chosen = _chosen(which)
    if chosen:
        jobs = _in_threads(dask_worker, chosen, seconds / 2)
        await asyncio.wait([asyncio.wrap_future(job) for job in jobs], timeout=seconds)
    names = None if which.owner else {*which.keys, name_of("", which.place)}
    for renew in renews:
        waiting = asyncio.get_running_loop().run_in_executor(None, renew, names)
        await asyncio.wait([waiting], timeout=seconds)


def _in_threads(dask_worker: Any, chosen: list[Object], seconds: float) -> list[Any]:
    """Have each object be ended by the thread of a worker that has made it; return the futures of the calls.

    A thread that is busy does it when it is free. What none of them has made, any of them ends.
    """
    count = dask_worker.state.nthreads
    together = threading.Barrier(count)  # so that each call has a thread of its own
    met: set[threading.Thread] = set()

    def end_own() -> None:
        me = threading.current_thread()
        met.add(me)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(seconds)
        all_met = len(met) == count
        _end_all([o for o in chosen if o.thread is me or (all_met and o.thread not in met)], seconds)

    return [dask_worker.executors["default"].submit(end_own) for _ in range(count)]


def _nothing() -> None:
    """Stand for what other rooms have not set."""


worker_here: Callable[[], Any] = _nothing  # returns the dask worker of this process


def end_in_threads() -> None:
    """End the objects that threads of this process's worker have made, as far as these are free."""
    me, worker = threading.current_thread(), worker_here()
    others = [found for found in here.values() if found.thread is not me and found.thread.is_alive()]
    if others and worker is not None:
        from concurrent.futures import wait

        with contextlib.suppress(Exception):  # its pool takes no more work
            wait(_in_threads(worker, others[::-1], EXIT_SECONDS / 2), EXIT_SECONDS)


def end_of_thread() -> None:
    """End the objects that this thread alone has: it ends."""
    me = threading.current_thread()
    own = [found for found in here.values() if isinstance(found.slot, tuple) and found.thread is me]
    _end_all(own[::-1], EXIT_SECONDS)


def end_at_exit() -> None:
    """End all objects of this process, the one made last first: the process ends."""
    end_in_threads()
    _end_all(list(here.values())[::-1], EXIT_SECONDS)


def forget() -> None:
    """Let go of all objects."""
    here.clear()


_inherited: list[Any] = []  # of the process that forked this one: to drop them here would end them there


def _start_anew() -> None:
    _inherited.append(dict(here))
    here.clear()
    atexit.unregister(end_at_exit)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
