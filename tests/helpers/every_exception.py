"""Every exception class of the modules named on the command line, there and back as a failure's is.

Run as a program: it imports all of a package, which no test's process should. `stdlib` stands for all of the
standard library. It prints how many classes it found, and then those that came back as something else.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import string
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from parcoll.wire.anatomy import fields_of as _fields
from parcoll.wire.exceptions import Failure

# They open windows or browsers, print, or are tests.
LEFT_OUT = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "lib2to3", "test", "tkinter"}
# What their constructors take differs: each class is made of those of these that it accepts.
ARGUMENTS: list[tuple[Any, ...]] = [
    (),
    ("text",),
    ("a", "b"),
    (2, "no such"),
    ("a", "b", "c"),
    ("a", "b", "c", "d"),
    ("utf-8", b"\xff", 0, 1, "bad"),
    ("x", 0, 1, "bad"),
    (b"x", None),
    (["a"],),
    (("m", "g"),),
    ("m", [ValueError(1)]),
    ("cmd", 3),
    (1, "cmd", "out", "err"),
    ("a", ("f", 1, 2, "t")),
    ("m", "doc", 1),
    ({"a": (1, "x")},),
    (None, None, None),
]


def modules_of(name: str) -> Iterator[Any]:
    """Yield a package's modules, without private ones and tests."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module(name)
    except BaseException:  # for another system, or without what it needs
        return
    yield module
    for part in pkgutil.iter_modules(vars(module).get("__path__", [])):
        if "test" not in part.name and part.name != "__main__":
            yield from modules_of(f"{name}.{part.name}")


def classes_in(packages: list[str]) -> dict[type[BaseException], None]:
    """Return the exception classes that the packages have, in order."""
    if packages == ["stdlib"]:
        packages = sorted(name for name in sys.stdlib_module_names - LEFT_OUT if name[0] != "_")
    found: dict[type[BaseException], None] = {}
    for module in [module for name in packages for module in modules_of(name)]:
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, BaseException):
                found[value] = None
    return found


def seen(error: BaseException) -> tuple[Any, ...]:
    """Return what a user can see of an exception."""
    fields = {**_fields(error), **getattr(error, "__dict__", {})}
    hidden = ("__notes__", "exceptions", "error_log")  # the last is a parser's own, and comes as its text
    shown = {name: shown_as(value) for name, value in fields.items() if name not in hidden}
    return type(error), str(error), list(map(shown_as, error.args)), shown


def shown_as(value: Any) -> object:
    """Return a text for a value: an exception equals no copy of its own."""
    if isinstance(value, BaseException):
        return type(value), str(value)
    if isinstance(value, list):
        return list(map(shown_as, value))
    if isinstance(value, set):
        return sorted(map(repr, value))
    return re.sub("0x[0-9a-f]+", "", repr(value))


def arguments_for(kind: type[BaseException]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield positional and named arguments that the class may take."""
    yield from ((arguments, {}) for arguments in ARGUMENTS)
    names = {name for _, name, _, _ in string.Formatter().parse(getattr(kind, "fmt", "") or "") if name}
    with contextlib.suppress(ValueError, TypeError):
        parameters = inspect.signature(kind).parameters.values()
        names |= {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    yield (), dict.fromkeys(names, "given")


def main(packages: list[str]) -> None:
    """Make them all, and print what came back as something else."""
    warnings.simplefilter("ignore")
    classes, made = classes_in(packages), set()
    for kind in classes:
        for arguments, named in arguments_for(kind):
            try:
                error = kind(*arguments, **named)
                before = seen(error)
            except BaseException:  # it takes others, or cannot show what it was given
                continue
            made.add(kind)
            copy = Failure.of(error, "a note").original()
            if seen(copy) != before:
                print(f"{kind.__module__}.{kind.__qualname__}{arguments}{named}:\n  {before}\n  {seen(copy)}")
                break
    print(f"{len(made)} of {len(classes)} classes")


if __name__ == "__main__":
    main(sys.argv[1:])
