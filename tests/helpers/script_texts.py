"""Scripts that ask within functions for what the script has; each prints what was not as in its own loop.

PROBE_ADDRESS in the environment names a scheduler to join; PROBE_TIMEOUT has functions run beside workers.
"""

from __future__ import annotations

_HEAD = """
import contextlib, os, sys
from parcoll import connect, parallel
options = {"timeout": 30} if os.environ.get("PROBE_TIMEOUT") else {}
address = os.environ.get("PROBE_ADDRESS")
asked = []
def check(question, func, elements=(1,), right=None):
    elements = list(elements)
    right = list(map(func, elements)) if right is None else right
    try:
        got = list(parallel(elements, partition_size=1, **options).map(func))
    except BaseException as error:
        got = f"{type(error).__name__}: {error}"
    asked.append(question)
    if got != right or list(map(type, got)) != list(map(type, right)):
        print(question, "gave", got, "and not", right)

"""

# No blank line stands within a block, so that a REPL can read the texts too.
WORLD = (
    _HEAD
    + """
import __main__, concurrent.futures, dataclasses, json, multiprocessing, pickle, typing
from decimal import Decimal
_ = open("runs", "a").write("run\\n")
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is Point and other.x == self.x
    def __hash__(self): return hash(self.x)
    def moved(self): return globals()["Point"](self.x + step)

@dataclasses.dataclass
class Row:
    point: "Point"
    price: "Decimal"
    others: "typing.Sequence[Column]"
    table: "json.JSONDecoder"

class Column: ...

Alias = typing.Union["Column", None]
Pair = typing.NamedTuple("Pair", [("a", int), ("b", "Column")])
def parse_csv(text): return text.split(",")

def parse_json(text): return json.loads(text)

def parse_both(text): return parse_json(text) + parse_csv("a,b")

def annotated(x: "Row", y: "Alias") -> "Pair": ...

step = 10
LIMITS = {"low": 1, "high": [2, 3]}
HANDLERS = {"csv": parse_csv, "length": lambda text: len(text)}
PRICE = Decimal("1.5")
def helper(x): return x + step

def helper_of_points(p): return Point(p.x + step)

class Worker:
    def work(self, x): return helper(x)
    @staticmethod
    def still(x): return helper(x) * 2
    @classmethod
    def made(cls, x): return cls().work(x)

def in_pool(kind, work, xs):
    with multiprocessing.get_context(kind).Pool(2) as pool:
        return pool.map(work, xs)

def in_executor(kind, work, xs):
    context = multiprocessing.get_context(kind)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(work, xs))

counted = 0
def count():
    global counted
    counted += 1
    return counted

def counted_so_far(): return counted

def saved(value):
    with open("saved", "wb") as file: pickle.dump(value, file)
    return True

saved([Point(7), Row(Point(1), PRICE, [], json.JSONDecoder)])
text = os.path.abspath("saved")
def restored():
    with open(text, "rb") as file: return pickle.load(file)

with connect(address) if address else connect(n_workers=2):
    check("a class is pickled by name", lambda x: pickle.loads(pickle.dumps(Point(x))))
    check("an element is", lambda p: pickle.loads(pickle.dumps(p)), [Point(3)])
    check("a class that no function names is", lambda p: pickle.loads(pickle.dumps(p)).x, [Point(3)])
    check("a function is", lambda x: pickle.loads(pickle.dumps(helper))(x))
    check("an element that is one is", lambda f: pickle.loads(pickle.dumps(f)) is f, [parse_csv, helper])
    check("a function is the one that the script has", lambda f: f is parse_csv, [parse_csv, parse_json])
    check("a method is", lambda x: pickle.loads(pickle.dumps(Worker().work))(x))
    check("a file with objects of the script's is read", lambda _: restored()[0], [1])
    check("hints of a class", lambda _: sorted(map(str, typing.get_type_hints(Row).values())))
    check("hints of a function", lambda _: sorted(map(str, typing.get_type_hints(annotated).values())))
    check("hints of an element", lambda row: len(typing.get_type_hints(type(row))), [Row(1, 2, 3, 4)])
    check("hints of a named tuple", lambda _: typing.get_type_hints(Pair)["b"] is Column)
    check("functions by text", lambda kind: globals()["parse_" + kind]('["a"]'), ["csv", "json", "both"])
    check("data by text", lambda name: globals()[name], ["LIMITS", "PRICE", "step"])
    check("a table of functions by text", lambda k: globals()["HANDLERS"][k]("a,b"), ["csv", "length"])
    check("eval", lambda text: eval(text), ["parse_csv('a,b')", "helper(step)", "Point(PRICE).moved()"])
    check("exec", lambda text: exec(text, globals()), ["assert helper(1) == 11"])
    check("a method that looks by text", lambda p: p.moved(), [Point(1)])
    check("the module by name", lambda name: getattr(sys.modules["__main__"], name)(1), ["helper", "Point"])
    check("the module imported", lambda x: __main__.helper(x) + vars(__main__)["helper"](x))
    check("what a class is called", lambda x: (Point.__module__, helper.__module__, __name__))
    check("the script is not run again", lambda _: open(text[:-5] + "runs").read())
    for kind in ("fork", "spawn", "forkserver"):
        check(f"a pool ({kind})", lambda x: in_pool(kind, helper, [x, 2 * x]), [1], [[11, 12]])
        check(f"an executor ({kind})", lambda x: in_executor(kind, Worker.still, [x, 2]), [1], [[22, 24]])
    check("points in a pool", lambda p: in_pool("spawn", helper_of_points, [p]), [Point(1)], [[Point(11)]])
    check("methods in an executor", lambda x: in_executor("spawn", Worker().work, [x]), [1], [[11]])
    check("class methods in an executor", lambda x: in_executor("fork", Worker.made, [x]), [1], [[11]])
    check("a function by its name", lambda x: in_pool("spawn", parse_both, [x]), ["[1]"], [[[1, "a", "b"]]])
    counts = list(parallel(range(8), partition_size=8, **options).map(lambda _: (count(), counted_so_far())))
    if [a for a, b in counts if a != b] or counts[0] != (1, 1): print("globals are shared", counts)
    counted = 100
    counts = list(parallel(range(1), **options).map(lambda _: (count(), counted_so_far())))
    if counts != [(101, 101)]: print("an evaluation has what the script has now", counts)
    step = 1000
    check("so has one that looks by text", lambda name: globals()["helper"](globals()[name]), ["step"])

if open("runs").read() != "run\\n": print("the script was run again")
print(len(asked), "questions")
"""
)

CLASSES = (
    _HEAD
    + """
import abc, dataclasses, enum, functools
class Circle:
    def __init__(self, r): self.r = r
    @functools.cached_property
    def area(self):
        "What it covers."
        return 3 * self.r * self.r

@dataclasses.dataclass(frozen=True)
class Square:
    side: int
    @functools.cached_property
    def area(self): return self.side ** 2

class Cube(Square):
    @functools.cached_property
    def area(self): return 6 * self.side ** 2
    @functools.cached_property
    def volume(self): return self.side ** 3

def made_within(n):
    class Within:
        @functools.cached_property
        def doubled(self): return 2 * n
    return Within()

@functools.singledispatch
def show(x): return f"object {x}"

@show.register
def _(x: int): return f"int {x}"

@show.register(list)
def show_list(x): return [show(part) for part in x]

@show.register
def _(x: Circle): return f"circle of {x.r}"

def dispatching_within(word):
    @functools.singledispatch
    def told(x): return word
    @told.register
    def _(x: int): return word * x
    return told

class Formatter:
    @functools.singledispatchmethod
    def format(self, x): return "object"
    @format.register
    def _(self, x: int): return "int"
    @functools.singledispatchmethod
    @classmethod
    def parse(cls, x): return cls.__name__
    @parse.register
    @classmethod
    def _(cls, x: int): return cls.__name__ * x

class Base:
    registry = []
    def __init_subclass__(cls, kind, **keywords):
        super().__init_subclass__(**keywords)
        cls.kind = kind
        Base.registry.append(cls.__name__)

class Csv(Base, kind="csv"): ...

class Tsv(Csv, kind="tsv"): ...

class Named:
    by_name = {}
    def __init_subclass__(cls, /, name=None): Named.by_name[name or cls.__name__] = cls

class First(Named): ...

class Second(Named, name="2nd"): ...

class Meta(type):
    made = []
    def __new__(meta, name, bases, members, *, table):
        made = super().__new__(meta, name, bases, members)
        made.table = table
        meta.made.append(name)
        return made
    def __init__(cls, name, bases, members, **_): super().__init__(name, bases, members)

class Model(metaclass=Meta, table="models"): ...

class Plugin(plugins.Plugin, name="of the script"): ...

class Slotted:
    __slots__ = ("__hidden", "shown", "__weakref__")
    def __init__(self, x): self.__hidden, self.shown = x, 2 * x
    def both(self): return self.__hidden, self.shown

@dataclasses.dataclass(slots=True, frozen=True)
class SlottedRow:
    x: int
    y: int = 2

__private = [1]
__table__ = {"a": 1}
class Hides:
    __count = 5
    def __twice(self): return 2 * self.__count
    def twice(self, *, __more=1): return self.__twice() + __more

class Shape(abc.ABC):
    @property
    @abc.abstractmethod
    def sides(self): ...

@Shape.register
class Triangle:
    sides = 3

class Color(enum.Enum):
    RED = "r"
    @functools.cached_property
    def long(self): return self.value * 3

@functools.lru_cache(maxsize=None)
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def cached_within(n):
    return functools.lru_cache(lambda x: x + n)

MISSING = object()
class Holder:
    empty = object()
    def __init__(self, x=MISSING): self.x = x
    def is_empty(self): return self.x is MISSING
    def get(self, default=MISSING): return default is MISSING

def get(key, default=MISSING): return "none" if default is MISSING else default

def nothing_left():
    done = object()
    return iter(lambda: done, done), done

TWINS = LEFT = object()
with connect(address) if address else connect(n_workers=2):
    check("a cached property", lambda r: (Circle(r).area, Circle.area.__doc__), [1, 2])
    check("of an element", lambda shape: (shape.area, shape.area), [Circle(2), Square(3), Cube(2)])
    check("of a class that inherits", lambda n: (Cube(n).area, Cube(n).volume))
    check("of a class within a function", lambda w: w.doubled, [made_within(4)])
    check("of an enum's member", lambda c: (c.long, c is Color.RED), [Color.RED])
    check("as a function", Circle.area.func, [Circle(2)])
    check("a dispatching function", show, [1, "a", [1, ["b"]], Circle(3), None])
    check("within another", lambda x: show([x, Circle(x)]), [1, "a"])
    check("made within a function", dispatching_within("ab"), [1, 3, "x"])
    check("its registry", lambda kind: show.dispatch(kind).__name__, [list, dict])
    check("its name", lambda _: (show.__name__, show.__wrapped__(1)))
    check("a dispatching method", lambda x: (Formatter().format(x), Formatter.parse(x)), [2, "a"])
    check("bound", Formatter().format, [1, "a"])
    check("keywords of a class", lambda _: (Csv.kind, Tsv.kind, list(Base.registry)), range(4))
    check("of an element's class", lambda c: (c.kind, len(Base.registry)), [Csv(), Tsv()])
    check("a registry by name", lambda n: Named.by_name[n].__name__, ["First", "2nd"])
    check("it has each entry once", lambda _: len(Named.by_name), range(4))
    check("the same class", lambda c: (c is Csv, issubclass(c, Base)), [Csv])
    check("a metaclass", lambda _: (Model.table, Meta.made, type(Model) is Meta), range(3))
    check("a registry in a module", lambda _: sorted(plugins.Plugin.known), range(3))
    check("slots", lambda x: (Slotted(x).both(), hasattr(Slotted(x), "__dict__")))
    check("of an element", lambda s: s.both(), [Slotted(3)])
    check("of a dataclass", lambda r: (r, hasattr(r, "__dict__")), [SlottedRow(1)])
    check("names with two underscores", lambda _: (__private, __table__, Hides().twice()))
    check("an abstract class", lambda _: (isinstance(Triangle(), Shape), Triangle().sides))
    check("a cached function", fibonacci, [10, 50])
    check("made within a function", cached_within(3), [1])
    check("a bare object", lambda x: x is MISSING, [MISSING, None])
    check("within containers", lambda x: (x[0] is MISSING, x[1]["k"] is MISSING), [[MISSING, {"k": MISSING}]])
    check("as an attribute", lambda h: (h.is_empty(), h.x is MISSING), [Holder(), Holder(1)])
    check("of a class", lambda h: h.empty is Holder.empty, [Holder()])
    check("as a default", lambda h: (get(1), get(1, None), h.get(), h.get(1)), [Holder()])
    check("as a result", lambda x: MISSING if x else None, [0, 1])
    check("in a result", lambda x: [Holder().x, (MISSING,)])
    check("with two names", lambda x: x is TWINS and x is LEFT, [LEFT])
    check("of a module", lambda x: (x is plugins.ABSENT, plugins.is_absent(x)), [plugins.ABSENT])
    check("of a module, as a result", lambda x: plugins.ABSENT)
    pair = object(), object()
    check("captured", lambda x: (x[0] is pair[0], x[0] is pair[1]), [pair])
    check("captured, as a result", lambda x: pair)
    check("of another function", lambda x: x is done, [(done := nothing_left()[1])])

if Base.registry != ["Csv", "Tsv"] or sorted(Named.by_name) != ["2nd", "First"]: print("a class has changed")
if Meta.made != ["Model"] or plugins.Plugin.known != ["of the script"]: print("a class has changed")
print(len(asked), "questions")
"""
).replace("import contextlib,", "import plugins, contextlib,")

# What pickle knows by a global name alone, or not at all.
NAMES = (
    _HEAD
    + """
import collections.abc, contextvars, copyreg, dataclasses, enum, functools, pickle, types, typing
UserId = typing.NewType("UserId", int)
Node = typing.NewType("Node", "Tree")
Kept = typing.ParamSpec("Kept")
Many = typing.TypeVarTuple("Many")
Rows = dict[str, list[UserId]]
@dataclasses.dataclass
class Row:
    id: UserId
    call: typing.Callable[Kept, int] = abs

class Tree:
    of: Node
    ids: Rows
    def made(self) -> UserId: return UserId(3)

class Holds(typing.Generic[*Many]): ...

def wrapped(func: typing.Callable[Kept, int]) -> typing.Callable[Kept, int]:
    @functools.wraps(func)
    def inner(*args: Kept.args, **kwargs: Kept.kwargs) -> int: return func(*args, **kwargs)
    return inner

@wrapped
def twice(x: int) -> UserId: return UserId(2 * x)

def typed_within():
    Within = typing.NewType("Within", Row)
    return lambda x: Within(Row(x))

class Missing:
    def __init__(self, name): self.name, self.me = name, self
    def __reduce__(self): return self.name
    def __repr__(self): return self.name
    def __bool__(self): return False

MISSING, UNKNOWN = Missing("MISSING"), Missing("UNKNOWN")
class Slotted:
    __slots__ = ("value", "other")
    def __reduce_ex__(self, protocol): return "SLOTTED"

SLOTTED = Slotted()
SLOTTED.value = 5
@enum.global_enum
class Mode(enum.IntFlag):
    READ = 1
    WRITE = 2

class Failed(Exception):
    def __init__(self, why, value):
        super().__init__(why)
        self.value = value
    def __reduce__(self): return Failed, (self.args[0], self.value)

def fails(x): raise Failed("missing", MISSING)

class Money:
    def __init__(self, cents): self.cents, self.made = cents, "here"

def restored(cents):
    money = Money(cents)
    money.made = "again"
    return money

copyreg.pickle(Money, lambda money: (restored, (money.cents,)))
collections.abc.Sequence.register(Tree)
request = contextvars.ContextVar("request", default="none")
user = contextvars.ContextVar("user")
user.set(["ann"])
def told(): return request.get(), user.get("nobody"), user.name

def order(a, b): return (a < b) - (a > b)

def append(values, x): return ["mine", *values, x]

Typed = typing.TypedDict("Typed", {"a": int})
class Stated(typing.TypedDict, total=False):
    b: UserId

class Setting:
    limit = 1
    def get(self): return self.limit

class Inner(Setting): ...

descending = functools.cmp_to_key(order)
with connect(address) if address else connect(n_workers=2):
    check("a new type", lambda x: (UserId(x), UserId.__name__, UserId.__supertype__ is int))
    check("one that is a class's own", lambda _: typing.get_type_hints(Tree)["of"] is Node)
    check("in an alias", lambda _: typing.get_args(typing.get_args(Rows)[1]) == (UserId,))
    check("in a dataclass", lambda row: (row, Row(UserId(2))), [Row(UserId(1))])
    check("in a method", lambda tree: tree.made(), [Tree()])
    check("of a function", typed_within(), [1])
    check("as an element", lambda kind: kind is UserId, [UserId, Node])
    check("as a result", lambda _: UserId)
    check("a wrapped function", twice, [4])
    check("several variables of types", lambda _: Holds[int, str].__args__)
    check("an object that goes by its name", lambda x: (x is MISSING, x is UNKNOWN, x), [MISSING, UNKNOWN, 3])
    check("as a result", lambda x: [MISSING, UNKNOWN][x], [0, 1])
    check("with all that it has", lambda x: (x.me is x, x.name, bool(x)), [MISSING])
    check("in its slots", lambda x: (x is SLOTTED, x.value, hasattr(x, "other")), [SLOTTED])
    check("a flag", lambda x: (x | 2, x is READ), [Mode.READ, Mode.WRITE])
    try: list(parallel([1], **options).map(fails))
    except Failed as error: failed = error
    check("an exception's", lambda _: None, right=[None] if failed.value is MISSING else [failed])
    check("copyreg", lambda x: pickle.loads(pickle.dumps(Money(x))).made)
    check("an abstract class of others", lambda x: isinstance(x, collections.abc.Sequence), [Tree(), Row(1)])
    check("context variables", lambda _: told(), range(3))
    check("with other defaults", lambda _: (request.get("mine"), user.get("mine")))
    check("one as an element", lambda v: v is user, [user, request])
    check("one as a result", lambda _: user)
    check("what a function sets is its own", lambda x: (request.set(x), request.get())[1], range(3))
    request.set("GET")
    check("what the script sets", lambda _: told(), range(3))
    check("typed dicts", lambda x: (Typed(a=x), Stated(b=x), typing.get_type_hints(Stated), Stated.__total__))
    check("a method bound by hand", types.MethodType(append, [1]), [2, 3])
    settings = [Inner()] * 4
    def has(name): check("the class of an element", lambda s: (s.get(), hasattr(s, name)), settings)
    has("added")
    Setting.limit = 2
    has("added")
    Inner.limit, Setting.added = 3, True
    has("added")
    del Inner.limit, Setting.added
    has("added")
    check("what a function adds to it", lambda s: setattr(type(s), "added", 1) or s.added, settings)
    has("added")
    Setting.get = lambda self: "other"
    check("its methods", lambda s: s.get(), settings)
    def limits(n):
        return parallel([Inner()] * n, partition_size=1, buffersize=2, **options).map(lambda s: s.limit)
    Setting.limit = 1
    first = iter(limits(8))
    found = [next(first)]
    Setting.limit = 2
    check("two evaluations at once", lambda _: 2, right=[2] if list(limits(4)) == [2] * 4 else [])
    check("each with its classes", lambda _: 1, right=[1] if found + list(first) == [1] * 8 else [])
    with_key = parallel([2, 3, 1], partition_size=1, **options)
    check("a comparison", lambda _: 1, right=[1] if list(with_key.sorted(descending)) == [3, 2, 1] else [])
    check("of the least", lambda _: 1, right=[1] if with_key.min(descending) == 3 else [])
    check("its keys", lambda key: key < descending(2), [descending(3), descending(1)])
    check("what is built in", lambda name: getattr(__builtins__, name)(-1), ["abs", "str"])

print(len(asked), "questions")
"""
)

PLUGINS = """
ABSENT = object()
def is_absent(x): return x is ABSENT

class Plugin:
    known = []
    def __init_subclass__(cls, *, name):
        cls.name = name
        Plugin.known.append(name)
"""
