"""Functions find the script's context variables, decimal context and numpy state, however they are called."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ways import connected

from parcoll import connect, parallel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default="default")
unset: contextvars.ContextVar[Any] = contextvars.ContextVar("unset")
# numpy 1 has its state in the thread: there the event loop's own.
PER_CONTEXT = int(np.__version__.partition(".")[0]) >= 2


@pytest.fixture(scope="module", params=["local", "bare", "inline"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Evaluate on a local cluster, on one of dask's own processes, and in this process."""
    if request.param == "inline":
        with connect("inline"):
            yield "inline"
        return
    with connected(request.param, tmp_path_factory.mktemp("place")):
        yield request.param


def directly(func: Callable[[Any], Any], elements: Any = (1,)) -> list[Any]:
    return list(parallel(elements).map(func))


def beside(func: Callable[[Any], Any], elements: Any = (1,)) -> list[Any]:
    return list(parallel(elements, timeout=60).map(func))


def in_threads(func: Callable[[Any], Any], elements: Any = (1,)) -> list[Any]:
    return list(parallel(elements).map(func, concurrency=3))


def in_loop(func: Callable[[Any], Any], elements: Any = (1,)) -> list[Any]:
    async def call(x: Any) -> Any:
        await asyncio.sleep(0)
        return func(x)

    return list(parallel(elements).map(call))


Call = Callable[..., list[Any]]


@pytest.fixture(params=[directly, beside, in_threads, in_loop])
def call(request: pytest.FixtureRequest, place: str) -> Any:
    """Give each way in which a function is called."""
    return request.param


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Give a module of the user's own with two variables."""
    (tmp_path / "c_requests.py").write_text(
        "from contextvars import ContextVar\n"
        "request = ContextVar('request', default='none')\nuser = ContextVar('user')\n"
        "def told(): return request.get(), user.get('nobody')\n"
    )
    (tmp_path / "c_other.py").write_text("from c_requests import request as same\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importlib.import_module("c_other")
    yield importlib.import_module("c_requests")
    for name in ("c_requests", "c_other"):
        sys.modules.pop(name, None)


def here(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a context of its own."""

    def run(*arguments: Any) -> None:
        contextvars.copy_context().run(test, *arguments)

    return run


def test_a_variable_that_a_function_names(call: Call) -> None:
    @here
    def test() -> None:
        def look(_: object) -> Any:
            return variable.get(), variable.get("mine"), unset.get("mine")

        assert call(look) == [look(0)] == [("default", "mine", "mine")]
        variable.set({"a": 1})
        unset.set(None)
        assert call(look) == [look(0)] == [({"a": 1}, {"a": 1}, None)]

    test()


def test_a_variable_of_a_module(call: Call, module: ModuleType) -> None:
    @here
    def test() -> None:
        def look(_: object) -> Any:
            import c_other

            return module.told(), c_other.same.get()

        assert call(look) == [look(0)] == [(("none", "nobody"), "none")]
        token = module.request.set("GET")
        module.user.set(["ann"])
        assert call(look) == [look(0)] == [(("GET", ["ann"]), "GET")]
        module.user.get().append("bob")
        assert call(look) == [look(0)] == [(("GET", ["ann", "bob"]), "GET")]
        module.request.reset(token)
        assert call(look) == [look(0)] == [(("none", ["ann", "bob"]), "none")]

    test()


@pytest.mark.parametrize("way", [directly, in_threads])
def test_what_a_function_sets_does_not_last(place: str, way: Call, module: ModuleType) -> None:
    def change(x: int) -> Any:
        variable.set(x)
        module.request.set(x)
        decimal.getcontext().prec = 5
        time.sleep(0.001)
        return variable.get(), module.told()[0]

    def look(_: object) -> Any:
        return variable.get(), module.told()[0], decimal.getcontext().prec

    # Not in this process, whose decimal context is the one that the function changes.
    assert way(change, range(4)) == [(x, x) for x in range(4)]
    assert way(look, range(8)) == [("default", "none", 28)] * 8


def test_coroutines_do_not_see_what_others_set(place: str) -> None:
    async def change(x: int) -> Any:
        variable.set(x)
        await asyncio.sleep(0.01)
        return variable.get()

    assert list(parallel(range(5)).map(change)) == list(range(5))


def test_the_decimal_context(call: Call) -> None:
    with decimal.localcontext() as context:
        context.prec, context.rounding = 40, decimal.ROUND_UP
        assert call(lambda x: decimal.Decimal(2) / x, (3,)) == [decimal.Decimal("0." + 39 * "6" + "7")]
        context.traps[decimal.Inexact] = True
        with pytest.raises(decimal.Inexact):
            call(lambda x: decimal.Decimal(1) / x, (3,))
    assert call(lambda x: str(decimal.Decimal(1) / x), (3,)) == ["0." + 28 * "3"]


def test_the_error_state_of_numpy(call: Call) -> None:
    if call is in_loop and not PER_CONTEXT:
        pytest.skip("it is the loop's own")
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        call(lambda x: np.float64(1) / np.float64(x), (0,))
    with np.errstate(all="ignore"):
        assert call(lambda x: np.float64(1) / np.float64(x), (0,)) == [np.inf]


def test_functions_of_folds_and_keys(place: str) -> None:
    """They run on the workers too: in the task of a partition, or in one that joins what others have made."""

    @here
    def test() -> None:
        def told(a: Any, b: Any) -> Any:
            return [variable.get(), decimal.getcontext().prec, len(a), len(b)]

        variable.set("here")
        with decimal.localcontext() as context:
            context.prec = 40
            for settings in ({}, {"timeout": 60}):
                lists = parallel(range(8), partition_size=2, **settings).map(lambda x: [x])
                assert lists.reduce(told)[:2] == ["here", 40]
                assert lists.fold(told, [], told)[:2] == ["here", 40]
                counted = lists.count_by(lambda _: (variable.get(), decimal.getcontext().prec))
                assert counted == {("here", 40): 8}
                folded = lists.fold_by(lambda _: 1, told, [], told)
                assert list(folded.map(lambda pair: pair[1][:2])) == [["here", 40]]
                ordered = lists.sorted(lambda x: (variable.get(), decimal.Decimal(1) / (x[0] + 1)))
                assert ordered.first() == [7]

    test()


def test_flags_of_a_function_do_not_reach_the_next(place: str) -> None:
    def inexact(_: object) -> bool:
        return bool(decimal.getcontext().flags[decimal.Inexact])

    for way in (directly, beside):
        assert way(lambda x: str(decimal.Decimal(1) / 3)[:3]) == ["0.3"]
        assert way(inexact) == [False]


def test_threads_of_a_function_have_the_default_context(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def divided(_: object) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(lambda: decimal.Decimal(1) / 3).result()

    monkeypatch.setattr(decimal.DefaultContext, "prec", 11)
    for way in (directly, beside):
        assert way(divided) == [divided(0)] == [decimal.Decimal("0.33333333333")]
    monkeypatch.undo()
    assert directly(divided) == [divided(0)]


def test_async_for_has_those_of_its_task(place: str) -> None:
    async def draw(value: str) -> list[Any]:
        variable.set(value)
        return [found async for found in parallel(range(2)).map(lambda _: variable.get())]

    async def both() -> list[list[Any]]:
        return await asyncio.gather(draw("a"), draw("b"))

    assert asyncio.run(both()) == [["a", "a"], ["b", "b"]]
