"""What a program has put into libraries, in the place of theirs, is there on workers, while its tasks run."""

from __future__ import annotations

import builtins
import fractions
import functools
import json
import json.decoder
import logging
import os
import socket
import string
import threading
import time
import urllib.request
from json import loads  # the module is named by what it gives
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from ways import HERE, Make, One, plain

from parcoll import Connection, connect, parallel
from parcoll.world import patches

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")
real_sleep, real_dumps = time.sleep, json.dumps


def dumped(x: Any) -> Any:
    return json.dumps(x)


def mine(x: Any, **_: Any) -> str:
    return f"mine {x}"


@functools.wraps(real_dumps)
def wrapping(*args: Any, **more: Any) -> str:
    return "wrapped " + real_dumps(*args, **more)


@functools.wraps(wrapping)
def wrapping_twice(*args: Any, **more: Any) -> str:
    return "twice " + wrapping(*args, **more)


def test_functions(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that say that they are what they wrap; and when all is as before, so it is there."""
    assert one(dumped) == "1"
    for func, expected in ((mine, "mine 1"), (wrapping, "wrapped 1"), (wrapping_twice, "twice wrapped 1")):
        monkeypatch.setattr(json, "dumps", func)
        assert one(dumped) == dumped(1) == expected
    monkeypatch.setattr(json, "dumps", lambda x, more="!": f"{x}{more}")
    assert one(dumped) == dumped(1) == "1!"
    monkeypatch.undo()
    assert one(dumped) == dumped(1) == "1"


def test_mocks(one: One) -> None:
    """One after the other at the same place; and one whose answer changes."""

    def fetched(_: object) -> Any:
        return urllib.request.urlopen("http://nowhere.invalid").read(), loads('"x"'), json.loads('"y"')

    with mock.patch("urllib.request.urlopen") as opened:
        for answer in (b"first", b"second"):
            opened.return_value.read.return_value = answer
            assert one(fetched) == fetched(0) == (answer, "x", "y")
        with mock.patch("json.loads", side_effect=lambda text: text * 2):
            assert one(fetched) == fetched(0) == (b"second", "x", '"y""y"')
    with mock.patch("json.dumps", autospec=True, return_value="specified"):
        assert one(dumped) == "specified"
    with mock.patch("json.dumps", side_effect=KeyError("no")), pytest.raises(KeyError):
        one(dumped)
    assert one(dumped) == "1"


def test_functions_of_c_and_what_calls_the_original(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one can be named no more."""

    def slept(seconds: float) -> float:
        started = time.perf_counter()
        time.sleep(seconds)
        return time.perf_counter() - started

    monkeypatch.setattr(time, "sleep", lambda seconds: real_sleep(seconds / 100))
    assert one(lambda _: slept(20)) < 15
    assert one(lambda _: real_sleep is time.sleep) is False
    monkeypatch.undo()
    assert one(lambda _: slept(0.05)) >= 0.05
    assert one(lambda _: real_sleep is time.sleep) is True


class Loud(json.JSONDecoder):
    """A class of one's own in the place of a library's."""

    def decode(self, text: str, *more: Any) -> Any:
        return text.upper()


class Texts(json.JSONEncoder):
    """Texts for what JSON does not have."""

    def default(self, value: Any) -> str:
        return str(value)


def test_what_binds_arguments_or_an_object(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions are the library's: what they are bound to, and where, shows who has put them there."""
    rows = {"b": 1, "a": fractions.Fraction(1, 2)}

    def asked(_: object) -> tuple[str, str]:
        return json.dumps({"b": 1, "a": 2}), string.Template("$a").substitute()

    with pytest.raises(KeyError):
        one(asked)
    monkeypatch.setattr(
        string.Template, "substitute", functools.partialmethod(string.Template.substitute, a=5)
    )
    for changed in (
        functools.partial(real_dumps, sort_keys=True),
        functools.partial(real_dumps, indent=1),
        Texts(sort_keys=True).encode,
    ):
        monkeypatch.setattr(json, "dumps", changed)
        assert one(asked) == asked(0)
        assert one(asked)[0] != real_dumps({"b": 1, "a": 2})
    monkeypatch.setattr(json, "dumps", functools.partial(real_dumps, cls=Texts))
    assert one(lambda _: json.dumps(rows)) == '{"b": 1, "a": "1/2"}'
    monkeypatch.setattr(json, "dumps", functools.lru_cache(lambda value: f"once {value}"))
    assert one(dumped) == "once 1"
    monkeypatch.undo()
    assert one(dumped) == "1"
    with pytest.raises(KeyError):
        one(asked)


ACCESSOR = """
import pandas

@pandas.api.extensions.register_series_accessor("loud")
class Loudly:
    def __init__(self, series):
        self.series = series

    def upper(self):
        return [text.upper() for text in self.series]
"""


def test_an_accessor_of_pandas(one: One, make: Make) -> None:
    """A descriptor of the library's, which has a class of the program's."""
    pandas = pytest.importorskip("pandas")
    make("naming_pandas", "import pandas")
    series = pandas.Series(["a"])
    try:
        exec(ACCESSOR, {"__name__": "__main__"})
        assert one(lambda _: series.loud.upper()) == ["A"]
    finally:
        del pandas.Series.loud
        pandas.Series._accessors.discard("loud")
    assert one(lambda _: hasattr(series, "loud")) is False


def test_methods_and_classes(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_: object) -> Any:
        half = fractions.Fraction(1, 2)
        shown = [getattr(half, name, None) for name in ("double", "name", "kind")]
        encoded = json.JSONEncoder().default("x") if hasattr(fractions.Fraction, "kind") else None
        return str(half), [part() if callable(part) else part for part in shown], encoded

    before = ("1/2", [None, None, None], None)
    assert one(asked) == before
    monkeypatch.setattr(fractions.Fraction, "__str__", lambda self: f"<{self.numerator}>")
    monkeypatch.setattr(fractions.Fraction, "double", lambda self: self + self, raising=False)
    monkeypatch.setattr(fractions.Fraction, "name", property(lambda self: "half"), raising=False)
    monkeypatch.setattr(fractions.Fraction, "kind", staticmethod(lambda: "kind"), raising=False)
    monkeypatch.setattr(json.JSONEncoder, "default", lambda self, x: [x])
    assert one(asked) == asked(0) == ("<1>", [fractions.Fraction(1), "half", "kind"], ["x"])
    monkeypatch.undo()
    assert one(asked) == asked(0) == before
    monkeypatch.setattr(json, "JSONDecoder", Loud)
    assert one(lambda _: json.loads("x", cls=json.JSONDecoder)) == "X"


def test_a_class_that_several_modules_have(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """`json.JSONDecoder` is `json.decoder.JSONDecoder`: it is as it was when both have it back."""

    def decoded(_: object) -> Any:
        return json.loads("1"), json.JSONDecoder().decode("1"), json.decoder.JSONDecoder().decode("1")

    for answer in ("first", "second"):
        monkeypatch.setattr(json.decoder.JSONDecoder, "decode", lambda self, text, answer=answer: answer)
        assert one(decoded) == (answer, answer, answer)
    monkeypatch.undo()
    assert one(decoded) == (1, 1, 1)


class Called:
    """An object that can be called, and changes."""

    answer = "called"

    def __call__(self, x: Any) -> str:
        return f"{self.answer} {x}"


def test_whatever_can_be_called(one: One, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Called()
    monkeypatch.setattr(json, "dumps", called)
    assert one(dumped) == "called 1"
    called.answer = "changed"
    assert one(dumped) == "changed 1"
    monkeypatch.setattr(json, "dumps", functools.partial(mine, x="given"))
    assert one(lambda _: json.dumps()) == "mine given"  # type: ignore[call-arg]
    monkeypatch.setattr(json, "dumps", called.__call__)
    assert one(dumped) == "changed 1"
    module = make(
        "w_patching", "import json\ndef fake(x): return 'of a module'\ndef use(x): return json.dumps(x)\n"
    )
    monkeypatch.setattr(json, "dumps", module.fake)
    assert one(dumped) == one(module.use) == "of a module"


def test_an_evaluation_within_a_function(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", mine)
    assert one(lambda _: list(parallel([1, 2]).map(dumped))) == ["mine 1", "mine 2"]


def test_inline_a_patch_is_there_as_it_is(inline: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied there still calls the original."""
    for func, expected in ((mine, "mine 1"), (wrapping, "wrapped 1"), (wrapping_twice, "twice wrapped 1")):
        monkeypatch.setattr(json, "dumps", func)
        assert plain(dumped) == plain(func) == expected
    monkeypatch.setattr(time, "sleep", lambda seconds: real_sleep(seconds / 100))
    assert plain(lambda x: time.sleep(x)) is None
    kept = real_sleep
    assert plain(lambda x: kept(x / 100)) is None
    assert plain(lambda x: kept is time.sleep) is False


def test_the_worker_has_its_own_again_behind_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dask does there is not what a test has put in the place of it."""
    file = tmp_path / "behind"

    def look(x: int) -> str:
        def later() -> None:
            real_sleep(1)
            file.write_text(json.dumps(x))

        threading.Thread(target=later).start()
        return json.dumps(x)

    with connect(n_workers=1):
        monkeypatch.setattr(json, "dumps", mine)
        assert plain(look) == "mine 1"
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
            real_sleep(0.05)
    assert file.read_text() == "1"


def test_what_cannot_travel_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The evaluation goes on with what the worker has."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(json, "dumps", lambda x, **_: f"{x}{ours}")
    with connect(n_workers=1), caplog.at_level(logging.WARNING, "parcoll"):
        assert plain(dumped) == "1"
        assert plain(dumped) == "1"
    ours.close()
    theirs.close()
    told = [record.getMessage() for record in caplog.records if "json.dumps" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("what the script has put into json.dumps cannot be sent to the workers: ")


def test_what_workers_run_in_is_not_replaced_but_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker would call it, in other threads too. What is added to the built-in names travels."""

    def look(_: object) -> Any:
        added: Any = vars(builtins)["shout"]
        return socket.create_connection.__name__, print.__name__, added(1)

    with connect(n_workers=1), caplog.at_level(logging.WARNING, "parcoll"):
        monkeypatch.setattr(socket, "create_connection", mine)
        monkeypatch.setattr(builtins, "print", mine)
        monkeypatch.setattr(builtins, "shout", mine, raising=False)
        assert plain(look) == ("create_connection", "print", "mine 1")
    told = sorted(r.getMessage() for r in caplog.records if "put into" in r.getMessage())
    assert told == [
        f"what the script has put into {place} cannot be sent to the workers: "
        "workers run in that library, and would call it"
        for place in ("builtins.print", "socket.create_connection")
    ]


def test_what_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are named here, and the modules of small ones; none that workers run in."""
    assert patches.read() == {}
    looked_at = set(patches._libraries)
    assert {"json", "json.decoder", "time", "fractions", "urllib.request"} <= looked_at
    assert not {"parcoll", "logging", "unittest.mock", __name__} & looked_at
    monkeypatch.setattr(json, "dumps", mine)
    assert list(patches.read()) == [("json", "dumps")]
    monkeypatch.setattr(patches, "MOST_WITHIN", 2)
    patches._seen.clear()
    patches._libraries.clear()
    patches._looks_through.clear()
    patches.read()
    assert {"json", "json.decoder"} <= set(patches._libraries)
    monkeypatch.delattr(json, "encoder")
    patches._seen.clear()
    patches._libraries.clear()
    patches._looks_through.clear()
    patches.read()
    assert "json.encoder" not in patches._libraries, "it is no attribute"


def test_what_is_read_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it holds what was replaced, and to pickle that leads here again."""
    called, reads, read = Called(), 0, patches._read

    def counted() -> Any:
        nonlocal reads
        reads += 1
        return read()

    called.original = real_dumps  # type: ignore[attr-defined]
    monkeypatch.setattr(json, "dumps", called)
    monkeypatch.setattr(patches, "_read", counted)
    assert list(patches.read()) == [("json", "dumps")]
    assert reads == 1


def test_an_object_that_cannot_be_asked_is_in_the_way_of_none(
    one: One, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("outside of a request")

    monkeypatch.setattr(json, "request", Proxy(), raising=False)
    monkeypatch.setattr(json, "dumps", mine)
    assert one(dumped) == "mine 1"


def test_a_library_that_goes_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the same name is another one."""
    for answer in ("first", "second"):
        made = ModuleType("w_library")
        monkeypatch.setitem(globals(), "w_library", made)
        monkeypatch.setitem(__import__("sys").modules, "w_library", made)
        vars(made)[answer] = mine
        assert [path for name, path in patches.read() if name == "w_library"] == [answer]


assert HERE
