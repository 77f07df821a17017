"""pickle and cloudpickle as parcoll uses them: where they would lose something, they do not here."""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _internals

PROTOCOL = 5

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
