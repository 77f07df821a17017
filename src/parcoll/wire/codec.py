"""pickle and cloudpickle as parcoll uses them: where they would lose something, they do not here."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _internals

PROTOCOL = 5
NO_FILE = "<dynamic-code>"  # cloudpickle's; tests/test_codec.py fails when it says something else

KeepInside = Callable[[pickle.PickleBuffer], bool] | None


def by_reference(value: object, keep_inside: KeepInside = None) -> bytes:
    """Pickle with Python's own pickler: functions and classes by name."""
    return _dump(_ByReference, value, keep_inside)


def by_value(value: object, keep_inside: KeepInside = None) -> bytes:
    """Pickle with cloudpickle: functions and classes by value where no module has them."""
    return _dump(_ByValue, value, keep_inside)


def dumps(value: object) -> bytes:
    """Pickle by value, all in one piece."""
    return by_value(value)


def prefers_value() -> bool:
    """Tell whether the user asked cloudpickle to send a module by value."""
    return bool(cloudpickle.list_registry_pickle_by_value())


def loads(pickled: bytes, buffers: Iterable[Any] = (), refresh_classes: bool = False) -> Any:
    """Unpickle. Classes that exist here already stay as they are, unless `refresh_classes`.

    cloudpickle sends a class of `__main__` with its attributes and methods, and at each load sets
    them on the class it finds. In the process that defined the class this would undo whatever the
    program did to it since; in a worker, with every partition.
    """
    if b"_class_setstate" not in pickled or refresh_classes:
        return pickle.loads(pickled, buffers=buffers)
    return _Loader(io.BytesIO(pickled), buffers=buffers).load()


def loads_saved(pickled: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle what an earlier process has saved: what it had by value is of this process's classes."""
    if b"_class_setstate" not in pickled:
        return pickle.loads(pickled, buffers=buffers)
    others: list[str] = []
    while True:
        try:
            return _SavedLoader(io.BytesIO(pickled), buffers=buffers, others=others).load()
        except _OtherClassError as other:
            others.append(other.args[0])


def modules_in(value: object) -> tuple[set[str], list[CodeType]]:
    """Return the modules that a pickle of `value` names, and the code of functions that it has by value."""
    recorder = _Recorder(io.BytesIO(), None)
    with contextlib.suppress(Exception):  # what cannot be pickled is told elsewhere
        recorder.dump(value)
    return recorder.modules, recorder.codes


def _dump(kind: type[_ByReference | _ByValue], value: object, keep_inside: KeepInside) -> bytes:
    file = io.BytesIO()
    kind(file, keep_inside).dump(value)
    return file.getvalue()


class _Reducers:
    """A pickler's table without tblib's entries for builtin exceptions.

    distributed has tblib pickle all exceptions. That helps classes with an `__init__` of their own,
    but loses `SystemExit.code`, `UnicodeDecodeError.object` and the like.
    """

    def __init__(self) -> None:
        self._seen: list[Any] = []
        self._made: dict[type, Any] = {}

    def of(self, table: Mapping[type, Any]) -> dict[type, Any]:
        """Return the table; made anew (0.1 ms) only where an entry has come or changed."""
        seen = [list(part.values()) for part in getattr(table, "maps", [table])]
        if seen != self._seen:
            self._made = {
                kind: reduce
                for kind, reduce in table.items()
                if kind.__module__ != "builtins" or reduce.__module__ != "tblib.pickling_support"
            }
            self._seen = seen
        return self._made


_by_reference, _by_value = _Reducers(), _Reducers()


class _ByReference(pickle.Pickler):
    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        if "tblib.pickling_support" in sys.modules:
            self.dispatch_table = _by_reference.of(copyreg.dispatch_table)
        super().__init__(file, PROTOCOL, buffer_callback=keep_inside)


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        if "tblib.pickling_support" in sys.modules:
            self.dispatch_table = _by_value.of(cloudpickle.Pickler.dispatch_table)  # before it is read
        super().__init__(file, PROTOCOL, buffer_callback=keep_inside)

    def reducer_override(self, value: Any) -> Any:
        """Send a cached function by value too: it would go by its name, which a worker does not know."""
        if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == "__main__":
            parameters = value.cache_parameters()
            return _cached, (value.__wrapped__, parameters["maxsize"], parameters["typed"])
        if isinstance(value, CodeType):
            return _with_filename(value)
        return super().reducer_override(value)


def _with_filename(code: CodeType) -> Any:
    """Keep the name of a function's file, for tracebacks: cloudpickle puts a word in its place."""
    make, arguments = _internals._code_reduce(code)
    return make, tuple(code.co_filename if part == NO_FILE else part for part in arguments)


class _Recorder(_ByValue):
    """Notes what a pickle refers to; the pickle itself is of no use."""

    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        super().__init__(file, keep_inside)
        self.modules: set[str] = set()
        self.codes: list[CodeType] = []

    def reducer_override(self, value: Any) -> Any:
        """Note the module of a function, a class, an object or a module, and a function's code."""
        if isinstance(value, CodeType):
            self.codes.append(value)
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        self.modules |= {found for found in (name, type(value).__module__) if isinstance(found, str)}
        return super().reducer_override(value)


def _cached(func: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(func)


class _Loader(pickle.Unpickler):
    """Leaves alone the classes that were here before.

    It leans on the names of three functions that cloudpickle's pickles call, and on its table of
    classes; tests/test_codec.py fails when they change.
    """

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[Any]) -> None:
        super().__init__(file, buffers=buffers)
        self._here_before: set[Any] = set()

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found is _internals._class_setstate:
            return self._set_state
        if found in (_internals._make_skeleton_class, _internals._make_skeleton_enum):
            return functools.partial(self._make_class, found)
        return found

    def _make_class(self, make: Callable[..., Any], *arguments: Any) -> Any:
        known = _internals._DYNAMIC_CLASS_TRACKER_BY_ID.get(arguments[-2])  # the class's id
        made = make(*arguments)
        if made is known:
            self._here_before.add(made)
        return made

    def _set_state(self, kind: Any, state: Any) -> Any:
        return kind if kind in self._here_before else _internals._class_setstate(kind, state)


class _OtherClassError(Exception):
    """A class of this process has the name of a saved one, and other members."""


class _SavedLoader(_Loader):
    """Has objects of another process's `__main__` be of this one's classes, where it has them.

    A class that stands within a function or a class may have the name of one at the top of the module,
    and its pickle does not say where it stands. So members are compared too.
    """

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[Any], others: Iterable[str] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._others = others  # ids of classes that are not those of this process
        self._id_of: dict[Any, str] = {}

    def _make_class(self, make: Callable[..., Any], *arguments: Any) -> Any:
        number = arguments[-2]
        known = _class_of_name(*_module_and_name(make, arguments)) if number not in self._others else None
        if known is None:
            return super()._make_class(make, *arguments)
        self._here_before.add(known)
        self._id_of[known] = number
        return known

    def _set_state(self, kind: Any, state: Any) -> Any:
        if kind in self._id_of and _members(state[0]) != _members(vars(kind)):
            raise _OtherClassError(self._id_of[kind])
        return super()._set_state(kind, state)


def _members(attributes: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the names of a class's methods and of its annotated attributes; an enum's own have a "_"."""
    kinds = (FunctionType, staticmethod, classmethod, property)
    methods = {name for name, value in attributes.items() if isinstance(value, kinds) and name[0] != "_"}
    return methods, set(attributes.get("__annotations__", ()))


def _module_and_name(make: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str]:
    if make is _internals._make_skeleton_class:
        _, name, _, settings, *_ = arguments
        return settings.get("__module__"), name
    _, name, _, _, module, *_ = arguments  # of an enum
    return module, name


def _class_of_name(module: Any, name: str) -> Any:
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and found.__qualname__ == name else None
