"""`parallel`: checks what it was given, and makes the collection that a chain starts with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from parcoll import arguments
from parcoll.chain.policy import OnError, RetryOn
from parcoll.collection import ParallelGen
from parcoll.evaluation.plan import Node
from parcoll.evaluation.reader import source_of
from parcoll.evaluation.run import Options

if TYPE_CHECKING:
    from dask.bag import Bag
    from distributed import Client

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


@overload
def parallel(
    source: Mapping[K, V],
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ParallelGen[tuple[K, V]]: ...
@overload
def parallel(
    source: Iterable[T],
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ParallelGen[T]: ...
@overload
def parallel(
    source: Callable[[], Iterable[T]],
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ParallelGen[T]: ...
@overload
def parallel(
    source: Bag,
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ParallelGen[Any]: ...
def parallel(
    source: Any,
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ParallelGen[Any]:
    """Return a lazy collection of the source's elements. Reads, starts and submits nothing.

    `source`: any iterable (a mapping gives its pairs, a string its characters); an iterator or a
    generator, for one evaluation; a function without arguments that returns an iterator, called anew
    for each evaluation (if it is no generator function, it is called once here, to see that it does);
    or a `dask.bag.Bag`, whose partitions stay where they are. The source is read in the thread that
    evaluates, up to a window of a few partitions ahead of what was consumed: it must not wait for the
    result of an element that it gave just before. An iterator of yours stays open afterwards; one that
    a function returned goes with the evaluation.

    `partition_size`: elements that travel to a worker together. "auto" starts with one, and aims at
    some tenths of a second and a few MiB.
    `client`: a `distributed.Client` to run on, instead of the one `connect` or dask would give.
    `name`: what the dashboard calls the tasks and the pipeline.
    `progress`: True, or a label, shows a progress bar, in a log file too; None does as
    `parcoll.progress` says, which is off until it is called.
    `on_error`: what becomes of an element for which a step's function raises. "raise" ends the
    evaluation with the exception; "skip" leaves the element out; a function is called with an
    `ElementError`, on the worker, and what it returns takes the element's place. What was left out is
    counted in `stats` and kept in `errors`.
    `retries`: how many times a function that raised is called again with the same element, after 0.1 s,
    0.2 s and so on, up to 10 s, of which a random part of up to a half is left out. The worker waits.
    `retry_on`: the exceptions for which it is: a class, several, or a function that gets the exception.
    `timeout`: seconds that one call of a step's function may take with one element. One that takes
    longer is stopped, whatever it does, with the threads and processes that it has started, and the
    element has failed with an `ElementTimeoutError`; no other element is lost. The functions then run
    in processes of their own beside the workers (a few per cent slower, where calls take 0.1 ms; in
    "inline" there is no timeout). `math.inf` in a step is none.
    These four hold for every step that does not say otherwise, and for steps only: what the source
    raises, or the function of `reduce` and `fold`, always ends the evaluation, and so does what is
    no `Exception`, as KeyboardInterrupt and SystemExit. `timeout` is also for the function of `reduce`
    and for those of `fold`, and ends the evaluation there; but `fold` calls `combine(initial, initial)`
    in this process, where nothing is stopped.
    `checkpoint`: a folder, as a path or any URL that fsspec knows ("s3://bucket/run-7"), where results are
    kept. What the consumer gets is on the disk before; the same script started again, whatever ended it,
    gives the saved results first and runs only what has none. The source is read from its start, and its
    elements are compared; another chain or source raises `CheckpointError`, and so does a full disk. It is
    for iteration, `take`, `first` and `count`, and not for bags. The folder is yours to delete. What is in
    it are pickles: who can write there can run code as you. Results come up to 0.1 s later, in long runs 2 s.

    Raises TypeError for a source that is none of these, TypeError or ValueError for a wrong setting.

    >>> list(parallel([1, 2, 3]).map(lambda x: x + 1))
    [2, 3, 4]
    >>> list(parallel(["1", "x", "3"], on_error="skip").map(int))
    [1, 3]
    """
    options = Options(
        arguments.partition_size(partition_size),
        arguments.client(client),
        arguments.name(name),
        progress=arguments.progress(progress),
        policy=arguments.policy(on_error, retries, retry_on, timeout),
        checkpoint=arguments.checkpoint(checkpoint),
    )
    if _is_bag(source) and options.checkpoint is not None:
        raise TypeError(
            f"checkpoint= needs a source that is read here, so that its elements can be compared: {source!r} "
            "is a dask bag, whose partitions are read by the workers"
        )
    return ParallelGen(Node(source if _is_bag(source) else source_of(source)), options)


def _is_bag(source: Any) -> bool:
    # A bag cannot exist before its class does; another thread may be importing the module.
    kind = getattr(sys.modules.get("dask.bag"), "Bag", None)
    return kind is not None and isinstance(source, kind)
