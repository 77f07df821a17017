"""Described: what is told of objects in modules that cannot travel themselves.

Of a mock of `unittest.mock` what it does, of a function of `functools.singledispatch` which classes others
have registered with it, and of a context variable what it has.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from types import FunctionType
from typing import Any, NamedTuple

from parcoll.wire import named
from parcoll.wire.codec import by_value, loads
from parcoll.wire.reducers import is_dispatching

KINDS = ("registry", "variable")


def told_of(value: Any) -> tuple[str, bytes] | None:
    """Return what is told of a function that dispatches, or of a context variable; None of anything else."""
    if type(value) is ContextVar:
        return "variable", by_value(named.value_of(value))
    if type(value) is FunctionType and is_dispatching(value):
        registry = getattr(value, "registry").items()  # noqa: B009 - which the type of functions lacks
        added = [(kind, func) for kind, func in registry if func.__module__ != value.__module__]
        return "registry", by_value(added)
    return None


def take(here: Any, kind: str, data: bytes) -> None:
    """Have an object of a worker's be as it was told."""
    found = loads(data)
    if kind == "variable" and type(here) is ContextVar:
        named.of_modules[here] = found
    elif kind == "registry" and type(here) is FunctionType and is_dispatching(here):
        for of, func in found:
            here.register(of, func)  # type: ignore[attr-defined]


class Mock(NamedTuple):
    """What a mock does, of `unittest.mock`, which cannot be pickled; the calls that it has had stay here."""

    kind: str
    returns: Any
    effect: Any
    attributes: dict[str, Any]

    @staticmethod
    def is_one(value: Any) -> bool:
        """Tell whether a value is a mock."""
        mock = sys.modules.get("unittest.mock")
        return mock is not None and isinstance(value, mock.NonCallableMock)

    @classmethod
    def of(cls, value: Any) -> Mock:
        """Describe a mock."""
        mock = sys.modules["unittest.mock"]
        state = vars(value)
        found = {name: part for name, part in state["_mock_children"].items() if name[:2] != "__"}
        found |= {
            k: v for k, v in state.items() if not k.startswith(("_mock", "_spec")) and k != "method_calls"
        }
        attributes = {name: cls.of(part) if cls.is_one(part) else part for name, part in found.items()}
        returns = state.get("_mock_return_value", mock.DEFAULT)
        returns = cls.of(returns) if cls.is_one(returns) else None if returns is mock.DEFAULT else (returns,)
        return cls(type(value).__mro__[1].__name__, returns, state.get("_mock_side_effect"), attributes)

    def make(self) -> Any:
        """Make a mock that does the same."""
        from unittest import mock

        made = getattr(mock, self.kind)()
        if self.returns is not None:
            made.return_value = self.returns.make() if isinstance(self.returns, Mock) else self.returns[0]
        if self.effect is not None:
            made.side_effect = self.effect
        for name, part in self.attributes.items():
            setattr(made, name, part.make() if isinstance(part, Mock) else part)
        return made
