"""Unpicklable: which of a user's objects cannot travel, and what to call it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from parcoll.errors import SerializationError
from parcoll.text import describe
from parcoll.wire.codec import dumps
from parcoll.wire.payload import Packed


def first_unpicklable(elements: Sequence[Any]) -> tuple[int, BaseException] | None:
    """Return the position of the first element that cannot be pickled, and why; None if each can."""
    for position, element in enumerate(elements):
        try:
            Packed.pack(element)
        except (Exception, SystemExit) as error:
            return position, error
    return None


def cannot_send(func: Any, role: str, cause: BaseException) -> SerializationError:
    """Return the error for a function that cannot be pickled, which names the captured object at fault."""
    culprit = _captured_culprit(func)
    blame = f": {culprit}" if culprit else ""
    return SerializationError(
        f"{role} cannot be sent to the workers{blame} ({type(cause).__name__}: {cause})"
    )


def _captured_culprit(func: Any, depth: int = 0) -> str | None:
    """Say which variable or attribute of `func` cannot be pickled; None if none is found."""
    for name, value in _captured(func):
        try:
            dumps(value)
        except Exception:
            inner = _captured_culprit(value, depth + 1) if depth < 3 else None
            return inner or f"it uses {name}, {describe(value)}, which cannot be pickled"
    return None


def _captured(func: Any) -> list[tuple[str, Any]]:
    """Return the values that a callable holds, each with the words for it in a message."""
    found: list[tuple[str, Any]] = []
    code = getattr(func, "__code__", None)
    if code is not None:
        for name, cell in zip(code.co_freevars, getattr(func, "__closure__", None) or (), strict=False):
            try:
                found.append((f"the captured variable {name!r}", cell.cell_contents))
            except ValueError:  # the cell is still empty
                continue
        module_globals = getattr(func, "__globals__", {})
        found += [
            (f"the global variable {name!r}", module_globals[name])
            for name in code.co_names
            if name in module_globals
        ]
        found += [("a default argument", value) for value in getattr(func, "__defaults__", None) or ()]
    bound_to = getattr(func, "__self__", None)
    if bound_to is not None and not isinstance(bound_to, type(pickle)):
        found.append(("the object it is bound to", bound_to))
    if hasattr(func, "func") and hasattr(func, "args"):  # functools.partial
        found.append(("the partial's function", func.func))
        found += [("an argument of the partial", value) for value in func.args]
        found += [(f"the partial's argument {k!r}", v) for k, v in func.keywords.items()]
    if code is None and isinstance(getattr(func, "__dict__", None), dict) and not isinstance(func, type):
        found += [(f"the attribute {k!r}", v) for k, v in vars(func).items()]
    return found
