"""Scripts whose classes have objects of themselves, and the like; each tells what was wrong.

They ask as those of `script_texts` do, one question after the other, with one connection.
"""

from __future__ import annotations

from script_texts import _HEAD

_CONNECTED = _HEAD + "connection = connect(address) if address else connect(n_workers=2)\n"

THEMSELVES = (
    _CONNECTED
    + """
# a named tuple
from typing import NamedTuple
class N(NamedTuple):
    v: int
    def twice(self): return 2*self.v
N.ZERO = N(0)
check("zero", lambda x: (N.ZERO.v, N.ZERO.twice(), N.ZERO is N(0), type(N.ZERO) is N))
check("el", lambda x: (x.ZERO == x, x is N.ZERO), [N.ZERO, N(1)])
check("by text", lambda x: globals()["N"].ZERO.v)
# one that says how it is made
class Point:
    ORIGIN: "Point"
    def __init__(self, x, y): self.x, self.y = x, y
    def __reduce__(self): return Point, (self.x, self.y)
    def __eq__(self, o): return (self.x, self.y) == (o.x, o.y)
    def __hash__(self): return hash((self.x, self.y))
Point.ORIGIN = Point(0, 0)
check("o", lambda x: (Point.ORIGIN.x, Point.ORIGIN == Point(0,0)))
check("el", lambda x: x.ORIGIN == x, [Point.ORIGIN, Point(1,2)])
# one object for each key
class Cur:
    _known = {}
    def __new__(cls, code):
        if code not in cls._known:
            made = super().__new__(cls); made.code = code; cls._known[code] = made
        return cls._known[code]
    def __reduce__(self): return Cur, (self.code,)
EUR, USD = Cur("EUR"), Cur("USD")
check("same", lambda x: (Cur("EUR") is EUR, x is Cur(x.code), x is EUR), [EUR, USD])
check("known", lambda x: sorted(Cur._known))
# frozen dataclasses
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True)
class V:
    x: int
    y: int = 0
    def __add__(self, o): return V(self.x+o.x, self.y+o.y)
V.ZERO = V(0, 0)
@dataclasses.dataclass(frozen=True)
class W:
    x: int
W.ZERO = W(0)
W.ALL = {W.ZERO: 1}
@dataclasses.dataclass(order=True, unsafe_hash=True)
class U:
    x: int
U.ZERO = U(0); U.MEMBERS = frozenset({U.ZERO, U(1)})
check("v", lambda x: (V.ZERO, V.ZERO + V(1,2)))
check("w", lambda x: (W.ZERO, W.ALL[W(0)]))
check("u", lambda x: (U.ZERO, U(1) in U.MEMBERS))
check("elements", lambda x: (type(x).ZERO), [V(1), W(1), U(1)])
# classes of each other's objects
import typing
class Currency:
    known = {}
    def __init__(self, c): self.c = c; Currency.known[c] = self
    def __reduce__(self): return Currency.get, (self.c,)
    @classmethod
    def get(cls, c): return cls.known[c] if c in cls.known else cls(c)
    def of(self, v): return Money(v, self)
class Money(typing.NamedTuple):
    amount: int
    currency: Currency
    def add(self, o):
        assert self.currency is o.currency
        return Money(self.amount + o.amount, self.currency)
EUR = Currency("EUR")
Currency.EUR = EUR
Money.ZERO = Money(0, Currency.EUR)
def cents(x, zero=Money.ZERO): return zero.add(EUR.of(x)).amount
check("v", lambda x: (EUR.of(3).add(Money.ZERO).amount, Currency.get("EUR") is EUR, len(Currency.known)))
check("of another class", lambda x: Money.ZERO.currency is EUR)
check("c", cents)
check("el", lambda x: (x.currency is EUR, x == Money.ZERO), [Money.ZERO, Money(3, EUR)])
# classes whose objects are made of each other's
class A:
    def __init__(self, b): self.b = b
    def __reduce__(self): return A, (self.b,)
    def mk(self): return B(2).v
class B:
    def __init__(self, v): self.v = v + OFF + A.K
    def __reduce__(self): return B.make, (self.v - OFF - A.K,)
    @staticmethod
    def make(v): return B(v)
OFF = 3
A.K = 4
B.ONE = B(1)
A.ONE = A(B.ONE)
B.A1 = A.ONE
def go(x, d=A.ONE): return d.b.v, d is A.ONE, B.A1 is A.ONE, A.ONE.b is B.ONE, d.mk()
check("v", go)
check("el", lambda x: x.b.v if type(x) is A else x.v, [A.ONE, B.ONE])
# texts, tuples and numbers
class Path(str):
    ROOT: "Path"
    def __new__(cls, *p): return super().__new__(cls, "/".join(p))
    def __truediv__(self, o): return Path(self, o)
    def __getnewargs__(self): return tuple(self.split("/"))
Path.ROOT = Path("", "r")
class Vec(tuple):
    def __new__(cls, *v): return super().__new__(cls, v)
    def __getnewargs__(self): return tuple(self)
Vec.ZERO = Vec(0, 0)
class Reg(dict):
    def __init__(self, *a): super().__init__(*a); Reg.all.append(self)
    all = []
r = Reg({"a": 1}); Reg.all[0]["self"] = 2
class Num(int):
    ONE: "Num"
    def __add__(self, o): return Num(int(self) + o)
Num.ONE = Num(1)
check("v", lambda x: (Path.ROOT / "x", Vec.ZERO, type(Vec.ZERO).__name__, Num.ONE + 2, type(Num.ONE)))
check("a dict", lambda x: (Reg.all[0]["self"], Reg.all[0] is r))
check("el", lambda x: (x, type(x)), [Path.ROOT, Vec.ZERO, Num.ONE, Vec(1, 2)])
# a table that holds weakly
import weakref
class Sym:
    __slots__ = ("name", "__weakref__")
    _all = weakref.WeakValueDictionary()
    def __new__(cls, name):
        s = cls._all.get(name)
        if s is None:
            s = object.__new__(cls); s.name = name; cls._all[name] = s
        return s
    def __reduce__(self): return Sym, (self.name,)
a, b = Sym("a"), Sym("b")
check("v", lambda x: (Sym("a") is a, x is Sym(x.name), sorted(Sym._all)), [a, b])
r = list(parallel([1], **options).map(lambda x: Sym("a")))
if r[0] is not a: print("result")
# a metaclass that keeps the objects
class Multi(type):
    def __call__(cls, key):
        if key not in cls.pool: cls.pool[key] = super().__call__(key)
        return cls.pool[key]
    def __new__(m, n, b, d):
        k = super().__new__(m, n, b, d); k.pool = {}; return k
class Conn(metaclass=Multi):
    def __init__(self, key): self.key = key
    def __reduce__(self): return Conn, (self.key,)
x, y = Conn("x"), Conn("y")
check("v", lambda c: (Conn("x") is x, c is Conn(c.key), sorted(Conn.pool)), [x, y])
# exceptions
class AppError(Exception):
    codes = {}
    def __init_subclass__(cls, code=0): AppError.codes[code] = cls; cls.code = code
    def __init__(self, what, **kw): super().__init__(what); self.what = what; self.kw = kw
    def __reduce__(self): return type(self).make, (self.what, self.kw)
    @classmethod
    def make(cls, w, kw): return cls(w, **kw)
class NotFound(AppError, code=404): ...
AppError.DEFAULT = NotFound("default", a=1)
def f(x):
    try: raise AppError.codes[404]("x", k=x)
    except NotFound as e: return e.what, e.kw, e.code, AppError.DEFAULT.kw
def g(x): raise NotFound("no", k=x)
check("v", f)
check("el", lambda e: (type(e) is NotFound, e.kw), [NotFound("q", z=2), AppError.DEFAULT])
try: list(parallel([1], **options).map(g))
except NotFound as e: assert e.kw == {"k": 1}
# a frozen dataclass that is a key
import dataclasses, typing
@dataclasses.dataclass(frozen=True, order=True, slots=True, kw_only=True)
class F:
    a: int
    b: "F | None" = None
F.ROOT = F(a=1, b=F(a=2))
F.TABLE = {F.ROOT: "root"}
check("f", lambda x: (F.ROOT, F.TABLE[F.ROOT], dataclasses.replace(F.ROOT, a=3), F.ROOT < F(a=5,b=F(a=1))))
check("el", lambda x: (x, type(x)), [F(a=3), F.ROOT])
connection.close()
print(len(asked), "questions")
"""
)

IDENTITY = (
    _CONNECTED
    + """
# the only object of its class
class Single:
    _instance = None
    def __new__(cls):
        if cls._instance is None: cls._instance = super().__new__(cls)
        return cls._instance
    def __init__(self): self.v = 3
S = Single()
S.v = 5
check("same", lambda x: (S is Single._instance, S.v, x is S), [S])
check("same2", lambda x: x is Single._instance, [S])
check("same3", lambda x: (Single() is S, S.v))
# a class as an enum used to be
class Color:
    members = {}
    def __init__(self, name): self.name = name; Color.members[name] = self
    def __eq__(self, o): return self.name == o.name
    def __hash__(self): return hash(self.name)
    def __repr__(self): return "Color." + self.name
Color.RED = Color("RED"); Color.BLUE = Color("BLUE")
Color.both = {Color.RED, Color.BLUE}
MAP = {Color.RED: 1, Color.BLUE: 2}
check("map", lambda x: (MAP[Color.RED], MAP[Color.members["BLUE"]], Color.RED in Color.both))
check("map el", lambda x: (MAP[x], x in x.both, x is x.members[x.name]), [Color.RED, Color.BLUE])
check("is", lambda x: (x is Color.RED), [Color.RED, Color.BLUE])
check("result", lambda x: Color.RED)
def default(x, c=Color.RED): return c is Color.RED, c is Color.members["RED"]
check("default", default)
held = Color.BLUE
def clos():
    h = Color.BLUE
    return lambda x: (h is Color.BLUE, held is Color.BLUE, h is held)
check("closure", clos())
# counters and tables
import itertools, collections
class Cnt:
    total = 0
    ids = itertools.count(5)
    seen = collections.Counter()
    groups = collections.defaultdict(list)
    hist = collections.deque(maxlen=3)
    def __init__(self, k):
        self.k = k; self.id = next(Cnt.ids)
        Cnt.total += 1; Cnt.seen[k] += 1; Cnt.groups[k].append(self); Cnt.hist.append(k)
for k in "abab": Cnt(k)
one = Cnt("z")
check("v", lambda x: (Cnt.total, dict(Cnt.seen), {k: len(v) for k, v in Cnt.groups.items()}))
check("more", lambda x: (list(Cnt.hist), Cnt.hist.maxlen, Cnt.groups["z"][0] is one))
check("el", lambda x: (x.id, x in Cnt.groups["z"], Cnt.total), [one])
# objects that mark something
class Sentinel:
    def __repr__(self): return "NIL"
NIL = Sentinel()
class Holder:
    EMPTY = Sentinel()
check("global", lambda x: x is Holder.EMPTY, [Holder.EMPTY, 1])
check("nil", lambda x: x is NIL, [NIL, 1])
# a decorator that notes what it decorates
class Rule:
    rules = []
    def __init__(self, f): self.f = f; Rule.rules.append(self)
    def __call__(self, x): return self.f(x)
@Rule
def one(x): return x + 1
@Rule
def two(x): return x * 2
def all_rules(x): return [r(x) for r in Rule.rules]
check("all", all_rules, [1, 2])
check("idx", lambda r: Rule.rules.index(r), [one, two])
@Rule
def three(x): return -x
check("later", all_rules, [1, 2])
# objects that change
class Color:
    def __init__(self, n): self.n, self.hits = n, 0
Color.RED = Color("r")
def gen():
    for i in range(4):
        Color.RED.hits = i
        yield Color.RED
def hit(x): x.hits += 1; return x.hits
got = list(parallel(gen(), partition_size=1, **options).map(lambda x: (x.n, x.hits)))
if got != [("r", i) for i in range(4)]: print("snapshots", got)
Color.RED.hits = 0
got = list(parallel([Color.RED] * 4, partition_size=1, **options).map(hit))
if got != [1] * 4: print("hits", got)
Color.RED.hits = 7
check("now", lambda x: (x.hits, x is Color.RED, Color.RED.hits), [Color.RED])
got = next(iter(parallel([Color.RED], **options)))
if got is not Color.RED: print("result", got)
# objects of a class that another one has
class Outer:
    class State:
        def __init__(self, name): self.name = name
    START, END = State("start"), State("end")
check("el", lambda s: (s is Outer.START, s is Outer.END), [Outer.START, Outer.END])
# results
class N:
    def __init__(self, v): self.v = v
    def __eq__(self, o): return type(self) is type(o) and self.v == o.v
N.A = N(1)
check("res", lambda x: [N.A, N(2), N.A])
r = list(parallel([1,2], **options).map(lambda x: N.A))
if not all(x is N.A for x in r): print("result is not N.A", r)
connection.close()
print(len(asked), "questions")
"""
)

KEYS = (
    _CONNECTED
    + """
# a key of the script's
class EqColor:
    def __init__(self, n): self.n = n
    def __eq__(self, o): return self.n == o.n
    def __hash__(self): return hash(self.n)
EqColor.RED = EqColor("r")
MAP = {EqColor.RED: 1}
check("map", lambda x: MAP[EqColor.RED])
check("map", lambda x: MAP[EqColor("r")])
check("map", lambda x: globals()["MAP"][EqColor("r")])
# keys that lead to each other
class Node:
    registry = set()
    by = {}
    def __init__(self, n): self.n = n; Node.registry.add(self); Node.by[self] = n
    def __eq__(self, o): return self.n == o.n
    def __hash__(self): return hash(self.n)
a, b = Node(1), Node(2)
a.peer, b.peer = b, a
a.me = {a: 1, b: 2}
check("set", lambda x: (Node(1) in Node.registry, Node.by[Node(2)], len(Node.registry), len(Node.by)))
check("inst", lambda x: (a.me[a], a.me[b], a.peer is b, b.peer is a))
check("el", lambda x: (len(x.registry), x in x.registry, x.peer.peer is x), [a, b])
# the same with slots, and in a circle
class K:
    __slots__ = ("n", "peers")
    def __init__(self, n): self.n, self.peers = n, set()
    def __eq__(self, o): return type(o) is K and self.n == o.n
    def __hash__(self): return hash(("K", self.n))
a, b, c = K(1), K(2), K(3)
for x in (a, b, c): x.peers |= {a, b, c}
class G:
    def __init__(self, n): self.n = n; self.edges = {}
    def __eq__(self, o): return self.n == o.n
    def __hash__(self): return hash(self.n)
g = [G(i) for i in range(5)]
for i in range(5): g[i].edges[g[(i + 1) % 5]] = 1; g[i].edges[g[i]] = 2
check("v", lambda x: (a in a.peers, len(b.peers), all(p in c.peers for p in a.peers)))
check("el", lambda x: (x in x.peers, len(x.peers), x.peers == set(x.peers)), [a, b, c])
check("g", lambda x: (g[0].edges[g[1]], g[2].edges[g[2]], len(g[3].edges)))
check("g el", lambda x: (x.edges[x], len(x.edges)), g)
check("res", lambda x: len(a.peers))
got = next(iter(parallel([1]).map(lambda x: a)))
assert got in got.peers and len(got.peers) == 3
# a hash of the base's
class Key:
    def __init__(self, *parts): self.parts = parts
    def __hash__(self): return hash(self.parts)
    def __eq__(self, o): return self.parts == o.parts
class Sub(Key):
    table = {}
    def __init__(self, *p): super().__init__(*p); Sub.table[self] = p
    def __hash__(self): return super().__hash__() ^ 1
s1, s2 = Sub(1, "a"), Sub(2)
s1.other = {s2: s1}; s2.other = {s1: s2}
check("v", lambda x: (Sub.table[s1], len(Sub.table), s1.other[s2] is s1, s2.other[s1] is s2))
check("el", lambda x: (x.table[x], len(x.table)), [s1, s2])
connection.close()
print(len(asked), "questions")
"""
)

NAMES = (
    _CONNECTED
    + """
# names, also those that are set later
class Outer:
    class Inner:
        "doc"
        class Deep: ...
        def f(self): ...
def g():
    class Loc: ...
    return Loc
L = g()
class K:
    "old"
def look(x):
    kind = type(x)
    return kind.__qualname__, kind.__name__, kind.__doc__, kind.__module__, repr(kind)
check("nested", look, [Outer.Inner(), Outer.Inner.Deep(), L(), K()])
check("names", lambda x: (Outer.Inner.__qualname__, Outer.Inner.f.__qualname__, L.__qualname__))
K.__doc__ = "new"
check("doc", look, [K()])
K.__name__ = "KK"; K.__qualname__ = "X.KK"
check("names", look, [K()])
check("names", lambda x: (K.__name__, K.__qualname__, K.__doc__))
K.__module__ = "odd"
check("mod", lambda x: (K.__name__, K.__qualname__, K.__doc__, K.__module__))
check("mod", look, [K()])
# a metaclass that allows no change
class Const(type):
    def __setattr__(cls, name, value): raise AttributeError(f"constant {name}")
    def __call__(cls, *a): return super().__call__(*a)
class C(metaclass=Const):
    A = 1
    def f(self): return self.A
check("v", lambda x: (C.A, C().f()))
check("el", lambda x: x.f(), [C()])
def tries(x):
    try: C.A = 3
    except AttributeError as e: return str(e)
check("guard", tries)
connection.close()
print(len(asked), "questions")
"""
)

MEMBERS = (
    _CONNECTED
    + """
# locks
import threading, queue
class A:
    lock = threading.Lock()
    n = 0
    def inc(self):
        with self.lock: A.n += 1
        return True
class B:
    r, c, e = threading.RLock(), threading.Condition(), threading.Event()
    q, s = queue.Queue(), threading.Semaphore(2)
    def use(self):
        with self.r, self.c, self.s: self.q.put(1); return self.q.get(), self.e.is_set()
check("cls", lambda x: A().inc())
check("cls el", lambda x: x.inc(), [A()])
check("more", lambda x: B().use())
# what holds weakly
import weakref
class Reg:
    subs = weakref.WeakSet()
    insts = weakref.WeakSet()
    byname = weakref.WeakValueDictionary()
    bykey = weakref.WeakKeyDictionary()
    def __init_subclass__(cls): Reg.subs.add(cls)
    def __init__(self, n): self.n = n; Reg.insts.add(self); Reg.byname[n] = self; Reg.bykey[self] = n
class R1(Reg): ...
class R2(Reg): ...
one, two = R1("one"), R2("two")
check("subs", lambda x: sorted(k.__name__ for k in Reg.subs))
check("insts", lambda x: (sorted(i.n for i in Reg.insts), one in Reg.insts, one.n, two.n))
check("byname", lambda x: (sorted(Reg.byname), Reg.byname["one"] is one, two.n))
check("bykey", lambda x: (sorted(Reg.bykey.values()), Reg.bykey[one], two.n))
# enums whose members are made by hand
import enum
class Planet(enum.Enum):
    EARTH = (1.0, 2.0)
    MARS = (3.0, 4.0)
    def __init__(self, m, r): self.m, self.r = m, r; self.cache = {}
    @property
    def g(self): return self.m / self.r
    @classmethod
    def by(cls, m): return next(p for p in cls if p.m == m)
class Auto(enum.Enum):
    def _generate_next_value_(name, start, count, last): return name.lower()
    A = enum.auto(); B = enum.auto()
    ALIAS = A
class Coord(bytes, enum.Enum):
    def __new__(cls, value, label):
        o = bytes.__new__(cls, [value]); o._value_ = value; o.label = label; return o
    PX = (0, "P.X"); PY = (1, "P.Y")
    def __repr__(self): return self.name
class Fl(enum.Flag):
    R = enum.auto(); W = enum.auto(); RW = R | W
    def can(self): return bool(self & Fl.W)
class Op(enum.Enum):
    ADD = enum.member(lambda a, b: a + b) if hasattr(enum, "member") else 1
    def __call__(self, *a): return self.value(*a)
class Miss(enum.Enum):
    X = 1
    @classmethod
    def _missing_(cls, v): return cls.X
class Str(enum.StrEnum):
    a = "a"; b = enum.auto()
Planet.HOME = Planet.EARTH
check("planet", lambda x: (Planet.EARTH.g, Planet.by(3.0) is Planet.MARS, Planet.HOME is Planet.EARTH))
check("auto", lambda x: (Auto.A.value, Auto("b") is Auto.B, Auto.ALIAS is Auto.A, list(Auto.__members__)))
check("coord", lambda x: (Coord.PY.label, Coord(0) is Coord.PX, Coord.PY == b"\x01"))
check("flag", lambda x: (Fl.RW.can(), (Fl.R | Fl.W) is Fl.RW, Fl.R in Fl.RW, Fl(3)))
check("op", lambda x: Op.ADD(1, 2))
check("miss", lambda x: (Miss(7), Str.b, f"{Str.a}"))
members = [Planet.MARS, Auto.B, Coord.PY, Fl.RW, Miss.X, Str.a, Op.ADD]
check("el", lambda x: (x.name, x is type(x)[x.name]), members)
connection.close()
print(len(asked), "questions")
"""
)
