"""Whatever is passed for an argument: it is meant, or one sentence says at once why it cannot be.

One argument of a call at a time gets any value, the others are right. What is raised is TypeError, ValueError
or another error that the docstring names, quotes the value and is one line; or it is what the value's own
methods raised. Nothing is started, and what is accepted can be evaluated.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from parcoll import (
    ConnectError,
    ParallelGen,
    ParcollError,
    SerializationError,
    connect,
    parallel,
    progress,
    read_archive,
    read_csv,
    read_files,
    read_jsonl,
    read_text,
)
from parcoll.cluster import clients
from parcoll.connecting import current
from parcoll.local import host
from parcoll.text import short_repr

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


class OwnError(Exception):
    """What the methods of a user's object raise."""


METHODS = [
    *("__repr__", "__str__", "__eq__", "__ne__", "__hash__", "__len__", "__iter__", "__bool__", "__index__"),
    *("__int__", "__float__", "__call__", "__fspath__", "__getattr__", "__getitem__", "__next__", "__lt__"),
    *("__gt__", "__le__", "__ge__", "__contains__", "__reduce__", "__dask_tokenize__", "__instancecheck__"),
]


def hostile(methods: frozenset[str]) -> Any:
    """Return an object all these methods of which raise."""

    def raising(self: Any, *_: Any) -> Any:
        raise OwnError("a method of the user's own object")

    return type("Hostile", (), dict.fromkeys(methods, raising))()


class Text(str):
    """A string of a class that a user made."""


class Number(int):
    """A number of a class that a user made."""


def forever() -> Iterator[int]:
    while True:
        yield 1


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([10**30, -(10**30), 2**31, 2**63, 2**64, 10**400]),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=20),
    st.sampled_from(["auto", "skip", "raise", "inline", "infer", "utf-8", "4 GiB", "1 kB", "nan", "-1", "0"]),
    st.sampled_from(["\0", "\ud800", "x" * 10**5, "a\nb", Text("auto"), Text("skip"), "\r\n", "/", "~", "*"]),
    st.binary(max_size=10),
    st.sampled_from([Number(1), Number(-1), Number(0), math.inf, -math.inf, math.nan]),
)
functions = st.sampled_from(
    [
        *(abs, len, print, int, str, list, dict, object, Exception, ValueError, KeyboardInterrupt, type),
        *(lambda: 1, lambda x: x, lambda x, y: x, lambda x, y, z: x, lambda *x: x, lambda *, x: x),
        *(os, types.SimpleNamespace(get=1), types.SimpleNamespace(get=abs, asynchronous=False), forever),
        *(Path("."), Path("nowhere"), ValueError | OSError),
        *((ValueError,), (ValueError, 1), (KeyboardInterrupt,), ()),
    ]
)
odd = st.frozensets(st.sampled_from(METHODS), min_size=1).map(hostile)
simple = plain | functions | odd
values = simple | st.lists(simple, max_size=3) | st.lists(simple, max_size=2).map(tuple)
values |= st.dictionaries(st.text(max_size=3) | st.integers(), simple, max_size=2)
values |= simple.map(lambda x: iter([x]))


@dataclass
class Given:
    """A value, whose own repr hypothesis must not call."""

    value: Any

    def __repr__(self) -> str:
        return f"Given({short_repr(self.value)})"


givens = values.map(Given)


class Started(Exception):
    """A local cluster would have been started."""


@pytest.fixture(scope="module", autouse=True)
def here(leaves_no_trace: None) -> Iterator[None]:
    """Evaluate in this process; a cluster that is started, or a scheduler that is waited for, shows."""

    def start(environment: Any) -> Any:
        raise Started

    with pytest.MonkeyPatch.context() as patch, connect("inline"):
        patch.setattr(host, "HostProcess", start)
        patch.setattr(clients, "JOIN_SECONDS", 0.2)
        yield
        assert current.default is None
        assert not psutil.Process().children(recursive=True)


FILE = str(Path(__file__).parents[1] / "helpers" / "browser.py")  # small: blocks may be of a byte each


def one() -> ParallelGen[int]:
    return parallel([1, 2, 3])


def name(x: int) -> str:
    return str(x)


LAZY: dict[str, Callable[[Any], ParallelGen[Any]]] = {
    "parallel partition_size": lambda v: parallel([1, 2, 3], partition_size=v),
    "parallel buffersize": lambda v: parallel([1, 2, 3], buffersize=v),
    "parallel name": lambda v: parallel([1, 2, 3], name=v),
    "parallel on_error": lambda v: parallel([1, 2, 3], on_error=v),
    "parallel retries": lambda v: parallel([1, 2, 3], retries=v),
    "parallel retry_on": lambda v: parallel([1, 2, 3], retries=1, retry_on=v),
    "parallel timeout": lambda v: parallel([1, 2, 3], timeout=v),
    "map on_error": lambda v: one().map(name, on_error=v),
    "map retries": lambda v: one().map(name, retries=v),
    "map retry_on": lambda v: one().map(name, retries=1, retry_on=v),
    "map timeout": lambda v: one().map(name, timeout=v),
    "filter on_error": lambda v: one().filter(name, on_error=v),
    "flatmap retries": lambda v: one().flatmap(name, retries=v),
    "parallel client": lambda v: parallel([1, 2, 3], client=v),
    "enumerate start": lambda v: one().enumerate(v),
    "take_while on_error": lambda v: one().take_while(name, on_error=v),
    "join retries": lambda v: one().join([1], name, retries=v),
    "read_text blocksize": lambda v: read_text(FILE, blocksize=v),
    "read_text compression": lambda v: read_text(FILE, compression=v),
    "read_text encoding": lambda v: read_text(FILE, encoding=v),
    "read_text errors": lambda v: read_text(FILE, errors=v),
    "read_text linedelimiter": lambda v: read_text(FILE, linedelimiter=v),
    "read_text files_per_partition": lambda v: read_text(FILE, files_per_partition=v),
    "read_text storage_options": lambda v: read_text(FILE, storage_options=v),
    "read_text client": lambda v: read_text(FILE, client=v),
    "read_text name": lambda v: read_text(FILE, name=v),
    "read_text include_path": lambda v: read_text(FILE, include_path=v),
    "read_csv columns": lambda v: read_csv(FILE, columns=v, header=False, on_error=str),
    "read_csv header": lambda v: read_csv(FILE, header=v, on_error=str),
    "read_csv delimiter": lambda v: read_csv(FILE, delimiter=v, on_error=str),
    "read_csv dialect": lambda v: read_csv(FILE, dialect=v, on_error=str),
    "read_files mode": lambda v: read_files(FILE, mode=v),
    "read_archive pattern": lambda v: read_archive(FILE, v, on_error=str),
    "read_jsonl blocksize": lambda v: read_jsonl(FILE, blocksize=v, on_error=str),
}
AT_ONCE: dict[str, Callable[[Any], Any]] = {
    "parallel progress": lambda v: parallel([1], progress=v),
    "read_text progress": lambda v: read_text(FILE, progress=v),
    "read_text urlpath": lambda v: read_text(v),
    "skip n": lambda v: one().skip(v),
    "sample probability": lambda v: one().sample(v, 0),
    "sample seed": lambda v: one().sample(0.5, v),
    "join how": lambda v: one().join([1], name, how=v),
    "nlargest n": lambda v: one().nlargest(v),
    "take n": lambda v: one().take(v),
    "connect n_workers": lambda v: connect(n_workers=v),
    "connect threads_per_worker": lambda v: connect(threads_per_worker=v),
    "connect memory_limit": lambda v: connect(memory_limit=v),
    "connect security": lambda v: connect("tcp://127.0.0.1:9", security=v),
    "connect ship": lambda v: connect("tcp://127.0.0.1:9", ship=v),
    "connect reconnect": lambda v: connect("tcp://127.0.0.1:9", reconnect=v),
    "connect target": lambda v: connect(v),
}
# A user's functions: what they raise for an element passes through, at the evaluation.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "parallel source": lambda v: parallel(v),
    "map func": lambda v: one().map(v),
    "filter predicate": lambda v: one().filter(v),
    "flatmap func": lambda v: one().flatmap(v),
    "foreach func": lambda v: one().foreach(v),
    "reduce func": lambda v: one().reduce(v),
    "reduce initial": lambda v: one().reduce(lambda x, y: x, v),
    "fold func": lambda v: one().fold(v, 0),
    "fold initial": lambda v: one().fold(lambda x, y: y, v),
    "fold combine": lambda v: one().fold(lambda x, y: x, 0, v),
    "zip other": lambda v: one().zip(v),
    "chain other": lambda v: one().chain(v).take(3),
    "scan initial": lambda v: one().scan(lambda x, y: x, v),
    "drop_while predicate": lambda v: one().drop_while(v),
    "starmap func": lambda v: one().zip([1]).starmap(v),
    "join key": lambda v: one().join([1], v),
    "max key": lambda v: one().max(v),
    "sum start": lambda v: one().sum(v),
    "first default": lambda v: parallel([]).first(v),
}
ERRORS = (TypeError, ValueError, LookupError, FileNotFoundError, IsADirectoryError, ParcollError)
FUZZ = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def check(error: Exception, value: Any) -> None:
    """Fail unless it is a documented error, and a sentence that quotes the value."""
    assert isinstance(error, ERRORS), repr(error)
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 700
    parts = [value, *value] if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, dict):
        parts += [*value.values(), *value]
    if isinstance(value, Iterator):  # what is quoted is what it gave
        return
    quotes = [*(short_repr(part)[:100] for part in parts), "an empty list"]
    quotes += [repr(str(part)) for part in parts if isinstance(part, Path)]
    # ship= takes the package that a module belongs to.
    tops = [part.lstrip("-").partition(".")[0] for part in parts if isinstance(part, str)]
    quotes += [short_repr(top)[:100] for top in tops if top]
    assert any(quote in text for quote in quotes), text


@pytest.mark.parametrize("call", LAZY)
@FUZZ
@given(case=givens)
@example(case=Given(types.SimpleNamespace(get=1)))
@example(case=Given(hostile(frozenset({"__call__", "__reduce__"}))))
def test_an_argument_that_is_accepted_can_be_evaluated(call: str, case: Given) -> None:
    value = case.value
    try:
        collection = LAZY[call](value)
    except OwnError:
        return
    except Exception as error:
        check(error, value)
        return
    assert repr(collection)
    try:
        assert collection.take(1)
    except OwnError:
        return
    except SerializationError as error:  # what refuses to be pickled
        if not isinstance(error.__cause__, OwnError):
            raise
    except UnicodeError:
        assert "encoding" in call


@pytest.mark.parametrize("call", AT_ONCE)
@FUZZ
@given(case=givens)
def test_an_argument_is_refused_at_once(call: str, case: Given) -> None:
    value = case.value
    try:
        made = AT_ONCE[call](value)
    except (OwnError, Started):
        return
    except Exception as error:
        if isinstance(error, ConnectError) and call.startswith("connect ") and "127.0.0.1:9" in str(error):
            return  # the argument was fine, and nobody listens there
        check(error, value)
        return
    if call == "connect target":
        assert value == "inline"
        made.close()


@pytest.mark.parametrize("call", FUNCTIONS)
@FUZZ
@given(case=givens)
def test_functions_and_sources_may_be_anything_that_can_be_called_or_read(call: str, case: Given) -> None:
    """No error but theirs: one of the wrong arity is Python's own TypeError, with a note of the step."""
    value = case.value
    try:
        made = FUNCTIONS[call](value)
        if isinstance(made, ParallelGen):
            assert repr(made)
            made.take(2)
    except (OwnError, *ERRORS):
        return
    except Exception as error:
        if not getattr(error, "__notes__", None):  # which the user's own has, at an element
            raise


@pytest.mark.parametrize(
    "address", ["tcp://", "tcp://x y:1", "tcp://127.0.0.1", "nope://127.0.0.1:1", "tls://:::"]
)
def test_no_address_at_all(address: str) -> None:
    with pytest.raises(ConnectError) as raised:
        connect(address)
    assert "\n" not in str(raised.value)
    assert repr(address) in str(raised.value)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the working directory, in which checkpoints are made."""
    folder = tmp_path_factory.mktemp("working")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@FUZZ
@given(case=givens, elements=st.lists(values.map(Given), min_size=1, max_size=3))
@example(case=Given("/dev/null/x"), elements=[Given(1)])
@example(case=Given("x" * 300), elements=[Given(1)])
@example(case=Given("nope://x"), elements=[Given(1)])
def test_a_checkpoint_is_a_folder_or_refused(own_folder: Path, case: Given, elements: list[Given]) -> None:
    """Whatever is saved in it; and who comes again gets the same, or a sentence."""
    value = case.value
    texts = [str(value)] if isinstance(value, str | os.PathLike) else []
    assume(not any(mark in text for text in texts for mark in ("~", "..", "memory:")))
    assume(not any(text.startswith("/") and not text.startswith("/dev/null/") for text in texts))
    source = [given.value for given in elements]
    for _ in range(2):
        try:
            collection = parallel(source, checkpoint=value).map(lambda x: x)
        except OwnError:
            return
        except Exception as error:
            check(error, value)
            return
        found: list[Any] | Exception
        try:
            found = list(collection)
        except (OwnError, *ERRORS) as error:
            found = error
        assert "\n" not in str(found) if isinstance(found, Exception) else len(found) == len(source)


@FUZZ
@given(case=givens)
def test_progress_takes_three_values(case: Given) -> None:
    value = case.value
    try:
        with progress(value):
            pass
    except OwnError:
        return
    except Exception as error:
        check(error, value)
        return
    assert value is None or value is True or value is False
