"""ParallelGen: what users call to make and extend a chain. `evaluating` has the calls that evaluate it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, Literal, TypeGuard, TypeVar, Unpack, overload

from parcoll.calls.batches import MapBatches
from parcoll.chain.steps import Filter, FlatMap, Foreach, Map, Step
from parcoll.errors import ElementError
from parcoll.evaluation.plan import Node
from parcoll.front import arguments
from parcoll.front.arguments import Calls, KeySettings, ListBatches, OtherBatches, Skips, StepSettings
from parcoll.front.evaluating import kept
from parcoll.front.keyed import Keys
from parcoll.front.streams import Streams
from parcoll.front.values import Values
from parcoll.front.writing import Writing
from parcoll.keys.streams import Batches
from parcoll.world import handlers

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
A = TypeVar("A")
D = TypeVar("D")
Word = Literal["raise", "skip"] | None
Else = Callable[[ElementError], D]
Of = Callable[[list[A]], Iterable[R]]
Size = int | Literal["auto"]
Awaits = Coroutine[Any, Any, R]  # what a call of an `async def` function returns
Several = Iterable[R] | AsyncIterable[R] | Coroutine[Any, Any, Iterable[R]]


@handlers.methods_reaching
class ParallelGen(Keys[T_co], Streams[T_co], Values[T_co], Writing[T_co]):
    """A lazy collection, made by `parallel`, or of files. Its chained functions run on worker processes.

    `map`, `filter`, `zip` and all else that returns a collection leave this one as it is, and run nothing.
    Iterating evaluates, and so do `reduce`, `fold`, `foreach`, `take`, `first`, `count`, `count_by`, `min`,
    `max`, `nlargest`, `nsmallest`, `sum`, `persist`, and what writes files or makes tables: they read the
    source from its start and run the whole chain. Only `persist` and `foreach` keep results for the next one.

    Functions may be lambdas, closures, bound methods or anything else that cloudpickle can pickle. They get a
    copy of each element in a worker process, so changes to it or to global variables are not seen by the
    caller.

    Order is that of the source, unless `unordered` says otherwise. Memory is bounded: the source is read at
    most some partitions ahead of what was consumed. An exception of a function is raised by the evaluating
    call, after the results before it, with its own type and a note that names the step and the element,
    unless `on_error`, `retries` or `timeout` say otherwise: for the whole chain if `parallel` got them, or
    for one step (see `map`).

    >>> from parcoll import parallel
    >>> numbers = parallel(range(10)).filter(lambda x: x % 2).map(lambda x: x * x)
    >>> list(numbers), numbers.count(), numbers.reduce(max)
    ([1, 9, 25, 49, 81], 5, 81)
    """

    __slots__ = ("__weakref__",)

    def _extended(self, kind: type[Step], func: Any, settings: StepSettings) -> ParallelGen[Any]:
        step = arguments.step(kind, func, settings, self._options.policy)
        return ParallelGen(Node(before=self._node, step=step), self._options)

    @overload
    def map(self, func: Callable[[T_co], Awaits[R]], **settings: Unpack[Skips]) -> ParallelGen[R]: ...
    @overload
    def map(
        self, func: Callable[[T_co], Awaits[R]], *, on_error: Else[D], **tries: Unpack[Calls]
    ) -> ParallelGen[R | D]: ...
    @overload
    def map(self, func: Callable[[T_co], R], **settings: Unpack[Skips]) -> ParallelGen[R]: ...
    @overload
    def map(
        self, func: Callable[[T_co], R], *, on_error: Else[D], **tries: Unpack[Calls]
    ) -> ParallelGen[R | D]: ...
    def map(self, func: Callable[[T_co], Any], **settings: Unpack[StepSettings]) -> ParallelGen[Any]:
        """Return a collection of `func(element)` for each element, in the same order. Runs nothing.

        When the collection is evaluated, `func` is called on the workers, and an element goes through all
        steps before the next one starts. At most some partitions of results are held, those that wait to be
        consumed.

        Args:
            func: A callable of one argument that cloudpickle can pickle: a function, lambda, closure, bound
                method or class. It gets a copy of the element. Fix further arguments with
                `functools.partial`.
            on_error: What becomes of an element for which `func` raises. "raise" ends the evaluation with the
                exception. "skip" leaves the element out. A function is called on the worker with an
                `ElementError`; what it returns stands for the result, and goes on to the next step.
            retries: How often `func` is called again with an element for which it raised: after 0.1 s, 0.2 s
                and so on up to 10 s, less a random part of at most half. The worker waits.
            retry_on: The exceptions that are worth it: a subclass of Exception, a tuple or union of them, or
                a function that gets the exception and returns whether to try again.
            timeout: Seconds that one call may take. A call that takes longer is stopped, and its element has
                failed with an `ElementTimeoutError`. `math.inf` means no limit.
            concurrency: How many calls wait at the same time, over the whole cluster, in threads of the
                workers, which no `timeout` can stop. Coroutines of an `async def` function run in one event
                loop a worker process, 64 a worker thread if not told otherwise; a `timeout` cancels them.
            rate: `(calls, seconds)`: no more calls than that are begun over the whole cluster in any so many
                seconds. Each worker thread spaces its part of them evenly.

        These settings hold for this step. None, the default of each, means what `parallel` was told; if it
        was told nothing, that is "raise", 0, Exception, and no limit.

        Raises TypeError or ValueError at once for a wrong argument. The evaluation raises what `func` raised,
        if `on_error` is "raise" or it is not an `Exception` (KeyboardInterrupt, SystemExit), and
        SerializationError if `func`, an element or a result cannot be sent between processes.

        >>> from parcoll import parallel
        >>> list(parallel(["a", "b"]).map(str.upper))
        ['A', 'B']
        >>> list(parallel(["1", "x"]).map(int, on_error=lambda error: len(error.element)))
        [1, 1]
        """
        return self._extended(Map, func, settings)

    @overload
    def filter(self: ParallelGen[R | None], predicate: None, **settings: Unpack[Skips]) -> ParallelGen[R]: ...
    @overload
    def filter(
        self: ParallelGen[R | None], predicate: None, *, on_error: Else[D], **tries: Unpack[Calls]
    ) -> ParallelGen[R | D]: ...
    @overload
    def filter(
        self, predicate: Callable[[T_co], TypeGuard[R]], **settings: Unpack[Skips]
    ) -> ParallelGen[R]: ...
    @overload
    def filter(
        self, predicate: Callable[[T_co], TypeGuard[R]], *, on_error: Else[D], **tries: Unpack[Calls]
    ) -> ParallelGen[R | D]: ...
    @overload
    def filter(self, predicate: Callable[[T_co], object], **settings: Unpack[Skips]) -> ParallelGen[T_co]: ...
    @overload
    def filter(
        self, predicate: Callable[[T_co], object], *, on_error: Else[D], **tries: Unpack[Calls]
    ) -> ParallelGen[T_co | D]: ...
    def filter(
        self, predicate: Callable[[T_co], object] | None, **settings: Unpack[StepSettings]
    ) -> ParallelGen[Any]:
        """Return a collection of the elements for which `predicate` is true, in the same order. Runs nothing.

        `predicate` is a callable of one argument, or None for the elements that are true themselves, as with
        the builtin. `on_error`, `retries`, `retry_on`, `timeout`, `concurrency`, `rate` and errors are as in
        `map`. What an `on_error` function returns stands for the element, and stays, whether true or not.

        >>> from parcoll import parallel
        >>> list(parallel(range(6)).filter(lambda x: x % 2))
        [1, 3, 5]
        """
        return self._extended(Filter, predicate, settings)

    @overload
    def flatmap(self, func: Callable[[T_co], Several[R]], **settings: Unpack[Skips]) -> ParallelGen[R]: ...
    @overload
    def flatmap(
        self, func: Callable[[T_co], Several[R]], *, on_error: Else[D], **tries: Unpack[Calls]
    ) -> ParallelGen[R | D]: ...
    def flatmap(
        self, func: Callable[[T_co], Several[Any]], **settings: Unpack[StepSettings]
    ) -> ParallelGen[Any]:
        """Return a collection of the elements of each `func(element)`, flattened by one level. Runs nothing.

        Order is that of the source, and within an element that of what `func` returned: any iterable (a
        string gives its characters). The worker draws from it one by one through the following steps, and
        holds all results of a partition until it sends them. So an endless iterable is for `take` and `first`
        only.

        `on_error`, `retries`, `retry_on`, `timeout`, `concurrency`, `rate` and errors are as in `map`. If the
        iterable raises halfway, the element has failed: what it gave before stays, and it is not tried again.
        What an `on_error` function returns comes after that, as one element. `func` may be an asynchronous
        generator. With that, or with `concurrency`, all that an element gives is held until its turn comes.

        >>> from parcoll import parallel
        >>> list(parallel(["ab", "c"]).flatmap(list))
        ['a', 'b', 'c']
        """
        return self._extended(FlatMap, func, settings)

    flat_map = flatmap

    @overload
    def map_batches(
        self, func: Of[T_co, R], size: Size = 1024, *, on_error: Word = None, **how: Unpack[ListBatches]
    ) -> ParallelGen[R]: ...
    @overload
    def map_batches(
        self, func: Of[T_co, R], size: Size = 1024, *, on_error: Else[D], **how: Unpack[ListBatches]
    ) -> ParallelGen[R | D]: ...
    @overload
    def map_batches(
        self, func: Callable[[Any], Any], size: Size = 1024, **how: Unpack[OtherBatches]
    ) -> ParallelGen[Any]: ...
    def map_batches(
        self,
        func: Callable[[Any], Iterable[Any]],
        size: int | Literal["auto"] = 1024,
        *,
        format: Literal["list", "numpy", "arrow", "pandas"] = "list",
        flat: bool = False,
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[Any]:
        """Return a collection of the results of `func(batch)` for batches of elements. Runs nothing.

        For functions that do many elements in little more time than one: a model, an insert into a database,
        array operations. `func` gets up to `size` elements and returns as many results, in their order. A
        batch ends with its partition, so where it ends must not matter: `batched(n)` has exact ones.

        If `func` raises, it is called again with each element of the batch alone. So `on_error`, `retries`,
        `retry_on` and `errors` hold for elements, as in `map`, and what `func` did before it raised it may do
        twice. A batch that takes longer than `timeout` is run in the same way.

        Args:
            func: A function of a batch. It must do with each element what it does if it gets that one alone.
            size: Elements of a batch, at most. "auto" begins with 16, and doubles while a call takes less
                than 0.05 s, up to 65,536.
            format: What `func` gets: a "list"; with "numpy" an array (arrays are stacked; what are no
                numbers, texts or arrays are objects of it); with "arrow" a `RecordBatch` of rows that are
                dicts, or an `Array`; with "pandas" a `DataFrame` of such rows, or a `Series`. It may return
                the same or any iterable. The package is needed where `func` runs.
            flat: True if `func` may return any number of results for a batch.

        Raises TypeError or ValueError for what is not allowed; the evaluation raises ValueError if `func`
        returns another number of results than it got elements.

        >>> from parcoll import parallel
        >>> list(parallel(range(5)).map_batches(lambda batch: [x * x for x in batch], size=2))
        [0, 1, 4, 9, 16]
        """
        func = arguments.function(func, "map_batches")
        policy = arguments.step_policy("map_batches", func, settings, self._options.policy)
        step = MapBatches(func, policy, *arguments.batches(size, format, flat))
        return ParallelGen(Node(before=self._node, step=step), self._options)

    def batched(self, n: int) -> ParallelGen[tuple[T_co, ...]]:
        """Return a collection of tuples of `n` elements, as `itertools.batched`. Runs nothing.

        Exactly `n`, over partitions; the last may be shorter. Behind other steps, their results come back to
        this process and go out again as tuples, while the evaluation runs and a bounded window ahead: this
        costs what it costs to move them. `errors` of steps behind it count batches. A checkpoint cannot
        save steps before it: then it must come first.

        >>> from parcoll import parallel
        >>> list(parallel(range(7)).map(lambda x: x * x).batched(3).map(sum))
        [5, 50, 36]
        """
        n = arguments.whole_number(n, "batched() needs a whole number")
        return self._derived(Batches(n), size=n, instead="use map_batches(), ")

    def unordered(self) -> ParallelGen[T_co]:
        """Return a collection that gives the results of each partition as soon as it is done. Runs nothing.

        For iteration, `take` and `first`: a slow partition then holds up no other. Elements that stand behind
        a slow one in its partition go to other workers. Within a partition, results keep their order.

        >>> from parcoll import parallel
        >>> sorted(parallel(range(4)).map(lambda x: x * x).unordered())
        [0, 1, 4, 9]
        """
        return ParallelGen(self._node, dataclasses.replace(self._options, ordered=False))

    def foreach(self, func: Callable[[T_co], Any], **settings: Unpack[StepSettings]) -> None:
        """Evaluate now: call `func` with each element; its results replace this collection's elements.

        Returns None. `func` is called on the workers. The results stay in the workers' memory, in the order
        of the source, until they are read or until no collection refers to them. Collections that were
        chained from this one before keep the elements that they had.

        The settings are those of `map`. If this raises, the collection stays as it was.

        >>> from parcoll import parallel
        >>> numbers = parallel(range(3))
        >>> numbers.foreach(lambda x: x * 10)
        >>> list(numbers)
        [0, 10, 20]
        """
        arguments.no_checkpoint(self._options.checkpoint, "foreach", "map(func) and a loop over its results")
        run = self._extended(Foreach, func, settings)._run()
        self._own = run.stats
        self._node = kept(run, "foreach")

    def __reduce__(self) -> tuple[Any, ...]:
        return ParallelGen, (self._node, self._options)
