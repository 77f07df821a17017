"""Mistakes: what to write instead of what other libraries have, or of what Python would only refuse."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# What has another name elsewhere: in multiprocessing, joblib, dask, Spark, Ray, pandas, polars, itertools.
_LIST = "list(collection), or take(n) for the first n results"
_METHODS = {
    **dict.fromkeys(("collect", "compute", "to_list", "tolist", "toList", "get", "result", "execute"), _LIST),
    **dict.fromkeys(("head", "limit", "show", "take_first"), "take(n), or first()"),
    **dict.fromkeys(("imap", "apply", "apply_async", "map_async", "submit", "select"), "map(func)"),
    **dict.fromkeys(("imap_unordered", "as_completed"), "map(func).unordered()"),
    **dict.fromkeys(("flatMap", "flat", "explode", "chain_map", "expand"), "flatmap(func)"),
    **dict.fromkeys(("groupby", "groupBy", "groupByKey"), "group_by(key), or fold_by(key, func, initial)"),
    **dict.fromkeys(("reduceByKey", "reduce_by_key", "foldby", "aggregate"), "fold_by(key, func, initial)"),
    **dict.fromkeys(("frequencies", "value_counts", "countByValue", "countByKey"), "count_by(key)"),
    **dict.fromkeys(("unique", "drop_duplicates", "dedup"), "distinct(key)"),
    **dict.fromkeys(("sort", "sortBy", "sort_by", "sort_values", "order_by"), "sorted(key, reverse)"),
    **dict.fromkeys(("topk", "top", "largest"), "nlargest(n, key)"),
    **dict.fromkeys(("cache", "checkpoint"), "persist(), or parallel(..., checkpoint=folder)"),
    **dict.fromkeys(("repartition", "coalesce", "rechunk"), "parallel(..., partition_size=n)"),
    **dict.fromkeys(("mapPartitions", "map_partitions", "mapValues"), "map_batches(func), or map(func)"),
    **dict.fromkeys(("for_each", "each", "foreachPartition"), "foreach(func)"),
    **dict.fromkeys(("where", "filter_by", "reject"), "filter(predicate)"),
    **dict.fromkeys(("size", "length", "shape"), "count()"),
    **dict.fromkeys(("accumulate", "cumsum"), "scan(func)"),
    **dict.fromkeys(("takewhile", "takeWhile"), "take_while(predicate)"),
    **dict.fromkeys(("dropwhile", "dropWhile"), "drop_while(predicate)"),
    **dict.fromkeys(("batch", "chunk", "chunked", "window"), "batched(n)"),
    **dict.fromkeys(("union", "concat", "extend"), "chain(*others)"),
    **dict.fromkeys(("mean", "average"), "sum() and count(), or fold(func, initial, combine)"),
    **dict.fromkeys(("saveAsTextFile", "to_textfiles", "write"), "write_text(path) or write_jsonl(path)"),
    **dict.fromkeys(("to_csv", "to_parquet", "to_json"), "write_csv(path) and its like"),
    **dict.fromkeys(("reverse", "reversed"), "sorted(reverse=True), or reversed(list(collection))"),
    **dict.fromkeys(("close", "shutdown", "join_all", "terminate"), "`with connect():` around it"),
}
# Methods of a collection that people look for elsewhere.
COLLECTION = frozenset(
    (
        "map",
        "filter",
        "flatmap",
        "flat_map",
        "reduce",
        "fold",
        "foreach",
        "starmap",
        "map_batches",
        "batched",
        "take",
    )
)
_WORKERS = "`with connect(n_workers=n):` around the evaluation"
_SETTINGS = {
    **dict.fromkeys(
        ("n_workers", "n_jobs", "max_workers", "workers", "processes", "num_workers", "nprocs"), _WORKERS
    ),
    **dict.fromkeys(("chunksize", "chunk_size", "batch_size", "numSlices"), "partition_size=n"),
    **dict.fromkeys(("threads", "n_threads"), "connect(threads_per_worker=n), or concurrency=n for one step"),
    **dict.fromkeys(("backend", "scheduler"), "connect(...), which says where it runs"),
    **dict.fromkeys(("errors", "error", "ignore_errors"), 'on_error="skip", or a function'),
    **dict.fromkeys(("retry", "max_retries", "tries"), "retries=n"),
    **dict.fromkeys(("verbose", "show_progress", "desc"), "progress=True, or progress=a text"),
    **dict.fromkeys(("initializer", "initargs"), "@per_worker, which makes an object once in each worker"),
    **dict.fromkeys(("ordered", "preserve_order"), "unordered(), a method of the collection"),
}

_ELSEWHERE = {
    **dict.fromkeys(("Pool", "ThreadPool", "Parallel", "delayed"), "parallel(source).map(func)"),
    **dict.fromkeys(("ProcessPoolExecutor", "ThreadPoolExecutor"), "parallel(source).map(func)"),
    **dict.fromkeys(("Client", "LocalCluster", "init", "Session"), "connect(...)"),
    **dict.fromkeys(("from_sequence", "from_items", "parallelize", "Bag", "collection"), "parallel(source)"),
    **dict.fromkeys(("read_json", "read_lines", "textFile"), "read_jsonl(path) or read_text(path)"),
}


def no_attribute(kind: str, name: str, public: Sequence[str]) -> str:
    """Return the message for an attribute that is asked for and is not there."""
    message = f"{kind!r} object has no attribute {name!r}"
    instead = _METHODS.get(name) or " or ".join(difflib.get_close_matches(name, public, 1, 0.8))
    return f"{message}: write {instead}" if instead and not name.startswith("_") else message


def not_a_collection(what: str, name: str) -> str:
    """Return the message for a method of a collection that is looked for elsewhere: at `what`."""
    message = f"{what} has no attribute {name!r}"
    if name.startswith("_"):
        return message
    if name in _ELSEWHERE:
        return f"{message}: write {_ELSEWHERE[name]}"
    if name in COLLECTION:
        return f"{message}: write parallel(source).{name}(...)"
    return f"{message}: write parallel(source), and then {_METHODS[name]}" if name in _METHODS else message


def wrong_arguments(
    function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]
) -> str | None:
    """Return the message for a call with arguments that a function does not take; None for Python's own."""
    parameters = inspect.signature(function).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind != parameter.POSITIONAL_ONLY]
    call = f"{function.__name__}()"
    for name in named:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.7)
            instead = _SETTINGS.get(name) or "".join(f"{match}=" for match in close)
            own = ", ".join(each for each in known if each != "self")
            said = f"write {instead}" if instead else f"it takes {own or 'nothing'}"
            return f"{call} has no {name}=: {said}"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(arguments) <= len(positional) or any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return None
    taken, methods = len(positional), bool(positional) and positional[0].name == "self"
    takes, given = taken - methods, len(arguments) - methods
    message = f"{call} takes {takes} positional argument{'s' * (takes != 1)}, and got {given}"
    if function.__name__ == "parallel":
        return f"{message}: one source, as in parallel(zip(xs, ys)) or parallel(xs).chain(ys)"
    if methods and any(p.name in ("func", "predicate") for p in positional):
        return (
            f"{message}: for a function of several arguments write zip(*others).starmap(func), or "
            "functools.partial(func, ...) for the same ones each time"
        )
    named_only = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    said = f"name the others, of {', '.join(named_only)}" if named_only else "leave out the rest"
    return f"{message}: {said}"
