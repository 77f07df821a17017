"""A function finds in a worker's `__main__` what the script has; classes are as the script made them."""

from __future__ import annotations

import os

import pytest
from script_texts import CLASSES, PLUGINS, WORLD
from scripts import Scripts, lines

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

TEXTS = {"world": (WORLD, "33 questions\n"), "classes": (CLASSES, "40 questions\n")}


def ask(scripts: Scripts, name: str, *arguments: str, stdin: bool = False, **env: str) -> None:
    """Run one of the scripts; it has nothing to tell."""
    text, expected = TEXTS[name]
    scripts.write("plugins.py", PLUGINS)
    script = scripts.write("script.py", text)
    given = arguments or ("-" if stdin else str(script),)
    process = scripts.start(*given, stdin=-1, env=env)
    out, err = process.communicate(text if stdin else None, timeout=120)
    assert (out, err, process.returncode) == (expected, "", 0), out + err
    if name == "world":
        assert lines(scripts.folder / "runs") == ["run"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("way", ["file", "timeout", "-c", "-m", "stdin"])
def test_a_function_finds_what_the_script_has(scripts: Scripts, way: str, name: str) -> None:
    arguments = {"-c": ("-c", TEXTS[name][0]), "-m": ("-m", "script")}.get(way, ())
    env = {"PROBE_TIMEOUT": "1"} if way == "timeout" else {}
    ask(scripts, name, *arguments, stdin=way == "stdin", **env)
