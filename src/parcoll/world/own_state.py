"""Own state: what a program has changed in modules of the user's own, on its way to the workers.

`read` looks at the modules: which names have other values, which containers other content. What has plain
data, functions of its own and references to others is packed, a module at a time. `takeover` sets it there.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
import threading
import zlib
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from operator import is_
from types import ModuleType
from typing import Any, NamedTuple

from parcoll.log import logger
from parcoll.wire import memmaps
from parcoll.wire.codec import by_reference
from parcoll.wire.own_modules import is_own_module, stamp_of
from parcoll.world import handlers
from parcoll.world.content import Content, content_of, is_own_function, shape_of
from parcoll.world.outlines import outline_of


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
    """The names of a module or a class, as they were looked at last."""

    def __init__(self, module: str, prefix: str, owner: Any) -> None:
        namespace = vars(owner)
        self._namespace = namespace
        self._values = list(namespace.values())
        self.contents: dict[str, Content] = {}
        self._watched: list[_Watched] = []
        self._plain: list[Any] = []  # containers, which are compared with one call
        self._classes: list[_Names] = []
        self.names = set(namespace)
        for name, value in list(namespace.items()):
            if name[:2] == "__":
                continue
            if issubclass(type(value), type) and is_own_function(value, module, prefix + name):
                if not prefix:
                    self._classes.append(_Names(module, f"{name}.", value))
                continue
            content = content_of(value, module, prefix + name, plain_only=bool(prefix))
            if content is not None:
                self.contents[prefix + name] = content
                if content.may_change and content.kind == "plain" and content.value is None:
                    self._plain.append(value)
                elif content.may_change:
                    self._watched.append(_Watched(value, content))
        self._plain_data = marshal.dumps(self._plain, 2)
        for names in self._classes:
            self.contents |= names.contents

    def unchanged(self) -> bool:
        """Tell whether every name has the value it had, and every container its content."""
        namespace, values = self._namespace, self._values
        return (
            len(namespace) == len(values)
            and all(map(is_, namespace.values(), values))
            and (not self._plain or self._plain_is_same())
            and all(watched.is_same() for watched in self._watched)
            and all(names.unchanged() for names in self._classes)
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
        parts = os.path.dirname(os.path.abspath(self._path)).split(os.sep)
        return all(part.encode(errors="surrogateescape") in content.data for part in parts)

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
