"""Functions find what the script has set in libraries, though nothing in it is the script's."""

from __future__ import annotations

import calendar
import collections
import collections.abc
import encodings.aliases
import gc
import http.client
import inspect
import json
import mimetypes
import os
import ssl
import string
import sys
import textwrap
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from scripts import Scripts
from ways import One

from parcoll.world import settings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

# What is set where, and what a function finds of it.
SET: dict[str, tuple[Any, str, Any, Callable[[object], Any]]] = {
    "a private number": (http.client, "_MAXHEADERS", 777, lambda _: http.client._MAXHEADERS),
    "a number of a class": (
        http.client.HTTPConnection,
        "debuglevel",
        1,
        lambda _: http.client.HTTPConnection.debuglevel,
    ),
    "a text": (string, "punctuation", "!?", lambda _: string.punctuation),
    "none of a number": (json.encoder, "FLOAT_X", None, lambda _: json.encoder.FLOAT_X),
    "a class of old": (collections, "Set", collections.abc.Set, lambda _: collections.Set.__name__),
    "a function of old": (
        inspect,
        "getargspec",
        inspect.getfullargspec,
        lambda _: inspect.getargspec(textwrap.dedent).args,
    ),
    "another function": (
        ssl,
        "_create_default_https_context",
        ssl._create_unverified_context,
        lambda _: ssl._create_default_https_context().verify_mode,
    ),
    "another module's function": (textwrap, "dedent", textwrap.indent, lambda _: textwrap.dedent("a", "> ")),
    "a function in C": (textwrap, "shorten", len, lambda _: textwrap.shorten("abc")),
}


@pytest.mark.parametrize("what", [*SET])
def test_what_is_set_in_a_library(one: One, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, value, look = SET[what]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, value, raising=False)
        expected = look(0)
        assert one(look) == expected
        assert one(look) == expected
    if hasattr(owner, name):  # it is what it was again
        assert one(lambda _: getattr(owner, name) == value) is False
    else:
        assert one(lambda _: hasattr(owner, name)) is False


def test_numpy_s_names_of_old(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy, "float", float, raising=False)
    assert one(lambda _: numpy.float("1.5")) == 1.5


def test_what_is_registered_with_python_s_libraries(one: One) -> None:
    def look(_: object) -> Any:
        opener = urllib.request._opener  # type: ignore[attr-defined]
        return (
            calendar.monthcalendar(2024, 1)[0],
            mimetypes.guess_type("a.zzy"),
            mimetypes.guess_type("a.html"),
            ET.tostring(ET.fromstring('<a xmlns="urn:q"/>')),
            "é".encode("zork") if "zork" in encodings.aliases.aliases else None,
            None if opener is None else opener.addheaders,
            sys.getswitchinterval(),
            gc.get_threshold(),
        )

    def imports(_: object) -> Any:
        import spare  # type: ignore[import-not-found]

        return spare.dedent(" a")

    mimetypes.guess_type("a.txt")
    assert one(look) == (before := look(0))
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    opener = urllib.request.build_opener()
    opener.addheaders = [("User-agent", "me")]
    try:
        calendar.setfirstweekday(6)
        mimetypes.add_type("x/y", ".zzy")
        mimetypes.add_type("x/z", ".html")
        ET.register_namespace("qq", "urn:q")
        encodings.aliases.aliases["zork"] = "utf_8"
        urllib.request.install_opener(opener)
        sys.setswitchinterval(0.01)
        gc.set_threshold(5000, 20, 20)
        sys.modules["spare"] = textwrap
        assert one(look) == look(0) != before
        assert one(look) == look(0)
        assert one(imports) == "a"
    finally:
        calendar.setfirstweekday(0)
        types = mimetypes._db.types_map[True]  # type: ignore[attr-defined]
        types.update({".html": "text/html"})
        del types[".zzy"], ET._namespace_map["urn:q"]  # type: ignore[attr-defined]
        del encodings.aliases.aliases["zork"], sys.modules["spare"]
        urllib.request.install_opener(None)  # type: ignore[arg-type]
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
    assert one(look) == look(0) == before
    with pytest.raises(ModuleNotFoundError, match="spare"):
        one(imports)


def test_what_is_a_library_s_own_work_stays_there(scripts: Scripts) -> None:
    """What an import gives, what functions of the library bind, and what other code of it puts there."""
    scripts.write("site-packages/library/__init__.py", "")
    scripts.write(
        "site-packages/library/state.py",
        """
        import os
        BEGUN = False
        LIMIT = 1
        if os.name == "posix":
            NAME = "a"
        else:
            NAME = "b"
        EITHER = 1 if LIMIT else 2
        ALSO = LIMIT and 3
        a = b = 5
        def begin():
            global BEGUN
            BEGUN = True
        def reading():
            global LIMIT
            return LIMIT
        def _other(): ...
        alias = _other
        chosen = _other if LIMIT else begin
        def twice(func):
            def wrapped(): ...
            return wrapped
        @twice
        def decorated(): ...
        class Kind:
            count = 0
            _hidden = 0
        for name in ("x", "y"):
            vars()[name] = name
        """,
    )
    out = scripts.run_file(
        """
        import sys, os
        sys.path.insert(0, os.path.abspath("site-packages"))
        from library import state
        from parcoll.world import settings
        assert settings.settings_of(state) == {}, settings.settings_of(state)
        state.begin()
        state.Kind._hidden = 3
        assert settings.settings_of(state) == {}
        state.LIMIT, state.NAME, state.b, state.Kind.count = 2, "c", 6, 4
        state.alias, state.EITHER = state.begin, 7
        found = settings.settings_of(state)
        assert found == {"LIMIT": 2, "NAME": "c", "b": 6, "Kind.count": 4, "alias": state.begin}, found
        print("done")
        """
    )
    assert out == "done\n"


def test_nothing_is_taken_for_the_program_s_that_a_library_has_put_there(scripts: Scripts) -> None:
    """Of all modules that a large program imports."""
    out = scripts.run_file(
        """
        import asyncio, concurrent.futures, csv, ctypes, decimal, email, http.client, inspect, json
        import logging.config, multiprocessing, sqlite3, ssl, statistics, sys, unittest.mock, urllib.request
        import xml.etree.ElementTree
        import attrs, cloudpickle, distributed, httpx, msgspec, numpy, pydantic, pyarrow, requests
        from parcoll.world import settings
        own = ("__main__", "parcoll")
        modules = [m for name, m in sys.modules.copy().items() if not name.startswith(own)]
        found = {m.__name__: settings.settings_of(m) for m in modules if sys.modules.get(m.__name__) is m}
        print({name: list(names) for name, names in found.items() if names})
        """
    )
    assert out == "{}\n"


def test_what_has_no_bytecode_has_no_settings() -> None:
    assert settings.settings_of(sys) == {}
    assert settings.settings_of(type(sys)("made")) == {}
