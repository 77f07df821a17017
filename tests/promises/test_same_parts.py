"""What a program has changed in functions, classes, enums and objects of its modules, workers have too."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripts import Scripts
from ways import Make, One

from parcoll import parallel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


def same(one: One, look: Callable[[Any], Any]) -> Any:
    """Return what a function gives here, which is what it gives on each of two workers."""
    right = look(0)
    assert [one(look) for _ in range(3)] == [right] * 3
    return right


# Functions ----------------------------------------------------------------------------------------

FUNCTIONS = """
import dataclasses
LIMIT = object()
def area(x, y=1, *, unit="m"):
    return x * y, unit
def bounded(x, limit=LIMIT, seen=[]):
    return x, limit is LIMIT, seen
def first(x):
    return "first"
class Shape:
    def scale(self, by=2): return by
    @staticmethod
    def corners(n=4): return n
    @classmethod
    def named(cls, name="shape"): return name
    class Side:
        length = 1
        def twice(self, by=2): return by * self.length
@dataclasses.dataclass
class Row:
    number: int = 1
    parts: list = dataclasses.field(default_factory=list)
"""


def test_default_values_of_functions(one: One, make: Make) -> None:
    module = make("w_defaults", FUNCTIONS)

    def look(_: object) -> Any:
        return module.area(2), module.bounded(1)

    module.area.__defaults__ = (5,)  # before the first evaluation
    assert same(one, look) == ((10, "m"), (1, True, []))
    module.area.__kwdefaults__["unit"] = "ft"
    assert same(one, look)[0] == (10, "ft")
    module.area.__kwdefaults__ = {"unit": "in"}
    module.bounded.__defaults__[1].append("seen")
    assert same(one, look) == ((10, "in"), (1, True, ["seen"]))
    module.area.__defaults__ = (1,)
    assert same(one, look)[0] == (2, "in")
    module.Row.__init__.__defaults__ = (7, *module.Row.__init__.__defaults__[1:])
    assert same(one, lambda _: (module.Row().number, module.Row().parts)) == (7, [])
    module.bounded.__defaults__ = (None, module.area)
    assert same(one, lambda _: module.bounded(1)[2](1)) == (1, "in")


def test_default_values_of_methods_and_classes_within_classes(one: One, make: Make) -> None:
    module = make("w_methods_of", FUNCTIONS)
    shape = module.Shape

    def look(_: object) -> Any:
        kind = module.Shape
        tag = getattr(kind.scale, "tag", None)
        return kind().scale(), kind.corners(), kind.named(), kind.Side.length, kind.Side().twice(), tag

    assert same(one, look) == (2, 4, "shape", 1, 2, None)
    shape.scale.__defaults__ = (3,)
    shape.corners.__defaults__ = (5,)
    shape.named.__func__.__defaults__ = ("other",)
    shape.Side.length = 7
    shape.scale.tag = ["seen"]
    assert same(one, look) == (3, 5, "other", 7, 14, ["seen"])
    shape.Side.twice = lambda self: "fake"
    shape.scale.tag.append("again")
    assert same(one, look) == (3, 5, "other", 7, "fake", ["seen", "again"])


def test_code_of_functions(one: One, make: Make) -> None:
    module = make("w_code", FUNCTIONS)

    def second(x: int) -> str:
        return "second"

    code = module.first.__code__
    module.first.__code__ = second.__code__
    assert same(one, lambda x: module.first(x)) == "second"
    module.first.__code__ = (lambda x: "third").__code__
    assert same(one, lambda x: module.first(x)) == "third"
    module.first.__code__ = code
    assert same(one, lambda x: module.first(x)) == "first"


# Classes ------------------------------------------------------------------------------------------


def test_what_is_deleted_from_a_class_or_a_function(one: One, make: Make) -> None:
    module = make(
        "w_deleted",
        """
        def fetch(x): return x
        fetch.cache = {}
        class Client:
            timeout = 5
            def get(self): return "real"
        """,
    )

    def look(_: object) -> tuple[bool, ...]:
        client = module.Client
        return hasattr(client, "timeout"), hasattr(client, "get"), hasattr(module.fetch, "cache")

    assert same(one, look) == (True, True, True)
    del module.Client.timeout, module.Client.get, module.fetch.cache
    assert same(one, look) == (False, False, False)
    module.Client.get = lambda self: "new"
    module.fetch.cache = {1: 2}
    assert same(one, lambda _: (module.Client().get(), module.fetch.cache)) == ("new", {1: 2})


def test_bases_of_a_class(one: One, make: Make) -> None:
    module = make(
        "w_bases",
        """
        class First:
            def who(self): return "first"
        class Second:
            def who(self): return "second"
        class Client(First): pass
        """,
    )

    def look(_: object) -> tuple[str, list[str]]:
        return module.Client().who(), [base.__name__ for base in module.Client.__bases__]

    module.Client.__bases__ = (module.Second,)
    assert same(one, look) == ("second", ["Second"])
    module.Client.__bases__ = (module.First, module.Second)
    assert same(one, look) == ("first", ["First", "Second"])
    module.Client.__bases__ = (module.First,)
    assert same(one, look) == ("first", ["First"])


def test_attributes_of_an_enum_s_members(one: One, make: Make) -> None:
    module = make(
        "w_enum",
        """
        import enum
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
            CRIMSON = 1
        Color.RED.note = "first"
        class Planet(enum.Enum):
            EARTH = (5.9, [1])
            def __init__(self, mass, moons):
                self.mass, self.moons = mass, moons
        """,
    )

    def look(_: object) -> Any:
        red, blue = (getattr(color, "note", None) for color in (module.Color.RED, module.Color.BLUE))
        return red, blue, module.Planet.EARTH.mass, module.Planet.EARTH.moons

    assert same(one, look) == ("first", None, 5.9, [1])
    module.Color.RED.note = "second"
    module.Color.BLUE.note = ["b"]
    module.Planet.EARTH.moons.append(2)
    assert same(one, look) == ("second", ["b"], 5.9, [1, 2])
    del module.Color.RED.note
    module.Color.BLUE.note.append("c")
    assert same(one, look) == (None, ["b", "c"], 5.9, [1, 2])


SCRIPT = """
import enum
from parcoll import parallel

class Planet(enum.Enum):
    EARTH = (5, 2)
    MARS = (3, 1)
    TERRA = (5, 2)
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius
    @property
    def gravity(self): return self.mass / self.radius ** 2

class Access(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3

class First:
    who = "first"
class Second:
    who = "second"
class Client(First): pass

def look(_):
    planets = [(p.mass, p.gravity, getattr(p, "note", None)) for p in Planet]
    members = list(Planet.__members__), Planet["TERRA"] is Planet.EARTH, Access["BOTH"].value
    return planets, members, Client.who

def ask(change):
    change()
    got = [*parallel([0, 1], partition_size=1).map(look), *parallel([0], timeout=60).map(look)]
    assert got == [look(0)] * 3, (got, look(0))

ask(lambda: None)
ask(lambda: setattr(Planet.EARTH, "mass", 6))
ask(lambda: setattr(Planet.MARS, "note", ["red"]))
ask(lambda: Planet.MARS.note.append("dry"))
ask(lambda: delattr(Planet.MARS, "note"))
ask(lambda: setattr(Client, "__bases__", (Second,)))
print("same")
"""


def test_enums_and_bases_of_the_script_itself(scripts: Scripts) -> None:
    """An enum whose `__init__` gives its members attributes, as in Python's own documentation."""
    assert scripts.run_file(SCRIPT) == "same\n"


# Objects ------------------------------------------------------------------------------------------

LOCKED = """
import threading
class Cache:
    def __init__(self):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.found = {}
    def put(self, key, value):
        with self.changed:
            self.found[key] = value
            self.changed.notify_all()
        return self.found
cache = Cache()
class Settings:
    current = None
stop = threading.Event()
thread = None
"""


def test_objects_that_have_a_lock(one: One, make: Make) -> None:
    """The lock is the worker's own, also where the script's is taken."""
    module = make("w_locked", LOCKED)

    def look(_: object) -> Any:
        module.cache.changed.acquire()
        module.cache.changed.notify_all()
        module.cache.changed.release()
        current = module.Settings.current
        return module.cache.found, current and current.found, module.stop.is_set()

    assert same(one, look) == ({}, None, False)
    module.cache.put("a", 1)
    module.stop.set()
    assert same(one, look) == ({"a": 1}, None, True)
    module.Settings.current = module.Cache()
    module.Settings.current.put("b", 2)
    with module.cache.lock:
        assert one(look) == ({"a": 1}, {"b": 2}, True)
    module.cache.put("c", 3)
    module.stop.clear()
    assert same(one, look) == ({"a": 1, "c": 3}, {"b": 2}, False)


def test_an_object_that_has_a_thread_stays_what_the_import_gave(one: One, make: Make) -> None:
    module = make("w_threaded", LOCKED)
    module.cache.thread = threading.Thread(target=print)
    module.cache.put("a", 1)
    assert one(lambda _: module.cache.found) == {}
    module.cache = module.Cache()
    module.cache.put("b", 1)
    assert same(one, lambda _: module.cache.found) == {"b": 1}


def test_an_object_of_a_package_that_the_script_gives_a_name(one: One, make: Make) -> None:
    """A model that was loaded, a session with its headers: the module has no more than a name for it."""
    requests = pytest.importorskip("requests")
    module = make(
        "w_given",
        """
        import json
        session = None
        encoder = json.JSONEncoder()
        class Settings:
            encoder = None
        def connect():
            global session
            import requests
            session = requests.Session()
            session.headers["token"] = "a"
        """,
    )

    def look(_: object) -> Any:
        headers = getattr(module.session, "headers", {}).get("token")
        added = getattr(module, "added", None)
        return headers, [getattr(e, "indent", 0) for e in (module.encoder, module.Settings.encoder, added)]

    assert same(one, look) == (None, [None, 0, 0])
    module.connect()
    assert same(one, look) == ("a", [None, 0, 0])
    module.session.headers["token"] = "b"
    module.encoder = json.JSONEncoder(indent=1)
    module.Settings.encoder = json.JSONEncoder(indent=2)
    module.added = json.JSONEncoder(indent=3)
    assert same(one, look) == ("b", [1, 2, 3])
    module.session = requests.Session()
    module.encoder.indent = 4
    del module.added
    assert same(one, look) == (None, [4, 2, 0])


NUMBERS = """
import random
import numpy
seeded = random.Random(7)
made = numpy.random.default_rng(7)
old = numpy.random.RandomState(7)
own = random.Random()
own_too = numpy.random.default_rng()
class Model:
    numbers = random.Random(3)
    own = random.Random()
"""


def test_generators_of_random_numbers_go_on_where_the_script_s_are(one: One, make: Make) -> None:
    module = make("w_numbers", NUMBERS)
    other = make("w_numbers_too", "from w_numbers import seeded, old\n")

    def look(_: object) -> Any:
        numbers = module.seeded, module.Model.numbers
        states = [generator.getstate() for generator in numbers]
        shared = other.seeded is module.seeded, other.old is module.old
        return states, module.made.bit_generator.state, str(module.old.get_state()), shared

    seeded, of_class = random.Random(7), random.Random(3)
    states, *_, shared = same(one, look)
    assert (states, shared) == ([seeded.getstate(), of_class.getstate()], (True, True))
    drawn = [module.seeded.random(), module.Model.numbers.random(), module.made.random(), module.old.normal()]
    assert drawn[:2] == [seeded.random(), of_class.random()]
    states, *_, shared = same(one, look)
    assert (states, shared) == ([seeded.getstate(), of_class.getstate()], (True, True))
    module.seeded.seed(1)
    module.made.bit_generator.state = np.random.default_rng(3).bit_generator.state
    module.old.seed(1)
    states, made, old, shared = same(one, look)
    assert (states[0], shared) == (random.Random(1).getstate(), (True, True))
    assert made == np.random.default_rng(3).bit_generator.state
    assert old == str(np.random.RandomState(1).get_state())


@pytest.mark.parametrize("name", ["own", "own_too", "Model.own"])
def test_a_generator_without_a_seed_is_each_worker_s_own(way: str, make: Make, name: str) -> None:
    """Else workers would all draw the same numbers."""
    module = make("w_unseeded", NUMBERS)
    generator = module.Model.own if name == "Model.own" else getattr(module, name)

    def draw(_: object) -> float:
        found: Any = module.Model if name == "Model.own" else module
        return float(getattr(found, name.rpartition(".")[2]).random())

    drawn = list(parallel(range(40), partition_size=4).map(draw))
    assert len(set(drawn)) == 40
    # What the script has changed since travels.
    if name == "own_too":
        generator.bit_generator.state = np.random.default_rng(3).bit_generator.state
    else:
        generator.seed(3)
    expected = np.random.default_rng(3) if name == "own_too" else random.Random(3)
    assert next(iter(parallel([0]).map(draw))) == float(expected.random())


# One object at two places -------------------------------------------------------------------------

PLACES = """
class Node:
    def __init__(self, n): self.n = n; self.other = None
tree = Node(1)
rows = [1]
state = {"tree": tree, "deep": [0, {"rows": rows}]}
alias = None
one, two = Node(1), Node(2)
class Registry:
    last = Node(5)
    seen = [tree]
"""


def test_an_object_that_two_names_lead_to(one: One, make: Make) -> None:
    module = make("w_places", PLACES)
    other = make("w_places_too", "from w_places import tree\nheld = {'tree': None}\n")

    def look(_: object) -> Any:
        tree, deep = module.state["tree"], module.state["deep"][1]["rows"]
        held = other.held["tree"]
        return (
            (tree is module.tree, tree.n, module.tree.n, deep is module.rows, deep, module.rows),
            (module.Registry.seen[0] is module.tree, module.Registry.seen[0].n),
            (module.alias is module.Registry.last, module.alias and module.alias.n, module.Registry.last.n),
            (module.one.other is module.two, module.two.other is module.one, module.two.n),
            (other.tree is module.tree, other.tree.n, held is module.tree, held and held.n),
        )

    module.tree = module.Node(2)  # before the first evaluation: the others have the first one still
    in_state, in_class, alias, _, of_other = same(one, look)
    assert in_state == (False, 1, 2, True, [1], [1])
    assert (in_class, alias, of_other) == ((False, 1), (False, None, 5), (False, 1, False, None))
    module.state["tree"] = module.tree
    module.rows.append(2)
    assert same(one, look)[0] == (True, 2, 2, True, [1, 2], [1, 2])
    module.tree.n = 3
    module.alias = module.Registry.last
    module.one.other, module.two.other = module.two, module.one
    in_state, in_class, alias, pair, _ = same(one, look)
    assert in_state == (True, 3, 3, True, [1, 2], [1, 2])
    assert (in_class, alias, pair) == ((False, 1), (True, 5, 5), (True, True, 2))
    module.alias.n = 6
    other.held["tree"] = module.tree
    module.rows = [7]
    module.two = module.Node(9)
    in_state, _, alias, pair, of_other = same(one, look)
    assert in_state == (True, 3, 3, False, [1, 2], [7])
    assert (alias, pair, of_other) == ((True, 6, 6), (False, False, 9), (False, 1, True, 3))
    module.tree = module.Node(4)
    module.alias = module.Node(8)
    in_state, _, alias, _, of_other = same(one, look)
    assert (in_state[:3], alias, of_other) == ((False, 3, 4), (False, 8, 6), (False, 1, False, 3))
    other.tree = module.tree
    module.Registry.seen[0] = module.tree
    module.Registry.last.n = 10
    _, in_class, alias, _, of_other = same(one, look)
    assert (in_class, alias, of_other) == ((True, 4), (False, 8, 10), (True, 4, False, 3))
    module.tree.n = 11
    in_state, in_class, *_, of_other = same(one, look)
    assert (in_state[:3], in_class, of_other) == ((False, 3, 11), (True, 11), (True, 11, False, 3))
