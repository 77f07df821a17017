"""Scripts with objects that pickle makes or fills by their own code, functions of `exec`, and module circles.

They ask as those of `script_texts` do, one question after the other, with one connection.
"""

from __future__ import annotations

from script_texts import _HEAD

_CONNECTED = _HEAD + "connection = connect(address) if address else connect(n_workers=2)\n"
_END = """
connection.close()
print(len(asked), "questions")
"""

OBJECTS = (
    _CONNECTED
    + """
import collections
# one for the whole script, by each of the usual ways
class Once:
    _one = None
    def __new__(cls, *arguments):
        if cls._one is None: cls._one = super().__new__(cls)
        return cls._one
    def __init__(self, *arguments):
        if not hasattr(self, "values"): self.values = {}
class Meta(type):
    _all = {}
    def __call__(cls, *a, **k):
        if cls not in cls._all: cls._all[cls] = super().__call__(*a, **k)
        return cls._all[cls]
class Config(metaclass=Meta):
    def __init__(self): self.values = {}
once, config = Once(), Config()
Once().values["a"] = 1; Config().values["b"] = 2
check("once", lambda x: (Once().values, once.values, Once() is once, Config() is config, Config().values))
check("el", lambda x: x in (Once(), Config()), [once, config])
once.values["a"] = 3; config.values["b"] = 4
check("changed", lambda x: (Once().values, Config().values, once.values["a"]))
made = list(parallel([1]).map(lambda x: Once()))
check("result", lambda x: x, [made[0] is once])
# what asks for an attribute that is not there yet
class Proxy:
    def __init__(self, inner): self._inner = inner
    def __getattr__(self, name): return getattr(self._inner, name)
for inner in ([1, 2], (1, 2), "ab", 5, {"a": 1}):
    proxy = Proxy(inner)
    check("proxy", lambda x: (proxy._inner, type(proxy).__name__))
    check("proxy el", lambda x: (x._inner, x.__class__ is Proxy), [proxy])
    assert next(iter(parallel([1]).map(lambda x: Proxy(inner))))._inner == inner
# what refuses to be set
class Fixed:
    __slots__ = ("a", "__dict__")
    def __init__(self, a): object.__setattr__(self, "a", a)
    def __setattr__(self, *_): raise TypeError("fixed")
fixed = Fixed(3)
check("fixed", lambda x: fixed.a); check("fixed el", lambda x: x.a, [fixed])
# a `__new__` with arguments of its own
class Pair:
    def __new__(cls, a, b):
        self = super().__new__(cls); self.a = a
        return self
    def __init__(self, a, b): self.b = b
pair = Pair(1, 2)
check("pair", lambda x: (pair.a, pair.b)); check("pair el", lambda x: (x.a, x.b), [pair])
class Metres(float):
    def __new__(cls, value, unit):
        self = super().__new__(cls, value * 1000); self.unit = unit
        return self
class Name(str):
    def __new__(cls, *parts): return super().__new__(cls, "/".join(parts))
class Row(tuple):
    def __new__(cls, *values): return super().__new__(cls, values)
class Point(collections.namedtuple("Point", "x y")):
    def __new__(cls, x, y=2): return super().__new__(cls, x * 10, y)
class Same(collections.namedtuple("Same", "x y")):
    def __new__(cls, x): return super().__new__(cls, x, x)
class Told(tuple):
    def __new__(cls, a, b): return super().__new__(cls, (a, b))
    def __getnewargs__(self): return self[0], self[1]
values = [Metres(2, "km"), Name("a", "b"), Row(1, 2), Point(1), Same(4), Told(1, 2)]
check("values", lambda x: [(type(v).__name__, v, getattr(v, "unit", None)) for v in values])
check("values el", lambda x: (type(x).__name__, x, getattr(x, "unit", None)), values)
back = list(parallel(values).map(lambda x: x))
check("back", lambda x: x, [back == values and list(map(type, back)) == list(map(type, values))])
# containers that note what is put into them
class Noted(dict):
    def __init__(self, name): super().__init__(); self.name = name
    def __setitem__(self, key, value): super().__setitem__(key, (self.name, value))
class Log(list):
    def __init__(self, name): super().__init__(); self.name = name
    def append(self, value): super().append((self.name, value))
    def extend(self, values): [self.append(value) for value in values]
noted, log = Noted("n"), Log("l")
noted["a"] = 1; log.append(2); noted["self"] = 3
check("noted", lambda x: (dict(noted), noted.name, list(log), log.name))
check("noted el", lambda x: (len(x), x.name, type(x).__name__), [noted, log])
# keys of tables, which have a hash of their own
class Key:
    def __new__(cls, name, table): return super().__new__(cls)
    def __init__(self, name, table): self.name, self.table = name, table; table[self] = name
    def __hash__(self): return hash(self.name)
    def __eq__(self, other): return self.name == other.name
key = Key("k", {})
check("key", lambda x: key.table[key]); check("key el", lambda x: x.table[x], [key])
# a mark
class Missing:
    _one = None
    def __new__(cls):
        cls._one = cls._one or super().__new__(cls)
        return cls._one
MISSING = Missing()
check("mark", lambda x: (x is MISSING, Missing() is MISSING), [MISSING])
check("mark back", lambda x: x, [next(iter(parallel([1]).map(lambda x: MISSING))) is MISSING])
"""
    + _END
)

FUNCTIONS = (
    _CONNECTED
    + """
import builtins, random, struct, tempfile
# of names of their own
names = {}
exec("def made(x): return x + OFF\\nOFF = 10", names)
made = names["made"]
check("made", made); check("made el", lambda f: f(1), [made])
check("by text", lambda x: globals()["made"](x))
names["OFF"] = 20
check("made", made); check("by text", lambda x: globals()["made"](x))
# with built-in names of their own
alone = eval("lambda x: abs(x)", {"__builtins__": {"abs": lambda x: "mine"}})
check("alone", alone); check("alone within", lambda x: alone(x))
inner = eval("lambda x: [(lambda y: y)(v) for v in (x,)]", {"__builtins__": {}})
check("inner", inner)
def refused(func):
    try: return func(1)
    except NameError as error: return str(error)
shut = eval("lambda x: open", {"__builtins__": {}})
shut_within = eval("lambda x: (lambda: open)()", {"__builtins__": {}})
check("shut", lambda x: (refused(shut), refused(shut_within)))
names = {"__builtins__": dict(vars(builtins), len=lambda x: -1)}
exec("def own(x): return len('a'), max(1, x), other()\\ndef other(): return len('a')\\n"
     "class Own:\\n    def go(self): return len('a')", names)
own, Own = names["own"], names["Own"]
check("own", own); check("own class", lambda x: Own().go()); check("own el", lambda x: x.go(), [Own()])
# objects of Python's own
header = struct.Struct("<ih")
check("struct", lambda x: header.pack(x, 1)); check("unpack", header.unpack, [header.pack(1, 2)])
dice = random.SystemRandom()
check("dice", lambda x: dice.randint(1, 1))
# a copy of a temporary file does not remove it
file = tempfile.NamedTemporaryFile("w+")
for func in (lambda x: file.name, lambda x: tempfile.NamedTemporaryFile("w+")):
    try: list(parallel([1], **options).map(func))
    except Exception as error: check("file", lambda x: x, ["temporary file, pass its name" in str(error)])
class Holds: at, limit = file, 2
check("holds", lambda x: Holds.limit); check("there", lambda x: x, [os.path.exists(file.name)])
"""
    + _END
)

MODULES = {
    "first.py": "import second\nLIMIT = 3\nTABLE = [second.add]\n",
    "second.py": "import first\ndef add(x): return x + first.LIMIT\n",
    "third.py": "import second\ndef twice(x): return second.add(x) * 2\n",
    "asks.py": "import __main__\ndef found(x): return __main__.RATES, __main__.limit\n",
    "edited.py": """
RATE, base = 3, abs
class Item:
    def go(self): return RATE, TABLE["a"], base(-1)
TABLE = {"a": 1}
""",
}

CIRCLES = (
    _CONNECTED
    + """
import importlib
import first, second, third, asks, edited
from edited import Item
# modules that import each other, from the one that they have to be imported by
check("third", third.twice); check("second", second.add); first.LIMIT = 10
check("changed", third.twice)
# one that has imported the script
RATES, limit = [1], 2
check("asks", asks.found); RATES.append(2); limit = 3
check("asks again", asks.found)
# a class that its module has no more
items = [Item()]
check("item", lambda x: x.go(), items); importlib.reload(edited)
check("reloaded", lambda x: x.go(), items); edited.RATE = 4
check("rate", lambda x: x.go(), items); edited.TABLE["a"] = 5
check("table", lambda x: x.go(), items); edited.base = lambda x: "new"
check("base", lambda x: x.go(), items)
"""
    + _END
)
