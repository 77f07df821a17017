"""Outlines: what the text of a module says of what an import of it gives."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from parcoll.wire.own_modules import stamp_of, text_of


class Outline(NamedTuple):
    """What the text of a module says of what an import gives."""

    literals: frozenset[str]  # names to which it gives plain values, and no others
    computed: frozenset[str]  # names to which it gives what it makes
    undecorated: frozenset[str]  # functions and methods that are what their `def` makes


@functools.lru_cache(maxsize=256)
def _outline(text: str) -> Outline:
    literals: dict[str, bool] = {}
    undecorated: set[str] = set()
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                value = getattr(node, "value", None)
                is_literal = isinstance(value, ast.Constant) or not any(
                    ast.iter_child_nodes(value) if value is not None else ()
                )
                literals[target.id] = is_literal and literals.get(target.id, True)
        inside = [(f"{node.name}.", inner) for inner in node.body] if isinstance(node, ast.ClassDef) else []
        for prefix, inner in [("", node), *inside]:
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inner.decorator_list:
                undecorated.add(prefix + inner.name)
    plain = frozenset(name for name, is_one in literals.items() if is_one)
    return Outline(plain, frozenset(literals.keys() - plain), frozenset(undecorated))


def outline_of(module: ModuleType) -> Outline:
    """Return what the text of a module says; nothing where there is no text."""
    try:
        path = Path(module.__file__ or "")
        return _outline(text_of(path, stamp_of(path)))
    except (OSError, SyntaxError, ValueError, AttributeError):
        return Outline(frozenset(), frozenset(), frozenset())
