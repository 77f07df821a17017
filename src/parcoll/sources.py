"""Sources: what makes a collection. `parallel` takes any iterable, `read_text` the lines of files."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from parcoll import arguments
from parcoll.chain.policy import OnError, RetryOn
from parcoll.collection import ParallelGen
from parcoll.evaluation.plan import Node
from parcoll.evaluation.reader import source_of
from parcoll.evaluation.run import Options
from parcoll.text import describe, short_repr

if TYPE_CHECKING:
    from dask.bag import Bag
    from distributed import Client

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Path = str | os.PathLike[str]

# The reader of blocks gets these wrong: "" cuts within lines, the others double the "\r" of "\r\n".
_NOT_FOR_BLOCKS = ("", "\r", "\r\n")


class Settings(TypedDict, total=False):
    """What `parallel` may be told beside the source; its docstring says what each is."""

    partition_size: int | Literal["auto"]
    client: Client | None
    name: str | None
    progress: bool | str | None
    on_error: OnError
    retries: int
    retry_on: RetryOn
    timeout: float | None
    checkpoint: str | os.PathLike[str] | None


@overload
def parallel(source: Mapping[K, V], **settings: Unpack[Settings]) -> ParallelGen[tuple[K, V]]: ...
@overload
def parallel(source: Iterable[T], **settings: Unpack[Settings]) -> ParallelGen[T]: ...
@overload
def parallel(source: Callable[[], Iterable[T]], **settings: Unpack[Settings]) -> ParallelGen[T]: ...
@overload
def parallel(source: Bag, **settings: Unpack[Settings]) -> ParallelGen[Any]: ...
def parallel(
    source: Any,
    *,
    partition_size: int | Literal["auto"] = "auto",
    client: Client | None = None,
    name: str | None = None,
    progress: bool | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
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
    `name`: what the dashboard calls the tasks and the pipeline.
    `progress`: True, or a label, shows a progress bar, in a log file too; None does as
    `parcoll.progress` says, which is off until it is called.
    `on_error`: what becomes of an element for which a step's function raises. "raise" ends the
    evaluation with the exception; "skip" leaves the element out; a function is called with an
    `ElementError`, on the worker, and what it returns takes the element's place. What was left out is
    counted in `stats` and kept in `errors`.
    `retries`: how many times a function that raised is called again with the same element, after 0.1 s,
    0.2 s and so on, up to 10 s, of which a random part of up to a half is left out. The worker waits.
    `retry_on`: the exceptions for which it is: a class, several, or a function that gets the exception.
    `timeout`: seconds that one call of a step's function may take with one element. One that takes
    longer is stopped, whatever it does, with the threads and processes that it has started, and the
    element has failed with an `ElementTimeoutError`; no other element is lost. The functions then run
    in processes of their own beside the workers (a few per cent slower, where calls take 0.1 ms; in
    "inline" there is no timeout). `math.inf` in a step is none.
    These four hold for every step that does not say otherwise, and for steps only: what the source
    raises, or the function of `reduce` and `fold`, always ends the evaluation, and so does what is
    no `Exception`, as KeyboardInterrupt and SystemExit. `timeout` is also for the function of `reduce`
    and for those of `fold`, and ends the evaluation there; but `fold` calls `combine(initial, initial)`
    in this process, where nothing is stopped.
    `checkpoint`: a folder, as a path or any URL that fsspec knows ("s3://bucket/run-7"), where results are
    kept. What the consumer gets is on the disk before; the same script started again, whatever ended it,
    gives the saved results first and runs only what has none. The source is read from its start, and its
    elements are compared; another chain or source raises `CheckpointError`, and so does a full disk. It is
    for iteration, `take`, `first` and `count`, and not for bags. The folder is yours to delete. What is in
    it are pickles: who can write there can run code as you. Results come up to 0.1 s later, in long runs 2 s.

    Raises TypeError for a source that is none of these, TypeError or ValueError for a wrong setting.

    >>> list(parallel([1, 2, 3]).map(lambda x: x + 1))
    [2, 3, 4]
    >>> list(parallel(["1", "x", "3"], on_error="skip").map(int))
    [1, 3]
    """
    options = Options(
        arguments.partition_size(partition_size),
        arguments.client(client),
        arguments.name(name),
        progress=arguments.progress(progress),
        policy=arguments.policy(on_error, retries, retry_on, timeout),
        checkpoint=arguments.checkpoint(checkpoint),
    )
    if _is_bag(source) and options.checkpoint is not None:
        raise TypeError(
            f"checkpoint= needs a source that is read here, so that its elements can be compared: {source!r} "
            "is a dask bag, whose partitions are read by the workers"
        )
    return ParallelGen(Node(source if _is_bag(source) else source_of(source)), options)


def _is_bag(source: Any) -> bool:
    # A bag cannot exist before its class does; another thread may be importing the module.
    kind = getattr(sys.modules.get("dask.bag"), "Bag", None)
    return kind is not None and isinstance(source, kind)


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

    Nothing is read before an evaluation, and then by the workers, so the files must be where they can
    open them: on a filesystem that they share, or at a URL. This call itself lists the files that a
    glob means, and with `blocksize` asks for the size of each. The order is that of the files, those of
    a glob sorted by name, and of their lines.

    `urlpath`: a path, a glob, any URL that fsspec knows (`"s3://bucket/*.txt"`), or a list of them.
    `blocksize`: cuts files into partitions of about so many bytes (`"64 MiB"`), at ends of lines;
    without it a file is one partition. `files_per_partition` puts that many files into one instead.
    `compression`: "infer" goes by the files' names; compressed files cannot be cut.
    `encoding`, `errors`: as for `open`.
    `linedelimiter`: None ends a line at `\\n`, `\\r\\n` or `\\r`, and gives each of them as `\\n`; any
    other text ends a line where it stands, and nothing else does. Lines keep their ends, and the last
    one may have none. "" ends lines as None does and leaves their ends as they are; "", `\\r` and
    `\\r\\n` cannot be had with `blocksize`.
    `storage_options`: what fsspec's filesystem takes.
    `client`, `name`, `progress`: as for `parallel`.

    A worker thread holds a partition as a list of all its lines while it works on it, and one or two
    more that are read ahead: use `blocksize` for files that are not small.

    Raises FileNotFoundError where no file matches, ValueError, TypeError or LookupError for an argument
    that cannot be meant. What a worker fails to read is raised by the evaluation.

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
            if blocksize is not None:  # they are all empty, and make no blocks
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
        raise LookupError(f"{name}={short_repr(given)} is none that Python knows") from None


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
    """Fail where files cannot be cut at ends of lines, which is done before they are decoded."""
    if delimiter in _NOT_FOR_BLOCKS:
        raise ValueError(f"with blocksize, linedelimiter cannot be {short_repr(delimiter)}: use None")
    end = "\n" if delimiter is None else delimiter
    if any(end.startswith(end[-n:]) for n in range(1, len(end))):
        raise ValueError(
            f"with blocksize, linedelimiter must not overlap itself as {short_repr(delimiter)} does"
        )
    try:
        plain = end.encode().decode(encoding) == end
    except UnicodeError:
        plain = False
    if not plain:
        raise ValueError(
            f"with blocksize, files cannot be in {encoding!r}: its ends of lines are not the bytes "
            f"{end.encode()!r}, at which they are cut"
        )
