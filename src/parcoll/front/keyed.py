"""Keyed: the calls of a collection that look at keys: count, fold, group, sort, and what is distinct."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from parcoll.chain.policy import PLAIN
from parcoll.evaluation.plan import Derived, Node, Read
from parcoll.evaluation.run import Options
from parcoll.front import arguments
from parcoll.front.arguments import KeySettings
from parcoll.front.evaluating import Evaluated
from parcoll.keys.exchange import Exchange
from parcoll.keys.gathering import Counts, Folds, Gatherer, Gathering, Groups, OrderedFolds, Start, Values
from parcoll.keys.keying import Keyed
from parcoll.keys.merging import Merging
from parcoll.keys.ordering import Distinct, Firsts, InOrder, Saved
from parcoll.keys.runs import Ranges, Runs, Sorting
from parcoll.keys.slots import one_nan
from parcoll.worker.fold import is_neutral, packed_initial
from parcoll.world import handlers

if TYPE_CHECKING:
    from parcoll import ParallelGen  # the class that has these methods

T_co = TypeVar("T_co", covariant=True)
K = TypeVar("K", bound=Hashable)
A = TypeVar("A")


@handlers.methods_reaching
class Keys(Evaluated[T_co]):
    """A collection whose elements may have keys.

    Keys are equal where a dict finds them equal: 1, 1.0 and True are one key, and the first one is given. All
    NaNs are one key, also within tuples, frozensets and dataclasses, since which object they are does not
    travel. A key that cannot be hashed is a failure of its element. `on_error`, `retries`, `retry_on` and
    `timeout` hold for the calls of the key function, as in `map`; what an `on_error` function returns stands
    for the key.
    """

    __slots__ = ()

    @overload
    def count_by(self, key: None = None, **settings: Unpack[KeySettings]) -> Counter[T_co]: ...
    @overload
    def count_by(self, key: Callable[[T_co], K], **settings: Unpack[KeySettings]) -> Counter[K]: ...
    def count_by(
        self, key: Callable[[T_co], Any] | None = None, **settings: Unpack[KeySettings]
    ) -> Counter[Any]:
        """Evaluate, and return a `collections.Counter` of the keys, in the order of their first appearance.

        Without `key`, it counts the elements. The workers count; nothing but keys and counts comes back. With
        a checkpoint the keys come here, are saved and then counted.

        `settings` are `on_error`, `retries`, `retry_on` and `timeout`, as in `map`, for the calls of `key`.

        >>> from parcoll import parallel
        >>> parallel(["a", "bb", "c"]).count_by(len)
        Counter({1: 2, 2: 1})
        """
        step = self._keyed("count_by", key, settings, alone=True)
        if self._options.checkpoint is not None:
            keys = type(self)(Node(before=self._node, step=step), self._options)
            try:
                return Counter(one_nan(list(keys)))
            finally:
                self._own = keys._own
        counts = self._by_key(step, Counts(), together=True)
        found: Counter[Any] = Counter()
        try:
            for keys, numbers in counts:
                dict.update(found, zip(keys, numbers, strict=True))  # Counter's own loops, and adds
            return found
        finally:
            self._own = counts._own

    def fold_by(
        self,
        key: Callable[[T_co], K],
        func: Callable[[A, T_co], A],
        initial: A,
        combine: Callable[[A, A], A] | None = None,
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[tuple[K, A]]:
        """Return a collection of (key, value): the elements of each key, folded from `initial`. Runs nothing.

        The keys are in the order of their first appearance. Each key starts from a copy of `initial`, so
        `func` may write into its first argument. Without `combine`, `func` gets the elements of a key from
        the first to the last, once they have come together on a worker. With it, each worker folds those of
        its own partitions, which moves less, and `combine` joins two values, those of earlier elements first.
        If `combine(initial, initial)` is not equal to `initial`, it is not used, so that `initial` counts
        once.

        With a checkpoint the keys with their elements come here, are saved and then folded by the workers. An
        element for which `func` or `combine` raises cannot be left out.

        `settings` are `on_error`, `retries`, `retry_on` and `timeout`, as in `map`, for the calls of `key`.

        >>> from parcoll import parallel
        >>> words = parallel(["one", "two", "three"])
        >>> dict(words.fold_by(len, lambda n, word: n + 1, 0, lambda a, b: a + b))
        {3: 2, 5: 1}
        """
        order = "; write fold_by(key, func, initial, combine=None)"
        func = arguments.function(func, "fold_by", order)
        packed = packed_initial(initial)
        start, kind = Start(packed), None
        if combine is not None and is_neutral(arguments.function(combine, "fold_by", order), packed):
            kind = Folds(func, start, combine)
        step = self._keyed("fold_by", arguments.function(key, "fold_by"), settings)
        return self._by_key(step, kind or OrderedFolds(func, start))  # type: ignore[no-any-return]

    def _saved(self, step: Keyed) -> Any:
        """Return the collection of keys with elements that a checkpoint has saved."""
        read = Read(Node(before=self._node, step=step), dataclasses.replace(self._options, progress=False))
        options = dataclasses.replace(self._options, checkpoint=None, retry_failed=False)
        return self._of(Node(source=Derived((read,), Saved())), options)

    def group_by(
        self, key: Callable[[T_co], K], **settings: Unpack[KeySettings]
    ) -> ParallelGen[tuple[K, list[T_co]]]:
        """Return a collection of (key, list): the elements of each key, in their order. Runs nothing.

        The keys are in the order of their first appearance; behind `unordered()`, as they come. All elements
        are grouped before the first group is given. They may be more than fit in memory: they wait in a
        temporary file. A group has to fit in a worker; MemoryError names one that does not. Where one value
        of each group is wanted, `fold_by` moves less. A checkpoint cannot save it.

        Of few workers, this process joins what they send, if that is little. Numbers, texts and tuples of
        these that stand in a list, with no step before this one, do not come back: the groups have the very
        elements of the list.

        `settings` are `on_error`, `retries`, `retry_on` and `timeout`, as in `map`, for the calls of `key`.

        >>> from parcoll import parallel
        >>> list(parallel(range(5)).group_by(lambda x: x % 2))
        [(0, [0, 2, 4]), (1, [1, 3])]
        """
        step = self._keyed("group_by", arguments.function(key, "group_by"), settings)
        return self._by_key(step, Groups())  # type: ignore[no-any-return]

    def distinct(
        self, key: Callable[[T_co], Hashable] | None = None, **settings: Unpack[KeySettings]
    ) -> ParallelGen[T_co]:
        """Return a collection of the first element of each key, in order. Runs nothing.

        Without `key`, of the elements themselves. Workers leave out repeats within their partitions, and this
        process those between partitions, as they come: the source may be endless. It holds all keys that
        there are, about 100 bytes each. Elements of a list need not come back, as in `group_by`. A checkpoint
        cannot save it.

        `settings` are `on_error`, `retries`, `retry_on` and `timeout`, as in `map`, for the calls of `key`.

        >>> from parcoll import parallel
        >>> list(parallel([3, 1, 3, 2, 1]).distinct())
        [3, 1, 2]
        """
        step = self._keyed("distinct", key, settings)
        read = self._gathered(step, Firsts(keyed=key is not None))
        options = self._options.behind
        return self._of(Node(source=Derived((read,), Distinct())), options)  # type: ignore[no-any-return]

    def sorted(
        self,
        key: Callable[[T_co], Any] | None = None,
        reverse: bool = False,
        **settings: Unpack[KeySettings],
    ) -> ParallelGen[T_co]:
        """Return a collection of the elements in the order of their keys, as the builtin sorts. Runs nothing.

        Equal elements keep their order, also with `reverse`. Keys are compared with `<` alone. All elements
        are sorted in partitions before the first one is given; then ranges of all of them are, one after the
        other. They may be more than fit in memory: they wait in a temporary file. A checkpoint cannot save
        it.

        Of few workers, this process merges the partitions, if they are little, and numbers, texts or tuples
        of these; elements of a list need not come back, as in `group_by`.

        `settings` are `on_error`, `retries`, `retry_on` and `timeout`, as in `map`, for the calls of `key`.

        >>> from parcoll import parallel
        >>> list(parallel(["bb", "a", "ccc", "dd"]).sorted(len, reverse=True))
        ['ccc', 'bb', 'dd', 'a']
        """
        reverse = bool(reverse)
        shown = "reverse=True" if reverse else ""
        step = self._keyed("sorted", key, settings, hashed=False, shown=shown)
        read = self._gathered(step, Runs(key is not None, reverse))
        ranges = Node(source=Derived((read,), Ranges(reverse)))
        made = Node(before=ranges, step=Sorting())
        own = self._options.behind
        readers = own.partition_size, own.buffersize
        options = dataclasses.replace(own, ordered=True, of_readers=readers, **_TASKS)
        return self._of(made, options)  # type: ignore[no-any-return]

    def _keyed(
        self,
        name: str,
        key: Any,
        settings: Any,
        hashed: bool = True,
        alone: bool = False,
        shown: str = "",
    ) -> Keyed:
        """Return the step that calls the key function."""
        if key is not None:
            key = arguments.function(key, name)
        policy = arguments.step_policy(name, key, settings, self._options.policy)
        if name not in RESUMING:
            arguments.no_checkpoint_of_keys(self._options.checkpoint, name)
        return Keyed(name, key, policy, hashed, alone, shown)

    def _gathered(self, step: Keyed, gatherer: Gatherer) -> Read:
        """Return what an operation reads: this chain with keys, gathered by the workers."""
        sink = Gathering(gatherer, step.label, self._options.policy.timeout)
        if self._options.checkpoint is not None:
            saved = self._saved(step)
            return Read(saved._node, dataclasses.replace(saved._options, progress=False), sink)
        node = Node(before=self._node, step=step)
        return Read(node, dataclasses.replace(self._options, progress=False), sink)

    def _by_key(self, step: Keyed, kind: Values, together: bool = False) -> Any:
        """Return the collection of keys and values."""
        tasks = Node(source=Derived((self._gathered(step, kind),), Exchange(step.name, kind)))
        merged = Node(before=tasks, step=Merging(step.name, kind, together))
        plain: Any = {"policy": PLAIN, "checkpoint": None, "retry_failed": False, **_TASKS}
        options = dataclasses.replace(self._options, progress=False, ordered=False, **plain)
        in_order = InOrder(step.name, self._options.ordered, together, kind)
        given = dataclasses.replace(self._options.behind, checkpoint=None, retry_failed=False)
        return self._of(Node(source=Derived((Read(merged, options),), in_order)), given)

    def _of(self, node: Node, options: Options) -> Any:
        kind: Any = type(self)
        return kind(node, options)


RESUMING = ("count_by", "fold_by")  # where what is saved are the keys, with their elements or without
_TASKS: Any = {"partition_size": 1, "buffersize": None}  # each a partition of its own
