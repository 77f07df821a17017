"""Evaluating: the calls of a collection that evaluate it. They check arguments and ask for a run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing
from types import FunctionType
from typing import Any, Generic, Self, TypeVar, overload

from parcoll.chain.sinks import Count, Results
from parcoll.connecting.current import engine_for
from parcoll.errors import ClusterLostError
from parcoll.evaluation import folding
from parcoll.evaluation import run as evaluation
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import Options, Run
from parcoll.evaluation.window import Window
from parcoll.front import arguments
from parcoll.front.explain import Described
from parcoll.local.shutdown import note_evaluation
from parcoll.text import UNSET, describe
from parcoll.watch.stats import Stats
from parcoll.worker.outcome import Handle
from parcoll.world import handlers

T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A")
D = TypeVar("D")


@handlers.methods_reaching
class Evaluated(Described, Generic[T_co]):
    """A collection that can be evaluated."""

    __slots__ = ()

    def __init__(self, node: Node, options: Options) -> None:
        self._node = node
        self._options = options
        self._own: Stats | None = None  # of the last evaluation of this collection itself

    def __iter__(self) -> Iterator[T_co]:
        """Evaluate, and give the results one by one, in order, as they come.

        The thread that iterates reads the source, at most a bounded window ahead of what it consumed: some
        partitions for each worker thread. Closing or dropping the iterator cancels what has not begun. Raises
        what a function or the source raised, after the results before it.
        """
        return evaluation.iterate(self._run)

    def __aiter__(self) -> AsyncGenerator[T_co, None]:
        """Evaluate as `for` does, for `async for`: a thread waits, and the event loop goes on.

        Left early, by `break` or a cancelled task, the evaluation ends as soon as the loop has its turn, and
        when `aclose` returns.
        """
        return evaluation.iterate_async(self._run)

    def _run(self) -> Run:
        note_evaluation()
        self._own = stats = Stats()
        for node in self._node.back():
            node.stats = stats
        return Run(self._node, self._options, lambda: engine_for(self._options.client), stats)

    @overload
    def reduce(self, func: Callable[[T_co, T_co], T_co]) -> T_co: ...
    @overload
    def reduce(self, func: Callable[[A, T_co], A], initial: A) -> A: ...
    def reduce(self, func: Callable[[Any, Any], Any], initial: Any = UNSET) -> Any:
        """Evaluate, and return `functools.reduce(func, elements[, initial])`.

        This is an exact left fold in the order of the source, for any `func`; it may write into its first
        argument. The steps before it run in parallel; the fold goes on where its value is, and only that
        comes back. It starts from a copy of `initial`. If `func` is associative, `fold` is faster. With a
        checkpoint, the elements come here to be saved, as for iteration, and are folded from the first on.

        Raises TypeError for an empty collection without `initial`, and what a function raised. An element for
        which `func` itself raises cannot be left out.

        >>> from parcoll import parallel
        >>> parallel("abc").reduce(lambda x, y: y + x)
        'cba'
        """
        func = arguments.function(func, "reduce")
        return folding.reduce(self._run(), func, initial)

    def fold(self, func: Callable[[A, T_co], A], initial: A, combine: Callable[[A, A], A] | None = None) -> A:
        """Evaluate, and return the fold of all elements from `initial`; each worker folds its own partitions.

        Without `combine`, `func` must be associative and take two elements: each partition folds its own, and
        `func` combines these values in the order of the source. With `combine`, each partition starts from a
        copy of `initial`, and `combine` combines the values. Neighbours are combined as they come, in any
        grouping, on several workers where that is slow. Only the last value comes back.
        `initial` counts once either way, whatever the partitions are: if `combine(initial, initial)` is not
        equal to `initial`, the elements are folded one after the other, as `reduce` does.

        With a checkpoint, the values of partitions come here to be saved. A run that resumes combines them
        with those of the elements that are left.

        Raises ValueError if a check of some values shows that `func` is not associative, or that `initial`
        changes what it is combined with; and what a function raised. An element for which `func` or `combine`
        itself raises cannot be left out.

        >>> from parcoll import parallel
        >>> parallel(["one", "three"]).fold(lambda n, word: n + len(word), 0, lambda a, b: a + b)
        8
        """
        func = arguments.function(func, "fold")
        combine = None if combine is None else arguments.function(combine, "fold")
        value: A = folding.fold(self._run(), func, initial, combine)
        return value

    def take(self, n: int) -> list[T_co]:
        """Evaluate, and return a list of the first `n` elements, or of all if there are fewer.

        The evaluation ends as soon as it has them, and what has not begun is cancelled. Raises what a
        function or the source raised before that: the list comes whole or not at all.

        >>> import itertools
        >>> from parcoll import parallel
        >>> parallel(itertools.count()).map(lambda x: x * x).take(3)
        [0, 1, 4]
        """
        return evaluation.take(self._run, arguments.taken(n))

    @overload
    def first(self) -> T_co: ...
    @overload
    def first(self, default: D) -> T_co | D: ...
    def first(self, default: Any = UNSET) -> Any:
        """Evaluate, and return the first element, or `default` if there is none.

        Cancels what has not begun. Raises ValueError for an empty collection if there is no `default`, and
        what a function or the source raised before.

        >>> from parcoll import parallel
        >>> parallel(["x", "y"]).first()
        'x'
        """
        if isinstance(default, FunctionType):
            raise TypeError(
                f"first() takes a default for a collection without elements, got {describe(default)}: write "
                "filter(predicate).first()"
            )
        for element in self.take(1):
            return element
        if default is UNSET:
            raise self._empty("first")
        return default

    def _empty(self, method: str) -> ValueError:
        """Return the error of a collection without elements, of which all may have failed."""
        failed = self.stats.failed
        why = f": {failed:,} failed, which `errors` of the collection has" if failed else ""
        return ValueError(f"{method}() of an empty collection: {self!r} has no elements and no default{why}")

    def count(self) -> int:
        """Evaluate, and return the number of elements, which are counted on the workers and stay there.

        With a checkpoint, the elements come here to be saved, and those that are saved count. Raises what a
        function or the source raised.

        >>> from parcoll import parallel
        >>> parallel(range(10)).filter(lambda x: x > 6).count()
        3
        """
        return _count(self._run())

    def persist(self) -> Self:
        """Evaluate now, and return a new collection of the results, which stay in the workers' memory.

        This collection stays as it is. Whatever is chained from the new one, or evaluates it, finds the
        results there and runs nothing before them again. They are freed when no collection refers to them; a
        result that is lost with its worker is made again. Raises what a function or the source raised.

        >>> from parcoll import parallel
        >>> squares = parallel(range(4)).map(lambda x: x * x).persist()
        >>> squares.count(), list(squares)
        (4, [0, 1, 4, 9])
        """
        arguments.no_checkpoint(self._options.checkpoint, "persist", "a loop over the results")
        run = self._run()
        made = type(self)(kept(run, "persist"), self._options)
        made._own = run.stats
        return made


def kept(run: Run, name: str) -> Node:
    """Run everything for the method `name`, and return a node of the results, which the engine keeps."""
    from parcoll.evaluation.bag import bag_of_kept  # lazy: dask.bag

    return Node(source=bag_of_kept(_keep_results(run, name)))


def _keep_results(run: Run, name: str) -> list[Handle]:
    """Run everything for the method `name`, and return handles of the results, which stay on the workers."""
    with run.watched():
        lost = "kept nothing: its results were on that cluster"
        return run.restarting(name, lost, lambda: _kept(run.window(Results(), keep=True)))


def _kept(window: Window) -> list[Handle]:
    handles: list[Handle] = []
    with closing(window.outcomes()) as outcomes:  # type: ignore[type-var]
        for job, outcome in outcomes:
            if outcome.failure is not None:
                raise outcome.failure.rebuild()
            assert job.handle is not None
            handles.append(job.handle)
    return handles


def _count(run: Run) -> int:
    """Return how many results there are. None of them travels."""
    total = 0
    try:
        with run.watched(), closing(run.outcomes(Count())) as outcomes:  # type: ignore[type-var]
            for _, outcome in outcomes:
                if outcome.failure is not None:
                    raise outcome.failure.rebuild()
                total += outcome.produced
    except ClusterLostError as error:
        error._tell(f"count() had come to {total:,}")
        raise
    return total
