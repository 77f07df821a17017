"""Streams: what can be chained to a collection that needs its elements in order, as `itertools` has it."""

from __future__ import annotations

import dataclasses
import operator
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Unpack, overload

from parcoll.calls.around import DropWhile, StarMap, TakeWhile
from parcoll.errors import ElementError
from parcoll.evaluation.plan import Derived, Node, Read
from parcoll.evaluation.run import Options
from parcoll.evaluation.source import source_of
from parcoll.front import arguments
from parcoll.front.arguments import Calls, KeySettings, KeySkips, Skips, StepSettings, Tries
from parcoll.front.explain import Described
from parcoll.keys import streams
from parcoll.keys.joins import Join, KeyOfOther
from parcoll.text import UNSET, describe
from parcoll.worker.fold import packed_initial
from parcoll.world import handlers

if TYPE_CHECKING:
    from parcoll import ParallelGen  # the class that has these methods

T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


@handlers.methods_reaching
class Streams(Described, Generic[T_co]):
    """A collection to which operations can be chained that need its elements in order.

    They are carried out in this process. Behind other steps, their results come back here and go on to the
    workers, while the evaluation runs and a bounded window ahead: this costs what it costs to move them.
    """

    __slots__ = ()

    def _derived(
        self,
        operation: streams.Operation,
        *others: Read,
        node: Node | None = None,
        size: int = 1,
        instead: str = "",
    ) -> ParallelGen[Any]:
        """Return the collection of what an operation makes of this chain, or of `node`, and of others."""
        options = dataclasses.replace(self._options, progress=False)
        source = Derived((Read(node or self._node, options), *others), operation)
        return self._made(
            Node(source=source), arguments.of_derived(self._options.behind, source, size, instead)
        )

    def _made(self, node: Node, options: Options) -> ParallelGen[Any]:
        kind: Any = type(self)
        return kind(node, options)  # type: ignore[no-any-return]

    def _read(self, other: Any, method: str) -> Read:
        """Return how to read another collection, or iterable."""
        if isinstance(other, Streams):
            options = other._options
            if options.checkpoint is not None:
                raise TypeError(
                    f"{method}() reads {other!r} in an evaluation of its own, of which checkpoint="
                    f"{options.checkpoint!r} would save nothing: leave its checkpoint out"
                )
            return Read(other._node, dataclasses.replace(options, progress=False))
        options = dataclasses.replace(self._options, progress=False, checkpoint=None)
        kind = getattr(sys.modules.get("dask.bag"), "Bag", None)
        is_bag = kind is not None and isinstance(other, kind)
        return Read(Node(other if is_bag else source_of(other, method)), options)

    def enumerate(self, start: int = 0) -> ParallelGen[tuple[int, T_co]]:
        """Return a collection of `(number, element)` tuples, numbered from `start`. Runs nothing.

        >>> from parcoll import parallel
        >>> list(parallel("abcd").filter(lambda c: c != "b").enumerate(1))
        [(1, 'a'), (2, 'c'), (3, 'd')]
        """
        try:
            number = operator.index(start)
        except TypeError:
            raise TypeError(f"enumerate() needs a whole number, got {describe(start)}") from None
        return self._derived(streams.Enumerated(number))

    @overload
    def zip(self, *, strict: bool = False) -> ParallelGen[tuple[T_co]]: ...
    @overload
    def zip(self, other: Iterable[A], /, *, strict: bool = False) -> ParallelGen[tuple[T_co, A]]: ...
    @overload
    def zip(
        self, other: Iterable[A], other2: Iterable[B], /, *, strict: bool = False
    ) -> ParallelGen[tuple[T_co, A, B]]: ...
    @overload
    def zip(
        self, other: Iterable[A], other2: Iterable[B], other3: Iterable[C], /, *, strict: bool = False
    ) -> ParallelGen[tuple[T_co, A, B, C]]: ...
    @overload
    def zip(self, *others: Iterable[Any], strict: bool = False) -> ParallelGen[tuple[Any, ...]]: ...
    def zip(self, *others: Any, strict: bool = False) -> ParallelGen[Any]:
        """Return a collection of tuples: of each element, and of what stands at its place in `others`.

        As the builtin: it ends with the shortest, and with `strict` raises ValueError if they are not of one
        length. `others` are collections, evaluated at the same time, or whatever `parallel` takes. Runs
        nothing.

        >>> from parcoll import parallel
        >>> numbers = parallel(range(4)).filter(lambda x: x != 1)
        >>> list(numbers.zip("abc", numbers.map(lambda x: x * x)))
        [(0, 'a', 0), (2, 'b', 4), (3, 'c', 9)]
        """
        reads = [self._read(other, "zip") for other in others]
        return self._derived(streams.Zipped(len(reads), bool(strict)), *reads)

    def chain(self, *others: Iterable[A]) -> ParallelGen[T_co | A]:
        """Return a collection of these elements, then those of each of `others`. Runs nothing.

        `others` are collections or whatever `parallel` takes. Each is read, or evaluated, when those before
        it have ended.

        >>> from parcoll import parallel
        >>> list(parallel([3, 1]).map(abs).chain(parallel([-5]).map(abs), (7, 8)))
        [3, 1, 5, 7, 8]
        """
        reads = [self._read(other, "chain") for other in others]
        return self._derived(streams.Chained(len(reads)), *reads)

    def pairwise(self) -> ParallelGen[tuple[T_co, T_co]]:
        """Return a collection of tuples of each element and the one behind it. Runs nothing.

        >>> from parcoll import parallel
        >>> list(parallel([1, 4, 9, 16]).pairwise().map(lambda pair: pair[1] - pair[0]))
        [3, 5, 7]
        """
        return self._derived(streams.Pairs())

    @overload
    def scan(self, func: Callable[[T_co, T_co], T_co]) -> ParallelGen[T_co]: ...
    @overload
    def scan(self, func: Callable[[A, T_co], A], initial: A) -> ParallelGen[A]: ...
    def scan(self, func: Callable[[Any, Any], Any], initial: Any = UNSET) -> ParallelGen[Any]:
        """Return a collection of the running values of a fold: `itertools.accumulate(elements, func)`.

        With `initial`, that comes first, so there is one value more than there are elements. Each evaluation
        starts from a copy of it. `func` is called in this process, since each value needs the one before. It
        may write into its first argument: what goes on is then a copy. Runs nothing.

        >>> from parcoll import parallel
        >>> list(parallel([1, 2, 3]).map(lambda x: x * x).scan(lambda total, x: total + x, 0))
        [0, 1, 5, 14]
        """
        start = None if initial is UNSET else packed_initial(initial)
        operation = streams.Scanned(arguments.function(func, "scan"), start)
        return self._derived(operation)

    @overload
    def take_while(
        self, predicate: Callable[[T_co], object], **settings: Unpack[KeySkips]
    ) -> ParallelGen[T_co]: ...
    @overload
    def take_while(
        self,
        predicate: Callable[[T_co], object],
        *,
        on_error: Callable[[ElementError], D],
        **tries: Unpack[Tries],
    ) -> ParallelGen[T_co | D]: ...
    def take_while(
        self, predicate: Callable[[T_co], object], **settings: Unpack[KeySettings]
    ) -> ParallelGen[Any]:
        """Return a collection of the elements before the first one for which `predicate` is false.

        `predicate` is called on the workers, also with some elements behind that one: those that were read by
        then. What it raises for these does not count. Then the evaluation of what is before it ends, and an
        endless source is read no further. `on_error`, `retries`, `retry_on` and `timeout` are as in `filter`.
        Runs nothing.

        >>> import itertools
        >>> from parcoll import parallel
        >>> list(parallel(itertools.count()).map(lambda x: x * x).take_while(lambda x: x < 20))
        [0, 1, 4, 9, 16]
        """
        step = TakeWhile.of(*self._asking(predicate, "take_while", settings))
        node = Node(before=self._node, step=step)
        return self._derived(streams.TakenWhile(), node=node)

    @overload
    def drop_while(
        self, predicate: Callable[[T_co], object], **settings: Unpack[KeySkips]
    ) -> ParallelGen[T_co]: ...
    @overload
    def drop_while(
        self,
        predicate: Callable[[T_co], object],
        *,
        on_error: Callable[[ElementError], D],
        **tries: Unpack[Tries],
    ) -> ParallelGen[T_co | D]: ...
    def drop_while(
        self, predicate: Callable[[T_co], object], **settings: Unpack[KeySettings]
    ) -> ParallelGen[Any]:
        """Return a collection of the elements from the first one on for which `predicate` is false.

        `predicate` is called on the workers, in each partition until it is false there. What it raises for
        elements behind the first one for which it is false does not count. `on_error`, `retries`, `retry_on`
        and `timeout` are as in `filter`; what an `on_error` function returns for an element is the first that
        stays. Runs nothing.

        >>> from parcoll import parallel
        >>> list(parallel(["# a", "# b", "c", "# d"]).drop_while(lambda line: line.startswith("#")))
        ['c', '# d']
        """
        step = DropWhile.of(*self._asking(predicate, "drop_while", settings))
        node = Node(before=self._node, step=step)
        return self._derived(streams.DroppedWhile(), node=node)

    def _asking(self, func: Any, method: str, settings: Any) -> tuple[Any, Any]:
        """Return a predicate, or key, and its policy."""
        func = arguments.function(func, method)
        return func, arguments.step_policy(method, func, settings, self._options.policy)

    def skip(self, n: int) -> ParallelGen[T_co]:
        """Return a collection of the elements behind the first `n`. Runs nothing.

        Steps before it run for all elements.

        >>> from parcoll import parallel
        >>> list(parallel(range(5)).map(str).skip(3))
        ['3', '4']
        """
        n = arguments.whole_number(n, "skip() needs a whole number", 0)
        return self._derived(streams.Skipped(n))

    def sample(self, probability: float, seed: float | str | bytes) -> ParallelGen[T_co]:
        """Return a collection of some elements: of each one with this probability. Runs nothing.

        A digest of `seed` and of the element's index among those that come here decides. So the same elements
        are chosen by each evaluation, wherever it runs and whatever its partitions are.

        >>> from parcoll import parallel
        >>> some = parallel(range(1000)).sample(0.1, seed=7)
        >>> list(some) == list(some), 50 < some.count() < 150
        (True, True)
        """
        operation = streams.Sampled(arguments.probability(probability), arguments.seed(seed))
        return self._derived(operation)

    @overload
    def starmap(self, func: Callable[..., R], **settings: Unpack[Skips]) -> ParallelGen[R]: ...
    @overload
    def starmap(
        self, func: Callable[..., R], *, on_error: Callable[[ElementError], D], **tries: Unpack[Calls]
    ) -> ParallelGen[R | D]: ...
    def starmap(self, func: Callable[..., Any], **settings: Unpack[StepSettings]) -> ParallelGen[Any]:
        """Return a collection of `func(*element)` for each element, in the same order. Runs nothing.

        It is a `map` for elements that are tuples, or other iterables, of arguments, with all its settings.

        >>> from parcoll import parallel
        >>> list(parallel([(2, 5), (3, 2)]).starmap(pow))
        [32, 9]
        """
        step = arguments.step(StarMap, func, settings, self._options.policy)
        return self._made(Node(before=self._node, step=step), self._options)

    @overload
    def join(
        self,
        other: Iterable[A],
        key: Callable[[T_co], object],
        other_key: Callable[[A], object] | None = None,
        how: Literal["inner"] = "inner",
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[tuple[T_co, A]]: ...
    @overload
    def join(
        self,
        other: Iterable[A],
        key: Callable[[T_co], object],
        other_key: Callable[[A], object] | None = None,
        *,
        how: Literal["left"],
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[tuple[T_co, A | None]]: ...
    @overload
    def join(
        self,
        other: Iterable[A],
        key: Callable[[T_co], object],
        other_key: Callable[[A], object] | None = None,
        *,
        how: Literal["semi", "anti"],
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[T_co]: ...
    def join(
        self,
        other: Iterable[Any],
        key: Callable[[T_co], Any],
        other_key: Callable[[Any], Any] | None = None,
        how: str = "inner",
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[Any]:
        """Return a collection of these elements with those of `other` that have the same key. Runs nothing.

        `other` is a collection, or whatever `parallel` takes. When this one is evaluated, `other` is read, or
        evaluated, first and whole, and sent to each worker once, as a table; it may take a quarter of a
        worker's memory. This collection then streams through, in order, and may be endless.

        Keys are equal as in a dict: 1, 1.0 and True are one key. NaN finds NaN. A key that cannot be hashed
        is a failure of its element.

        Args:
            other: The smaller side. Of a dict its elements are `(key, value)` tuples.
            key: A function of an element, called on the workers.
            other_key: The same for elements of `other`. None means that `key` is called with these, too.
            how: "inner" gives `(element, found)` tuples, one for each of `other` that has the key, in its
                order. "left" gives `(element, None)`, too, where none has it. "semi" gives the elements whose
                key `other` has, "anti" those whose key it has not, each once.
            settings: `on_error`, `retries`, `retry_on` and `timeout`, as in `flatmap`, for the calls of both
                functions. An `on_error` function gets elements of this side only; those of `other` are left
                out.

        Raises SerializationError in the evaluation if `other` is too large.

        >>> from parcoll import parallel
        >>> names = {1: "one", 2: "two"}
        >>> list(parallel([2, 3, 1]).join(names, lambda n: n, lambda item: item[0]))
        [(2, (2, 'two')), (1, (1, 'one'))]
        """
        how = arguments.how(how)
        func, policy = self._asking(key, "join", settings)
        read = self._read(other, "join")
        of_other, other_policy = func, read.options.policy
        if other_key is not None:
            of_other = arguments.function(other_key, "join")
        other_policy = arguments.step_policy("join", of_other, settings, read.options.policy)
        if callable(other_policy.on_error):
            other_policy = dataclasses.replace(other_policy, on_error="skip")
        keyed = Node(before=read.node, step=KeyOfOther.of(of_other, how, other_policy))
        step = Join.of(func, how, Read(keyed, read.options), policy)
        return self._made(Node(before=self._node, step=step), self._options)
