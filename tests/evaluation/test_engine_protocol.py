"""All engines have what an evaluation and a connection ask of one; inline needs no dask scheduler for it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from parcoll.cluster.engine import DistributedEngine
from parcoll.cluster.renewing import RenewingEngine
from parcoll.evaluation.engine import Engine
from parcoll.evaluation.inline import InlineEngine

MEMBERS = sorted(name for name in vars(Engine) if not name.startswith("_"))
PROPERTIES = ("renews", "in_background", "hands_back", "of_machine", "scratch")
PROPERTIES += ("address", "client", "dashboard_link")


@pytest.mark.parametrize("engine", [InlineEngine, DistributedEngine, RenewingEngine])
def test_an_engine_has_all_members_with_the_same_arguments(engine: Any):
    source = inspect.getsource(engine)
    for name in MEMBERS:
        if name in PROPERTIES:
            assert hasattr(engine, name) or f"self.{name} = " in source, name
        else:
            wanted = list(inspect.signature(getattr(Engine, name)).parameters)
            assert list(inspect.signature(getattr(engine, name)).parameters) == wanted, name


def test_inline_keeps_and_reads_results_without_distributed():
    code = """
        import sys
        from parcoll import connect, parallel
        with connect("inline") as connection:
            numbers = parallel(range(4))
            numbers.foreach(lambda x: x * 2)
            assert list(numbers) == [0, 2, 4, 6]
            assert numbers.reduce(lambda a, b: a + b) == 12
            assert numbers.fold(lambda a, b: a + b, 0) == 12
            assert (connection.address, connection.dashboard_link) == ("inline", None)
        print("distributed" in sys.modules)
        """
    lines = [line[8:] for line in code.splitlines()]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n", run.stderr
