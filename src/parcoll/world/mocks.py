"""Mocks: a mock of `unittest.mock` that a script has put into a module, on its way to the workers."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple


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
