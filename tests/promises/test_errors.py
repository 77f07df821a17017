"""An error keeps its type and tells where it happened; nothing hangs, and the workers go on."""

from __future__ import annotations

import errno
import functools
import operator
import os
import re
import threading
import traceback

import psutil
import pytest

from parcoll import SerializationError, WorkerLostError, parallel

LOCK = threading.Lock()


@pytest.fixture(params=["inline", "cluster"])
def engine(request):
    """Run the test in this process, and once more on worker processes."""
    return request.getfixturevalue(request.param)


def drain(collection):
    """Return the results that come, and the error that ends them."""
    results = []
    try:
        for result in collection:
            results += [result]
    except BaseException as error:
        return results, error
    return results, None


def error_of(call):
    """Return what `call` raises."""
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


def notes(error):
    return "\n".join(error.__notes__)


def same(x):
    return x


def invert(x):
    return 1 / x


def drawn(x):
    yield x
    yield 1 / x


def divide(left, right):
    return left / right


# --- what the error says -------------------------------------------------------------------------


@pytest.mark.parametrize("partition_size", [1, 3, "auto"])
@pytest.mark.parametrize(
    ("method", "func", "before"),
    [
        ("map", invert, [1, 0.5]),
        ("filter", invert, [1, 2]),
        ("flatmap", invert, []),
        ("flatmap", drawn, [1, 1, 2, 0.5, 0]),
        ("flatmap", lambda x: [x] if invert(x) else [], [1, 2]),
    ],
    ids=["map", "filter", "flatmap result", "flatmap drawn", "flatmap call"],
)
def test_an_error_comes_after_the_results_before_it_and_names_step_index_and_element(
    engine, method, func, before, partition_size
):
    source = parallel(["1", "2", "0", "4"], partition_size=partition_size).map(int)
    results, error = drain(getattr(source, method)(func).map(same))
    if func is invert and method == "flatmap":
        assert type(error) is TypeError
        assert "element 0: 1" in notes(error)
    else:
        assert type(error) is ZeroDivisionError
        assert "element 2: 0" in notes(error)
        assert "'0'" in notes(error), "the source element it was made from"
    assert results == before
    assert "step 2 of 3" in notes(error)
    assert f"{method}({'lambda' if 'lambda' in func.__name__ else func.__name__})" in notes(error)


CALLS = {
    "count": lambda c: c.map(invert).count(),
    "take": lambda c: c.map(invert).take(5),
    "first": lambda c: c.filter(lambda x: x == 0).map(invert).first(),
    "foreach": lambda c: c.foreach(invert),
    "unordered": lambda c: list(c.unordered().map(invert)),
    "map before reduce": lambda c: c.map(invert).reduce(operator.add),
    "map before fold": lambda c: c.map(invert).fold(operator.add, 0.0),
    "reduce": lambda c: c.reduce(divide),
    "fold": lambda c: c.fold(lambda n, x: n + 1 / x, 0.0, operator.add),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_evaluating_call_raises_the_error_with_its_element(engine, call):
    error = error_of(lambda: call(parallel([2, 4, 5, 0, 1], partition_size=2)))
    assert type(error) is ZeroDivisionError
    assert "element 3" in notes(error)
    assert ": 0" in notes(error)


def test_the_traceback_ends_in_the_users_function_at_its_line(engine):
    error = error_of(lambda: list(parallel([1, 0]).map(invert)))
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert last.name == "invert"
    assert last.filename == __file__
    assert last.lineno == invert.__code__.co_firstlineno + 1
    assert last.line == "return 1 / x"


@pytest.mark.parametrize("bad", [0, 1, 123_457, 199_999])
def test_the_index_is_right_anywhere_in_partitions_sized_by_themselves(engine, bad):
    def check(x):
        if x == bad:
            raise ValueError(x)
        return x

    results, error = drain(parallel(range(200_000)).map(check))
    assert results == list(range(bad))
    assert f"element {bad}: {bad}" in notes(error)


def test_the_index_is_the_sources_after_a_filter_and_a_flatmap(engine):
    def check(x):
        if x == 90_001:
            raise ValueError(x)
        return x

    chain = parallel(range(50_000)).filter(lambda x: x % 3 == 0).flatmap(lambda x: [x * 2, x * 2 + 1])
    results, error = drain(chain.map(check))
    assert results == [y for x in range(0, 45_000, 3) for y in (2 * x, 2 * x + 1)] + [90_000]
    assert "element 45000: 90001 (made from source element 45000)" in notes(error)


def test_a_long_or_broken_repr_does_not_spoil_the_note(engine):
    class Mute:
        def __repr__(self):
            raise RuntimeError("no repr")

    error = error_of(lambda: list(parallel(["x" * 10_000]).map(int)))
    assert "'xxx" in notes(error)
    assert len(notes(error)) < 500
    error = error_of(lambda: list(parallel([Mute()]).map(int)))
    assert type(error) is TypeError
    assert "element 0: <Mute" in notes(error)


# --- exceptions of all makes ---------------------------------------------------------------------


class OwnInit(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"code {code}: {hint}")
        self.code = code


class WithLock(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class Several(Exception):
    """False where it holds nothing."""

    def __len__(self):
        return 0


def raiser(make):
    """Return a function for `map` that raises what `make` makes."""

    def fail(x):
        raise make()

    return fail


def test_exceptions_keep_type_args_and_attributes(engine):
    class Local(ValueError):
        pass

    def raised(make):
        return error_of(lambda: list(parallel([1]).map(raiser(make))))

    own = raised(lambda: OwnInit(7, hint="wait"))
    assert (type(own), own.args, own.code) == (OwnInit, ("code 7: wait",), 7)
    locked = raised(lambda: WithLock("busy"))
    assert (type(locked), locked.args) == (WithLock, ("busy",))
    local = raised(lambda: Local("here", 2))
    assert (type(local), local.args) == (Local, ("here", 2))
    missing = raised(lambda: OSError(errno.ENOENT, "gone", "a.txt"))
    assert (type(missing), missing.errno, missing.filename) == (FileNotFoundError, errno.ENOENT, "a.txt")
    group = raised(lambda: ExceptionGroup("two", [KeyError("a"), OwnInit(1, hint="b")]))
    assert type(group) is ExceptionGroup
    assert [type(error) for error in group.exceptions] == [KeyError, OwnInit]
    lookup = raised(lambda: KeyError(("a", 1)))
    assert lookup.args == (("a", 1),)
    assert type(raised(Several)) is Several


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"), ["object", "start", "reason"]),
        (SystemExit(3), ["code"]),
        (SyntaxError("bad", ("a.py", 1, 2, "x y")), ["filename", "lineno", "text"]),
        (ImportError("no", name="n", path="p"), ["name", "path"]),
        (OSError(errno.ENOENT, "gone", "a", None, "b"), ["errno", "strerror", "filename", "filename2"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_exception_holds_beside_its_args_is_kept(engine, error, fields):
    raised = error_of(lambda: list(parallel([1]).map(raiser(lambda: error))))
    assert (type(raised), raised.args) == (type(error), error.args)
    assert {name: getattr(raised, name) for name in fields} == {name: getattr(error, name) for name in fields}


def test_an_attribute_error_keeps_its_name(engine):
    """It is made in the function, since Python's own pickle of one (3.11) leaves the name out."""
    error = error_of(lambda: list(parallel([1]).map(lambda x: x.missing)))
    assert (type(error), error.name) == (AttributeError, "missing")


@pytest.mark.parametrize(
    "make_cause", [lambda: KeyError("inner"), lambda: Several("inner"), lambda: OwnInit(1, hint="inner")]
)
def test_cause_context_and_notes_are_kept(engine, make_cause):
    cause = make_cause()

    def fail(x):
        try:
            raise make_cause()
        except Exception as error:
            new = ValueError("outer")
            new.add_note("the user's note")
            if x == 1:
                raise new from error
            raise new  # noqa: B904

    explicit = error_of(lambda: list(parallel([1]).map(fail)))
    assert (type(explicit.__cause__), explicit.__cause__.args) == (type(cause), cause.args)
    implicit = error_of(lambda: list(parallel([2]).map(fail)))
    assert implicit.__cause__ is None
    assert (type(implicit.__context__), implicit.__context__.args) == (type(cause), cause.args)
    assert explicit.__notes__[0] == "the user's note"
    assert explicit.__notes__.count("the user's note") == 1


def test_a_recursion_without_end_is_an_error_like_any_other(engine):
    def recurse(x):
        return recurse(x)

    assert type(error_of(lambda: list(parallel([1]).map(recurse)))) is RecursionError
    assert list(parallel([1]).map(same)) == [1]


STEPS = {
    "map": lambda c, func: c.map(func),
    "filter": lambda c, func: c.filter(func),
    "flatmap": lambda c, func: c.flatmap(func),
    "filter and map": lambda c, func: c.filter(func).map(same),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_stop_iteration_is_an_error_and_ends_nothing_silently(engine, step):
    def stop(x):
        if x == 3:
            raise StopIteration("enough")
        return [x]

    results, error = drain(step(parallel([1, 2, 3, 4]), stop))
    assert len(results) == 2
    assert type(error) is RuntimeError
    assert type(error.__cause__) is StopIteration
    assert error.__cause__.args == ("enough",)
    assert "element 2: 3" in notes(error)


def test_stop_iteration_in_reduce_fold_and_foreach(engine):
    def stop(*args):
        raise StopIteration

    numbers = parallel([1, 2, 3], partition_size=2)
    for call in [lambda: numbers.reduce(stop), lambda: numbers.fold(stop, 0), lambda: numbers.foreach(stop)]:
        error = error_of(call)
        assert type(error) is RuntimeError
        assert type(error.__cause__) is StopIteration


def processes():
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_an_exception_that_ends_programs_does_not_end_a_worker(cluster, kind, step):
    def leave(x):
        if x == 1:
            raise kind("bye")
        return [x]

    before = processes()
    results, error = drain(step(parallel([0, 1, 2]), leave))
    assert len(results) == 1
    assert type(error) is kind
    assert error.args == ("bye",)
    assert "element 1: 1" in notes(error)
    assert type(error_of(lambda: parallel([1, 1]).reduce(lambda a, b: leave(a)))) is kind
    assert sorted(parallel(range(20)).map(same)) == list(range(20))
    assert processes() == before


# --- what cannot travel --------------------------------------------------------------------------


def test_an_unpicklable_object_that_a_function_uses_is_named(cluster):
    guard = threading.Lock()

    class Holder:
        def __init__(self):
            self.handle = threading.Lock()

        def method(self, x):
            return x

    functions = {
        "it uses guard, ": lambda x: guard and x,
        "it uses LOCK, ": lambda x: LOCK and x,
        "it uses self.handle, ": Holder().method,
        "the argument 1 of its partial, ": functools.partial(max, threading.Lock()),
        "the default of lock, ": lambda x, lock=threading.Lock(): x,  # noqa: B008
    }
    for name, function in functions.items():
        for call in [
            lambda f=function: list(parallel([1]).map(same).map(f)),
            lambda f=function: parallel([1]).filter(f).count(),
            lambda f=function: parallel([1]).foreach(f),
            lambda f=function: parallel([1, 2]).reduce(f),
        ]:
            error = error_of(call)
            assert type(error) is SerializationError
            assert name in str(error)
            assert "lock" in str(error)
            assert "\n" not in str(error)


def test_an_unpicklable_initial_value_is_an_error(cluster):
    for call in [parallel([1]).reduce, lambda f, i: parallel([1]).fold(f, i, f)]:
        assert "initial value" in str(error_of(lambda call=call: call(divide, threading.Lock())))


@pytest.mark.parametrize("partition_size", [1, 3, 10])
def test_an_unpicklable_element_is_named_with_its_index_after_the_results_before_it(cluster, partition_size):
    elements = [0, 1, 2, 3, threading.Lock(), 5]
    results, error = drain(parallel(elements, partition_size=partition_size).map(same))
    assert results == [0, 1, 2, 3]
    assert type(error) is SerializationError
    assert "element 4 " in str(error)
    assert "lock" in str(error)


@pytest.mark.parametrize("partition_size", [1, 3, 10])
@pytest.mark.parametrize("make", [lambda: threading.Lock(), lambda: (x for x in "ab")])
def test_an_unpicklable_result_is_named_after_the_results_before_it(cluster, partition_size, make):
    numbers = parallel(range(7), partition_size=partition_size)
    results, error = drain(numbers.map(lambda x: make() if x == 4 else x))
    assert results == [0, 1, 2, 3]
    assert type(error) is SerializationError
    assert repr(make())[:10] in str(error)
    assert "element 4" in str(error) + notes(error)


def test_an_unpicklable_value_of_reduce_is_named(cluster):
    error = error_of(lambda: parallel([1, 2]).reduce(lambda a, b: threading.Lock()))
    assert type(error) is SerializationError
    assert "reduce(lambda)" in str(error)
    assert "lock" in str(error)


class Picky:
    """Can be unpickled in one process only, or in all others."""

    def __init__(self, home, at_home):
        self.home, self.at_home = home, at_home

    def __setstate__(self, state):
        if (os.getpid() == state["home"]) != state["at_home"]:
            raise LookupError("not in this process")
        self.__dict__ = state


def test_an_element_that_fails_to_unpickle_on_the_worker(cluster):
    element = Picky(os.getpid(), at_home=True)
    results, error = drain(parallel([1, 2, element], partition_size=1).map(same))
    assert results == [1, 2]
    assert type(error) is SerializationError
    assert "element 2" in str(error)
    assert "LookupError: not in this process" in str(error)
    error = error_of(lambda: list(parallel([1]).map(lambda x: element and x)))
    assert "could not load the chain" in str(error)
    assert "LookupError: not in this process" in str(error)


def test_a_result_that_fails_to_unpickle_here(cluster):
    home = os.getpid()
    chain = parallel([0, 1, 2], partition_size=1).map(lambda x: Picky(home, at_home=False) if x == 1 else x)
    results, error = drain(chain)
    assert results == [0]
    assert isinstance(error, SerializationError)
    assert "element 1" in str(error)
    assert "LookupError: not in this process" in str(error)
    one = parallel([1]).map(lambda x: Picky(home, at_home=False))
    assert isinstance(error_of(lambda: one.reduce(same)), SerializationError)


def test_an_exception_that_fails_to_unpickle_here_keeps_its_type(cluster):
    home = os.getpid()

    def fail(x):
        error = ValueError("message")
        error.picky = Picky(home, at_home=False)
        raise error

    error = error_of(lambda: list(parallel([1]).map(fail)))
    assert (type(error), error.args) == (ValueError, ("message",))


# --- worker processes that die -------------------------------------------------------------------

DEADLY = {
    "iteration": lambda c, die: list(c.map(die)),
    "count": lambda c, die: c.map(die).count(),
    "reduce": lambda c, die: c.map(die).reduce(max),
    "fold": lambda c, die: c.map(die).fold(max, 0),
    "foreach": lambda c, die: c.foreach(die),
}


@pytest.mark.parametrize("call", DEADLY.values(), ids=DEADLY)
def test_an_element_that_ends_its_process_is_an_error_and_the_cluster_goes_on(cluster, call):
    def die(x):
        if x == 3:
            os._exit(1)
        return x

    error = error_of(lambda: call(parallel([1, 2, 3, 4], partition_size=1), die))
    assert type(error) is WorkerLostError
    # dask blames what a dying worker had prefetched too, so a join can stand for the culprit.
    assert re.search(r"element \d|join of \d+ partitions", str(error))
    assert "ended" in str(error)
    assert "\n" not in str(error)
    assert sorted(parallel(range(20)).map(same)) == list(range(20))
