"""Saved: unpickling what an earlier process has saved, whose `__main__` was another one."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

from parcoll.wire.classes import Loader
from parcoll.wire.reducers import make_skeleton_class


def loads_saved(pickled: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle what an earlier process saved: objects of its `__main__` get this process's classes."""
    if b"_class_setstate" not in pickled:
        return pickle.loads(pickled, buffers=buffers)
    others: list[str] = []
    while True:
        try:
            return _SavedLoader(io.BytesIO(pickled), buffers=buffers, others=others).load()
        except _OtherClassError as other:
            others.append(other.args[0])


class _OtherClassError(Exception):
    """A class of this process has the name of a saved class, but other members."""


class _SavedLoader(Loader):
    """An unpickler that gives objects of another process's `__main__` this process's classes.

    A class is known by its name. But one within a function or a class may have the name of one at the top,
    and its pickle does not say where it stands. So members are compared too. One that is not here, or has
    other members, is made from the pickle.
    """

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[Any], others: Iterable[str] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._others = others  # cloudpickle's ids of saved classes that this process does not have
        self._id_of: dict[Any, str] = {}

    def _make_class(self, make: Callable[..., Any], *arguments: Any) -> Any:
        number = arguments[-2]
        known = _class_of_name(*_module_and_name(make, arguments)) if number not in self._others else None
        if known is None:
            return super()._make_class(make, *arguments)
        self._here_before.add(known)
        self._id_of[known] = number
        return known

    def _set_state(self, kind: Any, state: Any) -> Any:
        if kind in self._id_of and _members(state[0]) != _members(vars(kind)):
            raise _OtherClassError(self._id_of[kind])
        return super()._set_state(kind, state)


def _members(attributes: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the names of a class's methods and of its annotated attributes.

    Methods that begin with "_" do not count: an enum gets some of its own.
    """
    kinds = (FunctionType, staticmethod, classmethod, property)
    methods = {name for name, value in attributes.items() if isinstance(value, kinds) and name[0] != "_"}
    return methods, set(attributes.get("__annotations__", ()))


def _module_and_name(make: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str]:
    if make is make_skeleton_class:
        return arguments[3].get("__module__"), arguments[1]
    return arguments[4], arguments[1]  # of an enum


def _class_of_name(module: Any, name: str) -> Any:
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and found.__qualname__ == name else None
