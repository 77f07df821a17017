"""Own state: what a program has changed in modules of the user's own, on its way to the workers.

`read` looks at the modules: which names have other values, which containers other content. What has plain
data, functions of its own and references to others is packed, a module at a time. `takeover` sets it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import sys
import threading
import zlib
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from operator import is_
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.errors import SerializationError
from parcoll.log import logger
from parcoll.wire import memmaps
from parcoll.wire.codec import by_reference
from parcoll.wire.modules import ModuleText
from parcoll.wire.named import text_in_pickles
from parcoll.wire.own_modules import NOT_OWN, is_own, is_own_module, package_sources, stamp_of, text_of
from parcoll.wire.reducers import is_dispatching, made_code, made_modules
from parcoll.world import handlers
from parcoll.world.content import CODE, Content, content_of, is_own_function, is_set_by_users
from parcoll.world.outlines import names_folder, outline_of, shape_of


@dataclass(frozen=True, slots=True)
class OwnState:
    """The changed data of all modules, packed."""

    digest: str
    packed: bytes


class ModuleState(NamedTuple):
    """What one module has: content by the path from the module, `NAME` or `Class.name`."""

    contents: dict[str, Content]
    removed: frozenset[str]  # names that an import gives, and the script has deleted


class _Watched:
    """A value that may change without being another object, as it was looked at last."""

    def __init__(self, value: Any, content: Content) -> None:
        self._value, self._content = value, content
        shape = shape_of(value)
        # Another thread may have changed the value since its content was made: the next look tells then.
        self._shape = shape if shape is not None and content.is_of(value) else None

    def is_same(self) -> bool:
        """Tell whether it has that content still."""
        if self._shape is not None:
            now = shape_of(self._value)
            if now is not None and len(now) == len(self._shape) and all(map(is_, now, self._shape)):
                return True
        return self._content.is_of(self._value)


class _Names:
    """The names of a module, or of a class or function in it, as they were looked at last."""

    def __init__(self, module: str, prefix: str, owner: Any) -> None:
        namespace = vars(owner)
        self._namespace = namespace
        self._values = list(namespace.values())
        self.contents: dict[str, Content] = {}
        self._watched: list[_Watched] = []
        self._plain: list[Any] = []  # containers, which are compared with one call
        self._owners: list[_Names] = []  # its classes, and functions that have attributes
        self._functions: list[Any] = []  # those that have none
        self.names = set(namespace)
        for name, value in list(namespace.items()):
            if name[:2] == "__" and not is_set_by_users(name, value, in_class=bool(prefix)):
                continue
            if issubclass(type(value), type) and is_own_function(value, module, prefix + name):
                if not prefix:
                    self._owners.append(_Names(module, f"{name}.", value))
                continue
            if type(value) is FunctionType and not prefix and is_own_function(value, module, name):
                if vars(value) and not is_dispatching(value):
                    self._owners.append(_Names(module, f"{name}.", value))
                else:
                    self._functions.append(value)
            if type(owner) is FunctionType and isinstance(value, (type, *CODE)):
                continue  # what a decorator has put there
            content = content_of(value, module, prefix + name)
            if content is not None:
                self.contents[prefix + name] = content
                if content.may_change and content.kind == "plain" and content.value is None:
                    self._plain.append(value)
                elif content.may_change:
                    self._watched.append(_Watched(value, content))
        self._plain_data = marshal.dumps(self._plain, 2)
        for names in self._owners:
            self.contents |= names.contents

    def unchanged(self) -> bool:
        """Tell whether every name has the value it had, and every container its content."""
        namespace, values = self._namespace, self._values
        return (
            len(namespace) == len(values)
            and all(map(is_, namespace.values(), values))
            and (not self._plain or self._plain_is_same())
            and all(watched.is_same() for watched in self._watched)
            and not any(map(vars, self._functions))
            and all(names.unchanged() for names in self._owners)
        )

    def _plain_is_same(self) -> bool:
        try:
            return marshal.dumps(self._plain, 2) == self._plain_data
        except ValueError:  # one holds something else now
            return False


class _Module:
    """One module of the user's own, in the script."""

    def __init__(self, module: ModuleType, of_machine: bool) -> None:
        self.module = module
        self._of_machine = of_machine
        self._path = getattr(module, "__file__", None)
        self._spec: ModuleSpec | None = None
        self._look()

    def _look(self) -> None:
        spec = self.module.__spec__
        names = _Names(self.module.__name__, "", self.module)
        handlers.look()  # else what was swallowed there would be remembered as what the module has
        if spec is not self._spec:  # a reload makes another spec
            self._spec = spec
            self._stamp = self._stamp_now()
            self._first, self._first_names = names.contents, names.names
        self._edited = self._stamp_now() != self._stamp
        travels = {path: found for path, found in names.contents.items() if self._travels(path, found)}
        state = ModuleState({}, frozenset(self._first_names - names.names))
        for path, content in travels.items():
            try:
                state.contents[path] = content.full()
            except Exception:
                name = self.module.__name__
                logger.warning("%s.%s has changed, and is too large to be sent to the workers", name, path)
        handlers.look()
        # Last: what a signal's handler raises may end all this, and the next evaluation looks again.
        self.state, self._names = state, names

    def _travels(self, path: str, content: Content) -> bool:
        if self._first.get(path) != content:
            return True
        if self._edited:  # workers have the new code, and this is of the old
            return False
        if not self._of_machine and self._names_folder(path, content):
            return False
        # What is large travels where it is not what the import gave.
        return content.travels or path in outline_of(self.module).literals

    def _names_folder(self, path: str, content: Content) -> bool:
        """Tell whether a value has been made of the module's `__file__`, which is another elsewhere."""
        if self._path is None or path not in outline_of(self.module).computed:
            return False
        folder = os.path.dirname(os.path.abspath(self._path))
        return names_folder(folder, content.data, vars(self.module).get(path))

    def _stamp_now(self) -> Any:
        try:
            return stamp_of(self._path) if self._path is not None else None
        except OSError:
            return None

    def changed(self, found: set[str]) -> bool:
        """Look at the module; tell whether it has changed, and add its name then."""
        if self._names.unchanged() and (self._stamp_now() != self._stamp) == self._edited:
            return False
        found.add(self.module.__name__)
        self._look()
        return True


class _Modules:
    """All modules of the user's own in this process."""

    def __init__(self, of_machine: bool) -> None:
        self._of_machine = of_machine
        self.modules: dict[str, _Module] = {}
        self._seen: tuple[int, str] = (0, "")
        self._state: OwnState | None = None
        self._packed: dict[str, bytes] = {}
        self._changed: set[str] = set()  # and not packed yet

    def read(self) -> OwnState | None:
        changed = self._changed
        self._find(changed)
        for name, module in list(self.modules.items()):
            if name in changed or module.changed(changed):
                self._packed.pop(name, None)
                if module.state.contents or module.state.removed:
                    self._packed[name] = by_reference(module.state)
        if changed:
            content = zlib.compress(by_reference(self._packed), 1) if self._packed else b""
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            if self._state is None or digest != self._state.digest:
                self._state = OwnState(digest, content)
            changed.clear()
        return self._state

    def _find(self, found: set[str]) -> None:
        """Find the modules; add the names of those that are new, or gone."""
        loaded = sys.modules
        seen = len(loaded), next(reversed(loaded))
        if seen == self._seen and all(loaded.get(name) is m.module for name, m in self.modules.items()):
            return
        for name, module in list(loaded.items()):
            known = self.modules.get(name)
            if known is not None and known.module is module:
                continue
            is_whole = not getattr(getattr(module, "__spec__", None), "_initializing", False)
            is_ours = is_own_module(name, module) and is_whole
            if known is not None:
                self.modules.pop(name, None)
            if known is not None or is_ours:
                found.add(name)
            if is_ours:
                self.modules[name] = _Module(module, self._of_machine)
        for name in [name for name in self.modules if name not in loaded]:
            del self.modules[name]
            self._packed.pop(name, None)
            found.add(name)
        self._seen = seen


# As workers on this machine get it, and as others do, who have no files of this one.
_modules = {of_machine: _Modules(of_machine) for of_machine in (False, True)}
_lock = threading.RLock()
given: OwnState | None = None  # what a worker has taken over


def read(of_machine: bool) -> OwnState | None:
    """Return what the script has; in a worker what it was given, without what functions left there."""
    if given is not None:
        return given
    with _lock, memmaps.sent(here=of_machine):
        return _modules[of_machine].read()


# Modules that others do not find ------------------------------------------------------------------


class _Lost:
    """The modules of this process that another one with the same search path would not find."""

    def __init__(self) -> None:
        self._seen: list[Any] = []  # the modules, in their order
        self._path: tuple[str, ...] = ()
        self._known: dict[str, tuple[Any, bool]] = {}
        self.names: list[str] = []  # those that have a file

    def look(self) -> None:
        """Look at the modules that are new; those without a file go by value from now on."""
        loaded, seen, path = sys.modules, self._seen, tuple(sys.path)
        # One may have been put in the place of another (11 us for 1000 modules).
        if len(loaded) == len(seen) and all(map(is_, loaded.values(), seen)) and path == self._path:
            return
        known, self._known = self._known if path == self._path else {}, {}
        modules = dict(loaded)
        for name, module in modules.items():
            of = known.get(name)
            if of is None or of[0] is not module:
                of = module, type(module) is ModuleType and _is_lost(name, module)
            self._known[name] = of
        lost = {name: module for name, (module, is_one) in self._known.items() if is_one}
        self.names = [
            name
            for name, module in lost.items()
            if is_own_module(name, module)
            and all(parent in loaded for parent in _parents(name))
            and name.partition(".")[0] not in sys.stdlib_module_names  # the worker needs its own
        ]
        made = lost.keys() - set(self.names)
        code = {text_in_pickles(name) for name in made if _has_own_code(lost[name])}
        made_modules.update(made)  # and only then without the others: other threads pickle meanwhile
        made_modules.intersection_update(made)
        made_code.update(code)
        made_code.intersection_update(code)
        self._seen, self._path = [*modules.values()], path


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _has_own_code(module: ModuleType) -> bool:
    """Tell whether what a module defines is written in Python, and not in a file that was installed."""
    found = [
        value for value in list(vars(module).values()) if getattr(value, "__module__", "") == module.__name__
    ]
    kinds = [kind for kind in found if isinstance(kind, type)]
    parts = [*found, *(part for kind in kinds for part in list(vars(kind).values()))]
    codes = [value.__code__ for value in parts if type(value) is FunctionType]
    if not codes:  # classes without a method: those of a `class` statement begin so, and C's do not
        return any(next(iter(vars(kind)), "") == "__module__" for kind in kinds)
    return any(is_own(Path(code.co_filename)) for code in codes)


def _is_lost(name: str, module: ModuleType) -> bool:
    """Tell whether others would find no module of this name, or another one."""
    spec = vars(module).get("__spec__")
    top, _, below = name.partition(".")
    is_own_one = is_own_module(name, module)
    if top in NOT_OWN or (top in sys.stdlib_module_names and not is_own_one):
        return False
    if vars(module).get("__name__") != name:
        return False
    if not is_own_one and (below or getattr(spec, "origin", None) is not None):
        return bool(below) and top in sys.modules and _is_lost(top, sys.modules[top])
    parent = sys.modules.get(name.rpartition(".")[0])
    if below and parent is None:
        return True
    found = _found(name, getattr(parent, "__path__", None) if below else None)
    if found is None:
        return True
    file = getattr(spec, "origin", None) or vars(module).get("__file__")
    return isinstance(file, str) and _real(found.origin) != _real(file)


def _found(name: str, path: Any) -> Any:
    """Return the spec that the finders give which other processes have too."""
    for finder in sys.meta_path:
        home = getattr(finder if isinstance(finder, type) else type(finder), "__module__", "")
        if home == "__main__" or is_own_module(home, sys.modules.get(home)):
            continue
        with contextlib.suppress(Exception):
            spec = finder.find_spec(name, path)
            if spec is not None:
                return spec
    return None


def _real(path: str | None) -> str:
    return os.path.realpath(path or "")


_lost = _Lost()


def look_for_lost() -> None:
    """Note which modules others would not find; in a worker they were noted in the script."""
    if given is None:
        with _lock:
            _lost.look()


def lost_sources() -> dict[str, ModuleText]:
    """Return the texts of the modules that have files and that others would not find, as noted last."""
    found: dict[str, ModuleText] = {}
    for name in _lost.names:
        spec: Any = sys.modules[name].__spec__ if name in sys.modules else None
        if spec is None:
            continue
        with contextlib.suppress(OSError, SerializationError):
            if spec.submodule_search_locations:
                found |= package_sources(name, map(Path, spec.submodule_search_locations))
            else:
                path = Path(spec.origin)
                found[name] = ModuleText(False, str(path), text_of(path, stamp_of(path)))
    return found


# ---------------------------------------------------------------------------------------------------


def homes(of_machine: bool) -> dict[str, set[str]]:
    """Return where what modules refer to was defined, by top-level module; as it was at the last reading."""
    found: dict[str, set[str]] = {}
    for name, module in list(_modules[of_machine].modules.items()):
        contents = module.state.contents.values()
        homes = {c.data.decode().partition(":")[0] for c in contents if c.kind == "reference"}
        found.setdefault(name.partition(".")[0], set()).update(homes)
    return found


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
