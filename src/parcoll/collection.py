"""`ParallelGen`: what users call. Checks arguments, extends the chain, asks for evaluations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeGuard, TypeVar, Unpack, overload

from parcoll import arguments
from parcoll.chain.policy import OnError, RetryOn
from parcoll.chain.steps import Filter, FlatMap, Foreach, Map, Step
from parcoll.current import engine_for
from parcoll.errors import ElementError
from parcoll.evaluation import folding
from parcoll.evaluation import run as evaluation
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import UNSET, Options, Run
from parcoll.explain import Explanation, explanation
from parcoll.watch import table
from parcoll.watch.stats import Stats

if TYPE_CHECKING:
    from dask.bag import Bag

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
A = TypeVar("A")
D = TypeVar("D")
Word = Literal["raise", "skip"] | None
Else = Callable[[ElementError], D]


class Tries(TypedDict, total=False):
    """What a step may be told of its attempts with one element; None for what `parallel` was told."""

    retries: int | None
    retry_on: RetryOn | None
    timeout: float | None


class StepSettings(Tries, total=False):
    """The same, and what becomes of an element for which they all fail."""

    on_error: OnError | None


class ParallelGen(Generic[T_co]):
    """A lazy collection whose chained calls run on worker processes.

    Made by `parallel`. `map`, `filter`, `flatmap` and `unordered` return a new collection and leave
    this one as it is; nothing runs until the collection is iterated or `reduce`, `fold`, `foreach`,
    `take`, `first` or `count` is called. Each evaluation starts anew from the source.

    Functions may be lambdas, closures, bound methods or anything else that cloudpickle can pickle.
    They get a copy of each element, in a worker process: changes they make to global variables or
    to their arguments are not seen by the caller. A function's exception is raised by the evaluating
    call with its own type, after the results before it, with a note that names step and element; or
    `on_error=`, `retries=` and `timeout=` say otherwise, for all steps where `parallel` got them, for one
    where its method did. A step that is given None does as `parallel` was told.
    """

    __slots__ = ("__weakref__", "_node", "_options", "_stats")

    def __init__(self, node: Node, options: Options) -> None:
        self._node = node
        self._options = options
        self._stats = Stats()

    def _extended(self, kind: type[Step], func: Any, settings: StepSettings) -> ParallelGen[Any]:
        if func is not None or not kind.may_lack_function:
            func = arguments.function(func, kind.kind)
        step = kind(func, arguments.step_policy(kind.kind, func, settings, self._options.policy))
        return ParallelGen(Node(before=self._node, step=step), self._options)

    @overload
    def map(
        self, func: Callable[[T_co], R], *, on_error: Word = None, **tries: Unpack[Tries]
    ) -> ParallelGen[R]: ...
    @overload
    def map(
        self, func: Callable[[T_co], R], *, on_error: Else[D], **tries: Unpack[Tries]
    ) -> ParallelGen[R | D]: ...
    def map(
        self,
        func: Any,
        **settings: Unpack[StepSettings],
    ) -> ParallelGen[Any]:
        """Return a collection of `func(element)` for each element, in the same order. Lazy.

        What an `on_error` function returns stands for the result, and goes on to the next step.

        >>> from parcoll import parallel
        >>> list(parallel(["a", "b"]).map(str.upper))
        ['A', 'B']
        >>> list(parallel(["1", "x"]).map(int, on_error=lambda error: len(error.element)))
        [1, 1]
        """
        return self._extended(Map, func, settings)

    @overload
    def filter(
        self: ParallelGen[R | None], predicate: None, *, on_error: Word = None, **tries: Unpack[Tries]
    ) -> ParallelGen[R]: ...
    @overload
    def filter(
        self: ParallelGen[R | None], predicate: None, *, on_error: Else[D], **tries: Unpack[Tries]
    ) -> ParallelGen[R | D]: ...
    @overload
    def filter(
        self,
        predicate: Callable[[T_co], TypeGuard[R]],
        *,
        on_error: Word = None,
        **tries: Unpack[Tries],
    ) -> ParallelGen[R]: ...
    @overload
    def filter(
        self, predicate: Callable[[T_co], TypeGuard[R]], *, on_error: Else[D], **tries: Unpack[Tries]
    ) -> ParallelGen[R | D]: ...
    @overload
    def filter(
        self, predicate: Callable[[T_co], object], *, on_error: Word = None, **tries: Unpack[Tries]
    ) -> ParallelGen[T_co]: ...
    @overload
    def filter(
        self, predicate: Callable[[T_co], object], *, on_error: Else[D], **tries: Unpack[Tries]
    ) -> ParallelGen[T_co | D]: ...
    def filter(
        self,
        predicate: Any,
        **settings: Unpack[StepSettings],
    ) -> ParallelGen[Any]:
        """Return a collection of the elements for which `predicate` is true, in the same order. Lazy.

        With None, the elements that are true themselves stay, as with the builtin. What an `on_error`
        function returns stands for the element, and stays, true or not.

        >>> from parcoll import parallel
        >>> list(parallel(range(6)).filter(lambda x: x % 2))
        [1, 3, 5]
        """
        return self._extended(Filter, predicate, settings)

    @overload
    def flatmap(
        self, func: Callable[[T_co], Iterable[R]], *, on_error: Word = None, **tries: Unpack[Tries]
    ) -> ParallelGen[R]: ...
    @overload
    def flatmap(
        self, func: Callable[[T_co], Iterable[R]], *, on_error: Else[D], **tries: Unpack[Tries]
    ) -> ParallelGen[R | D]: ...
    def flatmap(
        self,
        func: Any,
        **settings: Unpack[StepSettings],
    ) -> ParallelGen[Any]:
        """Return a collection of the elements of each `func(element)`, one level flattened. Lazy.

        `func` returns any iterable (a string gives its characters). It is drawn in the worker, one
        by one through the steps after it; what the last step makes of one partition is held there
        until it is sent back, so an endless iterable is for `take` and `first` only.

        Where the iterable raises halfway, what it gave before stays: then the element has failed, and is
        not tried again. What an `on_error` function returns comes after it, as one element.

        >>> from parcoll import parallel
        >>> list(parallel(["ab", "c"]).flatmap(list))
        ['a', 'b', 'c']
        """
        return self._extended(FlatMap, func, settings)

    flat_map = flatmap

    def unordered(self) -> ParallelGen[T_co]:
        """Return a collection that gives results as partitions end, not in source order. Lazy.

        `reduce`, `fold` and `foreach` keep the source's order all the same.

        >>> from parcoll import parallel
        >>> sorted(parallel(range(4)).map(lambda x: x * x).unordered())
        [0, 1, 4, 9]
        """
        return ParallelGen(self._node, dataclasses.replace(self._options, ordered=False))

    def __iter__(self) -> Iterator[T_co]:
        """Evaluate, and give the results in order as they come.

        Reads the source in the thread that iterates, at most a bounded window ahead: a few
        partitions for each worker thread. Closing or dropping the iterator, or leaving the loop,
        cancels what has not begun.
        """
        return evaluation.iterate(self._run)

    def _run(self) -> Run:
        self._stats = Stats()
        return Run(self._node, self._options, lambda: engine_for(self._options.client), self._stats)

    @overload
    def reduce(self, func: Callable[[T_co, T_co], T_co]) -> T_co: ...
    @overload
    def reduce(self, func: Callable[[A, T_co], A], initial: A) -> A: ...
    def reduce(self, func: Callable[[Any, Any], Any], initial: Any = UNSET) -> Any:
        """Return `functools.reduce(func, elements[, initial])`. Evaluates.

        An exact left fold in source order, for any function: the steps before it run in parallel,
        the fold itself goes from worker to worker as the stream goes by, and only its value comes
        back. It starts from a copy of `initial`. Where `func` is associative, `fold` is faster.

        Raises TypeError for an empty collection without `initial`.

        >>> from parcoll import parallel
        >>> parallel("abc").reduce(lambda x, y: y + x)
        'cba'
        """
        self._resumes_not("reduce", "functools.reduce(func, collection)")
        func = arguments.function(func, "reduce")
        return folding.reduce(self._run(), func, initial)

    def fold(self, func: Callable[[A, T_co], A], initial: A, combine: Callable[[A, A], A] | None = None) -> A:
        """Return the fold of all elements from `initial`, each partition folded on its own. Evaluates.

        Without `combine`, `func` must be associative and take two elements: each partition folds its
        own elements, and `func` joins the values in source order. With `combine`, each partition starts
        from a copy of `initial`, and `combine` joins the values. `initial` counts once either way: where
        `combine(initial, initial)` is not equal to `initial`, the elements are folded one after the
        other, as `reduce` does, so that the answer never depends on the partitions. Raises ValueError
        where `initial`, joined to a partition's value by `combine`, visibly changes it.

        >>> from parcoll import parallel
        >>> parallel(["one", "three"]).fold(lambda n, word: n + len(word), 0, lambda a, b: a + b)
        8
        """
        self._resumes_not("fold", "functools.reduce(func, collection, initial)")
        func = arguments.function(func, "fold")
        combine = None if combine is None else arguments.function(combine, "fold")
        value: A = folding.fold(self._run(), func, initial, combine)
        return value

    def foreach(
        self,
        func: Callable[[T_co], Any],
        **settings: Unpack[StepSettings],
    ) -> None:
        """Call `func` with each element on the workers, now; its results become this collection's elements.

        The results stay in the workers' memory until they are read, or until no collection refers
        to them. Collections chained from this one earlier keep the elements they had. When `func`
        raises, so does this, and the collection stays as it was; but for `on_error`, as in `map`.

        >>> from parcoll import parallel
        >>> numbers = parallel(range(3))
        >>> numbers.foreach(lambda x: x * 10)
        >>> list(numbers)
        [0, 10, 20]
        """
        self._resumes_not("foreach", "map(func) and a loop over its results")
        run = self._extended(Foreach, func, settings)._run()
        self._stats = run.stats
        references = evaluation.keep_results(run)
        from parcoll.evaluation.bag import bag_of_kept  # lazy: dask.bag

        self._node = Node(source=bag_of_kept(references))

    def take(self, n: int) -> list[T_co]:
        """Return the first `n` elements, fewer if there are no more. Evaluates, and cancels the rest.

        >>> from parcoll import parallel
        >>> parallel(itertools.count()).map(lambda x: x * x).take(3)
        [0, 1, 4]
        """
        number = arguments.taken(n)
        if number == 0:
            return []
        stream = evaluation.iterate(self._run, number)
        try:
            return list(itertools.islice(stream, number))
        finally:
            stream.close()

    @overload
    def first(self) -> T_co: ...
    @overload
    def first(self, default: D) -> T_co | D: ...
    def first(self, default: Any = UNSET) -> Any:
        """Return the first element, or `default` if there is none. Evaluates, and cancels the rest.

        Raises ValueError for an empty collection without a default.

        >>> from parcoll import parallel
        >>> parallel(["x", "y"]).first()
        'x'
        """
        for element in self.take(1):
            return element
        if default is UNSET:
            raise ValueError(f"first() of an empty collection: {self!r} has no elements and no default")
        return default

    def count(self) -> int:
        """Return the number of elements. Evaluates; the elements stay on the workers.

        With a checkpoint they come here to be saved, and those that are saved are counted there.

        >>> from parcoll import parallel
        >>> parallel(range(10)).filter(lambda x: x > 6).count()
        3
        """
        return evaluation.count(self._run())

    @property
    def bag(self) -> Bag:
        """The `dask.bag.Bag` that this chain is: one layer for each call. Evaluates nothing.

        Look at it with dask's tools (`.dask`, `dask.visualize`). A source that is read as a stream is
        one partition there, since the engine cuts it while it runs.
        """
        from parcoll.evaluation.bag import bag_of  # lazy: dask.bag

        return bag_of(self._node)

    @property
    def stats(self) -> Stats:
        """The numbers of this collection's last evaluation, or of the one going on; `str` is a table."""
        return self._stats

    @property
    def errors(self) -> list[ElementError]:
        """The elements that failed in a step in the last evaluation, or in the one going on.

        In the order of the source; the first thousand that came back, `stats.failed` has the count.
        The one whose exception was raised is among them.

        >>> from parcoll import parallel
        >>> numbers = parallel(["1", "x", "3"], on_error="skip").map(int)
        >>> sum(numbers), [(error.index, error.element) for error in numbers.errors]
        (4, [(1, 'x')])
        """
        return self._stats.failed_elements.rebuilt()

    def explain(self) -> Explanation:
        """Return what there is to know: chain, source, engine, partitions, and the last run's numbers.

        Evaluates nothing. `print` it, or let a notebook show it.

        >>> from parcoll import parallel
        >>> print(parallel(range(3), partition_size=2).map(str).explain().partitions)
        2 elements each; results in source order
        """
        *_, first = self._node.back()
        return explanation(self._chain_text(), first.source, self._options, self._stats)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParallelGen, (self._node, self._options)

    def _resumes_not(self, method: str, instead: str) -> None:
        if self._options.checkpoint is not None:
            raise TypeError(
                f"{method}() keeps what it makes on the workers, where no checkpoint can have it "
                f"(checkpoint={self._options.checkpoint!r}): use {instead}, or leave checkpoint out"
            )

    def _chain_text(self) -> str:
        return self._node.describe() + ("" if self._options.ordered else ".unordered()")

    def __repr__(self) -> str:
        return f"<ParallelGen: {self._chain_text()}>"

    def _repr_html_(self) -> str:
        """Return the chain, and the numbers where there are any, for a notebook. Evaluates nothing."""
        from html import escape

        numbers = self._stats.snapshot()
        chain = f"<code>{escape(repr(self))}</code>"
        return f"<div>{chain}</div>{'' if numbers['state'] == 'new' else table.html(numbers)}"
