"""Explanation: what can be asked of a collection without evaluating it: chain, engine, numbers, errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parcoll.connecting import current
from parcoll.errors import ElementError
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import Options
from parcoll.evaluation.sizing import TARGET_BYTES, TARGET_SECONDS
from parcoll.evaluation.source import OnePassSource, Source
from parcoll.mistakes import no_attribute
from parcoll.text import counted
from parcoll.watch import table
from parcoll.watch.stats import Stats
from parcoll.world import handlers

if TYPE_CHECKING:
    from dask.bag import Bag


@dataclass(frozen=True)
class Explanation:
    """A description of a collection, as `ParallelGen.explain` returns it. Printed, it is a text.

    Attributes:
        chain: The calls that made the collection.
        source: What the elements come from, and whether it can be read again.
        engine: Where the collection would be evaluated now.
        partitions: How many elements go into a partition, and in which order results come.
        numbers: The numbers of the last evaluation, or of the one that runs: `Stats.snapshot()`.
    """

    chain: str
    source: str
    engine: str
    partitions: str
    numbers: dict[str, Any]

    def __str__(self) -> str:
        lines = [f"{name + ':':<12}{sentence}" for name, sentence in self._sentences()]
        return "\n".join([*lines, table.text(self.numbers) if self._evaluated else "not evaluated yet"])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(sentence)}</td></tr>" for name, sentence in self._sentences()
        )
        return f"<table>{rows}</table>{table.html(self.numbers) if self._evaluated else ''}"

    @property
    def _evaluated(self) -> bool:
        return bool(self.numbers["state"] != "new")

    def _sentences(self) -> list[tuple[str, str]]:
        names = ("chain", "source", "engine", "partitions")
        return [(name, getattr(self, name)) for name in names]


def _no_operator(reflected: str) -> Any:
    """Return the method for an operator: what the other operand makes of a collection, or a message."""

    def method(self: Any, other: Any) -> Any:
        kind = type(other)
        has = any(reflected in vars(base) for base in kind.__mro__)  # `getattr` finds what `type` itself has
        if has and not isinstance(other, Described) and kind.__module__ != "numpy":
            found = getattr(kind, reflected)(other, self)  # of pipes, say: `collection | pipe`
            if found is not NotImplemented:
                return found
        raise TypeError(
            "a collection has no operators: write map(func) for each element, or list(...) for all"
        )

    return method


@handlers.methods_reaching
class Described:
    """What can be asked of a collection without evaluating it."""

    __slots__ = ("_node", "_options", "_own")

    _node: Node
    _options: Options
    _own: Stats | None  # of the last evaluation of this collection itself

    if not TYPE_CHECKING:  # so that type checkers refuse them, too

        def __getattr__(self, name: str) -> Any:
            """Say what to write instead of what other libraries have."""
            if hasattr(type(self), name):  # a property that has raised an AttributeError
                return object.__getattribute__(self, name)
            public = [known for known in dir(type(self)) if not known.startswith("_")]
            raise AttributeError(no_attribute(type(self).__name__, name, public), name=name, obj=self)

        def __add__(self, other: Any) -> Any:
            # Without __radd__, which Python asks before `rows += collection` adds its elements to a list.
            raise TypeError("a collection cannot be added to another: write chain(*others)")

        __sub__, __mul__ = _no_operator("__rsub__"), _no_operator("__rmul__")
        __truediv__ = _no_operator("__rtruediv__")
        __or__, __and__ = _no_operator("__ror__"), _no_operator("__rand__")
        __lt__, __gt__ = _no_operator("__gt__"), _no_operator("__lt__")
        __le__, __ge__ = _no_operator("__ge__"), _no_operator("__le__")

        def __reversed__(self) -> Any:
            raise TypeError("a collection goes from first to last: write reversed(list(collection))")

        def __enter__(self) -> Any:
            raise TypeError(
                "a collection has nothing to close: leave out `with`, or write `with connect(n_workers=n):`"
            )

        def __exit__(self, *_: object) -> None:
            pass  # Python asks for it before it calls `__enter__`

        def __getitem__(self, index: Any) -> Any:
            instead = "take(n), skip(n)" if isinstance(index, slice) else "first(), skip(n).first()"
            raise TypeError(
                f"a collection has no elements until it is evaluated: write {instead} or list(...)"
            )

    @property
    def bag(self) -> Bag:
        """The `dask.bag.Bag` that stands for this chain, with a layer for each call. Evaluates nothing.

        Look at it with dask's tools (`.dask`, `dask.visualize`). A source that is read as a stream is one
        partition there, since an evaluation cuts it only while it runs. What reads files has a partition for
        each file, or part of one.
        """
        from parcoll.evaluation.bag import bag_to_show  # lazy: dask.bag

        return bag_to_show(self._node)

    @property
    def stats(self) -> Stats:
        """The numbers of this collection's last evaluation, or of the one that runs. Evaluates nothing.

        Printed, they are a table; `help(collection.stats)` says what each of them is. A collection that was
        not evaluated itself has the numbers of the last evaluation that went through it: that of a collection
        chained from it, or of its `unordered()`.

        >>> from parcoll import parallel
        >>> numbers = parallel(range(10)).filter(lambda x: x > 6)
        >>> numbers.count(), numbers.stats.elements_in, numbers.stats.elements_out
        (3, 10, 3)
        """
        return self._own or self._node.stats or Stats()

    @property
    def errors(self) -> list[ElementError]:
        """The elements that failed in the last evaluation, or in the one that runs, as `ElementError`s.

        In the order of the source, with the one whose exception was raised; only the first thousand to come
        back. Which evaluation that is, `stats` says.

        >>> from parcoll import parallel
        >>> numbers = parallel(["1", "x", "3"], on_error="skip").map(int)
        >>> sum(numbers), [(error.index, error.element) for error in numbers.errors]
        (4, [(1, 'x')])
        """
        return self.stats._failed_elements.rebuilt()

    def explain(self) -> Explanation:
        """Return a description: chain, source, where it would run, partitions, the last run's numbers.

        Evaluates nothing and starts nothing. `print` it, or let a notebook show it.

        >>> from parcoll import parallel
        >>> print(parallel(range(3), partition_size=2).map(str).explain().partitions)
        2 elements each; results in source order
        """
        *_, first = self._node.back()
        return explanation(self._chain_text(), first.source, self._options, self.stats)

    def _chain_text(self) -> str:
        return self._node.describe() + ("" if self._options.ordered else ".unordered()")

    def __repr__(self) -> str:
        return f"<ParallelGen: {self._chain_text()}>"

    def _repr_html_(self) -> str:
        """Return the chain, and its numbers if it was evaluated, for a notebook. Evaluates nothing."""
        from html import escape

        numbers = self.stats.snapshot()
        chain = f"<code>{escape(repr(self))}</code>"
        return f"<div>{chain}</div>{'' if numbers['state'] == 'new' else table.html(numbers)}"


def explanation(chain: str, source: Any, options: Options, stats: Stats) -> Explanation:
    """Return the description of a collection. Reads and starts nothing, and asks nothing over a network."""
    return Explanation(
        chain=chain,
        source=_describe_source(source),
        engine=current.describe_engine(options.client),
        partitions=_describe_sizing(source, options),
        numbers=stats.snapshot(),
    )


def _describe_source(source: Any) -> str:
    if isinstance(source, Source) and source.one_pass:
        what = "an iterator" if isinstance(source, OnePassSource) else "made of an iterator"
        return f"{source!r}, {what}: it gives its elements to one evaluation"
    if isinstance(source, Source):
        return f"{source!r}, read anew by each evaluation"
    return f"{source!r}, whose partitions are where the workers are"


def _describe_sizing(source: Any, options: Options) -> str:
    order = "results in source order" if options.ordered else "results as they come"
    if not isinstance(source, Source):
        return f"those of the bag, {source.npartitions:,}; {order}"
    if isinstance(options.partition_size, str):
        return (
            f"sized while it runs, up to {TARGET_SECONDS:g} s of work and {table.size(TARGET_BYTES)}; {order}"
        )
    return f"{counted(options.partition_size, 'element')} each; {order}"
