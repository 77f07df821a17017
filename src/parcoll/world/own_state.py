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
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import EnumMeta
from importlib.machinery import ModuleSpec
from itertools import chain
from operator import attrgetter, is_
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from parcoll.errors import logger
from parcoll.wire import memmaps
from parcoll.wire.codec import by_reference
from parcoll.wire.own_modules import is_own_module, stamp_of
from parcoll.wire.reducers import is_dispatching
from parcoll.world import handlers
from parcoll.world.content import (
    FILLED,
    Content,
    bare,
    content_of,
    given_content,
    has_code_of_another,
    is_own_function,
    is_set_by_users,
    names_folder,
)
from parcoll.world.outlines import CODE, TOLD, Link, is_shared, links_of, outline_of, shape_of


@dataclass(frozen=True, slots=True)
class OwnState:
    """The changed data of all modules, packed."""

    digest: str
    packed: bytes
    order: tuple[str, ...] = ()  # in which the modules' imports ended in the script


class ModuleState(NamedTuple):
    """What one module has: content by the path from it, `NAME`, `Class.name` or `func.__defaults__`."""

    contents: dict[str, Content]
    removed: frozenset[str]  # paths that an import gives, and the script has deleted
    links: frozenset[Link] = frozenset()


class _Watched:
    """A value that may change without being another object, as it was looked at last."""

    def __init__(self, value: Any, content: Content) -> None:
        self._value, self._content = value, content
        shape = shape_of(value) if content.kind not in TOLD else None  # it stays the same function
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
    """The names of a module, and of classes and functions in it, as they were looked at last."""

    def __init__(self, module: ModuleType, first: dict[str, Any]) -> None:
        self._module = module.__name__
        self._first = first  # functions, and their code
        self.contents: dict[str, Content] = {}
        self.paths: set[str] = set()  # that can be deleted
        self._owners: set[str] = set()
        self._watched: list[_Watched] = []
        self._plain: list[Any] = []  # containers, which are compared with one call
        self._namespaces: list[Mapping[str, Any]] = []
        self._functions: list[FunctionType] = []  # of the user's own
        self._without: list[FunctionType] = []  # those of them that have no attributes
        self._classes: list[type] = []
        self.shared: dict[str, Any] = {}  # what other names may have as well, by path
        self._look_at(module, "")
        self._plain_data = marshal.dumps(self._plain, 2)
        self._values = self._values_now()

    def _look_at(self, owner: Any, prefix: str) -> None:
        self._namespaces.append(vars(owner))
        self._owners.add(prefix)
        is_func = type(owner) is FunctionType
        of_python = _OF_ENUMS if issubclass(type(owner), EnumMeta) else ()
        for name, value in vars(owner).copy().items():
            if name in of_python:
                continue
            if name[:2] == "__" and not is_set_by_users(name, value, in_class=bool(prefix)):
                continue
            path = prefix + name
            self.paths.add(path)
            if is_func and isinstance(value, (type, *CODE)):
                continue  # what a decorator has put there
            if not is_func and issubclass(type(value), type) and is_own_function(value, self._module, path):
                self._add_class(path, value)
                continue
            func = bare(value)
            if not is_func and type(func) is FunctionType and is_own_function(func, self._module, path):
                self._add_function(path, func)
            self._add(path, value)
        if issubclass(type(owner), EnumMeta):
            self._add_members(prefix, owner)

    def _add(self, path: str, value: Any) -> None:
        content = content_of(value, self._module, path)
        if content is None and self._first.setdefault(f"={path}", _weakly(value))() is not value:
            content = given_content(value)
        if content is not None:
            self.contents[path] = content
            if content.kind in FILLED and is_shared(value):
                self.shared[path] = value
            if content.may_change and content.kind == "plain" and content.value is None:
                self._plain.append(value)
            elif content.may_change:
                self._watched.append(_Watched(value, content))

    def _add_class(self, path: str, kind: type) -> None:
        self._classes.append(kind)
        self._add(f"{path}.__bases__", kind.__bases__)
        self._look_at(kind, f"{path}.")

    def _add_function(self, path: str, func: FunctionType) -> None:
        self._functions.append(func)
        if is_dispatching(func):
            pass  # what it has Python has noted there
        elif vars(func):
            self._look_at(func, f"{path}.")
        else:
            self._owners.add(f"{path}.")
            self._without.append(func)
        first, code = self._first.setdefault(path, (func, func.__code__))
        for part in ("__defaults__", "__kwdefaults__"):
            if getattr(func, part) is not None:
                self._add(f"{path}.{part}", getattr(func, part))
        if first is func and (func.__code__ is not code or has_code_of_another(func)):
            self._add(f"{path}.__code__", func.__code__)

    def _add_members(self, prefix: str, kind: EnumMeta) -> None:
        for name, member in kind._member_map_.items():
            if member._name_ == name:  # not another name of one
                self._namespaces.append(vars(member))
                self._owners.add(f"{prefix}{name}.")
                for attribute, value in vars(member).copy().items():
                    if not attribute[0] == "_" == attribute[-1]:
                        self.paths.add(f"{prefix}{name}.{attribute}")
                        self._add(f"{prefix}{name}.{attribute}", value)

    def gone(self, before: set[str]) -> frozenset[str]:
        """Return what of these paths was deleted, and not what had it."""
        return frozenset(p for p in before - self.paths if p[: p.rfind(".") + 1] in self._owners)

    def unchanged(self) -> bool:
        """Tell whether every name has the value it had, and every container its content."""
        now = self._values_now()
        return (
            len(now) == len(self._values)
            and all(map(is_, now, self._values))
            and (not self._plain or self._plain_is_same())
            and all(watched.is_same() for watched in self._watched)
            and not any(map(vars, self._without))
        )

    def _values_now(self) -> list[Any]:
        # One list of all: a module with 46 functions and 8 classes takes 20 us, and with a look at each 45.
        values = [*chain.from_iterable([names.values() for names in self._namespaces])]
        values += chain.from_iterable(map(_PARTS, self._functions))
        values += map(_BASES, self._classes)
        return values

    def _plain_is_same(self) -> bool:
        try:
            return marshal.dumps(self._plain, 2) == self._plain_data
        except ValueError:  # one holds something else now
            return False


def _weakly(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


# What Python notes in an enum itself, of its members.
_OF_ENUMS = {"_member_map_", "_value2member_map_", "_member_names_", "_new_member_", "_hashable_values_"}
_OF_ENUMS |= {"_unhashable_values_", "_unhashable_values_map_", "_inverted_", "_member_type_"}
_PARTS, _BASES = attrgetter("__code__", "__defaults__", "__kwdefaults__"), attrgetter("__bases__")


class _Module:
    """One module of the user's own, in the script."""

    def __init__(self, module: ModuleType, of_machine: bool) -> None:
        self.module = module
        self._of_machine = of_machine
        self._path = getattr(module, "__file__", None)
        self._spec: ModuleSpec | None = None
        self._first_parts: dict[str, Any] = {}
        self._look()

    def _look(self) -> None:
        spec = self.module.__spec__
        is_new = spec is not self._spec  # a reload makes another spec
        first_parts = {} if is_new else self._first_parts
        names = _Names(self.module, first_parts)
        handlers.look()  # else what was swallowed there would be remembered as what the module has
        if is_new:
            self._spec, self._first_parts = spec, first_parts
            self._stamp = self._stamp_now()
            self._first, self._first_paths = names.contents, names.paths
        self._edited = self._stamp_now() != self._stamp
        travels = {path: found for path, found in names.contents.items() if self._travels(path, found)}
        state = ModuleState({}, names.gone(self._first_paths))
        for path, content in travels.items():
            try:
                state.contents[path] = content.full()
            except Exception:
                name = self.module.__name__
                logger.warning("%s.%s has changed, and is too large to be sent to the workers", name, path)
        handlers.look()
        # Last: what a signal's handler raises may end all this, and the next evaluation looks again.
        self.state, self._names = state, names

    def places(self) -> dict[int, tuple[str, str]]:
        """Return where objects of the module are, by their ids."""
        name = self.module.__name__
        return {id(value): (name, path) for path, value in reversed(self._names.shared.items())}

    def link(self, targets: dict[int, tuple[str, str]]) -> bool:
        """Note which of its objects are at two places; tells whether these are others than before."""
        values = {path: value for path, value in self._names.shared.items() if path in self.state.contents}
        before, links = self.state.links, links_of(values, targets, self.module.__name__)
        self.state = self.state._replace(links=links)
        return links != before

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
        for name, module in self.modules.copy().items():
            if name in changed or module.changed(changed):
                self._packed.pop(name, None)
        if changed:
            targets: dict[int, tuple[str, str]] = {}
            for module in self.modules.values():
                targets = module.places() | targets
            for name, module in self.modules.items():
                if module.link(targets):
                    self._packed.pop(name, None)
                if name not in self._packed and (module.state.contents or module.state.removed):
                    self._packed[name] = by_reference(module.state)
            content = zlib.compress(by_reference(self._packed), 1) if self._packed else b""
            told = content + " ".join(self.modules).encode(errors="surrogateescape")
            digest = hashlib.blake2b(told, digest_size=16).hexdigest()
            if self._state is None or digest != self._state.digest:
                self._state = OwnState(digest, content, tuple(self.modules))
            changed.clear()
        return self._state

    def _find(self, found: set[str]) -> None:
        """Find the modules; add the names of those that are new, or gone."""
        loaded = sys.modules
        seen = len(loaded), [*loaded][-1]  # an iterator may be overtaken by an import
        if seen == self._seen and all(loaded.get(name) is m.module for name, m in self.modules.items()):
            return
        for name, module in loaded.copy().items():
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
lock = threading.RLock()
given: OwnState | None = None  # what a worker has taken over


def read(of_machine: bool) -> OwnState | None:
    """Return what the script has; in a worker what it was given, without what functions left there."""
    if given is not None:
        return given
    with lock, memmaps.sent(here=of_machine):
        return _modules[of_machine].read()


def modules() -> dict[str, ModuleType]:
    """Return the user's own modules, as they were at the last reading."""
    return {name: one.module for reader in _modules.values() for name, one in reader.modules.copy().items()}


def homes(of_machine: bool) -> dict[str, set[str]]:
    """Return where what modules refer to was defined, by top-level module; as it was at the last reading."""
    found: dict[str, set[str]] = {}
    for name, module in list(_modules[of_machine].modules.items()):
        contents = module.state.contents.values()
        texts = [c.data.decode().split("\n") for c in contents if c.kind in ("reference", "bases")]
        homes = {text.partition(":")[0] for text in chain.from_iterable(texts)}
        found.setdefault(name.partition(".")[0], set()).update(homes)
    return found


def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
