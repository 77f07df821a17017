"""Paces: how long an element took when the same functions ran last in this process.

A first evaluation has to find out. The next one of the same functions sends a short source at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from parcoll.chain.steps import Step

MOST = 256  # rows of functions that are remembered, the last ones

_seconds: dict[tuple[Hashable, ...], float] = {}  # of an element, by the functions that it went through


def remembered(steps: Sequence[Step]) -> float | None:
    """Return the seconds that an element took; None if these functions did not run, or nobody can tell."""
    functions = _names(steps)
    return None if functions is None else _seconds.get(functions)


def remember(steps: Sequence[Step], seconds: float) -> None:
    """Note the seconds that an element took."""
    functions = _names(steps)
    if functions is None:
        return
    _seconds.pop(functions, None)
    _seconds[functions] = seconds
    while len(_seconds) > MOST:
        _seconds.pop(next(iter(_seconds)), None)


def _names(steps: Sequence[Step]) -> tuple[Hashable, ...] | None:
    names = tuple((step.kind, _name(step.func)) for step in steps)
    return None if any(name is None for _, name in names) else names


def _name(func: Callable[..., Any] | None) -> Hashable | None:
    """Return what stands for a function, without holding it; None for one that holds data of its own.

    Data may make it fast or slow. A lambda is another object each time that its line runs, and has the same
    code.
    """
    if func is None:
        return "itself"
    if isinstance(func, FunctionType):
        return None if func.__closure__ or func.__defaults__ or func.__kwdefaults__ else func.__code__
    of_module = isinstance(func, BuiltinFunctionType) and isinstance(func.__self__, ModuleType)
    return (func.__module__, func.__qualname__) if of_module or isinstance(func, type) else None
