"""Values: calls that evaluate a collection and return its largest elements, its smallest ones, or its sum."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from parcoll.calls.around import KeyOf, KeyOfLargest, KeyOfMax, KeyOfMin, KeyOfSmallest
from parcoll.chain.failures import noting
from parcoll.chain.sinks import Part, Parts
from parcoll.errors import ClusterLostError
from parcoll.evaluation.engine import Job
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import Run
from parcoll.front import arguments
from parcoll.front.arguments import KeySettings
from parcoll.front.evaluating import Evaluated
from parcoll.keys.answers import Extreme, Ranked, Sum, Total
from parcoll.text import UNSET, counted, describe, function_name, short_repr
from parcoll.worker.outcome import Outcome, loaded
from parcoll.world import handlers

T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")
N = TypeVar("N")


@handlers.methods_reaching
class Values(Evaluated[T_co]):
    """A collection that can be asked for some of its elements, or for their sum."""

    __slots__ = ()

    @overload
    def min(self, key: Callable[[T_co], Any] | None = None, **settings: Unpack[KeySettings]) -> T_co: ...
    @overload
    def min(
        self, key: Callable[[T_co], Any] | None = None, *, default: D, **settings: Unpack[KeySettings]
    ) -> T_co | D: ...
    def min(
        self, key: Callable[[T_co], Any] | None = None, default: Any = UNSET, **settings: Unpack[KeySettings]
    ) -> Any:
        """Evaluate, and return the smallest element, of equal ones the first, as the builtin.

        `key` is called on the workers, once for each element; `on_error`, `retries`, `retry_on` and `timeout`
        are its settings, as in `map`, and what an `on_error` function returns stands for the key. Each worker
        compares its own elements. Raises ValueError for an empty collection if there is no `default`.

        >>> from parcoll import parallel
        >>> parallel(["ccc", "a", "b"]).min(key=len)
        'a'
        """
        return self._extreme(KeyOfMin, key, default, settings)

    @overload
    def max(self, key: Callable[[T_co], Any] | None = None, **settings: Unpack[KeySettings]) -> T_co: ...
    @overload
    def max(
        self, key: Callable[[T_co], Any] | None = None, *, default: D, **settings: Unpack[KeySettings]
    ) -> T_co | D: ...
    def max(
        self, key: Callable[[T_co], Any] | None = None, default: Any = UNSET, **settings: Unpack[KeySettings]
    ) -> Any:
        """Evaluate, and return the largest element, of equal ones the first, as the builtin.

        All else is as in `min`.

        >>> from parcoll import parallel
        >>> parallel([3, 1, 2]).map(lambda x: x * x).max(), parallel([]).max(default=0)
        (9, 0)
        """
        return self._extreme(KeyOfMax, key, default, settings)

    def nlargest(
        self, n: int, key: Callable[[T_co], Any] | None = None, **settings: Unpack[KeySettings]
    ) -> list[T_co]:
        """Evaluate, and return the `n` largest elements, the largest first, as `heapq.nlargest`.

        Of equal ones the first count, in the order of the source. NaN comes behind all other numbers. `key`
        and its settings are as in `min`. Each worker sends the best of its own elements.

        >>> from parcoll import parallel
        >>> parallel([5, 1, 4, 2]).nlargest(2)
        [5, 4]
        """
        return self._ranked(KeyOfLargest, n, key, settings)

    def nsmallest(
        self, n: int, key: Callable[[T_co], Any] | None = None, **settings: Unpack[KeySettings]
    ) -> list[T_co]:
        """Evaluate, and return the `n` smallest elements, the smallest first, as `heapq.nsmallest`.

        All else is as in `nlargest`.

        >>> from parcoll import parallel
        >>> parallel(["ccc", "a", "b"]).nsmallest(2, key=len)
        ['a', 'b']
        """
        return self._ranked(KeyOfSmallest, n, key, settings)

    @overload
    def sum(self) -> T_co | Literal[0]: ...
    @overload
    def sum(self, start: N) -> T_co | N: ...
    def sum(self, start: Any = 0) -> Any:
        """Evaluate, and return the sum of `start` and all elements, whatever the partitions are.

        Integers and floats are summed on the workers: integers exactly, floats as `math.fsum` does, to the
        float nearest to the exact sum. Other elements come here, and are added in their order; where there
        are both, the integers and floats come last.

        Raises TypeError for a `start` that the builtin refuses (strings), and for what cannot be added.

        >>> from parcoll import parallel
        >>> parallel([0.1] * 10).sum(), parallel(range(10)).map(lambda x: x * x).sum(start=100)
        (1.0, 385)
        """
        if (callable(start) and not hasattr(start, "__add__")) or (isinstance(start, str) and start):
            given = f"operator.itemgetter({short_repr(start)})" if isinstance(start, str) else "func"
            raise TypeError(f"sum() adds to a start, got {describe(start)}: write map({given}).sum()")
        sum((), start)  # raises for strings
        found = Sum(start)
        merge(self._run(), found, Total(), "sum()")
        return found.answer()

    def _extreme(self, kind: type[KeyOf], key: Any, default: Any, settings: Any) -> Any:
        empty = Extreme(key is not None, kind is KeyOfMax)
        for element in self._found(kind, key, settings, empty):
            return element
        if default is UNSET:
            raise self._empty(kind.kind)
        return default

    def _ranked(self, kind: type[KeyOf], n: int, key: Any, settings: Any) -> list[Any]:
        number = arguments.whole_number(n, f"{kind.kind}() needs a whole number", 0)
        return self._found(kind, key, settings, Ranked(key is not None, kind is KeyOfLargest, number))

    def _found(self, kind: type[KeyOf], key: Any, settings: Any, empty: Any) -> list[Any]:
        """Evaluate, and return what the merged parts answer."""
        policy = arguments.step_policy(kind.kind, key, settings, self._options.policy)
        if key is None and (unused := [name for name in settings if settings[name] is not None]):
            raise ValueError(
                f"{unused[0]} has no effect without key, whose calls it is for: pass a key, or leave it out; "
                f"got {unused[0]}={short_repr(settings[unused[0]])}"
            )
        keyed = self
        if key is not None:
            step = kind.of(arguments.function(key, kind.kind), policy)
            keyed = type(self)(Node(before=self._node, step=step), self._options)
        run = keyed._run()
        self._own = run.stats
        label = f"{kind.kind}({'' if key is None else function_name(key)})"
        found = copy.deepcopy(empty)
        merge(run, found, empty, label)
        with noting(label):
            answer: list[Any] = found.answer()
        return answer


class Whole(Protocol):
    """What the parts of a chain are merged into, in order."""

    def merge(self, later: Any, /) -> None:
        """Take in the part behind those before."""


def merge(run: Run, found: Whole, empty: Part, label: str) -> None:
    """Merge what the workers make of each part into `found`. `label` names the method in messages."""
    run.options = dataclasses.replace(run.options, ordered=True)
    sink = Parts(empty, label)
    try:
        with run.watched(label), closing(run.outcomes(sink)) as outcomes:  # type: ignore[type-var]
            for job, outcome in outcomes:
                if outcome.results is not None:
                    part = _part(run, empty, job, outcome)
                    with noting(label):
                        found.merge(part)
                if outcome.failure is not None:
                    raise outcome.failure.rebuild()
    except ClusterLostError as error:
        error._tell(f"{label} has no value: it had come to {counted(run.stats.elements_out, 'element')}")
        raise


def _part(run: Run, empty: Part, job: Job, outcome: Outcome) -> Part:
    what = f"the results of the partition at {job.place.element(0)}"
    results, outcome.results = outcome.results, None
    assert results is not None
    if not run.gives_elements:
        return loaded(results, what, 1)[0]  # type: ignore[no-any-return]
    part = copy.deepcopy(empty)
    part.add(loaded(results, what, outcome.produced))
    return part
