"""The warnings filters: what is shown, ignored or raised, as it travels and as a worker sets it.

A filter has the class of warnings that it is for. A worker may not have the package of that class, or get the
module of the user's own only with the program. So each filter of such a class is loaded for itself: without
its class, nothing that it is for can be warned of.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from parcoll.wire.codec import by_value, loads


def read() -> tuple[Any, ...]:
    """Return the filters of this process."""
    return tuple(warnings.filters)


def set_(filters: tuple[Any, ...] | Filters) -> None:
    """Have this process filter warnings so."""
    found = filters.here() if isinstance(filters, Filters) else filters
    warnings.resetwarnings()  # has warnings that were filtered before be looked at again
    warnings.filters[:] = found  # type: ignore[index]


class Filters:
    """The script's filters: on a worker, pickles are among them, of those whose class is not here."""

    def __init__(self, filters: tuple[Any, ...]) -> None:
        self._filters = filters
        self._modules = -1  # how many there were when those that are missing were looked for

    def __reduce__(self) -> tuple[Any, ...]:
        return Filters, (tuple(map(_packed, self._filters)),)

    def here(self) -> tuple[Any, ...]:
        """Return those whose class is here."""
        if self._modules != len(sys.modules):
            self._filters = tuple(map(_loaded, self._filters))
            self._modules = len(sys.modules)
        return tuple(one for one in self._filters if type(one) is not bytes)

    def __eq__(self, other: object) -> bool:
        """Tell whether a process with these filters has all that it can have of them."""
        return isinstance(other, tuple) and self.here() == other

    __hash__ = None  # type: ignore[assignment]


def _packed(one: Any) -> Any:
    kind = one[2] if type(one) is tuple and len(one) > 2 else None
    return one if getattr(kind, "__module__", None) == "builtins" else by_value(one)


def _loaded(one: Any) -> Any:
    if type(one) is not bytes:
        return one
    try:
        return loads(one)
    except (ImportError, AttributeError):
        return one
