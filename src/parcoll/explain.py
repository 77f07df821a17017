"""Explanation: what `ParallelGen.explain` says of a chain, where it would run, and what its last run took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parcoll import current
from parcoll.evaluation.run import Options
from parcoll.evaluation.sizing import TARGET_BYTES, TARGET_SECONDS
from parcoll.evaluation.source import OnePassSource, Source
from parcoll.watch import table
from parcoll.watch.stats import Stats


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
    if isinstance(source, OnePassSource):
        return f"{source!r}, an iterator: it gives its elements to one evaluation"
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
    return f"{options.partition_size:,} elements each; {order}"
