"""Codec: objects to pickled bytes and back, without what pickle and cloudpickle would lose.

Kept are the fields of built-in exceptions, what a program has changed in its classes of `__main__`, and what
`reducers` and `classes` tell of.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from parcoll.text import short_repr
from parcoll.wire import memmaps, reducers, script
from parcoll.wire.classes import become, has_come, is_news, made_class, rebase, reduced_class
from parcoll.wire.named import WITH_NAME, reduced_by_name, reduced_original
from parcoll.wire.reducers import (
    REDUCED,
    WITHOUT_NAME,
    class_of_number,
    in_parts,
    make_skeleton_class,
    make_skeleton_enum,
    names_of,
    reduced,
    sentinel,
    set_class_state,
)

PROTOCOL = 5
MOST_OF_FINALIZED = 2**20  # bytes: an object with a finalizer that is larger is its `repr` in an exception
LOCKS = (type(threading.Lock()), type(threading.RLock()))

# Tells of each large buffer whether it stays inside the pickle; with None all of them do.
KeepInside = Callable[[pickle.PickleBuffer], bool] | None


def by_reference(value: object, keep_inside: KeepInside = None) -> bytes:
    """Pickle with Python's own pickler: functions and classes go by name."""
    return _dump(_ByReference, in_parts(value) if type(value) is list else value, keep_inside)


def by_value(value: object, keep_inside: KeepInside = None) -> bytes:
    """Pickle with cloudpickle: functions and classes that no module has go by value."""
    return _dump(ByValue, value, keep_inside)


def dumps(value: object, limit: int | None = None) -> bytes:
    """Pickle by value, with all buffers inside the pickle; TooLargeError for more than `limit` bytes."""
    return by_value(value) if limit is None else _dump(ByValue, value, None, _Bounded(limit))


def dumps_in_part(value: object, limit: int | None = None) -> bytes:
    """Pickle by value; what cannot be pickled is a lock of its own there, or its `repr`."""
    return _dump(_InPart, value, None, io.BytesIO() if limit is None else _Bounded(limit))


class TooLargeError(Exception):
    """A pickle has more bytes than there is room for."""


class _Bounded(io.BytesIO):
    """A file for a pickle of bounded size, so that what is too large is not copied to its end."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, part: Any) -> int:
        self._left -= len(part)
        if self._left < 0:
            raise TooLargeError
        return super().write(part)


class Naming:
    """Pickles by value, and notes which of the script's names go with the pickle."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.funcs: list[FunctionType] = []  # the script's that go with it

    def by_value(self, value: object, keep_inside: KeepInside = None) -> bytes:
        """Pickle a value."""
        file = io.BytesIO()
        pickler = _NamingPickler(file, keep_inside)
        pickler.dump(value)
        self.names |= pickler.names
        self.funcs += pickler.funcs
        return file.getvalue()


def prefers_value() -> bool:
    """Tell whether the user has asked cloudpickle to pickle some module by value."""
    return bool(cloudpickle.list_registry_pickle_by_value())


def loads(pickled: bytes, buffers: Iterable[Any] = (), refresh_classes: bool = False) -> Any:
    """Unpickle. Classes that this process already has stay as they are, unless `refresh_classes`.

    cloudpickle sends a class of `__main__` with attributes and methods, and each load sets them. This would
    undo what the program has done to the class since: in the process that defined it, and in a worker with
    every partition. So a worker sets them once for each program.
    """
    if b"_class_setstate" not in pickled:
        return pickle.loads(pickled, buffers=buffers)
    return _Loader(io.BytesIO(pickled), buffers=buffers, refresh=refresh_classes).load()


def loads_saved(pickled: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle what an earlier process saved: objects of its `__main__` get this process's classes."""
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
    with contextlib.suppress(Exception):  # packing the value raises the error that the user sees
        recorder.dump(value)
    return recorder.modules, recorder.codes


def _dump(
    kind: type[_ByReference | ByValue], value: object, keep_inside: KeepInside, file: io.BytesIO | None = None
) -> bytes:
    file = file or io.BytesIO()
    kind(file, keep_inside).dump(value)
    return file.getvalue()


class _Reducers:
    """A pickler's dispatch table with bare objects, and without tblib's entries for built-in exceptions.

    distributed has tblib pickle all exceptions. That helps classes with an `__init__` of their own, but
    for built-in ones it loses `SystemExit.code`, `UnicodeDecodeError.object` and the like.
    """

    def __init__(self, own: Mapping[type, Any]) -> None:
        self._own = own
        self._seen: list[Any] = []
        self._made: dict[type, Any] = {}

    def of(self, table: Mapping[type, Any]) -> dict[type, Any]:
        """Return the table for one pickle; made anew (0.1 ms) only where an entry was added or changed."""
        seen = [list(part.values()) for part in getattr(table, "maps", [table])]
        if seen != self._seen:
            self._made = {
                kind: reduce
                for kind, reduce in table.items()
                if kind.__module__ != "builtins" or reduce.__module__ != "tblib.pickling_support"
            } | {object: sentinel, **self._own}
            self._seen = seen
        of_arrays = memmaps.reducers()
        return {**self._made, **of_arrays} if of_arrays else self._made


_by_reference = _Reducers({**WITHOUT_NAME, **reducers.BY_REFERENCE})
_by_value = _Reducers({**WITHOUT_NAME, **WITH_NAME})


class _ByReference(pickle.Pickler):
    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        self.dispatch_table = _by_reference.of(copyreg.dispatch_table)
        super().__init__(file, PROTOCOL, buffer_callback=keep_inside)


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, with what it loses (`reducers`), and with the script's functions (`script`)."""

    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        self.dispatch_table = _by_value.of(cloudpickle.Pickler.dispatch_table)  # before it is read
        self._cells: dict[int, Any] = {}
        super().__init__(file, PROTOCOL, buffer_callback=keep_inside)

    def reducer_override(self, value: Any) -> Any:
        """Reduce what cloudpickle would lose."""
        kind = type(value)
        if not issubclass(kind, REDUCED):  # not `isinstance`, which asks the object: it may raise
            of_script = kind.__module__ == "__main__" and kind not in self.dispatch_table
            return self._of_script(value) if of_script else NotImplemented
        reduction = reduced(value) if (found := reduced_original(value)) is None else found
        if reduction is not NotImplemented:
            return reduction
        made = reducers.made_modules
        reduction = reducers.reduced_of_made(self, value) if made else NotImplemented
        reduction = super().reducer_override(value) if reduction is NotImplemented else reduction
        if reduction is not NotImplemented and isinstance(value, type) and len(reduction) == 6:
            return reduced_class(value, reduction, self._name_of(value))
        return reduction

    _of_script = staticmethod(reduced_by_name)

    def _name_of(self, value: Any) -> str | None:
        """Return the script's own name for a function or class, where it has one."""
        name: str = value.__name__
        return name if value.__module__ == "__main__" and _script_names().get(name) is value else None

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        """Reduce a function of the script so that it gets the globals that all of them share."""
        make, (code, names, *unset, cells), state, *rest, _ = super()._dynamic_function_reduce(func)
        if cells is not None:  # functions that have a variable in common have it there too
            cells = tuple(map(self._cells.setdefault, map(id, func.__closure__ or ()), cells))
        if func.__globals__ is not _script_names():
            return make, (code, names, *unset, cells), state, *rest, _
        at = self._name_of(func) if cells is None else None
        self.met(func, state[1])
        return script.make_function, (code, names, cells, at), state, *rest, script.set_state

    def met(self, func: FunctionType, state: dict[str, Any]) -> None:
        """Note a function of the script."""


class _NamingPickler(ByValue):
    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        super().__init__(file, keep_inside)
        self.names: set[str] = set()
        self.funcs: list[FunctionType] = []

    def _name_of(self, value: Any) -> str | None:
        name = super()._name_of(value)
        if name is not None:
            self.names.add(name)
        return name

    def met(self, func: FunctionType, state: dict[str, Any]) -> None:
        """Note what it names."""
        self.names.update(state["__globals__"])
        self.funcs.append(func)


class ManyByReference:
    """Pickles values one after the other, with one pickler: to make one takes as long as to pickle 50."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._pickler = _ByReference(self._file, None)

    def pickled(self, value: object) -> bytes:
        """Pickle one, with all buffers inside."""
        self._file.seek(0)
        self._file.truncate()
        self._pickler.clear_memo()
        self._pickler.dump(value)
        return self._file.getvalue()


def _script_names() -> dict[str, Any]:
    return names_of(sys.modules["__main__"])


class _InPart(ByValue):
    """A pickler of what is to be looked at rather than used: what an exception refers to."""

    _of_script = staticmethod(lambda value: NotImplemented)  # what it reduces to may raise: below

    def reducer_override(self, value: Any) -> Any:
        """Replace what cannot be pickled."""
        if issubclass(type(value), LOCKS):
            return type(value) if isinstance(value, type(threading.RLock())) else threading.Lock, ()
        reduced = super().reducer_override(value)
        if reduced is not NotImplemented or issubclass(type(value), (type, FunctionType)):
            return reduced
        if type(value) in self.dispatch_table:
            return NotImplemented
        try:
            # A finalizer would fail where a part is missing, as that of an HTTP response.
            if hasattr(type(value), "__del__") and not isinstance(value, BaseException):
                dumps(value, MOST_OF_FINALIZED)
            named = reduced_by_name(value) if type(value).__module__ == "__main__" else NotImplemented
            return value.__reduce_ex__(PROTOCOL) if named is NotImplemented else named
        except Exception:
            if isinstance(value, Mapping) and hasattr(value, "copy"):  # another's, that cannot be written to
                return copy.copy, (value.copy(),)
            return str, (short_repr(value),)


class _Recorder(ByValue):
    """A pickler that notes what its pickle refers to; the pickle itself is not used."""

    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        super().__init__(file, keep_inside)
        self.modules: set[str] = set()
        self.codes: list[CodeType] = []

    def reducer_override(self, value: Any) -> Any:
        """Note which module a value is, or comes from; note the code of a function."""
        if isinstance(value, CodeType):
            self.codes.append(value)
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        self.modules |= {found for found in (name, type(value).__module__) if isinstance(found, str)}
        return super().reducer_override(value)


class _Loader(pickle.Unpickler):
    """An unpickler that makes no class again which this process has, and leaves it alone unless `refresh`."""

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[Any], refresh: bool = False) -> None:
        super().__init__(file, buffers=buffers)
        self._refresh = refresh
        self._here_before: set[Any] = set()

    def load(self) -> Any:
        """Return the object, and let go of all that it consists of."""
        try:
            return super().load()
        finally:
            self.memo = {}  # where methods of this loader are too: a cycle

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found is set_class_state:
            return self._set_state
        if found in (make_skeleton_class, make_skeleton_enum):
            return functools.partial(self._make_class, found)
        return found

    def _make_class(self, make: Callable[..., Any], *arguments: Any) -> Any:
        *_, number, extra = arguments
        news, made = is_news(number, (extra or {}).get("at")), class_of_number(number)
        if made is None:
            made = made_class(*arguments) if make is make_skeleton_class else make(*arguments)
        elif not self._refresh and not (news and has_come(made)):
            self._here_before.add(made)
        elif has_come(made):
            rebase(made, arguments)
        script.add_class(made, (extra or {}).get("at"))
        return made

    def _set_state(self, kind: Any, state: Any) -> Any:
        return kind if kind in self._here_before else become(kind, state)


class _OtherClassError(Exception):
    """A class of this process has the name of a saved class, but other members."""


class _SavedLoader(_Loader):
    """An unpickler that gives objects of another process's `__main__` this process's classes.

    A class is known by its name. But one within a function or a class may have the name of one at the top,
    and its pickle does not say where it stands. So members are compared too. One that is not here, or has
    other members, is made from the pickle.
    """

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[Any], others: Iterable[str] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._others = others  # cloudpickle's ids of saved classes that this process does not have
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
    """Return the names of a class's methods and of its annotated attributes.

    Methods that begin with "_" do not count: an enum gets some of its own.
    """
    kinds = (FunctionType, staticmethod, classmethod, property)
    methods = {name for name, value in attributes.items() if isinstance(value, kinds) and name[0] != "_"}
    return methods, set(attributes.get("__annotations__", ()))


def _module_and_name(make: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str]:
    if make is make_skeleton_class:
        return arguments[3].get("__module__"), arguments[1]
    return arguments[4], arguments[1]  # of an enum


def _class_of_name(module: Any, name: str) -> Any:
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and found.__qualname__ == name else None
