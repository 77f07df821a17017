"""Functions find the options that the script has set of pandas and matplotlib."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from ways import One

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


def test_options_of_pandas(one: One) -> None:
    pandas = pytest.importorskip("pandas")

    def look(_: object) -> Any:
        import pandas  # lazy: it is imported on the worker, by the function

        frame = pandas.DataFrame({"first": [1 / 3, 2.0] * 20})
        return repr(frame), pandas.get_option("display.max_rows"), pandas.options.mode.sim_interactive

    before = look(0)
    assert one(look) == before
    with pandas.option_context("display.max_rows", 7, "display.float_format", lambda x: f"<{x:.1f}>"):
        assert one(look) == look(0) != before
        pandas.options.mode.sim_interactive = True
        assert one(look) == look(0)
        assert look(0)[2] is True
        pandas.reset_option("mode.sim_interactive")
    assert one(look) == look(0) == before


def test_an_option_that_a_function_sets_is_the_script_s_again_where_that_sets_it(one: One) -> None:
    pandas = pytest.importorskip("pandas")
    with pandas.option_context("display.width", 33):
        assert one(lambda _: pandas.get_option("display.width")) == 33
    with pandas.option_context("display.width", 44):
        assert one(lambda _: pandas.set_option("display.width", 55)) is None
    with pandas.option_context("display.width", 45):
        assert one(lambda _: pandas.get_option("display.width")) == 45


def test_parameters_of_matplotlib(one: One) -> None:
    matplotlib = pytest.importorskip("matplotlib")

    def size(_: object) -> Any:
        from matplotlib.figure import Figure  # lazy: it is imported on the worker, by the function

        drawn = io.BytesIO()
        figure = Figure()
        figure.subplots().plot([1, 2])
        figure.savefig(drawn, format="png")
        width, height = (int.from_bytes(drawn.getvalue()[at : at + 4], "big") for at in (16, 20))
        return width, height, matplotlib.rcParams["lines.color"]

    def backend(_: object) -> str:
        return str(dict.__getitem__(matplotlib.rcParams, "backend")).lower()

    chosen = [(name, dict.__getitem__(matplotlib.rcParams, name)) for name in ("backend", "backend_fallback")]
    before = size(0)
    assert one(size) == before == (640, 480, before[2])
    with matplotlib.rc_context({"figure.dpi": 50, "savefig.dpi": 50, "lines.color": "red"}):
        matplotlib.rcParams["figure.figsize"] = 2, 3
        assert one(size) == size(0) == (100, 150, "red")
        matplotlib.use("svg")
        assert one(backend) == backend(0) == "svg"
    for name, value in chosen:
        dict.__setitem__(matplotlib.rcParams, name, value)
    assert one(backend).partition(" at ")[0] == backend(0).partition(" at ")[0] != "svg"
    assert one(size) == before
