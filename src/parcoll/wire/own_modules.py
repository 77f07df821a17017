"""Own modules: the user's own modules that a program needs, found and read as source text.

A module is the user's own if it is neither in the standard library nor in a folder of installed packages:
it stands beside the script, elsewhere on the path, or in an editable checkout. Own packages travel whole.
In a worker, where one evaluation may run within another, the shipped modules are the user's own.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dis
import functools
import importlib.util
import os
import pkgutil
import re
import site
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from parcoll.errors import SerializationError, logger
from parcoll.text import describe, short_repr
from parcoll.wire.codec import modules_in
from parcoll.wire.modules import ModuleText, ShippedModules, finder, imported_by, is_data

# A folder that is a package by accident (a home folder with an __init__.py) must not travel.
MAX_BYTES = 32 * 2**20
# Data files travel up to so many bytes a package, or a module: the small ones first.
DATA_BYTES = 8 * 2**20
MOST_FILES = 5_000  # of a folder that are looked at
CODE = (".py", ".pyc", ".pyo", ".so", ".pyd")
LOOKS_BESIDE = ("__file__", "__spec__", "__loader__", "get_data", "resources")

ModuleTexts = dict[str, ModuleText]


def shipped_sources() -> ModuleTexts:
    """Return the sources that were shipped to this process, without parcoll's."""
    shipped = finder().sources
    return {name: shipped[name] for name in list(shipped) if name.partition(".")[0] != "parcoll"}


def sources_for(
    program: Any, ship: Sequence[Any] = (), homes: Mapping[str, Iterable[str]] | None = None
) -> ModuleTexts:
    """Return the sources of the user's own modules that `program` needs, by name.

    A module is needed if a function of the program comes from it or uses it, if the script uses it, or if
    a needed module imports it, or if the script has put something of it into a needed module: `homes` has
    these. `ship` adds modules and packages by name; "-name" leaves one out.
    """
    added, left_out = names_of(ship)
    found: ModuleTexts = {}
    names, codes = modules_in(program)
    words = frozenset[str]().union(*map(_words_in, codes))
    todo = [*added, *_roots(names, codes)]
    seen = set(left_out) | {"__main__", "parcoll"}
    while todo:
        top = todo.pop().partition(".")[0]
        if top in seen:
            continue
        seen.add(top)
        sources = _sources_of(top, asked_for=top in added, words=words)
        found |= sources
        for name, source in sources.items():
            todo += imported_by(source.text) if not is_data(name) else ()
        if sources and homes is not None:
            todo += homes.get(top, ())
    return found


def names_of(ship: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Return the names that `connect(ship=...)` adds, and those that it leaves out."""
    added: list[str] = []
    left_out: list[str] = []
    if isinstance(ship, (str, bytes)) or not isinstance(ship, Iterable):
        raise TypeError(f"ship must be a list of modules or their names, got {describe(ship)}")
    for given in ship:
        name = given.__name__ if isinstance(given, ModuleType) else given
        if not isinstance(name, str) or not name.lstrip("-").partition(".")[0]:
            raise TypeError(
                f'ship takes modules, their names, or "-name" to leave one out; got {describe(given)}'
            )
        (left_out if name.startswith("-") else added).append(name.lstrip("-").partition(".")[0])
    for name in added:
        if _spec(name) is None:
            raise ValueError(f"ship names {short_repr(name)}, but this process finds no module of that name")
    return added, left_out


def _roots(names: set[str], codes: list[CodeType]) -> Iterator[str]:
    """Yield the modules that a program names, those its functions import, and those the script uses."""
    yield from names
    for code in codes:
        yield from _imported_by(code)
    main = sys.modules["__main__"]
    yield getattr(main, "__package__", None) or "__main__"
    for value in list(vars(main).values()):
        name = _module_of(value)
        if isinstance(name, str):
            yield name


def _module_of(value: Any) -> object:
    """Return the name of a module, or of the module that a function or an object comes from."""
    try:
        return value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    except Exception:  # a framework's proxy of an object that is not there yet
        return None


def _imported_by(code: CodeType) -> Iterator[str]:
    """Yield the modules that a function's code imports when it runs."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported_by(constant)


def names_imported(name: str, level: int, members: Iterable[str], package: str) -> Iterator[str]:
    """Yield the modules that ``from name import members`` may load, where it stands in `package`."""
    try:
        base = importlib.util.resolve_name("." * level + name, package) if level else name
    except ImportError:  # the name leads out of the package
        return
    parts = base.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
    yield from (f"{base}.{member}" for member in members)


def imported_sources(names: Iterable[str]) -> dict[str, str]:
    """Return the texts of those of these modules that are the user's own, and of all that they import."""
    found: dict[str, str] = {}
    packages: dict[str, ModuleTexts] = {"parcoll": {}}
    todo = list(names)
    while todo:
        name = todo.pop()
        top = name.partition(".")[0]
        if top not in packages:
            packages[top] = {}
            with contextlib.suppress(SerializationError):  # too large to be sent; nothing is sent here
                packages[top] = _sources_of(top)
        source = packages[top].get(name) if name not in found else None
        if source is None:
            continue
        found[name] = source.text
        package = name if source.is_package else name.rpartition(".")[0]
        with contextlib.suppress(SyntaxError, ValueError):
            for node in ast.walk(ast.parse(source.text)):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        todo += names_imported(alias.name, 0, (), package)
                elif isinstance(node, ast.ImportFrom):
                    members = [alias.name for alias in node.names]
                    todo += names_imported(node.module or "", node.level, members, package)
    return found


def _sources_of(top: str, asked_for: bool = False, words: Set[str] | None = None) -> ModuleTexts:
    """Return a top-level module's or package's sources: none unless it is the user's own or `asked_for`.

    With `words` there are data files too: beside a module those that it names, or one of these words.
    """
    spec = _spec(top)
    if spec is None:
        return {}
    if spec.submodule_search_locations is not None:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        own = [folder for folder in folders if asked_for or is_own(folder)]
        found = package_sources(top, own)
        if found:
            return found | (_data_in(top, own) if words is not None else {})
        return _zipped(top, spec) if own else {}
    if not spec.origin or not spec.has_location:
        return {}
    path = Path(spec.origin)
    if path.suffix != ".py" or not (asked_for or is_own(path)):
        return {}
    try:
        text = text_of(path, stamp_of(path))
        beside = _data_in(top, [path.parent], words | _words_of(text)) if words is not None else {}
        return {top: ModuleText(False, str(path), text)} | beside
    except OSError as error:  # the file is within a zip file, gone since it was imported, or another user's
        found = _zipped(top, spec)
        if asked_for and not found:
            raise SerializationError(f"the module {top!r} cannot be sent to the workers: {error}") from error
        return found


def _zipped(name: str, spec: Any) -> ModuleTexts:
    """Return the sources of a module in a zip file and of its submodules; none if it is in no zip file."""
    if not hasattr(spec.loader, "archive"):  # of zipimport, or what stands around one of its loaders
        return {}
    text = spec.loader.get_source(name)
    folders = spec.submodule_search_locations
    found = {name: ModuleText(folders is not None, spec.origin or "", text)} if text is not None else {}
    for finder_of_it, below, _ in pkgutil.iter_modules(folders or [], f"{name}."):
        found |= _zipped(below, finder_of_it.find_spec(below, None))
    return found


def _spec(top: str) -> Any:
    module = sys.modules.get(top)
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return spec
    try:
        return importlib.util.find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError, AttributeError):
        return None


def package_sources(top: str, folders: Iterable[Path]) -> ModuleTexts:
    """Return the sources of all modules of a package, by name."""
    found: ModuleTexts = {}
    total = 0
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not all(part.isidentifier() for part in parts):
                continue
            is_package = parts[-1] == "__init__"
            name = ".".join([top, *(parts[:-1] if is_package else parts)])
            try:
                text = text_of(path, stamp_of(path))
            except OSError:  # a link to nowhere, a folder, another user's file: no import reads it
                continue
            total += len(text)
            if total > MAX_BYTES:
                raise SerializationError(
                    f"the package {top!r} in {str(folder)!r} is too large to be sent to the workers (over "
                    f'{MAX_BYTES >> 20} MiB of source): install it there, and connect(ship=["-{top}"])'
                )
            found.setdefault(name, ModuleText(is_package, str(path), text))
    return _with_parents(top, found)


def _data_in(top: str, folders: Iterable[Path], words: Set[str] | None = None) -> ModuleTexts:
    """Return the data files of a package, or those beside a module of which it has one of `words`."""
    if words is not None and not words:
        return {}
    sizes: list[tuple[int, str, Path]] = []
    for folder in folders:
        for path, parts in _files_in(folder):
            known = words is None or words & {*parts, path.stem, path.suffix, f"*{path.suffix}"} - {""}
            with contextlib.suppress(OSError):
                status = path.stat()
                if known and stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                    sizes.append((status.st_size, "/".join((top, *parts)), path))
    found: ModuleTexts = {}
    left, room = [], DATA_BYTES
    for size, name, path in sorted(sizes):
        if size > room:
            left.append(str(path))
        elif name not in found:
            room -= size
            found[name] = ModuleText(False, str(path), _content(path, stamp_of(path)))
    if left and top not in _told:
        _told.add(top)
        logger.warning(
            "the data files of the module %r are more than %d MiB, so these do not go to the workers: %s",
            *(top, DATA_BYTES >> 20, ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")),
        )
    return found


_told: set[str] = set()


def _files_in(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the files of a folder that are no code, with the parts of their path in it."""
    seen = 0
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        for name in files:
            if name[0] != "." and not name.endswith(CODE):
                path = Path(here, name)
                yield path, path.relative_to(folder).parts
        seen += len(folders) + len(files)
        if seen > MOST_FILES:
            return


@functools.lru_cache(maxsize=256)
def _words_of(text: str) -> frozenset[str]:
    """Return the names of files in a module's text; none if it does not look beside itself."""
    if not any(word in text for word in LOOKS_BESIDE):
        return frozenset()
    with contextlib.suppress(SyntaxError, ValueError):
        return _parts_of(node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return frozenset()


def _words_in(code: CodeType) -> frozenset[str]:
    """Return the names of files in a function's code; none if it does not look beside a module."""
    inner = [_words_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    looks = not {*LOOKS_BESIDE, "files"}.isdisjoint(code.co_names)
    return frozenset().union(*inner, _parts_of(code.co_consts) if looks else ())


def _parts_of(constants: Iterable[Any]) -> frozenset[str]:
    texts = (constant for constant in constants if isinstance(constant, str))
    return frozenset(part for text in texts for part in re.split(r"[/\\]", text))


@functools.lru_cache(maxsize=1024)
def _content(path: Path, stamp: tuple[int, int]) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _with_parents(top: str, found: ModuleTexts) -> ModuleTexts:
    """Add an empty package for each folder without `__init__.py`, which Python finds by its path only."""
    for name in list(found):
        parts = name.split(".")[:-1]
        for end in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:end]), ModuleText(True, f"<{top}>", ""))
    return found


def stamp_of(path: str | Path) -> tuple[int, int]:
    """Return what shows that a file was written again: its time of change, and its size."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=4096)
def text_of(path: Path, stamp: tuple[int, int]) -> str:
    """Return a file's text; it is read again when its stamp (time of change, size) is another."""
    content = path.read_bytes()
    try:
        return importlib.util.decode_source(content)
    except (SyntaxError, UnicodeDecodeError):
        return content.decode("latin-1")


def is_own_module(name: str, module: Any) -> bool:
    """Tell whether a module that was imported under that name is the user's own."""
    if name.partition(".")[0] in NOT_OWN or not isinstance(module, ModuleType):
        return False
    spec = vars(module).get("__spec__")
    return spec is not None and vars(module).get("__name__") == name and is_own_spec(spec)


NOT_OWN = frozenset({"parcoll", "__main__", "__mp_main__"})


def is_own_spec(spec: Any) -> bool:
    """Tell whether a spec is that of a module of the user's own."""
    if type(spec.loader).__name__ == ShippedModules.__name__:
        return True
    origin = spec.origin
    return isinstance(origin, str) and origin.endswith(".py") and _is_own_folder(origin.rpartition(os.sep)[0])


@functools.lru_cache(maxsize=4096)
def _is_own_folder(folder: str) -> bool:
    # Most are installed ones, and need not be resolved, which takes 30 µs each.
    return not f"{folder}{os.sep}".startswith(_installed_texts()) and is_own(Path(folder))


@functools.cache
def _installed_texts() -> tuple[str, ...]:
    return tuple(f"{folder}{os.sep}" for folder in _installed_folders())


def is_own(path: Path) -> bool:
    """Tell whether a file or folder is the user's own: neither Python's nor among installed packages."""
    found = path.resolve()
    return not any(found.is_relative_to(folder) for folder in _installed_folders())


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    named = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in named} | {site.getusersitepackages()}
    folders |= set(getattr(site, "getsitepackages", list)())
    folders |= {folder for folder in sys.path if _holds_packages(Path(folder))}
    return tuple(Path(folder).resolve() for folder in folders if folder)


def _holds_packages(folder: Path) -> bool:
    """Tell whether packages were installed into a folder, as by `pip --target` or a module system."""
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))
