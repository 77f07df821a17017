"""Classes that have objects of themselves are on workers what they are in the script; their objects, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bare import bare_cluster
from class_texts import IDENTITY, KEYS, MEMBERS, NAMES, THEMSELVES
from field_texts import FIELDS
from scripts import Scripts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

TEXTS = {"themselves": THEMSELVES, "identity": IDENTITY, "keys": KEYS, "names": NAMES, "members": MEMBERS}
TEXTS["fields"] = FIELDS
ASKED = {"themselves": 26, "identity": 20, "keys": 13, "names": 10, "members": 14, "fields": 6}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("timeout", ["", "1"])
def test_they_are_those_of_the_script(scripts: Scripts, name: str, timeout: str) -> None:
    told = scripts.run_with(scripts.write("script.py", TEXTS[name]), env={"PROBE_TIMEOUT": timeout})
    assert told == (f"{ASKED[name]} questions\n", "")


@pytest.mark.parametrize("one", ["bare"])
def test_so_they_are_on_another_s_cluster(scripts: Scripts, tmp_path: Path, one: str) -> None:
    with bare_cluster(tmp_path / "cluster", 2, lacking=("parcoll",)) as cluster:
        for name, text in TEXTS.items():
            env = {"PROBE_ADDRESS": str(cluster.file)}
            told = scripts.run_with(scripts.write("script.py", text), env=env)
            assert told == (f"{ASKED[name]} questions\n", ""), name


def test_an_attribute_that_cannot_be_sent_is_missed_by_who_asks_for_it(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        import concurrent.futures, sqlite3
        from parcoll import SerializationError, connect, parallel
        class Store:
            database = sqlite3.connect(":memory:")
            out = open("out.txt", "w")
            pool = concurrent.futures.ThreadPoolExecutor()
            numbers = (n for n in range(3))
            limit = 2
            def get(self):
                return self.limit
        with connect(n_workers=1):
            for timeout in (None, 30):
                assert list(parallel([Store()], timeout=timeout).map(lambda s: s.get())) == [2]
                for name in ("database", "out", "pool", "numbers"):
                    try:
                        list(parallel([Store()], timeout=timeout).map(lambda s: getattr(s, name)))
                    except SerializationError as error:
                        print(error)
        """
    )
    told = [
        "Store.database is not on the workers: its value, of type Connection, cannot be sent (cannot pickle "
        "'sqlite3.Connection' object)",
        "Store.out is not on the workers: its value, of type TextIOWrapper, cannot be sent (it is open for "
        "writing)",
        "Store.pool is not on the workers: its value, of type ThreadPoolExecutor, cannot be sent (it belongs "
        "to the process that made it)",
        "Store.numbers is not on the workers: its value, of type generator, cannot be sent (cannot pickle "
        "'generator' object)",
    ]
    advice = ": make it within the function, or once in each worker with @per_worker\n"
    assert out == "".join(line + advice for line in told) * 2


def test_a_class_of_a_module_may_say_that_it_is_the_script_s(scripts: Scripts) -> None:
    scripts.write(
        "shapes.py",
        """
        FACTOR = 7
        def scaled(x): return x * FACTOR
        class Shape:
            __module__ = "__main__"
            sides = 1
            def __init__(self, size): self.size = size
            def area(self): return scaled(self.size) + self.sides
            def __eq__(self, other): return type(other) is Shape and self.size == other.size
        """,
    )
    out = scripts.run_file(
        """
        import shapes
        from shapes import Shape
        from parcoll import connect, parallel
        def look(shape):
            return shape.area(), type(shape) is Shape, shapes.Shape is Shape, Shape(3).area()
        with connect(n_workers=1):
            for timeout in (None, 30):
                for shapes.FACTOR in (7, 8):
                    Shape.sides += 1
                    assert list(parallel([Shape(2)], timeout=timeout).map(look)) == [look(Shape(2))]
                    assert list(parallel([2], timeout=timeout).map(Shape)) == [Shape(2)]
        print("done")
        """
    )
    assert out == "done\n"
