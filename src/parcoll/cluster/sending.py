"""Tasks that pass the scheduler as bytes: it needs neither parcoll nor a user's modules for them.

The scheduler unpickles what a client submits, and pickles it again for a worker. Of these tasks it sees
names of the standard library, and bytes, and nothing of it costs more for being large or strange.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from typing import Any

from dask._task_spec import Task, TaskRef

from parcoll.wire.codec import by_reference
from parcoll.worker.call import Awaited, Call


def opaque_task(key: str, func: Callable[..., Any], *arguments: Any) -> Task:
    """Return the task `func(*arguments)`, of which arguments that are `TaskRef` are made by other tasks."""
    awaited = [argument for argument in arguments if isinstance(argument, TaskRef)]
    positions = iter(range(len(awaited)))
    placed = tuple(Awaited(next(positions)) if isinstance(a, TaskRef) else a for a in arguments)
    call = Task(None, pickle.loads, Opaque(by_reference(Call(func, placed))))
    return Task(key, operator.call, call, *awaited)


class Opaque:
    """Bytes that dask does not hash: it would take 20 ms a MB to name a task that has a name."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (self.content,)

    def __dask_tokenize__(self) -> object:
        return id(self)
