"""Mistakes: what to write instead of what other libraries have, or of what Python would only refuse."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from parcoll.text import UNSET, short_repr

# What has another name elsewhere: in multiprocessing, joblib, dask, Spark, Ray, pandas, polars, itertools.
_LIST = "list(collection), or take(n) for the first n results"
_CLOSES = ("close", "shutdown", "join_all", "terminate")
_NOT_TO_CLOSE = "nothing: the workers end with the script, or with a `with connect():` around it"
_METHODS = {
    **dict.fromkeys(("collect", "compute", "to_list", "tolist", "toList", "get", "result", "execute"), _LIST),
    **dict.fromkeys(("take_all", "collect_list", "fetchall", "run", "start", "wait", "evaluate"), _LIST),
    **dict.fromkeys(("iter_rows", "iter_batches", "iterator", "next"), "`for element in collection:`"),
    **dict.fromkeys(("head", "limit", "show", "take_first"), "take(n), or first()"),
    **dict.fromkeys(("tail", "last"), "collections.deque(collection, n), which keeps the last n"),
    **dict.fromkeys(("items", "keys", "values"), "map(func): of a mapping, the elements are its pairs"),
    **dict.fromkeys(("imap", "apply", "apply_async", "map_async", "submit", "select"), "map(func)"),
    **dict.fromkeys(("transform", "pipe", "assign", "withColumn", "with_columns", "map_rows"), "map(func)"),
    **dict.fromkeys(("imap_unordered", "as_completed"), "map(func).unordered()"),
    "starmap_async": "starmap(func)",
    "pluck": "map(operator.itemgetter(key))",
    **dict.fromkeys(("flatMap", "explode", "chain_map", "expand"), "flatmap(func)"),
    **dict.fromkeys(("flatten", "flat"), "flatmap(list)"),
    **dict.fromkeys(("groupby", "groupBy", "groupByKey"), "group_by(key), or fold_by(key, func, initial)"),
    **dict.fromkeys(("reduceByKey", "reduce_by_key", "foldby", "aggregate"), "fold_by(key, func, initial)"),
    **dict.fromkeys(("aggregateByKey", "combineByKey"), "fold_by(key, func, initial, combine)"),
    **dict.fromkeys(("fold_left", "foldLeft", "reduceLeft"), "reduce(func[, initial])"),
    "most_common": "count_by(key).most_common(n)",
    **dict.fromkeys(("frequencies", "value_counts", "countByValue", "countByKey"), "count_by(key)"),
    **dict.fromkeys(("unique", "drop_duplicates", "dedup"), "distinct(key)"),
    **dict.fromkeys(
        ("sort", "sortBy", "sortByKey", "sort_by", "sort_values", "order_by"), "sorted(key, reverse)"
    ),
    **dict.fromkeys(("topk", "top", "largest"), "nlargest(n, key)"),
    **dict.fromkeys(("takeOrdered", "smallest"), "nsmallest(n, key)"),
    **dict.fromkeys(("min_by", "minBy"), "min(key)"),
    **dict.fromkeys(("max_by", "maxBy"), "max(key)"),
    **dict.fromkeys(("nunique", "count_distinct", "countDistinct"), "distinct(key).count()"),
    **dict.fromkeys(("any", "all"), "any(collection) or all(collection), the builtins"),
    **dict.fromkeys(("cache", "checkpoint", "materialize"), "persist(), or parallel(..., checkpoint=folder)"),
    **dict.fromkeys(("repartition", "coalesce", "rechunk"), "nothing: partitions size themselves"),
    **dict.fromkeys(("progress", "progress_bar", "tqdm"), "parallel(..., progress=True)"),
    **dict.fromkeys(
        ("mapPartitions", "map_partitions", "iter_torch_batches"), "map_batches(func), or map(func)"
    ),
    **dict.fromkeys(("mapValues", "map_values"), "map(lambda pair: (pair[0], func(pair[1])))"),
    "flatMapValues": "flatmap(lambda pair: [(pair[0], value) for value in func(pair[1])])",
    "map_groups": "group_by(key).map(func), whose func gets (key, list)",
    **dict.fromkeys(("zipWithIndex", "zip_with_index"), "enumerate(), which gives (index, element)"),
    **dict.fromkeys(("collectAsMap", "to_dict"), "dict(collection), of elements that are pairs"),
    **dict.fromkeys(("for_each", "each", "foreachPartition"), "foreach(func)"),
    **dict.fromkeys(("where", "filter_by", "query"), "filter(predicate)"),
    **dict.fromkeys(("find", "first_where"), "filter(predicate).first(None)"),
    "dropna": "filter(lambda element: element is not None)",
    **dict.fromkeys(("filterfalse", "reject", "remove"), "filter(lambda element: not predicate(element))"),
    **dict.fromkeys(("size", "len", "length", "shape"), "count()"),
    **dict.fromkeys(("agg", "combine"), "fold(func, initial, combine)"),
    **dict.fromkeys(("accumulate", "cumsum"), "scan(func)"),
    **dict.fromkeys(("takewhile", "takeWhile"), "take_while(predicate)"),
    **dict.fromkeys(("dropwhile", "dropWhile"), "drop_while(predicate)"),
    **dict.fromkeys(("batch", "chunk", "chunked", "window"), "batched(n)"),
    **dict.fromkeys(("union", "concat", "extend"), "chain(*others)"),
    **dict.fromkeys(("append", "insert"), "chain([element])"),
    **dict.fromkeys(("islice", "slice", "offset"), "skip(n), and then take(n)"),
    "zip_longest": "zip(*others), which ends with the shortest",
    **dict.fromkeys(("random_sample", "takeSample"), "sample(probability, seed)"),
    **dict.fromkeys(("merge", "leftOuterJoin"), "join(other, key)"),
    **dict.fromkeys(("intersect", "intersection"), 'join(other, key, how="semi")'),
    **dict.fromkeys(("subtract", "difference"), 'join(other, key, how="anti")'),
    **dict.fromkeys(
        ("product", "cartesian", "crossJoin"),
        "flatmap(lambda element: [(element, other) for other in others])",
    ),
    **dict.fromkeys(("median", "mode", "quantiles"), "statistics.median(collection), and its like"),
    **dict.fromkeys(("mean", "average"), "statistics.fmean(collection), or fold(func, initial, combine)"),
    **dict.fromkeys(
        ("std", "var", "stdev", "variance", "sampleStdev"),
        "statistics.stdev(collection), or pstdev and pvariance, of all and not of a sample",
    ),
    **dict.fromkeys(("columns", "dtypes", "describe", "iloc", "loc"), "to_pandas(), which makes a DataFrame"),
    **dict.fromkeys(("to_dataframe", "toPandas", "df"), "to_pandas()"),
    **dict.fromkeys(("npartitions", "num_partitions", "getNumPartitions"), "explain()"),
    **dict.fromkeys(("ready", "done", "successful", "status"), "stats.state"),
    "visualize": "bag.visualize()",
    "cancel": "break, in the loop over the collection, or take(n)",
    **dict.fromkeys(("failures", "exception", "exceptions"), "errors"),
    "catch": 'parallel(..., on_error="skip"), or a function',
    "throttle": "map(func, rate=(calls, seconds))",
    **dict.fromkeys(
        ("saveAsTextFile", "to_textfiles", "write", "save"), "write_text(path) or write_jsonl(path)"
    ),
    "to_csv": "write_csv(path)",
    "to_parquet": "write_parquet(path)",
    **dict.fromkeys(("to_json", "write_json", "to_jsonl"), "write_jsonl(path)"),
    **dict.fromkeys(("reverse", "reversed"), "sorted(reverse=True), or reversed(list(collection))"),
    **dict.fromkeys(_CLOSES, _NOT_TO_CLOSE),
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
_SIZE = "partition_size=n"
_WORKERS = "`with connect(n_workers=n):` around the evaluation"
_SETTINGS = {
    **dict.fromkeys(
        ("n_workers", "n_jobs", "max_workers", "workers", "processes", "num_workers", "nprocs"), _WORKERS
    ),
    **dict.fromkeys(("chunksize", "chunk_size", "batch_size"), _SIZE),
    **dict.fromkeys(("numSlices", "npartitions"), "nothing: partitions size themselves"),
    **dict.fromkeys(
        ("threads", "n_threads", "nthreads"), "connect(threads_per_worker=n), or concurrency=n for one step"
    ),
    **dict.fromkeys(("concurrency", "rate"), "it with the step that waits, as in map(func, concurrency=n)"),
    **dict.fromkeys(("prefer", "require"), "map(func, concurrency=n) for calls that wait"),
    **dict.fromkeys(("backend", "scheduler", "address"), "connect(...), which says where it runs"),
    **dict.fromkeys(("errors", "error", "ignore_errors", "skip_errors"), 'on_error="skip", or a function'),
    **dict.fromkeys(("retry", "max_retries", "tries"), "retries=n"),
    **dict.fromkeys(("verbose", "show_progress", "desc"), "progress=True, or progress=a text"),
    **dict.fromkeys(("initializer", "initargs"), "@per_worker, which makes an object once in each worker"),
    **dict.fromkeys(("ordered", "preserve_order", "unordered"), "unordered(), a method of the collection"),
    **dict.fromkeys(("cache", "memory", "resume"), "checkpoint=folder, or persist(), a method"),
}
# What pandas and `open` have, for what reads files.
_OF_FILES = {
    **dict.fromkeys(("sep", "delim", "delim_whitespace"), "delimiter="),
    **dict.fromkeys(("usecols", "names"), "columns="),
    **dict.fromkeys(("dtype", "converters", "parse_dates"), "map(func) behind it: values are texts"),
    **dict.fromkeys(("index_col", "index"), "enumerate() behind it: rows have no index"),
    **dict.fromkeys(("nrows", "limit", "n_rows"), "take(n) behind it"),
    **dict.fromkeys(("skiprows", "skip_rows"), "skip(n) behind it"),
    **dict.fromkeys(("iterator", "low_memory"), "nothing: rows are read as they are needed"),
    **dict.fromkeys(("lines", "orient"), "read_files(path), where one value is a whole file"),
    "mode": "read_files(path), which gives bytes",
    "quotes": "quotechar=",
    "newline": "linedelimiter=",
    "recursive": "a pattern with `**`, as in 'folder/**/*.txt'",
    **dict.fromkeys(("filters", "filter"), "filter(predicate) behind it"),
}
_OF_CONNECT = {
    **dict.fromkeys(("address", "scheduler", "url", "host", "cluster", "client"), "it without a name"),
    **dict.fromkeys(("cores", "n_cores"), "n_workers=n"),
    **dict.fromkeys(("memory", "mem", "max_memory"), 'memory_limit="4 GiB"'),
}
# What pandas, the csv module and `open` have, for what writes files.
_OF_WRITING = {
    **dict.fromkeys(
        ("sep", "delimiter", "dialect", "quoting", "quotechar"), "write_text(path), of lines that map() makes"
    ),
    **dict.fromkeys(("index", "index_label"), "nothing: rows have no index"),
    **dict.fromkeys(("force", "exist_ok", "replace", "mode"), "overwrite=True, or another path"),
    **dict.fromkeys(("lines", "orient"), "nothing: each row is a line"),
    **dict.fromkeys(("fieldnames", "usecols"), "columns="),
}
_OF_PARALLEL = ("partition_size", "buffersize", "client", "name", "progress", "checkpoint", "retry_failed")
# Steps whose function says what an element is found, counted or sorted by.
_OF_KEYS = frozenset(
    ("count_by", "group_by", "fold_by", "distinct", "sorted", "join", "min", "max", "nlargest", "nsmallest")
)

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
    if name in _CLOSES:
        return f"{message}: write {'close()' if what == 'a connection' else _NOT_TO_CLOSE}"
    if name in COLLECTION:
        return f"{message}: write parallel(source).{name}(...)"
    return f"{message}: write parallel(source), and then {_METHODS[name]}" if name in _METHODS else message


def no_setting(method: str, name: str, known: Sequence[str]) -> str:
    """Return what the message for a setting that a step does not have says to write."""
    close = difflib.get_close_matches(name, known, 1, 0.7)
    if method == "map_batches" and name in ("batch_size", "chunksize", "chunk_size"):
        instead = "size=n"
    elif name in _OF_PARALLEL:
        instead = f"parallel(..., {name}=...)"
    elif (instead := _SETTINGS.get(name, "")) == _SIZE:
        instead = f"parallel(..., {_SIZE})"
    elif not instead:
        instead = "".join(f"{match}=" for match in close)
    return f": write {instead}" if instead else f", only {', '.join(known)}"


def no_function(method: str, given: object) -> str:
    """Return what ends the message for what is no function; nothing if there is no telling what was meant."""
    if method in ("fold", "reduce"):  # whose initial value may be text
        return "; the function comes first"
    if isinstance(given, str) or (method in _OF_KEYS and type(given) is int):
        return f"; for the value at a key write operator.itemgetter({short_repr(given)})"
    if method == "sorted" and isinstance(given, bool):
        return f"; write sorted(reverse={given})"
    return "; other comes first, and then key" if method == "join" else ""


def no_mapping(row: object) -> str:
    """Return what ends the message for an element that is no row: how it becomes one, or several."""
    if isinstance(row, type):
        return ": a class is no row, and what a call of it returns may be one"
    if dataclasses.is_dataclass(row):
        return ": use map(dataclasses.asdict) before it"
    if callable(getattr(row, "iterrows", None)):  # of pandas
        return ': use flatmap(lambda frame: frame.to_dict("records")) before it'
    if callable(getattr(row, "to_pylist", None)) and hasattr(row, "schema"):  # of pyarrow
        return ": use flatmap(lambda table: table.to_pylist()) before it"
    for name in ("_asdict", "to_dict", "model_dump"):  # a named tuple, a pandas Series, a pydantic model
        if callable(getattr(row, name, None)):
            return f": use map(lambda row: row.{name}()) before it"
    if isinstance(row, list | tuple):
        return ": use map(lambda row: dict(zip(names, row))) before it"
    return ': make one of it before, as in map(lambda value: {"value": value})'


def wrong_arguments(
    function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]
) -> str | None:
    """Return the message for a call with arguments that a function does not take; None for Python's own."""
    parameters = inspect.signature(function).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind != parameter.POSITIONAL_ONLY]
    call = f"{function.__name__}()"
    for name in named if not any(p.kind == p.VAR_KEYWORD for p in parameters) else ():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.7)
            own_words = _OF_CONNECT if function.__name__ == "connect" else {}
            own_words = _OF_WRITING if function.__name__.startswith("write_") else own_words
            instead = own_words.get(name) or _SETTINGS.get(name) or "".join(f"{match}=" for match in close)
            if "initial" in known and name == "initializer":  # of a fold, and not of a Pool
                instead = "initial="
            own = ", ".join(each for each in known if each != "self")
            said = f"write {instead}" if instead else f"it takes {own or 'nothing'}"
            return f"{call} has no {name}=: {said}"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional[len(arguments) :] if p.default is p.empty and p.name not in named]
    if needed:
        lacks, shown = " and ".join(p.name for p in needed), ", ".join(_shown(p) for p in positional)
        return f"{call} needs {lacks}: write {function.__name__}({shown.removeprefix('self, ')})"
    if len(arguments) <= len(positional) or any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return None
    taken, methods = len(positional), bool(positional) and positional[0].name == "self"
    takes, given = taken - methods, len(arguments) - methods
    message = f"{call} takes {takes} positional argument{'s' * (takes != 1)}, and got {given}"
    if function.__name__ == "parallel":
        if any(callable(given) and not isinstance(given, Iterable) for given in arguments):
            return f"{message}: write parallel(source).map(func)"
        return f"{message}: one source, as in parallel(zip(xs, ys)) or parallel(xs).chain(ys)"
    if takes == 1 and methods and any(p.name in ("func", "predicate") for p in positional):
        return (
            f"{message}: for a function of several arguments write zip(*others).starmap(func), or "
            "functools.partial(func, ...) for the same ones each time"
        )
    if function.__name__ == "count":
        predicate = callable(arguments[-1])
        return f"{message}: write {'filter(predicate).count()' if predicate else 'count_by()[element]'}"
    named_only = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    said = f"name the others, of {', '.join(named_only)}" if named_only else "leave out the rest"
    if not named_only and any(p.kind == p.VAR_KEYWORD for p in parameters):
        said = "settings are given by name, as in retries=3"
    return f"{message}: {said}"


def _shown(parameter: inspect.Parameter) -> str:
    """Return a parameter as help() shows it, but for its type."""
    if parameter.default is parameter.empty:
        return parameter.name
    if parameter.default is UNSET:
        return f"[{parameter.name}]"
    return f"{parameter.name}={parameter.default!r}"


def no_setting_of_files(name: str, known: Mapping[str, Any]) -> str:
    """Return what ends the message for a setting that what reads files does not have."""
    close = difflib.get_close_matches(name, known, 1, 0.7)
    instead = _OF_FILES.get(name) or _SETTINGS.get(name) or "".join(f"{match}=" for match in close)
    if instead.endswith("=") and instead[:-1] not in known:
        instead = f"read_csv(path, {instead}...)"
    return f": write {instead}" if instead else ""


def instead_of(element: object) -> str:
    """Return what is to be passed instead of an element that cannot be pickled."""
    if inspect.iscoroutine(element):
        return ": pass what it was called with, and map(func) of the `async def` function"
    if inspect.isgenerator(element):
        return ": pass a list of what it gives, or what its function was called with"
    needed = "what the function needs of it, as in parallel(x.name for x in source)"
    return f": pass {'its path, and have the function open it' if isinstance(element, io.IOBase) else needed}"
