"""A script whose classes have fields: of dataclasses, with tables and locks, and by descriptors."""

from __future__ import annotations

from class_texts import _CONNECTED

FIELDS = (
    _CONNECTED
    + """
import dataclasses, threading
from typing import ClassVar, Generic, TypeVar
T = TypeVar("T")
# a dataclass with a table of its objects and a lock, which are fields, too
@dataclasses.dataclass(frozen=True, slots=True)
class Slot(Generic[T]):
    a: T
    b: "Slot | None" = None
    NIL: ClassVar["Slot"]
    LOCK: ClassVar = threading.Lock()
    seen: ClassVar[dict] = {}
Slot.NIL = Slot(0)
Slot.seen[Slot.NIL] = "nil"
def locked(x):
    with Slot.LOCK: return Slot.seen[Slot.NIL], Slot.seen[Slot(0)], Slot(x, Slot.NIL)
check("a table", locked)
check("fields", lambda x: [(f.name, f.default is None) for f in dataclasses.fields(Slot)])
check("el", lambda s: (s.b is Slot.NIL, Slot.seen.get(s)), [Slot(3, Slot.NIL), Slot(0)])
# what a descriptor keeps in the object, which is a key of its own table
class Field:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, one, owner): return self if one is None else vars(one)[self.name]
    def __set__(self, one, value):
        vars(one)[self.name] = value
        vars(one)["writes"] = vars(one).get("writes", 0) + 1
class Node:
    v = Field()
    def __init__(self, v):
        self.v = v
        vars(self)["peers"] = {self}
    peers = property(lambda self: vars(self)["peers"])
    def __eq__(self, other): return self.v == other.v
    def __hash__(self): return hash(self.v)
check("node", lambda n: (n.v, n in n.peers, n.writes), [Node(5)])
check("made", lambda v: Node(v), [6])
found, = parallel([6], **options).map(Node)
if (found.v, found in found.peers, found.writes) != (6, True, 1): print("result", vars(found))
# objects that lead to each other, looked for by their names
class Twin: pass
one, other = Twin(), Twin()
one.twin, other.twin, one.all = other, one, [one, other]
def twins(name):
    here = globals()[name]
    return here.twin.twin is here, len(here.all)
check("by name", twins, ["one"])
connection.close()
print(len(asked), "questions")
"""
)
