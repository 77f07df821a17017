"""Batches: a step whose function gets several elements in one call.

A batch ends with its partition, or with the part of it that a worker runs. If the function raises, or has to
be stopped, it is called again with each element of the batch alone. So the policy of the step holds for
elements, as in any step.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from typing import Any, NoReturn

from parcoll.chain.failures import is_apart, makes_apart, stands_between
from parcoll.chain.marks import Marked
from parcoll.chain.policy import PLAIN, Policy
from parcoll.chain.steps import SKIP, Step
from parcoll.chain.timing import name_of
from parcoll.clock import time
from parcoll.text import describe, short_repr

FIRST = 16  # elements of the first batch of size "auto"
MOST = 65536  # elements of a batch of size "auto"
MOST_LEARNED = 64  # functions whose sizes are remembered, the last ones
SHORT, LONG = 0.05, 0.2  # seconds of a call: the next batch is twice as large, or half as large


_learned: dict[Hashable, int] = {}  # sizes "auto" that were good for a function, in this process


class _Results(list[Any]):
    """The results of one element, of which there may be any number."""


class MapBatches(Step):
    """One result for each element, of a function that gets many of them at once."""

    kind = "map_batches"
    holds = True

    def __init__(
        self,
        func: Callable[[Any], Any],
        policy: Policy = PLAIN,
        size: int | str = 1024,
        format: str = "list",
        flat: bool = False,
    ) -> None:
        super().__init__(func, policy)
        self.size = size
        self.format = format
        self.flat = flat
        self._auto: list[int] = []  # the size of the next batch, for all copies of this step in a process

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What it was given beside its function and policy."""
        return {"size": self.size, "format": self.format, "flat": self.flat}

    @property
    def one_for_one(self) -> bool:
        """Whether it is to return one result for each."""
        return not self.flat

    @property
    def least(self) -> int:  # type: ignore[override]
        """A whole batch."""
        return self.size if isinstance(self.size, int) else FIRST

    @property
    def call(self) -> Callable[..., Any]:
        """The function for one element. Where calls are noted, it has been wrapped already."""
        return self.func if isinstance(self.func, Marked) else self._alone

    @property
    def together(self) -> Callable[[list[Any]], Any]:
        """The function for a batch."""
        return self.__dict__.get("_noting", self._batch)  # type: ignore[no-any-return]

    @together.setter
    def together(self, noting: Callable[[list[Any]], Any]) -> None:
        self.__dict__["_noting"] = noting

    def _alone(self, element: Any) -> Any:
        results = self._batch([element])
        return _Results(results) if self.flat else results[0]

    def _batch(self, elements: list[Any]) -> list[Any]:
        """Return the results of the function for these elements."""
        assert self.func is not None
        into, back = FORMATS[self.format]
        made = self.func(into(elements))
        results = back(made)
        if results is None:
            unordered = not self.flat and isinstance(made, Set)
            if isinstance(made, (str, bytes, Mapping)) or unordered or not hasattr(type(made), "__iter__"):
                wanted = "an iterable of results"
                if not self.flat:
                    wanted = "one result for each, in a list, or any number of them with flat=True"
                _refuse(
                    f"{self.label} returned {describe(made)} for a batch of {_elements(len(elements))}: "
                    f"it must return {wanted}{_which(elements)}"
                )
            results = list(made)
        if len(results) != len(elements) and not self.flat:
            _refuse(
                f"{self.label} returned {len(results):,} result{'s' * (len(results) != 1)} for a batch of "
                f"{_elements(len(elements))}: it must return one for each, unless flat=True{_which(elements)}"
            )
        return results

    def stream(self, elements: Any, call: Callable[[Any], Any]) -> Iterator[Any]:
        """Give the results batch by batch."""
        while True:
            batch, positions = elements.take(self._next_size)
            if not batch:
                return
            started = time.perf_counter()
            results = self._together(batch)
            if results is None:
                yield from self._one_by_one(elements, batch, positions, call)
            else:
                self._learn(len(batch), time.perf_counter() - started)
                batch.clear()
                yield from results if self.flat or elements.last_step else _each(elements, positions, results)

    @property
    def _next_size(self) -> int:
        if isinstance(self.size, int):
            return self.size
        if not self._auto:
            self._auto.append(_learned.get(name_of([self]) or (), FIRST))
        return self._auto[0]

    def _together(self, batch: list[Any]) -> list[Any] | None:
        """Return the results of a batch; None if its elements have to be taken one by one."""
        if len(batch) == 1:  # with a policy, its call is the element's
            return None
        try:
            results: list[Any] = self.together(batch)
        except Exception as error:
            if is_apart(error) and (not self.policy.retries or _is_refusal(error)):
                raise
            return None
        return results

    def _one_by_one(
        self, elements: Any, batch: list[Any], positions: Sequence[int], call: Callable[[Any], Any]
    ) -> Iterator[Any]:
        started = time.perf_counter()
        for element, position in zip(batch, positions, strict=True):
            elements.back_to(position, element)
            result = call(element)
            if type(result) is _Results:
                yield from result
            elif result is not SKIP:
                yield result
        elements.back_to(None)
        self._learn(len(batch), time.perf_counter() - started)

    def _learn(self, size: int, seconds: float) -> None:
        """Have the next batch be larger or smaller, if its size is not fixed; also of later evaluations."""
        if not self._auto or SHORT <= seconds <= LONG or (seconds < SHORT and size < self._auto[0]):
            return
        self._auto[0] = min(2 * size, MOST) if seconds < SHORT else max(size // 2, 1)
        if (name := name_of([self])) is not None:
            _learned.pop(name, None)
            _learned[name] = self._auto[0]
            while len(_learned) > MOST_LEARNED:
                _learned.pop(next(iter(_learned)), None)


def _each(elements: Any, positions: Sequence[int], results: list[Any]) -> Iterator[Any]:
    """Give the results of a batch, each while its own element is the one under way."""
    for position, result in zip(positions, results, strict=True):
        elements.back_to(position)
        yield result
    elements.back_to(None)


def _refuse(message: str) -> NoReturn:
    """Raise what is wrong with the function itself, and not with an element."""
    raise ValueError(message)


def _is_refusal(error: Exception) -> bool:
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return frames is not None and frames.tb_frame.f_code is _refuse.__code__


def _elements(number: int) -> str:
    return f"{number:,} element{'s' * (number != 1)}"


def _which(elements: Sequence[Any]) -> str:
    """Return what tells the batch: a note names its last element, which need not be the cause."""
    return f"; the batch begins with {short_repr(elements[0])}" if len(elements) > 1 else ""


# Formats ------------------------------------------------------------------------------------------


def _module(name: str, format: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f'map_batches(..., format="{format}") needs {name} where its function runs, and it cannot be '
            f"imported there ({error}): install it, or leave format out to get lists"
        ) from error


def _copy(elements: list[Any]) -> list[Any]:
    return elements[:]  # the function may change it, and each element may have to be tried again


def _of_rows(elements: list[Any]) -> dict[str, list[Any]] | None:
    """Return the columns of rows that are dicts, in the order in which their names come; None for others."""
    if not elements or not all(isinstance(element, dict) for element in elements):
        return None
    names = dict.fromkeys(name for row in elements for name in row)
    return {name: [row.get(name) for row in elements] for name in names}


def _to_numpy(elements: list[Any]) -> Any:
    numpy = _module("numpy", "numpy")
    if all(isinstance(element, numpy.ndarray) for element in elements):
        return numpy.stack(elements)
    kinds = {type(element) for element in elements}
    numbers = (int, float, complex, numpy.number, numpy.bool_)
    plain = all(issubclass(kind, numbers) and kind is not numpy.timedelta64 for kind in kinds)
    alike = len(kinds) == 1 and issubclass(type(elements[0]), numpy.generic)
    if plain or alike or kinds in ({str}, {bytes}):
        made = numpy.asarray(elements)
        if made.ndim == 1 and not _would_lose(made, elements, numpy.integer):
            return made
    made = numpy.empty(len(elements), dtype=object)
    made[:] = elements
    return made


def _would_lose(made: Any, elements: list[Any], integer: Any) -> bool:
    """Tell whether the array has other elements: large integers as floats, texts without their last NULs."""
    if made.dtype.kind in "SU":
        return any(element[-1:] in ("\0", b"\0") for element in elements)
    whole = (element for element in elements if isinstance(element, (int, integer)))
    return made.dtype.kind in "fc" and any(abs(int(element)) > 2**53 for element in whole)


def _from_numpy(made: Any) -> list[Any] | None:
    numpy = _module("numpy", "numpy")
    if not isinstance(made, numpy.ndarray):
        return None
    if made.ndim == 1 and made.dtype.kind in "biufcUSO":
        return made.tolist()  # type: ignore[no-any-return]
    return list(made.copy()) if made.ndim else None  # rows show the array, which the function may use again


def _to_arrow(elements: list[Any]) -> Any:
    pyarrow = _module("pyarrow", "arrow")
    columns = _of_rows(elements)
    if columns == {}:  # and rows nevertheless
        return pyarrow.RecordBatch.from_struct_array(pyarrow.array(elements, pyarrow.struct([])))
    return pyarrow.array(elements) if columns is None else pyarrow.RecordBatch.from_pydict(columns)


def _from_arrow(made: Any) -> list[Any] | None:
    pyarrow = _module("pyarrow", "arrow")
    kinds = (pyarrow.Array, pyarrow.ChunkedArray, pyarrow.RecordBatch, pyarrow.Table)
    return made.to_pylist() if isinstance(made, kinds) else None


def _to_pandas(elements: list[Any]) -> Any:
    pandas = _module("pandas", "pandas")
    columns = _of_rows(elements)
    return pandas.Series(elements) if columns is None else pandas.DataFrame(elements)


def _from_pandas(made: Any) -> list[Any] | None:
    pandas = _module("pandas", "pandas")
    if isinstance(made, pandas.DataFrame):
        return made.to_dict("records")  # type: ignore[no-any-return]
    return made.tolist() if isinstance(made, (pandas.Series, pandas.Index)) else None


Into = Callable[[list[Any]], Any]
Back = Callable[[Any], list[Any] | None]  # None for what is no table or array of that package

FORMATS: dict[str, tuple[Into, Back]] = {
    "list": (_copy, lambda made: None),
    "numpy": (_to_numpy, _from_numpy),
    "arrow": (_to_arrow, _from_arrow),
    "pandas": (_to_pandas, _from_pandas),
}

makes_apart(_refuse.__code__)
makes_apart(_module.__code__)
stands_between(MapBatches.stream.__code__.co_filename)
