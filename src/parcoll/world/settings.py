"""Settings: what a program has put into a library that is not its own: a number, or another function.

`PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True`, `numpy.float = float`, `inspect.getargspec = getfullargspec`:
nothing in these values is the program's. The bytecode of a module says what an import gives: which constants
and functions it binds to its names, and which names its functions bind again, as that is the library's work.
Of some of Python's libraries, what is registered with their own functions, too.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import EnumMeta
from opcode import hasjabs, hasjrel, opmap
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from parcoll.world.entries import Entries

ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None)))
OTHER = object()  # what a module binds to a name, and its bytecode does not show
MOST = 32  # settings of a module: one with more is put together by code elsewhere
DEFINED = object()  # a function
Origins = dict[str, list[Any]]  # constants, `DEFINED`, `OTHER`, or other names


class _Alias(str):
    """Another name of the module that a name is bound to."""


_NAMES_OF_OPS = ("EXTENDED_ARG", "STORE_NAME", "LOAD_CONST", "LOAD_NAME", "COPY", "CACHE")
_EXTENDED_ARG, _STORE_NAME, _LOAD_CONST, _LOAD_NAME, _COPY, _CACHE = map(opmap.__getitem__, _NAMES_OF_OPS)
_SMALL_INT = opmap.get("LOAD_SMALL_INT")  # since Python 3.14
_GLOBAL = opmap["STORE_GLOBAL"], opmap["DELETE_GLOBAL"]
_JUMPS = {*hasjrel, *hasjabs}
_LEAVES = {opmap.get(name) for name in ("JUMP_FORWARD", "JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP")}
_MAKES = {opmap.get("MAKE_FUNCTION"), opmap.get("SET_FUNCTION_ATTRIBUTE")}
# What may bind any name at all: the rest of a module's names are not known then.
_STAR, _INTRINSIC, _IMPORT_STAR = opmap.get("IMPORT_STAR"), opmap.get("CALL_INTRINSIC_1"), 2
_BINDS_ANY = {"globals", "locals", "vars", "setattr", "modules", "__dict__", "update", "__getattr__"}


def _operations(code: CodeType) -> Iterator[tuple[int, int]]:
    """Yield each operation with its argument; `dis` takes 18 times as long."""
    raw, wide = code.co_code, 0
    for op, low in zip(raw[::2], raw[1::2], strict=True):
        number = low | wide
        wide = number << 8 if op == _EXTENDED_ARG else 0
        if op not in (_EXTENDED_ARG, _CACHE):
            yield op, number


def _bindings(code: CodeType) -> tuple[Origins, bool]:
    """Return what a module's or class's code binds to its names, and whether it may bind others."""
    found: Origins = {}
    copies, is_branch = 0, False
    last: Any = OTHER
    is_open = not _BINDS_ANY.isdisjoint(code.co_names)
    for op, number in _operations(code):
        if op in (_STORE_NAME, _GLOBAL[0]):  # the second, if a function says that it is global
            found.setdefault(code.co_names[number], []).append(OTHER if is_branch else last)
            last, copies, is_branch = (last, copies - 1, is_branch) if copies else (OTHER, 0, False)
        elif op == _LOAD_CONST:
            last, copies = code.co_consts[number], 0
        elif op == _SMALL_INT:
            last, copies = number, 0
        elif op == _LOAD_NAME:
            last, copies = _Alias(code.co_names[number]), 0
        elif op == _COPY and number == 1:
            copies += 1
        elif op in _MAKES:
            last, copies = DEFINED, 0
        elif op in _JUMPS:  # with a value: there is another one on the other way
            is_branch |= last is not OTHER and (op in _LEAVES or copies > 0)
            last, copies = OTHER, 0
        else:
            last, copies = OTHER, 0
            is_open |= op == _STAR or (op == _INTRINSIC and number == _IMPORT_STAR)
    return found, is_open


def _bound_again(code: CodeType) -> set[str]:
    """Return the names that functions of a module bind, by `global`."""
    names: set[str] = set()
    for inner in code.co_consts:
        if type(inner) is CodeType:
            names |= _bound_again(inner)
            if any(op in inner.co_code[::2] for op in _GLOBAL):  # most functions bind none
                names |= {inner.co_names[number] for op, number in _operations(inner) if op in _GLOBAL}
    return names


_LOADERS = ("_frozen_importlib", "importlib", "zipimport")


@functools.lru_cache(maxsize=2048)
def _known_of(name: str) -> tuple[Origins, bool, set[str], dict[str, Origins]] | None:
    """Return what an import of a module gives; None if there is no bytecode of it."""
    try:
        module = sys.modules[name]
        loader: Any = module.__spec__.loader  # type: ignore[union-attr]
        code = loader.get_code(name)
        kind = loader if isinstance(loader, type) else type(loader)
    except Exception:  # of C, or without a file
        return None
    if code is None or kind.__module__.partition(".")[0] not in ("_frozen_importlib_external", *_LOADERS):
        return None
    classes = {
        inner.co_name: _bindings(inner)[0]
        for inner in code.co_consts
        if type(inner) is CodeType and type(vars(module).get(inner.co_name)) is not FunctionType
    }
    return *_bindings(code), _bound_again(code), classes


def settings_of(module: ModuleType) -> dict[str, Any]:
    """Return what the program has set in a library's module, by the path of it."""
    names = vars(module).copy()
    known = _known_of(module.__name__)
    if known is None:
        return {}
    origins, is_open, again, classes = known
    found: dict[str, Any] = {}
    for name, value in names.items():
        if name[:2] == "__" or name in again:
            continue
        given = origins.get(name)
        if given is None:
            is_second = type(value) is FunctionType and origins.get(value.__name__) == [DEFINED]
            if name[0] != "_" and (is_second or _is_added(value, is_open, module.__name__)):
                found[name] = value
        elif _is_other(value, given, name, names):
            found[name] = value
    for name, bound in classes.items():
        kind = None if name[0] == "_" else names.get(name)
        if isinstance(kind, type) and kind.__module__ == module.__name__ and not isinstance(kind, EnumMeta):
            for attribute, value in vars(kind).copy().items():
                is_plain = attribute[0] != "_" and type(value) in ATOMS and attribute in bound
                if is_plain and _is_other(value, bound[attribute], attribute, {}):
                    found[f"{name}.{attribute}"] = value
    return found if len(found) <= MOST else {}


NUMBERS = (bool, int, float, complex, str, object)  # as old programs have them: `numpy.float`


def _is_added(value: Any, is_open: bool, module: str) -> bool:
    """Tell whether a name that a module does not bind is the program's: `numpy.float = float`."""
    if type(value) in ATOMS:
        return not is_open
    if is_open:
        return type(value) is type and value in NUMBERS
    return issubclass(type(value), _NAMED) and value.__module__ != module and _is_reference(value)


_NAMED = (FunctionType, BuiltinFunctionType, type)


def _is_reference(value: Any) -> bool:
    """Tell whether a function or class is the one that a library has by its name."""
    with contextlib.suppress(Exception):
        owner: Any = sys.modules[value.__module__]
        for part in value.__qualname__.split("."):
            owner = getattr(owner, part)
        return owner is value
    return False


def _is_other(value: Any, given: list[Any], name: str, names: dict[str, Any]) -> bool:
    """Tell whether a value is none of those that a module gives its name."""
    kind = type(value)
    if kind in ATOMS:
        return all(
            type(one) in ATOMS and not (type(one) is kind and (one == value or one != one)) for one in given
        )
    if not issubclass(kind, _NAMED) or value.__name__ == name:
        return False
    if kind is FunctionType and value.__code__.co_name == name:
        return False
    return all(_is_replaced(value, one, names) for one in given) and _is_reference(value)


def _is_replaced(value: Any, given: Any, names: dict[str, Any]) -> bool:
    if type(given) is _Alias:  # of what the module defines by that name
        return value.__name__ != given and getattr(names.get(given), "__name__", None) == given
    return given is DEFINED or type(given) in ATOMS


# Registered with Python's libraries ----------------------------------------------------------------


def read_registered() -> dict[tuple[str, Any], Any]:
    """Return what the program has registered, by the library and its name there."""
    found: dict[tuple[str, Any], Any] = {}
    calendar, requests = sys.modules.get("calendar"), sys.modules.get("urllib.request")
    if first := getattr(getattr(calendar, "c", None), "firstweekday", 0):
        found["calendar", None] = first
    if (opener := getattr(requests, "_opener", None)) is not None:
        found["opener", None] = _Opener(opener)
    spaces = getattr(sys.modules.get("xml.etree.ElementTree"), "_namespace_map", {})
    found |= {("namespace", uri): name for uri, name in spaces.copy().items() if uri not in _NAMESPACES}
    aliases = sys.modules["encodings.aliases"].aliases
    if len(aliases) != len(_fresh_aliases()):
        found |= {("alias", name): aliases[name] for name in {*aliases} - {*_fresh_aliases()}}
    modules = sys.modules.copy()
    found |= _named_otherwise.of(list(map(id, modules.values())), lambda: _other_names(modules))
    if (types := getattr(sys.modules.get("mimetypes"), "_db", None)) is not None:
        here = [table.copy() for table in types.types_map]
        found |= _added_types.of(here, lambda: _other_types(here))
    return found


class _Seen:
    """What was found in something that is looked at again and again, for as long as that is what it was."""

    def __init__(self) -> None:
        self._seen: Any = None
        self._found: dict[tuple[str, Any], Any] = {}

    def of(self, seen: Any, look: Callable[[], dict[tuple[str, Any], Any]]) -> dict[tuple[str, Any], Any]:
        if self._seen != seen:
            self._seen, self._found = seen, look()
        return self._found


_named_otherwise, _added_types = _Seen(), _Seen()


def _other_names(modules: dict[str, Any]) -> dict[tuple[str, Any], Any]:
    """Return the names under which other modules stand."""
    names = {name: getattr(module, "__name__", name) for name, module in modules.items()}
    others = {name: real for name, real in names.items() if real != name}
    return {
        ("module", name): real
        for name, real in others.items()
        if name[0] != "_" and "." not in name and modules.get(real) is modules[name]
    }


def _other_types(tables: Sequence[dict[str, str]]) -> dict[tuple[str, Any], Any]:
    """Return the types that `mimetypes` has not from the start; the second table is of official ones."""
    pairs = zip((False, True), tables, _fresh_types(), strict=True)
    return {
        ("type", (strict, end)): kind
        for strict, table, fresh in pairs
        for end, kind in table.items()
        if fresh.get(end) != kind
    }


_NAMESPACES = {
    *("http://www.w3.org/XML/1998/namespace", "http://www.w3.org/1999/xhtml"),
    *("http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://schemas.xmlsoap.org/wsdl/"),
    *("http://www.w3.org/2001/XMLSchema", "http://www.w3.org/2001/XMLSchema-instance"),
    "http://purl.org/dc/elements/1.1/",
}


@functools.cache
def _fresh_aliases() -> dict[str, str]:
    names: dict[str, Any] = {}
    loader: Any = sys.modules["encodings.aliases"].__spec__.loader  # type: ignore[union-attr]
    exec(loader.get_code("encodings.aliases"), names)
    return dict(names["aliases"])


@functools.cache
def _fresh_types() -> tuple[dict[str, str], dict[str, str]]:
    import mimetypes  # lazy: few programs have it

    known = mimetypes.MimeTypes()
    for file in filter(os.path.isfile, mimetypes.knownfiles):
        known.read(file)
    return known.types_map


class _Opener:
    """An opener of `urllib`, as it travels: the context that its handler of HTTPS has is a new one there."""

    def __init__(self, opener: Any) -> None:
        self._opener = opener
        self._told = list(opener.addheaders), list(opener.handlers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opener) and self._told == other._told

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        headers, handlers = self._told
        return _opener, (type(self._opener), headers, list(map(_handler, handlers)))


def _handler(handler: Any) -> Any:
    context = getattr(handler, "_context", None)
    if context is not None:
        return type(handler), handler._debuglevel, context.check_hostname, int(context.verify_mode)
    alone = copy.copy(handler)
    alone.__dict__.pop("parent", None)
    return alone


def _opener(kind: Any, headers: list[Any], handlers: list[Any]) -> Any:
    opener = kind()
    for one in handlers:
        if type(one) is tuple:
            import ssl  # lazy: few programs have it

            made, level, checks, mode = one
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = checks, ssl.VerifyMode(mode)
            one = made(debuglevel=level, context=context)
        opener.add_handler(one)
    opener.addheaders = headers
    return opener


_modules: dict[str, ModuleType | None] = {}  # before others got their names


def _register(key: tuple[str, Any], value: Any) -> None:
    library, name = key
    if library == "calendar":
        importlib.import_module("calendar").setfirstweekday(value)
    elif library == "opener":
        importlib.import_module("urllib.request").install_opener(value)
    elif library == "namespace":
        importlib.import_module("xml.etree.ElementTree").register_namespace(value, name)
    elif library == "alias":
        sys.modules["encodings.aliases"].aliases[name] = value
    elif library == "module":
        _modules.setdefault(name, sys.modules.get(name))
        sys.modules[name] = importlib.import_module(value)
    else:
        strict, end = name
        importlib.import_module("mimetypes").add_type(value, end, strict)


def _drop(key: tuple[str, Any]) -> None:
    library, name = key
    if library in ("calendar", "opener"):
        _register(key, 0 if library == "calendar" else None)
    elif library == "namespace":
        sys.modules["xml.etree.ElementTree"]._namespace_map.pop(name, None)
    elif library == "alias":
        sys.modules["encodings.aliases"].aliases.pop(name, None)
    elif library == "module":
        del sys.modules[name]
        if (before := _modules.pop(name, None)) is not None:
            sys.modules[name] = before
    else:
        strict, end = name
        fresh = _fresh_types()[strict].get(end)
        here = sys.modules["mimetypes"]._db.types_map[strict]
        here.pop(end, None) if fresh is None else here.update({end: fresh})


set_registered = Entries(_register, _drop)
