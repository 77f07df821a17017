"""What counts as the same function and the same elements."""

from __future__ import annotations

import datetime
import enum
import functools
import importlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parcoll.checkpoint import digest
from parcoll.checkpoint.fingerprint import difference, of_function


# What is compared
def compiled(text: str, name: str = "func", **names: Any) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__"} | names
    exec(compile(text, "<a script>", "exec"), namespace)
    return namespace[name]


SAME = [
    ("def func(x): return x + 1", "\n\n\ndef func(x): return x + 1"),
    ("def func(x): return x + 1", "# comment\ndef func(x):\n    # why\n    return x + 1"),
    ("def func(x):\n 'One.'\n return x", "def func(x):\n 'Another.'\n return x"),
    ("def func(x):\n y = x\n return y", "def func(x):\n z = x\n return z"),
    ("def g(x): return x\ndef func(x): return g(x)", "def func(x): return g(x)\ndef g(x): return x"),
    ("K = 1\nL = 2\ndef func(x): return x + K", "K = 1\nL = 3\ndef func(x): return x + K"),
    ("import math\ndef func(x): return math.sin(x)", "import math, os\ndef func(x): return math.sin(x)"),
]

OTHER = [
    ("def func(x): return x + 1", "def func(x): return x + 2"),
    ("def func(x): return x + 1", "def func(x): return x - 1"),
    ("def func(x): return x == 1", "def func(x): return x == 1.0"),
    ("def func(x): return x == 1", "def func(x): return x == True"),
    ("def func(x, k=1): return k", "def func(x, k=2): return k"),
    ("def func(x, *, k=1): return k", "def func(x, *, k=2): return k"),
    ("K = 1\ndef func(x): return x + K", "K = 2\ndef func(x): return x + K"),
    ("K = {1, 2}\ndef func(x): return x in K", "K = {1, 3}\ndef func(x): return x in K"),
    ("def g(x): return x\ndef func(x): return g(x)", "def g(x): return -x\ndef func(x): return g(x)"),
    ("def func(x): return [y + 1 for y in x]", "def func(x): return [y + 2 for y in x]"),
    ("def func(x): return math.sin(x)", "def func(x): return math.cos(x)"),
    ("class func:\n def __call__(s, x): return 1", "class func:\n def __call__(s, x): return 2"),
    ("class A:\n k = 1\ndef func(x): return A.k", "class A:\n k = 2\ndef func(x): return A.k"),
    ("def func(x):\n 'a'\n return 'a'", "def func(x):\n 'b'\n return 'b'"),
    (
        "def f(x): return x\nimport functools\nfunc = functools.lru_cache(f)",
        "def f(x): return -x\nimport functools\nfunc = functools.lru_cache(f)",
    ),
    (
        "import numpy\ndef f(x): return x\nfunc = numpy.vectorize(f)",
        "import numpy\ndef f(x): return -x\nfunc = numpy.vectorize(f)",
    ),
    (
        "from collections import defaultdict\nK = defaultdict(lambda: 1)\ndef func(x): return K[x]",
        "from collections import defaultdict\nK = defaultdict(lambda: 2)\ndef func(x): return K[x]",
    ),
    ("K = [(1, [2])]\ndef func(x): return K", "K = [(1, [3])]\ndef func(x): return K"),
    ("import re\nfunc = re.compile('a').match", "import re\nfunc = re.compile('b').match"),
    (
        "import functools\nfunc = functools.partial(pow, 2)",
        "import functools\nfunc = functools.partial(pow, 3)",
    ),
]


# An object of a class of the user's own that holds 1, as one of what it derives from; and it holds 2.
HOLDING = [
    "from typing import NamedTuple\nclass K(NamedTuple): n: int\nk = K(1)",
    "from collections import namedtuple\nk = namedtuple('K', 'n')(1)",
    "class K(dict): pass\nk = K(a=1)",
    "class K(list): pass\nk = K([1])",
    "class K(int): pass\nk = K(1)",
    "class K(str): pass\nk = K('1')",
    "class K(frozenset): pass\nk = K([1])",
    "class K(Exception): pass\nk = K(1)",
    "class K(dict): __getattr__ = dict.get\nk = K(a=1)",
    "import abc\nclass K(abc.ABC, list): pass\nk = K([1])",
    "import collections\nclass K(collections.deque): pass\nk = K([1])",
    "import fractions\nclass K(fractions.Fraction): pass\nk = K(1)",
    "class K:\n __slots__ = ('__x',)\n def __init__(s, x): s.__x = x\nk = K(1)",
    "import enum\nclass K(enum.Enum): A = 1\nk = K.A",
    "import enum\nclass K(enum.Enum): A = 1\nk = K",
    "class M(type):\n def __call__(cls): return 1\nclass K(metaclass=M): pass\nk = K",
    "def f(): pass\nclass K:\n def __init__(s, n):\n  s.n = n\n  s.__wrapped__ = f\nk = K(1)",
]


@pytest.mark.parametrize("text", HOLDING)
def test_what_an_object_holds_is_a_change(text: str):
    one = f"{text}\ndef func(x): return k"
    other = one.replace("(1)", "(2)").replace("=1)", "=2)").replace("'1'", "'2'").replace("A = 1", "A = 2")
    other = other.replace("return 1", "return 2").replace("([1])", "([2])")
    assert one != other
    assert of_function(compiled(one)) == of_function(compiled(one))
    assert of_function(compiled(one)) != of_function(compiled(other))


def test_flags_that_were_combined_meanwhile_are_no_change():
    text = "import enum\nclass K(enum.Flag):\n A = 1\n B = 2\n C = 4\ndef func(x): return K"
    one, other = compiled(text), compiled(text)
    kind = other.__globals__["K"]
    assert kind.A | kind.B in (kind.A | kind.B | kind.C)
    assert of_function(one) == of_function(other)


SETS = """
import dataclasses, datetime, enum, sys
from parcoll.checkpoint.fingerprint import of_function

class Kind(enum.Enum):
    A, B, C, D = "abcd"

@dataclasses.dataclass(frozen=True)
class Point:
    x: str

days = {datetime.date(2026, 1, day) for day in range(1, 9)}
kinds = frozenset(Kind)
points = {Point(x): {x} for x in "abcdef"}

def func(x):
    return days, kinds, points

print(sorted(of_function(func).items()))
"""


def test_sets_of_objects_are_the_same_in_every_process():
    found = set()
    for seed in range(4):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", SETS]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


MODULES = {
    "attribute": ("import inner.deep", "inner.deep.scale(x)"),
    "within": ("", "__import__ and scale(x)", "from inner.deep import scale"),
    "within, as a module": ("", "deep.scale(x)", "from inner import deep"),
    "within, by way of another": ("", "other.scale(x)", "import inner.other as other"),
}


@pytest.mark.parametrize("which", MODULES)
def test_modules_below_modules_and_those_imported_within_count(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is written there, not how it is laid out; and nothing of modules that it has no part in."""
    package = tmp_path / "inner"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    head, value, *within = MODULES[which]
    text = f"{head}\ndef func(x):\n    {within[0] if within else ''}\n    return {value}"

    def digests(deep: str, apart: str = "") -> Any:
        (package / "__init__.py").write_text("")
        (package / "deep.py").write_text(deep)
        (package / "other.py").write_text("from .deep import scale\n")
        (package / "apart.py").write_text(apart)
        for name in [name for name in sys.modules if name.partition(".")[0] == "inner"]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return of_function(compiled(text))

    one = digests("def scale(x): return x * 10\n")
    assert digests("# why\n\ndef scale(x):\n    return x * 10\n", "y = 1\n") == one
    other = digests("def scale(x): return x * 200\n")
    assert other != one
    told = difference(*([{"label": "map(func)", "kind": "map", "parts": parts}] for parts in (one, other)))
    assert told is not None
    if within:
        assert "', which the function of step 1, map(func), imports, has changed" in told
        assert told.startswith("the module 'inner")
    else:
        assert told == "inner.deep.scale of step 1, map(func), has changed"


@pytest.mark.parametrize(("one", "other"), SAME)
def test_where_a_function_stands_is_no_change(one: str, other: str):
    assert of_function(compiled(one)) == of_function(compiled(other))


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_a_function_does_is_a_change(one: str, other: str):
    assert of_function(compiled(one)) == of_function(compiled(one))
    assert of_function(compiled(one)) != of_function(compiled(other))


@pytest.mark.parametrize("names", ["all", "next"])
def test_functions_that_refer_to_each_other(names: str):
    """A thousand in a row, or a hundred of which each names all: a change in the last is seen."""
    count = 1000 if names == "next" else 100

    def chain(last: int) -> Any:
        lines = []
        for i in range(count):
            others = [f"f{(i + 1) % count}"] if names == "next" else [f"f{j}" for j in range(count)]
            constant = last if i == count - 1 else i
            lines.append(f"def f{i}(x): return [{', '.join(others)}, x + {constant}]")
        return of_function(compiled("\n".join(lines), "f0"))

    assert chain(7) == chain(7)
    assert chain(7) != chain(8)


class Colour(enum.Enum):
    RED = 1


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


ELEMENTS: list[Callable[[], Any]] = [
    lambda: 1,
    lambda: True,
    lambda: 1.0,
    lambda: "a",
    lambda: b"a",
    lambda: None,
    lambda: (1, 2),
    lambda: [1, 2],
    lambda: {"a": 1},
    lambda: {"a": 2},
    lambda: {"a", "b"},
    lambda: frozenset({"a", "b"}),
    lambda: {"x": [{"p", "q"}]},
    lambda: {"x": [{"p", "r"}]},
    lambda: Colour.RED,
    lambda: Holder(1),
    lambda: Holder(2),
    lambda: Holder({"a", "b", "c"}),
    lambda: Holder({"a", "b", "d"}),
    lambda: Counter("aab"),
    lambda: datetime.date(2026, 1, 1),
    lambda: Path("a"),
    lambda: np.arange(3),
    lambda: np.arange(3.0),
    lambda: np.arange(4)[::2],
    lambda: np.array(["a", "b"], dtype=object),
    lambda: np.float32(1),
    lambda: ("x" * 300, "y" * 300),
]


def test_equal_elements_have_equal_digests_and_others_other_ones():
    found = [digest.of_elements([make()]) for make in ELEMENTS]
    assert found == [digest.of_elements([make()]) for make in ELEMENTS]
    assert len(set(found)) == len(found)


def test_it_does_not_matter_which_equal_parts_are_one_object():
    part = "".join(["some", "text"])
    other = "".join(["some", "text"])
    assert part is not other
    assert digest.of_elements([(part, part)]) == digest.of_elements([(part, other)])
    assert digest.of_elements([part, part]) == digest.of_elements([part, other])


@pytest.mark.parametrize("make", [lambda: lambda x: x, lambda: threading.Lock(), lambda: iter([1]).__next__])
def test_what_cannot_be_compared_counts_with_its_type(make: Callable[[], Any]):
    assert digest.of_elements([make()]) == digest.of_elements([make()])
    assert digest.of_elements([(1, make())]) != digest.of_elements([(2, make())])
    itself: list[Any] = []
    itself.append(itself)
    assert digest.of_elements([itself]) == digest.of_elements([itself])


def test_a_class_is_the_same_when_objects_of_it_were_pickled() -> None:
    """Python notes at the class then which slots it has."""
    text = "class Point:\n def __init__(self): self.x = 1\ndef func(x): return Point()"
    func = compiled(text)
    before = of_function(func)
    func(0).__reduce_ex__(2)
    assert "__slotnames__" in vars(type(func(0)))
    assert of_function(func) == before


class Cached:
    def __init__(self, x: int) -> None:
        self.x = x

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.x

    def __hash__(self) -> int:
        self._hash = hash(self.x)
        return self._hash


def test_an_object_is_the_same_when_it_has_computed_something_of_itself() -> None:
    def fingerprint_of(value: Any) -> Any:
        return of_function(lambda: value)

    cached = Cached(1)
    before, as_data = fingerprint_of(cached), digest.of_value(cached)
    assert (cached.double, hash(cached)) == (2, 1)
    assert (fingerprint_of(cached), digest.of_value(cached)) == (before, as_data)
    assert fingerprint_of(Cached(2)) != before
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2.5]}, index=pandas.date_range("2024-01-01", periods=2))
    before = fingerprint_of(frame)
    str(frame), frame.index.is_unique, frame["a"].sum()
    assert fingerprint_of(frame) == before
    assert fingerprint_of(frame.assign(a=[1, 3.0])) != before
    assert fingerprint_of(frame.set_index(frame.index.shift(1))) != before


MODEL = """
import pydantic
from parcoll.checkpoint.fingerprint import of_function
class Settings(pydantic.BaseModel):
    factor: int = {factor}
    name: str = "a"
    @pydantic.field_validator("name", mode={mode!r})
    @classmethod
    def check(cls, value): return value{end}
given = Settings(factor=3)
print(of_function(lambda: (Settings, given)))
"""


def test_a_pydantic_model_is_the_same_in_every_process() -> None:
    """Its schema and its validators hold addresses; its fields and what its validators do count."""
    pytest.importorskip("pydantic")

    def fingerprint(seed: int = 0, factor: int = 2, mode: str = "before", end: str = "") -> str:
        code = MODEL.format(factor=factor, mode=mode, end=end)
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert fingerprint() == fingerprint(seed=1)
    others = [fingerprint(factor=3), fingerprint(mode="after"), fingerprint(end=".strip()")]
    assert len({fingerprint(), *others}) == 4
