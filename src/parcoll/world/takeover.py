"""Takeover: a worker's modules of the user's own have what the script has changed in its own.

`take_over` sets what differs from what the import here gave, and later what the script has changed since;
what functions have put there stays otherwise. A module that is imported later gets it then.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

from parcoll.errors import logger
from parcoll.text import message_of
from parcoll.wire import classes
from parcoll.wire.codec import loads
from parcoll.wire.own_modules import NOT_OWN, is_own_spec, stamp_of
from parcoll.world import boot, own_state
from parcoll.world.content import FILLED, Content, content_of, held, put, resolved
from parcoll.world.outlines import ABSENT, ATOMS, Link, give_back, is_shared, links_of, put_inside
from parcoll.world.own_state import ModuleState, OwnState

LATE_SECONDS = 1.0  # that an imported module waits for another thread to take over

_packed_states: dict[str, bytes] = {}
_states: dict[str, ModuleState] = {}
_stamps: dict[str, tuple[str, Any]] = {}  # files of own modules that were imported here, as they were
_edited: set[str] = set()
_taking = threading.RLock()


class _Taken:
    """What one module has taken over so far."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.contents: dict[str, Content] = {}
        self.replaced: dict[str, Any] = {}  # what the import gave
        self.filled: dict[str, Content | None] = {}  # and what was in it, where it is the same object still
        self.removed: dict[str, Any] = {}  # and what it gave that the script has deleted
        self.links = self._apart = frozenset[Link]()

    def take(self, state: ModuleState) -> None:
        """Set what differs from what the import gave, or what the script has changed since."""
        name = self.module.__name__
        apart = self._apart = (self._links(state) | self.links) - state.links
        self.links = state.links
        # Names whose object is at another place here, and in the script no longer.
        alone = {at.target for at in apart if at.module == name} | {at.path for at in apart if not at.route}
        for path in [path for path in self.contents if path not in state.contents]:
            del self.contents[path]
            self._restore(path)  # first: what is in a class is set when the class is here again
        for path in sorted(self.removed.keys() - state.removed):
            owner, attribute = resolved(self.module, path)
            before = self.removed.pop(path)
            if owner is not None and attribute not in vars(owner):
                setattr(owner, attribute, before)
        for path, content in state.contents.items():
            before = self.contents.get(path)
            owner, attribute = resolved(self.module, path)
            if before == content or owner is None:
                continue
            self.contents[path] = content
            here = held(owner, attribute)
            is_first = path not in self.replaced and path not in self.filled
            was = content_of(here, name, path) if is_first or before is None else None
            if before is None and was == content:
                continue
            try:
                kept = put(owner, attribute, content, anew=path in alone or _is_another_s(here, content))
            except Exception as error:
                logger.info("a worker leaves %s.%s as its import gives it: %s", name, path, message_of(error))
                self._restore(path)
                continue
            if is_first and not kept:
                self.filled[path] = was
            if kept and path not in self.replaced:
                self.replaced[path] = here
        for path in sorted(state.removed):
            owner, attribute = resolved(self.module, path)
            here = held(owner, attribute) if owner is not None else ABSENT
            if here is not ABSENT and not isinstance(here, ModuleType):
                self.removed[path] = here
                delattr(owner, attribute)

    def _links(self, state: ModuleState) -> frozenset[Link]:
        """Return which places here have the object of another name of the module."""
        name, values = self.module.__name__, {}
        for path, content in state.contents.items():
            owner, attribute = resolved(self.module, path)
            here = held(owner, attribute) if owner is not None else ABSENT
            if content.kind in FILLED and here is not ABSENT and is_shared(here):
                values[path] = here
        return links_of(values, {id(here): (name, path) for path, here in reversed(values.items())}, name)

    def link(self) -> None:
        """Have two places have one object where the script has it so, and two objects where not."""
        for path in {at.path for at in self._apart if at.module != self.module.__name__ and at.route}:
            owner, attribute = resolved(self.module, path)
            with contextlib.suppress(Exception):  # another module has given what was there to the other name
                put(owner, attribute, self.contents[path])
        self._apart = frozenset()
        for link in sorted(self.links, key=lambda link: len(link.route)):
            with contextlib.suppress(Exception):  # a function has changed what leads there
                target = held(*resolved(sys.modules[link.module], link.target))
                owner, attribute = resolved(self.module, link.path)
                here = held(owner, attribute)
                if link.route:
                    put_inside(here, link.route, target)
                elif here is not target and type(here) is type(target):
                    self.replaced.setdefault(link.path, here)
                    setattr(owner, attribute, target)

    def _restore(self, path: str) -> None:
        owner, attribute = resolved(self.module, path)
        if owner is None:
            return
        if path in self.replaced:
            give_back(owner, attribute, self.replaced.pop(path))
        was = self.filled.pop(path, None)
        if was is not None and was.value is None and held(owner, attribute) is not ABSENT:
            put(owner, attribute, was)

    def now(self) -> dict[str, Content | None]:
        """Return what the module has of what it took over, without the names that refer to other modules."""
        found = {}
        for path, content in self.contents.items():
            owner, attribute = resolved(self.module, path)
            if owner is not None and content.kind in FILLED:
                here = held(owner, attribute)
                found[path] = content_of(here, self.module.__name__, path)
        return found

    def put_back(self, before: dict[str, Content | None]) -> None:
        """Set what was `now` before."""
        for path, content in self.now().items():
            old = before.get(path)
            owner, attribute = resolved(self.module, path)
            if owner is not None and old is not None and content != old:
                put(owner, attribute, old)


def _is_another_s(here: Any, content: Content) -> bool:
    """Tell whether another name has the same object here, and in the script one of other content."""
    if type(here) in ATOMS or content.kind not in FILLED:
        return False
    for name, state in _states.items():
        for attribute, value in vars(sys.modules[name]).copy().items() if name in sys.modules else ():
            if value is here and state.contents.get(attribute, content) != content:
                return True
    return False


_taken: dict[str, _Taken] = {}
_late: deque[ModuleType] = deque()  # imported while another thread took over


def is_news(state: OwnState | None) -> bool:
    """Tell whether this process has not taken it over yet."""
    return state is not None and (own_state.given is None or state.digest != own_state.given.digest)


def take_over(state: OwnState | None) -> None:
    """Have the modules of this process be as the script's, and those that it imports later."""
    if state is None or not is_news(state):
        return
    with _taking:
        if not is_news(state):  # another thread took it over meanwhile
            return
        packed = loads(zlib.decompress(state.packed)) if state.packed else {}
        changed = {name for name in packed if packed[name] != _packed_states.get(name)}
        gone = _packed_states.keys() - packed.keys()
        _packed_states.clear()
        _packed_states.update(packed)
        for name in changed | gone:
            _states[name] = loads(packed[name]) if name in packed else ModuleState({}, frozenset())
        watch_imports()
        taken = changed | gone
        for name in taken:
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                _take(module)
        _link(taken)
        boot.order = state.order
        own_state.given = state  # not before: until then, other threads that need it wait
    _take_late()


@contextlib.contextmanager
def _keeping(names: Iterable[str]) -> Iterator[None]:
    """Have modules keep what they took over while a class is made of which they are told.

    A base that lists its subclasses has listed this one in the script, and that list was taken over.
    """
    with _taking:
        found = [_taken[name] for name in names if name in _taken]
        kept = [(taken, taken.now()) for taken in found]
        try:
            yield
        finally:
            for taken, before in kept:
                taken.put_back(before)


classes.keeping = _keeping


def _take_late() -> None:
    """Have modules that were just imported take over what the script has.

    Whoever imports them holds their import locks, for which a thread that takes over may wait: then that one
    does it.
    """
    while _late and _taking.acquire(timeout=LATE_SECONDS):
        try:
            with contextlib.suppress(IndexError):  # another thread has
                module = _late.popleft()
                _take(module)
                _link({module.__name__})
        finally:
            _taking.release()


def _take(module: ModuleType) -> None:
    state = _states.get(module.__name__)
    if state is not None:
        taken = _taken.get(module.__name__)
        if taken is None or taken.module is not module:
            taken = _taken[module.__name__] = _Taken(module)
        taken.take(state)


def _link(names: set[str]) -> None:
    """Have places of these modules, and of those that have something of theirs, be as the script's."""
    for name, taken in _taken.items():
        if name in names or any(link.module in names for link in taken.links):
            taken.link()


class _Imports(MetaPathFinder):
    """Notes which modules of the user's own are imported, and has them take over what the script has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that other finders have, with a loader around its own."""
        if fullname.partition(".")[0] in NOT_OWN or fullname in sys.builtin_module_names:
            return None
        for finder in list(sys.meta_path):
            find = None if _is_such(finder) else getattr(finder, "find_spec", None)
            if find is not None and (spec := find(fullname, path, target)) is not None:
                if spec.loader is not None and is_own_spec(spec):
                    spec.loader = _Importing(spec.loader)
                return spec  # type: ignore[no-any-return]
        return None


def _is_such(finder: object) -> bool:
    """Tell whether it is that finder, or that of a parcoll that was here before: each would ask the other."""
    return (type(finder).__module__, type(finder).__name__) == (__name__, _Imports.__name__)


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
        boot.run_module(loader.exec_module, module)
        _late.append(sys.modules.get(name, module))
        _take_late()


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
        sys.meta_path[:] = [_imports, *(finder for finder in sys.meta_path if not _is_such(finder))]


def import_edited() -> None:
    """Import those modules anew whose files have changed since they were imported here.

    So are those that the search path leads elsewhere now (what the script has imported before comes with the
    program: `boot.lost_sources`), and those that import one of them, directly or through others. What
    runs already keeps what it has.
    """
    watch_imports()
    with _taking:
        edited = {*_edited_now(), *_moved_now()}
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
                logger.info("%s was edited and cannot be imported: %s", name, message_of(error))
                _stamps.pop(name, None)
                parent, _, last = name.rpartition(".")
                if parent in sys.modules:
                    vars(sys.modules[parent]).pop(last, None)


def _edited_now() -> Iterator[str]:
    for name, (path, stamp) in _stamps.copy().items():
        try:
            if name in sys.modules and stamp_of(path) != stamp:
                yield name
        except OSError:  # it is gone: the module stays what it is
            continue


_path: tuple[str, ...] = ()  # by which they were looked for last


def _moved_now() -> Iterator[str]:
    global _path
    before, _path = _path, tuple(sys.path)
    for name, (path, _) in _stamps.copy().items() if before not in ((), _path) else ():
        if "." not in name and name in sys.modules:
            spec = PathFinder.find_spec(name)
            if spec is None or os.path.realpath(spec.origin or "") != os.path.realpath(path):
                yield from (other for other in list(_stamps) if other == name or other.startswith(f"{name}."))


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


def _renew_lock() -> None:
    global _taking
    _taking = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
