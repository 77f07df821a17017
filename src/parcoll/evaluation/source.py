"""Source: what a chain reads, made from what `parallel` was given. Each evaluation gets a reader from it."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from parcoll.errors import SourceConsumedError
from parcoll.evaluation.reader import Reader, reader_of
from parcoll.text import counted, describe, short_repr

if TYPE_CHECKING:
    from parcoll.files.descriptors import Descriptor
    from parcoll.files.listing import Listing

ALLOWED = "an iterable, an iterator, a function without arguments that returns an iterator, or a dask bag"
SIZED = (list, tuple, str, bytes, dict, set, frozenset)
MAX_PATH = 4096  # characters: a longer text is not looked for among the files


class Source:
    """What a chain reads. Every evaluation opens it anew, and all chains built on it share it."""

    @property
    def one_pass(self) -> bool:
        """Whether it can be read once."""
        return False

    def __init__(
        self, open_stream: Callable[[], Iterable[Any]], description: str, listed: bool = False
    ) -> None:
        """`listed` says that the elements are in memory for as long as there is this."""
        self._open = open_stream
        self._description = description
        self.listed = listed

    def open(self) -> Reader:
        """Start reading from the first element."""
        return reader_of(self._open())

    def __call__(self) -> list[Any]:
        """Return all elements: how dask's own engines read the bag."""
        return list(self._open())

    def parts(self) -> list[list[Any]] | None:
        """Return the elements of each partition of the bag that stands for it; None if it has one."""
        return None

    def describe(self) -> str:
        """Return it as a user wrote it."""
        return f"parallel({self!r})"

    def __repr__(self) -> str:
        return self._description


class OnePassSource(Source):
    """An iterator. It can be read once; if it is opened again, it raises an error that says so."""

    @property
    def one_pass(self) -> bool:
        """Return True."""
        return True

    def __init__(self, iterator: Iterator[Any], description: str) -> None:
        super().__init__(lambda: iterator, description)
        self._consumed = False
        self._lock = threading.RLock()

    def open(self) -> Reader:
        """Start reading, the first time."""
        with self._lock:
            if self._consumed:
                raise SourceConsumedError(
                    f"{self} has been read by an earlier evaluation and gives its elements only once: "
                    "pass a list, or a function that returns a new iterator, to evaluate again"
                )
            self._consumed = True
        return super().open()

    def __call__(self) -> list[Any]:
        """Return all elements, once."""
        return self.open().read_all()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self} cannot be sent to another process: iterate the ParallelGen instead of its bag, or "
            "pass parallel() a list or a function that returns an iterator"
        )


class FilesSource(Source):
    """The descriptors of files, which a step behind it reads on the workers.

    The files as they were when the collection was made serve the first evaluation. Each one after it lists
    them anew.
    """

    def __init__(self, listing: Listing, call: str, together: int = 1, fresh: bool = True) -> None:
        super().__init__(self._next_listing, "")
        self._listing = listing
        self._call = call
        self._together = together  # descriptors of a partition of the bag
        self._fresh = fresh
        self._lock = threading.RLock()

    def _next_listing(self) -> list[Descriptor]:
        with self._lock:
            if not self._fresh:
                self._listing = self._listing.again()
            self._fresh = False
            return self._listing.descriptors()

    def open(self) -> Reader:
        """List the files, and say how many bytes they have."""
        with self._lock:
            reader = super().open()
            reader.ends = self._listing.ends()
        return reader

    def parts(self) -> list[list[Any]]:
        """Return the descriptors of each partition of the bag."""
        every, size = self._listing.descriptors(), self._together
        return [every[at : at + size] for at in range(0, len(every), size)] or [[]]

    def describe(self) -> str:
        """Return the call."""
        return self._call

    def __repr__(self) -> str:
        return repr(self._listing)

    def __reduce__(self) -> Any:
        return FilesSource, (self._listing, self._call, self._together, self._fresh)


def source_of(given: Any, method: str = "parallel") -> Source:
    """Check what `parallel`, or another method, was given. Reads nothing."""
    if isinstance(given, FilesSource):
        return given
    _refuse_what_cannot_be_meant(given, method)
    if isinstance(given, Mapping):
        return Source(given.items, _name(given))
    if isinstance(given, Iterator):
        return OnePassSource(given, _name(given))
    if _is_iterable(given):
        return Source(lambda: given, _name(given), listed=type(given) in (list, tuple))
    if callable(given) and not isinstance(given, type):
        return _source_of_function(given, method)
    number = type(given) is int and method == "parallel"  # of elements, or of processes, as of a Pool
    instead = (
        f": write range({given}), or `with connect(n_workers={given}):`" if number else _instead_of(given)
    )
    raise TypeError(f"{method}() needs {ALLOWED}; got {describe(given)}{instead}")


def _instead_of(given: Any) -> str:
    """Return what ends the message for what cannot be iterated, if there is telling what was meant."""
    if isinstance(given, os.PathLike):
        return ": read_text(path) gives the lines of a file, and read_files(path) whole files"
    if hasattr(type(given), "__aiter__"):
        return ": pass a list of what it gives, as [x async for x in ...]"
    return ""


def _is_iterable(given: Any) -> bool:
    if getattr(given, "ndim", None) == 0:  # a numpy scalar or array without dimensions
        return False
    if getattr(type(given), "__iter__", given) is None:  # it says itself that it cannot
        return False
    return isinstance(given, Iterable) or hasattr(type(given), "__getitem__")  # as iter() takes them


def _package_and_name(kind: type) -> tuple[str, str]:
    return kind.__module__.partition(".")[0], kind.__name__


# Types whose iteration gives what nobody wants to have mapped: what it gives, and what to pass instead.
_TABLES = {
    ("pandas", "DataFrame"): "column names: pass df.to_dict('records'), df.itertuples() or df['column']",
    ("polars", "DataFrame"): "columns: pass df.iter_rows() or df.to_dicts()",
    ("polars", "LazyFrame"): "nothing: pass df.collect().iter_rows()",
    ("pyarrow", "Table"): "nothing: pass table.to_pylist()",
    ("xarray", "Dataset"): "names of variables: pass what they hold",
    ("dask", "DataFrame"): "column names: pass df.to_bag(), or df.compute().itertuples()",
    ("dask_expr", "DataFrame"): "column names: pass df.to_bag(), or df.compute().itertuples()",
    ("dask", "Delayed"): "nothing that is computed: pass the result of its compute()",
    ("distributed", "Future"): "nothing: pass its result()",
    ("concurrent", "Future"): "nothing: pass its result()",
}


def _refuse_what_cannot_be_meant(given: Any, method: str) -> None:
    """Refuse tables and what is not computed yet; warn of a string that is the path of a file."""
    kind = type(given)
    if (why := _TABLES.get(_package_and_name(kind))) is not None:
        raise TypeError(f"{method}() got a {' '.join(_package_and_name(kind))}, which gives {why}")
    if kind in (list, tuple) and given:
        package, name = _package_and_name(type(given[0]))
        if (package, name) in _TABLES and name == "Future":
            raise TypeError(
                f"{method}() got a {kind.__name__} of {package} futures, whose results may not be there: "
                "pass client.gather(futures), or [future.result() for future in futures]"
            )
    if kind is str and 0 < len(given) < MAX_PATH and "\0" not in given and os.path.isfile(given):
        warnings.warn(
            f"{method}({short_repr(given)}) gives the characters of this text, which is the path of a file: "
            "read_text() gives the lines of the file",
            UserWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """Return how many calls lie between the caller of this and the script."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "parcoll":
        level, frame = level + 1, frame.f_back
    return level


def _source_of_function(func: Callable[..., Any], method: str) -> Source:
    try:
        inspect.signature(func).bind()
    except TypeError as error:
        raise TypeError(
            f"{method}() needs {ALLOWED}; {describe(func)} cannot be called without arguments ({error})"
        ) from None
    except ValueError:
        pass  # a builtin without a signature: the call will show
    bare = func
    while isinstance(bare, functools.partial):
        bare = bare.func
    if inspect.isgeneratorfunction(bare):
        return Source(func, f"{_name(func)}()")
    return _FunctionSource(func)


class _FunctionSource(Source):
    """A function that is no generator function, so that only a call tells whether it returns an iterator.

    It is called once at the start, and what it returned serves the first evaluation. So it is still called
    once for each evaluation.
    """

    def __init__(self, func: Callable[[], Any]) -> None:
        super().__init__(self._next_stream, f"{_name(func)}()")
        self._func = func
        self._first: list[Iterable[Any]] = [self._call()]
        self._lock = threading.RLock()

    def _call(self) -> Iterable[Any]:
        stream = self._func()
        if not _is_iterable(stream):
            returned = f"{describe(stream)}{_instead_of(stream)}"
            raise TypeError(f"parallel() needs {ALLOWED}; {_name(self._func)}() returned {returned}")
        return stream  # type: ignore[no-any-return]

    def _next_stream(self) -> Iterable[Any]:
        with self._lock:
            if self._first:
                return self._first.pop()
        return self._call()

    def __reduce__(self) -> Any:
        return _FunctionSource, (self._func,)


def _name(given: Any) -> str:
    name = getattr(given, "__qualname__", None) or getattr(given, "__name__", None)
    if isinstance(name, str):
        return name.replace("<lambda>", "lambda")
    if type(given) is range:
        return repr(given)
    if type(given) in SIZED:  # others may have to read themselves to know their length
        return f"<{type(given).__name__} of {counted(len(given), 'element')}>"
    return f"<{type(given).__name__}>" if not isinstance(given, Iterator) else short_repr(given)
