"""First mistakes: what other libraries have is not made here, and the message says what to write instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import parcoll
from parcoll import ParallelGen, connect, parallel

numbers: Any = parallel([1, 2, 3])
given: Any = parcoll  # whose functions are called as no type checker lets one

MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "index": (lambda: numbers[0], TypeError, r"first\(\)"),
    "slice": (lambda: numbers[:3], TypeError, r"take\(n\)"),
    "two iterables": (lambda: numbers.map(pow, [1]), TypeError, r"zip\(\*others\)\.starmap"),
    "an argument of the function": (lambda: numbers.map(int, base=2), TypeError, "functools.partial"),
    "of filter": (lambda: numbers.filter(bool, 1), TypeError, "functools.partial"),
    "of an alias": (lambda: numbers.flat_map(str, 1, 2), TypeError, "takes 1 positional argument, and got 3"),
    "n_workers": (lambda: given.parallel([1], n_workers=2), TypeError, r"connect\(n_workers=n\)"),
    "chunksize": (lambda: given.parallel([1], chunksize=2), TypeError, "partition_size=n"),
    "close to a setting": (lambda: given.parallel([1], on_eror="skip"), TypeError, "write on_error="),
    "two sources": (lambda: given.parallel([1], [2]), TypeError, r"chain\(ys\)"),
    "processes": (lambda: given.connect(processes=2), TypeError, r"connect\(n_workers=n\)"),
    "key of a sum": (lambda: numbers.sum(key=len), TypeError, "it takes start"),
    "collect": (lambda: numbers.collect(), AttributeError, r"list\(collection\)"),
    "groupby": (lambda: numbers.groupby(len), AttributeError, "group_by"),
    "flatMap": (lambda: numbers.flatMap(len), AttributeError, "flatmap"),
    "imap_unordered": (lambda: numbers.imap_unordered(len), AttributeError, r"unordered\(\)"),
    "misspelled": (lambda: numbers.redcue(len), AttributeError, "write reduce"),
    "nothing of the kind": (lambda: numbers.foo, AttributeError, "no attribute 'foo'$"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_the_message_says_what_to_write(name: str) -> None:
    mistake, kind, said = MISTAKES[name]
    with pytest.raises(kind, match=said) as raised:
        mistake()
    assert "\n" not in str(raised.value)


def test_the_methods_are_not_made_by_that() -> None:
    assert [name for name in ("collect", "groupby", "flatMap", "__len__") if hasattr(numbers, name)] == []
    assert bool(parallel([])), "as ever: nothing is evaluated"
    assert isinstance(copy.copy(numbers), ParallelGen)
    assert isinstance(pickle.loads(cloudpickle.dumps(parallel([1]))), ParallelGen)


def test_what_is_wrong_within_is_told_as_it_is() -> None:
    """A TypeError of a function, and an AttributeError of a property."""

    class Broken(ParallelGen[int]):
        @property
        def missing(self) -> Any:
            return numbers._node.is_not_there

    def function(x: int, y: int) -> int:
        return x + y

    with connect("inline"):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
            list(parallel([1]).map(function))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
            list(parallel([1]).map(lambda: 1))  # type: ignore[arg-type, misc]
        broken = Broken(numbers._node, numbers._options)
        with pytest.raises(AttributeError, match="is_not_there"):
            broken.missing  # noqa: B018
