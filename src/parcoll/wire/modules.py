"""Shipped modules: Python modules that reach a worker as source text, and are imported from it.

Data files that stand beside them come too, under names with a slash: ``package/table.json``. Modules that
have some are written into a folder of the worker's, where they find them by `__file__` and as resources.

This module also runs on workers that have no parcoll yet (`worker.bootstrap` sends its text). So it needs
the standard library only, and imports nothing of parcoll.
"""

from __future__ import annotations

import ast
import atexit
import base64
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.abc import InspectLoader, MetaPathFinder
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple


class ModuleText(NamedTuple):
    """One module: its text, and its file's name, for tracebacks. Or a data file, in base 64."""

    is_package: bool
    filename: str
    text: str


def is_data(name: str) -> bool:
    """Tell whether this is the name of a data file beside a module."""
    return "/" in name


class ShippedModules(MetaPathFinder, InspectLoader):
    """The importer of shipped modules, which come before modules of the same name that this machine has."""

    def __init__(self) -> None:
        self.sources: dict[str, ModuleText] = {}
        self.folder: str | None = None  # where modules are written that have data files
        self._written: dict[str, str] = {}  # what is in these files
        self._placed: dict[str, str] = {}  # where the modules are, by top-level name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a shipped module; None for any other."""
        source = self.sources.get(fullname)
        if source is None:
            return None
        path = self._path_of(fullname)
        spec = importlib.machinery.ModuleSpec(
            fullname, self, origin=path or source.filename, is_package=source.is_package
        )
        spec.has_location = True  # sets __file__, which tracebacks and users read
        if path is not None and spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(os.path.dirname(path))
        return spec

    def _path_of(self, fullname: str) -> str | None:
        """Return the file of a module that has data files beside it, once all of them are written."""
        top, *rest = fullname.split(".")
        if not any(_top(name) == top and is_data(name) for name in list(self.sources)):
            return None
        tail = ["__init__"] if self.sources[fullname].is_package else []
        return os.path.join(self.write(top), top, *rest, *tail) + ".py"

    def write(self, top: str) -> str:
        """Write a module or package with its data files, as far as it is not there yet; return the folder."""
        sources = {name: source for name, source in self.sources.copy().items() if _top(name) == top}
        texts = [(name, source.text) for name, source in sorted(sources.items()) if not is_data(name)]
        folder = os.path.join(
            self._own_folder(), hashlib.blake2b(repr(texts).encode(), digest_size=8).hexdigest()
        )
        is_package = top not in sources or sources[top].is_package
        for name, source in sources.items():
            parts = name.split("/") if is_data(name) else name.split(".")
            if is_data(name):
                path = os.path.join(folder, *(parts if is_package else parts[1:]))
            else:
                path = os.path.join(folder, *parts, *(["__init__"] if source.is_package else [])) + ".py"
            if self._written.get(path) != source.text:
                content = base64.b64decode(source.text) if is_data(name) else source.text.encode()
                _replace(path, content)
                self._written[path] = source.text
        self._placed[top] = folder
        return folder

    def is_placed(self, top: str) -> bool:
        """Tell whether a module has been written."""
        return top in self._placed

    def _own_folder(self) -> str:
        if self.folder is None:
            self.folder = tempfile.mkdtemp(prefix="parcoll-modules-", dir=_worker_folder())
            atexit.register(_remove, self.folder, os.getpid())
        return self.folder

    def get_data(self, path: str) -> bytes:
        """Return what is in a file, for `pkgutil.get_data`."""
        with open(path, "rb") as file:
            return file.read()

    def get_resource_reader(self, fullname: str) -> Any:
        """Return what `importlib.resources` reads a package's files with; None if it has none."""
        path = self._path_of(fullname)
        if path is None:
            return None
        return importlib.import_module("importlib.readers").FileReader(SimpleNamespace(path=path))

    def is_package(self, fullname: str) -> bool:
        """Tell whether a shipped module is a package."""
        return self.sources[fullname].is_package

    def get_source(self, fullname: str) -> str:
        """Return the text: for tracebacks, for `inspect`, and for a process that ships it on."""
        return self.sources[fullname].text

    def get_code(self, fullname: str) -> CodeType:
        """Compile the text under the name of the file that the user knows."""
        source = self.sources[fullname]
        return compile(source.text, source.filename, "exec", dont_inherit=True)


def _worker_folder() -> str | None:
    """Return the folder of this process's worker, which dask removes; None for the system's own."""
    try:
        folder: str = sys.modules["distributed"].get_worker().local_directory
    except Exception:  # not in a task, or no worker's process
        return None
    return folder if os.path.isdir(folder) else None


def _replace(path: str, content: bytes) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as file:  # written by the worker beside this process
        if file.read() == content:
            return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(name, path)


def _remove(folder: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


_lock = threading.Lock()


def finder() -> ShippedModules:
    """Return this process's importer of shipped modules, which another copy of this module may have made."""
    for found in sys.meta_path:
        if type(found).__name__ == ShippedModules.__name__:
            return found  # type: ignore[return-value]
    made = ShippedModules()
    sys.meta_path.insert(0, made)
    return made


def install(sources: Mapping[str, tuple[bool, str, str]]) -> None:
    """Have these modules imported from these texts, unless the process already has the very same.

    A package that has changed is imported anew, and so are those that import it. The others stay what they
    are, and so do their classes: a running evaluation may have objects of them. A running evaluation keeps
    the functions that it has.
    """
    with _lock:
        wanted = {name: ModuleText(*source) for name, source in sources.items()}
        missing = {name for name, source in wanted.items() if not _is_here(name, source)}
        if not missing:
            return
        tops = set(map(_top, missing))
        shipped = finder().sources
        shipped.update({name: source for name, source in wanted.items() if _top(name) in tops})
        changed = {_top(name) for name in missing if name in sys.modules}
        for top in {_top(name) for name in missing if is_data(name)} - changed:
            if finder().is_placed(top):  # the module stays, and finds the new file where the old one was
                finder().write(top)
            elif top in sys.modules:
                changed.add(top)
        anew = _with_importers(changed, shipped)
        for name in shipped:
            if _top(name) in anew:
                sys.modules.pop(name, None)
        importlib.invalidate_caches()


def _top(name: str) -> str:
    return name.partition("/")[0].partition(".")[0]


def _with_importers(tops: set[str], shipped: Mapping[str, ModuleText]) -> set[str]:
    """Return these packages and those that import one of them, directly or through others."""
    found, todo = set(tops), list(tops)
    if not todo:
        return found
    imports: dict[str, set[str]] = {}
    for name, source in shipped.items():
        if is_data(name):
            continue
        imports.setdefault(_top(name), set()).update(imported_by(source.text))
    while todo:
        changed = todo.pop()
        importers = {top for top, names in imports.items() if changed in names} - found
        found |= importers
        todo += importers
    return found


@functools.lru_cache(maxsize=4096)
def imported_by(text: str) -> frozenset[str]:
    """Return the top-level modules that a source text imports, anywhere in it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return frozenset()  # it is not for this Python: importing it says so
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {_top(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(_top(node.module))
    return frozenset(found)


def _is_here(name: str, source: ModuleText) -> bool:
    shipped = finder().sources.get(name)
    if shipped is not None:
        return shipped[1:] == source[1:]
    if is_data(name):
        return _is_data_here(name, source.text)
    path = _own_file(name, source.is_package)
    try:
        with open(path or "", encoding="utf-8", errors="replace") as file:
            return file.read() == source.text
    except OSError:
        return False


def _is_data_here(name: str, text: str) -> bool:
    top, *rest = name.split("/")
    with contextlib.suppress(ImportError, ValueError, OSError):
        spec = importlib.machinery.PathFinder.find_spec(top)
        if spec is not None and spec.origin is not None:
            with open(os.path.join(os.path.dirname(spec.origin), *rest), "rb") as file:
                return file.read() == base64.b64decode(text)
    return False


def _own_file(name: str, is_package: bool) -> str | None:
    """Return this machine's file of a module. Imports nothing, since a package's `__init__` may do much."""
    top, *rest = name.split(".")
    try:
        spec = importlib.machinery.PathFinder.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and not is_package:
        return spec.origin
    tail = [*rest, "__init__"] if is_package else rest
    for folder in spec.submodule_search_locations or ():
        path = os.path.join(folder, *tail) + ".py"
        if os.path.exists(path):
            return path
    return None


def own_text() -> str:
    """Return the text of this module, which may itself have come as text."""
    source = finder().sources.get(__name__)
    if source is not None:
        return source.text
    with open(__file__, encoding="utf-8") as file:
        return file.read()


def packed(sources: Mapping[str, tuple[bool, str, str]]) -> bytes:
    """Pack sources for travel; no bytes for no sources."""
    global _last_packed
    plain = {name: tuple(source) for name, source in sorted(sources.items())}
    if plain != _last_packed[0]:
        _last_packed = plain, zlib.compress(json.JSONEncoder().encode(plain).encode(), 1)
    return _last_packed[1]


_last_packed: tuple[dict[str, Any], bytes] = {}, b""


def unpacked(content: bytes) -> dict[str, tuple[bool, str, str]]:
    """Return the sources that were packed."""
    plain = json.JSONDecoder().decode(zlib.decompress(content).decode())  # json.loads may be a mock
    return {name: (is_package, filename, text) for name, (is_package, filename, text) in plain.items()}


# Run by `eval` where a callable arrives: executes this module's text, the first time, and makes the callable.
_MAKE = """(lambda modules: (
    modules.get(name) or (lambda made: exec(compile(text, 'parcoll/wire/modules.py', 'exec'), vars(made))
    or modules.setdefault(name, made))(type(modules['sys'])(name))
).Carried(text, *arguments))(__import__('sys').modules)"""
_here: dict[bytes, ModuleText | None] = {}  # sources that were installed, and what parcoll was then


class Carried:
    """A callable of parcoll's as dask carries it: a scheduler and workers that lack parcoll can load it.

    It is made where it is called, after the sources have been installed that come with it.
    """

    def __init__(
        self, text: str, content: bytes, parcoll: bytes, others: bytes, python: tuple[int, int], label: str
    ) -> None:
        self._text = text  # of this module
        self._content = content  # the pickle of a class and its arguments
        self._sources = parcoll, others  # packed: parcoll's, and those of the user's own modules
        self._python = python
        self._label = label
        self._made: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Make what was packed, the first time, and call it."""
        if self._made is None:
            self._made = self._make()
        return self._made(*arguments)

    def _make(self) -> Any:
        if sys.version_info[:2] != self._python:
            raise RuntimeError(
                f"this worker runs Python {'.'.join(map(str, sys.version_info[:2]))} and {self._label} comes "
                f"from Python {'.'.join(map(str, self._python))}: use the same minor version on both"
            )
        for content in filter(None, self._sources):
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if digest not in _here or _here[digest] is not finder().sources.get("parcoll"):
                install(unpacked(content))
                _here[digest] = finder().sources.get("parcoll")
        kind, arguments = importlib.import_module("parcoll.wire.codec").loads(self._content)
        return kind(*arguments)

    def __dask_tokenize__(self) -> tuple[str, bytes]:
        return "parcoll", self._content

    def __repr__(self) -> str:
        return self._label

    def __reduce__(self) -> tuple[Any, ...]:
        name = "parcoll_carried_" + hashlib.blake2b(self._text.encode(), digest_size=8).hexdigest()
        arguments = (self._content, *self._sources, self._python, self._label)
        return eval, (_MAKE, {"text": self._text, "name": name, "arguments": arguments})


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
    ) -> importlib.machinery.ModuleSpec | None:
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
