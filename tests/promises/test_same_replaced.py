"""Functions, methods and classes that a program has replaced in modules of its own are so on workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from ways import Make, One

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


def test_functions_that_were_replaced(one: One, make: Make) -> None:
    module = make("w_fetch", "def fetch(x):\n    return 'real'\ndef use(x):\n    return fetch(x)\n")

    def fake(x: int) -> str:
        return f"fake {x}"

    assert one(module.use) == "real"
    with mock.patch.object(module, "fetch", fake):
        assert one(module.use) == "fake 1"
    assert one(module.use) == "real"
    with mock.patch("w_fetch.fetch", return_value="mocked"):
        assert one(module.use) == "mocked"
    with mock.patch("w_fetch.fetch", side_effect=KeyError("no")), pytest.raises(KeyError):
        one(module.use)
    with mock.patch("w_fetch.fetch", autospec=True, return_value="specified"):
        assert one(module.use) == "specified"
    with mock.patch.object(module, "fetch", len), pytest.raises(TypeError):
        one(module.use)
    assert one(module.use) == "real"


def test_a_function_of_another_module_that_nothing_else_uses(one: One, make: Make) -> None:
    module = make("w_target", "def fetch(x):\n    return 'real'\ndef use(x):\n    return fetch(x)\n")
    assert one(module.use) == "real"
    make("w_source", "def fetch(x):\n    return 'other'\n")
    with mock.patch.object(module, "fetch", sys.modules["w_source"].fetch):
        assert one(module.use) == "other"
    assert one(module.use) == "real"


def test_on_workers_that_have_seen_each_state(one: One, make: Make) -> None:
    """Not only on one that imports the module while the state holds."""

    def on_all(func: Callable[[Any], Any]) -> set[Any]:
        return {one(func) for _ in range(5)}  # on one worker, then on the other

    module = make("w_each", "def fetch(x):\n    return 'real'\n")
    assert on_all(lambda x: module.fetch(x)) == {"real"}
    module.added = "new"  # type: ignore[attr-defined]
    assert on_all(lambda _: module.added) == {"new"}
    del module.added
    assert on_all(lambda _: hasattr(module, "added")) == {False}
    make("w_each_source", "def fetch(x):\n    return 'other'\n")
    with mock.patch.object(module, "fetch", sys.modules["w_each_source"].fetch):
        assert on_all(lambda x: module.fetch(x)) == {"other"}
    assert on_all(lambda x: module.fetch(x)) == {"real"}


def test_a_wrapper_that_looks_like_what_it_wraps(one: One, make: Make) -> None:
    import functools

    module = make("w_wrapped", "def double(x):\n    return 2 * x\n")
    original = module.double

    @functools.wraps(original)
    def wrapper(x: int) -> int:
        return 100 + original(x)

    module.double = wrapper
    assert one(lambda x: module.double(x)) == 102
    module.double = original
    assert one(lambda x: module.double(x)) == 2


def test_classes(one: One, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(
        "w_client",
        """
        class Client:
            timeout = 5
            seen = []
            def get(self, x):
                return "real", self.timeout, self.seen
        """,
    )
    assert one(lambda x: module.Client().get(x)) == ("real", 5, [])
    monkeypatch.setattr(module.Client, "timeout", 7)
    module.Client.seen.append(1)
    assert one(lambda x: module.Client().get(x)) == ("real", 7, [1])
    monkeypatch.setattr(module.Client, "get", lambda self, x: ("fake", x))
    assert one(lambda x: module.Client().get(x)) == ("fake", 1)
    monkeypatch.undo()
    assert one(lambda x: module.Client().get(x)) == ("real", 5, [1])


def test_methods_of_each_kind(one: One, make: Make) -> None:
    module = make(
        "w_methods",
        """
        class Client:
            def __init__(self, name="real"):
                self.name = name
            def __len__(self):
                return 1
            @staticmethod
            def static():
                return "real"
            @classmethod
            def of_class(cls):
                return "real"
        def fetch():
            return "real"
        """,
    )

    class Fake:
        name = "fake"

        def fetch(self) -> str:
            return self.name

    def look(_: object) -> Any:
        kind = module.Client
        return kind().name, len(kind()), kind.static(), kind.of_class(), callable(kind()), module.fetch()

    real = "real", 1, "real", "real", False, "real"
    assert one(look) == look(0) == real
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Client, "__init__", lambda self: setattr(self, "name", "fake"))
        patch.setattr(module.Client, "__len__", mock.Mock(return_value=2))
        patch.setattr(module.Client, "__call__", lambda self: None, raising=False)
        patch.setattr(module.Client, "static", staticmethod(lambda: "fake"))
        patch.setattr(module.Client, "of_class", classmethod(lambda cls: cls.__name__))
        patch.setattr(module, "fetch", Fake().fetch)
        assert one(look) == look(0) == ("fake", 2, "fake", "Client", True, "fake")
        patch.setattr(Fake, "name", "other")
        assert one(look) == look(0) == ("fake", 2, "fake", "Client", True, "other")
    assert one(look) == look(0) == real
    with mock.patch.object(module, "Client"):
        assert one(lambda _: isinstance(module.Client, type)) is False
    module.Client.__len__ = lambda self: 3  # the class is here again, and is changed
    assert one(look) == look(0) == ("real", 3, "real", "real", False, "real")


def test_the_setter_of_a_property(one: One, make: Make) -> None:
    module = make(
        "w_setter",
        """
        class Client:
            @property
            def timeout(self):
                return self._timeout
            @timeout.setter
            def timeout(self, seconds):
                self._timeout = seconds
        """,
    )

    def look(_: object) -> int:
        client = module.Client()
        client.timeout = 3
        return int(client.timeout)

    assert one(look) == 3
    original = module.Client.timeout
    module.Client.timeout = original.setter(lambda self, seconds: setattr(self, "_timeout", 10 * seconds))
    assert [one(look) for _ in range(3)] == [30] * 3
    module.Client.timeout = original
    assert [one(look) for _ in range(3)] == [3] * 3


def test_mocks_that_do_more(one: One, make: Make) -> None:
    module = make("w_mocked", "class Client:\n    pass\ndef twice(x):\n    return 2 * x\nsize = len\n")
    with mock.patch.object(module, "Client") as client:
        client.return_value.get.return_value = 1
        assert one(lambda _: module.Client().get()) == 1
        client.return_value.get.return_value = 2  # of the same mock
        assert one(lambda _: module.Client().get()) == 2
        client.return_value.__enter__.return_value.run.return_value = "inside"
        client.return_value.__len__.return_value = 3

        def within(_: object) -> Any:
            with module.Client() as found:
                return found.run(), len(module.Client())

        assert one(within) == ("inside", 3)
        client.filter.return_value = client
        client.all.return_value = [4]
        assert one(lambda _: module.Client.filter(a=1).filter(b=2).all()) == [4]
    with mock.patch.object(module, "twice", wraps=module.twice):
        assert one(lambda x: module.twice(x + 1)) == 4
    with mock.patch.object(module, "twice", autospec=True) as twice:
        for expected in (5, 6):
            twice.return_value = expected
            assert one(lambda x: module.twice(x)) == expected
    with mock.patch.object(module, "size", autospec=True, return_value=7):
        assert one(lambda _: module.size([])) == 7
