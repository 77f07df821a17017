"""Joins: elements that find those of another chain which have the same key, in a table that workers have."""

from __future__ import annotations

import copy
import enum
import numbers
import operator
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from parcoll.chain.failures import stands_between
from parcoll.chain.policy import Policy
from parcoll.chain.steps import Around, FlatMap, Map
from parcoll.keys.slots import CALLED, is_nan, members_of, name_of, rebuilt

HOW = ("inner", "left", "semi", "anti")
OF_OTHER = "this is an element of the other side: other_key is called with it, or key where that is not given"
NEVER_NAN = frozenset((int, str, bytes, bool, type(None)))
Table = dict[Any, tuple[Any, ...]]


class Special(enum.Enum):
    """Keys in the place of others, which a dict tells apart by identity: that does not travel."""

    NAN = "NaN"  # of any
    NAMED = "name"  # of a class, a function, or what else is one everywhere


class Reads(Protocol):
    """A chain that can be read here."""

    def all_elements(self) -> list[Any]:
        """Return its elements, made here."""


class Evaluation(Protocol):
    """What joins need of the evaluation that they are part of."""

    def table(self, other: Any, make: Callable[[Iterable[Any]], Table]) -> Any:
        """Evaluate another chain, and return what is made of its elements, as a broadcast."""


def _alike(key: Any) -> Any:
    """Return the key as it can be compared elsewhere, also within tuples and their like: all NaNs are one.

    TypeError for what is equal to itself alone.
    """
    kind: Any = type(key)
    if kind in NEVER_NAN:
        return key
    members = members_of(key)
    if members is not None:
        made = list(map(_alike, members))
        if kind.__hash__ is tuple.__hash__:
            return tuple(made)
        return key if all(map(operator.is_, made, members)) else rebuilt(key, made)
    if kind.__hash__ is object.__hash__ or isinstance(key, CALLED):
        return (Special.NAMED, *name_of(key))
    if not is_nan(key):
        return key
    return Special.NAN if isinstance(key, numbers.Number) else (Special.NAN, *name_of(kind))


class OtherKey(Around):
    """The key of an element of the other chain, and the element if it is wanted. Its key can be hashed."""

    def __init__(self, func: Callable[..., Any], wanted: bool) -> None:
        super().__init__(func)
        self.wanted = wanted

    def __call__(self, element: Any) -> tuple[Any, Any]:
        """Ask for the key."""
        try:
            made = self.func(element)
        except Exception as error:
            if OF_OTHER not in getattr(error, "__notes__", ()):
                error.add_note(OF_OTHER)
            raise
        key = _alike(made)
        hash(key)
        return key, element if self.wanted else None


class KeyOfOther(Map):
    """The step that asks for the keys of the other chain."""

    kind = "join"

    @classmethod
    def of(cls, key: Callable[..., Any], how: str, policy: Policy) -> KeyOfOther:
        """Return the step."""
        return cls(OtherKey(key, how in ("inner", "left")), policy)


class Matching(Around):
    """What an element becomes, by the elements of the other chain that have its key."""

    def __init__(self, func: Callable[..., Any], how: str, other: Reads | None, table: Any = None) -> None:
        super().__init__(func)
        self.how = how
        self.other = other
        self.table = table  # a broadcast, once an evaluation has made it
        self._own: Table | None = None

    def __call__(self, element: Any) -> Iterable[Any]:
        """Look in the table."""
        found = self._table().get(_alike(self.func(element)))
        if self.how in ("semi", "anti"):
            return (element,) if (found is None) == (self.how == "anti") else ()
        if found is None:
            return ((element, None),) if self.how == "left" else ()
        return [(element, other) for other in found]

    def _table(self) -> Table:
        if self.table is not None:
            table: Table = self.table.value
            return table
        if self._own is None:  # dask's own engines run the step
            assert self.other is not None
            self._own = table_of(self.other.all_elements())
        return self._own


def table_of(pairs: Iterable[tuple[Any, Any]]) -> Table:
    """Return the elements for each key, in order."""
    found: dict[Any, list[Any]] = {}
    for key, element in pairs:
        found.setdefault(key, []).append(element)
    return {key: tuple(elements) for key, elements in found.items()}


class Join(FlatMap):
    """The elements, with those of another chain that have the same key."""

    kind = "join"
    func: Matching

    @classmethod
    def of(cls, key: Callable[..., Any], how: str, other: Reads, policy: Policy) -> Join:
        """Return the step."""
        return cls(Matching(key, how, other), policy)

    def prepared(self, evaluation: Evaluation) -> Join:
        """Return the step with its table."""
        step = copy.copy(self)
        table = evaluation.table(self.func.other, table_of)
        step.func = Matching(self.func.func, self.func.how, None, table)
        return step


stands_between(Matching.__call__.__code__.co_filename)
