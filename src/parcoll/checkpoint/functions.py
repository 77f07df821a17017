"""Functions: the parts that say what a function of the user's own does, each with the words for it.

They are its bytecode and constants, its defaults, its captured variables, the global variables that it names,
and the modules that it imports when it runs.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.wire.own_modules import imported_sources, is_own, names_imported

IMPORTED = "the module "  # begins the words for a module that a function imports when it runs


class Code(NamedTuple):
    """A function's code with its docstring, which stands among the code's constants."""

    code: CodeType
    doc: str | None


def parts_of(func: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a function, each with the words for it in a message."""
    code = func.__code__
    yield "the code", Code(code, func.__doc__)
    if func.__defaults__:
        yield "a default argument", func.__defaults__
    if func.__kwdefaults__:
        yield "a default argument given by name", func.__kwdefaults__
    for name, cell in zip(code.co_freevars, func.__closure__ or (), strict=False):
        try:
            yield f"the captured variable {name!r}", cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
    names = {name for inner in _codes(code) for name in inner.co_names}
    for name in sorted(set(_global_names(code)).intersection(func.__globals__)):
        value = func.__globals__[name]
        if isinstance(value, ModuleType) and is_own_module(value.__name__):
            yield from _members_of(value, name, names)
        else:
            yield f"the global {name!r}", value
    for name, text in sorted(imported_sources(_imports(func)).items()):
        with contextlib.suppress(SyntaxError, ValueError):  # not for this Python: importing it fails too
            yield f"{IMPORTED}{name!r}", compile(text, "", "exec", dont_inherit=True)


def _members_of(module: ModuleType, label: str, names: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the members of a module that are among `names`, and those of its submodules."""
    for name in sorted(names.intersection(vars(module))):
        value = vars(module)[name]
        if isinstance(value, ModuleType) and value.__name__.startswith(f"{module.__name__}."):
            yield from _members_of(value, f"{label}.{name}", names)
        elif isinstance(value, ModuleType) and value is not module and is_own_module(value.__name__):
            below = names.intersection(vars(value))
            yield from ((f"{label}.{name}.{member}", vars(value)[member]) for member in sorted(below))
        else:
            yield f"{label}.{name}", value


def _imports(func: FunctionType) -> Iterator[str]:
    """Yield the modules that a function imports when it runs, and imported names that may be modules."""
    package = func.__globals__.get("__package__") or ""
    for code in _codes(func.__code__):
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, members = steps[i - 2].argval, steps[i - 1].argval
                yield from names_imported(step.argval, level, members or (), package)


def loads_first_constant(code: CodeType) -> bool:
    """Tell whether the code uses its first constant, so that it is not a docstring only."""
    return any("CONST" in step.opname and step.arg == 0 for step in dis.get_instructions(code))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code, and the code of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _global_names(code: CodeType) -> Iterator[str]:
    for inner in _codes(code):
        for step in dis.get_instructions(inner):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield step.argval


@functools.lru_cache(maxsize=4096)
def is_own_module(module: str | None) -> bool:
    """Tell whether a module is the user's own, so that its functions may change between two runs."""
    if module is None or module == "__main__":
        return True
    if module.partition(".")[0] in {"parcoll", *sys.builtin_module_names}:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return is_own(Path(file)) if isinstance(file, str) else module in sys.modules
