"""Sources: what makes a collection. `parallel` takes any iterable, `read_text` the lines of files."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from parcoll.chain.policy import OnError, RetryOn
from parcoll.evaluation.plan import Node
from parcoll.evaluation.run import Options
from parcoll.evaluation.source import source_of
from parcoll.front import arguments
from parcoll.front.collection import ParallelGen
from parcoll.text import describe, short_repr
from parcoll.world import handlers

if TYPE_CHECKING:
    from dask.bag import Bag
    from distributed import Client

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Path = str | os.PathLike[str]

# dask's reader of blocks gets these wrong: "" cuts within lines, the others double the "\r" of "\r\n".
_NOT_FOR_BLOCKS = ("", "\r", "\r\n")


class Settings(TypedDict, total=False):
    """What `parallel` may be told beside its source; its docstring explains each setting."""

    partition_size: int | Literal["auto"]
    buffersize: int | None
    client: Client | None
    name: str | None
    progress: bool | str | None
    on_error: OnError
    retries: int
    retry_on: RetryOn
    timeout: float | None
    checkpoint: str | os.PathLike[str] | None
    retry_failed: bool


@overload
def parallel(source: Mapping[K, V], **settings: Unpack[Settings]) -> ParallelGen[tuple[K, V]]: ...
@overload
def parallel(source: Iterable[T], **settings: Unpack[Settings]) -> ParallelGen[T]: ...
@overload
def parallel(source: Callable[[], Iterable[T]], **settings: Unpack[Settings]) -> ParallelGen[T]: ...
@overload
def parallel(source: Bag, **settings: Unpack[Settings]) -> ParallelGen[Any]: ...
@handlers.reaching
def parallel(
    source: Any,
    *,
    partition_size: int | Literal["auto"] = "auto",
    buffersize: int | None = None,
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
) -> ParallelGen[Any]:
    """Return a lazy collection of the source's elements. Reads, starts and sends nothing.

    Each evaluation reads the source from its start, in the thread that evaluates and in order, and at most
    some partitions ahead of what was consumed: about four for each worker thread. So a source may be endless,
    but it must not wait for the result of an element that it gave just before.

    Args:
        source: Any iterable; a mapping gives its pairs, a string its characters. An iterator or a generator
            serves one evaluation, and stays open afterwards. A function without arguments that returns an
            iterator is called anew for each evaluation; unless it is a generator function it is called once
            now, to see that it does. The partitions of a `dask.bag.Bag` stay where they are.
        partition_size: How many elements go to a worker together. "auto" starts with one, and aims at some
            tenths of a second of work and a few MiB.
        buffersize: How many elements of the source may have been read whose results were not taken yet, as in
            Python's `Executor.map`. None bounds it by time: what keeps all workers busy for some seconds.
            Partitions get smaller with it; below two elements for each worker thread, workers wait.
        client: A `distributed.Client` to run on, instead of the one that `connect` or dask would give.
        name: What the dashboard calls the tasks and the pipeline.
        progress: True shows a progress bar, also in a log file; a text shows one with this label. None does
            as `parcoll.progress` says, which is off until it is called.
        on_error: What becomes of an element for which the function of a step raises. "raise" ends the
            evaluation with the exception. "skip" leaves the element out. A function is called on the worker
            with an `ElementError`, and what it returns takes the place of the element. `stats` counts the
            failed elements, and `errors` lists them.
        retries: How often a function is called again with an element for which it raised: after 0.1 s, 0.2 s
            and so on up to 10 s, less a random part of at most half. The worker waits.
        retry_on: The exceptions that are worth it: a subclass of Exception, a tuple or union of them, or a
            function that gets the exception and returns whether to try again.
        timeout: Seconds that one call may take; None for no limit. A call that takes longer is stopped,
            whatever it does, with the threads and processes that it has started. Its element has failed with
            an `ElementTimeoutError`, and no other element is lost. Functions then run in processes beside the
            workers, which takes a few per cent longer for calls of 0.1 ms. `connect("inline")` has no
            timeouts.
        checkpoint: A folder where results are kept: a path, or any URL that fsspec knows
            ("s3://bucket/run-7"). The consumer gets results once they are on the disk. The same script
            started again, whatever ended it, gives the saved results first and runs only the elements that
            have none. It reads the source from its start and compares its elements: another chain or source
            raises `CheckpointError`, and so does a full disk. A source that has grown at its end is the same
            one: its new elements run. It is for all calls but `foreach` and `persist`, and not for bags.
            Results come up to 0.1 s later, in long runs up to 2 s. The folder is yours to delete. It holds
            pickles: whoever can write to it can run code as you. `checkpoint_info` says what it has.
        retry_failed: True runs again what had failed in earlier runs with this `checkpoint`, and was left out
            or replaced by `on_error`, and only that. The results come in their places, and take the places of
            the old ones in the folder. What fails again is an error again.

    `on_error`, `retries`, `retry_on` and `timeout` hold for every step that was not told otherwise. They do
    not hold for the source, for the function of `reduce` or `fold`, or for what is no `Exception`, as
    KeyboardInterrupt and SystemExit: these always end the evaluation. But `timeout` also stops the functions
    of `reduce` and `fold`, which ends the evaluation; the one call `combine(initial, initial)` of `fold` is
    made in this process, where nothing is stopped.

    Raises TypeError for a source that is none of these, and TypeError or ValueError for a wrong setting.

    >>> list(parallel([1, 2, 3]).map(lambda x: x + 1))
    [2, 3, 4]
    >>> list(parallel(["1", "x", "3"], on_error="skip").map(int))
    [1, 3]
    """
    options = Options(
        arguments.partition_size(partition_size),
        arguments.client(client),
        arguments.name(name),
        buffersize=arguments.buffersize(buffersize),
        progress=arguments.progress(progress),
        policy=arguments.policy(on_error, retries, retry_on, timeout),
        checkpoint=arguments.checkpoint(checkpoint),
        retry_failed=arguments.retry_failed(retry_failed, checkpoint),
    )
    if _is_bag(source) and options.checkpoint is not None:
        raise TypeError(
            f"checkpoint= needs a source that is read here, so that its elements can be compared: {source!r} "
            "is a dask bag, whose partitions are read by the workers"
        )
    if _is_bag(source) and options.buffersize is not None:
        raise TypeError(
            f"buffersize= needs a source that is read here: {source!r} is a dask bag, whose partitions are "
            "read by the workers"
        )
    return ParallelGen(Node(source if _is_bag(source) else source_of(source)), options)


def _is_bag(source: Any) -> bool:
    # A bag cannot exist before its class does; another thread may be importing the module.
    kind = getattr(sys.modules.get("dask.bag"), "Bag", None)
    return kind is not None and isinstance(source, kind)


@handlers.reaching
def read_text(
    urlpath: Path | Sequence[Path],
    *,
    blocksize: int | str | None = None,
    compression: str | None = "infer",
    encoding: str = "utf-8",
    errors: str = "strict",
    linedelimiter: str | None = None,
    files_per_partition: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
) -> ParallelGen[str]:
    """Return a lazy collection of the lines of text files, which the workers read.

    This call lists the files that a glob means and, with `blocksize`, asks for their sizes. They are read by
    an evaluation, on the workers: so they must be on a filesystem that these share, or at a URL. The order is
    that of the files, those of a glob sorted by name, and of the lines in them.

    A worker thread holds a partition as a list of all its lines while it works on it, and one or two more
    that are read ahead. So cut large files with `blocksize`.

    Args:
        urlpath: A path, a glob, any URL that fsspec knows (`"s3://bucket/*.txt"`), or a list of them.
        blocksize: Cuts files into partitions of about so many bytes, at ends of lines: a number, or a text
            like "64 MiB". None makes each file one partition.
        compression: "infer" goes by the names of the files; None means none. Compressed files cannot be cut.
        encoding: The encoding of the files, as for `open`.
        errors: What to do with bytes that cannot be decoded, as for `open`.
        linedelimiter: None ends a line at `\\n`, `\\r\\n` or `\\r`, and gives each of them as `\\n`. Any
            other text ends a line where it stands, and nothing else does. "" ends lines as None does, and
            leaves their ends as they are. "", `\\r` and `\\r\\n` cannot be combined with `blocksize`. Lines
            keep their ends; the last line may have none.
        files_per_partition: Puts so many files into one partition; not together with `blocksize`.
        storage_options: What fsspec's filesystem takes, as a mapping.
        client: As for `parallel`, and so are `name` and `progress`.

    Raises FileNotFoundError if no file matches, and ValueError, TypeError or LookupError for a wrong
    argument. If a worker cannot read a file, the evaluation raises the error.

    >>> import codecs
    >>> from parcoll import connect, read_text
    >>> words = read_text(codecs.__file__, blocksize="16 kiB").flatmap(str.split)
    >>> with connect("inline"):
    ...     words.first(), words.filter(lambda word: word == "codecs").count() > 0
    ('\"\"\"', True)
    """
    _check_paths(urlpath)
    _check_known("encoding", encoding, codecs.lookup)
    _check_known("errors", errors, codecs.lookup_error)
    _check_compression(compression)
    if linedelimiter is not None and not isinstance(linedelimiter, str):
        raise TypeError(f"linedelimiter must be a string or None, got {describe(linedelimiter)}")
    if storage_options is not None:
        _check_options(storage_options)
    if blocksize is not None and files_per_partition is not None:
        raise ValueError("read_text() takes blocksize or files_per_partition, not both")
    if files_per_partition is not None:
        files_per_partition = arguments.whole_number(
            files_per_partition, "files_per_partition must be a whole number"
        )
    if blocksize is not None:
        blocksize = _bytes(blocksize)
        _check_cut(linedelimiter, encoding)
    settings = {
        "compression": compression,
        "encoding": encoding,
        "errors": errors,
        "linedelimiter": linedelimiter,
        "storage_options": dict(storage_options or {}),
    }
    bag = _bag(urlpath, blocksize, files_per_partition, settings)
    if linedelimiter not in (None, "\n", *_NOT_FOR_BLOCKS):
        bag = bag.filter(len)  # the reader gives an empty line behind a delimiter that ends the file
    return parallel(bag, client=client, name=name, progress=progress)


def _bag(urlpath: Any, blocksize: int | None, files_per_partition: int | None, settings: Any) -> Any:
    import dask.bag

    try:
        return dask.bag.read_text(
            urlpath, blocksize=blocksize, files_per_partition=files_per_partition, **settings
        )
    except ValueError as error:
        if error.args[0] == "No files found":
            if blocksize is not None:  # the files are all empty, and empty files make no blocks
                return _bag(urlpath, None, None, settings)
            raise _not_found(urlpath) from None
        if "chunked reads on compressed files" in str(error):
            raise ValueError(
                f"read_text() cannot cut compressed files, so leave blocksize out: {short_repr(urlpath)}"
            ) from None
        raise
    except OSError as error:
        if "resolved to no files" in str(error):
            raise _not_found(urlpath) from None
        raise


def _not_found(urlpath: Any) -> FileNotFoundError:
    return FileNotFoundError(f"read_text() finds no file that matches {short_repr(urlpath)}")


def _check_paths(given: Any) -> None:
    paths = given if isinstance(given, (list, tuple)) else [given]
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"read_text() needs a path, a URL or a list of them, got {describe(path)}")
    if not paths:
        raise ValueError("read_text() needs at least one path, got an empty list")


def _check_known(name: str, given: Any, lookup: Callable[[str], object]) -> None:
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a string, got {describe(given)}")
    try:
        lookup(given)
    except (LookupError, ValueError):
        raise LookupError(f"{name}={short_repr(given)} is not one that Python knows") from None


def _check_compression(given: Any) -> None:
    if given is None or (isinstance(given, str) and given == "infer"):
        return
    from fsspec.compression import available_compressions

    known = [name for name in available_compressions() if name is not None]
    if not isinstance(given, str) or given not in known:
        kind = ValueError if isinstance(given, str) else TypeError
        names = ", ".join(sorted(known))
        raise kind(f'compression must be "infer", None or one of {names}; got {describe(given)}')


def _check_options(given: Any) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"storage_options must be a mapping with strings as keys, got {describe(given)}")


def _bytes(given: Any) -> int:
    wanted = 'blocksize must be a number of bytes, or a text like "64 MiB"'
    if not isinstance(given, str):
        return arguments.whole_number(given, wanted)
    from dask.utils import parse_bytes

    try:
        number = int(parse_bytes(given))
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise ValueError(f"{wanted} from 1 up, got {short_repr(given)}")
    return number


def _check_cut(delimiter: str | None, encoding: str) -> None:
    """Fail if files cannot be cut at ends of lines: they are cut before they are decoded."""
    if delimiter in _NOT_FOR_BLOCKS:
        raise ValueError(f"with blocksize, linedelimiter cannot be {short_repr(delimiter)}: use None")
    end = "\n" if delimiter is None else delimiter
    if any(end.startswith(end[-n:]) for n in range(1, len(end))):
        raise ValueError(
            f"with blocksize, linedelimiter must not overlap itself, as {short_repr(delimiter)} does: leave "
            "blocksize out"
        )
    try:
        plain = end.encode().decode(encoding) == end
    except UnicodeError:
        plain = False
    if not plain:
        raise ValueError(
            f"with blocksize, encoding cannot be {encoding!r}: files are cut at the bytes {end.encode()!r}, "
            "which do not end a line there; leave blocksize out"
        )
