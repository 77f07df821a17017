"""Per worker: objects that are made once in each worker process, or thread, and outlive evaluations.

A `PerWorker` stands for such an object. It travels as the place that it has in its module, or as a key with
its factory. The objects are in a table of each process, by key (`objects`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, Protocol, TypeVar, overload

import cloudpickle

from parcoll.calls import objects
from parcoll.calls.objects import at
from parcoll.calls.waiting import is_async
from parcoll.chain import apart
from parcoll.text import describe, function_name, short_repr
from parcoll.wire.reducers import sentinels
from parcoll.wire.script import owner

T = TypeVar("T")
Scope = Literal["process", "thread"]

SCOPES = ("process", "thread")

_numbers = itertools.count()
known = False  # whether this process has a `PerWorker`

# What other rooms add. `making` is the context in which an object is made, which gets its label.
making: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
elsewhere: weakref.WeakSet[Any] = weakref.WeakSet()  # clusters, whose `end_objects` ends objects there


class PerWorker(Generic[T]):
    """An object that is made once in each worker process, or thread. `per_worker` makes it of a factory."""

    def __init__(self, factory: Callable[[], Any], scope: Scope, module: str, key: str = "") -> None:
        global known
        known = apart.used = True
        self._factory = factory
        self._scope = scope
        self._key = key or f"{sentinels.process}-{next(_numbers)}"
        self._label = f"per_worker({function_name(factory)})"
        self._awaits = is_async(factory)
        self.__module__ = module
        self.__name__ = getattr(factory, "__name__", "")
        self.__qualname__ = getattr(factory, "__qualname__", "")
        self.__doc__ = getattr(factory, "__doc__", None)

    def __call__(self, *arguments: Never) -> T:
        """Return the object of this process, or thread; it is made if there is none yet.

        If the factory is an `async def` function, this returns what gives the object when it is awaited.
        Raises what the factory raises. This ends the evaluation, after the retries of the step.
        """
        if arguments:
            label = self.__name__
            raise TypeError(
                f"{label} is made once in each worker, and {label}() returns the object: write "
                f"{label}()({', '.join(map(short_repr, arguments))})"
            )
        slot: objects.Slot = self._key
        if self._scope == "thread":
            slot = (self._key, threading.get_ident())
        found = objects.here.get(slot)
        if found is not None:
            value = found.value
            if value is not objects.UNMADE and owner() in found.owners and not found.is_stale():
                return value.get() if self._awaits else value  # type: ignore[no-any-return]
        value = self._found(slot)
        return value.get() if self._awaits else value  # type: ignore[no-any-return]

    if not TYPE_CHECKING:  # so that type checkers refuse them, too

        def __getattr__(self, name: str) -> Any:
            """Say that this is not yet the object."""
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name.startswith("_"):
                raise AttributeError(message, name=name, obj=self)
            label = self.__name__
            raise AttributeError(
                f"{message}: {label} is made once in each worker, and {label}() returns the object: write "
                f"{label}().{name}",
                name=name,
                obj=self,
            )

        def __getitem__(self, key: Any) -> Any:
            label = self.__name__
            raise TypeError(
                f"{label} is made once in each worker, and {label}() returns the object: write "
                f"{label}()[{short_repr(key)}]"
            )

        def __contains__(self, item: Any) -> bool:
            label = self.__name__
            raise TypeError(
                f"{label} is made once in each worker, and {label}() returns the object: write "
                f"{short_repr(item)} in {label}()"
            )

        __iter__ = None

    def close(self) -> None:
        """End the object in all processes that have it; the next call makes another one.

        What follows the `yield` of the factory has run when this returns. But a worker that runs functions
        at the moment is waited for only two seconds. There it runs as soon as they have ended. In a function
        on a worker, this ends the object of that process alone.
        """
        which = objects.Which(keys=(self._key,), place=self._place())
        objects.end_here(which)
        for cluster in list(elsewhere):
            cluster.end_objects(which)

    def _found(self, slot: objects.Slot) -> Any:
        """Return the object, made in this thread or by another one for which this one waits."""
        while True:
            stale = objects.here.get(slot)
            if stale is not None and stale.is_stale():
                stale.end()
            found = objects.here.setdefault(slot, objects.Object(self._key, slot, self._label))
            if found.value is objects.UNMADE:
                self._make(found)
            value = found.value
            if value is not objects.UNMADE:  # else it was ended meanwhile
                found.owners.add(objects.owner_here())
                return value

    def _make(self, found: objects.Object) -> None:
        """Have an object be made, in time that is not the call's that needs it."""
        started = apart.clock()
        try:
            with making(self._label), found.lock:
                if found.value is not objects.UNMADE or found.ended:
                    return
                if self._awaits:
                    from parcoll.calls.awaited import factory_of  # lazy: asyncio, 0.04 s

                    found.make(factory_of(self._factory, self._label, self._note))
                else:
                    found.make(self._factory)
                    self._note(apart.clock() - started)
        finally:
            apart.spend(apart.clock() - started)

    def _note(self, seconds: float) -> None:
        """Note for `stats` how long it took to make an object."""
        apart.note(apart.Made(self._label, seconds, objects.name_of(self._key, self._place())))

    def _place(self) -> tuple[str, str] | None:
        """Return the module that has this, and its name there; None if no import gives it."""
        module: Any = sys.modules.get(self.__module__)
        by_value = self.__module__.partition(".")[0] in cloudpickle.list_registry_pickle_by_value()
        if module is None or by_value or getattr(module, "__spec__", None) is None:
            return None
        if self.__module__ in ("__main__", "__mp_main__"):
            return None
        if at(module, self.__qualname__) is self:
            return self.__module__, self.__qualname__
        names = [name for name, value in vars(module).copy().items() if value is self]
        return (self.__module__, names[0]) if names else None

    def __reduce__(self) -> tuple[Any, ...]:
        place = self._place()
        if place is not None:
            return _of_module, place
        return PerWorker, (self._factory, self._scope, self.__module__, self._key)

    def __repr__(self) -> str:
        return f"<PerWorker: {self._label}>"


def _of_module(module: str, path: str) -> Any:
    """Return the `PerWorker` that a module has in this process."""
    __import__(module)
    found = at(sys.modules[module], path)
    if not isinstance(found, PerWorker):
        raise AttributeError(f"{module}.{path} is no PerWorker here, as it is in the script")
    return found


class Decorator(Protocol):
    """What `per_worker(scope=...)` returns."""

    @overload
    def __call__(self, factory: Callable[[], AsyncIterator[T]], /) -> PerWorker[Awaitable[T]]: ...
    @overload
    def __call__(self, factory: Callable[[], Coroutine[Any, Any, T]], /) -> PerWorker[Awaitable[T]]: ...
    @overload
    def __call__(self, factory: Callable[[], Generator[T, Any, Any]], /) -> PerWorker[T]: ...
    @overload
    def __call__(self, factory: Callable[[], Iterator[T]], /) -> PerWorker[T]: ...
    @overload
    def __call__(self, factory: Callable[[], T], /) -> PerWorker[T]: ...


@overload
def per_worker(factory: Callable[[], AsyncIterator[T]], /) -> PerWorker[Awaitable[T]]: ...
@overload
def per_worker(factory: Callable[[], Coroutine[Any, Any, T]], /) -> PerWorker[Awaitable[T]]: ...
@overload
def per_worker(factory: Callable[[], Generator[T, Any, Any]], /) -> PerWorker[T]: ...
@overload
def per_worker(factory: Callable[[], Iterator[T]], /) -> PerWorker[T]: ...
@overload
def per_worker(factory: Callable[[], T], /) -> PerWorker[T]: ...
@overload
def per_worker(*, scope: Scope = "process") -> Decorator: ...
def per_worker(factory: Any = None, /, *, scope: Any = "process") -> Any:
    """Return a `PerWorker` for what `factory` makes: a model, a connection, a session. A decorator.

    Functions call it to get the object. The first call in a worker process makes it; later ones return the
    same object, also in later evaluations.

    Args:
        factory: A function without arguments that returns the object. Of a generator function it is what
            `yield` gives; what follows the `yield` runs when the object ends. It may be a lambda or a
            class, and whatever it refers to travels as with the functions of a step. If it is an
            `async def` function, functions await what they get: `session = await http()`. There is one object
            for each event loop, and all coroutines of a worker process share a loop.
        scope: "process" makes one object in each worker process, which all its threads share. "thread" makes
            one in each thread, for what threads must not share.

    Returns:
        A `PerWorker`. It works in every function that runs on a worker, and in the script too, whose process
        has an object of its own.

    When it runs: nothing runs before a function calls it. The seconds that it takes count neither for
    `timeout=` nor for the sizes of partitions, and are a row of `stats`. Where a thread makes it that the
    function has started, they do count.

    How long it lives: until `close()`, until its connection is closed or its client leaves the scheduler, or
    until the worker ends, after Ctrl-C as well. Then what follows `yield` runs, in the thread that made
    the object if that is free. This cannot be promised where a process is killed (SIGKILL) or has to be
    stopped for a `timeout=`. The worker that takes its place makes another object. Functions with a
    `timeout=` run in processes beside their workers, each with an object of its own; such a process waits
    some minutes for more work.

    Errors: if the factory raises, the evaluation ends with its exception, after the `retries` of the step.
    It is no failure of an element: `on_error` does not see it.

    Raises:
        TypeError: The factory needs arguments.
        ValueError: The scope is none of these, or "thread" for an `async def` function.

    Example:
        >>> from parcoll import parallel, per_worker
        >>> @per_worker
        ... def names():
        ...     return {1: "one", 2: "two"}  # as slow as it may be
        >>> list(parallel([2, 1, 2]).map(lambda n: names()[n]))
        ['two', 'one', 'two']
    """
    if not isinstance(scope, str) or scope not in SCOPES:
        raise ValueError(f'scope must be "process" or "thread", got {short_repr(scope)}')
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    if factory is None:
        return functools.partial(_checked, scope=scope, module=module)
    return _checked(factory, scope, module)


def _checked(factory: Any, scope: Any, module: str) -> PerWorker[Any]:
    if not callable(factory):
        raise TypeError(f"per_worker() needs a function without arguments, got {describe(factory)}")
    if is_async(factory) and scope == "thread":
        raise ValueError(
            f'scope="thread" is for plain functions: {describe(factory)} is `async def`, and makes an object '
            "for each event loop"
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TypeError(
            f"per_worker() needs a function without arguments, and {describe(factory)} cannot be called "
            f"so ({error}): give them defaults, or write per_worker(functools.partial("
            f"{function_name(factory)}, ...))"
        ) from None
    except ValueError:
        pass  # a builtin without a signature: the call will show
    made: PerWorker[Any] = PerWorker(factory, scope, module)
    weakref.finalize(made, objects.dropped.append, made._key).atexit = False
    return made
