"""Engines that bring elements together by key, and are not asked to map: for the question `keyed`.

Each does what its own documentation would have a person write. Their answers are compared with plain
Python, as all others are. Where an engine promises no order among equal keys, it sorts by the place too.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from operator import add, itemgetter
from pathlib import Path
from typing import Any

from peers import CORES, Peer

FOLDER = Path(__file__).parent
COLUMNS = ["key", "at", "text"]
PARTS = 8 * CORES
# Of Spark. With less memory, the answer of two million tuples is more than its driver may take.
SETTINGS = {
    "driver.memory": "4g",
    "driver.maxResultSize": "4g",
    "ui.enabled": "false",
    "ui.showConsoleProgress": "false",
}


class Engine(Peer):
    """Has a call for each operation by key. Starts with none of the other questions."""

    default = False

    def operations(self) -> dict[str, Callable[[Sequence[Any]], Any]]:
        """Return what counts words of files, groups, sorts, and leaves out by key."""
        return {row: getattr(self, f"_{row}") for row in ("count", "group", "sorted", "distinct")}


class Spark(Engine):
    """pyspark on one machine, with the rows as Python's own tuples."""

    name = "pyspark"
    needs = "pyspark"

    def __init__(self) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
        os.environ["PYSPARK_PYTHON"] = sys.executable
        from pyspark import SparkConf, SparkContext

        conf = SparkConf().setMaster(f"local[{CORES}]").setAppName("benchmark")
        for name, value in SETTINGS.items():
            conf.set(f"spark.{name}", value)
        self.context = SparkContext(conf=conf)
        self.context.setLogLevel("ERROR")

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return list(self.context.parallelize(source, PARTS).map(func).collect())

    def _rows(self, source: Sequence[Any]) -> Any:
        return self.context.parallelize(source, PARTS)

    def _count(self, source: Sequence[Any]) -> Any:
        from keyed import words_of

        pairs = self._rows(source).flatMap(words_of).map(lambda word: (word, 1))
        return pairs.reduceByKey(add).collectAsMap()

    def _group(self, source: Sequence[Any]) -> Any:
        return self._rows(source).keyBy(itemgetter(0)).groupByKey().mapValues(list).collect()

    def _sorted(self, source: Sequence[Any]) -> Any:
        return self._rows(source).sortBy(itemgetter(0, 1)).collect()

    def _distinct(self, source: Sequence[Any]) -> Any:
        return self._rows(source).keyBy(itemgetter(0)).reduceByKey(lambda one, _: one).values().collect()

    def close(self) -> None:
        self.context.stop()


class P2P(Engine):
    """dask.dataframe on a local cluster of processes, which exchange by dask's own peer-to-peer shuffle."""

    name = "dask P2P"
    needs = "pyarrow"

    def __init__(self) -> None:
        import dask
        import dask.dataframe  # with pandas
        import distributed

        logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)  # it tells of each shuffle
        dask.config.set({"dataframe.shuffle.method": "p2p"})
        self.client = distributed.Client(
            n_workers=CORES, threads_per_worker=1, dashboard_address=None, processes=True
        )

    def map(self, func: Callable[[Any], Any], source: list[Any], chunk: int | None) -> list[Any]:
        return list(self.client.gather(self.client.map(func, source)))

    def _frame(self, source: Sequence[Any]) -> Any:
        import dask.dataframe
        import pandas

        return dask.dataframe.from_pandas(pandas.DataFrame(source, columns=COLUMNS), npartitions=PARTS)

    def _parts(self, frame: Any, func: Callable[[Any], list[Any]]) -> list[Any]:
        """Return what a function makes of each part, one after the other."""
        import dask

        made = self.client.compute([dask.delayed(func)(part) for part in frame.to_delayed()])
        return [element for found in self.client.gather(made) for element in found]

    def _count(self, source: Sequence[Any]) -> Any:
        import dask.dataframe
        import pandas

        words = dask.dataframe.from_map(frame_of_words, source, meta=pandas.DataFrame({"key": ["a"]}))
        return self._parts(words.shuffle("key"), counts_of)

    def _group(self, source: Sequence[Any]) -> Any:
        return self._parts(self._frame(source).shuffle("key"), groups_of)

    def _sorted(self, source: Sequence[Any]) -> Any:
        return self._parts(self._frame(source).sort_values(["key", "at"]), tuples_of)

    def _distinct(self, source: Sequence[Any]) -> Any:
        return self._parts(self._frame(source).shuffle("key"), firsts_of)

    def close(self) -> None:
        self.client.shutdown()


def tuples_of(frame: Any) -> list[Any]:
    return list(frame.itertuples(index=False, name=None))


def groups_of(frame: Any) -> list[Any]:
    from keyed import grouped

    return list(grouped(tuples_of(frame)).items())


def firsts_of(frame: Any) -> list[Any]:
    return tuples_of(frame.drop_duplicates("key"))


def counts_of(frame: Any) -> list[Any]:
    return list(frame["key"].value_counts().items())


def frame_of_words(path: str) -> Any:
    import pandas
    from keyed import words_of

    return pandas.DataFrame({"key": words_of(path)})


ENGINES: dict[str, type[Peer]] = {engine.name: engine for engine in (P2P, Spark)}
