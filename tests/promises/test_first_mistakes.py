"""First mistakes: what other libraries have is not made here, and the message says what to write instead."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import pydoc
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import parcoll
from parcoll import ParallelGen, connect, parallel

numbers: Any = parallel([1, 2, 3])
given: Any = parcoll  # whose functions are called as no type checker lets one


def of_a_connection() -> None:
    with connect("inline") as connection:
        given_connection: Any = connection
        given_connection.map(len, [1])


def end_of_a_connection() -> None:
    with connect("inline") as connection:
        given_connection: Any = connection
        given_connection.shutdown()


async def later(n: int) -> int:
    return n


async def ticks() -> AsyncIterator[int]:
    yield 1


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
    "no key of a join": (
        lambda: numbers.join([1]),
        TypeError,
        r"^join\(\) needs key: write join\(other, key, ",
    ),
    "no seed": (
        lambda: numbers.sample(0.5),
        TypeError,
        r"^sample\(\) needs seed: write sample\(probability, s",
    ),
    "no initial value": (
        lambda: numbers.fold(max),
        TypeError,
        r"initial: write fold\(func, initial, combine=N",
    ),
    "no function, but a setting": (
        lambda: numbers.map(retries=2),
        TypeError,
        r"^map\(\) needs func: write map\(func\)$",
    ),
    "no source": (
        lambda: given.parallel(),
        TypeError,
        r"^parallel\(\) needs source: write parallel\(source\)$",
    ),
    "a predicate to count": (
        lambda: numbers.count(bool),
        TypeError,
        r"write filter\(predicate\)\.count\(\)$",
    ),
    "an element to count": (lambda: numbers.count(3), TypeError, r"write count_by\(\)\[element\]$"),
    "a predicate to the first": (
        lambda: numbers.first(lambda n: n > 1),
        TypeError,
        r"write filter\(predicate\)\.first\(\)$",
    ),
    "format by its place": (
        lambda: numbers.map_batches(list, 10, "numpy"),
        TypeError,
        "takes 2 positional arguments, and got 3: name the others, of format, flat$",
    ),
    "a setting by its place": (
        lambda: numbers.group_by(abs, 3),
        TypeError,
        "given by name, as in retries=3$",
    ),
    "a function to sum": (lambda: numbers.sum(len), TypeError, r"write map\(func\)\.sum\(\)$"),
    "a column to sum": (lambda: numbers.sum("price"), TypeError, r"operator\.itemgetter\('price'\)\)\.sum"),
    "a list of exceptions": (
        lambda: numbers.map(abs, retries=1, retry_on=[OSError]),
        TypeError,
        "a tuple of them .*, got .*<class 'OSError'>",
    ),
    "separator of pandas": (lambda: given.read_csv("x", sep=";"), TypeError, "write delimiter=$"),
    "types of pandas": (lambda: given.read_csv("x", dtype=int), TypeError, r"write map\(func\) behind it"),
    "columns of pandas": (lambda: given.read_csv("x", usecols=["a"]), TypeError, "write columns=$"),
    "separator of lines": (
        lambda: given.read_text("x", sep=";"),
        TypeError,
        r"write read_csv\(path, delimiter=\.\.\.\)$",
    ),
    "mode of open": (lambda: given.read_text("x", mode="rb"), TypeError, r"write read_files\(path\)"),
    "a setting of files": (lambda: given.read_text("x", block_size=9), TypeError, "write blocksize=$"),
    "calls of the source": (lambda: given.parallel([1], concurrency=2), TypeError, r"map\(func, concurr"),
    "resume": (lambda: given.parallel([1], resume=True), TypeError, "write checkpoint=folder"),
    "threads, in a word": (lambda: given.connect("threads"), TypeError, r"write connect\(\), or nothing"),
    "dask's other word": (lambda: given.connect("synchronous"), TypeError, r'write connect\("inline"\)$'),
    "a lambda's": (lambda: given.parallel([1]).map(lambda x: x, retry=3), TypeError, r"partial\(func, ret"),
    "an address by name": (lambda: given.connect(address="tcp://x:1"), TypeError, "write it without a name$"),
    "gigabytes": (lambda: given.connect(memory_limit=4), ValueError, r'write memory_limit="4 GiB"$'),
    "less than a worker takes": (
        lambda: given.connect(memory_limit="10 MB"),
        ValueError,
        r"^memory_limit='10 MB' is less than a worker takes itself, .* as in memory_limit=\"1 GiB\"$",
    ),
    "less than a worker takes, in bytes": (
        lambda: given.connect(memory_limit=40_000_000),
        ValueError,
        "^memory_limit=40000000 is less than a worker takes itself",
    ),
    "gigabytes as text": (
        lambda: given.connect(memory_limit=" 4"),
        ValueError,
        r'write memory_limit="4 GiB"$',
    ),
    "start of a job": (lambda: numbers.start(), AttributeError, r"write list\(collection\)"),
    "length": (lambda: numbers.len(), AttributeError, r"write count\(\)$"),
    "close": (lambda: numbers.close(), AttributeError, "write nothing: the workers end with the script"),
    "end of a connection": (
        lambda: end_of_a_connection(),
        AttributeError,
        r"a connection has no attribute 'shutdown': write close\(\)$",
    ),
    "collect": (lambda: numbers.collect(), AttributeError, r"list\(collection\)"),
    "groupby": (lambda: numbers.groupby(len), AttributeError, "group_by"),
    "flatMap": (lambda: numbers.flatMap(len), AttributeError, "flatmap"),
    "imap_unordered": (lambda: numbers.imap_unordered(len), AttributeError, r"unordered\(\)"),
    "misspelled": (lambda: numbers.redcue(len), AttributeError, "write reduce"),
    "a method of the function": (
        lambda: given.parallel.map(len, [1]),
        AttributeError,
        r"parallel\(source\)\.map",
    ),
    "of a list, of the function": (lambda: given.parallel.collect, AttributeError, r"list\(collection\)"),
    "of the module": (lambda: given.map(len, [1]), AttributeError, r"parallel\(source\)\.map"),
    "a pool of the module": (lambda: given.Pool(4), AttributeError, r"parallel\(source\)\.map"),
    "of a connection": (of_a_connection, AttributeError, r"parallel\(source\)\.map"),
    "a sum of collections": (lambda: numbers + numbers, TypeError, r"chain\(\*others\)"),
    "a function and its elements": (
        lambda: given.parallel(len, [1]),
        TypeError,
        r"parallel\(source\)\.map\(func\)",
    ),
    "a number": (lambda: given.parallel(5), TypeError, r"range\(5\), or `with connect\(n_workers=5\)"),
    "a number of workers": (lambda: given.connect(4), TypeError, r"write connect\(n_workers=4\)"),
    "arithmetic": (lambda: numbers * 2, TypeError, r"map\(func\) for each element"),
    "comparison": (lambda: numbers > 2, TypeError, r"map\(func\) for each element"),
    "backwards": (lambda: reversed(numbers), TypeError, r"reversed\(list\(collection\)\)"),
    "with": (lambda: contextlib.ExitStack().enter_context(numbers), TypeError, "leave out `with`"),
    "a step's n_workers": (lambda: numbers.map(abs, n_workers=2), TypeError, r"with connect\(n_workers=n\)"),
    "a step's chunksize": (
        lambda: numbers.map(abs, chunksize=2),
        TypeError,
        r"parallel\(\.\.\., partition_size=n\); to pass it",
    ),
    "npartitions": (lambda: given.parallel([1], npartitions=8), TypeError, "nothing: partitions size"),
    "repartition": (lambda: numbers.repartition(8), AttributeError, ": write nothing: partitions size"),
    "a bar": (lambda: numbers.progress(), AttributeError, r"write parallel\(\.\.\., progress=True\)$"),
    "a step's checkpoint": (
        lambda: numbers.map(abs, checkpoint="x"),
        TypeError,
        r"write parallel\(\.\.\., checkpoint=\.\.\.\)",
    ),
    "a step's retry": (lambda: numbers.filter(abs, retry=2), TypeError, "write retries=n; to pass"),
    "a batch's size": (lambda: numbers.map_batches(list, batch_size=2), TypeError, "write size=n; to pass"),
    "a column as key": (lambda: numbers.group_by("shop"), TypeError, r"operator\.itemgetter\('shop'\)$"),
    "a pipe": (lambda: numbers | max, TypeError, r"has no operators: write map\(func\) for each"),  # type: ignore[operator]
    "a place as key": (lambda: numbers.sorted(1), TypeError, r"operator\.itemgetter\(1\)$"),
    "initial value by another name": (
        lambda: numbers.reduce(max, initializer=0),
        TypeError,
        r"^reduce\(\) has no initializer=: write initial=$",
    ),
    "a path": (
        lambda: given.parallel(Path("x")),
        TypeError,
        r"\('x'\) .*: read_text\(path\) gives the lines",
    ),
    "an asynchronous generator": (lambda: given.parallel(ticks()), TypeError, "as .x async for x in"),
    "a function that returns one": (lambda: given.parallel(ticks), TypeError, "as .x async for x in"),
    "arguments of a fold the other way": (
        lambda: numbers.fold(0, max),
        TypeError,
        "the function comes first",
    ),
    "arguments of a fold by key the other way": (
        lambda: numbers.fold_by(str, 0, max),
        TypeError,
        r"got 0 \(an int\); write fold_by\(key, func, initial, combine=None\)$",
    ),
    "sides of a join the other way": (
        lambda: numbers.join(abs, [1]),
        TypeError,
        "; other comes first, and then",
    ),
    "reverse by its place": (lambda: numbers.sorted(True), TypeError, r"write sorted\(reverse=True\)$"),
    "a coroutine for a key": (lambda: numbers.count_by(later), TypeError, r"await it in a map\(\) before"),
    "a coroutine for a fold": (lambda: numbers.reduce(later), TypeError, r"await it in a map\(\) before"),
    "text to fold from first": (lambda: numbers.fold("", max), TypeError, "the function comes first$"),
    "apply_async": (lambda: numbers.apply_async(len), AttributeError, r"write map\(func\)$"),
    "starmap_async": (lambda: numbers.starmap_async(len), AttributeError, r"write starmap\(func\)$"),
    "toPandas": (lambda: numbers.toPandas(), AttributeError, r"write to_pandas\(\)$"),
    "to_parquet": (lambda: numbers.to_parquet("x"), AttributeError, r"write write_parquet\(path\)$"),
    "any": (lambda: numbers.any(), AttributeError, r"any\(collection\)"),
    "columns": (lambda: numbers.columns, AttributeError, r"to_pandas\(\)"),
    "flatten": (lambda: numbers.flatten(), AttributeError, r"flatmap\(list\)$"),
    "islice": (lambda: numbers.islice(3), AttributeError, r"take\(n\)$"),
    "no such name": (lambda: given.foo, AttributeError, "no attribute 'foo'$"),
    "no such method of the function": (lambda: given.parallel.foo, AttributeError, "no attribute 'foo'$"),
    "nothing of the kind": (lambda: numbers.foo, AttributeError, "no attribute 'foo'$"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_the_message_says_what_to_write(name: str) -> None:
    mistake, kind, said = MISTAKES[name]
    with pytest.raises(kind, match=said) as raised:
        mistake()
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("inline")
def test_a_list_is_extended_by_a_collection() -> None:
    rows = [0]
    rows += numbers
    assert rows == [0, *numbers]


def test_what_another_class_makes_of_a_collection_is_not_refused() -> None:
    class Pipe:
        def __ror__(self, source: Any) -> Any:
            return [source]

        __rmul__ = __ror__

        def __gt__(self, other: object) -> bool:
            return True

    pipe: Any = Pipe()
    assert numbers | pipe == [numbers]
    assert numbers * pipe == [numbers]
    assert numbers < pipe


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


REQUIRED = [
    name
    for name, method in inspect.getmembers(ParallelGen, inspect.isfunction)
    if name == method.__name__  # `flat_map` is `flatmap`
    and not name.startswith("_")
    and any(
        parameter.default is parameter.empty
        for parameter in list(inspect.signature(method).parameters.values())[1:]
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    )
]


def test_there_are_methods_with_arguments() -> None:
    assert {"map", "join", "take", "scan", "nlargest", "write_csv", "fold_by", "sample"} <= set(REQUIRED)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_argument_is_told_without_the_class_that_has_the_method(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) needs [a-z_ ]+: write {name}\("):
        getattr(numbers, name)()


def two(x: Any, y: Any) -> Any:
    return x


def inner(x: Any) -> Any:
    return given_two(x)


def nothing(x: Any) -> None:
    _ = x + 1


async def several(x: int) -> Any:
    yield x


given_two: Any = two
several_later: Any = lambda x: several(x)
ONE = r"; {}\(\) calls its function with one argument"


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda p: p.map(two), ONE.format("map") + "$"),
        (lambda p: p.map(two, on_error="skip"), ONE.format("map") + "$"),
        (lambda p: p.map(two, retries=1, retry_on=OSError), ONE.format("map") + "$"),
        (lambda p: p.map(lambda: 1), ONE.format("map") + "$"),
        (lambda p: p.map(divmod), ONE.format("map") + "$"),
        (lambda p: p.zip("ab").map(two), ONE.format("map") + ", starmap\\(\\) with the values of a tuple$"),
        (lambda p: p.filter(two), ONE.format("filter") + "$"),
        (lambda p: p.group_by(two), ONE.format("group_by") + "$"),
        (
            lambda p: p.starmap(two),
            r"; starmap\(\) is for elements that are tuples of arguments, map\(\) for",
        ),
        (lambda p: p.flatmap(nothing), r"; flatmap\(\) is for functions that return several elements"),
        (
            lambda p: p.flat_map(abs),
            r"; flatmap\(\) is for functions that return several elements, as in a l",
        ),
        (lambda p: p.flatmap(several_later), r"; pass the `async def` function itself, as in flatmap"),
        (lambda p: p.map(nothing).map(abs), "; a function without `return` gives None$"),
        (lambda p: p.map(nothing).filter(lambda x: x > 2), "; a function without `return` gives None$"),
        (lambda p: parallel([None]).map(abs), r"at element 0: None$"),
        (lambda p: p.map(inner), r"map\(inner\), at element 0: 1$"),
        (lambda p: p.map(lambda x: abs(x, x)), r"map\(lambda\), at element 0: 1$"),
    ],
)
def test_a_function_of_other_arguments_is_told_how_it_is_called(of: Callable[[Any], Any], said: str) -> None:
    chain = of(numbers)
    try:
        chain.count()
        error: Any = chain.errors[0].exception
    except TypeError as raised:
        error = raised
    assert re.search(said, error.__notes__[0]), error.__notes__


@pytest.mark.parametrize("engine", ["inline", "cluster"])
def test_what_has_no_result_cannot_be_summed_or_compared(engine: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(engine)
    for evaluate in (lambda p: p.sum(), lambda p: p.max(), lambda p: p.nsmallest(2)):
        with pytest.raises(TypeError, match="NoneType") as raised:
            evaluate(numbers.map(nothing))
        assert raised.value.__notes__[0].endswith("; a function without `return` gives None")


def test_what_stands_for_an_object_says_how_it_is_found() -> None:
    @parcoll.per_worker
    def model() -> dict[int, str]:
        return {1: "one"}

    stands: Any = model
    table: Any = parcoll.broadcast({1: "one"})
    for mistake, kind, said in (
        (lambda: stands[1], TypeError, r"model\(\) returns the object: write model\(\)\[1\]$"),
        (lambda: stands.get(1), AttributeError, r"write model\(\)\.get$"),
        (lambda: table[1], TypeError, r"<Broadcast of a dict> .* write \.value\[1\]$"),
        (lambda: table.get(1), AttributeError, r"write \.value\.get$"),
        (lambda: iter(stands), TypeError, "not iterable"),
        (lambda: 1 in stands, TypeError, r"returns the object: write 1 in model\(\)$"),
        (lambda: stands(1), TypeError, r"returns the object: write model\(\)\(1\)$"),
        (lambda: 1 in table, TypeError, r"<Broadcast of a dict> .*: look for 1 in \.value$"),
        (lambda: iter(table), TypeError, "not iterable"),
        (lambda: parallel(table), TypeError, "needs an iterable"),
        (lambda: stands._nothing, AttributeError, "no attribute '_nothing'$"),
        (lambda: table._nothing, AttributeError, "no attribute '_nothing'$"),
    ):
        with pytest.raises(kind, match=said):
            mistake()
    found: Any = pickle.loads(cloudpickle.dumps([model, table]))
    assert found[0]() == found[1].value == copy.copy(table).value == {1: "one"}


@pytest.mark.usefixtures("inline")
def test_what_cannot_travel_is_told_what_to_make_of_it(tmp_path: Path) -> None:
    lock = threading.Lock()

    async def fetch(x: int) -> int:
        return x

    begun: Any = fetch(1)
    with pytest.raises(parcoll.SerializationError, match=r"once in each worker with @per_worker$"):
        parallel([1]).map(lambda _: lock.locked()).first()
    with pytest.raises(parcoll.SerializationError, match=r"map\(func\) of the `async def` function$"):
        list(parallel([begun]))
    begun.close()
    with pytest.raises(parcoll.SerializationError, match=r": pass a list of what it gives, or what its func"):
        list(parallel([(y for y in [1])]))
    with (
        open(__file__, "rb") as file,
        pytest.raises(parcoll.SerializationError, match=r": pass its path, and have the function open it$"),
    ):
        list(parallel([file]))
    with pytest.raises(parcoll.SerializationError, match=r"return a list, or write flatmap\(func\)"):
        list(parallel([1]).map(lambda x: (y for y in [x])))
    with pytest.raises(parcoll.CheckpointError, match=r"cannot be opened: FileExistsError.*; name a folder$"):
        list(parallel([1], checkpoint=__file__).map(str))
    with pytest.raises(TypeError, match=r"is not JSON serializable: pass default=.*default=str"):
        parallel([{1, 2}]).write_jsonl(tmp_path / "never.jsonl")


def test_the_function_is_one_for_all_that_looks_at_it() -> None:
    assert pickle.loads(pickle.dumps(parallel)) is copy.deepcopy(parallel) is parallel
    assert inspect.isroutine(parallel)
    assert next(iter(inspect.signature(parallel).parameters)) == "source"
    assert not hasattr(parallel, "map")


def test_help_is_short_and_completion_has_public_names_only() -> None:
    text = pydoc.render_doc(parcoll, renderer=pydoc.plaintext)
    assert "source: 'Any'," in text
    assert [name for name in parcoll.__all__ if name not in text] == []
    assert len(text.splitlines()) < 300
    assert [name for name in dir(parcoll) if not name.startswith("__")] == sorted(parcoll.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", parcoll.__version__)
    for name in (
        "map",
        "filter",
        "flatmap",
        "starmap",
        "map_batches",
        "take_while",
        "max",
        "count_by",
        "join",
    ):
        method = getattr(ParallelGen, name)
        first = list(inspect.signature(method).parameters.values())[2 if name == "join" else 1]
        assert "Callable" in str(first.annotation), name
    assert "<none>" in str(inspect.signature(ParallelGen.first))


def test_numbers_are_a_table_wherever_they_are_shown() -> None:
    with connect("inline") as connection:
        doubled = parallel([1, 2], name="<b>").map(str)
        assert doubled.count() == 2
        assert repr(doubled.stats) == str(doubled.stats)
        assert "map(str)" in doubled.stats._repr_html_()
        assert "<b>" not in connection._repr_html_() + doubled._repr_html_() + doubled.stats._repr_html_()
    assert "1 file, 1 row, 2 bytes" in parcoll.Written(["a"], 1, 2)._repr_html_()
    written = parcoll.Written([f"<{n}>" for n in range(30)], 60, 1200)._repr_html_()
    assert "&lt;0&gt;" in written
    assert "and 10 more" in written


def test_an_empty_collection_says_whether_its_elements_failed() -> None:
    words = parallel(["x", "y"], on_error="skip").map(int)
    with connect("inline"):
        for ask in (words.first, words.max):
            with pytest.raises(ValueError, match="no default: 2 failed, which `errors`"):
                ask()
