"""Sources: what makes a collection of any iterable: `parallel`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from parcoll.chain.policy import OnError, RetryOn
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import Options
from parcoll.evaluation.source import source_of
from parcoll.front import arguments
from parcoll.front.collection import ParallelGen
from parcoll.mistakes import not_a_collection
from parcoll.world import handlers

if TYPE_CHECKING:
    from dask.bag import Bag
    from distributed import Client

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Settings(TypedDict, total=False):
    """What `parallel` may be told beside its source; its docstring explains each setting."""

    partition_size: int | Literal["auto"]
    buffersize: int | None
    client: Client | None
    name: str | None
    progress: bool | str | None
    on_error: OnError
    retries: int
    retry_on: RetryOn
    timeout: float | None
    checkpoint: str | os.PathLike[str] | None
    retry_failed: bool


@overload
def parallel(source: Mapping[K, V], **settings: Unpack[Settings]) -> ParallelGen[tuple[K, V]]: ...
@overload
def parallel(source: Iterable[T], **settings: Unpack[Settings]) -> ParallelGen[T]: ...
@overload
def parallel(source: Callable[[], Iterable[T]], **settings: Unpack[Settings]) -> ParallelGen[T]: ...
@overload
def parallel(source: Bag, **settings: Unpack[Settings]) -> ParallelGen[Any]: ...
@handlers.reaching
def parallel(
    source: Any,
    *,
    partition_size: int | Literal["auto"] = "auto",
    buffersize: int | None = None,
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
) -> ParallelGen[Any]:
    """Return a lazy collection of the source's elements. Reads, starts and sends nothing.

    Each evaluation reads the source from its start, in the thread that evaluates and in order, and at most
    some partitions ahead of what was consumed: about four for each worker thread. So a source may be endless,
    but it must not wait for the result of an element that it gave just before.

    Args:
        source: Any iterable; a mapping gives its pairs, a string its characters. An iterator or a generator
            serves one evaluation, and stays open afterwards. A function without arguments that returns an
            iterator is called anew for each evaluation; unless it is a generator function it is called once
            now, to see that it does. The partitions of a `dask.bag.Bag` stay where they are.
        partition_size: How many elements go to a worker together. "auto" starts with one, and aims at some
            tenths of a second of work and a few MiB.
        buffersize: How many elements of the source may have been read whose results were not taken yet, as in
            Python's `Executor.map`. None bounds it by time: what keeps all workers busy for some seconds.
            Partitions get smaller with it; below two elements for each worker thread, workers wait.
        client: A `distributed.Client` to run on, instead of the one that `connect` or dask would give.
        name: What the dashboard calls the tasks and the pipeline.
        progress: True shows a progress bar, also in a log file; a text shows one with this label. None does
            as `parcoll.progress` says, which is off until it is called.
        on_error: What becomes of an element for which the function of a step raises. "raise" ends the
            evaluation with the exception. "skip" leaves the element out. A function is called on the worker
            with an `ElementError`, and what it returns takes the place of the element. `stats` counts the
            failed elements, and `errors` lists them.
        retries: How often a function is called again with an element for which it raised: after 0.1 s, 0.2 s
            and so on up to 10 s, less a random part of at most half. The worker waits.
        retry_on: The exceptions that are worth it: a subclass of Exception, a tuple or union of them, or a
            function that gets the exception and returns whether to try again.
        timeout: Seconds that one call may take; None for no limit. A call that takes longer is stopped,
            whatever it does, with the threads and processes that it has started. Its element has failed with
            an `ElementTimeoutError`, and no other element is lost. Functions then run in processes beside the
            workers, which takes a few per cent longer for calls of 0.1 ms. `connect("inline")` has no
            timeouts.
        checkpoint: A folder where results are kept: a path, or any URL that fsspec knows
            ("s3://bucket/run-7"). The consumer gets results once they are on the disk. The same script
            started again, whatever ended it, gives the saved results first and runs only the elements that
            have none. It reads the source from its start and compares its elements: another chain or source
            raises `CheckpointError`, and so does a full disk. A source that has grown at its end is the same
            one: its new elements run. Calls that it cannot resume say so at once: `foreach`, `persist`,
            `group_by`, `distinct`, `sorted`, `take_while`, `drop_while`; and what needs elements in order,
            such as `batched` or `zip`, if it does not come first. It is not for bags.
            Results are saved in order, a partition at a time. They come up to 0.1 s later; from 10 s after
            the start on up to a hundredth of the time so far, and 2 s at most. So about a second of each
            worker's calls runs again after a `kill -9`, and more in a long run, or behind a slow element. The
            folder is yours to delete. It holds pickles: whoever can write to it can run code as you.
            `checkpoint_info` says what it has.
        retry_failed: True runs again what had failed in earlier runs with this `checkpoint`, and was left out
            or replaced by `on_error`, and only that. The results come in their places, and take the places of
            the old ones in the folder. What fails again is an error again.

    `on_error`, `retries`, `retry_on` and `timeout` hold for every step that was not told otherwise. They do
    not hold for the source, for the function of `reduce` or `fold`, or for what is no `Exception`, as
    KeyboardInterrupt and SystemExit: these always end the evaluation. But `timeout` also stops the functions
    of `reduce` and `fold`, which ends the evaluation; the one call `combine(initial, initial)` of `fold` is
    made in this process, where nothing is stopped.

    Raises TypeError for a source that is none of these, and TypeError or ValueError for a wrong setting.

    >>> list(parallel([1, 2, 3]).map(lambda x: x + 1))
    [2, 3, 4]
    >>> list(parallel(["1", "x", "3"], on_error="skip").map(int))
    [1, 3]
    """
    options = Options(
        arguments.partition_size(partition_size),
        arguments.client(client),
        arguments.name(name),
        buffersize=arguments.buffersize(buffersize),
        progress=arguments.progress(progress),
        policy=arguments.policy(on_error, retries, retry_on, timeout),
        checkpoint=arguments.checkpoint(checkpoint),
        retry_failed=arguments.retry_failed(retry_failed, checkpoint),
    )
    if _is_bag(source) and options.checkpoint is not None:
        raise TypeError(
            f"checkpoint= needs a source that is read here, so that its elements can be compared: {source!r} "
            "is a dask bag, whose partitions are read by the workers"
        )
    if _is_bag(source) and options.buffersize is not None:
        raise TypeError(
            f"buffersize= needs a source that is read here: {source!r} is a dask bag, whose partitions are "
            "read by the workers"
        )
    return ParallelGen(Node(source if _is_bag(source) else source_of(source)), options)


if not TYPE_CHECKING:

    class _Function:
        """The function `parallel`, which says what to write where somebody looks for a method of it."""

        def __init__(self, function: Callable[..., Any]) -> None:
            functools.update_wrapper(self, function)

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return self.__wrapped__(*arguments, **named)

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(not_a_collection("the function parallel", name), name=name, obj=self)

        def __get__(
            self, instance: Any, owner: Any = None
        ) -> Any:  # as functions have; so help() takes it for one
            return self if instance is None else MethodType(self, instance)

        def __repr__(self) -> str:
            return repr(self.__wrapped__)

        def __reduce__(self) -> str:
            return self.__name__

    parallel = _Function(parallel)


def _is_bag(source: Any) -> bool:
    # A bag cannot exist before its class does; another thread may be importing the module.
    kind = getattr(sys.modules.get("dask.bag"), "Bag", None)
    return kind is not None and isinstance(source, kind)
