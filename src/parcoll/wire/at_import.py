"""At import: what is done when a process imports a module that it may never import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AtImport(MetaPathFinder):
    """Calls a function with each module of some, once that has been imported.

    Both happen `within` a context of its own. It belongs at the head of `sys.meta_path`.
    """

    def __init__(
        self, actions: Mapping[str, Callable[[Any], None]], within: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._actions = dict(actions)
        self._within = within

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that other finders give, with a loader that does what is to be done."""
        action = self._actions.pop(fullname, None)
        if action is None:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                with self._within():
                    execute(module)
                    action(module)

            loader.exec_module = execute_and_act
        return spec
