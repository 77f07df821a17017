"""Own state: what a program has changed in modules of the user's own, on its way to the workers.

In the script, `read` looks at the modules: which names have other values, which containers other content.
What has plain data, functions of its own and references to others is packed, a module at a time. On a
worker, `take_over` sets what differs from what the import there gave, and later what the script has changed
since; what functions have put there stays otherwise. A module that is imported later gets it then.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.log import logger
from parcoll.wire.codec import by_reference, loads
from parcoll.wire.own_modules import NOT_OWN, is_own_module, is_own_spec, outline_of, stamp_of
from parcoll.world.content import Content, Names, content_of, put, resolved


@dataclass(frozen=True, slots=True)
class OwnState:
    """The changed data of all modules, packed."""

    digest: str
    packed: bytes


class ModuleState(NamedTuple):
    """What one module has: content by the path from the module, `NAME` or `Class.name`."""

    contents: dict[str, Content]
    removed: frozenset[str]  # names that an import gives, and the script has deleted


# Script -------------------------------------------------------------------------------------------


class _Module:
    """One module of the user's own, in the script."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self._path = getattr(module, "__file__", None)
        self._spec: ModuleSpec | None = None
        self._look()

    def _look(self) -> None:
        spec = self.module.__spec__
        names = Names(self.module.__name__, "", self.module)
        if spec is not self._spec:  # a reload makes another spec
            self._spec = spec
            self._stamp = self._stamp_now()
            self._first, self._first_names = names.contents, names.names
        self._names = names
        self._edited = self._stamp_now() != self._stamp
        travels = {path: found for path, found in names.contents.items() if self._travels(path, found)}
        self.state = ModuleState({}, frozenset(self._first_names - names.names))
        for path, content in travels.items():
            try:
                self.state.contents[path] = content.full()
            except Exception:
                name = self.module.__name__
                logger.warning("%s.%s has changed, and is too large to be sent to the workers", name, path)

    def _travels(self, path: str, content: Content) -> bool:
        if self._first.get(path) != content:
            return True
        if self._edited:  # workers have the new code, and this is of the old
            return False
        # What is large travels where it is not what the import gave.
        return content.travels or path in outline_of(self.module).literals

    def _stamp_now(self) -> Any:
        try:
            return stamp_of(self._path) if self._path is not None else None
        except OSError:
            return None

    def changed(self) -> bool:
        """Look at the module; tell whether it has changed."""
        if self._names.unchanged() and (self._stamp_now() != self._stamp) == self._edited:
            return False
        self._look()
        return True


class _Modules:
    """All modules of the user's own in this process."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}
        self._seen: tuple[int, str] = (0, "")
        self._state: OwnState | None = None
        self._packed: dict[str, bytes] = {}

    def read(self) -> OwnState | None:
        changed = self._find()
        for name, module in self.modules.items():
            if name in changed or module.changed():
                changed.add(name)
                self._packed.pop(name, None)
                if module.state.contents or module.state.removed:
                    self._packed[name] = by_reference(module.state)
        if changed:
            content = zlib.compress(by_reference(self._packed), 1) if self._packed else b""
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            if self._state is None or digest != self._state.digest:
                self._state = OwnState(digest, content)
        return self._state

    def _find(self) -> set[str]:
        """Find the modules; return the names of those that are new, or gone."""
        loaded = sys.modules
        seen = len(loaded), next(reversed(loaded))
        if seen == self._seen and all(loaded.get(name) is m.module for name, m in self.modules.items()):
            return set()
        self._seen = seen
        found: set[str] = set()
        for name, module in list(loaded.items()):
            known = self.modules.get(name)
            if known is not None and known.module is module:
                continue
            is_whole = not getattr(getattr(module, "__spec__", None), "_initializing", False)
            is_ours = is_own_module(name, module) and is_whole
            if known is not None:
                del self.modules[name]
            if known is not None or is_ours:
                found.add(name)
            if is_ours:
                self.modules[name] = _Module(module)
        for name in [name for name in self.modules if name not in loaded]:
            del self.modules[name]
            self._packed.pop(name, None)
            found.add(name)
        return found


_modules = _Modules()
_lock = threading.Lock()


def read() -> OwnState | None:
    """Return what the script has; in a worker what it was given, without what functions left there."""
    if _given is not None:
        return _given
    with _lock:
        return _modules.read()


def homes() -> dict[str, set[str]]:
    """Return where what modules refer to was defined, by top-level module; as it was at the last reading."""
    found: dict[str, set[str]] = {}
    for name, module in list(_modules.modules.items()):
        contents = module.state.contents.values()
        homes = {c.data.decode().partition(":")[0] for c in contents if c.kind == "reference"}
        found.setdefault(name.partition(".")[0], set()).update(homes)
    return found


# Worker -------------------------------------------------------------------------------------------

_given: OwnState | None = None
_packed_states: dict[str, bytes] = {}
_states: dict[str, ModuleState] = {}
_stamps: dict[str, tuple[str, Any]] = {}  # files of own modules that were imported here, as they were
_edited: set[str] = set()
_taking = threading.RLock()
_ABSENT = object()  # what a name was that the script gave a module, and the import does not


class _Taken:
    """What one module has taken over so far."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.contents: dict[str, Content] = {}
        self.replaced: dict[str, Any] = {}  # what the import gave

    def take(self, state: ModuleState) -> None:
        """Set what differs from what the import gave, or what the script has changed since."""
        name = self.module.__name__
        for path, content in state.contents.items():
            before = self.contents.get(path)
            if before == content:
                continue
            self.contents[path] = content
            owner, attribute = resolved(self.module, path)
            if owner is None:
                continue
            here = vars(owner).get(attribute, _ABSENT)
            if before is None and content_of(here, name, path, plain_only="." in path) == content:
                continue
            try:
                kept = put(owner, attribute, content)
            except Exception as error:
                logger.info("a worker leaves %s.%s as its import gives it: %s", name, path, error)
                self._restore(path)
                continue
            if kept and path not in self.replaced and attribute in vars(owner):
                self.replaced[path] = here
        for path in [path for path in self.contents if path not in state.contents]:
            del self.contents[path]
            self._restore(path)
        for attribute in state.removed & vars(self.module).keys():
            if not isinstance(vars(self.module)[attribute], ModuleType):
                delattr(self.module, attribute)

    def _restore(self, path: str) -> None:
        owner, attribute = resolved(self.module, path)
        if owner is None or path not in self.replaced:
            return
        before = self.replaced.pop(path)
        if before is not _ABSENT:
            setattr(owner, attribute, before)
        elif attribute in vars(owner):
            delattr(owner, attribute)


_taken: dict[str, _Taken] = {}


def is_news(state: OwnState | None) -> bool:
    """Tell whether this process has not taken it over yet."""
    return state is not None and (_given is None or state.digest != _given.digest)


def take_over(state: OwnState | None) -> None:
    """Have the modules of this process be as the script's, and those that it imports later."""
    global _given
    if state is None or not is_news(state):
        return
    with _taking:
        _given = state
        packed = loads(zlib.decompress(state.packed)) if state.packed else {}
        changed = {name for name in packed if packed[name] != _packed_states.get(name)}
        gone = _packed_states.keys() - packed.keys()
        _packed_states.clear()
        _packed_states.update(packed)
        for name in changed | gone:
            _states[name] = loads(packed[name]) if name in packed else ModuleState({}, frozenset())
        watch_imports()
        for name in changed | gone:
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                _take(module)


def _take(module: ModuleType) -> None:
    state = _states.get(module.__name__)
    if state is not None:
        taken = _taken.get(module.__name__)
        if taken is None or taken.module is not module:
            taken = _taken[module.__name__] = _Taken(module)
        taken.take(state)


class _Imports(MetaPathFinder):
    """Notes which modules of the user's own are imported, and has them take over what the script has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that other finders have, with a loader around its own."""
        if fullname.partition(".")[0] in NOT_OWN or fullname in sys.builtin_module_names:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and is_own_spec(spec):
                    spec.loader = _Importing(spec.loader)
                return spec
        return None


class _Importing(Loader):
    """A loader that lets the module's own one load it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module as its own loader does."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, and set what the script has changed."""
        loader, name = self._loader, module.__name__
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = loader
        origin = module.__spec__.origin
        if origin and type(loader) is SourceFileLoader:
            _note(name, origin)
            if name in _edited:  # the file with its bytecode may be of the same second as the last one
                loader.get_code = lambda fullname: loader.source_to_code(loader.get_data(origin), origin)  # type: ignore[method-assign]
        loader.exec_module(module)
        with _taking:
            _take(module)


def _note(name: str, origin: str) -> None:
    try:
        _stamps[name] = origin, stamp_of(origin)
    except OSError:
        _stamps.pop(name, None)


_imports = _Imports()


def watch_imports() -> None:
    """Note what this process imports from now on."""
    if not sys.meta_path or sys.meta_path[0] is not _imports:
        # It imports a module itself while it fills the table that tells what is the user's own: were this
        # import its first use, the finder would ask of a table half filled.
        sysconfig.get_config_vars()
        if _imports in sys.meta_path:
            sys.meta_path.remove(_imports)
        sys.meta_path.insert(0, _imports)


def import_edited() -> None:
    """Import those modules anew whose files have changed since they were imported here.

    So are those that import one of them, directly or through others. What runs already keeps what it has.
    """
    watch_imports()
    with _taking:
        edited = set(_edited_now())
        if not edited:
            return
        _edited.update(edited)
        anew = edited | set(_importers(edited))
        for name in anew:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        for name in sorted(anew):  # a package before what is in it
            try:
                importlib.import_module(name)
            except Exception as error:  # whoever needs it says so
                logger.info("%s was edited and cannot be imported: %s", name, error)
                _stamps.pop(name, None)
                parent, _, last = name.rpartition(".")
                if parent in sys.modules:
                    vars(sys.modules[parent]).pop(last, None)


def _edited_now() -> Iterator[str]:
    for name, (path, stamp) in list(_stamps.items()):
        try:
            if name in sys.modules and stamp_of(path) != stamp:
                yield name
        except OSError:  # it is gone: the module stays what it is
            continue


def _importers(names: set[str]) -> Iterator[str]:
    """Yield the modules of the user's own that have something of these, directly or through others."""
    found = set(names)
    more = True
    while more:
        more = False
        for name in _stamps.keys() - found:
            module = sys.modules.get(name)
            if module is not None and any(_home(value) in found for value in list(vars(module).values())):
                found.add(name)
                more = True
                yield name


def _home(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    return value.__module__ if type(value) is FunctionType or type(value) is type else ""


def _renew_locks() -> None:
    global _lock, _taking
    _lock, _taking = threading.Lock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
