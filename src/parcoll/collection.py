"""`parallel` and `ParallelGen`: what users call. Checks arguments, extends the bag, asks for evaluations."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeGuard, TypeVar, overload

from parcoll import evaluate
from parcoll.evaluate import UNSET, Options, Run
from parcoll.source import Source, source_of
from parcoll.stats import Stats
from parcoll.steps import Filter, FlatMap, Foreach, Map, Step
from parcoll.text import describe

if TYPE_CHECKING:
    from dask.bag import Bag
    from distributed import Client

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
A = TypeVar("A")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class _Node:
    """One place in a chain: a source, or a step after another node. Never changes; its bag is made once."""

    __slots__ = ("_bag", "_lock", "before", "source", "step")

    def __init__(self, source: Any = None, before: _Node | None = None, step: Step | None = None) -> None:
        self.source = source  # a Source, or a dask bag
        self.before = before
        self.step = step
        self._bag: Any = None
        self._lock = threading.Lock()

    def bag(self) -> Any:
        """Return the bag up to here. Imports dask.bag, which is why it waits until it is asked for."""
        from parcoll import graph

        row = list(itertools.takewhile(lambda node: node._bag is None, self.back()))
        for node in reversed(row):
            with node._lock:
                if node._bag is not None:
                    continue
                if node.before is not None and node.step is not None:
                    node._bag = graph.extend(node.before._bag, node.step)
                elif isinstance(node.source, Source):
                    node._bag = graph.bag_of_source(node.source)
                else:
                    node._bag = node.source
        return self._bag

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a row, without bag and lock: a function may use a collection."""
        row = list(self.back())
        return _chain, (row[-1].source, [node.step for node in reversed(row[:-1])])

    def back(self) -> Iterator[_Node]:
        """Give this node and those before it, down to the source."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.before

    def describe(self) -> str:
        """Return the chain as a user wrote it."""
        row = list(self.back())
        source = row[-1].source
        calls = [f".{node.step.label}" for node in reversed(row) if node.step is not None]
        return f"parallel({source!r}){''.join(calls)}"


def _chain(source: Any, steps: list[Step]) -> _Node:
    node = _Node(source=source)
    for step in steps:
        node = _Node(before=node, step=step)
    return node


class ParallelGen(Generic[T_co]):
    """A lazy collection whose chained calls run on worker processes.

    Made by `parallel`. `map`, `filter`, `flatmap` and `unordered` return a new collection and leave
    this one as it is; nothing runs until the collection is iterated or `reduce`, `fold`, `foreach`,
    `take`, `first` or `count` is called. Each evaluation starts anew from the source.

    Functions may be lambdas, closures, bound methods or anything else that cloudpickle can pickle.
    They get a copy of each element, in a worker process: changes they make to global variables or
    to their arguments are not seen by the caller. A function's exception is raised by the evaluating
    call with its own type, after the results before it, with a note that names step and element.
    """

    __slots__ = ("__weakref__", "_node", "_options", "_stats")

    def __init__(self, node: _Node, options: Options) -> None:
        self._node = node
        self._options = options
        self._stats = Stats()

    def _extended(self, step: Step) -> ParallelGen[Any]:
        return ParallelGen(_Node(before=self._node, step=step), self._options)

    def map(self, func: Callable[[T_co], R]) -> ParallelGen[R]:
        """Return a collection of `func(element)` for each element, in the same order. Lazy.

        >>> list(parallel(["a", "b"]).map(str.upper))
        ['A', 'B']
        """
        return self._extended(Map(_function(func, "map")))

    @overload
    def filter(self: ParallelGen[R | None], predicate: None) -> ParallelGen[R]: ...
    @overload
    def filter(self, predicate: Callable[[T_co], TypeGuard[R]]) -> ParallelGen[R]: ...
    @overload
    def filter(self, predicate: Callable[[T_co], object]) -> ParallelGen[T_co]: ...
    def filter(self, predicate: Any) -> ParallelGen[Any]:
        """Return a collection of the elements for which `predicate` is true, in the same order. Lazy.

        With None, the elements that are true themselves stay, as with the builtin.

        >>> list(parallel(range(6)).filter(lambda x: x % 2))
        [1, 3, 5]
        """
        return self._extended(Filter(predicate if predicate is None else _function(predicate, "filter")))

    def flatmap(self, func: Callable[[T_co], Iterable[R]]) -> ParallelGen[R]:
        """Return a collection of the elements of each `func(element)`, one level flattened. Lazy.

        `func` returns any iterable (a string gives its characters). It is drawn in the worker, one
        by one through the steps after it; what the last step makes of one partition is held there
        until it is sent back, so an endless iterable is for `take` and `first` only.

        >>> list(parallel(["ab", "c"]).flatmap(list))
        ['a', 'b', 'c']
        """
        return self._extended(FlatMap(_function(func, "flatmap")))

    flat_map = flatmap

    def unordered(self) -> ParallelGen[T_co]:
        """Return a collection that gives results as partitions end, not in source order. Lazy.

        `reduce`, `fold` and `foreach` keep the source's order all the same.

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
        return evaluate.iterate(self._run)

    def _run(self) -> Run:
        self._stats = Stats()
        return Run(self._node.bag, self._options, self._stats)

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

        >>> parallel("abc").reduce(lambda x, y: y + x)
        'cba'
        """
        func = _function(func, "reduce")
        return evaluate.reduce(self._run(), func, initial)

    def fold(
        self,
        func: Callable[[A, T_co], A],
        initial: A,
        combine: Callable[[A, A], A] | None = None,
    ) -> A:
        """Return the fold of all elements from `initial`, each partition folded on its own. Evaluates.

        Without `combine`, `func` must be associative and take two elements: each partition folds its
        own elements, and `func` joins the values in source order. With `combine`, each partition starts
        from a copy of `initial`, and `combine` joins the values. `initial` counts once either way: where
        `combine(initial, initial)` is not equal to `initial`, the elements are folded one after the
        other, as `reduce` does, so that the answer never depends on the partitions. Raises ValueError
        where `initial`, joined to a partition's value by `combine`, visibly changes it.

        >>> parallel(["one", "three"]).fold(lambda n, word: n + len(word), 0, lambda a, b: a + b)
        8
        """
        func = _function(func, "fold")
        combine = None if combine is None else _function(combine, "fold")
        value: A = evaluate.fold(self._run(), func, initial, combine)
        return value

    def foreach(self, func: Callable[[T_co], Any]) -> None:
        """Call `func` with each element on the workers, now; its results become this collection's elements.

        The results stay in the workers' memory until they are read, or until no collection refers
        to them. Collections chained from this one earlier keep the elements they had. When `func`
        raises, so does this, and the collection stays as it was.

        >>> numbers = parallel(range(3))
        >>> numbers.foreach(lambda x: x * 10)
        >>> list(numbers)
        [0, 10, 20]
        """
        run = self._extended(Foreach(_function(func, "foreach")))._run()
        self._stats = run.stats
        references = evaluate.keep_results(run)
        from parcoll import graph

        self._node = _Node(source=graph.bag_of_kept(references))

    def take(self, n: int) -> list[T_co]:
        """Return the first `n` elements, fewer if there are no more. Evaluates, and cancels the rest.

        >>> parallel(itertools.count()).map(lambda x: x * x).take(3)
        [0, 1, 4]
        """
        try:
            number = operator.index(n)
        except TypeError:
            raise TypeError(f"take() needs a whole number, got {describe(n)}") from None
        if number < 0:
            raise ValueError(f"take() needs a number from 0 up, got {number}")
        if number == 0:
            return []
        stream = evaluate.iterate(self._run, number)
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

        >>> parallel(range(10)).filter(lambda x: x > 6).count()
        3
        """
        return evaluate.count(self._run())

    @property
    def bag(self) -> Bag:
        """The `dask.bag.Bag` that this chain is: one layer for each call. Evaluates nothing.

        Look at it with dask's tools (`.dask`, `dask.visualize`). A source that is read as a stream is
        one partition there, since the engine cuts it while it runs.
        """
        bag: Bag = self._node.bag()
        return bag

    @property
    def stats(self) -> Stats:
        """Counts of this collection's last evaluation, or of the one going on."""
        return self._stats

    def __reduce__(self) -> tuple[Any, ...]:
        return ParallelGen, (self._node, self._options)

    def __repr__(self) -> str:
        tail = "" if self._options.ordered else ".unordered()"
        return f"<ParallelGen: {self._node.describe()}{tail}>"


@overload
def parallel(
    source: Mapping[K, V],
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
) -> ParallelGen[tuple[K, V]]: ...
@overload
def parallel(
    source: Iterable[T],
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
) -> ParallelGen[T]: ...
@overload
def parallel(
    source: Callable[[], Iterable[T]],
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
) -> ParallelGen[T]: ...
@overload
def parallel(
    source: Bag,
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
) -> ParallelGen[Any]: ...
def parallel(
    source: Any,
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
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
    `name`: what the dask dashboard calls the tasks.

    Raises TypeError for a source that is none of these, ValueError for a wrong `partition_size`.

    >>> list(parallel([1, 2, 3]).map(lambda x: x + 1))
    [2, 3, 4]
    """
    options = Options(_partition_size(partition_size), _client(client), _task_name(name))
    return ParallelGen(_Node(source if _is_bag(source) else source_of(source)), options)


def _is_bag(source: Any) -> bool:
    module = sys.modules.get("dask.bag")  # a bag cannot exist before its module does
    return module is not None and isinstance(source, module.Bag)


def _function(func: Any, method: str) -> Any:
    if not callable(func):
        raise TypeError(f"{method}() needs a function, got {describe(func)}")
    return func


def _partition_size(given: Any) -> int | str:
    if given == "auto" and isinstance(given, str):
        return "auto"
    wanted = 'partition_size must be "auto" or a whole number from 1 up'
    try:
        size = operator.index(given)
    except TypeError:
        raise TypeError(f"{wanted}, got {describe(given)}") from None
    if isinstance(given, bool) or size < 1:
        raise ValueError(f"{wanted}, got {given!r}")
    return size


def _client(given: Any) -> Any:
    if (given is not None and not hasattr(given, "get")) or isinstance(given, (str, dict)):
        raise TypeError(f"client must be a distributed.Client, got {describe(given)}")
    return given


def _task_name(given: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise TypeError(f"name must be a string, got {describe(given)}")
    return given
