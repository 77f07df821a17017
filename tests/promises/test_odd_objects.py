"""Objects whose classes say how they are made, functions of `exec`, and modules that need each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bare import bare_cluster
from object_texts import CIRCLES, FUNCTIONS, MODULES, OBJECTS
from scripts import Scripts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

TEXTS = {"objects": (OBJECTS, 27), "functions": (FUNCTIONS, 19), "circles": (CIRCLES, 10)}


def written(scripts: Scripts, text: str) -> Path:
    """Write a script, and the modules beside it."""
    for name, module in MODULES.items():
        scripts.write(name, module)
    return scripts.write("script.py", text)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("timeout", ["", "1"])
def test_functions_find_them_as_the_script_has_them(scripts: Scripts, name: str, timeout: str) -> None:
    text, questions = TEXTS[name]
    told = scripts.run_with(written(scripts, text), env={"PROBE_TIMEOUT": timeout})
    assert told == (f"{questions} questions\n", "")


@pytest.mark.parametrize("one", ["bare"])
def test_so_they_do_on_another_s_cluster(scripts: Scripts, tmp_path: Path, one: str) -> None:
    with bare_cluster(tmp_path / "cluster", 2, lacking=("parcoll",)) as cluster:
        for name, (text, questions) in TEXTS.items():
            told = scripts.run_with(written(scripts, text), env={"PROBE_ADDRESS": str(cluster.file)})
            assert told == (f"{questions} questions\n", ""), name
